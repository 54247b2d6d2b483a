//! Which piece is asked of whom.

use super::{asked, drain, fetch, hashed, host, piece, set, waits};
use crate::Action;
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
    assert_eq!(drain(&mut swarm, now)[0], fetch(1, 2), "what it would rather give");
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
