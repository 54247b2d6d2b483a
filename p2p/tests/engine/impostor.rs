//! A daemon in name: it takes part, and gives away what it is told to, as it is told to.

use darter_p2p::TaskId;
use darter_protocol::hash::{self, BlockHasher, PieceHasher};
use darter_protocol::scheduler::scheduler_client::SchedulerClient;
use darter_protocol::scheduler::{
    AnnounceHostRequest, AnnounceTaskRequest, Content, HeldTask, Host, LeaseOutcome, LeaseReturned,
    PieceHash as HashMessage, PieceResult, RegisterPeerTaskRequest,
};
use darter_protocol::{BlockHash, PieceHash, PieceIndex, PieceLayout};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tonic::transport::Channel;

/// What it does with a request: what is asked for, the honest answer, and the one that an honest daemon with other content
/// would give.
pub(crate) type Lie = fn(what: &str, honest: Vec<u8>, other: Vec<u8>) -> Answer;

pub(crate) enum Answer {
    Body(Vec<u8>),
    /// It has no such thing.
    No,
    /// As much as this of what the head promises, and the connection ends.
    Cut(Vec<u8>),
    /// The head, and nothing more.
    Silence,
    /// As much as this, and nothing more.
    Stall(Vec<u8>),
    /// As much as this, and when it is let to go on, that; with less than the head promises, the connection ends.
    Gated(Vec<u8>, Vec<u8>),
}

pub(crate) fn honest(_: &str, honest: Vec<u8>, _: Vec<u8>) -> Answer {
    Answer::Body(honest)
}

pub(crate) struct Impostor {
    shared: Arc<Shared>,
    client: SchedulerClient<Channel>,
    tasks: JoinSet<()>,
}

struct Shared {
    task: TaskId,
    data: Vec<u8>,
    other: Vec<u8>,
    layout: PieceLayout,
    lie: Lie,
    /// Whether it puts the list of blocks ahead of data, as it is asked to.
    proves: bool,
    /// The lines of its have-map, where it does not have everything.
    have: Option<String>,
    /// Whom alone it gives content; others are to wait.
    only: Option<&'static str>,
    /// Closed when what is gated may go on.
    gate: Semaphore,
    asked: AtomicUsize,
    sent: AtomicU64,
}

impl Impostor {
    /// One that tells the scheduler that it holds the task complete, which is `data`.
    pub(crate) async fn complete(scheduler: SocketAddr, task: TaskId, data: &[u8], lie: Lie) -> Self {
        Self::holder(scheduler, task, data, (lie, true)).await
    }

    /// As [`Self::complete`]; where it does not prove, as a daemon of an earlier version.
    pub(crate) async fn holder(
        scheduler: SocketAddr,
        task: TaskId,
        data: &[u8],
        (lie, proves): (Lie, bool),
    ) -> Self {
        let mut this = Self::start(scheduler, task, data, (lie, proves), (None, None)).await;
        this.announce().await;
        this
    }

