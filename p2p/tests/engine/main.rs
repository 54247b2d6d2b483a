//! Real engines over loopback sockets: one alone, and several with a real scheduler.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod access;
mod alone;
mod callers;
mod handover;
mod impostor;
mod liar;
mod limits;
mod line;
mod members;
#[path = "../../../upstream/tests/upstream/name_server.rs"]
#[expect(dead_code, reason = "others ask it what it was asked")]
mod name_server;
mod node;
mod origin;
mod past;
mod ranges;
mod relays;
mod ring;
mod ways;

use darter_p2p::{
    Backoff, ByteRange, ClusterStat, LocalStat, OpenError, OpenRequest, Opened, ReadError, Served, TaskId,
    Want,
};
use http_body_util::BodyExt;
use impostor::{Answer, Impostor, Lie};
use node::{MIB, Node, Scheduler, authorized, blob, bytes, content, read};
use origin::{Behaviour, CHUNK, Origin};
use std::sync::atomic::AtomicUsize;
use std::time::Duration;
use tokio::sync::Semaphore;

const LENGTH: usize = 9 * MIB + 12_345;

fn part(request: &OpenRequest, want: Want) -> OpenRequest {
    OpenRequest { want, ..request.clone() }
}

// === One daemon alone ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_is_fetched_once_and_then_served_from_disk() {
    let data = bytes(LENGTH);
    let origin = Origin::start(Behaviour::good(data.clone())).await;
    let node = Node::start("a", &[]).await;
    let request = blob(origin.address, &data);
    let cold = content(node.engine.open(request.clone()).await);
    assert_eq!((cold.served, cold.info.length), (Served::Fetching, LENGTH as u64));
    assert_eq!(cold.info.headers["content-type"], "application/octet-stream");
    assert!(cold.info.headers.contains_key("date"));
    assert!(!cold.info.headers.contains_key("content-length"));
    let (known, unknown) = (request.task, TaskId::of_url("http://example.org/", "", ""));
    assert_eq!(node.engine.known(known).await.unwrap().unwrap(), cold.info);
    assert!(node.engine.known(unknown).await.unwrap().is_none());
    assert!(read(cold).await.unwrap() == data);
    settled(&node, &request).await;
    assert!(node.engine.known(known).await.unwrap().is_some());
    assert!(node.get(&request).await.unwrap() == data);
    assert_eq!(origin.requests().len(), 1);
    assert_eq!(node.metric("p2p_completed_total"), 1);
}

