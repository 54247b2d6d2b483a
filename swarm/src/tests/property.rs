//! Whatever happens: a block is in one state, no two write it at once, it comes once, and while somebody has what is
//! missing there is progress.

use super::{BLOCKS, blocks, host, new, piece, rng, set, wants_all};
use crate::{Action, Limits, MayAsk, RunId, Swarm};
use darter_protocol::{BlockSet, HostId, PieceIndex};
use proptest::prelude::*;
use rand::rngs::SmallRng;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::{Duration, Instant};

#[derive(Debug, Clone)]
enum Step {
    Have(u32, Vec<u32>),
    More(u32, u32),
    Coming(u32, u32),
    Gone(u32),
    Hash(u32),
    Come(u32, Option<u32>),
    Right(MayAsk),
    Wanted(Vec<(u32, u32)>),
    Waiting(u32, u32),
    /// A fetch or a run goes on: well, badly, not now, or with a part of it.
    Land(usize, u8),
    /// So many milliseconds without a byte.
    Silence(u64),
    /// The origin turns out to send everything from the start.
    NoRanges,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..5u32, prop::collection::vec(0..24u32, 0..24)).prop_map(|(host, have)| Step::Have(host, have)),
        (0..5u32, 0..24u32).prop_map(|(host, piece)| Step::More(host, piece)),
        (0..5u32, 0..25u32).prop_map(|(host, piece)| Step::Coming(host, piece)),
        (0..5u32).prop_map(Step::Gone),
        (0..24u32).prop_map(Step::Hash),
        (0..5u32, prop::option::of(0..24u32)).prop_map(|(host, best)| Step::Come(host, best)),
        prop_oneof![Just(MayAsk::No), Just(MayAsk::Later), Just(MayAsk::Now)].prop_map(Step::Right),
        (0..25 * BLOCKS, 0..40u32).prop_map(|(block, more)| Step::Waiting(block, block + more)),
        prop::collection::vec((0..24 * BLOCKS, 0..40u32), 0..12).prop_map(Step::Wanted),
        (any::<prop::sample::Index>(), 0..4u8).prop_map(|(at, how)| Step::Land(at.index(64), how)),
        (1..5_000u64).prop_map(Step::Silence),
        Just(Step::NoRanges),
    ]
}

/// Those who carry out what the swarm wants, and what they know.
struct Crew {
    now: Instant,
    rng: SmallRng,
    fetches: Vec<Asked>,
    asked: usize,
    runs: BTreeMap<RunId, Going>,
    /// Everything that came.
    came: BlockSet,
    /// Pieces of which something came from the origin.
    begun: BTreeSet<PieceIndex>,
}

/// What was asked of a partner.
#[derive(Clone)]
struct Asked {
    partner: HostId,
    piece: PieceIndex,
    blocks: Range<u32>,
    number: usize,
    /// The blocks before this one were proven on the way.
    proven: u32,
    spare: bool,
    relayed: bool,
    cancelled: bool,
}

/// A run as the one who carries it out knows it.
struct Going {
    next: u32,
    /// Blocks before this one are written, or being written.
    taken: u32,
    end: u32,
}