    /// As [`Self::complete`]; it gives content to the one host alone, and tells others to wait.
    pub(crate) async fn of_one(
        scheduler: SocketAddr,
        task: TaskId,
        data: &[u8],
        (lie, only): (Lie, &'static str),
    ) -> Self {
        let layout = PieceLayout::new(data.len() as u64).unwrap();
        let have = format!("have 0-{}\n", layout.pieces() - 1);
        let mut this = Self::start(scheduler, task, data, (lie, true), (Some(have), Some(only))).await;
        this.announce().await;
        this
    }

    /// Lets what is gated go on.
    pub(crate) fn open_gate(&self) {
        self.shared.gate.close();
    }

    async fn announce(&mut self) {
        let task_id = self.shared.task.as_bytes().to_vec().into();
        let held = HeldTask { task_id, content: Some(self.shared.content()) };
        let inventory = AnnounceTaskRequest { host_id: "impostor".to_owned(), tasks: vec![held] };
        self.client.announce_task(inventory).await.unwrap();
    }

    /// An honest one that takes part in the download of `data`, and has brought these pieces from the origin.
    pub(crate) async fn partner(scheduler: SocketAddr, task: TaskId, data: &[u8], pieces: &[u32]) -> Self {
        let list = pieces.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let have = format!("have {list}\n");
        let mut this = Self::start(scheduler, task, data, (honest, true), (Some(have), None)).await;
        let (host_id, task_id) = ("impostor".to_owned(), task.as_bytes().to_vec().into());
        let register = RegisterPeerTaskRequest { host_id, task_id, held_bytes: 0, ..Default::default() };
        let first = this.client.register_peer_task(register).await.unwrap().into_inner();
        let vouched = |index: &u32| HashMessage {
            index: *index,
            hash: piece_hash(&this.shared.layout, data, PieceIndex::new(*index)).as_bytes().to_vec().into(),
        };
        let returned = |lease_id| LeaseReturned { lease_id, outcome: LeaseOutcome::Done.into() };
        let held_bytes = (pieces.len() as u64) << 20;
        let report = move |lease_id| PieceResult {
            host_id: "impostor".to_owned(),
            task_id: task.as_bytes().to_vec().into(),
            held_bytes,
            origin_bytes: held_bytes,
            lease_returned: Some(returned(lease_id)),
            ..PieceResult::default()
        };
        let first = PieceResult {
            content: Some(Content { root: Vec::new().into(), ..this.shared.content() }),
            from_origin: pieces.iter().map(vouched).collect(),
            ..report(first.lease.expect("it is the first").id)
        };
        let (reports, sent) = mpsc::channel(4);
        reports.send(first).await.unwrap();
        let sent = futures_util::stream::unfold(sent, |mut sent| async { Some((sent.recv().await?, sent)) });
        let mut packets = this.client.report_piece_result(sent).await.unwrap().into_inner();
        this.tasks.spawn(async move {
            while let Ok(Some(packet)) = packets.message().await {
                // It wants no more, and stands in nobody's way to the origin.
                if let Some(lease) = packet.lease {
                    reports.send(report(lease.id)).await.unwrap();
                }
            }
        });
        this
    }

    async fn start(
        scheduler: SocketAddr,
        task: TaskId,
        data: &[u8],
        (lie, proves): (Lie, bool),
        (have, only): (Option<String>, Option<&'static str>),
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = Host {
            id: "impostor".to_owned(),
            ip: "127.0.0.1".to_owned(),
            piece_port: listener.local_addr().unwrap().port().into(),
            // Asked first.
            seed: true,
            ..Host::default()
        };
        let mut client = SchedulerClient::connect(format!("http://{scheduler}")).await.unwrap();
        let hello = AnnounceHostRequest { host: Some(host), ..Default::default() };
        let life = tokio_stream::iter([hello]).chain(tokio_stream::pending());
        let mut life = client.announce_host(life).await.unwrap().into_inner();
        life.message().await.unwrap();
        let shared = Arc::new(Shared {
            task,
            data: data.to_vec(),
            other: data.iter().map(|byte| byte ^ 1).collect(),
            layout: PieceLayout::new(data.len() as u64).unwrap(),
            lie,
            proves,
            have,
            only,
            gate: Semaphore::new(0),
            asked: AtomicUsize::new(0),
            sent: AtomicU64::new(0),
        });
        let mut tasks = JoinSet::new();
        let serving = Arc::clone(&shared);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let shared = Arc::clone(&serving);
                connections.spawn(async move { shared.serve(stream).await });
            }
        });
        tasks.spawn(async move { while let Ok(Some(_)) = life.message().await {} });
        Self { shared, client, tasks }
    }

    /// How often it was asked for content.
    pub(crate) fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::SeqCst)
    }

    /// Bytes of content that it has sent.
    pub(crate) fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn content(&self) -> Content {
        let pieces: Vec<PieceHash> =
            self.layout.iter().map(|piece| piece_hash(&self.layout, &self.data, piece)).collect();
        let root = hash::root(&self.layout, &pieces).as_bytes().to_vec().into();
        Content { length: self.layout.length(), headers: Vec::new(), root }
    }

    async fn serve(&self, stream: TcpStream) -> Option<()> {
        stream.set_nodelay(true).ok()?;
        let mut stream = BufReader::new(stream);
        loop {
            let Request { path, range, proof, host } = request(&mut stream).await?;
            let rest = path.strip_prefix(&format!("/tasks/{}/", self.task))?;
            let (what, which) = rest.split_once('/').unwrap_or((rest, ""));
            if let (Some(have), "have") = (&self.have, what) {
                let head = "HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n";
                let lines = format!("{head}{:x}\r\n{have}\r\n", have.len());
                stream.write_all(lines.as_bytes()).await.ok()?;
                // It has no more to say, and stays.
                return std::future::pending().await;
            }
            if what == "data" && self.only.is_some_and(|only| host.as_deref() != Some(only)) {
                stream.write_all(b"HTTP/1.1 503 \r\nContent-Length: 0\r\n\r\n").await.ok()?;
                continue;
            }
            let answers = [&self.data, &self.other].map(|data| self.answer(data, what, which, range));
            let [Some(honest), Some(other)] = answers else {
                stream.write_all(b"HTTP/1.1 404 \r\nContent-Length: 0\r\n\r\n").await.ok()?;
                continue;
            };
            let mut head = "HTTP/1.1 200 \r\n".to_owned();
            if let ("data", Some((first, last))) = (what, range) {
                self.asked.fetch_add(1, Ordering::SeqCst);
                self.sent.fetch_add(honest.len() as u64, Ordering::SeqCst);
                let all = self.data.len();
                head = format!("HTTP/1.1 206 \r\nContent-Range: bytes {first}-{last}/{all}\r\n");
                if let Some(proof) = self.proof(first).filter(|_| proof) {
                    head += &format!("Darter-Proof: {proof}\r\n");
                }
            }
            let length = honest.len();
            let with = |length: usize| format!("{head}Content-Length: {length}\r\n\r\n").into_bytes();
            let (answer, ends) = match (self.lie)(what, honest, other) {
                Answer::Body(body) => ([with(body.len()), body].concat(), false),
                Answer::No => (b"HTTP/1.1 404 \r\nContent-Length: 0\r\n\r\n".to_vec(), false),
                Answer::Cut(body) => ([with(length), body].concat(), true),
                Answer::Silence => (with(length), false),
                Answer::Stall(body) => ([with(length), body].concat(), false),
                Answer::Gated(first, rest) => {
                    stream.write_all(&[with(length), first.clone()].concat()).await.ok()?;
                    // It is closed to let them on.
                    let _ = self.gate.acquire().await;
                    let ends = first.len() + rest.len() < length;
                    (rest, ends)
                }
            };
            stream.write_all(&answer).await.ok()?;
            if ends {
                return None;
            }
        }
    }

    /// The list of the piece that this byte lies in, as it would tell it by itself.
    fn proof(&self, first: usize) -> Option<String> {
        let piece = self.layout.piece_at(first as u64).filter(|_| self.proves)?.to_string();
        let [honest, other] = [&self.data, &self.other].map(|data| self.answer(data, "blocks", &piece, None));
        match (self.lie)("blocks", honest?, other?) {
            Answer::Body(list) => Some(list.iter().map(|byte| format!("{byte:02x}")).collect()),
            _ => None,
        }
    }

    fn answer(&self, data: &[u8], what: &str, which: &str, range: Option<(usize, usize)>) -> Option<Vec<u8>> {
        let pieces = || self.layout.iter().map(|piece| piece_hash(&self.layout, &self.data, piece));
        match what {
            "data" => range.map(|(first, last)| data[first..=last].to_vec()),
            // Without these nobody would ask it for a piece.
            "hashes" => Some(pieces().flat_map(|hash| *hash.as_bytes()).collect()),
            "blocks" => {
                let blocks = self.layout.blocks_of(self.layout.piece(which.parse().ok()?)?);
                Some(blocks.flat_map(|block| *block_hash(&self.layout, data, block).as_bytes()).collect())
            }
            _ => None,
        }
    }
}

