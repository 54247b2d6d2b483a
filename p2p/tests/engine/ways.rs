//! Several callers' ways to one content, of which some lead nowhere.

use super::node::{MIB, Node, Scheduler, authorized, blob, bytes, content, read};
use super::origin::{Behaviour, Origin};
use super::part;
use darter_p2p::{ByteRange, Want};
use darter_scheduler::Access;
use http_body_util::BodyExt as _;
use std::sync::atomic::AtomicUsize;
use tokio::sync::Semaphore;

const LENGTH: usize = 8 * MIB;

/// An origin that breaks off once, at half of it, and gives nothing before it is let.
async fn halting(data: &[u8]) -> Origin {
    let (cuts, gate) = (AtomicUsize::new(1), Some(Semaphore::new(0)));
    Origin::start(Behaviour { cuts, gate, ..Behaviour::good(data.to_vec()) }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_joins_with_a_way_that_leads_nowhere_costs_nobody_anything() {
    let data = bytes(LENGTH);
    let short = Origin::start(Behaviour::good(data[1..].to_vec())).await;
    let absent = Origin::start(Behaviour { status: Some(404), ..Behaviour::good(data.clone()) }).await;
    let origin = halting(&data).await;
    let node = Node::start("a", &[]).await;
    let mut first = content(node.engine.open(blob(origin.address, &data)).await);
    origin.let_through(2);
    let mut got = first.body.frame().await.unwrap().unwrap().into_data().unwrap().to_vec();
    let others = [&absent, &short].map(|other| node.engine.open(blob(other.address, &data)));
    let others = futures_util::future::join_all(others).await;
    origin.let_through(LENGTH);
    got.extend(read(first).await.unwrap());
    assert!(got == data);
    for other in others {
        assert!(read(content(other)).await.unwrap() == data);
    }
    assert_eq!(
        (absent.requests().len(), short.requests().len()),
        (0, 0),
        "the one that gave is gone on with"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_way_that_gave_is_closed_all_others_are_tried() {
    let data = bytes(LENGTH);
    let good = Origin::start(Behaviour::good(data.clone())).await;
    let short = Origin::start(Behaviour::good(data[1..].to_vec())).await;
    let failing = Origin::start(Behaviour { status: Some(500), ..Behaviour::good(data.clone()) }).await;
    let origin = halting(&data).await;
    let node = Node::start("a", &[]).await;
    let request = authorized(blob(origin.address, &data), "old");
    let mut first = content(node.engine.open(request).await);
    origin.let_through(2);
    let mut got = first.body.frame().await.unwrap().unwrap().into_data().unwrap().to_vec();
    for other in [&failing, &short, &good] {
        // A part of what will be there: nobody waits for these.
        let range = Want::Range(ByteRange::new(0, 1).unwrap());
        drop(content(node.engine.open(part(&blob(other.address, &data), range)).await));
    }
    origin.revoke("old");
    origin.let_through(LENGTH);
    got.extend(read(first).await.unwrap());
    assert!(got == data);
    let asked = [&origin, &failing, &short, &good].map(|origin| origin.requests().len());
    assert_eq!(asked, [2, 1, 1, 1], "each once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_refused_on_the_way_gets_the_rest_from_those_who_are_not() {
    let data = bytes(LENGTH);
    let origin = halting(&data).await;
    let scheduler = Scheduler::ruled(Access::default()).await;
    let (a, b) = (Node::start("a", &[scheduler.address]).await, Node::start("b", &[scheduler.address]).await);
    a.joined().await;
    b.joined().await;
    let request = blob(origin.address, &data);
    let mut refused = content(a.engine.open(authorized(request.clone(), "old")).await);
    origin.let_through(2);
    let mut got = refused.body.frame().await.unwrap().unwrap().into_data().unwrap().to_vec();
    let other = content(b.engine.open(authorized(request, "new")).await);
    origin.revoke("old");
    origin.let_through(LENGTH);
    let (rest, other) = tokio::join!(read(refused), read(other));
    got.extend(rest.unwrap());
    assert!(got == data && other.unwrap() == data);
    assert_eq!(origin.sent(), LENGTH as u64, "one copy");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_refused_on_the_way_goes_on_when_another_caller_is_let_in() {
    let data = bytes(LENGTH);
    let origin = halting(&data).await;
    let scheduler = Scheduler::ruled(Access::default()).await;
    let a = Node::start("a", &[scheduler.address]).await;
    a.joined().await;
    let request = blob(origin.address, &data);
    let mut refused = content(a.engine.open(authorized(request.clone(), "old")).await);
    origin.let_through(2);
    let mut got = refused.body.frame().await.unwrap().unwrap().into_data().unwrap().to_vec();
    origin.revoke("old");
    origin.let_through(LENGTH);
    while origin.requests().len() < 2 {
        tokio::task::yield_now().await;
    }
    let (rest, other) =
        tokio::join!(read(refused), async { a.engine.open(authorized(request, "new")).await });
    got.extend(rest.unwrap());
    assert!(got == data);
    assert!(read(content(other)).await.unwrap() == data);
    assert_eq!(origin.sent(), LENGTH as u64, "one copy");
}
