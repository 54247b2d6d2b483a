//! Whom a daemon serves.

use super::{host, piece};
use crate::{Invitation, UploadId, Uploads, Verdict};
use darter_protocol::TaskId;
use proptest::prelude::*;
use std::time::{Duration, Instant};

const SIZE: u64 = 1 << 20;

fn task() -> TaskId {
    TaskId::from([1; 32])
}

fn ask(uploads: &mut Uploads, now: Instant, n: u32, p: u32) -> Option<UploadId> {
    match uploads.handle_asked(now, task(), Some(&host(n)), (piece(p), SIZE)) {
        Verdict::Serve(id) => Some(id),
        Verdict::Wait => None,
    }
}

fn invited(uploads: &mut Uploads, now: Instant) -> Vec<(u32, Option<u32>)> {
    let next = |uploads: &mut Uploads| uploads.poll_invitation(now);
    let number = |id: &darter_protocol::HostId| id.as_str()["host-".len()..].parse().unwrap();
    let short = |Invitation { peer, best, .. }| {
        (number(&peer), best.map(|best: darter_protocol::PieceIndex| best.get()))
    };
    std::iter::from_fn(|| next(uploads)).map(short).collect()
}

#[test]
fn those_who_wait_are_served_in_turn_and_whoever_was_served_waits_again() {
    let now = Instant::now();
    let mut uploads = Uploads::new(2);
    let (a, b) = (ask(&mut uploads, now, 1, 0).unwrap(), ask(&mut uploads, now, 2, 0).unwrap());
    assert!(ask(&mut uploads, now, 3, 0).is_none() && ask(&mut uploads, now, 4, 0).is_none());
    uploads.handle_sent(now, a, true);
    assert!(ask(&mut uploads, now, 1, 1).is_none(), "others were here before");
    assert_eq!(invited(&mut uploads, now), [(3, None)]);
    let c = ask(&mut uploads, now, 3, 0).unwrap();
    uploads.handle_sent(now, b, true);
    uploads.handle_sent(now, c, true);
    assert_eq!(invited(&mut uploads, now), [(4, None), (1, None)]);
}

#[test]
fn whoever_leaves_leaves_all_that_was_kept_for_him() {
    let now = Instant::now();
    let mut uploads = Uploads::new(2);
    let (a, b) = (ask(&mut uploads, now, 1, 0).unwrap(), ask(&mut uploads, now, 2, 0).unwrap());
    assert!(ask(&mut uploads, now, 3, 0).is_none());
    uploads.handle_sent(now, a, true);
    assert_eq!(invited(&mut uploads, now), [(3, None)]);
    let uncalled = uploads.handle_asked_uncalled(now, task(), Some(&host(3)), (piece(0), SIZE));
    assert_eq!(uncalled, Verdict::Wait);
    uploads.handle_sent(now, b, true);
    assert_eq!(invited(&mut uploads, now), [(3, None)]);
    uploads.handle_left(&task(), &host(3));
    assert_eq!((uploads.free(), uploads.poll_timeout()), (2, None));
}

#[test]
fn a_place_that_is_passed_on_or_not_taken_goes_to_the_next() {
    let now = Instant::now();
    let mut uploads = Uploads::new(1);
    let a = ask(&mut uploads, now, 1, 0).unwrap();
    (2..5).for_each(|n| assert!(ask(&mut uploads, now, n, 0).is_none()));
    uploads.handle_sent(now, a, true);
    assert_eq!(invited(&mut uploads, now), [(2, None)]);
    uploads.handle_passed(&task(), &host(2));
    assert_eq!(invited(&mut uploads, now), [(3, None)]);
    let later = uploads.poll_timeout().unwrap();
    assert!(later <= now + Duration::from_secs(1));
    uploads.handle_timeout(later);
    assert_eq!(invited(&mut uploads, later), [(4, None)]);
}

#[test]
fn a_place_is_kept_for_what_its_peer_was_called_for() {
    let now = Instant::now();
    let mut uploads = Uploads::new(1);
    let a = ask(&mut uploads, now, 1, 0).unwrap();
    (2..4).for_each(|n| assert!(ask(&mut uploads, now, n, 0).is_none()));
    uploads.handle_fetched(task(), piece(5), 9);
    uploads.handle_sent(now, a, true);
    assert_eq!(invited(&mut uploads, now), [(2, Some(5))]);
    let ahead = uploads.handle_asked_uncalled(now, task(), Some(&host(2)), (piece(0), SIZE));
    assert_eq!(ahead, Verdict::Wait, "it was on its way already");
    assert!(ask(&mut uploads, now, 2, 5).is_some());
}

