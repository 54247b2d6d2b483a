//! [`Verifier`]: hashes the whole content in order, while its pieces come in any order.
//!
//! Bytes that arrive just where the hash stands are taken in passing, so that content from the origin is hashed without
//! being read back. The rest is read back from the page cache when the gap has closed.
//!
//! Invariant: `settled` covers whole pieces that are on disk and will not change. `ahead` covers what was offered of the one
//! piece after that, by one source from the piece's start; it is thrown away when the piece starts anew.

use crate::store::TaskFile;
use aws_lc_rs::digest;
use darter_protocol::{Algorithm, ByteRange, Digest, PieceLayout, PieceSet};
use std::io;
use std::sync::{Mutex, PoisonError};

pub(crate) struct Verifier {
    expected: Digest,
    layout: PieceLayout,
    settled: Position,
    ahead: Position,
}

#[derive(Clone)]
struct Position {
    offset: u64,
    hash: digest::Context,
}

/// What one reader got of some content, from its start on, hashed.
pub(crate) struct Check {
    expected: Digest,
    hash: digest::Context,
}

impl Verifier {
    pub(crate) fn new(expected: Digest, layout: PieceLayout) -> Self {
        let start = Position::start(&expected);
        Self { expected, layout, settled: start.clone(), ahead: start }
    }

    /// The bytes before `offset`, hashed: those that are hashed here already, and the rest read back. Blocks.
    pub(crate) fn check_from(this: &Mutex<Self>, offset: u64, file: &TaskFile) -> io::Result<Check> {
        let (expected, settled) = {
            let this = this.lock().unwrap_or_else(PoisonError::into_inner);
            (this.expected, this.settled.clone())
        };
        let from = if settled.offset <= offset { settled } else { Position::start(&expected) };
        let mut check = Check { expected, hash: from.hash };
        if let Some(unread) = ByteRange::new(from.offset, offset) {
            file.read_part(unread, |part| check.update(part))?;
        }
        Ok(check)
    }

    /// Offers bytes of one piece that are being written at `offset`. Taken if the hash stands there, and so was all that
    /// the source sent of this piece before: only then may more be offered, and the piece be settled.
    pub(crate) fn offer(&mut self, offset: u64, bytes: &[u8]) -> bool {
        if offset == self.settled.offset && self.ahead.offset != offset {
            self.ahead = self.settled.clone();
        }
        // Bytes that follow a piece which is not known to be right must not be hashed on top of it.
        let in_turn = self.layout.piece_at(offset) == self.layout.piece_at(self.settled.offset);
        let taken = in_turn && offset == self.ahead.offset;
        if taken {
            self.ahead.hash.update(bytes);
            self.ahead.offset += bytes.len() as u64;
        }
        taken
    }

    /// Tells that the piece which ends at `end`, and all of which was taken from one source, is on disk for good.
    pub(crate) fn settle(&mut self, end: u64) {
        if self.ahead.offset == end && end > self.settled.offset {
            self.settled = self.ahead.clone();
        }
    }

    /// Reads back the pieces of `have` that follow what is hashed. Blocks.
    pub(crate) fn catch_up(&mut self, file: &TaskFile, have: &PieceSet) -> io::Result<()> {
        while let Some(piece) =
            self.layout.piece_at(self.settled.offset).filter(|piece| have.contains(*piece))
        {
            let range = self.layout.range(piece);
            let mut next = self.settled.clone();
            file.read_piece(piece, |part| next.hash.update(part))?;
            next.offset = range.end();
            self.settled = next.clone();
            self.ahead = next;
        }
        Ok(())
    }

    /// Whether a piece that is in `have` still waits to be read back.
    pub(crate) fn is_behind(&self, have: &PieceSet) -> bool {
        self.layout.piece_at(self.settled.offset).is_some_and(|piece| have.contains(piece))
    }

    /// Whether the whole content, all of whose pieces are in `have`, gives what was expected. Blocks when it is behind.
    pub(crate) fn check(&mut self, file: &TaskFile, have: &PieceSet) -> io::Result<bool> {
        self.catch_up(file, have)?;
        Ok(self.matches())
    }

    /// Whether the whole content is hashed and gives what was expected.
    fn matches(&self) -> bool {
        self.settled.offset == self.layout.length()
            && self.settled.hash.clone().finish().as_ref() == self.expected.as_bytes()
    }
}

