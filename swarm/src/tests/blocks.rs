//! Less than a piece: readers of ranges.

use super::{BLOCKS, all_of, asked, blocks, drain, hashed, host, new, piece, set, waits, wants_all};
use crate::{Action, Limits, MayAsk, RunId, Swarm};
use darter_protocol::{BlockSet, PieceSet};
use std::ops::Range;
use std::time::{Duration, Instant};

/// A download of so many pieces, of which these blocks are wanted, by readers who wait for the first of each run.
fn wants(pieces: u32, runs: &[(u32, u32)]) -> Swarm {
    let mut swarm = new(pieces, Limits::default());
    (0..pieces).for_each(|n| swarm.handle_hash(piece(n)));
    swarm.handle_promises_broken();
    swarm.set_wanted(runs.iter().map(|(start, end)| *start..*end).collect());
    runs.iter().for_each(|(start, end)| swarm.handle_waiting(*start, *end));
    swarm
}

fn runs(actions: &[Action]) -> Vec<(RunId, Range<u32>)> {
    let run = |action: &Action| match action {
        Action::FetchOrigin { run, blocks } => Some((*run, blocks.clone())),
        _ => None,
    };
    actions.iter().filter_map(run).collect()
}

fn part(n: u32, p: u32, blocks: Range<u32>) -> Action {
    Action::Fetch {
        partner: host(n),
        piece: piece(p),
        blocks,
        spare: false,
        awaited: false,
        relayed: false,
        called: false,
    }
}

fn awaited(n: u32, p: u32, blocks: Range<u32>) -> Action {
    Action::Fetch {
        partner: host(n),
        piece: piece(p),
        blocks,
        spare: false,
        awaited: true,
        relayed: false,
        called: false,
    }
}

#[test]
fn readers_of_ranges_fetch_their_blocks_at_once_and_no_others() {
    let now = Instant::now();
    let mut swarm = wants(100, &[(100, 101), (700, 702), (1599, 1600)]);
    swarm.handle_right(MayAsk::Now);
    let started = runs(&drain(&mut swarm, now));
    let ranges: Vec<_> = started.iter().map(|(_, blocks)| blocks.clone()).collect();
    assert_eq!(ranges, [100..101, 700..702, 1599..1600]);
    for (run, blocks) in started {
        swarm.handle_blocks(now, blocks, None);
        swarm.handle_run_ended(run);
    }
    assert!(swarm.is_satisfied() && !swarm.needs_origin() && swarm.have().is_empty());
    assert_eq!(drain(&mut swarm, now), vec![]);
}

#[test]
fn a_reader_far_ahead_of_all_takes_its_blocks_out_of_the_run() {
    let now = Instant::now();
    let mut swarm = wants_all(100);
    swarm.handle_right(MayAsk::Now);
    let (run, _) = runs(&drain(&mut swarm, now))[0].clone();
    swarm.handle_waiting(800, 801);
    let actions = drain(&mut swarm, now);
    assert_eq!(actions[0], Action::ShortenOrigin { run, end: 800 });
    let (other, blocks) = runs(&actions)[0].clone();
    assert_eq!(blocks, 800..801, "the rest is fetched in its turn");
    swarm.handle_blocks(now, 800..801, None);
    swarm.handle_run_ended(other);
    assert_eq!(drain(&mut swarm, now), vec![]);
    swarm.handle_blocks(now, 0..16, None);
    swarm.handle_run_reached(run, 800);
    swarm.handle_blocks(now, 16..800, None);
    swarm.handle_run_ended(run);
    assert_eq!(runs(&drain(&mut swarm, now))[0].1, 801..1600);
}

#[test]
fn a_reader_is_not_kept_waiting_by_runs_that_nobody_waits_for() {
    let now = Instant::now();
    let mut swarm = wants_all(100);
    swarm.handle_right(MayAsk::Now);
    drain(&mut swarm, now);
    for piece in [80, 60, 40] {
        waits(&mut swarm, piece);
        drain(&mut swarm, now);
        swarm.handle_blocks(now, piece * BLOCKS..piece * BLOCKS + 1, None);
    }
    swarm.handle_waiting(1500, 1501);
    let actions = drain(&mut swarm, now);
    let stopped: Vec<_> = actions
        .iter()
        .filter_map(|action| match action {
            Action::ShortenOrigin { run, end } => Some((*run, *end)),
            _ => None,
        })
        .collect();
    let (run, end) = *stopped.last().unwrap();
    assert_eq!(
        (stopped.len(), end),
        (2, 1),
        "one ends with the block that is arriving, one before the reader's"
    );
    swarm.handle_blocks(now, 0..1, None);
    swarm.handle_run_ended(run);
    assert_eq!(runs(&drain(&mut swarm, now))[0].1, 1500..1501);
}

