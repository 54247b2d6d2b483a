//! [`Swarm`]: the state of one download, and what may happen to it.

use crate::action::{Action, MayAsk};
use crate::border::{Border, Bridge, Side};
use crate::origin::RUNS;
use crate::partner::{ASK_AGAIN, ASK_SOON, Fetch, Partner, Standing, VAIN_RELAYS};
use crate::pieces::{Change, Pieces};
use crate::watch::Typical;
use darter_protocol::{BlockSet, HostId, PieceIndex, PieceLayout, PieceSet};
use rand::Rng;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Instant;

/// How much a download may have under way.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Fetches from all partners at once.
    pub fetches: usize,
    /// Of these, how many may go beside another fetch of the same piece. Each may keep a piece in memory.
    pub spares: usize,
    /// How many pieces from a reader's position are taken in order rather than by rarity.
    pub window: usize,
    /// Whether the pieces that the origin has begun with become whole, whoever still wants them. Others are told of whole
    /// pieces alone, and would ask the origin again for what somebody has of a part.
    pub whole_pieces: bool,
}

impl Default for Limits {
    /// As many fetches as a partner has places, which keep a link busy when some of them are slow; see
    /// [`Uploads::PLACES`](crate::Uploads::PLACES). Up to four spares are 4 MiB at 1 MiB a piece.
    fn default() -> Self {
        Self { fetches: 6, spares: 4, window: 2, whole_pieces: false }
    }
}

/// One download: what it misses, who has it, and what is under way. See the crate's documentation.
#[derive(Debug)]
pub struct Swarm {
    pub(crate) limits: Limits,
    pub(crate) pieces: Pieces,
    /// What somebody wants.
    wished: BlockSet,
    /// The pieces that the origin has begun with and that are to be whole.
    begun: BlockSet,
    pub(crate) partners: BTreeMap<HostId, Partner>,
    pub(crate) border: Border,
    pub(crate) fetches: Vec<Fetch>,
    pub(crate) next_run: u64,
    /// Runs from the origin at the same time, at most.
    pub(crate) most_runs: usize,
    pub(crate) may_ask: MayAsk,
    /// The origin does not honour ranges.
    pub(crate) in_order: bool,
    /// The block that a reader waited for last.
    pub(crate) cursor: u32,
    /// The blocks that readers wait for, and before which block each of them ends. Those that came are still among them,
    /// until it is looked at.
    pub(crate) waiting: BTreeMap<u32, u32>,
    /// What has been decided and not polled.
    pub(crate) due: VecDeque<Action>,
    pub(crate) typical: Typical,
    /// Nothing has happened since no partner could be asked.
    pub(crate) idle: bool,
}

impl Swarm {
    /// A download of content of this layout, of which the pieces that this host has are there already, and these blocks.
    pub fn new(layout: PieceLayout, have: PieceSet, blocks: BlockSet, limits: Limits) -> Self {
        Self {
            limits,
            border: Border::new(layout.pieces()),
            pieces: Pieces::new(layout, have, blocks),
            wished: BlockSet::default(),
            begun: BlockSet::default(),
            partners: BTreeMap::new(),
            fetches: Vec::new(),
            next_run: 0,
            most_runs: RUNS,
            may_ask: MayAsk::No,
            in_order: false,
            cursor: 0,
            waiting: BTreeMap::new(),
            due: VecDeque::new(),
            typical: Typical::default(),
            idle: false,
        }
    }

    /// How the content is cut.
    pub fn layout(&self) -> &PieceLayout {
        &self.pieces.layout
    }

    /// The pieces that are there.
    pub fn have(&self) -> &PieceSet {
        &self.pieces.have
    }

    /// The blocks that are there, those of these pieces too.
    pub fn there(&self) -> &BlockSet {
        &self.pieces.there
    }

    /// Whether every wanted block is there.
    pub fn is_satisfied(&self) -> bool {
        self.pieces.wanted.runs().all(|blocks| self.pieces.there.contains_all(&blocks))
    }

    /// Whether all of the content is wanted.
    pub fn wants_all(&self) -> bool {
        self.pieces.wanted.contains_all(&(0..self.pieces.layout.blocks()))
    }

    /// Whether all of the content is there.
    pub fn is_complete(&self) -> bool {
        self.pieces.have.is_full()
    }

    /// Whether some wanted piece is not asked of the origin only because somebody is said to have it.
    pub fn awaits_promise(&self) -> bool {
        let pieces = &self.pieces;
        pieces.open.common(&pieces.promised).any(|piece| !pieces.is_available(piece))
    }

    /// Nobody has shown who has what is promised: it is asked of the origin from now on.
    pub fn handle_promises_broken(&mut self) {
        self.pieces.promised = PieceSet::empty(self.pieces.count());
    }

