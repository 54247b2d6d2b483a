//! What the operator of the schedulers lets daemons fetch from origins.

use crate::node::{MIB, Node, Scheduler, authorized, blob, bytes, content, read};
use crate::origin::{Behaviour, Origin};
use darter_p2p::{OpenError, OpenRequest, Opened};
use darter_protocol::{Priority, TaskId, UrlPrefix};
use darter_scheduler::{Access, Block, Blocked, Budget};
use http_body_util::BodyExt as _;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// Three nodes of a cluster with these rules.
async fn cluster(access: Access) -> (Scheduler, [Node; 3]) {
    let scheduler = Scheduler::ruled(access).await;
    let mut nodes = Vec::new();
    for name in ["a", "b", "c"] {
        nodes.push(Node::start(name, &[scheduler.address]).await);
    }
    for node in &nodes {
        node.joined().await;
    }
    (scheduler, nodes.try_into().ok().unwrap())
}

fn budget(connections: u32, bytes_per_second: u64) -> Access {
    let others = Budget {
        connections: connections.try_into().ok(),
        bytes_per_second: bytes_per_second.try_into().ok(),
    };
    Access { others, ..Access::default() }
}

pub(crate) fn refusal(opened: Result<Opened, OpenError>) -> (bool, String) {
    match opened {
        Err(OpenError::Refused { for_good, reason }) => (for_good, reason),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it was not refused"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_that_is_refused_costs_only_its_owner_and_the_lease_goes_on() {
    let data = bytes(5 * MIB);
    let origin =
        Origin::start(Behaviour { authorization: Some("good"), ..Behaviour::good(data.clone()) }).await;
    let (_scheduler, [a, b, c]) = cluster(Access::default()).await;
    let request = blob(origin.address, &data);
    let (bad, good) = (authorized(request.clone(), "bad"), authorized(request, "good"));
    let (one, two, three) = tokio::join!(a.engine.open(bad.clone()), b.engine.open(bad), async {
        read(content(c.engine.open(good).await)).await
    });
    assert!(three.unwrap() == data);
    let mut refused = 0;
    for opened in [one, two] {
        match opened {
            // Asked before anybody had it: the origin's own word.
            Ok(Opened::Relay(answer)) => {
                assert_eq!(answer.status(), 401);
                assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "no!\n");
                refused += 1;
            }
            // Who came later had it from the one who may; who may have it is not the engine's to say.
            opened => assert!(read(content(opened)).await.unwrap() == data),
        }
    }
    let asked = origin.requests();
    let bad = asked.iter().filter(|request| request.authorization.as_deref() == Some("bad")).count();
    assert_eq!(bad, refused, "each refusal reached the one who was refused");
    assert_eq!(origin.sent(), data.len() as u64, "one copy");
}

/// One of several contents of an origin, which has the same bytes for all of them.
fn nth(origin: &Origin, data: &[u8], n: usize) -> OpenRequest {
    let url = format!("http://{}/{n}", origin.address);
    OpenRequest {
        task: TaskId::of_url(&url, "", ""),
        digest: None,
        url: url.parse().unwrap(),
        ..blob(origin.address, data)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_is_one_for_all_nodes_and_tasks() {
    let data = bytes(2 * MIB);
    let behaviour = Behaviour { gate: Some(Semaphore::new(0)), ..Behaviour::good(data.clone()) };
    let origin = Origin::start(behaviour).await;
    let (_scheduler, nodes) = cluster(budget(1, 0)).await;
    let requests: Vec<OpenRequest> = (0..6).map(|n| nth(&origin, &data, n)).collect();
    let gets = requests.iter().enumerate().map(|(n, request)| nodes[n % 3].get(request));
    let trickle = async {
        loop {
            origin.let_through(8);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let got = tokio::select! {
        got = futures_util::future::join_all(gets) => got,
        () = trickle => unreachable!(),
    };
    assert!(got.into_iter().all(|got| got.unwrap() == data));
    assert_eq!((origin.most_at_once(), origin.sent()), (1, 6 * data.len() as u64));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bytes_of_an_origin_are_shared_by_all_nodes_and_tasks() {
    let data = bytes(3 * MIB);
    let origin = Origin::start(Behaviour::good(data.clone())).await;
    let (_scheduler, [a, b, _]) = cluster(budget(0, 8 * MIB as u64)).await;
    let begun = Instant::now();
    let (one, two) = (nth(&origin, &data, 1), nth(&origin, &data, 2));
    let (one, two) = tokio::join!(a.get(&one), b.get(&two));
    assert!(one.unwrap() == data && two.unwrap() == data);
    // 6 MiB at 8 MiB/s, but for an eighth of a second that each may pass at once.
    assert!(begun.elapsed() >= Duration::from_millis(6 * 125 - 250), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_blocked_is_refused_with_its_reason_and_the_origin_hears_nothing() {
    let data = bytes(MIB);
    let origin = Origin::start(Behaviour::good(data.clone())).await;
    let what = Blocked::Below(UrlPrefix::longest(&origin.address.to_string(), "/v2/a"));
    let block = Block { what, reason: "moved to b".to_owned() };
    let (_scheduler, [a, b, _]) = cluster(Access { blocked: vec![block], ..Access::default() }).await;
    let request = blob(origin.address, &data);
    let (for_good, reason) = refusal(a.engine.open(request.clone()).await);
    assert!(for_good && reason.ends_with("moved to b"), "{reason}");
    let level1 = OpenRequest { priority: Priority::level(1).unwrap(), ..blob(origin.address, &bytes(10)) };
    assert!(refusal(b.engine.open(level1).await).0);
    assert!(origin.requests().is_empty());
    let elsewhere = origin.address.to_string();
    let allowed = OpenRequest { url: format!("http://{elsewhere}/v2/b/x").parse().unwrap(), ..request };
    assert!(a.get(&allowed).await.unwrap() == data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_back_to_source_disabled_there_is_what_others_have_and_nothing_else() {
    let data = bytes(5 * MIB);
    let origin = Origin::start(Behaviour::good(data.clone())).await;
    let (_scheduler, [a, b, c]) = cluster(Access::default()).await;
    let request = blob(origin.address, &data);
    let peers_only = OpenRequest { priority: Priority::level(2).unwrap(), ..request.clone() };
    let (for_good, reason) = refusal(a.engine.open(peers_only.clone()).await);
    assert!(!for_good && reason.contains("LEVEL2"), "{reason}");
    assert!(origin.requests().is_empty());
    assert!(b.get(&request).await.unwrap() == data);
    assert!(a.get(&peers_only).await.unwrap() == data);
    assert!(c.get(&peers_only).await.unwrap() == data);
    assert_eq!(origin.sent(), data.len() as u64);
    // The same for everybody.
    let (_scheduler, [a, ..]) = cluster(Access { disable_back_source: true, ..Access::default() }).await;
    assert!(refusal(a.engine.open(request).await).1.contains("disableBackSource"));
    assert_eq!(origin.sent(), data.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_scheduler_a_daemon_that_needs_its_word_fetches_nothing() {
    let data = bytes(MIB);
    let origin = Origin::start(Behaviour::good(data.clone())).await;
    let alone = Node::obedient("a", &[]).await;
    assert!(
        refusal(alone.engine.open(blob(origin.address, &data)).await).1.contains("disableAutoBackSource")
    );
    assert!(origin.requests().is_empty());
    let scheduler = Scheduler::start().await;
    let node = Node::obedient("b", &[scheduler.address]).await;
    node.joined().await;
    assert!(node.get(&blob(origin.address, &data)).await.unwrap() == data);
}
