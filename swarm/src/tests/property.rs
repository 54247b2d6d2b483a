//! Whatever happens: a piece is in one state, no two write it at once, and while somebody has what is missing there is
//! progress.

use super::{host, piece, rng, set, wants_all};
use crate::{Action, MayAsk, RunId, Swarm};
use darter_protocol::{HostId, PieceIndex};
use proptest::prelude::*;
use rand::rngs::SmallRng;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

#[derive(Debug, Clone)]
enum Step {
    Have(u32, Vec<u32>),
    More(u32, u32),
    Gone(u32),
    Hash(u32),
    Come(u32, Option<u32>),
    Right(MayAsk),
    Wanted(Vec<u32>),
    Waiting(u32),
    /// A fetch or a run goes on: well, badly, or not now.
    Land(usize, u8),
    /// So many milliseconds without a byte.
    Silence(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..5u32, prop::collection::vec(0..24u32, 0..24)).prop_map(|(host, have)| Step::Have(host, have)),
        (0..5u32, 0..24u32).prop_map(|(host, piece)| Step::More(host, piece)),
        (0..5u32).prop_map(Step::Gone),
        (0..24u32).prop_map(Step::Hash),
        (0..5u32, prop::option::of(0..24u32)).prop_map(|(host, best)| Step::Come(host, best)),
        prop_oneof![Just(MayAsk::No), Just(MayAsk::Later), Just(MayAsk::Now)].prop_map(Step::Right),
        (0..30u32).prop_map(Step::Waiting),
        prop::collection::vec(0..24u32, 0..24).prop_map(Step::Wanted),
        (any::<prop::sample::Index>(), 0..3u8).prop_map(|(at, how)| Step::Land(at.index(64), how)),
        (1..5_000u64).prop_map(Step::Silence),
    ]
}

/// Those who carry out what the swarm wants, and what they know.
struct Crew {
    now: Instant,
    rng: SmallRng,
    /// Who was asked for what, whether beside another, and whether it was cancelled.
    fetches: Vec<(HostId, PieceIndex, bool)>,
    runs: BTreeMap<RunId, Going>,
}

/// A run as the one who carries it out knows it.
struct Going {
    next: u32,
    /// Pieces before this one are written, or being written.
    taken: u32,
    end: u32,
}

impl Crew {
    fn follow(&mut self, swarm: &mut Swarm) -> Result<(), TestCaseError> {
        while let Some(action) = swarm.poll_action(self.now, &mut self.rng) {
            match action {
                Action::Fetch { partner, piece, spare } => {
                    prop_assert!(!swarm.have().contains(piece));
                    let same: Vec<_> = self.fetches.iter().filter(|(_, other, _)| *other == piece).collect();
                    prop_assert_eq!(!same.is_empty(), spare, "one writes, others are spares");
                    prop_assert!(same.iter().all(|(other, _, _)| *other != partner));
                    prop_assert!(self.runs.values().all(|run| !(run.next..run.end).contains(&piece.get())));
                    self.fetches.push((partner, piece, false));
                }
                Action::Cancel { partner, piece } => {
                    let fetch =
                        self.fetches.iter_mut().find(|(who, what, _)| *who == partner && *what == piece);
                    prop_assert!(fetch.is_some(), "a fetch is cancelled that is none");
                    fetch.into_iter().for_each(|(_, _, cancelled)| *cancelled = true);
                }
                Action::Pass { .. } | Action::Replace { .. } => {}
                Action::FetchOrigin { run, pieces } => {
                    for next in pieces.clone() {
                        prop_assert!(!swarm.have().contains(piece(next)));
                        prop_assert!(self.fetches.iter().all(|(_, other, _)| other.get() != next));
                        prop_assert!(self.runs.values().all(|run| !(run.next..run.end).contains(&next)));
                    }
                    self.runs.insert(run, Going { next: pieces.start, taken: pieces.start, end: pieces.end });
                }
                Action::ShortenOrigin { run, end } => {
                    if let Some(going) = self.runs.get_mut(&run) {
                        going.end = going.end.min(end.max(going.taken));
                        swarm.handle_overrun(run, going.end);
                    }
                }
                // It ends in its own time, and brings what it has taken.
                Action::StopOrigin { run } => {
                    if let Some(going) = self.runs.get_mut(&run) {
                        going.end = going.taken;
                    }
                }
            }
        }
        Ok(())
    }

