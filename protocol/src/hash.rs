//! The BLAKE3 tree: every piece has a chaining value, and all of them together give the hash of the whole.
//!
//! A piece's size is a power of two of at least 1,024 bytes, so a piece is exactly one subtree of the content's BLAKE3
//! tree (BLAKE3 paper, section 2.1). Its [`PieceHash`] is that subtree's chaining value, and the [`Root`] is the plain
//! BLAKE3 hash of the content: what `b3sum` prints. So a node that has learned 32 trusted bytes can check a list of
//! piece hashes that it got from anybody, and each piece by its hash as it comes.
//!
//! A block is a subtree of its piece in the same way, so that a piece's hash proves a list of its blocks' hashes, and that
//! list each block by itself. Who has hashed all blocks of a piece, in any order, knows the piece's hash.

use crate::{PieceIndex, PieceLayout};
use blake3::hazmat::{self, HasherExt, Mode};
use std::fmt;

/// The chaining value of one piece: 32 bytes. For content of a single piece it is the root itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PieceHash([u8; 32]);

/// The chaining value of one block: 32 bytes. For content of a single block it is the root itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockHash([u8; 32]);

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

impl BlockHash {
    /// From 64 lower-case hexadecimal digits, as `{:?}` writes them; `None` for anything else.
    pub fn from_hex(digits: &str) -> Option<Self> {
        crate::digest::from_hex(digits).map(Self)
    }
}

bytes32!(PieceHash, "hash");
bytes32!(BlockHash, "hash");
bytes32!(Root, "root");

/// Hashes one piece as its bytes arrive, in order.
#[derive(Debug)]
pub struct PieceHasher(Subtree);

impl PieceHasher {
    /// Starts piece `piece` of content laid out as `layout`.
    pub fn new(layout: &PieceLayout, piece: PieceIndex) -> Self {
        Self(Subtree::new(layout.range(piece).start(), layout.pieces() == 1))
    }

    /// Takes the piece's next bytes. Not more than the layout gives the piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.hasher.update(bytes);
    }

    /// The piece's hash. At least one byte must have been taken.
    pub fn finish(&self) -> PieceHash {
        PieceHash(self.0.finish())
    }
}

/// Hashes one block as its bytes arrive, in order.
#[derive(Debug)]
pub struct BlockHasher(Subtree);

impl BlockHasher {
    /// Starts block `block` of content laid out as `layout`.
    pub fn new(layout: &PieceLayout, block: u32) -> Self {
        Self(Subtree::new(layout.start_of(block), layout.blocks() == 1))
    }

    /// Takes the block's next bytes. Not more than the layout gives the block.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.hasher.update(bytes);
    }

    /// The block's hash. At least one byte must have been taken.
    pub fn finish(&self) -> BlockHash {
        BlockHash(self.0.finish())
    }
}

/// A part of the content that is one subtree of its tree; or, alone, the whole tree.
#[derive(Debug)]
struct Subtree {
    hasher: blake3::Hasher,
    whole: bool,
}

impl Subtree {
    fn new(offset: u64, whole: bool) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(offset);
        Self { hasher, whole }
    }

    fn finish(&self) -> [u8; 32] {
        if self.whole { *self.hasher.finalize().as_bytes() } else { self.hasher.finalize_non_root() }
    }
}

/// The hash of a piece of content laid out as `layout`, from the hashes of all its blocks in order. At least one.
pub fn piece(layout: &PieceLayout, blocks: &[BlockHash]) -> PieceHash {
    PieceHash(merge(blocks, layout.pieces() == 1, |block| block.0))
}

/// The hash of the whole content, from the hashes of all its pieces in order. `hashes` must have one for every piece.
pub fn root(layout: &PieceLayout, hashes: &[PieceHash]) -> Root {
    debug_assert_eq!(hashes.len(), layout.pieces() as usize);
    match hashes {
        [] => Root(*blake3::hash(b"").as_bytes()),
        _ => Root(merge(hashes, true, |piece| piece.0)),
    }
}

/// The value above these subtrees, of which there is at least one; with `root`, they are the whole content.
fn merge<T>(subtrees: &[T], root: bool, value: impl Fn(&T) -> hazmat::ChainingValue + Copy) -> [u8; 32] {
    if let [only] = subtrees {
        return value(only);
    }
    let (left, right) = subtrees.split_at(left_side(subtrees.len()));
    let (left, right) = (merge(left, false, value), merge(right, false, value));
    if root {
        *hazmat::merge_subtrees_root(&left, &right, Mode::Hash).as_bytes()
    } else {
        hazmat::merge_subtrees_non_root(&left, &right, Mode::Hash)
    }
}

/// A BLAKE3 tree's left side is the largest power of two that leaves the right side something.
fn left_side(subtrees: usize) -> usize {
    subtrees.next_power_of_two() / 2
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

    #[test]
    fn a_piece_is_the_sum_of_its_blocks() {
        const MIB: usize = 1 << 20;
        const BLOCK: usize = PieceLayout::MIN_BLOCK_SIZE as usize;
        for length in [1, BLOCK, BLOCK + 1, 3 * BLOCK - 7, MIB, MIB + 1, 2 * MIB + 5 * BLOCK + 3] {
            let content: Vec<u8> = (0..length).map(|i| (i / 7 + i / 4096) as u8).collect();
            let layout = PieceLayout::new(length as u64).unwrap();
            for piece in layout.iter() {
                let bytes = |range: crate::ByteRange| &content[range.start() as usize..range.end() as usize];
                let blocks: Vec<BlockHash> = layout
                    .blocks_of(piece)
                    .map(|block| {
                        let mut hasher = BlockHasher::new(&layout, block);
                        bytes(layout.bytes_of(&(block..block + 1)).unwrap())
                            .chunks(10_001)
                            .for_each(|part| hasher.update(part));
                        hasher.finish()
                    })
                    .collect();
                let mut hasher = PieceHasher::new(&layout, piece);
                hasher.update(bytes(layout.range(piece)));
                assert_eq!(super::piece(&layout, &blocks), hasher.finish(), "{length}");
            }
        }
    }
}