#[test]
fn an_invitation_is_good_after_its_place_was_given_away() {
    let now = Instant::now();
    let mut uploads = Uploads::new(1);
    let a = ask(&mut uploads, now, 1, 0).unwrap();
    (2..4).for_each(|n| assert!(ask(&mut uploads, now, n, 0).is_none()));
    uploads.handle_sent(now, a, true);
    assert_eq!(invited(&mut uploads, now), [(2, None)]);
    let later = uploads.poll_timeout().unwrap();
    uploads.handle_timeout(later);
    assert_eq!(invited(&mut uploads, later), [(3, None)]);
    assert!(ask(&mut uploads, now, 3, 0).is_some() && ask(&mut uploads, now, 2, 0).is_some());
    assert!(ask(&mut uploads, now, 4, 0).is_none());
}

#[test]
fn the_next_one_is_called_before_a_place_is_free() {
    let now = Instant::now();
    let mut uploads = Uploads::new(1);
    assert!(ask(&mut uploads, now, 1, 0).is_some());
    (2..4).for_each(|n| assert!(ask(&mut uploads, now, n, 0).is_none()));
    assert_eq!(invited(&mut uploads, now), [(2, None)]);
}

#[test]
fn many_small_things_are_served_at_once() {
    let mut uploads = Uploads::new(1);
    let now = Instant::now();
    let small =
        |uploads: &mut Uploads, n| uploads.handle_asked(now, task(), Some(&host(n)), (piece(0), 1000));
    let served = (0..100).filter(|n| small(&mut uploads, *n) != Verdict::Wait).count();
    assert_eq!(served, 16);
}

#[test]
fn a_new_piece_is_given_before_a_repeat() {
    let now = Instant::now();
    let mut uploads = Uploads::new(5);
    uploads.handle_fetched(task(), piece(0), 9);
    let a = ask(&mut uploads, now, 1, 0).unwrap();
    assert!(ask(&mut uploads, now, 2, 0).is_none(), "it is on its way to another");
    assert_eq!(invited(&mut uploads, now), []);
    uploads.handle_fetched(task(), piece(1), 9);
    assert_eq!(invited(&mut uploads, now), [(2, Some(1))]);
    assert!(ask(&mut uploads, now, 2, 1).is_some());
    uploads.handle_sent(now, a, true);
    uploads.handle_fetched(task(), piece(2), 9);
    assert!(ask(&mut uploads, now, 1, 0).is_none(), "somebody has it");
    assert_eq!(invited(&mut uploads, now), [(1, Some(2))]);
}

#[test]
fn a_new_piece_that_did_not_arrive_is_new_again() {
    let now = Instant::now();
    let mut uploads = Uploads::new(5);
    uploads.handle_fetched(task(), piece(0), 9);
    let a = ask(&mut uploads, now, 1, 0).unwrap();
    assert!(ask(&mut uploads, now, 2, 0).is_none());
    uploads.handle_sent(now, a, false);
    assert_eq!(invited(&mut uploads, now), [(2, Some(0))]);
}

#[test]
fn while_more_is_coming_repeats_take_few_places() {
    let now = Instant::now();
    let mut uploads = Uploads::new(6);
    uploads.handle_coming(task(), 9, true);
    uploads.handle_fetched(task(), piece(0), 9);
    let first = ask(&mut uploads, now, 0, 0).unwrap();
    uploads.handle_sent(now, first, true);
    let served = |uploads: &mut Uploads, of: std::ops::Range<u32>| {
        of.filter(|n| ask(uploads, now, *n, 0).is_some()).count()
    };
    assert_eq!(served(&mut uploads, 1..9), 2, "all that wait want the same");
    assert_eq!(invited(&mut uploads, now), []);
    let other = TaskId::from([2; 32]);
    assert_eq!(uploads.handle_asked(now, other, Some(&host(20)), (piece(0), SIZE)), Verdict::Wait);
    assert_eq!(invited(&mut uploads, now), [(20, None)], "the other places are for other tasks");
    uploads.handle_coming(task(), 9, false);
    assert_eq!(invited(&mut uploads, now).len(), 3);
}

#[test]
fn who_is_alone_gets_what_it_asks_for_first() {
    let now = Instant::now();
    let mut uploads = Uploads::new(4);
    (0..5).for_each(|p| uploads.handle_fetched(task(), piece(p), 9));
    let left = ask(&mut uploads, now, 1, 0).unwrap();
    uploads.handle_sent(now, left, true);
    let reads = [ask(&mut uploads, now, 2, 0), ask(&mut uploads, now, 2, 1)];
    assert!(reads.iter().all(Option::is_some), "a repeat, and beside it another");
    uploads.handle_sent(now, reads[1].unwrap(), true);
    assert!(ask(&mut uploads, now, 2, 1).is_some(), "a repeat beside one of its own");
    assert!(ask(&mut uploads, now, 3, 0).is_none(), "there are others, and what nobody has");
    assert!(ask(&mut uploads, now, 2, 0).is_none(), "another waits");
    assert_eq!(invited(&mut uploads, now), [(3, Some(2))]);
}

