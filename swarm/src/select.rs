//! Which piece to ask of whom.
//!
//! First whoever keeps a place for us, and what he would rather give; then the partners of whom least was asked. Of what a
//! partner has: what a reader waits for and the few pieces after it, then the rarest among all partners, ties by lot: a
//! mesh of rarest-first peers spreads content in little more than the time of one copy, while in-order selection takes
//! several times that. Whoever has something that no other partner has is asked for it however much is under way: it has to
//! leave that one line before anybody can pass it on, and that line must never be idle. When nothing is left that nobody brings, what comes slowly is asked of another as well.
//! What a partner is itself receiving is asked of it after all that it has.

use crate::action::Action;
use crate::partner::{Fetch, Pace, Partner, Standing};
use crate::pieces::Change;
use crate::state::Swarm;
use darter_protocol::{HostId, PieceIndex};
use rand::{Rng, RngExt};
use std::ops::Range;
use std::time::{Duration, Instant};

/// Pieces in flight from one partner: the next request is under way while one is being received.
pub(crate) const PER_PARTNER: u32 = 2;
/// How many fetches there may be beyond the limit when a place is kept for us, and when what is kept is something that
/// nobody else has: passed on, it would come to everybody later.
const FOR_INVITED: usize = 2;
const FOR_FRESH: usize = 4;
/// And when no other partner has it and nothing else is asked of this one, so that its line is never empty. In the simulation the last
/// of a hundred peers, one in ten of which dies, is done at less than 1.3 times one copy, and at 1.31 with one or two; of a thousand
/// at 1.21, and at 1.18 with one.
const FOR_SOLE: usize = 4;

impl Partner {
    /// Whether it could be asked for another piece now.
    pub(crate) fn may_be_asked(&self) -> bool {
        match self.standing {
            Standing::Free => self.in_flight < PER_PARTNER,
            Standing::Waiting { .. } => false,
            Standing::Invited { .. } => true,
        }
    }
}

impl Swarm {
    pub(crate) fn poll_partners(&mut self, now: Instant, rng: &mut impl Rng) -> Option<Action> {
        for partner in self.in_turn(rng) {
            let Some(known) = self.partners.get(&partner) else { continue };
            let (beyond, invited) = match known.standing {
                Standing::Invited { best: Some(_) } => (FOR_FRESH, true),
                Standing::Invited { best: None } => (FOR_INVITED, true),
                _ => (0, false),
            };
            let (unused, room) = (known.in_flight == 0, self.has_room(beyond));
            let choice = if room { self.choose(&partner, rng) } else { None };
            let choice = choice.or_else(|| if room { self.choose_coming(&partner, rng) } else { None });
            let choice = choice.map(|piece| (piece, self.pieces.to_ask(piece, self.waited_in(piece)), false));
            let choice = choice.or_else(|| {
                let sole = if !invited && unused { self.choose_sole(&partner, rng) } else { None };
                sole.map(|piece| (piece, self.pieces.to_ask(piece, self.waited_in(piece)), false))
            });
            let choice = choice.or_else(|| {
                let spare = if room && (invited || unused) { self.choose_spare(&partner) } else { None };
                spare.map(|(piece, blocks)| (piece, blocks, true))
            });
            if let Some(choice) = choice {
                return Some(self.fetch(now, partner, choice));
            }
            if invited {
                if let Some(known) = self.partners.get_mut(&partner) {
                    (known.standing, known.passed) = (Standing::Free, true);
                }
                return Some(Action::Pass { partner });
            }
        }
        None
    }

    /// Whether there may be one more fetch, with so many beyond the limit. What is slow keeps no link busy, and takes no place from
    /// what is not; but there are never more than twice as many.
    fn has_room(&self, beyond: usize) -> bool {
        let slow = self.fetches.iter().filter(|fetch| fetch.pace == Pace::Slow).count();
        self.fetches.len() - slow.min(self.limits.fetches) < self.limits.fetches + beyond
    }

    /// The partners that may be asked, in the order in which they are.
    fn in_turn(&self, rng: &mut impl Rng) -> Vec<HostId> {
        let far = self.border.may_ask();
        let askable = self.partners.iter().filter(|(_, partner)| partner.may_be_asked());
        let idle = self.fetches.is_empty();
        let askable = askable.filter(|(id, partner)| {
            let invited = matches!(partner.standing, Standing::Invited { .. });
            invited || (far || !self.border.is_across(id)) && (idle || !self.border.is_bridge(id))
        });
        let mut turn: Vec<(bool, bool, u32, u32, HostId)> = askable
            .map(|(id, partner)| {
                let invited = matches!(partner.standing, Standing::Invited { .. });
                // What comes over a border is what all of this side waits for.
                (!invited, !self.border.is_across(id), partner.in_flight, rng.random(), id.clone())
            })
            .collect();
        turn.sort_unstable();
        turn.into_iter().map(|(.., id)| id).collect()
    }

