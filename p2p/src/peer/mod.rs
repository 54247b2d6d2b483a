//! Between daemons: HTTP/1.1 with ranges over kept-alive connections, inside TLS with the certificates of both (`darter-enrol`),
//! or plain where an operator says so.
//!
//! ```text
//! GET    /tasks/ID          what is known of the task (JSON, for people)
//! GET    /tasks/ID/data     Range: bytes=a-b of pieces that are complete here, or of one that is coming and passed on; 206, or 404
//!                           when they are not, or 503; with Darter-Proof-Wanted and of one piece, Darter-Proof is what all its
//!                           blocks hash to (`proof.rs`)
//! GET    /tasks/ID/hashes   the hashes of all pieces, 32 bytes each; 404 before the task is complete
//! GET    /tasks/ID/blocks/N the hashes of all blocks of piece N, 32 bytes each; 404 when it is not complete here
//! GET    /tasks/ID/have     which pieces are here, as lines that go on (`have.rs`)
//! DELETE /tasks/ID/turn     the place that is kept for the asker is not needed
//! ```
//!
//! Hashes are values of BLAKE3's tree (`darter_protocol::hash`): those of a piece's blocks merge into the piece's, and those of
//! the pieces into the root. So who knows the hash of a piece may ask for blocks of it, and for the list by which each of them is
//! proven; who asks for the whole piece needs no list, but by one a reader who waits gets each block as it comes.
//!
//! A piece that is itself coming from a partner is passed on block by block, as each is proven. Its body waits for the fetch that
//! brings it, and is cut short where that fails: that is no lie, and whoever asked gets it elsewhere. Who takes such pieces says so when
//! it follows what is here (`Darter-Relays`).
//!
//! Few are served at once (`turns.rs`), but for parts of a piece that take less time than to wait for a turn. Who gets 503 for data and said who it is (`Darter-Host: ID`) stands in a line from
//! then on; when a place is kept for it, it reads `come` among the lines of `/have`. Who asks without having been called
//! says so (`Darter-Uncalled`): requests go over several connections, and one that is not meant for the place may be first. Who
//! brings a piece into another zone says that (`Darter-Across`), and waits less: many wait for it there.

mod client;
mod dial;
mod have;
mod proof;
mod server;
mod turns;

use darter_protocol::HostId;
use std::net::SocketAddr;

pub(crate) use client::{Data, PeerError, Peers, Wish};
pub(crate) use have::Said;
pub(crate) use server::{Quick, Served, Server, run};
pub(crate) use turns::Turns;

/// Another daemon, and where it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At<'a> {
    pub(crate) host: &'a HostId,
    pub(crate) address: SocketAddr,
}

/// Who asks: the id of its host. Where hosts prove who they are, it is what the certificate says, too.
const HOST_HEADER: http::HeaderName = http::HeaderName::from_static("darter-host");

/// Stands at a request for data of one that was not called; its value says nothing.
const UNCALLED_HEADER: http::HeaderName = http::HeaderName::from_static("darter-uncalled");

/// Stands at a request for a piece that the asker brings into another zone; its value says nothing.
const ACROSS_HEADER: http::HeaderName = http::HeaderName::from_static("darter-across");

/// Stands at a request for what is here, of one that takes pieces also while they come; its value says nothing.
const RELAYS_HEADER: http::HeaderName = http::HeaderName::from_static("darter-relays");

