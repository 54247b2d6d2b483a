//! Limits of bandwidth between real engines. What must hold on a machine of any speed: never more bytes than the rate allows
//! in the time that has passed.

use super::node::{MIB, Node, Scheduler, blob, bytes, content, read};
use super::origin::{Behaviour, Origin};
use super::{part, settled};
use darter_p2p::{ByteRange, Content, OpenRequest, Rate, Rates, TaskId, Want};
use http_body_util::BodyExt;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Bytes per second of a limit that is to be felt.
const SOME: u64 = 128 << 10;
/// So slow that a download would take hours.
const NEXT_TO_NOTHING: u64 = 256;
/// One piece that takes a second and a half at [`SOME`].
const LENGTH: usize = 208 << 10;

fn rate(bytes_per_sec: u64) -> Option<Rate> {
    Rate::new(bytes_per_sec)
}

/// What may have passed at a limit since `began`.
fn allowed(rate: Option<Rate>, began: Instant) -> u64 {
    let rate = rate.unwrap();
    let filled = began.elapsed().as_nanos() * u128::from(rate.bytes_per_sec()) / 1_000_000_000;
    rate.burst() + filled as u64
}

/// What takes hours when it is held back: it fails then, and does not hang.
async fn soon<T>(does: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), does).await.expect("nothing holds it back")
}

/// Reads all of it, and never finds that there was more of it than the limit allows.
async fn read_within(node: &Node, request: &OpenRequest, limit: u64) -> Vec<u8> {
    let began = Instant::now();
    let mut opened = content(node.engine.open(request.clone()).await);
    let mut got = Vec::new();
    while let Some(frame) = opened.body.frame().await {
        got.extend_from_slice(frame.unwrap().data_ref().unwrap());
        assert!(got.len() as u64 <= allowed(rate(limit), began), "{}", got.len());
    }
    got
}