impl Position {
    fn start(expected: &Digest) -> Self {
        let algorithm = match expected.algorithm() {
            Algorithm::Sha256 => &digest::SHA256,
            Algorithm::Sha512 => &digest::SHA512,
        };
        Self { offset: 0, hash: digest::Context::new(algorithm) }
    }
}

impl Check {
    /// Takes the next bytes.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
    }

    /// Whether what was taken is the whole content, and right.
    pub(crate) fn matches(&self) -> bool {
        self.hash.clone().finish().as_ref() == self.expected.as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const PIECE: usize = PieceLayout::MIN_PIECE_SIZE as usize;

    fn content() -> Vec<u8> {
        (0..2 * PIECE + PIECE / 4).map(|i| (i / 5 + i / 70_000) as u8).collect()
    }

    fn verifier(content: &[u8]) -> Verifier {
        let hash = digest::digest(&digest::SHA256, content);
        let expected = Digest::Sha256(hash.as_ref().try_into().unwrap());
        Verifier::new(expected, PieceLayout::new(content.len() as u64).unwrap())
    }

    fn file(dir: &Path, content: &[u8]) -> TaskFile {
        let file = TaskFile::create(&dir.join("f"), PieceLayout::new(content.len() as u64).unwrap()).unwrap();
        file.write_at(0, content).unwrap();
        file
    }

    #[test]
    fn bytes_in_order_are_hashed_in_passing() {
        let content = content();
        let mut verifier = verifier(&content);
        for (piece, bytes) in content.chunks(PIECE).enumerate() {
            for (at, part) in bytes.chunks(333_333).enumerate() {
                verifier.offer((piece * PIECE + at * 333_333) as u64, part);
            }
            verifier.settle((piece * PIECE + bytes.len()) as u64);
        }
        assert!(verifier.matches());
    }

    #[test]
    fn a_piece_that_starts_anew_replaces_what_was_hashed_of_it() {
        let content = content();
        let mut verifier = verifier(&content);
        verifier.offer(0, b"bytes of a source that broke off");
        for (at, part) in content.chunks(PIECE).enumerate() {
            verifier.offer((at * PIECE) as u64, part);
            verifier.settle((at * PIECE + part.len()) as u64);
        }
        assert!(verifier.matches());
    }

    #[test]
    fn nothing_is_hashed_on_top_of_a_piece_that_is_not_known_to_be_right() {
        let dir = tempfile::tempdir().unwrap();
        let content = content();
        let file = file(dir.path(), &content);
        let mut verifier = verifier(&content);
        // A liar's first piece, all of it, and an honest second one on its heels.
        assert!(verifier.offer(0, &vec![0; PIECE]));
        assert!(!verifier.offer(PIECE as u64, &content[PIECE..2 * PIECE]));
        verifier.settle(2 * PIECE as u64);
        verifier.catch_up(&file, &PieceSet::full(3)).unwrap();
        assert!(verifier.matches());
    }

    #[test]
    fn pieces_out_of_order_are_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let content = content();
        let file = file(dir.path(), &content);
        let mut verifier = verifier(&content);
        let mut have = PieceSet::empty(3);
        for index in [2, 1, 0] {
            let piece = darter_protocol::PieceIndex::new(index);
            have.insert(piece);
            assert_eq!(verifier.is_behind(&have), index == 0);
        }
        assert!(!verifier.matches());
        verifier.catch_up(&file, &have).unwrap();
        assert!(verifier.matches());
    }

    #[test]
    fn a_reader_goes_on_from_what_is_hashed_wherever_it_stands() {
        let dir = tempfile::tempdir().unwrap();
        let content = content();
        let file = file(dir.path(), &content);
        let mut verifier = verifier(&content);
        let mut have = PieceSet::empty(3);
        have.insert(darter_protocol::PieceIndex::new(0));
        verifier.catch_up(&file, &have).unwrap();
        let verifier = Mutex::new(verifier);
        for offset in [0, 5, PIECE, PIECE + 5, content.len()] {
            let mut check = Verifier::check_from(&verifier, offset as u64, &file).unwrap();
            assert_eq!(check.matches(), offset == content.len());
            check.update(&content[offset..]);
            assert!(check.matches(), "from {offset}");
        }
    }

    #[test]
    fn one_wrong_byte_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let mut content = content();
        let mut verifier = verifier(&content);
        content[PIECE + 5] ^= 1;
        verifier.catch_up(&file(dir.path(), &content), &PieceSet::full(3)).unwrap();
        assert!(!verifier.matches());
    }
}