/// How a piece is asked for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Asking {
    /// The peer has said to come for it.
    pub(crate) called: bool,
    /// The asker brings it into another zone.
    pub(crate) across: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::progress::{Progress, RelayId};
    use crate::store::TaskFile;
    use crate::throttle::{Rates, Throttles};
    use darter_enrol::Membership;
    use darter_protocol::{
        BlockHash, BlockSet, ByteRange, PieceHash, PieceIndex, PieceLayout, PieceSet, TaskId,
    };
    use http_body_util::BodyExt;
    use std::sync::Arc;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::watch;
    use tokio::task::JoinSet;
    use tokio_util::sync::CancellationToken;

    const PIECE: u64 = PieceLayout::MIN_PIECE_SIZE;
    /// 16 pieces are more than the system takes from a server whose client reads nothing.
    const HELD: u64 = 16 * PIECE;
    const LENGTH: u64 = HELD + 5;

    /// A piece server that holds all pieces of every task but the last.
    async fn server(places: u32) -> (SocketAddr, JoinSet<()>, tempfile::TempDir) {
        serving(places, |file| Served::Partial { file, have: held() }).await
    }

    async fn serving(
        places: u32,
        served: impl Fn(Arc<TaskFile>) -> Served + Send + Sync + 'static,
    ) -> (SocketAddr, JoinSet<()>, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let file = TaskFile::create(&dir.path().join("f"), PieceLayout::new(LENGTH).unwrap()).unwrap();
        let file = Arc::new(file);
        let find = move |_| std::future::ready(Some(served(Arc::clone(&file))));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let metrics = Metrics::default();
        let throttles = Arc::new(Throttles::new(Rates::default(), &metrics));
        let turns = Turns::new(places);
        let membership = insecure();
        let (quick, lists) = (Quick::default(), Arc::default());
        let server = Server { find, turns, quick, lists, throttles, metrics, membership, shutdown: stop };
        (address, JoinSet::from_iter([run(listener, server)]), dir)
    }

    fn held() -> PieceSet {
        PieceSet::from_bytes(17, &[0xff, 0xff, 0]).unwrap()
    }

    fn insecure() -> Membership {
        Membership::insecure(darter_enrol::Metrics::default())
    }

    fn wish(range: ByteRange, called: bool) -> Wish {
        Wish { range, asking: Asking { called, across: false }, proof: None, if_known: false }
    }

    fn peers(name: &str) -> Peers {
        Peers::new(&name.parse().unwrap(), &insecure())
    }

    #[tokio::test]
    async fn only_what_is_there_is_given() {
        let (address, _server, _dir) = server(1).await;
        let (peers, task, host) = (peers("a"), TaskId::from([1; 32]), "s".parse().unwrap());
        let address = At { host: &host, address };
        let first = ByteRange::new(0, PIECE).unwrap();
        let body = peers.data(address, &task, wish(first, false)).await.unwrap().body;
        assert_eq!(body.collect().await.unwrap().to_bytes().len() as u64, first.len());
        for (start, end) in [(0, LENGTH), (HELD, LENGTH), (0, u64::MAX), (LENGTH, LENGTH + 1)] {
            let range = ByteRange::new(start, end).unwrap();
            assert!(
                matches!(peers.data(address, &task, wish(range, false)).await, Err(PeerError::NotHeld)),
                "{range}"
            );
        }
    }

    /// Where there is one place, which the first has, and for which the second waits.
    struct OnePlace {
        address: SocketAddr,
        host: HostId,
        task: TaskId,
        piece: ByteRange,
        first: Peers,
        second: Peers,
        _server: JoinSet<()>,
        _dir: tempfile::TempDir,
    }

    impl OnePlace {
        async fn new() -> Self {
            let (address, _server, _dir) = server(1).await;
            Self {
                address,
                host: "s".parse().unwrap(),
                task: TaskId::from([1; 32]),
                piece: ByteRange::new(0, HELD).unwrap(),
                first: peers("a"),
                second: peers("b"),
                _server,
                _dir,
            }
        }

        fn at(&self) -> At<'_> {
            At { host: &self.host, address: self.address }
        }

        async fn asked(&self, peers: &Peers, called: bool) -> Result<Data, PeerError> {
            peers.data(self.at(), &self.task, wish(self.piece, called)).await
        }
    }

    #[tokio::test]
    async fn the_proof_of_one_piece_goes_ahead_of_its_data_and_that_of_several_does_not() {
        let (address, _server, _dir) = server(4).await;
        let (peers, task, host) = (peers("a"), TaskId::from([1; 32]), "s".parse().unwrap());
        let address = At { host: &host, address };
        let layout = PieceLayout::new(LENGTH).unwrap();
        let listed = peers.blocks(address, &task, &layout, PieceIndex::new(1)).await.unwrap();
        let count = listed.len();
        for (start, end, proof, proven) in [
            (PIECE, 2 * PIECE, Some(count), true),
            (PIECE + 7, PIECE + 8, Some(count), true),
            (PIECE, 2 * PIECE, None, false),
            (PIECE, 2 * PIECE + 1, Some(count), false),
        ] {
            let range = ByteRange::new(start, end).unwrap();
            let wish = Wish { proof, ..wish(range, false) };
            let data = peers.data(address, &task, wish).await.unwrap();
            assert_eq!(data.proof, proven.then(|| listed.clone()), "{range}");
            assert_eq!(data.body.collect().await.unwrap().to_bytes().len() as u64, range.len());
        }
        let wish = Wish { proof: Some(count + 1), ..wish(ByteRange::new(0, PIECE).unwrap(), false) };
        assert!(matches!(peers.data(address, &task, wish).await, Err(PeerError::Corrupt)));
    }

    #[tokio::test]
    async fn who_finds_no_place_is_told_to_come_when_there_is_one() {
        let lab = OnePlace::new().await;
        let body = lab.asked(&lab.first, false).await.unwrap();
        assert!(matches!(lab.asked(&lab.second, false).await, Err(PeerError::Busy)));
        let mut followed = lab.second.have(lab.at(), &lab.task, 17).await.unwrap();
        assert_eq!(followed.next().await.unwrap(), Some(Said::Have(held())));
        drop(body);
        assert_eq!(followed.next().await.unwrap(), Some(Said::Come(None)));
        lab.second.pass(lab.at(), &lab.task).await;
        assert!(lab.asked(&lab.first, false).await.is_ok(), "nobody wants the place any more");
    }

    #[tokio::test]
    async fn a_place_is_not_taken_by_what_was_asked_before_the_call() {
        let lab = OnePlace::new().await;
        let body = lab.asked(&lab.first, false).await.unwrap();
        assert!(matches!(lab.asked(&lab.second, false).await, Err(PeerError::Busy)));
        let mut followed = lab.second.have(lab.at(), &lab.task, 17).await.unwrap();
        followed.next().await.unwrap();
        drop(body);
        assert_eq!(followed.next().await.unwrap(), Some(Said::Come(None)));
        assert!(matches!(lab.asked(&lab.second, false).await, Err(PeerError::Busy)));
        assert!(lab.asked(&lab.second, true).await.is_ok());
    }
    const BLOCK: u64 = PieceLayout::MIN_BLOCK_SIZE;
    /// The piece that is coming: its number, and its first block.
    const COMING: PieceIndex = PieceIndex::new(3);
    const FIRST: u32 = 3 * (PIECE / BLOCK) as u32;

    /// A download that is receiving the piece [`COMING`], of zeros, and the server that passes it on.
    struct Passing {
        address: SocketAddr,
        host: HostId,
        task: TaskId,
        progress: watch::Sender<Progress>,
        list: Arc<[BlockHash]>,
        relay: RelayId,
        range: ByteRange,
        _server: JoinSet<()>,
        _dir: tempfile::TempDir,
    }

    impl Passing {
        async fn new() -> Self {
            let layout = PieceLayout::new(LENGTH).unwrap();
            let (progress, watched) =
                watch::channel(Progress::new(layout, PieceSet::empty(17), BlockSet::default()));
            let (address, _server, _dir) =
                serving(2, move |file| Served::Running { file, progress: watched.clone() }).await;
            let zero = |block| {
                let mut hasher = darter_protocol::hash::BlockHasher::new(&layout, block);
                hasher.update(&[0; BLOCK as usize]);
                hasher.finish()
            };
            let list: Arc<[BlockHash]> = layout.blocks_of(COMING).map(zero).collect();
            let mut relay = None;
            progress.send_modify(|progress| relay = Some(progress.begin_relay(COMING, Arc::clone(&list))));
            let (host, task) = ("s".parse().unwrap(), TaskId::from([1; 32]));
            let (relay, range) = (relay.unwrap(), layout.range(COMING));
            Self { address, host, task, progress, list, relay, range, _server, _dir }
        }

        fn at(&self) -> At<'_> {
            At { host: &self.host, address: self.address }
        }

        fn grow(&self, blocks: u32) {
            self.progress.send_modify(|progress| progress.grow_relay(COMING, self.relay, FIRST + blocks));
        }

        fn complete(&self) {
            self.progress.send_modify(|progress| progress.complete(COMING, PieceHash::from([0; 32])));
        }

        async fn ask(&self, range: ByteRange) -> Result<Data, PeerError> {
            let wish = Wish { proof: Some(self.list.len()), ..wish(range, false) };
            peers("a").data(self.at(), &self.task, wish).await
        }
    }

    /// Reads so many bytes of it.
    async fn take(body: &mut hyper::body::Incoming, bytes: u64) -> Result<(), hyper::Error> {
        let mut got = 0;
        while got < bytes {
            got += body.frame().await.expect("there is more")?.into_data().unwrap().len() as u64;
        }
        assert_eq!(got, bytes, "more than what has come");
        Ok(())
    }

    #[tokio::test]
    async fn what_is_coming_is_given_as_it_comes_and_its_proof_first() {
        let lab = Passing::new().await;
        let Data { mut body, proof } = lab.ask(lab.range).await.unwrap();
        assert_eq!(proof.as_deref(), Some(&*lab.list), "though not a block has come");
        lab.grow(1);
        take(&mut body, BLOCK).await.unwrap();
        lab.grow(5);
        take(&mut body, 4 * BLOCK).await.unwrap();
        lab.complete();
        take(&mut body, PIECE - 5 * BLOCK).await.unwrap();
        assert!(body.frame().await.is_none());
        let other = ByteRange::new(PIECE, 2 * PIECE).unwrap();
        assert!(matches!(lab.ask(other).await, Err(PeerError::NotHeld)), "it is not coming");
    }

    #[tokio::test]
    async fn what_does_not_come_any_more_is_cut_short_and_another_fetch_is_not_waited_for() {
        let lab = Passing::new().await;
        let mut body = lab.ask(lab.range).await.unwrap().body;
        lab.grow(2);
        take(&mut body, 2 * BLOCK).await.unwrap();
        lab.progress.send_modify(|progress| {
            progress.end_relay(COMING, lab.relay);
            let other = progress.begin_relay(COMING, Arc::clone(&lab.list));
            progress.grow_relay(COMING, other, FIRST + 9);
        });
        take(&mut body, 1).await.unwrap_err();
        // That is for those who ask now, also for a part of it.
        let part = ByteRange::new(lab.range.start() + BLOCK + 7, lab.range.start() + 9 * BLOCK).unwrap();
        let mut body = lab.ask(part).await.unwrap().body;
        take(&mut body, part.len()).await.unwrap();
        let mut body = lab.ask(lab.range).await.unwrap().body;
        take(&mut body, 9 * BLOCK).await.unwrap();
        drop(lab.progress);
        take(&mut body, 1).await.unwrap_err();
    }

    /// The lines of `/have` as a daemon of an earlier version hears them.
    struct Before(tokio::io::BufStream<tokio::net::TcpStream>);

    impl Before {
        async fn follow(lab: &Passing) -> Self {
            let stream = tokio::net::TcpStream::connect(lab.address).await.unwrap();
            let mut stream = tokio::io::BufStream::new(stream);
            let head =
                format!("GET /tasks/{}/have HTTP/1.1\r\nHost: a\r\nDarter-Host: old\r\n\r\n", lab.task);
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            Self(stream)
        }

        async fn next(&mut self) -> String {
            loop {
                let mut line = String::new();
                assert!(self.0.read_line(&mut line).await.unwrap() > 0);
                // Beside the answer's head and the sizes of chunks.
                if line.starts_with("have") || line.starts_with("com") {
                    return line;
                }
            }
        }
    }

    #[tokio::test]
    async fn what_is_coming_is_told_to_those_who_take_it_and_to_nobody_else() {
        let lab = Passing::new().await;
        let peers = peers("a");
        let only = |piece: u32| {
            let mut set = PieceSet::empty(17);
            set.insert(PieceIndex::new(piece));
            set
        };
        assert!(!lab.progress.borrow().is_listened_to());
        let mut followed = peers.have(lab.at(), &lab.task, 17).await.unwrap();
        assert_eq!(followed.next().await.unwrap(), Some(Said::Have(PieceSet::empty(17))));
        assert_eq!(followed.next().await.unwrap(), Some(Said::Coming(only(3))));
        assert!(lab.progress.borrow().is_listened_to());
        lab.progress.send_modify(|progress| {
            progress.begin_relay(PieceIndex::new(5), Arc::clone(&lab.list));
        });
        assert_eq!(followed.next().await.unwrap(), Some(Said::Coming(only(5))));
        let mut before = Before::follow(&lab).await;
        assert_eq!(before.next().await, "have \n");
        lab.complete();
        assert_eq!(followed.next().await.unwrap(), Some(Said::Have(only(3))));
        assert_eq!(before.next().await, "have 3\n", "nothing between the two");
    }
}
