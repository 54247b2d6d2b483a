//! [`Swarm`]: what one download still misses, who has it, and what to fetch next from whom. Plain state: no IO, no clock,
//! no randomness that is not handed in.
//!
//! Invariant: a piece is in exactly one of MISSING, IN_FLIGHT (from one partner, or within one origin run) and HAVE.
//! [`Swarm::poll_action`] is the only way from MISSING to IN_FLIGHT; `handle_piece` the only way to HAVE. What is IN_FLIGHT
//! is one job's to write, so it comes back to MISSING only when that job has ended, or cannot touch the piece any more.
//!
//! Selection: first what a reader waits for, then the next pieces in order after it, then the rarest among the partners
//! (ties by lot): a mesh of rarest-first peers spreads content in little more than the time of one copy, while in-order
//! selection takes several times that. A piece is asked of a partner only when its hash is known, so that what a lying
//! partner sends never gets further than this host's disk.

use darter_protocol::{HostId, PieceIndex, PieceSet};
use rand::{Rng, RngExt};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// Pieces in flight from one partner: the next request is under way while one is being received.
const PER_PARTNER: u32 = 3;
/// Pieces in flight from all partners: 64 MiB at 4 MiB a piece, of which only socket buffers are in memory.
const TOTAL: u32 = 16;
/// Origin runs at the same time: one that goes through the content, and some for readers elsewhere in it.
const ORIGIN_RUNS: usize = 4;
/// How many pieces from a reader's position are taken in order rather than by rarity.
const WINDOW: u32 = 4;
/// A reader that waits for a piece at most so far ahead of a run waits for the run.
const NEAR: u32 = 1;

/// A run of pieces that is being fetched from the origin in one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RunId(u64);

/// What the driver shall do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Fetch `piece` from `partner`.
    FetchPeer { partner: HostId, piece: PieceIndex },
    /// Fetch these pieces from the origin, in order.
    FetchOrigin { run: RunId, pieces: Range<u32> },
    /// The run is to end earlier than it was started for. When it has gone further than that already, the driver says so
    /// at once: [`Swarm::handle_overrun`].
    ShortenOrigin { run: RunId, end: u32 },
    /// The run must stop: the right to go to the origin is gone. Its pieces are its own until it has ended.
    StopOrigin { run: RunId },
}

/// The right to go to the origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MayAsk {
    /// Not at all: runs stop.
    No,
    /// Runs go on, but no new one starts.
    Later,
    Now,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carrier {
    Partner,
    Origin(RunId),
}

#[derive(Debug)]
struct Partner {
    have: PieceSet,
    in_flight: u32,
}

#[derive(Debug)]
struct Run {
    next: u32,
    end: u32,
    stopping: bool,
}

/// The state of one download.
#[derive(Debug)]
pub(crate) struct Swarm {
    have: PieceSet,
    wanted: PieceSet,
    /// Pieces whose hash is known.
    hashed: PieceSet,
    /// Those of them that somebody has fetched, as their hash says, and who that is may show any moment.
    promised: PieceSet,
    flight: HashMap<PieceIndex, Carrier>,
    partners: BTreeMap<HostId, Partner>,
    /// How many partners have each piece.
    availability: Vec<u16>,
    runs: BTreeMap<RunId, Run>,
    next_run: u64,
    may_ask: MayAsk,
    /// The piece that a reader waited for last.
    cursor: PieceIndex,
    shortened: Vec<(RunId, u32)>,
    stopped: Vec<RunId>,
}

impl Swarm {
    /// A download of which `have` is there already.
    pub(crate) fn new(have: PieceSet) -> Self {
        let pieces = have.pieces();
        Self {
            hashed: have.clone(),
            promised: PieceSet::empty(pieces),
            have,
            wanted: PieceSet::empty(pieces),
            flight: HashMap::new(),
            partners: BTreeMap::new(),
            availability: vec![0; pieces as usize],
            runs: BTreeMap::new(),
            next_run: 0,
            may_ask: MayAsk::No,
            cursor: PieceIndex::new(0),
            shortened: Vec::new(),
            stopped: Vec::new(),
        }
    }

    pub(crate) fn have(&self) -> &PieceSet {
        &self.have
    }

