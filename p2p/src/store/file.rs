//! [`TaskFile`]: one task's content, with positional reads and writes: in a file of its own, in a part of a segment, or,
//! while it is small and on its way there, in memory.
//!
//! Whoever holds a `TaskFile` can read it to its end: eviction unlinks the file, and the open descriptor keeps the bytes; of a
//! segment nothing is punched out that somebody holds.

use super::buffers::{self, Buffer};
use super::lock;
use super::pack::{Extent, Staged};
use super::space::Claim;
use bytes::Bytes;
use darter_protocol::hash::BlockHasher;
use darter_protocol::{BlockHash, ByteRange, PieceIndex, PieceLayout};
use darter_sendfile::region;
use rustix::fs::FallocateFlags;
use rustix::io::{Errno, ReadWriteFlags};
use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::ops::{Range, RangeInclusive};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLockReadGuard};

/// How much is read at once, in bytes.
const READ_BYTES: u64 = buffers::LENGTH as u64;

/// Up to so many bytes a buffer of their own is cheaper than one that is used again.
const LITTLE_BYTES: u64 = 16 << 10;

/// How much is lent at once, in bytes, and at least: for less, reading costs no more than what it takes to lend.
const LEND_BYTES: RangeInclusive<u64> = 64 << 10..=1 << 20;

/// What is done with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// One task's content.
#[derive(Debug)]
pub(crate) struct TaskFile {
    bytes: Where,
    layout: PieceLayout,
}

/// Where the bytes are.
#[derive(Debug)]
enum Where {
    /// A file of their own, from its start.
    Own(Arc<File>),
    /// A segment. What is there is complete, and never changes.
    Packed(Arc<Extent>),
    Memory(Staged),
}

