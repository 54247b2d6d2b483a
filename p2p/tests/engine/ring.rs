//! Several schedulers: each task has its own, and moves when that one dies or another one comes.

use crate::name_server::{NameServer, Services};
use crate::node::{MIB, Node, Scheduler, blob, bytes, content, read};
use crate::origin::{Behaviour, Origin};
use darter_p2p::{OpenRequest, TaskId};
use darter_protocol::Ring;
use darter_protocol::scheduler::StatTaskRequest;
use darter_protocol::scheduler::scheduler_client::SchedulerClient;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::sync::Semaphore;

/// An origin that holds back what is behind the first pieces, and a request for content whose scheduler, of these, is the
/// one at `home`.
async fn held_back(home: SocketAddr, all: &[SocketAddr]) -> (Origin, OpenRequest, Vec<u8>) {
    let ring = Ring::new(all.iter().map(ToString::to_string));
    let mut contents = (0..100).map(|more| bytes(40 * MIB + more));
    let is_home = |request: &OpenRequest| ring.order(&request.task).next() == Some(home.to_string().as_str());
    let fits = |data: &Vec<u8>| is_home(&blob(home, data));
    let data = contents.find(fits).expect("one in so many is at home there");
    let behaviour = Behaviour { gate: Some(Semaphore::new(64)), ..Behaviour::good(data.clone()) };
    let origin = Origin::start(behaviour).await;
    let request = blob(origin.address, &data);
    (origin, request, data)
}

/// Waits until so many hosts download the task by what the scheduler knows.
pub(crate) async fn downloading(scheduler: SocketAddr, task: TaskId, hosts: u32) {
    let asked = async {
        let mut client = SchedulerClient::connect(format!("http://{scheduler}")).await.unwrap();
        loop {
            let task_id = task.as_bytes().to_vec().into();
            if client.stat_task(StatTaskRequest { task_id }).await.unwrap().into_inner().downloading == hosts
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), asked).await.expect("they come");
}

pub(crate) async fn joined_all(node: &Node, schedulers: u64) {
    while node.metric("p2p_schedulers_up") != schedulers {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_that_dies_leaves_its_downloads_to_the_next_and_none_stops() {
    let (home, other) = (Scheduler::start().await, Scheduler::start().await);
    let all = [home.address, other.address];
    let (a, b) = (Node::start("a", &all).await, Node::start("b", &all).await);
    joined_all(&a, 2).await;
    joined_all(&b, 2).await;
    let (origin, request, data) = held_back(home.address, &all).await;
    let first = content(a.engine.open(request.clone()).await);
    let second = content(b.engine.open(request.clone()).await);
    downloading(home.address, request.task, 2).await;
    home.kill();
    downloading(other.address, request.task, 2).await;
    origin.let_through(100 * MIB);
    let (first, second) = tokio::join!(read(first), read(second));
    assert!(first.unwrap() == data && second.unwrap() == data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_that_comes_gets_the_downloads_that_are_its_own() {
    let other = Scheduler::start().await;
    let home = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let all = [home, other.address];
    let (a, b) = (Node::start("a", &all).await, Node::start("b", &all).await);
    joined_all(&a, 1).await;
    joined_all(&b, 1).await;
    let (origin, request, data) = held_back(home, &all).await;
    let first = content(a.engine.open(request.clone()).await);
    let second = content(b.engine.open(request.clone()).await);
    downloading(other.address, request.task, 2).await;
    let _home = Scheduler::start_at(home).await;
    downloading(home, request.task, 2).await;
    downloading(other.address, request.task, 0).await;
    origin.let_through(100 * MIB);
    let (first, second) = tokio::join!(read(first), read(second));
    assert!(first.unwrap() == data && second.unwrap() == data);
}

/// Waits until the scheduler knows so many hosts that hold all of the task.
async fn holders(scheduler: SocketAddr, task: TaskId, hosts: u32) {
    let asked = async {
        let mut client = SchedulerClient::connect(format!("http://{scheduler}")).await.unwrap();
        let task_id = || task.as_bytes().to_vec().into();
        while client.stat_task(StatTaskRequest { task_id: task_id() }).await.unwrap().into_inner().complete
            != hosts
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), asked).await.expect("it is told");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_and_went_since_it_joined_a_scheduler_knows_when_it_takes_over() {
    let (home, other) = (Scheduler::start().await, Scheduler::start().await);
    let all = [home.address, other.address];
    let (a, b) = (Node::start("a", &all).await, Node::start("b", &all).await);
    joined_all(&a, 2).await;
    joined_all(&b, 2).await;
    let data = bytes(2 * MIB);
    let origin = Origin::start(Behaviour::good(data.clone())).await;
    let request = blob(origin.address, &data);
    assert!(a.get(&request).await.unwrap() == data);
    let ring = Ring::new(all.iter().map(ToString::to_string));
    let first: SocketAddr = ring.order(&request.task).next().unwrap().parse().unwrap();
    let (first, next) = if first == home.address { (home, other) } else { (other, home) };
    holders(next.address, request.task, 1).await;
    first.kill();
    assert!(b.get(&request).await.unwrap() == data);
    assert_eq!(origin.sent(), data.len() as u64, "the second scheduler did not know of the first copy");
    holders(next.address, request.task, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stands_behind_a_name_is_asked_again_when_a_scheduler_is_lost() {
    let (first, second) = (Scheduler::start().await, Scheduler::start().await);
    let services = Services::default();
    let publish = |ports: &[u16]| {
        let targets = ports.iter().map(|port| ("scheduler.test".to_owned(), *port));
        *services.lock().unwrap() = targets.collect();
    };
    let names = NameServer::with_services(&[Ipv4Addr::LOCALHOST], services.clone());
    publish(&[first.address.port()]);
    let node = Node::naming("a", &["_darter._tcp.cluster.test"], names.address).await;
    let hosts = async |scheduler: &Scheduler| {
        let mut client = SchedulerClient::connect(format!("http://{}", scheduler.address)).await.unwrap();
        client
            .list_hosts(darter_protocol::scheduler::ListHostsRequest::default())
            .await
            .unwrap()
            .into_inner()
            .hosts
            .len()
    };
    node.joined().await;
    assert_eq!((hosts(&first).await, hosts(&second).await), (1, 0));
    publish(&[second.address.port()]);
    first.kill();
    let moved = async {
        while hosts(&second).await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), moved).await.expect("the second one is found");
}