#[test]
fn with_nothing_else_to_do_a_repeat_is_given() {
    let now = Instant::now();
    let mut uploads = Uploads::new(5);
    uploads.handle_fetched(task(), piece(0), 9);
    uploads.handle_fetched(task(), piece(1), 9);
    let a = ask(&mut uploads, now, 1, 0).unwrap();
    uploads.handle_sent(now, a, true);
    assert!(ask(&mut uploads, now, 2, 0).is_some());
}

/// A task that has ended with a fresh piece; there are more of them than are remembered.
fn ended(n: u32) -> TaskId {
    let mut id = [0; 32];
    id[..4].copy_from_slice(&n.to_be_bytes());
    TaskId::from(id)
}

#[test]
fn a_task_that_was_stopped_and_goes_on_is_not_forgotten_for_the_older_ones() {
    let now = Instant::now();
    let mut uploads = Uploads::new(6);
    let again = |uploads: &mut Uploads| {
        uploads.handle_coming(task(), 9, true);
        uploads.handle_fetched(task(), piece(0), 9);
    };
    again(&mut uploads);
    uploads.handle_task_ended(task());
    again(&mut uploads);
    uploads.handle_task_ended(task());
    again(&mut uploads);
    for n in 0..2000 {
        uploads.handle_fetched(ended(n), piece(0), 1);
        uploads.handle_task_ended(ended(n));
    }
    let first = ask(&mut uploads, now, 1, 0).unwrap();
    uploads.handle_sent(now, first, true);
    let served = (2..9).filter(|n| ask(&mut uploads, now, *n, 0).is_some()).count();
    assert_eq!(served, 2, "its pieces are still coming, so repeats take few places");
}

#[test]
fn a_task_that_ends_again_is_the_youngest_of_those_that_are_remembered() {
    let now = Instant::now();
    let mut uploads = Uploads::new(6);
    let end = |uploads: &mut Uploads, task: TaskId| {
        uploads.handle_fetched(task, piece(0), 2);
        uploads.handle_fetched(task, piece(1), 2);
        uploads.handle_task_ended(task);
    };
    end(&mut uploads, task());
    (0..1000).for_each(|n| end(&mut uploads, ended(n)));
    end(&mut uploads, task());
    (1000..1100).for_each(|n| end(&mut uploads, ended(n)));
    ask(&mut uploads, now, 1, 0).unwrap();
    assert!(ask(&mut uploads, now, 2, 0).is_none(), "the other piece is given before a repeat");
}

proptest! {
    /// Whatever happens, there are never many more uploads than places, and as soon as all have ended, everybody in the line
    /// is invited.
    #[test]
    fn nobody_starves(steps in prop::collection::vec((0..6u32, 0..12u32, 0..4u32), 0..200)) {
        let mut now = Instant::now();
        let mut uploads = Uploads::new(3);
        let mut sending = Vec::new();
        let mut waiting = std::collections::BTreeSet::new();
        for (what, n, p) in steps {
            match what {
                0..2 => match ask(&mut uploads, now, n, p) {
                    Some(id) => {
                        uploads.handle_handed(id, None);
                        waiting.remove(&n);
                        sending.push(id);
                    }
                    None => { waiting.insert(n); }
                },
                2 if !sending.is_empty() => uploads.handle_sent(now, sending.swap_remove(n as usize % sending.len()), p > 0),
                3 => uploads.handle_fetched(task(), piece(p), 4),
                4 => { uploads.handle_left(&task(), &host(n)); waiting.remove(&n); }
                _ => { now += Duration::from_millis(100); uploads.handle_timeout(now); }
            }
            prop_assert!(uploads.sending() <= 2 + 4 + 8, "{}", uploads.sending());
            invited(&mut uploads, now).iter().for_each(|(n, _)| { waiting.remove(n); });
        }
        sending.into_iter().for_each(|id| uploads.handle_sent(now, id, true));
        for _ in 0..20 {
            now += Duration::from_secs(1);
            uploads.handle_timeout(now);
            invited(&mut uploads, now).iter().for_each(|(n, _)| { waiting.remove(n); });
        }
        prop_assert!(waiting.is_empty(), "{waiting:?} of {uploads:?}");
    }
}

