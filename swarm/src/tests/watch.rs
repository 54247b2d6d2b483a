//! Who is slow or silent.

use super::{all_of, blocks, drain, fetch, hashed, host, new, piece, relayed, set, waits, wants_all};
use crate::watch::SILENT;
use crate::{Action, Limits, Swarm};
use darter_protocol::PieceSet;
use std::time::{Duration, Instant};

fn spare(n: u32, p: u32) -> Action {
    Action::Fetch {
        partner: host(n),
        piece: piece(p),
        blocks: blocks(p..p + 1),
        spare: true,
        awaited: false,
        relayed: false,
        called: false,
    }
}

fn cancel(n: u32, p: u32) -> Action {
    Action::Cancel { partner: host(n), piece: piece(p) }
}

/// Two who have the one piece; which of them is asked first is a matter of chance.
fn one_piece(swarm: &mut Swarm, now: Instant) -> (u32, u32) {
    swarm.handle_have(&host(1), PieceSet::full(1));
    swarm.handle_have(&host(2), PieceSet::full(1));
    match drain(swarm, now)[..] {
        [ref first] if *first == fetch(1, 0) => (1, 2),
        [_] => (2, 1),
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn what_a_silent_partner_holds_is_asked_of_another_and_the_first_to_bring_it_wins() {
    let now = Instant::now();
    let mut swarm = hashed(1);
    let (first, second) = one_piece(&mut swarm, now);
    let later = now + SILENT;
    assert_eq!(swarm.poll_timeout(), Some(later));
    swarm.handle_timeout(later, |_, _| None);
    assert_eq!(drain(&mut swarm, later), vec![spare(second, 0)]);
    swarm.handle_piece(later, piece(0), Some(&host(second)));
    assert!(swarm.is_complete());
    assert_eq!(drain(&mut swarm, later), vec![cancel(first, 0)]);
    swarm.handle_fetch_failed(piece(0), &host(first));
    assert!(swarm.is_complete());
}

#[test]
fn one_that_sends_is_not_silent() {
    let now = Instant::now();
    let mut swarm = hashed(1);
    one_piece(&mut swarm, now);
    for step in 1..20 {
        let now = now + step * SILENT / 2;
        swarm.handle_timeout(now, |_, _| Some(now));
        assert_eq!(drain(&mut swarm, now), vec![]);
    }
}

#[test]
fn when_the_first_fails_the_spare_goes_on_and_nobody_is_asked_again() {
    let now = Instant::now();
    let mut swarm = hashed(1);
    let (first, second) = one_piece(&mut swarm, now);
    let later = now + SILENT;
    swarm.handle_timeout(later, |_, _| None);
    drain(&mut swarm, later);
    swarm.handle_partner_gone(&host(first));
    swarm.handle_fetch_failed(piece(0), &host(first));
    assert_eq!(drain(&mut swarm, later), vec![]);
    swarm.handle_fetch_failed(piece(0), &host(second));
    assert_eq!(drain(&mut swarm, later), vec![fetch(second, 0)]);
}

#[test]
fn a_partner_that_stays_silent_is_replaced() {
    let now = Instant::now();
    let mut swarm = hashed(2);
    swarm.handle_have(&host(1), set(2, [0]));
    swarm.handle_have(&host(2), set(2, [1]));
    assert_eq!(drain(&mut swarm, now).len(), 2);
    let mut at = now;
    let mut done = Vec::new();
    while done.is_empty() {
        at = swarm.poll_timeout().unwrap();
        assert!(at < now + Duration::from_secs(10));
        swarm.handle_timeout(at, |partner, _| (*partner == host(2)).then_some(at));
        done = drain(&mut swarm, at);
    }
    assert!(at >= now + Duration::from_secs(3));
    assert_eq!(done, vec![cancel(1, 0), Action::Replace { partner: host(1) }]);
}

#[test]
fn when_everybody_is_silent_nobody_is_replaced_soon() {
    let now = Instant::now();
    let mut swarm = hashed(2);
    swarm.handle_have(&host(1), set(2, [0]));
    swarm.handle_have(&host(2), set(2, [1]));
    drain(&mut swarm, now);
    while let Some(at) = swarm.poll_timeout().filter(|at| *at < now + Duration::from_secs(10)) {
        swarm.handle_timeout(at, |_, _| None);
        assert_eq!(drain(&mut swarm, at), vec![]);
    }
}

#[test]
fn a_host_that_slept_blames_nobody() {
    let now = Instant::now();
    let mut swarm = hashed(1);
    one_piece(&mut swarm, now);
    let later = now + Duration::from_secs(3600);
    swarm.handle_timeout(later, |_, _| None);
    assert_eq!(drain(&mut swarm, later), vec![]);
}

#[test]
fn a_piece_too_large_for_memory_moves_to_another() {
    let now = Instant::now();
    let mut swarm = new(1, Limits { spares: 0, ..Limits::default() });
    swarm.set_wanted(all_of([0]));
    swarm.handle_hash(piece(0));
    let (first, second) = one_piece(&mut swarm, now);
    let later = now + SILENT;
    swarm.handle_timeout(later, |_, _| None);
    assert_eq!(drain(&mut swarm, later), vec![cancel(first, 0)], "it may write until it has ended");
    swarm.handle_fetch_failed(piece(0), &host(first));
    assert_eq!(drain(&mut swarm, later), vec![fetch(second, 0)]);
}

#[test]
fn the_last_piece_is_asked_of_a_second_one_when_it_comes_slowly() {
    let now = Instant::now();
    let mut swarm = hashed(2);
    let all = PieceSet::full(2);
    swarm.handle_have(&host(1), all.clone());
    drain(&mut swarm, now);
    let quick = now + Duration::from_millis(10);
    swarm.handle_piece(quick, piece(0), Some(&host(1)));
    swarm.handle_have(&host(2), all);
    assert_eq!(drain(&mut swarm, quick), vec![], "it is not late yet");
    let mut at = quick;
    while at < now + Duration::from_millis(100) {
        at = swarm.poll_timeout().unwrap();
        swarm.handle_timeout(at, |_, _| Some(at));
        if let [action] = &drain(&mut swarm, at)[..] {
            assert_eq!(*action, spare(2, 1));
            return;
        }
    }
    panic!("nobody else was asked");
}

#[test]
fn one_that_is_held_back_here_is_neither_silent_nor_slow() {
    let now = Instant::now();
    let mut swarm = hashed(2);
    let all = PieceSet::full(2);
    swarm.handle_have(&host(1), all.clone());
    drain(&mut swarm, now);
    // A first piece teaches how long one takes; what it was held back does not count.
    swarm.handle_held(&host(1), piece(0), Duration::from_millis(90));
    let quick = now + Duration::from_millis(100);
    swarm.handle_piece(quick, piece(0), Some(&host(1)));
    swarm.handle_have(&host(2), all);
    drain(&mut swarm, quick);
    // The second waits here almost all the time.
    let mut at = quick;
    while at < now + Duration::from_secs(20) {
        at = swarm.poll_timeout().unwrap();
        swarm.handle_held(&host(1), piece(1), at - now - Duration::from_millis(19));
        swarm.handle_timeout(at, |_, _| Some(at));
        assert_eq!(drain(&mut swarm, at), vec![], "after {:?}", at - now);
    }
    // It is let go, and takes its time: two times ten milliseconds of its own.
    let mut done = Vec::new();
    let let_go = at;
    while done.is_empty() {
        at = swarm.poll_timeout().unwrap();
        swarm.handle_timeout(at, |_, _| Some(at));
        done = drain(&mut swarm, at);
        assert!(at < let_go + SILENT, "what it was held back is counted once");
    }
    assert_eq!(done, vec![spare(2, 1)]);
}

#[test]
fn what_one_was_to_bring_who_is_gone_is_waited_for_while_it_comes_and_no_longer() {
    let now = Instant::now();
    let mut swarm = hashed(1);
    swarm.handle_have(&host(1), PieceSet::full(1));
    assert_eq!(drain(&mut swarm, now), vec![fetch(1, 0)]);
    swarm.handle_partner_gone(&host(1));
    let (comes, stops) = (now + 3 * SILENT, now + 4 * SILENT);
    swarm.handle_timeout(comes, |_, _| Some(comes));
    assert_eq!(drain(&mut swarm, comes), vec![]);
    swarm.handle_timeout(stops, |_, _| Some(comes));
    assert_eq!(drain(&mut swarm, stops), vec![cancel(1, 0)], "though nobody else sends anything either");
    swarm.handle_fetch_failed(piece(0), &host(1));
    assert!(swarm.needs_origin() || swarm.awaits_promise());
}

#[test]
fn those_who_trickle_keep_no_place_from_one_who_is_fast() {
    let began = Instant::now();
    let mut swarm = new(64, Limits { fetches: 6, spares: 4, ..Limits::default() });
    swarm.set_wanted(all_of(0..64));
    (0..64).for_each(|n| swarm.handle_hash(piece(n)));
    swarm.handle_have(&host(0), PieceSet::full(64));
    // How long a piece takes.
    let [Action::Fetch { piece: first, .. }, Action::Fetch { piece: second, .. }] =
        &drain(&mut swarm, began)[..]
    else {
        panic!("two are asked for")
    };
    let now = began + Duration::from_millis(100);
    swarm.handle_piece(now, *first, Some(&host(0)));
    swarm.handle_piece(now, *second, Some(&host(0)));
    swarm.handle_partner_gone(&host(0));
    (1..7).for_each(|n| swarm.handle_have(&host(n), PieceSet::full(64)));
    assert_eq!(drain(&mut swarm, now).len(), 6);
    let later = now + 2 * SILENT;
    swarm.handle_timeout(now + SILENT / 2, |_, _| Some(now + SILENT / 2));
    swarm.handle_timeout(later, |_, _| Some(later));
    swarm.handle_have(&host(7), PieceSet::full(64));
    let asked = drain(&mut swarm, later);
    let of_the_fast =
        |action: &Action| matches!(action, Action::Fetch { partner, .. } if *partner == host(7));
    assert!(asked.iter().any(of_the_fast), "{asked:?}");
    let most = |swarm: &mut Swarm| {
        (8..40).for_each(|n| swarm.handle_have(&host(n), PieceSet::full(64)));
        6 + asked.len() + drain(swarm, later).len()
    };
    assert!(most(&mut swarm) <= 12);
}

#[test]
fn one_that_passes_on_what_does_not_come_is_not_blamed_and_the_piece_is_asked_elsewhere() {
    let mut now = Instant::now();
    let mut swarm = hashed(8);
    swarm.handle_have(&host(1), set(8, []));
    for p in 0..8 {
        swarm.handle_coming(&host(1), piece(p));
        let before = drain(&mut swarm, now);
        assert_eq!(before, [relayed(1, p)]);
        // Of one that has it the others take it over, as of any.
        swarm.handle_have(&host(2), set(8, [p]));
        now += SILENT;
        swarm.handle_timeout(now, |_, _| None);
        assert_eq!(drain(&mut swarm, now), [spare(2, p)]);
        swarm.handle_piece(now, piece(p), Some(&host(2)));
        assert_eq!(drain(&mut swarm, now), [cancel(1, p)]);
        swarm.handle_fetch_failed(piece(p), &host(1));
        swarm.handle_partner_gone(&host(2));
    }
}

#[test]
fn a_relay_that_stays_silent_is_given_up_and_its_partner_stays() {
    let now = Instant::now();
    let mut swarm = hashed(2);
    swarm.handle_have(&host(1), set(2, []));
    swarm.handle_coming(&host(1), piece(0));
    assert_eq!(drain(&mut swarm, now), [relayed(1, 0)]);
    let mut later = now;
    while later < now + Duration::from_secs(20) && drain(&mut swarm, later).is_empty() {
        later = swarm.poll_timeout().unwrap();
        swarm.handle_timeout(later, |_, _| None);
    }
    assert_eq!(later, now + 2 * SILENT);
    swarm.handle_fetch_failed(piece(0), &host(1));
    swarm.handle_more(&host(1), [piece(1)]);
    assert_eq!(drain(&mut swarm, later), [fetch(1, 1)]);
}

#[test]
fn of_pieces_too_large_to_bring_twice_a_relayed_one_moves_to_whoever_has_it() {
    let now = Instant::now();
    let mut swarm = new(1, Limits { spares: 0, ..Limits::default() });
    swarm.set_wanted(all_of(0..1));
    swarm.handle_hash(piece(0));
    swarm.handle_have(&host(1), set(1, []));
    swarm.handle_coming(&host(1), piece(0));
    assert_eq!(drain(&mut swarm, now), [relayed(1, 0)]);
    swarm.handle_timeout(now + SILENT, |_, _| None);
    assert_eq!(drain(&mut swarm, now + SILENT), [], "nobody has it");
    swarm.handle_have(&host(2), set(1, [0]));
    swarm.handle_timeout(now + 2 * SILENT, |_, _| None);
    assert_eq!(drain(&mut swarm, now + 2 * SILENT), [cancel(1, 0)]);
    swarm.handle_fetch_failed(piece(0), &host(1));
    assert_eq!(drain(&mut swarm, now + 2 * SILENT), [fetch(2, 0)]);
}

#[test]
fn who_never_brings_what_it_says_is_coming_is_not_listened_to_any_more() {
    let mut now = Instant::now();
    let mut swarm = hashed(64);
    swarm.handle_have(&host(1), set(64, []));
    let mut asked = 0;
    for p in 0..20 {
        swarm.handle_coming(&host(1), piece(p));
        asked += drain(&mut swarm, now).len();
        now += Duration::from_secs(2);
        swarm.handle_timeout(now, |_, _| None);
        drain(&mut swarm, now);
        swarm.handle_fetch_failed(piece(p), &host(1));
    }
    assert_eq!(asked, 8);
    swarm.handle_more(&host(1), [piece(40)]);
    assert_eq!(drain(&mut swarm, now), [fetch(1, 40)], "what it has is asked of it still");
}

#[test]
fn one_that_brings_some_of_what_is_coming_is_listened_to() {
    let now = Instant::now();
    let mut swarm = hashed(64);
    swarm.handle_have(&host(1), set(64, []));
    for p in 0..40 {
        swarm.handle_coming(&host(1), piece(p));
        assert_eq!(drain(&mut swarm, now), [relayed(1, p)]);
        if p % 4 == 0 {
            swarm.handle_piece(now, piece(p), Some(&host(1)));
        } else {
            swarm.handle_fetch_failed(piece(p), &host(1));
        }
    }
}

#[test]
fn what_is_coming_somewhere_is_asked_for_when_its_hash_is_known() {
    let now = Instant::now();
    let mut swarm = wants_all(2);
    swarm.handle_have(&host(1), set(2, []));
    swarm.handle_coming(&host(1), piece(1));
    assert_eq!(drain(&mut swarm, now), []);
    swarm.handle_hash(piece(1));
    assert_eq!(drain(&mut swarm, now), [relayed(1, 1)]);
}

/// Two slow ones have pieces, and a fast one brings what the first of them was to bring.
fn overtaken(others_have: bool) -> Vec<Action> {
    let began = Instant::now();
    let mut swarm = hashed(4);
    swarm.handle_have(&host(0), set(4, [0]));
    drain(&mut swarm, began);
    swarm.handle_piece(began + SILENT / 10, piece(0), Some(&host(0)));
    swarm.handle_have(&host(1), set(4, [1]));
    assert_eq!(drain(&mut swarm, began + SILENT / 10), [fetch(1, 1)]);
    let slow = began + SILENT / 2;
    waits(&mut swarm, 1);
    swarm.handle_timeout(slow, |_, _| Some(slow));
    swarm.handle_have(&host(2), set(4, [1]));
    assert_eq!(drain(&mut swarm, slow).len(), 1, "the fast one is asked as well");
    swarm.handle_more(&host(1), [piece(3)]);
    if others_have {
        swarm.handle_more(&host(2), [piece(3)]);
    }
    swarm.handle_piece(slow, piece(1), Some(&host(2)));
    swarm.handle_fetch_failed(piece(1), &host(1));
    drain(&mut swarm, slow)
}

#[test]
fn a_slow_one_rests_unless_only_it_has_something() {
    let of_slow = |action: &Action| matches!(action, Action::Fetch { partner, .. } if *partner == host(1));
    assert!(overtaken(false).iter().any(of_slow), "{:?}", overtaken(false));
    assert!(!overtaken(true).iter().any(of_slow), "{:?}", overtaken(true));
}
