//! [`PieceSet`]: a set of pieces of one task, as a bitmap.

use crate::PieceIndex;
use std::fmt;

/// A set of pieces. Its capacity is the task's number of pieces; what lies beyond is never in it.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct PieceSet {
    words: Vec<u64>,
    pieces: u32,
    count: u32,
}

impl PieceSet {
    /// The empty set for a task of `pieces` pieces.
    pub fn empty(pieces: u32) -> Self {
        Self { words: vec![0; (pieces as usize).div_ceil(64)], pieces, count: 0 }
    }

    /// All pieces of a task of `pieces` pieces.
    pub fn full(pieces: u32) -> Self {
        let mut set = Self::empty(pieces);
        set.extend((0..pieces).map(PieceIndex::new));
        set
    }

    /// The set whose bit `i % 8` of byte `i / 8` says that piece `i` is in it; `None` when the bytes are too few or too
    /// many for `pieces`, or name a piece that does not exist.
    pub fn from_bytes(pieces: u32, bytes: &[u8]) -> Option<Self> {
        if bytes.len() != (pieces as usize).div_ceil(8) {
            return None;
        }
        let mut set = Self::empty(pieces);
        for (at, byte) in bytes.iter().enumerate() {
            set.words[at / 8] |= u64::from(*byte) << (at % 8 * 8);
        }
        let excess = set.words.len() * 64 - pieces as usize;
        if set.words.last().is_some_and(|last| excess > 0 && last >> (64 - excess) != 0) {
            return None;
        }
        set.count = set.words.iter().map(|word| word.count_ones()).sum();
        Some(set)
    }

    /// The set as bytes, as [`Self::from_bytes`] reads them.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.truncate((self.pieces as usize).div_ceil(8));
        bytes
    }

    /// How many pieces the task has.
    pub const fn pieces(&self) -> u32 {
        self.pieces
    }

    /// How many pieces are in the set.
    pub const fn len(&self) -> u32 {
        self.count
    }

    /// Whether no piece is in the set.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether every piece is in the set.
    pub const fn is_full(&self) -> bool {
        self.count == self.pieces
    }

    /// Whether `piece` is in the set.
    pub fn contains(&self, piece: PieceIndex) -> bool {
        piece.get() < self.pieces && self.words[piece.as_usize() / 64] >> (piece.get() % 64) & 1 == 1
    }

    /// Puts `piece` in; `false` when it was in already, or when the task has no such piece.
    pub fn insert(&mut self, piece: PieceIndex) -> bool {
        let new = piece.get() < self.pieces && !self.contains(piece);
        if new {
            self.words[piece.as_usize() / 64] |= 1 << (piece.get() % 64);
            self.count += 1;
        }
        new
    }

    /// Takes `piece` out; `false` when it was not in.
    pub fn remove(&mut self, piece: PieceIndex) -> bool {
        let there = self.contains(piece);
        if there {
            self.words[piece.as_usize() / 64] &= !(1 << (piece.get() % 64));
            self.count -= 1;
        }
        there
    }

    /// The pieces in the set, in order.
    pub fn iter(&self) -> impl Iterator<Item = PieceIndex> + '_ {
        bits(self.words.iter().copied())
    }

    /// The pieces that are in both sets, in order.
    pub fn common<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = PieceIndex> + 'a {
        bits(self.words.iter().zip(&other.words).map(|(a, b)| a & b))
    }
}

/// The pieces whose bits are set.
fn bits(words: impl Iterator<Item = u64>) -> impl Iterator<Item = PieceIndex> {
    words.enumerate().flat_map(|(at, mut rest)| {
        std::iter::from_fn(move || {
            let bit = (rest != 0).then(|| rest.trailing_zeros())?;
            rest &= rest - 1;
            Some(PieceIndex::new(at as u32 * 64 + bit))
        })
    })
}

impl Extend<PieceIndex> for PieceSet {
    fn extend<I: IntoIterator<Item = PieceIndex>>(&mut self, pieces: I) {
        for piece in pieces {
            self.insert(piece);
        }
    }
}

impl fmt::Debug for PieceSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} pieces", self.count, self.pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_does_not_exist_is_never_in() {
        let mut set = PieceSet::empty(65);
        assert!(set.insert(PieceIndex::new(64)));
        assert!(!set.insert(PieceIndex::new(65)));
        assert!(!set.contains(PieceIndex::new(4000)));
        assert_eq!(set.len(), 1);
    }

    #[test]
    fn bytes_with_a_bit_past_the_end_are_refused() {
        assert!(PieceSet::from_bytes(9, &[0xff, 0x01]).unwrap().is_full());
        assert!(PieceSet::from_bytes(9, &[0xff, 0x02]).is_none());
        assert!(PieceSet::from_bytes(9, &[0xff]).is_none());
        assert!(PieceSet::from_bytes(0, &[]).unwrap().is_full());
    }

    #[test]
    fn two_sets_have_in_common_what_is_in_both() {
        let set = |of: &[u32]| {
            let mut set = PieceSet::empty(200);
            set.extend(of.iter().copied().map(PieceIndex::new));
            set
        };
        let common: Vec<u32> =
            set(&[1, 63, 64, 199]).common(&set(&[0, 63, 64, 130, 199])).map(PieceIndex::get).collect();
        assert_eq!(common, [63, 64, 199]);
    }

    proptest! {
        #[test]
        fn it_behaves_like_a_set(pieces in 1u32..300, ops in prop::collection::vec((0u32..310, any::<bool>()), 0..200)) {
            let mut set = PieceSet::empty(pieces);
            let mut model = std::collections::BTreeSet::new();
            for (index, insert) in ops {
                let piece = PieceIndex::new(index);
                if insert {
                    prop_assert_eq!(set.insert(piece), index < pieces && model.insert(index));
                } else {
                    prop_assert_eq!(set.remove(piece), model.remove(&index));
                }
            }
            prop_assert_eq!(set.len() as usize, model.len());
            prop_assert_eq!(set.iter().map(PieceIndex::get).collect::<Vec<_>>(), model.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(PieceSet::from_bytes(pieces, &set.to_bytes()), Some(set));
        }
    }
}