fn waited(node: &Node, limit: &str) -> bool {
    // In whole seconds and parts of them: what is not a whole number is not 0 either.
    let line = format!("p2p_limit_waits_seconds_total{{limit=\"{limit}\"}}");
    node.metric_text(&line).is_some_and(|value| value.parse::<f64>().unwrap() > 0.0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_from_an_origin_keeps_to_every_limit() {
    let data = bytes(LENGTH);
    let origin = Origin::start(Behaviour::good(data.clone())).await;
    let request = blob(origin.address, &data);
    let limited = [
        ("total", Rates { total: rate(SOME), ..Rates::default() }),
        ("task", Rates { task: rate(SOME), ..Rates::default() }),
        ("origin", Rates { origin: rate(SOME), ..Rates::default() }),
    ];
    let downloads = limited.map(async |(limit, rates)| {
        let node = Node::limited("a", &[], rates, false).await;
        assert!(read_within(&node, &request, SOME).await == data);
        assert!(waited(&node, limit), "{limit}");
    });
    futures_util::future::join_all(downloads).await;
    // What concerns others only holds nothing back.
    let others = rate(NEXT_TO_NOTHING);
    let rates = Rates {
        partner: others,
        prefetch: others,
        upload: others,
        upload_partner: others,
        ..Rates::default()
    };
    let node = Node::limited("b", &[], rates, false).await;
    assert!(node.get(&request).await.unwrap() == data);
}

/// A daemon that holds the blob, at these rates, and its scheduler.
async fn holder(name: &str, scheduler: &Scheduler, request: &OpenRequest, rates: Rates) -> Node {
    let node = Node::limited(name, &[scheduler.address], rates, false).await;
    node.joined().await;
    node.get(request).await.unwrap();
    settled(&node, request).await;
    node
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_from_a_partner_keeps_to_its_limits_and_to_ours() {
    let data = bytes(LENGTH);
    let none = Rates::default();
    let limited = [
        (none, Rates { total: rate(SOME), ..none }, "total"),
        (none, Rates { task: rate(SOME), ..none }, "task"),
        (none, Rates { partner: rate(SOME), ..none }, "partner"),
        (Rates { upload: rate(SOME), ..none }, none, "upload"),
        (Rates { upload_partner: rate(SOME), ..none }, none, "upload_partner"),
    ];
    let downloads = limited.map(async |(theirs, ours, limit)| {
        let origin = Origin::start(Behaviour::good(data.clone())).await;
        let request = blob(origin.address, &data);
        let scheduler = Scheduler::start().await;
        let holder = holder("a", &scheduler, &request, theirs).await;
        let node = Node::limited("b", &[scheduler.address], ours, false).await;
        node.joined().await;
        assert!(read_within(&node, &request, SOME).await == data, "{limit}");
        assert_eq!(origin.sent(), LENGTH as u64, "{limit}");
        assert!(waited(if ours == none { &holder } else { &node }, limit), "{limit}");
    });
    futures_util::future::join_all(downloads).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partner_that_we_hold_back_ourselves_is_not_taken_for_silent() {
    let data = bytes(4 * LENGTH);
    let origin = Origin::start(Behaviour::good(data.clone())).await;
    let request = blob(origin.address, &data);
    let scheduler = Scheduler::start().await;
    let first = holder("a", &scheduler, &request, Rates::default()).await;
    let second = holder("b", &scheduler, &request, Rates::default()).await;
    let before = first.metric("p2p_uploaded_bytes_total") + second.metric("p2p_uploaded_bytes_total");
    let rates = Rates { total: rate(2 * SOME), ..Rates::default() };
    let node = Node::limited("c", &[scheduler.address], rates, false).await;
    node.joined().await;
    assert!(node.get(&request).await.unwrap() == data);
    let after = first.metric("p2p_uploaded_bytes_total") + second.metric("p2p_uploaded_bytes_total");
    assert_eq!(after - before, data.len() as u64, "one of them brought it, and nobody else was asked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_that_is_raised_counts_for_what_is_under_way() {
    let data = bytes(9 * MIB);
    let origin = Origin::start(Behaviour::good(data.clone())).await;
    for slow in [
        Rates { total: rate(NEXT_TO_NOTHING), ..Rates::default() },
        Rates { task: rate(NEXT_TO_NOTHING), ..Rates::default() },
    ] {
        let node = Node::limited("a", &[], slow, false).await;
        let began = (origin.requests().len(), origin.sent());
        let mut opened = content(node.engine.open(blob(origin.address, &data)).await);
        let mut got = opened.body.frame().await.unwrap().unwrap().into_data().unwrap().to_vec();
        assert!(got.len() as u64 <= rate(NEXT_TO_NOTHING).unwrap().burst());
        node.engine.set_rates(Rates { total: rate(64 << 20), ..Rates::default() });
        got.extend_from_slice(&soon(read(opened)).await.unwrap());
        assert!(got == data);
        assert_eq!((origin.requests().len(), origin.sent()), (began.0 + 1, began.1 + data.len() as u64));
    }
}

/// Asks for all of a blob of one piece in the name of `host`; gives the connection when the first byte has come.
async fn ask(node: &Node, request: &OpenRequest, host: &str, length: usize) -> TcpStream {
    let mut stream = TcpStream::connect(node.pieces).await.unwrap();
    let head = format!(
        "GET /tasks/{}/data HTTP/1.1\r\nHost: a\r\nDarter-Host: {host}\r\nRange: bytes=0-{}\r\n\r\n",
        request.task,
        length - 1
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 206 "), "{}", String::from_utf8_lossy(&head));
    stream.read_u8().await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_who_fetch_at_once_share_the_upload_limit() {
    let upload = |bytes_per_sec| Rates { upload: rate(bytes_per_sec), ..Rates::default() };
    let node = Node::limited("a", &[], upload(NEXT_TO_NOTHING), false).await;
    // Of different tasks: a new piece is not given to two at once.
    let data = [bytes(2 * MIB), bytes(2 * MIB + 1)[1..].to_vec()];
    let mut requests = Vec::new();
    for data in &data {
        let origin = Origin::start(Behaviour::good(data.clone())).await;
        let request = blob(origin.address, data);
        assert!(node.get(&request).await.unwrap() == *data);
        settled(&node, &request).await;
        requests.push(request);
    }
    // Both are there before it begins in earnest: four KiB are the burst, and a chunk comes every four seconds.
    let (one, other) =
        tokio::join!(ask(&node, &requests[0], "b", 2 * MIB), ask(&node, &requests[1], "c", 2 * MIB));
    let began = Instant::now();
    node.engine.set_rates(upload(1 << 20));
    let rest = async |mut stream: TcpStream, data: &[u8]| {
        let mut rest = vec![0; data.len() - 1];
        stream.read_exact(&mut rest).await.unwrap();
        assert!(rest == data[1..]);
        node.metric("p2p_uploaded_bytes_total")
    };
    let (one, other) = tokio::join!(rest(one, &data[0]), rest(other, &data[1]));
    // When the first had all, the other had nearly as much.
    assert!(one.min(other) >= (4 * MIB * 7 / 8) as u64, "{one}, {other}");
    // Before that a chunk or two had come to each.
    assert!(4 * MIB as u64 <= allowed(rate(1 << 20), began) + (8 << 10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_nothing_of_what_it_asked_for_keeps_nobody_else_waiting() {
    let data = bytes(16 * MIB);
    let origin = Origin::start(Behaviour::good(data.clone())).await;
    let request = blob(origin.address, &data);
    let scheduler = Scheduler::start().await;
    let holder = Node::with("a", &[scheduler.address], |config| config.host.upload_slots = 1).await;
    holder.joined().await;
    assert!(holder.get(&request).await.unwrap() == data);
    settled(&holder, &request).await;
    let _takes_nothing = ask(&holder, &request, "cut-off", data.len()).await;
    let node = Node::start("b", &[scheduler.address]).await;
    node.joined().await;
    assert!(soon(node.get(&request)).await.unwrap() == data);
    assert_eq!(origin.sent(), data.len() as u64, "the origin is not asked in its place");
}

/// Opens the first bytes of it, and stays.
async fn first_bytes(node: &Node, request: &OpenRequest, data: &[u8]) -> Content {
    let mut opened =
        content(node.engine.open(part(request, Want::Range(ByteRange::new(0, 1000).unwrap()))).await);
    let mut got = Vec::new();
    while got.len() < 1000 {
        got.extend_from_slice(opened.body.frame().await.unwrap().unwrap().data_ref().unwrap());
    }
    assert!(got == data[..1000]);
    opened
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_fetched_ahead_keeps_to_its_limit() {
    let data = bytes(MIB + LENGTH);
    let origin = Origin::start(Behaviour::good(data.clone())).await;
    let request = blob(origin.address, &data);
    let rates = Rates { prefetch: rate(SOME), ..Rates::default() };
    let node = Node::limited("a", &[], rates, true).await;
    let began = Instant::now();
    let _stays = first_bytes(&node, &request, &data).await;
    while node.metric("p2p_completed_total") == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // All but the first piece, for which a reader waited.
    assert!(LENGTH as u64 <= allowed(rate(SOME), began));
    assert!(waited(&node, "prefetch"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_something_does_not_wait_for_what_is_fetched_ahead() {
    let data = bytes(MIB + LENGTH);
    let origin = Origin::start(Behaviour::good(data.clone())).await;
    let request = blob(origin.address, &data);
    let rates = Rates { prefetch: rate(NEXT_TO_NOTHING), ..Rates::default() };
    let node = Node::limited("a", &[], rates, true).await;
    let _stays = first_bytes(&node, &request, &data).await;
    while !waited(&node, "prefetch") && origin.requests().len() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let last = content(node.engine.open(part(&request, Want::Suffix(1000))).await);
    assert!(soon(read(last)).await.unwrap() == data[data.len() - 1000..]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_that_has_all_that_it_may_have_is_waited_for() {
    let data = bytes(LENGTH);
    let behaviour = Behaviour { gate: Some(Semaphore::new(0)), ..Behaviour::good(data.clone()) };
    let origin = Origin::start(behaviour).await;
    let request = |name: &str| OpenRequest {
        task: TaskId::of_url(name, "", ""),
        digest: None,
        ..blob(origin.address, &data)
    };
    let node = Node::in_turn("a", 1).await;
    let first = content(node.engine.open(request("first")).await);
    let (engine, second) = (node.engine.clone(), request("second"));
    let mut second = JoinSet::from_iter([async move { content(engine.open(second).await) }]);
    let queued = async {
        while node.metric("upstream_requests_queued") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(queued).await;
    assert_eq!(origin.requests().len(), 1, "the other one waits");
    tokio::time::sleep(Duration::from_millis(2)).await;
    origin.let_through(100);
    let second = soon(second.join_next()).await.unwrap().unwrap();
    assert_eq!(origin.requests().len(), 2);
    let waits = [&first, &second].map(|content| content.body.supplied().queued());
    assert!(waits[0].is_zero() && !waits[1].is_zero(), "{waits:?}");
    assert!(read(first).await.unwrap() == data && read(second).await.unwrap() == data);
    assert_eq!(node.metric("upstream_turn_wait_seconds_count"), 1);
}