    /// Replaces what is wanted. A run from the origin ends after the last of its blocks that somebody still wants: a
    /// client that reads from an open-ended range and goes away must not cost the rest of the content.
    pub fn set_wanted(&mut self, wanted: BlockSet) {
        debug_assert!(wanted.last_before(u32::MAX).is_none_or(|last| last < self.pieces.layout.blocks()));
        if wanted != self.wished {
            self.wished = wanted;
            self.want();
            self.shorten_runs();
        }
    }

    /// The origin begins with `piece`.
    pub(crate) fn begin(&mut self, piece: PieceIndex) {
        let blocks = self.pieces.layout.blocks_of(piece);
        if self.limits.whole_pieces && !self.begun.contains_all(&blocks) {
            self.begun.insert(blocks);
            self.want();
        }
    }

    pub(crate) fn want(&mut self) {
        let mut wanted = self.wished.clone();
        wanted.extend(self.begun.runs());
        if let Some(last) = wanted.last_before(u32::MAX).filter(|_| self.in_order) {
            // It passes by in any case.
            wanted.insert(0..last + 1);
        }
        self.pieces.set_wanted(wanted);
        self.idle = false;
    }

    /// A reader waits for `block`, and reads on to the one before `until`, if that comes.
    pub fn handle_waiting(&mut self, block: u32, until: u32) {
        if block < self.pieces.layout.blocks() {
            let until = until.clamp(block + 1, self.pieces.layout.blocks());
            self.waiting.entry(block).and_modify(|end| *end = until.max(*end)).or_insert(until);
            self.cursor = block;
            self.idle = false;
            self.hurry_run(block);
        }
    }

    /// The hash of `piece` is known: somebody has it.
    pub fn handle_hash(&mut self, piece: PieceIndex) {
        let is_there = || {
            self.pieces.availability[piece.as_usize()] > 0
                || self.partners.values().any(|partner| partner.coming.contains(piece))
        };
        if !is_there() {
            self.pieces.insert_hash(piece);
        } else if self.pieces.insert_hash(piece) {
            self.idle = false;
        }
    }

    /// What `partner` has; replaces what it had before. Whoever is not a partner yet becomes one.
    pub fn handle_have(&mut self, partner: &HostId, have: PieceSet) {
        if have.pieces() != self.pieces.count() {
            return;
        }
        // One that comes back may still have fetches of its former life under way.
        let under_way = || self.fetches.iter().filter(|fetch| fetch.partner == *partner).count() as u32;
        let new = || Partner::new(have.pieces(), under_way());
        let known = self.partners.entry(partner.clone()).or_insert_with(new);
        let before = std::mem::replace(&mut known.have, have.clone());
        known.coming = PieceSet::empty(have.pieces());
        let across = self.border.is_across(partner);
        before.iter().for_each(|piece| self.pieces.hidden(piece, across));
        have.iter().for_each(|piece| self.pieces.shown(piece, across));
        self.idle = false;
    }

    /// Where `partner` stands: said before what it has, and when it changes.
    pub fn handle_side(&mut self, partner: &HostId, side: Side) {
        if !self.border.set_side(partner, side) {
            return;
        }
        let across = side == Side::Across;
        for piece in self.partners.get(partner).iter().flat_map(|known| known.have.iter()) {
            self.pieces.hidden(piece, !across);
            self.pieces.shown(piece, across);
        }
        self.idle = false;
    }

    /// Whether it is said to stand across a border.
    pub fn is_across(&self, partner: &HostId) -> bool {
        self.border.is_across(partner)
    }

    /// Whether this host is a bridge of its zone, and which.
    pub fn handle_bridge(&mut self, bridge: Option<Bridge>) {
        self.border.set_bridge(bridge);
        self.idle = false;
    }

    /// `partner` has these, too. One that is no partner is not heard.
    pub fn handle_more(&mut self, partner: &HostId, more: impl IntoIterator<Item = PieceIndex>) {
        let Some(known) = self.partners.get_mut(partner) else { return };
        let across = self.border.is_across(partner);
        for piece in more {
            if known.have.insert(piece) {
                known.coming.remove(piece);
                self.pieces.shown(piece, across);
                if known.may_be_asked() && self.pieces.open.contains(piece) {
                    self.idle = false;
                }
            }
        }
    }

    /// `partner` is receiving `piece`, and passes on what it has of it. That makes nobody a holder of it: the piece is as rare as
    /// before, and where nobody has it, it may be lost. One that is no partner is not heard.
    pub fn handle_coming(&mut self, partner: &HostId, piece: PieceIndex) {
        let Some(known) = self.partners.get_mut(partner) else { return };
        if piece.get() < self.pieces.count()
            && known.vain_relays < VAIN_RELAYS
            && !known.have.contains(piece)
            && known.coming.insert(piece)
            && known.may_be_asked()
            && self.pieces.open.contains(piece)
        {
            self.idle = false;
        }
    }

    /// `partner` is not to be asked any more. What it sends still is taken, for as long as it comes without a pause.
    pub fn handle_partner_gone(&mut self, partner: &HostId) {
        for fetch in self.fetches.iter_mut().filter(|fetch| fetch.partner == *partner) {
            fetch.forsaken = true;
        }
        if let Some(gone) = self.partners.remove(partner) {
            let across = self.border.is_across(partner);
            gone.have.iter().for_each(|piece| self.pieces.hidden(piece, across));
            self.border.set_side(partner, Side::Here);
            // Another may be the only one by now who has something.
            self.idle = false;
        }
    }

