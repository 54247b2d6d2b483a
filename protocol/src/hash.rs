//! The BLAKE3 tree: every piece has a chaining value, and all of them together give the hash of the whole.
//!
//! A piece's size is a power of two of at least 1,024 bytes, so a piece is exactly one subtree of the content's BLAKE3
//! tree (BLAKE3 paper, section 2.1). Its [`PieceHash`] is that subtree's chaining value, and the [`Root`] is the plain
//! BLAKE3 hash of the content: what `b3sum` prints. So a node that has learned 32 trusted bytes can check a list of
//! piece hashes that it got from anybody, and each piece by its hash as it comes.

use crate::{PieceIndex, PieceLayout};
use blake3::hazmat::{self, HasherExt, Mode};
use std::fmt;

/// The chaining value of one piece: 32 bytes. For content of a single piece it is the root itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PieceHash([u8; 32]);

/// The BLAKE3 hash of the whole content: 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Root([u8; 32]);

macro_rules! bytes32 {
    ($name:ident, $what:literal) => {
        impl $name {
            #[doc = concat!("The ", $what, "'s bytes, as they travel and as they are stored.")]
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl From<[u8; 32]> for $name {
            fn from(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = std::array::TryFromSliceError;

            fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
                bytes.try_into().map(Self)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                crate::digest::write_hex(f, &self.0)
            }
        }
    };
}

bytes32!(PieceHash, "hash");
bytes32!(Root, "root");

/// Hashes one piece as its bytes arrive, in order.
#[derive(Debug)]
pub struct PieceHasher {
    hasher: blake3::Hasher,
    single: bool,
}

impl PieceHasher {
    /// Starts piece `piece` of content laid out as `layout`.
    pub fn new(layout: &PieceLayout, piece: PieceIndex) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(layout.range(piece).start());
        Self { hasher, single: layout.pieces() == 1 }
    }

    /// Takes the piece's next bytes. Not more than the layout gives the piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    /// The piece's hash. At least one byte must have been taken.
    pub fn finish(&self) -> PieceHash {
        if self.single {
            PieceHash(*self.hasher.finalize().as_bytes())
        } else {
            PieceHash(self.hasher.finalize_non_root())
        }
    }
}

/// The hash of the whole content, from the hashes of all its pieces in order. `hashes` must have one for every piece.
pub fn root(layout: &PieceLayout, hashes: &[PieceHash]) -> Root {
    debug_assert_eq!(hashes.len(), layout.pieces() as usize);
    match hashes {
        [] => Root(*blake3::hash(b"").as_bytes()),
        [only] => Root(only.0),
        _ => {
            let (left, right) = hashes.split_at(left_pieces(hashes.len()));
            Root(*hazmat::merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash).as_bytes())
        }
    }
}

fn subtree(hashes: &[PieceHash]) -> hazmat::ChainingValue {
    if let [only] = hashes {
        return only.0;
    }
    let (left, right) = hashes.split_at(left_pieces(hashes.len()));
    hazmat::merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
}

/// A BLAKE3 tree's left side is the largest power of two that leaves the right side something.
fn left_pieces(pieces: usize) -> usize {
    pieces.next_power_of_two() / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_what_b3sum_prints() {
        const MIB: usize = 1 << 20;
        for length in [0, 1, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 8 * MIB, 12 * MIB + 5, 29 * MIB] {
            let content: Vec<u8> = (0..length).map(|i| (i / 7 + i / 4096) as u8).collect();
            let layout = PieceLayout::new(length as u64).unwrap();
            let hashes: Vec<PieceHash> = layout
                .iter()
                .map(|piece| {
                    let range = layout.range(piece);
                    let mut hasher = PieceHasher::new(&layout, piece);
                    for part in content[range.start() as usize..range.end() as usize].chunks(100_001) {
                        hasher.update(part);
                    }
                    hasher.finish()
                })
                .collect();
            assert_eq!(root(&layout, &hashes).as_bytes(), blake3::hash(&content).as_bytes(), "{length}");
        }
    }
}
