//! Taking a file of this host into the store.
//!
//! Where the file system can, the store's file shares the bytes with the given one until either is written to (reflink):
//! nothing is copied then. Otherwise they are copied, each once, and hashed on their way, by all cores at once: a thread
//! takes the next piece that nobody has, reads it, hashes it and writes it. The hashes are those of the store's own bytes
//! in both cases, whatever happens to the given file meanwhile. Nobody waits for the disk: see [`super::unflushed`].
//!
//! A hard link would cost no copy on any file system, and is not made: whoever may write to the given file could change
//! what others are served from here, under hashes that this host has vouched for.

use super::{Given, Partial, Reading, Record, Store, Stored, Unflushed, layout};
use crate::ContentInfo;
use crate::origin::IMPORTED;
use darter_protocol::hash::PieceHasher;
use darter_protocol::{PieceHash, PieceIndex, PieceLayout, TaskId};
use http::{HeaderMap, HeaderValue};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

/// How much is read, hashed and written at once, in bytes: stays in a core's cache.
const BLOCK: u64 = 256 << 10;

/// What a file may take less on its disk than it is long without being all holes: what lies in its inode.
const SLACK_BYTES: u64 = 64 << 10;

/// More threads than this wait for memory, not for each other's work.
const MAX_THREADS: usize = 8;

/// A file that was taken in.
#[derive(Debug)]
pub(crate) struct Imported {
    pub(crate) record: Record,
    pub(crate) hashes: Vec<PieceHash>,
    /// It was here before, byte for byte.
    pub(crate) unchanged: bool,
    /// The file system shares its bytes with the given file.
    pub(crate) shared: bool,
    /// What [`Store::flush`] is to be called with; `None` when the disk has it.
    pub(crate) unflushed: Option<Unflushed>,
}