    /// `partner` has no place for us and will say when it has. The piece is for others to bring. It has said so already if it has
    /// said to come since it was asked: that goes another way than the answer, and may be here first. Waited for, it would come
    /// no more: a daemon that had given parts away once sent 16 MiB in 70 s, at 80 Mbit/s.
    pub fn handle_busy(&mut self, now: Instant, partner: &HostId, piece: PieceIndex) {
        let fetch = self.end_fetch(partner, piece);
        if let Some(partner) = self.partners.get_mut(partner)
            && partner.standing == Standing::Free
        {
            let has_called = fetch.is_some_and(|fetch| fetch.comes != partner.comes);
            let pause = match (has_called, partner.passed) {
                (false, _) => ASK_AGAIN,
                (true, true) => ASK_SOON,
                (true, false) => return,
            };
            partner.standing = Standing::Waiting { until: now + pause };
        }
    }

    /// `partner` keeps a place for us, and would rather give the piece `best`.
    pub fn handle_come(&mut self, partner: &HostId, best: Option<PieceIndex>) {
        if let Some(partner) = self.partners.get_mut(partner) {
            partner.standing = Standing::Invited { best };
            (partner.comes, partner.passed) = (partner.comes.wrapping_add(1), false);
            self.idle = false;
        }
    }

    /// `piece` is on disk, and matches its hash where it came from a partner.
    pub fn handle_piece(&mut self, now: Instant, piece: PieceIndex, partner: Option<&HostId>) {
        if let Some(partner) = partner {
            self.delivered(now, partner, piece);
        }
        self.pieces.apply(Change::Complete(piece));
        self.cancel_others(now, piece);
        self.idle = false;
    }

    /// `blocks` of one piece are on disk, and match their hashes where they came from a partner. Whoever tells this for the
    /// last blocks of a piece tells [`Self::handle_piece`] next.
    pub fn handle_blocks(&mut self, now: Instant, blocks: Range<u32>, partner: Option<&HostId>) {
        let piece = self.pieces.layout.piece_of(blocks.start);
        if let Some(partner) = partner {
            self.delivered(now, partner, piece);
            self.cancel_others(now, piece);
        } else {
            self.begin(piece);
        }
        self.pieces.apply(Change::Came(blocks));
        self.idle = false;
    }

    /// The first `blocks` of a fetch that goes on are on disk, and match their hashes. They stay also when its rest does not come.
    pub fn handle_proven(&mut self, blocks: Range<u32>) {
        self.pieces.apply(Change::Came(blocks));
        self.idle = false;
    }

    /// `piece` did not come from `partner`: unless another is bringing it, it is missing again. Gives whether the partner was itself
    /// receiving it when it was asked: then it need not have failed itself, and will not be asked for it again before it has it.
    pub fn handle_fetch_failed(&mut self, piece: PieceIndex, partner: &HostId) -> bool {
        let Some(fetch) = self.end_fetch(partner, piece) else { return false };
        if let Some(known) = self.partners.get_mut(partner).filter(|_| fetch.relayed) {
            known.coming.remove(piece);
            // One that was ended here has been counted, or another was faster.
            known.vain_relays = known.vain_relays.saturating_add(u8::from(!fetch.cancelled));
        }
        fetch.relayed
    }

    /// The next thing to do, if there is one now.
    pub fn poll_action(&mut self, now: Instant, rng: &mut impl Rng) -> Option<Action> {
        if let Some(action) = self.due.pop_front() {
            return Some(action);
        }
        let pieces = &self.pieces;
        self.waiting.retain(|block, _| pieces.wanted.contains(*block) && !pieces.there.contains(*block));
        if let Some(action) = self.poll_origin() {
            return Some(action);
        }
        self.border.wind(now);
        if self.idle {
            return None;
        }
        let action = self.poll_partners(now, rng);
        self.idle = action.is_none();
        action
    }

    /// Takes a fetch out that has ended.
    pub(crate) fn end_fetch(&mut self, partner: &HostId, piece: PieceIndex) -> Option<Fetch> {
        let at = self.fetches.iter().position(|fetch| fetch.piece == piece && fetch.partner == *partner)?;
        let fetch = self.fetches.swap_remove(at);
        if fetch.cancelled {
            // It ended before the driver was told to end it.
            self.due.retain(|action| *action != Action::Cancel { partner: partner.clone(), piece });
        }
        if let Some(partner) = self.partners.get_mut(partner) {
            partner.in_flight -= 1;
        }
        // Whoever else fetches it may write it still.
        if self.fetches.iter().all(|fetch| fetch.piece != piece) {
            self.pieces.apply(Change::Released(piece));
        }
        self.idle = false;
        Some(fetch)
    }
}
