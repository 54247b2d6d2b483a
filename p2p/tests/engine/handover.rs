//! A download between two schedulers: nobody else is sent to the origin meanwhile, whatever it is doing just then.

use crate::line::Line;
use crate::node::{MIB, Node, Scheduler, blob, bytes, content, read};
use crate::origin::{Behaviour, CHUNK, Origin};
use crate::ring::{downloading, joined_all};
use darter_p2p::{Backoff, OpenRequest, TaskId};
use darter_protocol::Ring;
use darter_protocol::scheduler::scheduler_client::SchedulerClient;
use darter_protocol::scheduler::{
    AnnounceHostRequest, Host, ListHostsRequest, PieceResult, RegisterPeerTaskRequest, StatTaskRequest,
    StatTaskResponse,
};
use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tonic::transport::Channel;

/// An address at which nobody listens yet.
pub(crate) fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Content that belongs to these schedulers in this order.
fn of(order: &[SocketAddr]) -> Vec<u8> {
    let ring = Ring::new(order.iter().map(ToString::to_string));
    let fits = |data: &Vec<u8>| {
        let task = blob(order[0], data).task;
        ring.order(&task).eq(order.iter().map(ToString::to_string))
    };
    (0..200).map(|more| bytes(8 * MIB + more)).find(fits).expect("one in so many belongs there")
}

async fn held_back(data: &[u8]) -> (Origin, OpenRequest) {
    let behaviour = Behaviour { gate: Some(Semaphore::new(4)), ..Behaviour::good(data.to_vec()) };
    let origin = Origin::start(behaviour).await;
    let request = blob(origin.address, data);
    (origin, request)
}

async fn silent(data: &[u8]) -> (Origin, OpenRequest) {
    let origin = Origin::start(Behaviour { silent: true, ..Behaviour::good(data.to_vec()) }).await;
    let request = blob(origin.address, data);
    (origin, request)
}

pub(crate) fn open(node: &Node, request: &OpenRequest, opening: &mut JoinSet<()>) {
    let (engine, request) = (node.engine.clone(), request.clone());
    opening.spawn(async move { drop(engine.open(request).await) });
}

async fn eventually(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !is().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.expect(what);
}

pub(crate) async fn asked(origin: &Origin, times: usize) {
    eventually("the origin is asked", async || origin.requests().len() == times).await;
}

async fn client(scheduler: SocketAddr) -> SchedulerClient<Channel> {
    SchedulerClient::connect(format!("http://{scheduler}")).await.unwrap()
}

async fn stat(scheduler: SocketAddr, task: TaskId) -> StatTaskResponse {
    let task_id = task.as_bytes().to_vec().into();
    client(scheduler).await.stat_task(StatTaskRequest { task_id }).await.unwrap().into_inner()
}