impl TaskFile {
    /// Creates the file, with the content's length and without its space.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn create(path: &Path, layout: PieceLayout) -> io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.set_len(layout.length())?;
        Ok(Self { bytes: Where::Own(Arc::new(file)), layout })
    }

    /// Content in memory, all zeros.
    pub(super) fn staged(staged: Staged, layout: PieceLayout) -> Self {
        Self { bytes: Where::Memory(staged), layout }
    }

    /// Content that is packed.
    pub(super) fn packed(extent: Arc<Extent>, layout: PieceLayout) -> Self {
        Self { bytes: Where::Packed(extent), layout }
    }

    /// Whether it is in memory alone: then nothing that is done with it blocks.
    pub(crate) fn is_staged(&self) -> bool {
        matches!(self.bytes, Where::Memory(_))
    }

    /// The bytes, if they are in memory. Nobody writes until this is dropped; others read meanwhile.
    pub(super) fn lock_staged(&self) -> Option<RwLockReadGuard<'_, Box<[u8]>>> {
        match &self.bytes {
            Where::Memory(staged) => Some(staged.read()),
            Where::Own(_) | Where::Packed(_) => None,
        }
    }

    /// What was claimed on disk for content in memory, once.
    pub(super) fn take_claim(&self) -> Option<Claim> {
        match &self.bytes {
            Where::Memory(staged) => lock(&staged.claim).take(),
            Where::Own(_) | Where::Packed(_) => None,
        }
    }

    /// Its own file.
    fn own(&self) -> Option<&Arc<File>> {
        match &self.bytes {
            Where::Own(file) => Some(file),
            Where::Packed(_) | Where::Memory(_) => None,
        }
    }

    /// Reserves a part of the content's space, so that a full disk shows now and not in the middle. Blocks.
    ///
    /// # Errors
    /// Those of the file system; `StorageFull` when it does not fit.
    pub(super) fn reserve(&self, range: ByteRange) -> io::Result<()> {
        let Some(file) = self.own() else { return Ok(()) };
        match rustix::fs::fallocate(file, FallocateFlags::empty(), range.start(), range.len()) {
            // A file system that cannot reserve can still write: as much as there is room for now.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                let disk = rustix::fs::fstatvfs(file)?;
                let free = disk.f_bavail.saturating_mul(disk.f_frsize);
                if range.len() <= free { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
            }
            reserved => Ok(reserved?),
        }
    }

    /// Bytes of its own file that the file system has not allocated, at most.
    pub(super) fn unallocated(&self) -> io::Result<u64> {
        let Some(file) = self.own() else { return Ok(0) };
        Ok(self.layout.length().saturating_sub(file.metadata()?.blocks().saturating_mul(512)))
    }

    /// Shares the bytes of `source`, a file of the content's length, until one of both is written to. `false` when the file
    /// system cannot, or `source` is on another one.
    ///
    /// # Errors
    /// `UnexpectedEof` when `source` has become shorter.
    pub(crate) fn clone_from(&self, source: &File) -> io::Result<bool> {
        match self.own() {
            Some(file) => self.clone_by(source, || rustix::fs::ioctl_ficlone(file, source)),
            None => Ok(false),
        }
    }

    /// As [`Self::clone_from`], by what gives the file the bytes of another. It may make the file longer, and never makes it shorter.
    fn clone_by(&self, source: &File, clone: impl FnOnce() -> rustix::io::Result<()>) -> io::Result<bool> {
        // Where it has become shorter, zeros stand for what is missing: this file has its length already, and keeps it, because a
        // process that is killed in between would leave one that cannot be what was begun.
        let is_whole = || Ok::<_, io::Error>(source.metadata()?.len() >= self.layout.length());
        if !is_whole()? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let cloned = clone();
        // It may also have become longer, and what fails may have given some of it.
        self.own().map_or(Ok(()), |file| file.set_len(self.layout.length()))?;
        if cloned.is_err() {
            return Ok(false);
        }
        if is_whole()? { Ok(true) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Opens the file of a task that was stored before. What is only read can be on a read-only disk.
    ///
    /// # Errors
    /// Those of the file system; `InvalidData` when the file has not the content's length.
    pub(crate) fn open(path: &Path, layout: PieceLayout, access: Access) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(access == Access::Write).open(path)?;
        if file.metadata()?.len() != layout.length() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the stored file has another length"));
        }
        Ok(Self { bytes: Where::Own(Arc::new(file)), layout })
    }

    pub(crate) fn layout(&self) -> &PieceLayout {
        &self.layout
    }

    /// Writes `bytes` at `offset`. Blocks, unless it is in memory: call it where that is allowed.
    pub(crate) fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        debug_assert!(offset + bytes.len() as u64 <= self.layout.length());
        match &self.bytes {
            Where::Own(file) => file.write_all_at(bytes, offset),
            Where::Packed(_) => Err(io::ErrorKind::PermissionDenied.into()),
            Where::Memory(staged) => {
                let start = usize::try_from(offset).map_err(io::Error::other)?;
                let end = start.saturating_add(bytes.len());
                let mut there = staged.bytes.write().unwrap_or_else(PoisonError::into_inner);
                there.get_mut(start..end).ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(bytes);
                Ok(())
            }
        }
    }

    /// Reads all of `part`, from `offset` on. Blocks.
    fn read_exact_at(&self, part: &mut [u8], offset: u64) -> io::Result<()> {
        match &self.bytes {
            Where::Own(file) => file.read_exact_at(part, offset),
            Where::Packed(extent) => extent.file.read_exact_at(part, extent.offset + offset),
            Where::Memory(staged) => {
                let start = usize::try_from(offset).map_err(io::Error::other)?;
                let there = staged.read();
                let there = there.get(start..start.saturating_add(part.len()));
                part.copy_from_slice(there.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }

    /// Reads one piece and hands it to `each` in parts. Blocks.
    pub(crate) fn read_piece(&self, piece: PieceIndex, each: impl FnMut(&[u8])) -> io::Result<()> {
        self.read_part(self.layout.range(piece), each)
    }

    /// Reads a part of the content and hands it to `each`, in parts again. Blocks.
    pub(crate) fn read_part(&self, range: ByteRange, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = vec![0; READ_BYTES.min(range.len()) as usize];
        let mut offset = range.start();
        while offset < range.end() {
            let part = &mut buffer[..READ_BYTES.min(range.end() - offset) as usize];
            self.read_exact_at(part, offset)?;
            each(part);
            offset += part.len() as u64;
        }
        Ok(())
    }

    /// What blocks hash to, as they are on disk. Blocks.
    pub(crate) fn hash_blocks(&self, blocks: Range<u32>) -> io::Result<Vec<BlockHash>> {
        let hash = |block| {
            let mut hasher = BlockHasher::new(&self.layout, block);
            if let Some(range) = self.layout.bytes_of(&(block..block + 1)) {
                self.read_part(range, |part| hasher.update(part))?;
            }
            Ok(hasher.finish())
        };
        blocks.map(hash).collect()
    }

    /// Whether it is the file that stands at `path`.
    pub(super) fn is_at(&self, path: &Path) -> io::Result<bool> {
        let Some(file) = self.own() else { return Ok(false) };
        match std::fs::metadata(path) {
            Ok(there) => {
                let own = file.metadata()?;
                Ok((own.dev(), own.ino()) == (there.dev(), there.ino()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes what was written survive a power cut. Blocks.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.own().map_or(Ok(()), |file| file.sync_data())
    }

    /// The first bytes of `range`, unread, for whoever sends them over plain TCP: they go from the page cache into the socket
    /// (see `darter-sendfile`). As [`Self::read`], where that cannot be.
    ///
    /// # Errors
    /// Those of [`Self::read`].
    pub(crate) async fn lend(self: &Arc<Self>, range: ByteRange) -> io::Result<Bytes> {
        let length = range.len().min(*LEND_BYTES.end());
        // Of a segment something may be punched out when nobody holds it any more, and the socket may not have sent it then:
        // what is punched out of a large page is zeroed in its place.
        let own = self.own().filter(|_| LEND_BYTES.contains(&length));
        // What may not be mapped may be read.
        match own.map(|file| region(file, range.start(), length as usize)) {
            Some(Ok(Some(bytes))) => Ok(bytes),
            _ => self.read(range).await,
        }
    }

    /// The first bytes of `range`: at least one, at most [`READ_BYTES`].
    ///
    /// What the page cache holds is read at once; only what must come from the disk goes to a blocking thread.
    ///
    /// # Errors
    /// Those of the file system; `UnexpectedEof` when the file is shorter than the content.
    pub(crate) async fn read(self: &Arc<Self>, range: ByteRange) -> io::Result<Bytes> {
        if range.len() <= LITTLE_BYTES {
            let mut little = vec![0; range.len() as usize];
            if self.read_now(&mut little, range.start()) == Some(range.len() as usize) {
                return Ok(little.into());
            }
        }
        let length = range.len().min(READ_BYTES) as usize;
        let mut buffer = Buffer::take();
        let read = match self.read_now(&mut buffer.memory()[..length], range.start()) {
            Some(read) => read,
            None => {
                let this = Arc::clone(self);
                let result = tokio::task::spawn_blocking(move || {
                    let read = this.read_some(&mut buffer.memory()[..length], range.start());
                    read.map(|read| (read, buffer))
                });
                let read;
                (read, buffer) = result.await.map_err(io::Error::other)??;
                read
            }
        };
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(buffer.into_bytes(read))
    }

    /// Reads what is in memory of `part`, from `offset` on; `None` when nothing of it is, or the file system does not say.
    fn read_now(&self, part: &mut [u8], offset: u64) -> Option<usize> {
        let (file, offset) = match &self.bytes {
            Where::Own(file) => (&**file, offset),
            Where::Packed(extent) => (&*extent.file, extent.offset + offset),
            Where::Memory(_) => return self.read_some(part, offset).ok(),
        };
        let parts = &mut [IoSliceMut::new(part)];
        let now = rustix::io::preadv2(file, parts, offset, ReadWriteFlags::NOWAIT);
        now.ok().filter(|read| *read > 0)
    }

    /// Reads some of `part`, from `offset` on. Blocks.
    fn read_some(&self, part: &mut [u8], offset: u64) -> io::Result<usize> {
        match &self.bytes {
            Where::Own(file) => file.read_at(part, offset),
            Where::Packed(extent) => extent.file.read_at(part, extent.offset + offset),
            Where::Memory(_) => self.read_exact_at(part, offset).map(|()| part.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let layout = PieceLayout::new(300_000).unwrap();
        let file = Arc::new(TaskFile::create(&dir.path().join("a"), layout).unwrap());
        let content: Vec<u8> = (0..300_000u32).map(|i| (i / 3) as u8).collect();
        file.write_at(0, &content).unwrap();
        let mut got = Vec::new();
        while let Some(rest) = ByteRange::new(got.len() as u64, 300_000) {
            got.extend_from_slice(&file.read(rest).await.unwrap());
        }
        assert!(got == content);
    }

    #[tokio::test]
    async fn what_is_lent_is_what_was_written_and_little_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let layout = PieceLayout::new(3 << 20).unwrap();
        let file = Arc::new(TaskFile::create(&dir.path().join("a"), layout).unwrap());
        let content: Vec<u8> = (0..3u32 << 20).map(|i| (i / 3) as u8).collect();
        file.write_at(0, &content).unwrap();
        for (start, end, lent) in [(0, 3 << 20, 1 << 20), (5, 300_000, 299_995), (5, 1000, 995)] {
            let got = file.lend(ByteRange::new(start, end).unwrap()).await.unwrap();
            assert_eq!(got.len() as u64, lent, "nothing else gives more than {READ_BYTES} at once");
            assert!(got == content[start as usize..][..got.len()]);
        }
    }

    #[test]
    fn what_shrank_before_it_was_cloned_is_not_filled_up_with_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let file = TaskFile::create(&dir.path().join("a"), PieceLayout::new(10).unwrap()).unwrap();
        let own = file.own().unwrap();
        let source = tempfile::tempfile().unwrap();
        let give = |before: &[u8], now: &[u8], result: rustix::io::Result<()>| {
            source.set_len(0).unwrap();
            source.write_all_at(before, 0).unwrap();
            let cloned = file.clone_by(&source, || {
                assert_eq!(
                    own.metadata().unwrap().len(),
                    10,
                    "a process that dies here leaves it as it was begun"
                );
                source.set_len(now.len() as u64).unwrap();
                // What fails gives nothing.
                result.inspect(|()| own.write_all_at(now, 0).unwrap())
            });
            assert_eq!(own.metadata().unwrap().len(), 10);
            cloned.map_err(|error| error.kind())
        };
        assert_eq!(give(b"short", b"short", Ok(())), Err(io::ErrorKind::UnexpectedEof));
        assert_eq!(give(b"long enough", b"short", Ok(())), Err(io::ErrorKind::UnexpectedEof));
        assert_eq!(give(b"long enough", b"long enough", Ok(())), Ok(true));
        assert_eq!(give(b"long enough", b"long enough", Err(Errno::OPNOTSUPP)), Ok(false));
    }

    #[test]
    fn a_file_of_another_length_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        TaskFile::create(&path, PieceLayout::new(10).unwrap()).unwrap();
        assert!(TaskFile::open(&path, PieceLayout::new(10).unwrap(), Access::Read).is_ok());
        assert!(TaskFile::open(&path, PieceLayout::new(11).unwrap(), Access::Read).is_err());
    }
}
