//! What becomes of those who joined a download that ends before its content is known.
//!
//! All of one test runs on one thread: whoever is polled joins before the download that he joins gets on.

use crate::access::refusal;
use crate::node::{MIB, Node, Scheduler, authorized, blob, bytes, content, read};
use crate::origin::{Behaviour, Origin};
use darter_p2p::{ByteRange, OpenError, OpenRequest, Opened, TaskId, Want};
use darter_protocol::{Priority, UrlPrefix};
use darter_scheduler::{Access, Block, Blocked};
use futures_util::future::join_all;
use http::{HeaderValue, header};

/// Opens all of these at once, in this order.
async fn open_all(node: &Node, requests: &[OpenRequest]) -> Vec<Result<Opened, OpenError>> {
    join_all(requests.iter().map(|request| node.engine.open(request.clone()))).await
}

fn from_browser(mut request: OpenRequest) -> OpenRequest {
    request.headers.insert(header::USER_AGENT, HeaderValue::from_static("browser"));
    request
}

fn is_relayed(opened: &Result<Opened, OpenError>) -> bool {
    matches!(opened, Ok(Opened::Relay(answer)) if answer.status() == 200)
}

fn is_sent_past(opened: &Result<Opened, OpenError>) -> bool {
    matches!(opened, Err(OpenError::NotShareable))
}

#[tokio::test]
async fn a_dead_mirror_is_dead_for_those_alone_who_asked_there() {
    let data = bytes(2 * MIB);
    let silent = Origin::start(Behaviour { silent: true, ..Behaviour::good(Vec::new()) }).await;
    let good = Origin::start(Behaviour::good(data.clone())).await;
    let node = Node::start("a", &[]).await;
    let (dead, alive) = (blob(silent.address, &data), blob(good.address, &data));
    let also_dead = authorized(OpenRequest { url: dead.url.join("/mirror/x").unwrap(), ..dead.clone() }, "x");
    let requests = [dead, alive.clone(), also_dead, from_browser(alive)];
    let dies = async {
        while silent.requests().is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(good.requests().is_empty(), "whoever joined waits");
        drop(silent);
    };
    let (opened, ()) = tokio::join!(open_all(&node, &requests), dies);
    let [first, second, third, fourth] = opened.try_into().ok().unwrap();
    assert!(matches!(first, Err(OpenError::Upstream(_))));
    assert!(matches!(third, Err(OpenError::Upstream(_))));
    assert!(read(content(second)).await.unwrap() == data);
    assert!(read(content(fourth)).await.unwrap() == data);
    assert_eq!(good.sent(), data.len() as u64, "one copy for both");
}

#[tokio::test]
async fn what_rules_refuse_to_one_they_refuse_to_those_alone_of_whom_they_say_the_same() {
    let data = bytes(MIB);
    let origin = Origin::start(Behaviour::good(data.clone())).await;
    let what = Blocked::Below(UrlPrefix::longest(&origin.address.to_string(), "/v2/a"));
    let block = Block { what, reason: "moved to b".to_owned() };
    let scheduler = Scheduler::ruled(Access { blocked: vec![block], ..Access::default() }).await;
    let node = Node::start("a", &[scheduler.address]).await;
    node.joined().await;
    let blocked = blob(origin.address, &data);
    let allowed = OpenRequest { url: blocked.url.join("/v2/b/x").unwrap(), ..blocked.clone() };
    let also_blocked = authorized(blocked.clone(), "x");
    let opened = open_all(&node, &[blocked, allowed, also_blocked]).await;
    let [first, second, third] = opened.try_into().ok().unwrap();
    assert!(refusal(first).0 && refusal(third).0);
    assert!(read(content(second)).await.unwrap() == data);
    // A priority is the caller's own, too.
    let other = bytes(MIB + 1);
    let usual = OpenRequest { url: origin_url(&origin, "/v2/b/y"), ..blob(origin.address, &other) };
    let never = OpenRequest { priority: Priority::level(1).unwrap(), ..usual.clone() };
    let opened = open_all(&node, &[never.clone(), usual, never]).await;
    let [first, second, third] = opened.try_into().ok().unwrap();
    assert!(refusal(first).0 && refusal(third).0);
    assert!(second.is_ok());
}

fn origin_url(origin: &Origin, path: &str) -> url::Url {
    format!("http://{}{path}", origin.address).parse().unwrap()
}

#[tokio::test]
async fn who_would_get_an_answer_for_himself_alone_waits_for_nobody() {
    let data = bytes(MIB);
    let origin = Origin::start(Behaviour { length: false, ..Behaviour::good(data.clone()) }).await;
    let node = Node::start("a", &[]).await;
    // Each pull of an image has a token of its own.
    let tokens = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    let pulls = tokens.map(|token| authorized(blob(origin.address, &data), token));
    let opened = open_all(&node, &pulls).await;
    assert!(is_relayed(&opened[0]) && opened[1..].iter().all(is_sent_past));
    assert_eq!(origin.requests().len(), 1, "the others ask for themselves");
    // Nor does who comes a moment later.
    assert!(is_sent_past(&node.engine.open(pulls[3].clone()).await));
    assert_eq!(origin.requests().len(), 1);
    assert_eq!(node.metric("p2p_downloads"), 0);
}

#[tokio::test]
async fn an_answer_that_may_hang_on_the_request_says_nothing_to_who_asks_otherwise() {
    let data = bytes(MIB);
    let origin = Origin::start(Behaviour { private_to: Some("odd"), ..Behaviour::good(data.clone()) }).await;
    let node = Node::start("a", &[]).await;
    let popular = OpenRequest {
        task: TaskId::of_url("http://example.org/popular", "", ""),
        digest: None,
        ..blob(origin.address, &data)
    };
    let odd = authorized(popular.clone(), "odd");
    let opened = open_all(&node, &[odd.clone(), popular.clone(), odd.clone(), popular.clone()]).await;
    let [first, second, third, fourth] = opened.try_into().ok().unwrap();
    assert!(is_relayed(&first) && is_sent_past(&third));
    assert!(read(content(second)).await.unwrap() == data && read(content(fourth)).await.unwrap() == data);
    assert_eq!(origin.requests().len(), 2);
    // What others have is there for this one, too, whatever it was told before.
    assert!(node.get(&odd).await.unwrap() == data);
}

#[tokio::test]
async fn a_part_that_cannot_be_placed_says_nothing_of_the_whole() {
    let data = bytes(MIB);
    let origin = Origin::start(Behaviour { misplaced: true, ..Behaviour::good(data.clone()) }).await;
    let node = Node::start("a", &[]).await;
    let all = blob(origin.address, &data);
    let part = OpenRequest { want: Want::Range(ByteRange::new(500_000, 500_001).unwrap()), ..all.clone() };
    let opened = open_all(&node, &[part.clone(), part.clone(), all]).await;
    let [first, second, third] = opened.try_into().ok().unwrap();
    assert!(is_sent_past(&first) && is_sent_past(&second));
    assert!(read(content(third)).await.unwrap() == data);
    assert_eq!(origin.requests().len(), 2);
}