impl Store {
    /// Takes the bytes of `given`, a file that is open for reading, in as those of `task`, in place of what was called so
    /// before. Blocks, and where the file never answers, for ever: that shows in `reading`.
    ///
    /// # Errors
    /// `InvalidInput` when it is no regular file, `StorageFull` when it does not fit, `UnexpectedEof` when it becomes shorter
    /// meanwhile, `TimedOut` when it was given up, and those of the file system.
    pub(crate) fn import(
        &self,
        task: &TaskId,
        given: &impl Given,
        reading: &Reading,
    ) -> io::Result<Imported> {
        let source = &Source { file: given.file(), reading };
        let meta = reading.ask(|| source.file.metadata())?;
        // A pipe or a device could be read for ever.
        if !meta.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let length = meta.len();
        let record = Record::new(ContentInfo { length, headers: marked() }, None);
        let layout = layout(&record)?;
        if let Some(before) = self.same(task, source, layout)? {
            return Ok(before);
        }
        // What was here goes only for what can take its place.
        if !self.may_fit(length)? {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bound(meta.blocks(), length)?;
        self.make_way(task)?;
        let claim = self.make_room(self.space_of(layout))?;
        let mut partial = self.create_in(task, record, layout, claim)?;
        let stored = self.fill(&mut partial, source, layout).and_then(|(hashes, shared)| {
            let unflushed = self.commit_unflushed(task, &partial, hashes.clone())?;
            Ok(Imported { record: partial.record.clone(), hashes, unchanged: false, shared, unflushed })
        });
        if stored.is_err() {
            self.discard(task)?;
        }
        stored
    }

    /// A file makes as much way for itself as it takes where it stands, and no more: one that is all holes costs its owner
    /// nothing, and would evict everything.
    fn bound(&self, blocks: u64, length: u64) -> io::Result<()> {
        let too_much = self.used().saturating_add(length).saturating_sub(self.config.quota);
        let takes = blocks.saturating_mul(512).saturating_add(SLACK_BYTES);
        if too_much > takes { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    /// Gives a task the bytes of `source`; their hashes, and whether the file system shares them.
    fn fill(
        &self,
        partial: &mut Partial,
        source: &Source<'_>,
        layout: PieceLayout,
    ) -> io::Result<(Vec<PieceHash>, bool)> {
        let file = Arc::clone(&partial.file);
        if (*file).clone_from(source.file)? {
            drop(partial.take_reservation());
            let hashes = each_piece(layout, |piece| {
                let mut hasher = PieceHasher::new(&layout, piece);
                file.read_piece(piece, |part| hasher.update(part))?;
                Ok(hasher.finish())
            })?;
            return Ok((hashes, true));
        }
        partial.take_reservation().map_or(Ok(()), |space| space.allocate(self, || false))?;
        let copy = |piece| source.hash(&layout, piece, |offset, bytes| file.write_at(offset, bytes));
        Ok((each_piece(layout, copy)?, false))
    }

    /// What is here, if it is what `source` holds.
    fn same(&self, task: &TaskId, source: &Source<'_>, layout: PieceLayout) -> io::Result<Option<Imported>> {
        if !matches!(self.stat(task)?, Stored::Complete { length, .. } if length == layout.length()) {
            return Ok(None);
        }
        let Some(here) = self.complete(task)? else { return Ok(None) };
        let hashes = each_piece(layout, |piece| source.hash(&layout, piece, |_, _| Ok(())))?;
        let same = *hashes == *here.hashes;
        Ok(same.then_some(Imported {
            record: here.record,
            hashes,
            unchanged: true,
            shared: false,
            unflushed: None,
        }))
    }
}

fn marked() -> HeaderMap {
    HeaderMap::from_iter([(IMPORTED, HeaderValue::from_static("1"))])
}

/// The given file.
struct Source<'a> {
    file: &'a File,
    reading: &'a Reading,
}

impl Source<'_> {
    /// The hash of one piece, whose bytes are handed to `each` with their offset.
    fn hash(
        &self,
        layout: &PieceLayout,
        piece: PieceIndex,
        each: impl Fn(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<PieceHash> {
        let range = layout.range(piece);
        let mut hasher = PieceHasher::new(layout, piece);
        let mut buffer = vec![0; BLOCK.min(range.len()) as usize];
        let mut offset = range.start();
        while offset < range.end() {
            let part = &mut buffer[..BLOCK.min(range.end() - offset) as usize];
            self.reading.ask(|| self.file.read_exact_at(part, offset))?;
            hasher.update(part);
            each(offset, part)?;
            self.reading.step()?;
            offset += part.len() as u64;
        }
        Ok(hasher.finish())
    }
}

/// What `work` gives for every piece, in their order. As many threads work as there are cores.
fn each_piece(
    layout: PieceLayout,
    work: impl Fn(PieceIndex) -> io::Result<PieceHash> + Sync,
) -> io::Result<Vec<PieceHash>> {
    let next = AtomicU32::new(0);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let threads = cores.min(MAX_THREADS).min(layout.pieces() as usize).max(1);
    let worker = || {
        let mut done = Vec::new();
        while let Some(piece) = layout.piece(next.fetch_add(1, Ordering::Relaxed)) {
            done.push((piece, work(piece)?));
        }
        Ok::<_, io::Error>(done)
    };
    let parts = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, io::Result<Vec<_>>>| {
            thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread of the import failed")))
        };
        threads.into_iter().map(join).collect::<io::Result<Vec<_>>>()
    })?;
    let mut all: Vec<_> = parts.into_iter().flatten().collect();
    all.sort_unstable_by_key(|(piece, _)| *piece);
    Ok(all.into_iter().map(|(_, hash)| hash).collect())
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::super::tests::{config, task};
    use super::*;
    use std::path::Path;
    use std::process::Command;
    use std::time::{Duration, SystemTime};

    const MIB: u64 = 1 << 20;

    fn file(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    fn content(seed: u8, length: u64) -> Vec<u8> {
        (0..length).map(|at| (at / 1000) as u8 ^ seed).collect()
    }

    fn take(store: &Store, name: u8, file: &File) -> io::Result<Imported> {
        store.import(&task(name), &file.try_clone().unwrap(), &Reading::default())
    }

    #[test]
    fn what_was_imported_is_the_file_with_the_hashes_of_a_download() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
        for length in [0, 1, 4 * MIB, 9 * MIB + 7] {
            let bytes = content(3, length);
            let imported = take(&store, 1, &file(&bytes)).unwrap();
            assert!(!imported.unchanged);
            let here = store.complete(&task(1)).unwrap().unwrap();
            let layout = *here.file.layout();
            let expected: Vec<_> = layout
                .iter()
                .map(|piece| {
                    let range = layout.range(piece);
                    let mut hasher = PieceHasher::new(&layout, piece);
                    hasher.update(&bytes[range.start() as usize..range.end() as usize]);
                    hasher.finish()
                })
                .collect();
            assert_eq!(
                (imported.hashes.as_slice(), &*here.hashes),
                (&expected[..], &expected[..]),
                "{length}"
            );
            let mut got = Vec::new();
            layout
                .iter()
                .for_each(|piece| here.file.read_piece(piece, |part| got.extend_from_slice(part)).unwrap());
            assert!(got == bytes, "{length}");
            let takes = if length == 9 * MIB + 7 { length } else { length.next_multiple_of(4096) };
            assert_eq!(store.used(), takes);
        }
    }

    #[test]
    fn importing_again_changes_nothing_and_other_bytes_take_the_place() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
        let (first, other) = (file(&content(1, 5 * MIB)), file(&content(2, 5 * MIB)));
        let hashes = take(&store, 1, &first).unwrap().hashes;
        let again = take(&store, 1, &first).unwrap();
        assert!(again.unchanged && again.hashes == hashes);
        let replaced = take(&store, 1, &other).unwrap();
        assert!(!replaced.unchanged && replaced.hashes != hashes);
        assert_eq!(store.used(), 5 * MIB);
    }

