//! Runs from the origin.

use super::{BLOCKS, all_of, asked, drain, fetch, hashed, host, new, piece, set, waits, wants_all};
use crate::{Action, Limits, MayAsk, RunId, Swarm};
use darter_protocol::{BlockSet, PieceSet};
use std::ops::Range;
use std::time::Instant;

/// A run, and the pieces that it is for.
fn run_of(action: &Action) -> (RunId, Range<u32>) {
    match action {
        Action::FetchOrigin { run, blocks } => {
            assert_eq!((blocks.start % BLOCKS, blocks.end % BLOCKS), (0, 0), "{blocks:?}");
            (*run, blocks.start / BLOCKS..blocks.end / BLOCKS)
        }
        other => panic!("{other:?}"),
    }
}

/// A run is to end before this block.
fn shortened(run: RunId, end: u32) -> Vec<Action> {
    vec![Action::ShortenOrigin { run, end }]
}

fn wants(swarm: &mut Swarm, pieces: impl IntoIterator<Item = u32>) {
    swarm.set_wanted(all_of(pieces));
}

#[test]
fn without_a_right_or_a_partner_nothing_happens() {
    assert_eq!(drain(&mut wants_all(8), Instant::now()), vec![]);
}

#[test]
fn the_holder_of_the_right_fetches_what_nobody_has_in_one_run() {
    let mut swarm = wants_all(8);
    swarm.handle_right(MayAsk::Now);
    let actions = drain(&mut swarm, Instant::now());
    assert_eq!((actions.len(), run_of(&actions[0]).1), (1, 0..8));
}

#[test]
fn what_a_partner_has_is_not_asked_of_the_origin() {
    let mut swarm = wants_all(8);
    (2..4).for_each(|n| swarm.handle_hash(piece(n)));
    swarm.handle_have(&host(1), set(8, 2..6));
    swarm.handle_right(MayAsk::Now);
    let actions = drain(&mut swarm, Instant::now());
    assert_eq!(run_of(&actions[0]).1, 0..2);
    assert_eq!(asked(&actions[1..]), vec![2, 3], "4 and 5 have no known hash");
}

#[test]
fn what_somebody_is_said_to_have_is_not_asked_of_the_origin_at_once() {
    let now = Instant::now();
    let mut swarm = wants_all(4);
    swarm.handle_hash(piece(1));
    swarm.handle_right(MayAsk::Now);
    assert!(swarm.awaits_promise());
    assert_eq!(run_of(&drain(&mut swarm, now)[0]).1, 0..1);
    swarm.handle_have(&host(1), set(4, [1]));
    assert!(!swarm.awaits_promise());
    assert_eq!(drain(&mut swarm, now), [fetch(1, 1)]);
    swarm.handle_hash(piece(3));
    swarm.handle_promises_broken();
    swarm.handle_hash(piece(3));
    assert!(!swarm.awaits_promise() && swarm.needs_origin());
}

#[test]
fn a_reader_far_ahead_of_a_run_gets_one_of_its_own() {
    let now = Instant::now();
    let mut swarm = wants_all(100);
    swarm.handle_right(MayAsk::Now);
    let (run, _) = run_of(&drain(&mut swarm, now)[0]);
    waits(&mut swarm, 1);
    assert_eq!(drain(&mut swarm, now), vec![], "the run is nearly there");
    swarm.handle_run_reached(run, 20 * BLOCKS);
    waits(&mut swarm, 21);
    assert_eq!(drain(&mut swarm, now), vec![], "nearly there, though nothing is on disk");
    waits(&mut swarm, 50);
    let actions = drain(&mut swarm, now);
    assert_eq!(actions[0], Action::ShortenOrigin { run, end: 50 * BLOCKS });
    assert_eq!((actions.len(), run_of(&actions[1]).1), (2, 50..100));
}