    fn land(&mut self, swarm: &mut Swarm, at: usize, how: u8) {
        if !self.fetches.is_empty() {
            let (partner, piece, cancelled) = self.fetches.swap_remove(at % self.fetches.len());
            match how {
                0 if !cancelled => swarm.handle_piece(self.now, piece, Some(&partner)),
                1 if !cancelled => swarm.handle_busy(self.now, &partner, piece),
                _ => swarm.handle_fetch_failed(piece, &partner),
            }
            return;
        }
        let Some(run) = self.runs.keys().nth(at % self.runs.len().max(1)).copied() else { return };
        match self.runs.get_mut(&run) {
            // A run that is ahead of what the swarm has heard.
            Some(going) if how == 1 && going.taken < going.end => going.taken += 1,
            Some(going) if how == 0 && going.next < going.end => {
                going.taken = going.taken.max(going.next + 1);
                swarm.handle_piece(self.now, piece(going.next), None);
                going.next += 1;
            }
            _ => {
                self.runs.remove(&run);
                swarm.handle_run_ended(run);
            }
        }
    }

    fn silence(&mut self, swarm: &mut Swarm, millis: u64) {
        let until = self.now + Duration::from_millis(millis);
        while let Some(at) = swarm.poll_timeout().filter(|at| *at <= until) {
            assert!(at >= self.now || at + Duration::from_secs(3600) > self.now);
            self.now = self.now.max(at);
            let (now, before) = (self.now, swarm.poll_timeout());
            swarm.handle_timeout(now, |_, _| None);
            assert!(swarm.poll_timeout() != before || before.is_none(), "a timeout that does not pass");
        }
        self.now = until;
    }

    /// From now on everything goes well.
    fn finish(&mut self, swarm: &mut Swarm) -> Result<(), TestCaseError> {
        for _ in 0..200 {
            swarm.handle_promises_broken();
            for (partner, piece, cancelled) in std::mem::take(&mut self.fetches) {
                if cancelled {
                    swarm.handle_fetch_failed(piece, &partner);
                } else {
                    swarm.handle_piece(self.now, piece, Some(&partner));
                }
            }
            for (run, going) in std::mem::take(&mut self.runs) {
                (going.next..going.end).for_each(|next| swarm.handle_piece(self.now, piece(next), None));
                swarm.handle_run_ended(run);
            }
            self.silence(swarm, 1_000);
            self.follow(swarm)?;
        }
        Ok(())
    }
}

fn play(swarm: &mut Swarm, crew: &mut Crew, steps: Vec<Step>) -> Result<(), TestCaseError> {
    for step in steps {
        match step {
            Step::Have(n, have) => swarm.handle_have(&host(n), set(24, have)),
            Step::More(n, p) => swarm.handle_more(&host(n), [piece(p)]),
            Step::Gone(n) => swarm.handle_partner_gone(&host(n)),
            Step::Hash(n) => swarm.handle_hash(piece(n)),
            Step::Come(n, best) => swarm.handle_come(&host(n), best.map(piece)),
            Step::Right(right) => swarm.handle_right(right),
            Step::Waiting(n) => swarm.handle_waiting(piece(n)),
            Step::Wanted(pieces) => swarm.set_wanted(set(24, pieces)),
            Step::Land(at, how) => crew.land(swarm, at, how),
            Step::Silence(millis) => crew.silence(swarm, millis),
        }
        crew.follow(swarm)?;
    }
    Ok(())
}

fn crew() -> Crew {
    Crew { now: Instant::now(), rng: rng(), fetches: Vec::new(), runs: BTreeMap::new() }
}

proptest! {
    /// With the right to ask the origin and no failures at the end, the download completes.
    #[test]
    fn every_piece_is_in_one_state_and_the_origin_brings_the_rest(steps in prop::collection::vec(step(), 0..120)) {
        let (mut swarm, mut crew) = (wants_all(24), crew());
        play(&mut swarm, &mut crew, steps)?;
        play(&mut swarm, &mut crew, vec![Step::Right(MayAsk::Now), Step::Wanted((0..24).collect())])?;
        crew.finish(&mut swarm)?;
        prop_assert!(swarm.is_complete(), "{swarm:?}");
    }

    /// Without it, and with one partner that has everything, the download completes, too.
    #[test]
    fn one_source_is_enough(steps in prop::collection::vec(step(), 0..120)) {
        let (mut swarm, mut crew) = (wants_all(24), crew());
        play(&mut swarm, &mut crew, steps)?;
        let mut last = vec![Step::Right(MayAsk::No), Step::Wanted((0..24).collect()), Step::Gone(4)];
        last.extend((0..24).map(Step::Hash));
        last.push(Step::Have(4, (0..24).collect()));
        play(&mut swarm, &mut crew, last)?;
        crew.finish(&mut swarm)?;
        prop_assert!(swarm.is_complete(), "{swarm:?}");
    }
}
