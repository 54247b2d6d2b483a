//! [`Held`]: what is on disk of a task that is not complete.

use super::TaskFile;
use darter_protocol::hash::{self, PieceHasher};
use darter_protocol::{BlockHash, PieceHash, PieceIndex};
use std::collections::{BTreeMap, HashMap};
use std::io;

/// Pieces that are on disk, and blocks of others, with their hashes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) pieces: Vec<(PieceIndex, PieceHash)>,
    pub(crate) blocks: Vec<(u32, BlockHash)>,
}

impl Held {
    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.blocks.is_empty()
    }

    /// What of this, as it was noted, is on disk; what is in `checked` is known to be. All blocks of a piece are the piece.
    /// Blocks.
    pub(super) fn verify(self, file: &TaskFile, checked: &Self) -> io::Result<Self> {
        let pieces = right_pieces(file, self.pieces, &checked.pieces)?;
        let layout = file.layout();
        let rest = self
            .blocks
            .into_iter()
            .filter(|(block, _)| *block < layout.blocks() && !pieces.contains_key(&layout.piece_of(*block)));
        let blocks = right_blocks(file, rest.collect(), &checked.blocks)?;
        let mut held = Self { pieces: pieces.into_iter().collect(), blocks: Vec::new() };
        for part in blocks.chunk_by(|(a, _), (b, _)| layout.piece_of(*a) == layout.piece_of(*b)) {
            let piece = layout.piece_of(part[0].0);
            if part.len() == layout.blocks_of(piece).len() {
                let hashes: Vec<BlockHash> = part.iter().map(|(_, hash)| *hash).collect();
                held.pieces.push((piece, hash::piece(layout, &hashes)));
            } else {
                held.blocks.extend_from_slice(part);
            }
        }
        Ok(held)
    }
}

fn right_pieces(
    file: &TaskFile,
    noted: Vec<(PieceIndex, PieceHash)>,
    checked: &[(PieceIndex, PieceHash)],
) -> io::Result<BTreeMap<PieceIndex, PieceHash>> {
    let checked: HashMap<PieceIndex, PieceHash> = checked.iter().copied().collect();
    // Of what was noted twice, the last counts.
    let noted: BTreeMap<PieceIndex, PieceHash> = noted.into_iter().collect();
    let mut right = BTreeMap::new();
    for (piece, hash) in noted.into_iter().filter(|(piece, _)| file.layout().piece(piece.get()).is_some()) {
        if checked.get(&piece) == Some(&hash) || hash_piece(file, piece)? == hash {
            right.insert(piece, hash);
        }
    }
    Ok(right)
}

/// In order.
fn right_blocks(
    file: &TaskFile,
    noted: BTreeMap<u32, BlockHash>,
    checked: &[(u32, BlockHash)],
) -> io::Result<Vec<(u32, BlockHash)>> {
    let checked: HashMap<u32, BlockHash> = checked.iter().copied().collect();
    let mut right = Vec::with_capacity(noted.len());
    for (block, hash) in noted {
        if checked.get(&block) == Some(&hash) || file.hash_blocks(block..block + 1)? == [hash] {
            right.push((block, hash));
        }
    }
    Ok(right)
}

fn hash_piece(file: &TaskFile, piece: PieceIndex) -> io::Result<PieceHash> {
    let mut hasher = PieceHasher::new(file.layout(), piece);
    file.read_piece(piece, |part| hasher.update(part))?;
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use darter_protocol::PieceLayout;

    const BLOCK: u64 = PieceLayout::MIN_BLOCK_SIZE;

    #[test]
    fn blocks_are_believed_when_they_are_there_and_all_of_them_are_a_piece() {
        let dir = tempfile::tempdir().unwrap();
        let layout = PieceLayout::new(2 * PieceLayout::MIN_PIECE_SIZE + BLOCK + 5).unwrap();
        let file = TaskFile::create(&dir.path().join("a"), layout).unwrap();
        let content: Vec<u8> = (0..layout.length()).map(|at| (at / 1000) as u8).collect();
        file.write_at(0, &content).unwrap();
        let hashes = file.hash_blocks(0..layout.blocks()).unwrap();
        let noted = |blocks: &[u32]| blocks.iter().map(|block| (*block, hashes[*block as usize])).collect();
        let rotten = (19, hashes[20]);
        let mut blocks: Vec<(u32, BlockHash)> = noted(&[33, 3, 18, 32]);
        blocks.extend([rotten, (layout.blocks(), hashes[0])]);
        let held = Held { pieces: vec![], blocks };

        let last = (PieceIndex::new(2), hash_piece(&file, PieceIndex::new(2)).unwrap());
        let verified = held.clone().verify(&file, &Held::default()).unwrap();
        assert_eq!(verified, Held { pieces: vec![last], blocks: noted(&[3, 18]) });
        // What was checked a moment ago is not read again.
        let checked = Held { pieces: vec![], blocks: vec![rotten] };
        assert!(held.clone().verify(&file, &checked).unwrap().blocks.contains(&rotten));
        // A piece that is there needs no blocks.
        let with_piece = Held { pieces: vec![last, (PieceIndex::new(9), last.1)], ..held };
        assert_eq!(with_piece.verify(&file, &Held::default()).unwrap(), verified);
    }
}
