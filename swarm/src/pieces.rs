//! [`Pieces`]: the state of every piece of one download.
//!
//! Invariant: a piece is in exactly one of MISSING, IN_FLIGHT (from partners, or within one origin run) and HAVE.
//! [`Pieces::take`] is the only way from MISSING to IN_FLIGHT, [`Pieces::release`] the only way back, and
//! [`Pieces::complete`] the only way to HAVE, from which none leads back. `open` is always what may be asked of a partner:
//! wanted, MISSING, and with a known hash, so that what a lying partner sends never gets further than this host's disk.

use crate::action::RunId;
use darter_protocol::{PieceIndex, PieceSet};
use std::collections::BTreeMap;

/// Who is bringing a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carrier {
    Partner,
    Origin(RunId),
}

#[derive(Debug)]
pub(crate) struct Pieces {
    pub(crate) have: PieceSet,
    pub(crate) wanted: PieceSet,
    /// Pieces whose hash is known.
    pub(crate) hashed: PieceSet,
    /// Those of them that somebody has fetched, as their hash says, and who that is may show any moment.
    pub(crate) promised: PieceSet,
    pub(crate) open: PieceSet,
    flight: BTreeMap<PieceIndex, Carrier>,
    /// How many partners have each piece.
    pub(crate) availability: Vec<u16>,
}

impl Pieces {
    pub(crate) fn new(have: PieceSet) -> Self {
        let pieces = have.pieces();
        Self {
            wanted: PieceSet::empty(pieces),
            hashed: have.clone(),
            promised: PieceSet::empty(pieces),
            open: PieceSet::empty(pieces),
            flight: BTreeMap::new(),
            availability: vec![0; pieces as usize],
            have,
        }
    }

    pub(crate) fn count(&self) -> u32 {
        self.have.pieces()
    }

    pub(crate) fn carrier(&self, piece: PieceIndex) -> Option<Carrier> {
        self.flight.get(&piece).copied()
    }

    pub(crate) fn is_missing(&self, piece: PieceIndex) -> bool {
        !self.have.contains(piece) && !self.flight.contains_key(&piece)
    }

    /// Whether a partner has it and it could be checked.
    pub(crate) fn is_available(&self, piece: PieceIndex) -> bool {
        self.hashed.contains(piece) && self.availability[piece.as_usize()] > 0
    }

    /// Whether it is missing and nobody else is known to have it.
    pub(crate) fn is_only_at_origin(&self, piece: PieceIndex) -> bool {
        self.is_missing(piece) && !self.is_available(piece) && !self.promised.contains(piece)
    }

    /// Every piece, from `cursor` on and then from the start.
    pub(crate) fn in_order(&self, cursor: PieceIndex) -> impl Iterator<Item = PieceIndex> + use<> {
        let (cursor, pieces) = (cursor.get(), self.count());
        (cursor..pieces).chain(0..cursor).map(PieceIndex::new)
    }

    pub(crate) fn take(&mut self, piece: PieceIndex, carrier: Carrier) {
        debug_assert!(self.is_missing(piece), "{piece} is taken twice");
        self.flight.insert(piece, carrier);
        self.refresh(piece);
    }

    /// What `carrier` was bringing is missing again, unless somebody else has it in hand.
    pub(crate) fn release(&mut self, piece: PieceIndex, carrier: Carrier) {
        if self.carrier(piece) == Some(carrier) {
            self.flight.remove(&piece);
            self.refresh(piece);
        }
    }

    /// All that a run has not brought is missing again.
    pub(crate) fn release_run(&mut self, run: RunId) {
        let left: Vec<PieceIndex> = self
            .flight
            .iter()
            .filter(|(_, by)| **by == Carrier::Origin(run))
            .map(|(piece, _)| *piece)
            .collect();
        left.into_iter().for_each(|piece| self.release(piece, Carrier::Origin(run)));
    }

    /// The piece is there, and right. Gives who was bringing it.
    pub(crate) fn complete(&mut self, piece: PieceIndex) -> Option<Carrier> {
        let carrier = self.flight.remove(&piece);
        self.hashed.insert(piece);
        self.have.insert(piece);
        self.refresh(piece);
        carrier
    }

    /// Returns whether the hash was not known.
    pub(crate) fn insert_hash(&mut self, piece: PieceIndex) -> bool {
        let new = self.hashed.insert(piece);
        if new {
            self.promised.insert(piece);
            self.refresh(piece);
        }
        new
    }

    pub(crate) fn set_wanted(&mut self, wanted: PieceSet) {
        self.wanted = wanted;
        (0..self.count()).for_each(|piece| self.refresh(PieceIndex::new(piece)));
    }

    fn refresh(&mut self, piece: PieceIndex) {
        if self.wanted.contains(piece) && self.hashed.contains(piece) && self.is_missing(piece) {
            self.open.insert(piece);
        } else {
            self.open.remove(piece);
        }
    }
}