#[test]
fn where_ranges_are_not_honoured_one_run_takes_everything_in_order() {
    let now = Instant::now();
    let mut swarm = wants_all(100);
    swarm.handle_right(MayAsk::Now);
    let (run, _) = run_of(&drain(&mut swarm, now)[0]);
    waits(&mut swarm, 50);
    let actions = drain(&mut swarm, now);
    let (second, _) = run_of(&actions[1]);
    assert_eq!(actions[0], Action::ShortenOrigin { run, end: 50 * BLOCKS });
    swarm.handle_run_ended(second);
    swarm.handle_no_ranges();
    assert_eq!(drain(&mut swarm, now), [Action::ExtendOrigin { run, end: 100 * BLOCKS }]);
    waits(&mut swarm, 70);
    assert_eq!(drain(&mut swarm, now), [], "it comes to the reader in its turn");
    swarm.handle_run_ended(run);
    assert_eq!(run_of(&drain(&mut swarm, now)[0]).1, 0..100);
}

#[test]
fn where_ranges_are_not_honoured_what_passes_by_is_kept() {
    let now = Instant::now();
    let mut swarm = new(100, Limits::default());
    swarm.handle_no_ranges();
    wants(&mut swarm, 40..42);
    swarm.handle_right(MayAsk::Now);
    assert_eq!(run_of(&drain(&mut swarm, now)[0]).1, 0..42);
}

#[test]
fn what_a_broken_run_did_not_bring_is_fetched_again() {
    let now = Instant::now();
    let mut swarm = wants_all(4);
    swarm.handle_right(MayAsk::Now);
    let (run, _) = run_of(&drain(&mut swarm, now)[0]);
    swarm.handle_piece(now, piece(0), None);
    swarm.handle_run_ended(run);
    assert_eq!(run_of(&drain(&mut swarm, now)[0]).1, 1..4);
}

#[test]
fn when_the_right_goes_the_run_stops() {
    let now = Instant::now();
    let mut swarm = wants_all(4);
    swarm.handle_right(MayAsk::Now);
    let (run, _) = run_of(&drain(&mut swarm, now)[0]);
    swarm.handle_have(&host(1), PieceSet::full(4));
    (0..4).for_each(|n| swarm.handle_hash(piece(n)));
    swarm.handle_right(MayAsk::Later);
    assert_eq!(drain(&mut swarm, now), vec![], "it may go on");
    swarm.handle_right(MayAsk::No);
    assert_eq!(drain(&mut swarm, now), vec![Action::StopOrigin { run }], "it writes into its pieces still");
    swarm.handle_run_ended(run);
    assert!(!swarm.asks_origin());
    assert_eq!(asked(&drain(&mut swarm, now)).len(), 2);
}

#[test]
fn a_run_that_has_gone_further_keeps_what_it_has_begun() {
    let now = Instant::now();
    let mut swarm = wants_all(9);
    swarm.handle_right(MayAsk::Now);
    let (run, _) = run_of(&drain(&mut swarm, now)[0]);
    wants(&mut swarm, [0, 8]);
    wants(&mut swarm, [0, 2, 7]);
    assert_eq!(drain(&mut swarm, now), shortened(run, 8 * BLOCKS));
    wants(&mut swarm, [0, 2]);
    assert_eq!(drain(&mut swarm, now), shortened(run, 3 * BLOCKS));
    swarm.handle_overrun(run, 5 * BLOCKS);
    wants(&mut swarm, 0..9);
    assert_eq!(drain(&mut swarm, now), vec![], "beside a run, another is for a reader that waits");
    waits(&mut swarm, 5);
    let actions = drain(&mut swarm, now);
    assert_eq!((actions.len(), run_of(&actions[0]).1), (1, 5..9));
}

#[test]
fn a_run_ends_with_the_last_piece_that_somebody_wants() {
    let now = Instant::now();
    let mut swarm = wants_all(9);
    swarm.handle_right(MayAsk::Now);
    let (run, _) = run_of(&drain(&mut swarm, now)[0]);
    swarm.handle_piece(now, piece(0), None);
    wants(&mut swarm, [0, 5]);
    assert_eq!(drain(&mut swarm, now), shortened(run, 6 * BLOCKS));
    swarm.set_wanted(BlockSet::default());
    assert_eq!(drain(&mut swarm, now), shortened(run, BLOCKS + 1), "the arriving block is finished");
}

#[test]
fn what_partners_bring_needs_no_right() {
    let mut swarm = hashed(2);
    swarm.handle_have(&host(1), PieceSet::full(2));
    assert!(!swarm.needs_origin() && !swarm.asks_origin());
}
