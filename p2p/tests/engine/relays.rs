//! A daemon passes on what it is itself receiving: block by block, each proven; and where that breaks off or is a lie, nobody who
//! only passed it on is taken for the culprit.
//!
//! One holds the content and gives it to `b` alone. Of each piece but the last, which is short, it sends three blocks, and the rest only
//! when it is let to.

use super::impostor::{Answer, Impostor, Lie};
use super::node::{MIB, Node, Scheduler, blob, bytes, content, read};
use super::origin::{Behaviour, Origin};
use super::part;
use darter_p2p::{Content, LocalStat, OpenRequest, Want};
use http_body_util::BodyExt;

const BLOCK: usize = 64 << 10;
const LENGTH: usize = 5 * MIB + SHORT;
const SHORT: usize = 12_345;
/// What comes before the gate.
const FIRST: usize = 3 * BLOCK;

struct Lab {
    data: Vec<u8>,
    origin: Origin,
    holder: Impostor,
    b: Node,
    c: Node,
    request: OpenRequest,
    _scheduler: Scheduler,
}

impl Lab {
    async fn new(lie: Lie) -> Self {
        let data = bytes(LENGTH);
        let origin = Origin::start(Behaviour::good(data.clone())).await;
        let scheduler = Scheduler::start().await;
        let request = blob(origin.address, &data);
        let holder = Impostor::of_one(scheduler.address, request.task, &data, (lie, "b")).await;
        let b = Node::start("b", &[scheduler.address]).await;
        let c = Node::start("c", &[scheduler.address]).await;
        b.joined().await;
        c.joined().await;
        Self { data, origin, holder, b, c, request, _scheduler: scheduler }
    }

    /// Both begin; gives the two when the one has read what the other is passing on, which has no other piece than the last.
    async fn passed_on(&self) -> (Content, Content, Vec<u8>) {
        // Who has nothing at all is named to nobody.
        let last = content(self.b.engine.open(part(&self.request, Want::Suffix(SHORT as u64))).await);
        assert!(read(last).await.unwrap() == self.data[LENGTH - SHORT..]);
        let at_b = content(self.b.engine.open(self.request.clone()).await);
        let mut at_c = content(self.c.engine.open(self.request.clone()).await);
        let mut got = Vec::new();
        while got.len() < FIRST {
            got.extend_from_slice(at_c.body.frame().await.unwrap().unwrap().data_ref().unwrap());
        }
        assert!(self.data.starts_with(&got));
        let local = self.b.engine.stat(self.request.task).await.unwrap().local;
        assert!(matches!(local, LocalStat::Fetching { have: 1, .. }), "{local:?}");
        assert!(self.b.metric("p2p_relayed_bytes_total") >= FIRST as u64);
        (at_b, at_c, got)
    }

    /// Lets the rest come. Both get all of it, as it is.
    async fn finish(&self, (at_b, at_c, mut got): (Content, Content, Vec<u8>)) {
        self.holder.open_gate();
        let (at_b, at_c) = tokio::join!(read(at_b), read(at_c));
        got.extend_from_slice(&at_c.unwrap());
        assert!(at_b.unwrap() == self.data && got == self.data);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_piece_is_passed_on_while_it_comes() {
    let lab = Lab::new(|what, honest, _| match what {
        "data" if honest.len() > FIRST => Answer::Gated(honest[..FIRST].to_vec(), honest[FIRST..].to_vec()),
        _ => Answer::Body(honest),
    })
    .await;
    let passed_on = lab.passed_on().await;
    lab.finish(passed_on).await;
    assert_eq!(lab.origin.sent(), 0);
    assert_eq!(lab.holder.sent(), LENGTH as u64, "it gave each piece once");
    assert_eq!(lab.b.metric("p2p_uploaded_bytes_total"), LENGTH as u64, "and so did the other");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_its_source_breaks_off_what_came_stays_and_the_rest_comes_from_elsewhere() {
    let lab = Lab::new(|what, honest, _| match what {
        "data" if honest.len() > FIRST => Answer::Gated(honest[..FIRST].to_vec(), Vec::new()),
        _ => Answer::Body(honest),
    })
    .await;
    let passed_on = lab.passed_on().await;
    lab.finish(passed_on).await;
    // One copy for both: neither has taken the other for a culprit, and both have kept what they had.
    assert!(lab.origin.sent() <= (LENGTH - FIRST) as u64, "{}", lab.origin.sent());
    let corrupt = [&lab.b, &lab.c].map(|node| node.metric("p2p_corrupt_pieces_total"));
    assert_eq!(corrupt, [0, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_its_source_lies_nobody_gets_a_wrong_byte_and_only_the_liar_is_blamed() {
    let lab = Lab::new(|what, honest, other| match what {
        "data" if honest.len() > FIRST => Answer::Gated(honest[..FIRST].to_vec(), other[FIRST..].to_vec()),
        _ => Answer::Body(honest),
    })
    .await;
    let passed_on = lab.passed_on().await;
    lab.finish(passed_on).await;
    assert!(lab.b.metric("p2p_corrupt_pieces_total") > 0, "that is the liar's");
    assert_eq!(lab.c.metric("p2p_corrupt_pieces_total"), 0, "who passed it on gave nothing that is wrong");
    assert!(lab.origin.sent() <= (LENGTH - FIRST) as u64, "{}", lab.origin.sent());
}
