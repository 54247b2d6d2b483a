//! Which piece is asked of whom.

use super::{all_of, asked, blocks, drain, fetch, hashed, host, new, piece, relayed, set, waits};
use crate::{Action, Bridge, Limits, Side};
use darter_protocol::PieceSet;
use std::time::{Duration, Instant};

#[test]
fn the_rarest_piece_is_taken_after_what_a_reader_waits_for() {
    let mut swarm = hashed(40);
    for n in 0..4 {
        swarm.handle_have(&host(n), set(40, (0..40).filter(|p| *p != 33 || n == 2)));
    }
    waits(&mut swarm, 5);
    let actions = drain(&mut swarm, Instant::now());
    let asked = asked(&actions);
    assert_eq!(asked.len(), 8, "four partners, two each");
    assert_eq!(asked[..2], [5, 6]);
    assert_eq!(actions.iter().filter(|action| **action == fetch(2, 33)).count(), 1);
}

#[test]
fn a_failed_fetch_is_tried_elsewhere() {
    let now = Instant::now();
    let mut swarm = hashed(1);
    swarm.handle_have(&host(1), PieceSet::full(1));
    assert_eq!(drain(&mut swarm, now), vec![fetch(1, 0)]);
    swarm.handle_partner_gone(&host(1));
    swarm.handle_fetch_failed(piece(0), &host(1));
    assert_eq!(drain(&mut swarm, now), vec![]);
    swarm.handle_have(&host(2), PieceSet::full(1));
    assert_eq!(drain(&mut swarm, now), vec![fetch(2, 0)]);
}

#[test]
fn whoever_has_no_place_is_not_asked_before_it_calls() {
    let now = Instant::now();
    let mut swarm = hashed(3);
    swarm.handle_have(&host(1), PieceSet::full(3));
    for action in drain(&mut swarm, now) {
        let Action::Fetch { partner, piece, .. } = action else { panic!() };
        swarm.handle_busy(now, &partner, piece);
    }
    assert_eq!(drain(&mut swarm, now), vec![]);
    swarm.handle_come(&host(1), Some(piece(2)));
    let actions = drain(&mut swarm, now);
    let called = Action::Fetch {
        partner: host(1),
        piece: piece(2),
        blocks: blocks(2..3),
        spare: false,
        awaited: false,
        relayed: false,
        called: true,
    };
    assert_eq!(actions[0], called, "what it would rather give");
    let next = actions.iter().skip(1).all(|action| matches!(action, Action::Fetch { called: false, .. }));
    assert!(next && actions.len() == 2, "one call, one place: {actions:?}");
}

#[test]
fn what_nobody_else_has_is_asked_for_however_much_is_under_way() {
    let now = Instant::now();
    let mut swarm = new(40, Limits { fetches: 4, ..Limits::default() });
    swarm.set_wanted(all_of(0..40));
    (0..40).for_each(|n| swarm.handle_hash(piece(n)));
    (1..4).for_each(|n| swarm.handle_have(&host(n), set(40, 0..30)));
    assert_eq!(drain(&mut swarm, now).len(), 4);
    swarm.handle_have(&host(4), set(40, 0..30));
    assert_eq!(drain(&mut swarm, now), vec![], "it has what others have");
    swarm.handle_more(&host(4), [piece(35), piece(36)]);
    let actions = drain(&mut swarm, now);
    assert!(actions == [fetch(4, 35)] || actions == [fetch(4, 36)], "{actions:?}");
    swarm.handle_have(&host(5), set(40, [35, 36]));
    assert_eq!(drain(&mut swarm, now), vec![], "two have it by now");
    swarm.handle_partner_gone(&host(4));
    for n in 35..37 {
        swarm.handle_fetch_failed(piece(n), &host(4));
    }
    assert_eq!(drain(&mut swarm, now).len(), 1, "and one again");
}

#[test]
fn a_lost_call_is_not_waited_for_for_ever() {
    let now = Instant::now();
    let mut swarm = hashed(1);
    swarm.handle_have(&host(1), PieceSet::full(1));
    drain(&mut swarm, now);
    swarm.handle_busy(now, &host(1), piece(0));
    let later = swarm.poll_timeout().unwrap();
    assert!(later <= now + Duration::from_secs(10));
    swarm.handle_timeout(later, |_, _| None);
    assert_eq!(drain(&mut swarm, later), vec![fetch(1, 0)]);
}