    #[test]
    fn the_given_file_may_change_and_the_imported_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
        let given = file(&content(1, MIB));
        take(&store, 1, &given).unwrap();
        given.write_all_at(&[9; 1000], 0).unwrap();
        let here = store.complete(&task(1)).unwrap().unwrap();
        here.file.read_piece(PieceIndex::new(0), |part| assert!(part[..1] != [9])).unwrap();
    }

    #[test]
    fn what_does_not_fit_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), MIB)).unwrap();
        let error = take(&store, 1, &file(&content(1, 2 * MIB))).unwrap_err();
        assert_eq!((error.kind(), store.used()), (io::ErrorKind::StorageFull, 0));
        assert!(matches!(store.stat(&task(1)).unwrap(), Stored::Absent));
    }

    #[test]
    fn what_does_not_fit_leaves_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), 10 * MIB)).unwrap();
        let hashes = take(&store, 1, &file(&content(1, MIB))).unwrap().hashes;
        let _at_work = store.create(&task(2), super::super::tests::record(8 * MIB)).unwrap();
        for too_much in [3 * MIB, 11 * MIB] {
            let error = take(&store, 1, &file(&content(1, too_much))).unwrap_err();
            assert_eq!((error.kind(), store.used()), (io::ErrorKind::StorageFull, 9 * MIB));
            assert_eq!(*store.complete(&task(1)).unwrap().unwrap().hashes, *hashes);
        }
        take(&store, 1, &file(&content(1, 2 * MIB))).unwrap();
    }

    #[test]
    fn a_file_of_holes_makes_no_way_for_itself() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), 10 * MIB)).unwrap();
        take(&store, 1, &file(&content(1, 8 * MIB))).unwrap();
        let holes = tempfile::tempfile().unwrap();
        holes.set_len(9 * MIB).unwrap();
        assert_eq!(take(&store, 2, &holes).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert!(matches!(store.stat(&task(1)).unwrap(), Stored::Complete { .. }));
        take(&store, 2, &file(&content(2, 9 * MIB))).unwrap();
        assert!(matches!(store.stat(&task(1)).unwrap(), Stored::Absent));
    }

    #[test]
    fn imported_content_has_no_origin_to_be_asked_anew() {
        let dir = tempfile::tempdir().unwrap();
        let config = super::super::StoreConfig { expire: Duration::ZERO, ..config(dir.path(), u64::MAX) };
        let store = Store::open(config).unwrap();
        take(&store, 1, &file(&content(1, MIB))).unwrap();
        assert!(store.expires(SystemTime::UNIX_EPOCH).is_some_and(|at| at < SystemTime::now()));
        assert!(matches!(store.stat(&task(1)).unwrap(), Stored::Complete { .. }));
    }

    #[test]
    fn what_was_deleted_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
        let delete = || {
            let (mut said, mut there) = (None, None);
            store
                .delete(&task(1), |here| {
                    said = Some(here);
                    there = Some((store.is_absent(&task(1)), store.opened(&task(1)).is_some()));
                })
                .unwrap();
            assert_eq!(there, Some((true, false)), "nobody is given it from then on");
            said
        };
        for length in [MIB, 3 * MIB] {
            take(&store, 1, &file(&content(1, length))).unwrap();
            store.complete(&task(1)).unwrap().unwrap();
            assert_eq!([delete(), delete()], [Some(true), Some(false)]);
            assert!(store.complete(&task(1)).unwrap().is_none());
            assert_eq!(store.used(), 0);
        }
    }

    #[test]
    fn a_process_that_dies_leaves_what_was_deleted_whole_or_gone() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
        let dead = |name: &str| {
            let left = dir.path().join(name);
            copy(dir.path(), &left);
            assert!(check(&left, false).unwrap().findings.iter().all(|finding| finding.left_over), "{name}");
            Store::open(config(&left, u64::MAX)).unwrap().complete(&task(1)).unwrap().is_some()
        };
        for length in [1000, 3 * MIB] {
            take(&store, 1, &file(&content(1, length))).unwrap();
            assert!(dead(&format!("before {length}")));
            store
                .delete(&task(1), |_| {
                    dead(&format!("meanwhile {length}"));
                })
                .unwrap();
            assert!(!dead(&format!("after {length}")), "the disk has it when the call ends");
        }
    }

    /// What a process leaves that dies now: what it has written.
    fn copy(from: &Path, to: &Path) {
        std::fs::create_dir(to).unwrap();
        for name in ["catalog.redb", "content", "packs"] {
            let status = Command::new("cp").arg("-r").arg(from.join(name)).arg(to).status();
            assert!(status.unwrap().success());
        }
    }

    #[test]
    fn what_was_asked_for_a_moment_ago_is_told_without_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
        store.collect(SystemTime::now()).unwrap();
        assert!(matches!(store.stat_now(&task(1)), Some(Stored::Absent)));
        for length in [1000, 3 * MIB] {
            take(&store, 1, &file(&content(1, length))).unwrap();
            store.complete(&task(1)).unwrap().unwrap();
            store.pin(&task(1)).unwrap();
            let (now, then) = (store.stat_now(&task(1)).unwrap(), store.stat(&task(1)).unwrap());
            assert_eq!(format!("{now:?}"), format!("{then:?}"));
            assert!(matches!(now, Stored::Complete { pinned: true, .. }), "{now:?}");
        }
    }
}