/// Waits until a download has been put on disk for good.
async fn settled(node: &Node, request: &OpenRequest) {
    while content(node.engine.open(request.clone()).await).served != Served::Disk {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_callers_share_one_download() {
    let data = bytes(LENGTH);
    let origin = Origin::start(Behaviour::good(data.clone())).await;
    let node = Node::start("a", &[]).await;
    let request = blob(origin.address, &data);
    let all = futures_util::future::join_all((0..16).map(|_| node.get(&request))).await;
    assert!(all.into_iter().all(|got| got.unwrap() == data));
    assert_eq!(origin.sent(), LENGTH as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_leave_while_the_rest_is_still_to_come() {
    let data = bytes(LENGTH);
    let origin =
        Origin::start(Behaviour { gate: Some(Semaphore::new(1)), ..Behaviour::good(data.clone()) }).await;
    let node = Node::start("a", &[]).await;
    let mut opened = content(node.engine.open(blob(origin.address, &data)).await);
    let mut got = Vec::new();
    while got.len() < CHUNK {
        got.extend_from_slice(opened.body.frame().await.unwrap().unwrap().data_ref().unwrap());
    }
    assert_eq!(got.len(), CHUNK, "no more was let through");
    origin.let_through(LENGTH / CHUNK + 1);
    got.extend_from_slice(&read(opened).await.unwrap());
    assert!(got == data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_fetches_the_blocks_that_it_touches_and_no_more() {
    let data = bytes(40 * MIB);
    let origin = Origin::start(Behaviour::good(data.clone())).await;
    let node = Node::start("a", &[]).await;
    let all = blob(origin.address, &data);
    let range = |start: usize, end: usize| Want::Range(ByteRange::new(start as u64, end as u64).unwrap());
    let middle = content(node.engine.open(part(&all, range(21 * MIB, 21 * MIB + 1000))).await);
    assert_eq!(middle.range, ByteRange::new(21 << 20, (21 << 20) + 1000));
    assert!(read(middle).await.unwrap() == data[21 * MIB..21 * MIB + 1000]);
    assert_eq!(origin.sent(), CHUNK as u64);
    let tail = content(node.engine.open(part(&all, Want::Suffix(10))).await);
    assert!(read(tail).await.unwrap() == data[40 * MIB - 10..]);
    assert_eq!(origin.sent(), 2 * CHUNK as u64);
    let past = node.engine.open(part(&all, Want::From(40 << 20))).await;
    assert!(matches!(past, Err(OpenError::NotSatisfiable { length }) if length == 40 << 20));
    // What is there is not fetched again.
    assert!(node.get(&all).await.unwrap() == data);
    assert_eq!(origin.sent(), 40 * MIB as u64, "{:?}", origin.requests());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_of_an_origin_without_ranges_is_one_request() {
    let data = bytes(LENGTH);
    let origin = Origin::start(Behaviour { ranges: false, ..Behaviour::good(data.clone()) }).await;
    let node = Node::start("a", &[]).await;
    let range = ByteRange::new(6 << 20, 7 << 20).unwrap();
    let middle = content(node.engine.open(part(&blob(origin.address, &data), Want::Range(range))).await);
    assert!(read(middle).await.unwrap() == data[6 * MIB..7 * MIB]);
    assert_eq!(origin.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_byte_that_told_the_length_is_no_failure() {
    let data = bytes(2 * MIB);
    let origin = Origin::start(Behaviour::good(data.clone())).await;
    let node = Node::start("a", &[]).await;
    let tail = content(node.engine.open(part(&blob(origin.address, &data), Want::Suffix(7))).await);
    assert!(read(tail).await.unwrap() == data[2 * MIB - 7..]);
    assert_eq!(origin.requests().len(), 2);
    assert_eq!(node.metric("p2p_failed_total"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_goes_away_ends_the_reading_of_its_range() {
    let data = bytes(40 * MIB);
    let origin =
        Origin::start(Behaviour { gate: Some(Semaphore::new(65)), ..Behaviour::good(data.clone()) }).await;
    let node = Node::start("a", &[]).await;
    let request = part(&blob(origin.address, &data), Want::From(4 << 20));
    let mut opened = content(node.engine.open(request).await);
    opened.body.frame().await.unwrap().unwrap();
    drop(opened);
    let running = || node.metric("p2p_downloads") > 0;
    while running() {
        // One chunk at a time: the origin must not run away from a machine that is busy.
        let sent = origin.sent();
        origin.let_through(1);
        while running() && origin.sent() == sent {
            tokio::task::yield_now().await;
        }
    }
    assert!(origin.sent() < 30 * MIB as u64, "{}", origin.sent());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_is_resumed_at_the_byte() {
    let data = bytes(LENGTH);
    let origin =
        Origin::start(Behaviour { cuts: AtomicUsize::new(3), ..Behaviour::good(data.clone()) }).await;
    let node = Node::start("a", &[]).await;
    assert!(node.get(&blob(origin.address, &data)).await.unwrap() == data);
    assert_eq!(origin.sent(), LENGTH as u64);
    assert_eq!(origin.requests().len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_without_ranges_starts_over_and_the_bytes_are_right() {
    let data = bytes(LENGTH);
    let behaviour = Behaviour { cuts: AtomicUsize::new(1), ranges: false, ..Behaviour::good(data.clone()) };
    let origin = Origin::start(behaviour).await;
    let node = Node::start("a", &[]).await;
    assert!(node.get(&blob(origin.address, &data)).await.unwrap() == data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_versions_of_one_url_never_mix() {
    for ranges in [true, false] {
        let data = bytes(LENGTH);
        let mut later = data.clone();
        later[LENGTH - 1] ^= 1;
        let behaviour = Behaviour {
            cuts: AtomicUsize::new(1),
            ranges,
            later: Some(later.clone()),
            ..Behaviour::good(data.clone())
        };
        let origin = Origin::start(behaviour).await;
        let node = Node::start("a", &[]).await;
        let request = OpenRequest {
            task: TaskId::of_url("http://example.org/latest", "", ""),
            digest: None,
            ..blob(origin.address, &data)
        };
        let error = node.get(&request).await.unwrap_err();
        assert!(matches!(error, ReadError::Mismatch { .. }), "{error}");
        assert!(node.get(&request).await.unwrap() == later);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_bytes_end_short_and_are_not_kept() {
    let data = bytes(LENGTH);
    let mut wrong = data.clone();
    wrong[5 * MIB] ^= 1;
    let liar = Origin::start(Behaviour::good(wrong)).await;
    let node = Node::start("a", &[]).await;
    let opened = content(node.engine.open(blob(liar.address, &data)).await);
    let mut body = opened.body;
    let mut got = 0;
    let error = loop {
        match body.frame().await.expect("it must not end well") {
            Ok(frame) => got += frame.data_ref().unwrap().len(),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, ReadError::Mismatch { .. }), "{error}");
    assert!(got < LENGTH);
    let honest = Origin::start(Behaviour::good(data.clone())).await;
    assert!(node.get(&blob(honest.address, &data)).await.unwrap() == data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_origins_refusal_reaches_only_the_one_who_was_refused() {
    let data = bytes(LENGTH);
    let origin =
        Origin::start(Behaviour { authorization: Some("good"), ..Behaviour::good(data.clone()) }).await;
    let node = Node::start("a", &[]).await;
    let request = blob(origin.address, &data);
    let (bad, good) = (authorized(request.clone(), "bad"), authorized(request.clone(), "good"));
    for opened in futures_util::future::join_all((0..4).map(|_| node.engine.open(bad.clone()))).await {
        let Ok(Opened::Relay(response)) = opened else {
            panic!("a wrong credential is answered by the origin")
        };
        assert_eq!(response.status(), 401);
        assert_eq!(response.headers()["www-authenticate"], "Bearer realm=\"x\"");
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "no!\n");
    }
    assert_eq!(origin.requests().len(), 4);
    assert!(node.get(&good).await.unwrap() == data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_without_a_length_is_passed_on() {
    let data = bytes(MIB);
    let origin = Origin::start(Behaviour { length: false, ..Behaviour::good(data.clone()) }).await;
    let node = Node::start("a", &[]).await;
    let Ok(Opened::Relay(response)) = node.engine.open(blob(origin.address, &data)).await else { panic!() };
    assert_eq!(response.status(), 200);
    assert!(response.into_body().collect().await.unwrap().to_bytes() == data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_is_followed_without_the_credential() {
    let data = bytes(LENGTH);
    let store = Origin::start(Behaviour::good(data.clone())).await;
    let location = format!("http://localhost:{}/signed?sig=1", store.address.port());
    let registry = Origin::start(Behaviour { redirect: Some(location), ..Behaviour::good(Vec::new()) }).await;
    let node = Node::start("a", &[]).await;
    assert!(node.get(&authorized(blob(registry.address, &data), "secret")).await.unwrap() == data);
    assert_eq!(registry.requests()[0].authorization.as_deref(), Some("secret"));
    assert_eq!(store.requests()[0].authorization, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_a_redirect_leads_is_left_alone_when_it_wants_that() {
    let data = bytes(MIB);
    let store = Origin::start(Behaviour { status: Some(503), ..Behaviour::good(Vec::new()) }).await;
    let location = format!("http://localhost:{}/signed", store.address.port());
    let registry = Origin::start(Behaviour { redirect: Some(location), ..Behaviour::good(Vec::new()) }).await;
    let pause = Duration::from_millis(300);
    let backoff = Backoff { first: pause, most: pause, attempts: 3 };
    let node = Node::with("a", &[], |config| config.backoff = backoff).await;
    let open = async || node.engine.open(blob(registry.address, &data)).await;
    assert!(matches!(open().await, Err(OpenError::NotShareable)));
    let began = tokio::time::Instant::now();
    assert!(open().await.is_err());
    // It sleeps no less; how much more, this machine says.
    assert!(began.elapsed() >= pause / 2, "{:?}", began.elapsed());
    assert_eq!(store.requests().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_daemon_goes_on_where_it_was() {
    let data = bytes(40 * MIB);
    let origin =
        Origin::start(Behaviour { gate: Some(Semaphore::new(0)), ..Behaviour::good(data.clone()) }).await;
    let temp = tempfile::tempdir().unwrap();
    let request = blob(origin.address, &data);
    let node = Node::start_in(temp.path(), "a", &[]).await;
    origin.let_through(21 * MIB / CHUNK);
    let mut opened = content(node.engine.open(request.clone()).await);
    let mut got = 0;
    while got < 21 * MIB {
        got += opened.body.frame().await.unwrap().unwrap().data_ref().unwrap().len();
    }
    node.engine.stop().await;
    drop(opened);
    drop(node);

    origin.let_through(40 * MIB);
    let node = Node::start_in(temp.path(), "a", &[]).await;
    assert!(node.get(&request).await.unwrap() == data);
    let second = origin.requests().last().unwrap().clone();
    assert_eq!(second.range.as_deref(), Some(format!("bytes={}-{}", 21 * MIB, 40 * MIB - 1).as_str()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn empty_content_is_content() {
    let origin = Origin::start(Behaviour::good(Vec::new())).await;
    let node = Node::start("a", &[]).await;
    let opened = content(node.engine.open(blob(origin.address, b"")).await);
    assert_eq!(opened.range, None);
    assert!(read(opened).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_that_is_not_there_is_said_to_everybody_who_waits() {
    let node = Node::start("a", &[]).await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let request = blob(nobody, b"x");
    let opened = futures_util::future::join_all((0..4).map(|_| node.engine.open(request.clone()))).await;
    for opened in opened {
        let Err(OpenError::Upstream(error)) = opened else { panic!() };
        assert!(error.to_string().ends_with("connection refused"), "{error}");
    }
}

// === Several daemons ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_cold_daemons_cost_the_origin_one_copy() {
    let data = bytes(37 * MIB + 5);
    let origin = Origin::start(Behaviour::good(data.clone())).await;
    let scheduler = Scheduler::start().await;
    let nodes = [
        Node::start("a", &[scheduler.address]).await,
        Node::start("b", &[scheduler.address]).await,
        Node::start("c", &[scheduler.address]).await,
    ];
    for node in &nodes {
        node.joined().await;
    }
    let request = blob(origin.address, &data);
    let all = futures_util::future::join_all(nodes.iter().map(|node| node.get(&request))).await;
    assert!(all.into_iter().all(|got| got.unwrap() == data));
    assert_eq!(origin.sent(), data.len() as u64);
    // One that comes later costs nothing either.
    let late = Node::start("d", &[scheduler.address]).await;
    late.joined().await;
    assert!(late.get(&request).await.unwrap() == data);
    assert_eq!(origin.sent(), data.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_that_begins_while_the_last_one_ends_is_not_taken_for_it() {
    let data = bytes(40 * MIB);
    let behaviour = Behaviour { authorization: Some("good"), ..Behaviour::good(data.clone()) };
    let origin = Origin::start(behaviour).await;
    let scheduler = Scheduler::start().await;
    let node = Node::start("a", &[scheduler.address]).await;
    node.joined().await;
    let bad = authorized(blob(origin.address, &data), "bad");
    for _ in 0..30 {
        // Refused: whoever waited for the same content tries for himself, at once.
        let opened = futures_util::future::join_all((0..4).map(|_| node.engine.open(bad.clone()))).await;
        assert!(opened.iter().all(|opened| matches!(opened, Ok(Opened::Relay(_)))));
    }
    let good = authorized(blob(origin.address, &data), "good");
    for start in (0..40 * MIB).step_by(MIB) {
        // Suspended: the reader has what it wanted.
        let range = ByteRange::new(start as u64, start as u64 + 1000).unwrap();
        let opened = content(node.engine.open(part(&good, Want::Range(range))).await);
        assert!(read(opened).await.unwrap() == data[start..start + 1000]);
    }
    assert!(origin.sent() <= 40 * MIB as u64, "{} for {:?}", origin.sent(), origin.requests());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_daemon_kept_over_a_restart_serves_another() {
    let data = bytes(LENGTH);
    let origin = Origin::start(Behaviour::good(data.clone())).await;
    let temp = tempfile::tempdir().unwrap();
    let request = blob(origin.address, &data);
    let alone = Node::start_in(temp.path(), "a", &[]).await;
    alone.get(&request).await.unwrap();
    settled(&alone, &request).await;
    alone.engine.stop().await;
    drop(alone);

    let scheduler = Scheduler::start().await;
    let holder = Node::start_in(temp.path(), "a", &[scheduler.address]).await;
    let other = Node::start("b", &[scheduler.address]).await;
    holder.joined().await;
    other.joined().await;
    assert!(other.get(&request).await.unwrap() == data);
    assert_eq!(origin.sent(), LENGTH as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_can_be_asked_where_content_is() {
    let data = bytes(LENGTH);
    let origin =
        Origin::start(Behaviour { gate: Some(Semaphore::new(1)), ..Behaviour::good(data.clone()) }).await;
    let request = blob(origin.address, &data);
    let alone = Node::start("alone", &[]).await;
    let stat = alone.engine.stat(request.task).await.unwrap();
    assert!(matches!((stat.local, stat.cluster), (LocalStat::Absent, ClusterStat::Alone)));

    let scheduler = Scheduler::start().await;
    let (a, b) = (Node::start("a", &[scheduler.address]).await, Node::start("b", &[scheduler.address]).await);
    a.joined().await;
    b.joined().await;
    let opened = content(a.engine.open(request.clone()).await);
    let fetching = LocalStat::Fetching { length: Some(LENGTH as u64), have: 0, pieces: 10 };
    assert_eq!(a.engine.stat(request.task).await.unwrap().local, fetching);
    origin.let_through(LENGTH / CHUNK + 1);
    assert!(read(opened).await.unwrap() == data);
    settled(&a, &request).await;

    let stat = a.engine.stat(request.task).await.unwrap();
    let LocalStat::Complete { length, file, .. } = stat.local else { panic!("{stat:?}") };
    assert!(length == LENGTH as u64 && std::fs::read(file).unwrap() == data);
    let stat = b.engine.stat(request.task).await.unwrap();
    assert_eq!(stat.local, LocalStat::Absent);
    let ClusterStat::Known { scheduler: asked, stat } = stat.cluster else { panic!("{stat:?}") };
    assert_eq!((asked, stat.complete), (scheduler.address.to_string(), 1));
    assert_eq!((stat.holders[0].host_id.as_str(), stat.holders[0].complete), ("a", true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waits_when_the_daemon_stops_is_told_and_asks_nobody() {
    let data = bytes(LENGTH);
    let origin = Origin::start(Behaviour { silent: true, ..Behaviour::good(data.clone()) }).await;
    let scheduler = Scheduler::start().await;
    let (a, b) = (Node::start("a", &[scheduler.address]).await, Node::start("b", &[scheduler.address]).await);
    a.joined().await;
    b.joined().await;
    let request = blob(origin.address, &data);
    let open = |node: &Node| {
        let (engine, request) = (node.engine.clone(), request.clone());
        tokio::task::JoinSet::from_iter([async move { engine.open(request).await }])
    };
    let mut holder = open(&a);
    while origin.requests().is_empty() {
        tokio::task::yield_now().await;
    }
    let mut waiting = open(&b);
    while b.metric("p2p_downloads") == 0 {
        tokio::task::yield_now().await;
    }
    // The one that waits first: the lease would pass to it.
    for (node, opened) in [(b, &mut waiting), (a, &mut holder)] {
        node.engine.stop().await;
        let opened = opened.join_next().await.unwrap().unwrap();
        assert!(matches!(opened, Err(OpenError::Unavailable(_))));
    }
    assert_eq!(origin.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_daemon_at_the_origin_dies_another_one_goes_on() {
    let data = bytes(40 * MIB);
    let origin =
        Origin::start(Behaviour { gate: Some(Semaphore::new(0)), ..Behaviour::good(data.clone()) }).await;
    let scheduler = Scheduler::start().await;
    let (a, b) = (Node::start("a", &[scheduler.address]).await, Node::start("b", &[scheduler.address]).await);
    a.joined().await;
    b.joined().await;
    let request = blob(origin.address, &data);
    let mut holder = content(a.engine.open(request.clone()).await);
    origin.let_through(21 * MIB / CHUNK);
    holder.body.frame().await.unwrap().unwrap();
    let follower = content(b.engine.open(request.clone()).await);
    let mut reading = tokio::task::JoinSet::from_iter([read(follower)]);
    while b.metric("p2p_content_bytes_total{from=\"peer\"}") < 20 * MIB as u64 {
        tokio::task::yield_now().await;
    }
    assert_eq!(origin.requests().len(), 1);
    a.engine.stop().await;
    origin.let_through(40 * MIB);
    assert!(reading.join_next().await.unwrap().unwrap().unwrap() == data);
    assert!(origin.sent() <= 42 * MIB as u64, "{}", origin.sent());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_scheduler_a_daemon_serves_on_and_joins_when_it_appears() {
    let data = bytes(LENGTH);
    let origin = Origin::start(Behaviour::good(data.clone())).await;
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (a, b) = (Node::start("a", &[address]).await, Node::start("b", &[address]).await);
    let request = blob(origin.address, &data);
    assert!(a.get(&request).await.unwrap() == data);
    settled(&a, &request).await;
    let _scheduler = Scheduler::start_at(address).await;
    a.joined().await;
    b.joined().await;
    assert!(b.get(&request).await.unwrap() == data);
    assert_eq!(origin.sent(), LENGTH as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_scheduler_dies_running_downloads_complete() {
    let data = bytes(40 * MIB);
    let origin =
        Origin::start(Behaviour { gate: Some(Semaphore::new(64)), ..Behaviour::good(data.clone()) }).await;
    let scheduler = Scheduler::start().await;
    let (a, b) = (Node::start("a", &[scheduler.address]).await, Node::start("b", &[scheduler.address]).await);
    a.joined().await;
    b.joined().await;
    let request = blob(origin.address, &data);
    let holder = content(a.engine.open(request.clone()).await);
    let follower = content(b.engine.open(request.clone()).await);
    scheduler.kill();
    origin.let_through(100 * MIB);
    let (holder, follower) = tokio::join!(read(holder), read(follower));
    assert!(holder.unwrap() == data);
    assert!(follower.unwrap() == data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_whose_disk_rots_is_found_out() {
    let data = bytes(LENGTH);
    let origin = Origin::start(Behaviour::good(data.clone())).await;
    let scheduler = Scheduler::start().await;
    let (a, b) = (Node::start("a", &[scheduler.address]).await, Node::start("b", &[scheduler.address]).await);
    a.joined().await;
    b.joined().await;
    let request = blob(origin.address, &data);
    a.get(&request).await.unwrap();
    settled(&a, &request).await;
    rot(&a.dir);
    assert!(b.get(&request).await.unwrap() == data);
    assert!(b.metric("p2p_corrupt_pieces_total") > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_silent_peer_promised_comes_from_another() {
    let data = bytes(LENGTH);
    let origin = Origin::start(Behaviour::good(data.clone())).await;
    let scheduler = Scheduler::start().await;
    let (a, b) = (Node::start("a", &[scheduler.address]).await, Node::start("b", &[scheduler.address]).await);
    a.joined().await;
    b.joined().await;
    let request = blob(origin.address, &data);
    a.get(&request).await.unwrap();
    let silent: Lie = |what, honest, _| if what == "data" { Answer::Silence } else { Answer::Body(honest) };
    let silent = Impostor::complete(scheduler.address, request.task, &data, silent).await;
    // A piece may be silent for thirty seconds here: only another peer can bring it sooner.
    let got = tokio::time::timeout(Duration::from_secs(20), b.get(&request)).await;
    assert!(got.expect("nobody waits for the silent one").unwrap() == data);
    assert!(silent.asked() > 0);
    assert_eq!(origin.sent(), LENGTH as u64);
}

/// Flips a byte in the middle of every stored file.
fn rot(dir: &std::path::Path) {
    use std::os::unix::fs::FileExt;
    for folder in std::fs::read_dir(dir.join("content")).unwrap() {
        for file in std::fs::read_dir(folder.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some() {
                continue;
            }
            let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, 6 << 20).unwrap();
            file.write_all_at(&[byte[0] ^ 1], 6 << 20).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_come_and_go_everywhere_get_right_bytes_and_come_to_an_end() {
    let data = bytes(61 * MIB + 77);
    let origin =
        Origin::start(Behaviour { cuts: AtomicUsize::new(5), ..Behaviour::good(data.clone()) }).await;
    let scheduler = Scheduler::start().await;
    let mut nodes = Vec::new();
    for name in ["a", "b", "c", "d"] {
        nodes.push(Node::start(name, &[scheduler.address]).await);
    }
    for node in &nodes {
        node.joined().await;
    }
    let request = blob(origin.address, &data);
    let reader = |number: usize| {
        let (engine, request, data) = (nodes[number % 4].engine.clone(), request.clone(), data.clone());
        async move {
            for turn in 0..12 {
                let start = (number * 7_919_993 + turn * 15_485_863) % (data.len() - 1);
                let end = data.len().min(start + 1 + (number * turn * 1_299_709) % (9 * MIB));
                let range = ByteRange::new(start as u64, end as u64).unwrap();
                let mut body = content(engine.open(part(&request, Want::Range(range))).await).body;
                let mut at = start;
                // Every third one leaves in the middle.
                let leave = if (number + turn).is_multiple_of(3) { start + (end - start) / 2 } else { end };
                while at < leave {
                    let bytes = body.frame().await.unwrap().unwrap().into_data().unwrap();
                    assert!(data[at..].starts_with(&bytes));
                    at += bytes.len();
                }
            }
        }
    };
    futures_util::future::join_all((0..16).map(reader)).await;
    let all = futures_util::future::join_all(nodes.iter().map(|node| node.get(&request))).await;
    assert!(all.into_iter().all(|got| got.unwrap() == data));
    let fetched: u64 = nodes.iter().map(|node| node.metric("p2p_content_bytes_total{from=\"origin\"}")).sum();
    assert!(fetched < data.len() as u64 * 3 / 2, "{fetched} of {}", data.len());
}