    /// What to ask of `partner`.
    fn choose(&self, partner: &HostId, rng: &mut impl Rng) -> Option<PieceIndex> {
        let Partner { have, standing, .. } = self.partners.get(partner)?;
        let open = &self.pieces.open;
        let across = self.border.is_across(partner);
        if let Standing::Invited { best: Some(best) } = standing
            && open.contains(*best)
            && have.contains(*best)
            // Given to nobody else yet, it is whoever's duty it is given to.
            && (!across || self.pieces.is_far(*best))
        {
            return Some(*best);
        }
        let missing = |piece: &PieceIndex| !self.pieces.is_satisfied(*piece);
        let next = self.pieces.in_order(self.cursor).filter(missing).take(self.limits.window);
        let waited = self.waiting.keys().map(|block| self.pieces.layout.piece_of(*block));
        let mut wished = next.chain(waited).filter(|piece| open.contains(*piece) && have.contains(*piece));
        wished.find(|piece| !across || self.may_cross(*piece)).or_else(|| {
            let mut best: Option<(u16, u32, PieceIndex)> = None;
            for piece in open.common(have).filter(|piece| !across || self.may_cross(*piece)) {
                let rarity = self.pieces.availability[piece.as_usize()];
                if best.is_none_or(|(least, _, _)| rarity <= least) {
                    let ticket = (rarity, rng.random(), piece);
                    best = Some(best.map_or(ticket, |best| best.min(ticket)));
                }
            }
            best.map(|(_, _, piece)| piece)
        })
    }

    /// What to ask of `partner` although it has not all of it yet.
    fn choose_coming(&self, partner: &HostId, rng: &mut impl Rng) -> Option<PieceIndex> {
        let coming = &self.partners.get(partner)?.coming;
        if coming.is_empty() || self.border.is_across(partner) {
            return None;
        }
        let tickets = self
            .pieces
            .open
            .common(coming)
            .map(|piece| (self.pieces.availability[piece.as_usize()], rng.random::<u32>(), piece));
        tickets.min().map(|(_, _, piece)| piece)
    }

    /// Whether the piece may be asked of somebody across the border.
    fn may_cross(&self, piece: PieceIndex) -> bool {
        self.pieces.is_far(piece) && self.border.brings(piece)
    }

    /// What to ask of `partner` although enough is under way: something that no other partner has.
    fn choose_sole(&self, partner: &HostId, rng: &mut impl Rng) -> Option<PieceIndex> {
        if self.fetches.len() >= self.limits.fetches + FOR_SOLE {
            return None;
        }
        let have = &self.partners.get(partner)?.have;
        let across = self.border.is_across(partner);
        let sole = self.pieces.open.common(&self.pieces.sole).filter(|piece| have.contains(*piece));
        let sole = sole.filter(|piece| !across || self.may_cross(*piece));
        sole.min_by_key(|_| rng.random::<u32>())
    }

    /// The block of `piece` that a reader waits for, or the one that a reader waited for last, wherever that is.
    fn waited_in(&self, piece: PieceIndex) -> u32 {
        let blocks = self.pieces.layout.blocks_of(piece);
        self.waiting.range(blocks).next().map_or(self.cursor, |(block, _)| *block)
    }

    /// What to ask of `partner` although another was asked for it: what a silent one was to bring, and what comes slowly
    /// when a reader waits for it or nothing else is left to do.
    fn choose_spare(&self, partner: &HostId) -> Option<(PieceIndex, Range<u32>)> {
        let live = || self.fetches.iter().filter(|fetch| !fetch.cancelled);
        if live().filter(|fetch| fetch.spare).count() >= self.limits.spares {
            return None;
        }
        let have = &self.partners.get(partner)?.have;
        let across = self.border.is_across(partner);
        let fits = |fetch: &&Fetch| {
            let late = match fetch.pace {
                Pace::Well => false,
                Pace::Slow => fetch.blocks.contains(&self.cursor) || self.pieces.open.is_empty(),
                Pace::Silent => true,
            };
            late && have.contains(fetch.piece)
                && (!across || self.may_cross(fetch.piece))
                // Also one that was cancelled: the partner would be asked for the same twice at once.
                && self.fetches.iter().filter(|other| other.piece == fetch.piece).count() == 1
                && fetch.partner != *partner
        };
        live()
            .filter(fits)
            // What it has brought and proven need not come again.
            .filter_map(|fetch| Some((fetch, self.pieces.next_gap(fetch.blocks.clone())?)))
            .max_by_key(|(fetch, _)| (fetch.pace, std::cmp::Reverse(fetch.asked)))
            .map(|(fetch, rest)| (fetch.piece, rest))
    }

    fn fetch(
        &mut self,
        now: Instant,
        partner: HostId,
        (piece, blocks, spare): (PieceIndex, Range<u32>, bool),
    ) -> Action {
        if !spare {
            self.pieces.apply(Change::Asked(piece));
        }
        let (mut called, mut comes, mut relayed) = (false, 0, false);
        if let Some(known) = self.partners.get_mut(&partner) {
            known.in_flight += 1;
            comes = known.comes;
            relayed = !known.have.contains(piece);
            called = matches!(known.standing, Standing::Invited { .. });
            known.standing = Standing::Free;
        }
        let look = now + self.look_after();
        let fetch = Fetch {
            partner: partner.clone(),
            piece,
            blocks: blocks.clone(),
            relayed,
            spare,
            asked: now,
            comes,
            alive: now,
            held: Duration::ZERO,
            look,
            pace: Pace::Well,
            cancelled: false,
            forsaken: false,
        };
        self.fetches.push(fetch);
        let awaited = self.waiting.range(blocks.clone()).next().is_some();
        Action::Fetch { partner, piece, blocks, spare, awaited, relayed, called }
    }
}
