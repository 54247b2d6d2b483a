//! [`Held`]: what is on disk of a task that is not complete; and [`Noted`], before anybody has looked whether that is so.

use super::TaskFile;
use darter_protocol::hash::{self, PieceHasher};
use darter_protocol::{BlockHash, BlockSet, PieceHash, PieceIndex, PieceLayout};
use std::collections::{BTreeMap, HashMap};
use std::io;

/// Pieces that are on disk, and blocks of others, with their hashes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) pieces: Vec<(PieceIndex, PieceHash)>,
    pub(crate) blocks: Vec<(u32, BlockHash)>,
}

/// What an earlier download has noted to be on disk, and not looked at since; but for what was checked a moment ago.
#[derive(Debug, Clone, Default)]
pub(crate) struct Noted {
    pub(super) held: Held,
    pub(super) checked: Held,
}

/// A part of what was noted, which is what it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Right {
    Piece(PieceIndex),
    Block(u32),
}

impl Held {
    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.blocks.is_empty()
    }
}

impl Noted {
    /// Of this, so much was checked a moment ago.
    pub(crate) fn with_checked(self, checked: Held) -> Self {
        Self { checked, ..self }
    }

    /// How many bytes its pieces are said to have.
    pub(crate) fn bytes(&self, layout: &PieceLayout) -> u64 {
        let pieces = self.held.pieces.iter().filter_map(|(piece, _)| layout.piece(piece.get()));
        pieces.map(|piece| layout.range(piece).len()).sum()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// What of this is on disk. Each part is told as soon as it is found to be right, in order, whole pieces first; what tells `false` ends
    /// it there. All blocks of a piece are the piece. What cannot be read is not there. Blocks.
    pub(crate) fn verify(self, file: &TaskFile, mut tell: impl FnMut(Right) -> bool) -> Held {
        let layout = *file.layout();
        let mut held = Held::default();
        let checked: HashMap<PieceIndex, PieceHash> = self.checked.pieces.into_iter().collect();
        // Of what was noted twice, the last counts.
        let noted: BTreeMap<PieceIndex, PieceHash> = self.held.pieces.into_iter().collect();
        let mut whole = BlockSet::default();
        for (piece, hash) in noted.into_iter().filter(|(piece, _)| layout.piece(piece.get()).is_some()) {
            if checked.get(&piece) == Some(&hash) || is(hash_piece(file, piece), &hash) {
                held.pieces.push((piece, hash));
                whole.insert(layout.blocks_of(piece));
                if !tell(Right::Piece(piece)) {
                    return held;
                }
            }
        }
        let checked: HashMap<u32, BlockHash> = self.checked.blocks.into_iter().collect();
        let mut right = Vec::new();
        let noted: BTreeMap<u32, BlockHash> = self.held.blocks.into_iter().collect();
        for (block, hash) in
            noted.into_iter().filter(|(block, _)| *block < layout.blocks() && !whole.contains(*block))
        {
            let read = || file.hash_blocks(block..block + 1).map(|hashes| hashes[0]);
            if checked.get(&block) == Some(&hash) || is(read(), &hash) {
                right.push((block, hash));
                if !tell(Right::Block(block)) {
                    break;
                }
            }
        }
        for part in right.chunk_by(|(a, _), (b, _)| layout.piece_of(*a) == layout.piece_of(*b)) {
            let piece = layout.piece_of(part[0].0);
            if part.len() == layout.blocks_of(piece).len() {
                let hashes: Vec<BlockHash> = part.iter().map(|(_, hash)| *hash).collect();
                held.pieces.push((piece, hash::piece(&layout, &hashes)));
            } else {
                held.blocks.extend_from_slice(part);
            }
        }
        held
    }
}

fn is<T: PartialEq>(read: io::Result<T>, noted: &T) -> bool {
    match read {
        Ok(found) => found == *noted,
        Err(error) => {
            tracing::warn!(%error, "a part of an earlier download cannot be read, and is fetched again");
            false
        }
    }
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
        let verify = |held: &Held, checked: Held| {
            let mut told = Vec::new();
            let noted = Noted { held: held.clone(), checked };
            let right = noted.verify(&file, |right| {
                told.push(right);
                true
            });
            (right, told)
        };
        let (verified, told) = verify(&held, Held::default());
        assert_eq!(verified, Held { pieces: vec![last], blocks: noted(&[3, 18]) });
        assert_eq!(told, [3, 18, 32, 33].map(Right::Block));
        // What was checked a moment ago is not read again.
        let checked = Held { pieces: vec![], blocks: vec![rotten] };
        assert!(verify(&held, checked).0.blocks.contains(&rotten));
        // A piece that is there needs no blocks.
        let with_piece = Held { pieces: vec![last, (PieceIndex::new(9), last.1)], ..held };
        assert_eq!(verify(&with_piece, Held::default()).0, verified);
    }

    #[test]
    fn each_part_is_told_before_the_next_one_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let layout = PieceLayout::new(3 * PieceLayout::MIN_PIECE_SIZE).unwrap();
        let file = TaskFile::create(&dir.path().join("a"), layout).unwrap();
        let pieces: Vec<_> = layout.iter().map(|piece| (piece, hash_piece(&file, piece).unwrap())).collect();
        let noted = Noted { held: Held { pieces: pieces.clone(), blocks: vec![] }, checked: Held::default() };
        let mut told = Vec::new();
        let right = noted.clone().verify(&file, |right| {
            file.write_at(PieceLayout::MIN_PIECE_SIZE, b"rot").unwrap();
            told.push(right);
            true
        });
        assert_eq!(right.pieces, [pieces[0], pieces[2]]);
        assert_eq!(told, [pieces[0], pieces[2]].map(|(piece, _)| Right::Piece(piece)));
        assert_eq!(noted.verify(&file, |_| false).pieces, [pieces[0]], "it is told to stop");
    }
}