/// The two go over different connections.
#[test]
fn who_has_been_called_before_it_hears_that_there_is_no_place_asks_again() {
    let now = Instant::now();
    let mut swarm = hashed(4);
    swarm.handle_have(&host(1), PieceSet::full(4));
    let refused = asked(&drain(&mut swarm, now));
    assert_eq!(refused.len(), 2);
    swarm.handle_come(&host(1), Some(piece(3)));
    let called = drain(&mut swarm, now);
    assert_eq!(asked(&called), [3]);
    refused.iter().for_each(|refused| swarm.handle_busy(now, &host(1), piece(*refused)));
    // The call was for one of them, and it stands in no line.
    assert_eq!(drain(&mut swarm, now), vec![fetch(1, refused[0])]);
    swarm.handle_busy(now, &host(1), piece(refused[0]));
    assert_eq!(drain(&mut swarm, now), vec![], "now it waits");
    assert!(swarm.poll_timeout().unwrap() > now + Duration::from_millis(100));
}

#[test]
fn who_is_called_for_what_it_does_not_want_asks_again_soon_and_not_at_once() {
    let now = Instant::now();
    let mut swarm = hashed(4);
    swarm.set_wanted(all_of([0]));
    swarm.handle_have(&host(1), PieceSet::full(4));
    assert_eq!(drain(&mut swarm, now), vec![fetch(1, 0)]);
    swarm.handle_come(&host(1), Some(piece(3)));
    assert_eq!(drain(&mut swarm, now), vec![Action::Pass { partner: host(1) }]);
    swarm.handle_busy(now, &host(1), piece(0));
    assert_eq!(drain(&mut swarm, now), vec![]);
    let soon = swarm.poll_timeout().unwrap();
    assert!(now < soon && soon <= now + Duration::from_millis(100));
    swarm.handle_timeout(soon, |_, _| None);
    assert_eq!(drain(&mut swarm, soon), vec![fetch(1, 0)]);
}

#[test]
fn a_place_that_is_not_needed_is_given_back() {
    let now = Instant::now();
    let mut swarm = hashed(1);
    swarm.handle_have(&host(1), PieceSet::full(1));
    swarm.handle_have(&host(2), PieceSet::full(1));
    assert_eq!(drain(&mut swarm, now).len(), 1);
    swarm.handle_come(&host(1), None);
    swarm.handle_come(&host(2), None);
    let passed = drain(&mut swarm, now);
    let pass = |n| Action::Pass { partner: host(n) };
    assert!(passed == [pass(1), pass(2)] || passed == [pass(2), pass(1)], "{passed:?}");
}

#[test]
fn what_a_partner_gets_meanwhile_is_asked_of_it() {
    let now = Instant::now();
    let mut swarm = hashed(2);
    swarm.handle_more(&host(1), [piece(0)]);
    swarm.handle_have(&host(1), PieceSet::empty(2));
    assert_eq!(drain(&mut swarm, now), vec![], "before, it was no partner");
    swarm.handle_more(&host(1), [piece(1)]);
    assert_eq!(drain(&mut swarm, now), vec![fetch(1, 1)]);
}

#[test]
fn what_a_partner_has_is_asked_before_what_it_is_receiving_and_that_only_of_the_same_side() {
    let (mut swarm, now) = (hashed(8), Instant::now());
    swarm.handle_have(&host(1), set(8, [3]));
    swarm.handle_coming(&host(1), piece(5));
    assert_eq!(drain(&mut swarm, now), [fetch(1, 3), relayed(1, 5)]);
    // It may be asked for what it has.
    swarm.handle_bridge(Bridge::new(0, 1));
    swarm.handle_side(&host(2), Side::Across);
    swarm.handle_have(&host(2), set(8, []));
    swarm.handle_coming(&host(2), piece(6));
    assert_eq!(drain(&mut swarm, now), []);
    swarm.handle_more(&host(2), [piece(7)]);
    assert_eq!(drain(&mut swarm, now), [fetch(2, 7)]);
    swarm.handle_coming(&host(3), piece(6));
    assert_eq!(drain(&mut swarm, now), [], "one that is no partner");
}

#[test]
fn what_is_only_coming_is_nobodys_and_asked_no_more_of_one_that_did_not_pass_it_on() {
    let (mut swarm, now) = (hashed(4), Instant::now());
    swarm.handle_have(&host(1), set(4, []));
    swarm.handle_coming(&host(1), piece(2));
    swarm.handle_coming(&host(1), piece(2));
    assert!(swarm.awaits_promise(), "nobody has shown that he has it");
    assert_eq!(drain(&mut swarm, now), [relayed(1, 2)]);
    swarm.handle_fetch_failed(piece(2), &host(1));
    assert_eq!(drain(&mut swarm, now), []);
    swarm.handle_coming(&host(1), piece(2));
    assert_eq!(drain(&mut swarm, now), [relayed(1, 2)], "it receives it again");
    swarm.handle_fetch_failed(piece(2), &host(1));
    swarm.handle_more(&host(1), [piece(2)]);
    assert_eq!(drain(&mut swarm, now), [fetch(1, 2)]);
}
