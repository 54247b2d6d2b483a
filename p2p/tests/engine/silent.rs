//! A daemon that takes part, promises every piece, and sends none.

use darter_p2p::TaskId;
use darter_protocol::PieceLayout;
use darter_protocol::hash::PieceHasher;
use darter_protocol::scheduler::scheduler_client::SchedulerClient;
use darter_protocol::scheduler::{AnnounceHostRequest, AnnounceTaskRequest, Content, HeldTask, Host};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_stream::StreamExt;

pub(crate) struct Silent {
    asked: Arc<AtomicUsize>,
    _serving: JoinSet<()>,
}

impl Silent {
    /// Tells the scheduler that it holds the task complete, which is `data`.
    pub(crate) async fn start(scheduler: SocketAddr, task: TaskId, content: Content, data: &[u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = Host {
            id: "silent".to_owned(),
            ip: "127.0.0.1".to_owned(),
            piece_port: listener.local_addr().unwrap().port().into(),
            // Asked first.
            seed: true,
            ..Host::default()
        };
        let mut client = SchedulerClient::connect(format!("http://{scheduler}")).await.unwrap();
        let hello = AnnounceHostRequest { host: Some(host) };
        let life = tokio_stream::iter([hello]).chain(tokio_stream::pending());
        let mut life = client.announce_host(life).await.unwrap().into_inner();
        life.message().await.unwrap();
        let held = HeldTask { task_id: task.as_bytes().to_vec().into(), content: Some(content.clone()) };
        let inventory = AnnounceTaskRequest { host_id: "silent".to_owned(), tasks: vec![held] };
        client.announce_task(inventory).await.unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let (count, length, hashes) = (Arc::clone(&asked), data.len(), hashes(data));
        let serving = async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(promise(stream, length, Arc::clone(&hashes), Arc::clone(&count)));
            }
        };
        let living = async move { while let Ok(Some(_)) = life.message().await {} };
        let mut tasks = JoinSet::new();
        tasks.spawn(serving);
        tasks.spawn(living);
        Self { asked, _serving: tasks }
    }

    /// How many pieces it was asked for.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

/// The hashes of all pieces, as they are sent.
fn hashes(data: &[u8]) -> Arc<[u8]> {
    let layout = PieceLayout::new(data.len() as u64).unwrap();
    let hash = |piece| {
        let mut hasher = PieceHasher::new(&layout, piece);
        let range = layout.range(piece);
        hasher.update(&data[range.start() as usize..range.end() as usize]);
        *hasher.finish().as_bytes()
    };
    layout.iter().flat_map(hash).collect()
}

/// Tells the hashes, without which nobody would ask it for a piece; answers a request for a piece with a head, and then
/// says nothing more.
async fn promise(stream: TcpStream, length: usize, hashes: Arc<[u8]>, asked: Arc<AtomicUsize>) {
    let mut stream = BufReader::new(stream);
    while let Some((path, range)) = request(&mut stream).await {
        let (what, bytes) = (path.rsplit('/').next().unwrap(), hashes.len());
        let answer = match (what, range) {
            ("data", Some(range)) => {
                asked.fetch_add(1, Ordering::Relaxed);
                let (first, last) = range.split_once('-').unwrap();
                let bytes = last.parse::<u64>().unwrap() + 1 - first.parse::<u64>().unwrap();
                let head =
                    format!("206 \r\nContent-Range: bytes {range}/{length}\r\nContent-Length: {bytes}");
                (head, &[][..])
            }
            ("hashes", _) => (format!("200 \r\nContent-Length: {bytes}"), &hashes[..]),
            _ => ("404 \r\nContent-Length: 0".to_owned(), &[][..]),
        };
        let head = format!("HTTP/1.1 {}\r\n\r\n", answer.0);
        stream.write_all(&[head.as_bytes(), answer.1].concat()).await.unwrap();
    }
}

/// The next request's path and range; `None` at the end of the connection.
async fn request(stream: &mut BufReader<TcpStream>) -> Option<(String, Option<String>)> {
    let (mut path, mut range) = (None, None);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
            return None;
        }
        let line = line.trim();
        match (&path, line.strip_prefix("range: bytes=")) {
            (None, _) => path = line.split(' ').nth(1).map(str::to_owned),
            (Some(_), Some(bytes)) => range = Some(bytes.to_owned()),
            (Some(path), None) if line.is_empty() => return Some((path.clone(), range)),
            _ => {}
        }
    }
}