#[test]
fn blocks_of_a_piece_are_asked_of_its_holder_and_kept() {
    let now = Instant::now();
    let mut swarm = wants(9, &[(35, 37)]);
    swarm.handle_have(&host(1), PieceSet::full(9));
    assert_eq!(drain(&mut swarm, now), vec![awaited(1, 2, 35..37)]);
    swarm.handle_blocks(now, 35..37, Some(&host(1)));
    assert!(swarm.is_satisfied());
    // Somebody wants all of it: only what is missing moves.
    swarm.set_wanted(all_of([2]));
    waits(&mut swarm, 2);
    assert_eq!(drain(&mut swarm, now), vec![awaited(1, 2, 32..35)]);
    swarm.handle_blocks(now, 32..35, Some(&host(1)));
    assert_eq!(drain(&mut swarm, now), vec![part(1, 2, 37..48)]);
    swarm.handle_blocks(now, 37..48, Some(&host(1)));
    swarm.handle_piece(now, piece(2), None);
    assert_eq!(swarm.have().len(), 1);
    assert_eq!(drain(&mut swarm, now), vec![]);
}

#[test]
fn what_a_fetch_has_proven_comes_from_nobody_else() {
    let now = Instant::now();
    let mut swarm = wants(9, &[(32, 48)]);
    swarm.handle_have(&host(1), PieceSet::full(9));
    assert_eq!(drain(&mut swarm, now), vec![awaited(1, 2, 32..48)]);
    swarm.handle_proven(32..37);
    assert!(swarm.there().contains_all(&(32..37)) && swarm.have().is_empty());
    assert_eq!(drain(&mut swarm, now), vec![]);
    // It falls silent, and another brings the rest.
    swarm.handle_have(&host(2), PieceSet::full(9));
    let now = now + Duration::from_secs(1);
    swarm.handle_timeout(now, |_, _| None);
    let spare = |blocks| Action::Fetch {
        partner: host(2),
        piece: piece(2),
        blocks,
        spare: true,
        awaited: false,
        relayed: false,
        called: false,
    };
    assert_eq!(drain(&mut swarm, now), vec![spare(37..48)]);
    swarm.handle_fetch_failed(piece(2), &host(2));
    swarm.handle_fetch_failed(piece(2), &host(1));
    swarm.handle_partner_gone(&host(2));
    assert_eq!(drain(&mut swarm, now), vec![part(1, 2, 37..48)]);
}

#[test]
fn every_reader_that_waits_comes_before_what_is_rare() {
    let mut swarm = wants(9, &[(16, 20), (33, 34), (40, 42), (70, 72)]);
    swarm.set_wanted(all_of(0..9));
    swarm.handle_have(&host(2), PieceSet::full(9));
    swarm.handle_have(&host(1), set(9, 0..8));
    let actions = drain(&mut swarm, Instant::now());
    let mut asked = asked(&actions)[..4].to_vec();
    asked.sort_unstable();
    assert_eq!(asked, [1, 2, 4, 5], "5 is in the window; 8, which one alone has, has time");
}

#[test]
fn within_a_piece_what_is_waited_for_comes_first() {
    let mut swarm = wants(3, &[(33, 34), (40, 42)]);
    swarm.handle_have(&host(1), PieceSet::full(3));
    assert_eq!(drain(&mut swarm, Instant::now()), vec![awaited(1, 2, 33..34)]);
}

#[test]
fn a_piece_is_never_brought_by_partners_and_the_origin_at_once() {
    let now = Instant::now();
    let mut swarm = wants(2, &[(3, 4)]);
    swarm.handle_right(MayAsk::Now);
    let (run, blocks) = runs(&drain(&mut swarm, now))[0].clone();
    assert_eq!(blocks, 3..4);
    swarm.set_wanted(all_of(0..2));
    swarm.handle_have(&host(1), PieceSet::full(2));
    assert_eq!(drain(&mut swarm, now), vec![part(1, 1, 16..32)], "the other one is the origin's still");
    swarm.handle_blocks(now, 3..4, None);
    swarm.handle_run_ended(run);
    assert_eq!(drain(&mut swarm, now), vec![part(1, 0, 4..16)], "from where a reader was");
}

