//! Daemons that prove to each other who they are.
use crate::node::{MIB, Node, blob, bytes};
use crate::origin::{Behaviour, Origin};
use darter_enrol::{Expected, Home, Issuer, Membership, Metrics, Role};
use darter_protocol::HostId;
use darter_scheduler::Scheduler;
use prometheus_client::registry::Registry;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(60);

/// A cluster with a CA, and its scheduler.
struct Cluster {
    issuer: Issuer,
    scheduler: SocketAddr,
    folder: tempfile::TempDir,
    _running: JoinSet<()>,
}

/// A node of it, with what it is.
struct Member {
    node: Node,
    id: HostId,
    membership: Membership,
    metrics: Metrics,
}

impl Cluster {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let issuer = Issuer::open_or_make(&folder.path().join("cluster")).unwrap();
        let membership = Membership::of_issuer(&issuer, Role::Scheduler, "s", Metrics::default()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheduler = listener.local_addr().unwrap();
        let state = Scheduler::new(membership.clone(), &mut Registry::default());
        let mut running = JoinSet::new();
        running.spawn(async move {
            darter_scheduler::run(listener, state, CancellationToken::new()).await.unwrap();
        });
        running.spawn(async move { match membership.keep_issued("s".to_owned()).await {} });
        Self { issuer, scheduler, folder, _running: running }
    }

    fn membership(&self, name: &str) -> (Membership, Metrics) {
        let home = Home::open_or_make(&self.folder.path().join(name)).unwrap();
        let metrics = Metrics::default();
        let membership = Membership::of_home(&home, metrics.clone()).unwrap();
        membership.issue_to(&home, &self.issuer, Role::Node, name).unwrap();
        (membership, metrics)
    }

    async fn node(&self, name: &str) -> Member {
        let (membership, metrics) = self.membership(name);
        let id = membership.member().unwrap().id;
        let node = Node::member(&id, self.scheduler, membership.clone()).await;
        node.joined().await;
        Member { node, id, membership, metrics }
    }
}

/// What the piece server at `to` answers `from`, as far as it goes.
async fn ask(from: &Membership, to: &Member, request: &str) -> std::io::Result<String> {
    let mut stream = from.connect(to.node.pieces, &Expected::Host(to.id.clone())).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_moves_between_members_and_nobody_else_gets_a_byte() {
    let data = bytes(9 * MIB + 5);
    let origin = Origin::start(Behaviour::good(data.clone())).await;
    let (cluster, other) = (Cluster::start().await, Cluster::start().await);
    let (first, second) = (cluster.node("first").await, cluster.node("second").await);
    let request = blob(origin.address, &data);
    assert!(first.node.get(&request).await.unwrap() == data);
    assert!(second.node.get(&request).await.unwrap() == data);
    assert_eq!(origin.sent(), data.len() as u64, "the second has it from the first");
    assert!(first.metrics.handshakes("full") > 0);

    let head = format!("GET /tasks/{}/data HTTP/1.1\r\nHost: a\r\nRange: bytes=0-99\r\n", request.task);
    let plain = format!("{head}Connection: close\r\n\r\n");
    let mut stream = TcpStream::connect(first.node.pieces).await.unwrap();
    stream.write_all(plain.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "plain HTTP was answered");
    let (stranger, _) = other.membership("x");
    assert!(ask(&stranger, &first, &plain).await.is_err(), "a member of another cluster");
    let (third, _) = cluster.membership("third");
    assert!(ask(&third, &first, &plain).await.unwrap().starts_with("HTTP/1.1 206"));
    let wrong = third.connect(first.node.pieces, &Expected::Host(second.id.clone())).await;
    assert!(wrong.is_err(), "another member than the one that was called");

    let lie = format!("{head}Darter-Host: {}\r\nConnection: close\r\n\r\n", second.id);
    assert!(ask(&third, &first, &lie).await.unwrap().starts_with("HTTP/1.1 403"), "in another's name");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_resumed_and_still_looked_at() {
    let cluster = Cluster::start().await;
    let first = cluster.node("first").await;
    let (second, metrics) = cluster.membership("second");
    let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    for _ in 0..3 {
        assert!(ask(&second, &first, request).await.unwrap().starts_with("HTTP/1.1 404"));
    }
    assert!(metrics.handshakes("resumed") > 0);
    let id = second.member().unwrap().id;
    let statement = cluster.issuer.expel(&id, SystemTime::now()).unwrap();
    first.membership.learn([statement.as_ref()]);
    assert!(ask(&second, &first, request).await.is_err(), "resumed by one who was expelled");
    let counted = async {
        while first.metrics.refusals("expelled") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, counted).await.expect("it is counted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expelled_node_is_cut_off_everywhere_and_gets_nothing_more() {
    let data = bytes(5 * MIB);
    let origin = Origin::start(Behaviour::good(data.clone())).await;
    let cluster = Cluster::start().await;
    let (first, second) = (cluster.node("first").await, cluster.node("second").await);
    let request = blob(origin.address, &data);
    assert!(first.node.get(&request).await.unwrap() == data);
    // A conversation of daemons that goes on for as long as both want it.
    let mut stream =
        second.membership.connect(first.node.pieces, &Expected::Host(first.id.clone())).await.unwrap();
    let follow = format!("GET /tasks/{}/have HTTP/1.1\r\nHost: a\r\n\r\n", request.task);
    stream.write_all(follow.as_bytes()).await.unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");

    // Nobody tells the first but its scheduler, which looks at the files that the command writes.
    cluster.issuer.expel(&second.id, SystemTime::now()).unwrap();
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(LIMIT, stream.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "the connection goes on");
    assert!(ask(&second.membership, &first, "").await.is_err());
    let copies = origin.sent();
    assert!(second.node.get(&request).await.unwrap() == data, "it can still fetch for itself");
    assert_eq!(origin.sent(), copies + data.len() as u64);
}