#[test]
fn what_a_peer_that_takes_nothing_was_to_have_is_for_others_after_a_while() {
    let began = Instant::now();
    let at = |seconds| began + Duration::from_secs(seconds);
    let mut uploads = Uploads::new(1);
    uploads.handle_fetched(task(), piece(7), 16);
    let cut_off = ask(&mut uploads, began, 1, 7).unwrap();
    assert!(ask(&mut uploads, began, 2, 7).is_none());
    uploads.handle_handed(cut_off, Some(at(1)));
    for now in [4, 5] {
        assert_eq!(invited(&mut uploads, at(now - 1)), []);
        assert_eq!(uploads.poll_timeout(), Some(at(now)));
        uploads.handle_timeout(at(now));
    }
    assert_eq!(invited(&mut uploads, at(5)), [(2, Some(7))], "it is given as what nobody has");
    let other = ask(&mut uploads, at(5), 2, 7).unwrap();
    uploads.handle_sent(at(6), cut_off, false);
    uploads.handle_sent(at(6), other, true);
    assert_eq!((uploads.free(), uploads.poll_timeout()), (1, None));
}

#[test]
fn whoever_is_slow_or_waits_for_this_host_keeps_its_place() {
    let began = Instant::now();
    let mut uploads = Uploads::new(1);
    let slow = ask(&mut uploads, began, 1, 0).unwrap();
    for second in 1..60 {
        let now = began + Duration::from_secs(second);
        // Three seconds for each part; and between the parts, ten in which a limit of this host's holds it back.
        match second % 13 {
            0 => drop(uploads.handle_handed(slow, Some(now))),
            3 => drop(uploads.handle_handed(slow, None)),
            _ => {}
        }
        uploads.handle_timeout(now);
        let another = uploads.handle_asked(now, task(), None, (piece(0), SIZE));
        assert_eq!(another, Verdict::Wait, "{second}");
    }
}

#[test]
fn there_are_never_many_that_take_nothing() {
    let mut now = Instant::now();
    let mut uploads = Uploads::new(6);
    let mut begun = Vec::new();
    for n in 0..1000 {
        begun.extend(ask(&mut uploads, now, n, 0));
        now += Duration::from_secs(5);
        uploads.handle_timeout(now);
        invited(&mut uploads, now);
    }
    assert!((64..72).contains(&begun.len()), "{}", begun.len());
    assert_eq!(uploads.free(), 0);
    assert!(ask(&mut uploads, now, 2000, 0).is_none());
    assert_eq!(invited(&mut uploads, now), [], "nobody is called who would be sent away");
    for id in begun {
        uploads.handle_sent(now, id, false);
    }
    assert!(!invited(&mut uploads, now).is_empty());
}

#[test]
fn who_takes_nothing_is_given_nothing_more_and_others_are() {
    let mut now = Instant::now();
    let mut uploads = Uploads::new(6);
    let mut begun = 0;
    for p in 0..10 {
        begun += usize::from(ask(&mut uploads, now, 1, p).is_some());
        now += Duration::from_secs(5);
        uploads.handle_timeout(now);
        assert_eq!(invited(&mut uploads, now), []);
    }
    assert_eq!(begun, 2);
    let nobody = |uploads: &mut Uploads| uploads.handle_asked(now, task(), None, (piece(0), SIZE));
    assert!(
        matches!(nobody(&mut uploads), Verdict::Serve(_)),
        "those who do not say who they are, are others"
    );
    assert!(ask(&mut uploads, now, 2, 0).is_some());
}

#[test]
fn one_that_goes_on_is_waited_for_longer() {
    let began = Instant::now();
    let at = |seconds| began + Duration::from_secs(seconds);
    let mut uploads = Uploads::new(1);
    let slow = ask(&mut uploads, began, 1, 0).unwrap();
    uploads.handle_timeout(at(4));
    assert_eq!((uploads.free(), uploads.poll_timeout()), (1, None), "it has stalled");
    assert!(uploads.handle_handed(slow, None), "somebody must look at the clock again");
    assert!(uploads.poll_timeout().is_some());
    uploads.handle_handed(slow, Some(at(6)));
    for second in 7..14 {
        uploads.handle_timeout(at(second));
        assert_eq!(uploads.free(), 0, "{second}");
    }
    uploads.handle_timeout(at(14));
    assert_eq!(uploads.free(), 1);

    assert!(uploads.handle_handed(slow, None));
    uploads.handle_handed(slow, Some(at(15)));
    uploads.handle_timeout(at(30));
    assert_eq!(uploads.free(), 0);
    uploads.handle_timeout(at(31));
    assert!(!uploads.handle_handed(slow, None), "it goes on without a place");
    uploads.handle_handed(slow, Some(at(32)));
    uploads.handle_timeout(at(33));
    assert_eq!((uploads.free(), uploads.poll_timeout()), (1, None));
}