    /// Whether every wanted piece is there.
    pub(crate) fn is_satisfied(&self) -> bool {
        self.wanted.iter().all(|piece| self.have.contains(piece))
    }

    /// Whether all of the content is wanted.
    pub(crate) fn wants_all(&self) -> bool {
        self.wanted.is_full()
    }

    /// Whether all of the content is there.
    pub(crate) fn is_complete(&self) -> bool {
        self.have.is_full()
    }

    /// Whether an origin run is going on.
    pub(crate) fn asks_origin(&self) -> bool {
        !self.runs.is_empty()
    }

    /// Whether some wanted piece could be fetched only from the origin now.
    pub(crate) fn needs_origin(&self) -> bool {
        self.wanted.iter().any(|piece| self.is_only_at_origin(piece))
    }

    /// Whether some wanted piece is not asked of the origin only because somebody is said to have it.
    pub(crate) fn awaits_promise(&self) -> bool {
        let promised = |piece| self.promised.contains(piece) && !self.is_available(piece);
        self.wanted.iter().any(|piece| self.is_missing(piece) && promised(piece))
    }

    /// Nobody has shown who has what is promised: it is asked of the origin from now on.
    pub(crate) fn handle_promises_broken(&mut self) {
        self.promised = PieceSet::empty(self.have.pieces());
    }

    /// Replaces what is wanted. A run from the origin ends after the last of its pieces that somebody still wants: a
    /// client that reads from an open-ended range and goes away must not cost the rest of the content.
    pub(crate) fn set_wanted(&mut self, wanted: PieceSet) {
        debug_assert_eq!(wanted.pieces(), self.have.pieces());
        if wanted == self.wanted {
            return;
        }
        self.wanted = wanted;
        let runs: Vec<(RunId, u32, u32)> =
            self.runs.iter().map(|(id, run)| (*id, run.next, run.end)).collect();
        for (id, next, end) in runs {
            let last = (next..end).rev().find(|piece| self.wanted.contains(PieceIndex::new(*piece)));
            // The piece that is arriving is finished in any case: half of it would be worth nothing.
            let needed = last.unwrap_or(next) + 1;
            if needed < end {
                self.shorten(id, needed);
            }
        }
    }

