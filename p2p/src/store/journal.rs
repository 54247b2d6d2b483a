//! [`Journal`]: which pieces of an incomplete task are on disk, and which blocks of those that are not complete.
//!
//! A file beside the task's own, appended to once per piece with no fsync. Blocks are noted where a stream has left a piece
//! incomplete: those of one that is being received would be noted for nothing. After a kill -9 the page cache has all of it,
//! so nothing that was complete is fetched again. After a power cut it may name pieces whose bytes never arrived; that is
//! why every piece and block is checked against its recorded hash before a resumed task uses it. The transactional catalog is for
//! what is complete: a transaction per piece would cost two disk flushes for a promise that the check gives for nothing.
//!
//! Form: magic, length of the record (u32, little-endian), the record; then per piece its index (u32, little-endian) and
//! its hash (32 bytes). The highest bit of the index says that it is a block's. A torn last entry is ignored.

use super::Held;
use super::record::Record;
use darter_protocol::{BlockHash, PieceHash, PieceIndex, PieceLayout};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

const MAGIC: &[u8; 8] = b"darter\x00\x01";
const ENTRY: usize = 4 + 32;
/// Said of a block in place of a piece. There are at most 2^22 of these.
const IS_BLOCK: u32 = 1 << 31;

/// The journal of a task that is being downloaded.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
    /// Where the next entry goes. `None` when the file may end in a part of one, behind which nothing can be read.
    end: Option<u64>,
}

impl Journal {
    /// Starts a journal of `pieces` pieces, in place of any earlier one, and reserves its space.
    pub(crate) fn create(path: &Path, record: &Record, pieces: u32) -> io::Result<Self> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let record = record.encode();
        let length = u32::try_from(record.len()).map_err(io::Error::other)?;
        let head = [MAGIC.as_slice(), &length.to_le_bytes(), &record].concat();
        let whole = (head.len() + pieces as usize * ENTRY) as u64;
        match rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, whole) {
            // A file system that cannot reserve can still write.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(error) => return Err(error.into()),
        }
        file.write_all(&head)?;
        Ok(Self { file, end: Some(head.len() as u64) })
    }

    /// The record of a journal that somebody else may go on with; `None` when it is not one.
    pub(crate) fn open_to_read(path: &Path) -> io::Result<Option<Record>> {
        Ok(parse(&read(path)?).map(|(record, _)| record))
    }

    /// Reads a journal and opens it to go on. `None` when it is not one (torn at its start, or of another version).
    pub(crate) fn open(path: &Path) -> io::Result<Option<(Self, Record, Held)>> {
        let bytes = read(path)?;
        let Some((record, entries)) = parse(&bytes) else { return Ok(None) };
        let file = OpenOptions::new().write(true).open(path)?;
        // A torn entry would misalign all that follow.
        let end = (bytes.len() - entries.len() % ENTRY) as u64;
        file.set_len(end)?;
        let journal = Self { file, end: Some(end) };
        Ok(Some((journal, record, held(entries))))
    }

    /// Notes that `piece` is on disk.
    ///
    /// # Errors
    /// Those of the file system, once: nothing more is noted then, and nothing that was is lost.
    pub(crate) fn append(&mut self, piece: PieceIndex, hash: &PieceHash) -> io::Result<()> {
        self.write(&entry(piece.get(), hash.as_bytes()))
    }

    /// Notes that blocks are on disk.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub(crate) fn append_blocks(&mut self, blocks: &[(u32, BlockHash)]) -> io::Result<()> {
        let entries: Vec<[u8; ENTRY]> =
            blocks.iter().map(|(block, hash)| entry(block | IS_BLOCK, hash.as_bytes())).collect();
        self.write(entries.as_flattened())
    }

    /// Makes what was noted survive a power cut. Blocks.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn write(&mut self, entries: &[u8]) -> io::Result<()> {
        let Some(end) = self.end.take() else { return Ok(()) };
        self.file.write_all_at(entries, end)?;
        self.end = Some(end + entries.len() as u64);
        Ok(())
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit()).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The longest journal that is read: every block and every piece noted, and some a few times over.
fn limit() -> u64 {
    let blocks = PieceLayout::MAX_PIECES * PieceLayout::MAX_BLOCKS_IN_PIECE;
    Record::MAX_ENCODED as u64 + (blocks + 4 * PieceLayout::MAX_PIECES) * ENTRY as u64
}

fn parse(bytes: &[u8]) -> Option<(Record, &[u8])> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (length, rest) = rest.split_first_chunk()?;
    let length = u32::from_le_bytes(*length) as usize;
    if length > Record::MAX_ENCODED {
        return None;
    }
    let (record, entries) = rest.split_at_checked(length)?;
    Some((Record::decode(record)?, entries))
}

fn entry(index: u32, hash: &[u8; 32]) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    entry[..4].copy_from_slice(&index.to_le_bytes());
    entry[4..].copy_from_slice(hash);
    entry
}

/// What the entries name. Whether the content has such pieces and blocks is not looked at.
fn held(entries: &[u8]) -> Held {
    let mut held = Held::default();
    for entry in entries.as_chunks::<ENTRY>().0 {
        let (index, hash) = entry.split_first_chunk().expect("an entry has 36 bytes");
        let (index, hash): (u32, [u8; 32]) =
            (u32::from_le_bytes(*index), hash.try_into().expect("36 - 4 = 32"));
        if index & IS_BLOCK == 0 {
            held.pieces.push((PieceIndex::new(index), hash.into()));
        } else {
            held.blocks.push((index & !IS_BLOCK, hash.into()));
        }
    }
    held
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ContentInfo;

    fn record() -> Record {
        Record::new(ContentInfo { length: 20 << 20, headers: http::HeaderMap::new() }, None)
    }

    #[test]
    fn a_journal_goes_on_where_it_was_torn() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let hash = |n| PieceHash::from([n; 32]);
        let mut journal = Journal::create(&path, &record(), 5).unwrap();
        let blocks: Vec<(u32, BlockHash)> = (70..73).map(|block| (block, [block as u8; 32].into())).collect();
        journal.append(PieceIndex::new(0), &hash(1)).unwrap();
        journal.append_blocks(&blocks).unwrap();
        journal.append(PieceIndex::new(3), &hash(2)).unwrap();
        drop(journal);
        let torn = std::fs::metadata(&path).unwrap().len() - 5;
        OpenOptions::new().write(true).open(&path).unwrap().set_len(torn).unwrap();

        let (mut journal, read, entries) = Journal::open(&path).unwrap().unwrap();
        let mut held = Held { pieces: vec![(PieceIndex::new(0), hash(1))], blocks };
        assert_eq!((read, entries), (record_as(&path), held.clone()));
        journal.append(PieceIndex::new(4), &hash(3)).unwrap();
        let (_, _, entries) = Journal::open(&path).unwrap().unwrap();
        held.pieces.push((PieceIndex::new(4), hash(3)));
        assert_eq!(entries, held);
    }

    fn record_as(path: &Path) -> Record {
        Journal::open(path).unwrap().unwrap().1
    }

    #[test]
    fn any_prefix_or_garbage_is_survived() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        Journal::create(&path, &record(), 5).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(Journal::open(&path).unwrap().is_none(), "{length}");
        }
        std::fs::write(&path, [MAGIC.as_slice(), &[0xff; 40]].concat()).unwrap();
        assert!(Journal::open(&path).unwrap().is_none());
    }
}
