//! A download whose only scheduler is lost for good, and one whose origin takes its time.

use crate::handover::{asked, lease_holder, open};
use crate::node::{MIB, Node, Scheduler, blob, bytes, content, read};
use crate::origin::{Behaviour, Origin};
use crate::ring::downloading;
use darter_p2p::OpenError;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_scheduler_that_is_lost_for_good_goes_to_the_origin_alone_where_it_may() {
    let scheduler = Scheduler::start().await;
    let address = [scheduler.address];
    let (holder, waits) = (Node::start("holder", &address).await, Node::start("waits", &address).await);
    let obeys = Node::obedient("obeys", &address).await;
    for node in [&holder, &waits, &obeys] {
        node.joined().await;
    }
    let data = bytes(8 * MIB);
    let silent = Origin::start(Behaviour { silent: true, ..Behaviour::good(data.clone()) }).await;
    let origin = Origin::start(Behaviour::good(data.clone())).await;
    let mut opening = JoinSet::new();
    open(&holder, &blob(silent.address, &data), &mut opening);
    asked(&silent, 1).await;
    let request = blob(origin.address, &data);
    let reading = async {
        let (got, refused) = tokio::join!(waits.get(&request), obeys.engine.open(request.clone()));
        assert!(got.unwrap() == data);
        assert!(matches!(refused, Err(OpenError::Refused { .. })));
    };
    let losing = async {
        downloading(address[0], request.task, 3).await;
        assert_eq!(origin.requests().len(), 0);
        scheduler.kill();
    };
    let both = async { tokio::join!(reading, losing) };
    tokio::time::timeout(Duration::from_secs(60), both).await.expect("nobody waits for ever");
    assert_eq!(origin.requests().len(), 1);
}

/// For longer than a scheduler waits for the word of one that holds a lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_that_takes_its_time_costs_nobody_a_lease() {
    let scheduler = Scheduler::start().await;
    let address = [scheduler.address];
    let (a, b) = (Node::start("a", &address).await, Node::start("b", &address).await);
    a.joined().await;
    b.joined().await;
    let silent = Behaviour { silent: true, ..Behaviour::good(bytes(8 * MIB)) };
    let slow = Behaviour { gate: Some(Semaphore::new(1)), ..Behaviour::good(bytes(9 * MIB)) };
    let mut opening = JoinSet::new();
    let mut requests = Vec::new();
    for behaviour in [silent, slow] {
        let data = behaviour.content.clone();
        let origin = Origin::start(behaviour).await;
        let request = blob(origin.address, &data);
        let (engine, first) = (a.engine.clone(), request.clone());
        // Read on, where there is something to read.
        opening.spawn(async move { drop(read(content(engine.open(first).await)).await) });
        asked(&origin, 1).await;
        open(&b, &request, &mut opening);
        downloading(address[0], request.task, 2).await;
        requests.push((origin, request));
    }
    tokio::time::sleep(Duration::from_millis(5_500)).await;
    for (origin, request) in requests {
        assert_eq!(lease_holder(address[0], request.task).await, "a");
        assert_eq!(origin.requests().len(), 1);
    }
}
