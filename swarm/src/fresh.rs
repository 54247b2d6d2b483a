//! [`Fresh`]: what this daemon has brought from the origin of one task, and given to nobody yet.
//!
//! Whoever holds the right to go to the origin is the only one who has these pieces. While it gives the one away for the
//! second time, the other is missing to everybody: so a new piece is given before a repeat. It takes exactly one copy out
//! of this daemon until everything is in the mesh, and the mesh does the rest.

use darter_protocol::{PieceIndex, PieceSet};

#[derive(Debug)]
pub(crate) struct Fresh {
    /// Given to nobody in full.
    fresh: PieceSet,
    /// Of these, on their way to somebody, or offered to him.
    offered: PieceSet,
    /// More of them are coming from the origin.
    pub(crate) coming: bool,
    /// This host is a bridge of its zone.
    pub(crate) bringing: bool,
}

impl Fresh {
    pub(crate) fn new(pieces: u32) -> Self {
        Self {
            fresh: PieceSet::empty(pieces),
            offered: PieceSet::empty(pieces),
            coming: false,
            bringing: false,
        }
    }

    pub(crate) fn add(&mut self, piece: PieceIndex) {
        self.fresh.insert(piece);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.fresh.is_empty()
    }

    /// Whether it has not been given to anybody, and is not about to be.
    pub(crate) fn is_unclaimed(&self, piece: PieceIndex) -> bool {
        self.fresh.contains(piece) && !self.offered.contains(piece)
    }

    /// How many nobody has claimed.
    pub(crate) fn unclaimed(&self) -> usize {
        (self.fresh.len() - self.offered.len()) as usize
    }

    /// The first piece that nobody has claimed.
    pub(crate) fn next(&self) -> Option<PieceIndex> {
        self.fresh.iter().find(|piece| !self.offered.contains(*piece))
    }

    pub(crate) fn offer(&mut self, piece: PieceIndex) {
        if self.fresh.contains(piece) {
            self.offered.insert(piece);
        }
    }

    /// The offer is over; with `given`, somebody has all of the piece.
    pub(crate) fn settle(&mut self, piece: PieceIndex, given: bool) {
        self.offered.remove(piece);
        if given {
            self.fresh.remove(piece);
        }
    }
}