#[test]
fn what_was_there_before_is_not_fetched() {
    let now = Instant::now();
    let layout = *hashed(2).layout();
    let there: BlockSet = [4..8, 20..32].into_iter().collect();
    let mut swarm = Swarm::new(layout, PieceSet::empty(2), there, Limits::default());
    swarm.set_wanted(all_of(0..2));
    swarm.handle_right(MayAsk::Now);
    let (run, first) = runs(&drain(&mut swarm, now))[0].clone();
    assert_eq!(first, 0..4);
    swarm.handle_blocks(now, first, None);
    swarm.handle_run_ended(run);
    assert_eq!(runs(&drain(&mut swarm, now))[0].1, 8..20);
    assert_eq!(swarm.adopt_run(blocks(0..2)), None);
}

#[test]
fn a_piece_that_the_origin_has_begun_with_becomes_whole_where_others_need_it() {
    let now = Instant::now();
    let mut swarm = new(100, Limits { whole_pieces: true, ..Limits::default() });
    swarm.set_wanted(std::iter::once(100..101).collect());
    swarm.handle_waiting(100, 101);
    swarm.handle_right(MayAsk::Now);
    let (run, blocks) = runs(&drain(&mut swarm, now))[0].clone();
    assert_eq!(blocks, 100..112, "to its end in one request");
    swarm.handle_blocks(now, 100..101, None);
    swarm.set_wanted(BlockSet::default());
    assert_eq!(drain(&mut swarm, now), vec![], "its reader has what it wanted");
    swarm.handle_blocks(now, 101..112, None);
    swarm.handle_run_ended(run);
    assert!(!swarm.is_satisfied());
    assert_eq!(runs(&drain(&mut swarm, now))[0].1, 96..100);
}

#[test]
fn the_first_answer_of_an_origin_without_ranges_brings_the_piece_whole() {
    let now = Instant::now();
    let mut swarm = new(100, Limits { whole_pieces: true, ..Limits::default() });
    swarm.set_wanted(std::iter::once(100..101).collect());
    swarm.handle_waiting(100, 101);
    swarm.handle_right(MayAsk::Now);
    let (run, blocks) = swarm.adopt_run(blocks(0..100)).unwrap();
    assert_eq!(blocks, 96..112, "what is before and behind comes in the same answer");
    swarm.handle_blocks(now, blocks, None);
    swarm.handle_run_ended(run);
    assert!(swarm.is_satisfied());
    assert_eq!(runs(&drain(&mut swarm, now)), vec![]);
}

#[test]
fn the_first_answer_brings_no_more_of_the_piece_than_it_carries() {
    let mut swarm = new(100, Limits { whole_pieces: true, ..Limits::default() });
    swarm.set_wanted(std::iter::once(100..101).collect());
    swarm.handle_right(MayAsk::Now);
    assert_eq!(swarm.adopt_run(100..101).map(|(_, blocks)| blocks), Some(100..101));
}

#[test]
fn a_reader_that_leaves_costs_the_piece_that_is_arriving_where_others_need_it_and_no_more() {
    let now = Instant::now();
    let mut swarm = new(100, Limits { whole_pieces: true, ..Limits::default() });
    swarm.set_wanted(all_of(0..100));
    waits(&mut swarm, 0);
    swarm.handle_right(MayAsk::Now);
    let (run, blocks) = runs(&drain(&mut swarm, now))[0].clone();
    assert_eq!(blocks, 0..1600);
    swarm.handle_blocks(now, 0..16, None);
    swarm.handle_blocks(now, 16..20, None);
    swarm.set_wanted(BlockSet::default());
    assert_eq!(drain(&mut swarm, now), [Action::ShortenOrigin { run, end: 32 }]);
}

#[test]
fn what_a_partner_has_whole_is_not_completed() {
    let now = Instant::now();
    let mut swarm = new(100, Limits { whole_pieces: true, ..Limits::default() });
    swarm.handle_hash(piece(6));
    swarm.handle_have(&host(1), set(100, 6..7));
    swarm.set_wanted(std::iter::once(100..101).collect());
    swarm.handle_waiting(100, 101);
    swarm.handle_right(MayAsk::Now);
    assert_eq!(drain(&mut swarm, now), [awaited(1, 6, 100..101)]);
    swarm.handle_blocks(now, 100..101, Some(&host(1)));
    assert!(swarm.is_satisfied());
    assert_eq!(drain(&mut swarm, now), vec![]);
}