/// Who gets the lease first.
pub(crate) async fn lease_holder(scheduler: SocketAddr, task: TaskId) -> String {
    let mut holder = String::new();
    eventually("somebody has the lease", async || {
        holder = stat(scheduler, task).await.lease_holder;
        !holder.is_empty()
    })
    .await;
    holder
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_the_origin_what_the_content_is_goes_along_to_the_scheduler_that_comes() {
    let (home, other) = (free_address(), Scheduler::start().await);
    let all = [home, other.address];
    let (a, b) = (Node::start("a", &all).await, Node::start("b", &all).await);
    joined_all(&a, 1).await;
    joined_all(&b, 1).await;
    let (origin, request) = silent(&of(&all)).await;
    let mut opening = JoinSet::new();
    open(&a, &request, &mut opening);
    asked(&origin, 1).await;
    open(&b, &request, &mut opening);
    downloading(other.address, request.task, 2).await;
    let _home = Scheduler::start_at(home).await;
    downloading(home, request.task, 2).await;
    assert_eq!(lease_holder(home, request.task).await, "a");
    let late = Node::start("late", &all).await;
    joined_all(&late, 2).await;
    open(&late, &request, &mut opening);
    downloading(home, request.task, 3).await;
    assert_eq!(origin.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_that_comes_while_another_one_is_asked_is_not_overlooked() {
    let (home, next, last) = (free_address(), Scheduler::start().await, Scheduler::start().await);
    let line = Line::to(last.address).await;
    let all = [home, next.address, line.address];
    let a = Node::start("a", &all).await;
    joined_all(&a, 2).await;
    let data = of(&all);
    let (origin, request) = held_back(&data).await;
    let reading = content(a.engine.open(request.clone()).await);
    downloading(next.address, request.task, 1).await;
    line.hold();
    next.kill();
    downloading(last.address, request.task, 1).await;
    let _home = Scheduler::start_at(home).await;
    eventually("it comes up", async || a.metric("p2p_schedulers_up") == 2).await;
    // Until the download has had its time to hear of it.
    tokio::time::sleep(Duration::from_millis(100)).await;
    line.release();
    downloading(home, request.task, 1).await;
    origin.let_through(data.len() / CHUNK + 1);
    assert!(read(reading).await.unwrap() == data);
    assert_eq!(origin.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_restart_of_the_only_scheduler_sends_nobody_to_the_origin_who_waits() {
    let scheduler = Scheduler::start().await;
    let address = scheduler.address;
    let nodes = [
        Node::start("a", &[address]).await,
        Node::start("b", &[address]).await,
        Node::start("c", &[address]).await,
    ];
    for node in &nodes {
        node.joined().await;
    }
    let (origin, request) = silent(&bytes(8 * MIB)).await;
    let mut opening = JoinSet::new();
    open(&nodes[0], &request, &mut opening);
    asked(&origin, 1).await;
    nodes[1..].iter().for_each(|node| open(node, &request, &mut opening));
    downloading(address, request.task, 3).await;
    scheduler.kill();
    let _again = Scheduler::start_at(address).await;
    downloading(address, request.task, 3).await;
    assert_eq!(lease_holder(address, request.task).await, "a");
    assert_eq!(origin.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whose_stream_broke_off_goes_on_with_the_next_scheduler_before_a_seed() {
    let (home, other) = (Scheduler::start().await, Scheduler::start().await);
    let all = [home.address, other.address];
    // It waits for longer than this test lasts before it asks again.
    let pause = Duration::from_secs(60);
    let patient = Backoff { first: pause, most: pause, attempts: 3 };
    let a = Node::with("a", &all, |config| config.backoff = patient).await;
    let seed = Node::with("seed", &all, |config| config.host.seed = true).await;
    joined_all(&a, 2).await;
    joined_all(&seed, 2).await;
    let data = of(&all);
    let behaviour = Behaviour { cuts: AtomicUsize::new(1), ..Behaviour::good(data.clone()) };
    let origin = Origin::start(behaviour).await;
    let request = blob(origin.address, &data);
    let _reading = content(a.engine.open(request.clone()).await);
    eventually("the stream breaks off", async || {
        a.metric("p2p_content_bytes_total{from=\"origin\"}") >= 4 * MIB as u64
    })
    .await;
    let _waiting = content(seed.engine.open(request.clone()).await);
    downloading(home.address, request.task, 2).await;
    assert_eq!(lease_holder(home.address, request.task).await, "a");
    home.kill();
    downloading(other.address, request.task, 2).await;
    assert_eq!(lease_holder(other.address, request.task).await, "a");
    assert_eq!(origin.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_goes_to_origins_with_a_scheduler_alone_reads_on_while_it_changes() {
    let (home, other) = (free_address(), Scheduler::start().await);
    let all = [home, other.address];
    let a = Node::obedient("a", &all).await;
    joined_all(&a, 1).await;
    let data = of(&all);
    let (origin, request) = held_back(&data).await;
    let reading = content(a.engine.open(request.clone()).await);
    downloading(other.address, request.task, 1).await;
    let home = Scheduler::start_at(home).await;
    downloading(home.address, request.task, 1).await;
    // And from one that is lost to another.
    home.kill();
    downloading(other.address, request.task, 1).await;
    origin.let_through(data.len() / CHUNK + 1);
    assert!(read(reading).await.unwrap() == data);
    assert_eq!(origin.requests().len(), 1, "its stream was stopped");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_that_ends_while_it_registers_leaves_nothing_behind() {
    let (home, other) = (Scheduler::start().await, Scheduler::start().await);
    let line = Line::to(other.address).await;
    let all = [home.address, line.address];
    let a = Node::start("a", &all).await;
    joined_all(&a, 2).await;
    let data = of(&all);
    let (origin, request) = held_back(&data).await;
    let reading = content(a.engine.open(request.clone()).await);
    downloading(home.address, request.task, 1).await;
    line.hold();
    home.kill();
    downloading(other.address, request.task, 1).await;
    drop(reading);
    // The piece that was begun is completed, and the download rests.
    eventually("the stream ends", async || {
        origin.let_through(1);
        origin.sending() == 0
    })
    .await;
    // Until nobody listens to the answer who would not wait for it.
    tokio::time::sleep(Duration::from_millis(200)).await;
    line.release();
    downloading(other.address, request.task, 0).await;
    assert_eq!(stat(other.address, request.task).await.lease_holder, "");
}

/// A host that is in a download by its scheduler's word, on its way from another.
async fn moved(scheduler: SocketAddr, task: TaskId) -> JoinSet<()> {
    let mut client = client(scheduler).await;
    let host = Host { id: "moved".to_owned(), ip: "127.0.0.1".to_owned(), piece_port: 1, ..Host::default() };
    let hello = AnnounceHostRequest { host: Some(host), ..AnnounceHostRequest::default() };
    let life = tokio_stream::iter([hello]).chain(tokio_stream::pending());
    let mut alive = client.announce_host(life).await.unwrap().into_inner();
    alive.message().await.unwrap();
    let (host_id, task_id) = ("moved".to_owned(), bytes::Bytes::copy_from_slice(task.as_bytes()));
    let register = RegisterPeerTaskRequest {
        host_id: host_id.clone(),
        task_id: task_id.clone(),
        moved: true,
        ..Default::default()
    };
    client.register_peer_task(register).await.unwrap();
    let hello = PieceResult { host_id, task_id, ..PieceResult::default() };
    let talk = tokio_stream::iter([hello]).chain(tokio_stream::pending());
    let mut said = client.report_piece_result(talk).await.unwrap().into_inner();
    JoinSet::from_iter([async move {
        while let Ok(Some(_)) = said.message().await {}
        drop(alive);
    }])
}

/// For as long as a lease is kept, and no longer, the one for whom it is kept may be on his way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_that_does_not_answer_keeps_no_download_from_the_one_it_belongs_to() {
    let (home, other) = (free_address(), Scheduler::start().await);
    let line = Line::to(other.address).await;
    let all = [home, line.address];
    let a = Node::start("a", &all).await;
    joined_all(&a, 1).await;
    let (_origin, request) = held_back(&of(&all)).await;
    let _reading = content(a.engine.open(request.clone()).await);
    downloading(other.address, request.task, 1).await;
    line.hold();
    let _home = Scheduler::start_at(home).await;
    let mut client = client(home).await;
    eventually("it is there", async || {
        client.list_hosts(ListHostsRequest::default()).await.unwrap().into_inner().hosts.len() == 1
    })
    .await;
    let _moved = moved(home, request.task).await;
    assert_eq!(lease_holder(home, request.task).await, "a");
}