    /// Ends a run before `end`; what it leaves is missing again.
    fn shorten(&mut self, id: RunId, end: u32) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        for left in end..run.end {
            self.flight.remove(&PieceIndex::new(left));
        }
        run.end = end;
        self.shortened.push((id, end));
    }

    /// The run that was to be shortened has begun with the pieces before `end` already. Said before anything else is polled.
    pub(crate) fn handle_overrun(&mut self, id: RunId, end: u32) {
        let Some(run) = self.runs.get_mut(&id).filter(|run| run.end < end) else { return };
        self.flight.extend((run.end..end).map(|piece| (PieceIndex::new(piece), Carrier::Origin(id))));
        run.end = end;
    }

    /// A reader waits for `piece`.
    pub(crate) fn handle_waiting(&mut self, piece: PieceIndex) {
        if piece.get() >= self.have.pieces() {
            return;
        }
        self.cursor = piece;
        let Some(Carrier::Origin(id)) = self.flight.get(&piece).copied() else { return };
        let near = self.runs.get(&id).is_none_or(|run| piece.get() <= run.next + NEAR);
        if !near && self.runs.len() < ORIGIN_RUNS {
            // The run would reach it late.
            self.shorten(id, piece.get());
        }
    }

    /// The hash of `piece` is known: somebody has it.
    pub(crate) fn handle_hash(&mut self, piece: PieceIndex) {
        if self.hashed.insert(piece) {
            self.promised.insert(piece);
        }
    }

    /// What `partner` has; replaces what it had before.
    pub(crate) fn handle_have(&mut self, partner: &HostId, have: PieceSet) {
        if have.pieces() != self.have.pieces() {
            return;
        }
        let known = self
            .partners
            .entry(partner.clone())
            .or_insert_with(|| Partner { have: PieceSet::empty(have.pieces()), in_flight: 0 });
        let before = std::mem::replace(&mut known.have, have.clone());
        for piece in before.iter() {
            self.availability[piece.as_usize()] -= 1;
        }
        for piece in have.iter() {
            self.availability[piece.as_usize()] += 1;
        }
    }

    /// `partner` is not to be asked any more. Fetches that are under way end on their own.
    pub(crate) fn handle_partner_gone(&mut self, partner: &HostId) {
        if let Some(gone) = self.partners.remove(partner) {
            for piece in gone.have.iter() {
                self.availability[piece.as_usize()] -= 1;
            }
        }
    }

    /// The right to go to the origin came or went.
    pub(crate) fn handle_right(&mut self, may_ask: MayAsk) {
        self.may_ask = may_ask;
        if may_ask == MayAsk::No {
            let going = self.runs.iter_mut().filter(|(_, run)| !run.stopping);
            self.stopped.extend(going.map(|(id, run)| {
                run.stopping = true;
                *id
            }));
        }
    }

    /// The origin has already begun to send these pieces: the run of the first request, which `poll_action` did not start.
    /// It passes over what is not wanted (an origin without ranges sends everything), and goes on as long as they are
    /// wanted and missing; `None` when none is.
    pub(crate) fn adopt_run(&mut self, carried: Range<u32>) -> Option<(RunId, Range<u32>)> {
        let fits = |piece: &u32| {
            self.wanted.contains(PieceIndex::new(*piece)) && self.is_missing(PieceIndex::new(*piece))
        };
        let mut fitting = carried.skip_while(|piece| !fits(piece)).take_while(fits);
        let first = fitting.next()?;
        let pieces = first..fitting.last().unwrap_or(first) + 1;
        Some((self.start_run(pieces.clone()), pieces))
    }

    /// `piece` is on disk, and matches its hash where it came from a partner.
    pub(crate) fn handle_piece(&mut self, piece: PieceIndex, partner: Option<&HostId>) {
        self.land(partner);
        if let Some(Carrier::Origin(run)) = self.flight.remove(&piece)
            && let Some(run) = self.runs.get_mut(&run)
        {
            run.next = run.next.max(piece.get() + 1);
        }
        self.hashed.insert(piece);
        self.have.insert(piece);
    }

    /// `piece` did not come from `partner`: it is missing again.
    pub(crate) fn handle_fetch_failed(&mut self, piece: PieceIndex, partner: &HostId) {
        self.land(Some(partner));
        if self.flight.get(&piece) == Some(&Carrier::Partner) {
            self.flight.remove(&piece);
        }
    }

    /// An origin run is over, at its end or before: what it did not bring is missing again.
    pub(crate) fn handle_run_ended(&mut self, run: RunId) {
        self.runs.remove(&run);
        self.flight.retain(|_, carrier| *carrier != Carrier::Origin(run));
    }

    /// The next thing to do, if there is one now.
    pub(crate) fn poll_action(&mut self, rng: &mut impl Rng) -> Option<Action> {
        if let Some(run) = self.stopped.pop() {
            return Some(Action::StopOrigin { run });
        }
        if let Some((run, end)) = self.shortened.pop() {
            return Some(Action::ShortenOrigin { run, end });
        }
        self.poll_origin().or_else(|| self.poll_partner(rng))
    }

    fn poll_origin(&mut self) -> Option<Action> {
        if self.may_ask != MayAsk::Now || self.runs.len() >= ORIGIN_RUNS {
            return None;
        }
        let only_origin =
            |swarm: &Self, piece| swarm.wanted.contains(piece) && swarm.is_only_at_origin(piece);
        // Beside a run, another one is started only for a reader that waits.
        let first = if self.runs.is_empty() {
            self.in_order().find(|piece| only_origin(self, *piece))?
        } else {
            Some(self.cursor).filter(|piece| only_origin(self, *piece))?
        };
        let rest = first.get()..self.have.pieces();
        let end = rest.take_while(|piece| only_origin(self, PieceIndex::new(*piece))).last()? + 1;
        let pieces = first.get()..end;
        Some(Action::FetchOrigin { run: self.start_run(pieces.clone()), pieces })
    }

    fn start_run(&mut self, pieces: Range<u32>) -> RunId {
        let id = RunId(self.next_run);
        self.next_run += 1;
        self.flight.extend(pieces.clone().map(|piece| (PieceIndex::new(piece), Carrier::Origin(id))));
        self.runs.insert(id, Run { next: pieces.start, end: pieces.end, stopping: false });
        id
    }

    fn poll_partner(&mut self, rng: &mut impl Rng) -> Option<Action> {
        let in_flight: u32 = self.partners.values().map(|partner| partner.in_flight).sum();
        if in_flight >= TOTAL {
            return None;
        }
        let askable = |piece: &PieceIndex| self.is_missing(*piece) && self.is_askable(*piece);
        let wanted = || self.in_order().filter(|piece| self.wanted.contains(*piece));
        let window = wanted().filter(|piece| !self.have.contains(*piece)).take(WINDOW as usize).find(askable);
        let piece = window.or_else(|| {
            let rarest = wanted().filter(askable).map(|piece| self.availability[piece.as_usize()]).min()?;
            let ties: Vec<PieceIndex> = wanted()
                .filter(askable)
                .filter(|piece| self.availability[piece.as_usize()] == rarest)
                .collect();
            ties.get(rng.random_range(0..ties.len())).copied()
        })?;
        let free = |partner: &Partner| partner.in_flight < PER_PARTNER && partner.have.contains(piece);
        let least =
            self.partners.values().filter(|partner| free(partner)).map(|partner| partner.in_flight).min()?;
        let mut ties: Vec<_> = self
            .partners
            .iter_mut()
            .filter(|(_, partner)| partner.in_flight == least && partner.have.contains(piece))
            .collect();
        let chosen = rng.random_range(0..ties.len());
        let (id, partner) = ties.swap_remove(chosen);
        partner.in_flight += 1;
        let partner = id.clone();
        self.flight.insert(piece, Carrier::Partner);
        Some(Action::FetchPeer { partner, piece })
    }

    /// Every piece, from the cursor on and then from the start.
    fn in_order(&self) -> impl Iterator<Item = PieceIndex> + use<> {
        let (cursor, pieces) = (self.cursor.get(), self.have.pieces());
        (cursor..pieces).chain(0..cursor).map(PieceIndex::new)
    }

    fn is_missing(&self, piece: PieceIndex) -> bool {
        !self.have.contains(piece) && !self.flight.contains_key(&piece)
    }

    /// Whether it is missing and nobody else is known to have it.
    fn is_only_at_origin(&self, piece: PieceIndex) -> bool {
        self.is_missing(piece) && !self.is_available(piece) && !self.promised.contains(piece)
    }

    /// Whether a partner has it and it could be checked.
    fn is_available(&self, piece: PieceIndex) -> bool {
        self.hashed.contains(piece) && self.availability[piece.as_usize()] > 0
    }

    /// Whether it could be asked of a partner now.
    fn is_askable(&self, piece: PieceIndex) -> bool {
        self.is_available(piece)
            && self
                .partners
                .values()
                .any(|partner| partner.in_flight < PER_PARTNER && partner.have.contains(piece))
    }

    fn land(&mut self, partner: Option<&HostId>) {
        if let Some(partner) = partner.and_then(|partner| self.partners.get_mut(partner)) {
            partner.in_flight = partner.in_flight.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    fn host(n: u32) -> HostId {
        format!("host-{n}").parse().unwrap()
    }

    fn piece(n: u32) -> PieceIndex {
        PieceIndex::new(n)
    }

    fn set(pieces: u32, of: impl IntoIterator<Item = u32>) -> PieceSet {
        let mut set = PieceSet::empty(pieces);
        set.extend(of.into_iter().map(PieceIndex::new));
        set
    }

    fn wants_all(pieces: u32) -> Swarm {
        let mut swarm = Swarm::new(PieceSet::empty(pieces));
        swarm.set_wanted(PieceSet::full(pieces));
        swarm
    }

    fn rng() -> SmallRng {
        SmallRng::seed_from_u64(7)
    }

    fn drain(swarm: &mut Swarm) -> Vec<Action> {
        let mut rng = rng();
        std::iter::from_fn(|| swarm.poll_action(&mut rng)).collect()
    }

    #[test]
    fn without_a_right_or_a_partner_nothing_happens() {
        assert_eq!(drain(&mut wants_all(8)), vec![]);
    }

    #[test]
    fn the_holder_of_the_right_fetches_what_nobody_has_in_one_run() {
        let mut swarm = wants_all(8);
        swarm.handle_right(MayAsk::Now);
        assert!(matches!(&drain(&mut swarm)[..], [Action::FetchOrigin { pieces, .. }] if *pieces == (0..8)));
    }

    #[test]
    fn what_a_partner_has_is_not_asked_of_the_origin() {
        let mut swarm = wants_all(8);
        (2..4).for_each(|n| swarm.handle_hash(piece(n)));
        swarm.handle_have(&host(1), set(8, 2..6));
        swarm.handle_right(MayAsk::Now);
        let actions = drain(&mut swarm);
        assert!(matches!(&actions[0], Action::FetchOrigin { pieces, .. } if *pieces == (0..2)));
        let from_partner: Vec<_> = actions[1..]
            .iter()
            .map(|action| match action {
                Action::FetchPeer { piece, .. } => piece.get(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(from_partner, vec![2, 3], "4 and 5 have no known hash");
    }

    #[test]
    fn what_somebody_is_said_to_have_is_not_asked_of_the_origin_at_once() {
        let mut swarm = wants_all(4);
        swarm.handle_hash(piece(1));
        swarm.handle_right(MayAsk::Now);
        assert!(swarm.awaits_promise());
        assert!(matches!(&drain(&mut swarm)[..], [Action::FetchOrigin { pieces, .. }] if *pieces == (0..1)));
        swarm.handle_have(&host(1), set(4, [1]));
        assert!(!swarm.awaits_promise());
        assert!(matches!(&drain(&mut swarm)[..], [Action::FetchPeer { .. }]));
        swarm.handle_hash(piece(3));
        swarm.handle_promises_broken();
        swarm.handle_hash(piece(3));
        assert!(!swarm.awaits_promise() && swarm.needs_origin());
    }

    #[test]
    fn the_rarest_piece_is_taken_after_the_window() {
        let mut swarm = wants_all(40);
        (0..40).for_each(|n| swarm.handle_hash(piece(n)));
        for n in 0..4 {
            swarm.handle_have(&host(n), set(40, (0..40).filter(|p| *p != 33 || n == 2)));
        }
        let asked: Vec<u32> = drain(&mut swarm)
            .into_iter()
            .map(|action| match action {
                Action::FetchPeer { piece, .. } => piece.get(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(asked[..4], [0, 1, 2, 3]);
        assert_eq!(asked[4], 33);
        assert_eq!(asked.len(), 12, "four partners, three each");
    }

    #[test]
    fn a_reader_far_ahead_of_a_run_gets_one_of_its_own() {
        let mut swarm = wants_all(100);
        swarm.handle_right(MayAsk::Now);
        let Some(Action::FetchOrigin { run, .. }) = swarm.poll_action(&mut rng()) else { panic!() };
        swarm.handle_waiting(piece(1));
        assert_eq!(drain(&mut swarm), vec![], "the run is nearly there");
        swarm.handle_waiting(piece(50));
        let actions = drain(&mut swarm);
        assert_eq!(actions[0], Action::ShortenOrigin { run, end: 50 });
        assert!(matches!(&actions[1..], [Action::FetchOrigin { pieces, .. }] if *pieces == (50..100)));
    }

    #[test]
    fn what_a_broken_run_did_not_bring_is_fetched_again() {
        let mut swarm = wants_all(4);
        swarm.handle_right(MayAsk::Now);
        let Some(Action::FetchOrigin { run, .. }) = swarm.poll_action(&mut rng()) else { panic!() };
        swarm.handle_piece(piece(0), None);
        swarm.handle_run_ended(run);
        assert!(matches!(&drain(&mut swarm)[..], [Action::FetchOrigin { pieces, .. }] if *pieces == (1..4)));
    }

    #[test]
    fn when_the_right_goes_the_run_stops() {
        let mut swarm = wants_all(4);
        swarm.handle_right(MayAsk::Now);
        let Some(Action::FetchOrigin { run, .. }) = swarm.poll_action(&mut rng()) else { panic!() };
        swarm.handle_have(&host(1), PieceSet::full(4));
        (0..4).for_each(|n| swarm.handle_hash(piece(n)));
        swarm.handle_right(MayAsk::Later);
        assert_eq!(drain(&mut swarm), vec![], "it may go on");
        swarm.handle_right(MayAsk::No);
        assert_eq!(drain(&mut swarm), vec![Action::StopOrigin { run }], "it writes into its pieces still");
        swarm.handle_run_ended(run);
        assert!(!swarm.asks_origin());
        assert_eq!(drain(&mut swarm).len(), 3);
    }

    #[test]
    fn a_run_that_has_gone_further_keeps_what_it_has_begun() {
        let mut swarm = wants_all(9);
        swarm.handle_right(MayAsk::Now);
        let Some(Action::FetchOrigin { run, .. }) = swarm.poll_action(&mut rng()) else { panic!() };
        swarm.set_wanted(set(9, [0, 8]));
        swarm.set_wanted(set(9, [0, 2, 7]));
        assert_eq!(swarm.poll_action(&mut rng()), Some(Action::ShortenOrigin { run, end: 8 }));
        swarm.set_wanted(set(9, [0, 2]));
        assert_eq!(swarm.poll_action(&mut rng()), Some(Action::ShortenOrigin { run, end: 3 }));
        swarm.handle_overrun(run, 5);
        swarm.set_wanted(PieceSet::full(9));
        let actions = drain(&mut swarm);
        assert_eq!(actions, vec![], "beside a run, another is for a reader that waits");
        swarm.handle_waiting(piece(5));
        let actions = drain(&mut swarm);
        assert!(
            matches!(&actions[..], [Action::FetchOrigin { pieces, .. }] if *pieces == (5..9)),
            "{actions:?}"
        );
    }

    #[test]
    fn a_run_ends_with_the_last_piece_that_somebody_wants() {
        let mut swarm = wants_all(9);
        swarm.handle_right(MayAsk::Now);
        let Some(Action::FetchOrigin { run, .. }) = swarm.poll_action(&mut rng()) else { panic!() };
        swarm.handle_piece(piece(0), None);
        swarm.set_wanted(set(9, [0, 5]));
        assert_eq!(drain(&mut swarm), vec![Action::ShortenOrigin { run, end: 6 }]);
        swarm.set_wanted(PieceSet::empty(9));
        assert_eq!(
            drain(&mut swarm),
            vec![Action::ShortenOrigin { run, end: 2 }],
            "the arriving piece is finished"
        );
    }

    #[test]
    fn a_failed_fetch_is_tried_elsewhere() {
        let mut swarm = wants_all(1);
        swarm.handle_hash(piece(0));
        swarm.handle_have(&host(1), PieceSet::full(1));
        assert_eq!(drain(&mut swarm), vec![Action::FetchPeer { partner: host(1), piece: piece(0) }]);
        swarm.handle_partner_gone(&host(1));
        swarm.handle_fetch_failed(piece(0), &host(1));
        assert_eq!(drain(&mut swarm), vec![]);
        swarm.handle_have(&host(2), PieceSet::full(1));
        assert_eq!(drain(&mut swarm), vec![Action::FetchPeer { partner: host(2), piece: piece(0) }]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Have(u32, Vec<u32>),
        Gone(u32),
        Hash(u32),
        Right(MayAsk),
        Wanted(Vec<u32>),
        Waiting(u32),
        Land(usize, bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..5u32, prop::collection::vec(0..24u32, 0..24)).prop_map(|(host, have)| Step::Have(host, have)),
            (0..5u32).prop_map(Step::Gone),
            (0..24u32).prop_map(Step::Hash),
            prop_oneof![Just(MayAsk::No), Just(MayAsk::Later), Just(MayAsk::Now)].prop_map(Step::Right),
            (0..30u32).prop_map(Step::Waiting),
            prop::collection::vec(0..24u32, 0..24).prop_map(Step::Wanted),
            (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(at, ok)| Step::Land(at.index(64), ok)),
        ]
    }

    proptest! {
        /// Whatever happens: no piece is asked twice at once, and with the right to ask the origin and no failures at the
        /// end, the download completes.
        #[test]
        fn every_piece_is_in_one_state_and_progress_happens(steps in prop::collection::vec(step(), 0..120)) {
            let mut swarm = wants_all(24);
            let mut rng = rng();
            let mut peers: Vec<(HostId, PieceIndex)> = Vec::new();
            let mut runs: BTreeMap<RunId, Going> = BTreeMap::new();
            let finish = [Step::Right(MayAsk::Now), Step::Wanted((0..24).collect())];
            for step in steps.into_iter().chain(finish) {
                match step {
                    Step::Have(n, have) => swarm.handle_have(&host(n), set(24, have)),
                    Step::Gone(n) => swarm.handle_partner_gone(&host(n)),
                    Step::Hash(n) => swarm.handle_hash(piece(n)),
                    Step::Right(right) => swarm.handle_right(right),
                    Step::Waiting(n) => swarm.handle_waiting(piece(n)),
                    Step::Wanted(pieces) => swarm.set_wanted(set(24, pieces)),
                    Step::Land(at, ok) if !peers.is_empty() => {
                        let (partner, piece) = peers.swap_remove(at % peers.len());
                        if ok { swarm.handle_piece(piece, Some(&partner)) } else { swarm.handle_fetch_failed(piece, &partner) }
                    }
                    Step::Land(at, ok) => {
                        let Some(run) = runs.keys().nth(at % runs.len().max(1)).copied() else { continue };
                        // Odd places stand for a run that is ahead of what the swarm has heard.
                        let silent = at % 2 == 1;
                        match runs.get_mut(&run) {
                            Some(going) if ok && silent && going.taken < going.end => going.taken += 1,
                            Some(going) if ok && going.next < going.end => {
                                going.taken = going.taken.max(going.next + 1);
                                swarm.handle_piece(piece(going.next), None);
                                going.next += 1;
                            }
                            _ => { runs.remove(&run); swarm.handle_run_ended(run); }
                        }
                    }
                }
                follow(&mut swarm, &mut rng, &mut peers, &mut runs)?;
            }
            for _ in 0..200 {
                swarm.handle_promises_broken();
                for (partner, piece) in std::mem::take(&mut peers) {
                    swarm.handle_piece(piece, Some(&partner));
                }
                for (run, going) in std::mem::take(&mut runs) {
                    (going.next..going.end).for_each(|next| swarm.handle_piece(piece(next), None));
                    swarm.handle_run_ended(run);
                }
                follow(&mut swarm, &mut rng, &mut peers, &mut runs)?;
            }
            prop_assert!(swarm.is_complete(), "{swarm:?}");
        }
    }

    /// A run as the one who carries it out knows it.
    struct Going {
        next: u32,
        /// Pieces before this one are written, or being written.
        taken: u32,
        end: u32,
    }

    fn follow(
        swarm: &mut Swarm,
        rng: &mut SmallRng,
        peers: &mut Vec<(HostId, PieceIndex)>,
        runs: &mut BTreeMap<RunId, Going>,
    ) -> Result<(), TestCaseError> {
        while let Some(action) = swarm.poll_action(rng) {
            match action {
                Action::FetchPeer { partner, piece } => {
                    prop_assert!(!swarm.have().contains(piece));
                    prop_assert!(peers.iter().all(|(_, other)| *other != piece));
                    prop_assert!(runs.values().all(|run| !(run.next..run.end).contains(&piece.get())));
                    peers.push((partner, piece));
                }
                Action::FetchOrigin { run, pieces } => {
                    for next in pieces.clone() {
                        prop_assert!(!swarm.have().contains(piece(next)));
                        prop_assert!(peers.iter().all(|(_, other)| other.get() != next));
                        prop_assert!(runs.values().all(|run| !(run.next..run.end).contains(&next)));
                    }
                    runs.insert(run, Going { next: pieces.start, taken: pieces.start, end: pieces.end });
                }
                Action::ShortenOrigin { run, end } => {
                    if let Some(going) = runs.get_mut(&run) {
                        going.end = going.end.min(end.max(going.taken));
                        swarm.handle_overrun(run, going.end);
                    }
                }
                // It ends in its own time, and brings what it has taken.
                Action::StopOrigin { run } => {
                    if let Some(going) = runs.get_mut(&run) {
                        going.end = going.taken;
                    }
                }
            }
        }
        Ok(())
    }
}
