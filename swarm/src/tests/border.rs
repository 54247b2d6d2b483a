//! What is asked across a border, by whom, and when.

use super::{all_of, asked, drain, host, new, piece, set};
use crate::border::{LONG_PATIENCE, PATIENCE};
use crate::{Action, Bridge, Limits, Side, Swarm};
use darter_protocol::PieceSet;
use std::time::{Duration, Instant};

const PIECES: u32 = 8;

/// One that misses everything, in whose zone nobody has anything; three across the border have all of it.
fn far_from_all(bridge: Option<Bridge>) -> Swarm {
    let mut swarm = new(PIECES, Limits { fetches: 16, window: 0, ..Limits::default() });
    swarm.set_wanted(all_of(0..PIECES));
    (0..PIECES).for_each(|n| swarm.handle_hash(piece(n)));
    swarm.handle_bridge(bridge);
    for n in 1..4 {
        swarm.handle_side(&host(n), Side::Across);
        swarm.handle_have(&host(n), PieceSet::full(PIECES));
    }
    swarm
}

/// What is asked for by and by until `end`, with whatever is asked for coming at once.
fn asked_until(swarm: &mut Swarm, now: &mut Instant, end: Instant) -> Vec<u32> {
    let mut all = Vec::new();
    while *now < end {
        loop {
            let actions = drain(swarm, *now);
            if actions.is_empty() {
                break;
            }
            for action in &actions {
                let Action::Fetch { partner, piece, .. } = action else { panic!("{action:?}") };
                swarm.handle_piece(*now, *piece, Some(partner));
            }
            all.extend(asked(&actions));
        }
        let next = swarm.poll_timeout().filter(|next| *next < end);
        *now = next.unwrap_or(end);
        swarm.handle_timeout(*now, |_, _| None);
    }
    all.sort_unstable();
    all
}

#[test]
fn a_bridge_brings_what_is_its_duty_and_after_a_while_what_another_did_not() {
    let mut now = Instant::now();
    let began = now;
    let mut swarm = far_from_all(Bridge::new(1, 2));
    assert_eq!(asked_until(&mut swarm, &mut now, began + PATIENCE), [1, 3, 5, 7]);
    // What has come to this side meanwhile is nobody's duty any more.
    swarm.handle_have(&host(9), set(PIECES, [0]));
    let later = asked_until(&mut swarm, &mut now, began + 3 * PATIENCE);
    assert_eq!(later, [0, 2, 4, 6]);
}

#[test]
fn the_others_leave_it_to_the_bridges_for_longer() {
    let mut now = Instant::now();
    let began = now;
    let mut swarm = far_from_all(None);
    assert_eq!(
        asked_until(&mut swarm, &mut now, began + 2 * LONG_PATIENCE - Duration::from_millis(1)),
        [0u32; 0]
    );
    let later = asked_until(&mut swarm, &mut now, began + 3 * LONG_PATIENCE);
    assert_eq!(later, (0..PIECES).collect::<Vec<_>>(), "bridges that bring nothing are no reason to stall");
}

#[test]
fn a_bridge_that_gets_another_number_again_and_again_still_brings_what_others_do_not() {
    let mut now = Instant::now();
    let began = now;
    let mut swarm = far_from_all(Bridge::new(1, 2));
    let mut all = Vec::new();
    for half in 1..=6 {
        swarm.handle_bridge(Bridge::new(1, [2, 4][half as usize % 2]));
        all.extend(asked_until(&mut swarm, &mut now, began + PATIENCE / 2 * half));
    }
    all.sort_unstable();
    assert_eq!(all, (0..PIECES).collect::<Vec<_>>());
}

#[test]
fn whoever_becomes_a_bridge_begins_at_once() {
    let mut now = Instant::now();
    let end = now + Duration::from_millis(1);
    let mut swarm = far_from_all(None);
    assert_eq!(asked_until(&mut swarm, &mut now, end), [0u32; 0]);
    swarm.handle_bridge(Bridge::new(0, 8));
    let later = end + Duration::from_millis(1);
    assert_eq!(asked_until(&mut swarm, &mut now, later), [0]);
    assert_eq!(Bridge::new(8, 8), None);
}