fn piece_hash(layout: &PieceLayout, data: &[u8], piece: PieceIndex) -> PieceHash {
    let (mut hasher, range) = (PieceHasher::new(layout, piece), layout.range(piece));
    hasher.update(&data[range.start() as usize..range.end() as usize]);
    hasher.finish()
}

fn block_hash(layout: &PieceLayout, data: &[u8], block: u32) -> BlockHash {
    let mut hasher = BlockHasher::new(layout, block);
    hasher.update(&data[layout.start_of(block) as usize..layout.start_of(block + 1) as usize]);
    hasher.finish()
}

struct Request {
    path: String,
    /// The first and the last byte that it asks for.
    range: Option<(usize, usize)>,
    proof: bool,
    host: Option<String>,
}

/// The next request; `None` at the end of the connection.
async fn request(stream: &mut BufReader<TcpStream>) -> Option<Request> {
    let (mut path, mut range, mut proof, mut host) = (None, None, false, None);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
            return None;
        }
        let line = line.trim();
        host = line.strip_prefix("darter-host: ").map(str::to_owned).or(host);
        proof |= line.starts_with("darter-proof-wanted:");
        match (&path, line.strip_prefix("range: bytes=")) {
            (None, _) => path = line.split(' ').nth(1).map(str::to_owned),
            (Some(_), Some(bytes)) => {
                let (first, last) = bytes.split_once('-')?;
                range = Some((first.parse().ok()?, last.parse().ok()?));
            }
            (Some(path), None) if line.is_empty() => {
                return Some(Request { path: path.clone(), range, proof, host });
            }
            _ => {}
        }
    }
}