impl Crew {
    fn follow(&mut self, swarm: &mut Swarm) -> Result<(), TestCaseError> {
        while let Some(action) = swarm.poll_action(self.now, &mut self.rng) {
            match action {
                Action::Fetch { partner, piece, blocks, spare, relayed, .. } => {
                    prop_assert_eq!(relayed, !swarm.partners[&partner].have.contains(piece));
                    prop_assert!(!(relayed && spare), "a relay is no second source");
                    prop_assert!(!blocks.is_empty() && self.came.within(blocks.clone()).next().is_none());
                    let same: Vec<_> = self.fetches.iter().filter(|other| other.piece == piece).collect();
                    prop_assert_eq!(!same.is_empty(), spare, "one writes, others are spares");
                    let within = |other: &Range<u32>| other.start <= blocks.start && blocks.end <= other.end;
                    prop_assert!(same.iter().all(|other| other.partner != partner && within(&other.blocks)));
                    let whole = super::blocks(piece.get()..piece.get() + 1);
                    prop_assert!(blocks.start >= whole.start && blocks.end <= whole.end);
                    prop_assert!(self.runs.values().all(|run| disjoint(&(run.next..run.end), &whole)));
                    let (number, proven) = (self.asked, blocks.start);
                    self.asked += 1;
                    let cancelled = false;
                    let asked = Asked { partner, piece, blocks, number, proven, spare, relayed, cancelled };
                    self.fetches.push(asked);
                }
                Action::Cancel { partner, piece } => {
                    let fetch = self
                        .fetches
                        .iter_mut()
                        .find(|asked| asked.partner == partner && asked.piece == piece);
                    prop_assert!(fetch.is_some(), "a fetch is cancelled that is none");
                    fetch.into_iter().for_each(|asked| asked.cancelled = true);
                }
                Action::Pass { .. } | Action::Replace { .. } => {}
                Action::FetchOrigin { run, blocks } => {
                    prop_assert!(!blocks.is_empty() && self.came.within(blocks.clone()).next().is_none());
                    prop_assert!(self.runs.values().all(|run| disjoint(&(run.next..run.end), &blocks)));
                    let asked = |asked: &Asked| super::blocks(asked.piece.get()..asked.piece.get() + 1);
                    prop_assert!(self.fetches.iter().all(|fetch| disjoint(&asked(fetch), &blocks)));
                    let going = Going { next: blocks.start, taken: blocks.start, end: blocks.end };
                    self.runs.insert(run, going);
                }
                Action::ShortenOrigin { run, end } => {
                    if let Some(going) = self.runs.get_mut(&run) {
                        going.end = going.end.min(end.max(going.taken));
                        swarm.handle_overrun(run, going.end);
                    }
                }
                Action::ExtendOrigin { run, end } => {
                    if let Some(going) = self.runs.get_mut(&run) {
                        prop_assert!(end > going.end && self.came.within(going.end..end).next().is_none());
                        let asked = |asked: &Asked| blocks(asked.piece.get()..asked.piece.get() + 1);
                        prop_assert!(
                            self.fetches.iter().all(|fetch| disjoint(&asked(fetch), &(going.end..end)))
                        );
                        going.end = end;
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
            let mut asked = self.fetches.swap_remove(at % self.fetches.len());
            // The other may have proven all that a spare was asked for.
            let needed = !self.came.contains_all(&asked.blocks);
            match how {
                0 if !asked.cancelled && needed => self.came(swarm, asked.blocks, Some(&asked.partner)),
                // The last block is told with the end, and nothing is proven any more when another has brought the rest.
                3 if !asked.spare && !asked.cancelled && asked.blocks.end - asked.proven > 1 => {
                    let more = 1 + at as u32 % (asked.blocks.end - asked.proven - 1);
                    let proven = asked.proven..asked.proven + more;
                    asked.proven = proven.end;
                    self.came.insert(proven.clone());
                    swarm.handle_proven(proven);
                    self.fetches.push(asked);
                }
                1 if !asked.cancelled => swarm.handle_busy(self.now, &asked.partner, asked.piece),
                _ => {
                    let relayed = swarm.handle_fetch_failed(asked.piece, &asked.partner);
                    assert_eq!(relayed, asked.relayed);
                }
            }
            return;
        }
        let Some(run) = self.runs.keys().nth(at % self.runs.len().max(1)).copied() else { return };
        match self.runs.get_mut(&run) {
            // A run that is ahead of what the swarm has heard.
            Some(going) if how == 1 && going.taken < going.end => {
                going.taken = (going.taken + 5).min(going.end);
                swarm.handle_run_reached(run, going.taken - 1);
            }
            Some(going) if how == 0 && going.next < going.end => {
                let end = (going.next + 1 + at as u32 % 20).min(going.end);
                let blocks = going.next..end;
                (going.taken, going.next) = (going.taken.max(end), end);
                self.came(swarm, blocks, None);
            }
            _ => {
                self.runs.remove(&run);
                swarm.handle_run_ended(run);
            }
        }
    }

    /// Tells of blocks that came, as a driver does: of whole pieces from partners as such, of others block by block, and of
    /// a piece when its last block is there. The first that come from a partner may be proven and told of already.
    fn came(&mut self, swarm: &mut Swarm, came: Range<u32>, partner: Option<&HostId>) {
        let proven = partner.map_or(came.start, |_| self.came.end_from(came.start));
        let new = proven..came.end;
        assert!(!new.is_empty() || came.is_empty(), "{came:?} was all proven");
        assert!(self.came.within(new).next().is_none(), "{came:?} came before");
        self.came.insert(came.clone());
        let mut rest = came;
        while !rest.is_empty() {
            let piece = piece(rest.start / BLOCKS);
            let whole = blocks(piece.get()..piece.get() + 1);
            let part = rest.start..rest.end.min(whole.end);
            rest.start = part.end;
            self.begun.extend(Some(piece).filter(|_| partner.is_none()));
            match partner {
                Some(partner) if part == whole => swarm.handle_piece(self.now, piece, Some(partner)),
                _ => {
                    swarm.handle_blocks(self.now, part, partner);
                    if self.came.contains_all(&whole) {
                        swarm.handle_piece(self.now, piece, None);
                    }
                }
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

    /// From now on everything goes well, but for those who were to pass on what they are receiving: that never comes.
    fn finish(&mut self, swarm: &mut Swarm) -> Result<(), TestCaseError> {
        for _ in 0..200 {
            swarm.handle_promises_broken();
            // Who brings a spare waits until those before it have ended.
            self.fetches.sort_by_key(|asked| asked.number);
            for asked in std::mem::take(&mut self.fetches) {
                if asked.cancelled || asked.relayed || self.came.contains_all(&asked.blocks) {
                    swarm.handle_fetch_failed(asked.piece, &asked.partner);
                } else {
                    self.came(swarm, asked.blocks, Some(&asked.partner));
                }
            }
            for (run, going) in std::mem::take(&mut self.runs) {
                self.came(swarm, going.next..going.end, None);
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
            Step::Coming(n, p) => swarm.handle_coming(&host(n), piece(p)),
            Step::Gone(n) => swarm.handle_partner_gone(&host(n)),
            Step::Hash(n) => swarm.handle_hash(piece(n)),
            Step::Come(n, best) => swarm.handle_come(&host(n), best.map(piece)),
            Step::Right(right) => swarm.handle_right(right),
            Step::Waiting(block, until) => swarm.handle_waiting(block, until),
            Step::Wanted(runs) => swarm.set_wanted(wanted(runs)),
            Step::Land(at, how) => crew.land(swarm, at, how),
            Step::Silence(millis) => crew.silence(swarm, millis),
            Step::NoRanges => swarm.handle_no_ranges(),
        }
        crew.follow(swarm)?;
    }
    prop_assert_eq!(swarm.there(), &crew.came);
    Ok(())
}

fn wanted(runs: Vec<(u32, u32)>) -> BlockSet {
    runs.into_iter().map(|(start, more)| start..(start + more).min(24 * BLOCKS)).collect()
}

fn disjoint(a: &Range<u32>, b: &Range<u32>) -> bool {
    a.is_empty() || b.is_empty() || a.end <= b.start || b.end <= a.start
}

fn all() -> Step {
    Step::Wanted(vec![(0, 24 * BLOCKS)])
}

fn crew() -> Crew {
    let (fetches, runs, came) = (Vec::new(), BTreeMap::new(), BlockSet::default());
    Crew { now: Instant::now(), rng: rng(), fetches, asked: 0, runs, came, begun: BTreeSet::new() }
}

proptest! {
    /// What readers want comes, with one source or the other, also when nobody wants the rest.
    #[test]
    fn readers_of_ranges_get_what_they_wait_for(
        steps in prop::collection::vec(step(), 0..80),
        last in prop::collection::vec((0..24 * BLOCKS, 1..40u32), 1..5),
        partner: bool,
        whole_pieces: bool,
    ) {
        let (mut swarm, mut crew) = (new(24, Limits { whole_pieces, ..Limits::default() }), crew());
        play(&mut swarm, &mut crew, steps)?;
        let mut end = vec![Step::Wanted(last.clone()), Step::Gone(4)];
        end.extend(last.iter().map(|(start, more)| Step::Waiting(*start, start + more)));
        if partner {
            end.extend((0..24).map(Step::Hash));
            end.extend([Step::Right(MayAsk::No), Step::Have(4, (0..24).collect())]);
        } else {
            end.push(Step::Right(MayAsk::Now));
        }
        play(&mut swarm, &mut crew, end)?;
        crew.finish(&mut swarm)?;
        prop_assert!(swarm.is_satisfied(), "{swarm:?}");
        let whole = |piece: &PieceIndex| swarm.there().contains_all(&blocks(piece.get()..piece.get() + 1));
        prop_assert!(!whole_pieces || crew.begun.iter().all(whole), "{:?}", crew.begun);
    }

    /// With the right to ask the origin and no failures at the end, the download completes.
    #[test]
    fn every_piece_is_in_one_state_and_the_origin_brings_the_rest(steps in prop::collection::vec(step(), 0..120)) {
        let (mut swarm, mut crew) = (wants_all(24), crew());
        play(&mut swarm, &mut crew, steps)?;
        play(&mut swarm, &mut crew, vec![Step::Right(MayAsk::Now), all()])?;
        crew.finish(&mut swarm)?;
        prop_assert!(swarm.is_complete(), "{swarm:?}");
    }

    /// Without it, and with one partner that has everything, the download completes, too.
    #[test]
    fn one_source_is_enough(steps in prop::collection::vec(step(), 0..120)) {
        let (mut swarm, mut crew) = (wants_all(24), crew());
        play(&mut swarm, &mut crew, steps)?;
        let mut last = vec![Step::Right(MayAsk::No), all(), Step::Gone(4)];
        last.extend((0..24).map(Step::Hash));
        last.push(Step::Have(4, (0..24).collect()));
        play(&mut swarm, &mut crew, last)?;
        crew.finish(&mut swarm)?;
        prop_assert!(swarm.is_complete(), "{swarm:?}");
    }
}
