//! The content on disk: complete tasks, which survive anything, and incomplete ones, which resume.
//!
//! Under the store's folder:
//!
//! ```text
//! catalog.redb           which tasks are complete, with their piece hashes (see `catalog`)
//! content/ab/<task id>   one file per task, preallocated
//! content/ab/<task id>.partial   the journal of a task that is not complete (see `journal`)
//! ```
//!
//! Invariants: a task is either in the catalog, or has a journal, or is not there. A file without either is left over
//! from a crash and is removed at the next start. An entry enters the catalog only after its content was verified and
//! flushed. Everything here blocks; the callers go to blocking threads.

mod alarm;
mod catalog;
mod check;
mod collect;
mod file;
mod import;
mod journal;
mod record;

use crate::origin::IMPORTED;
use alarm::Alarm;
use catalog::{Catalog, Entry};
use darter_protocol::{PieceHash, PieceIndex, PieceLayout, TaskId};
use journal::Journal;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

pub use check::{Fault, Finding, StoreReport, check};
use file::Access;
pub(crate) use file::TaskFile;
pub(crate) use import::Imported;
pub(crate) use record::{Record, decode_hashes, encode_hashes};

/// Where the catalog stands in the store's folder.
const CATALOG: &str = "catalog.redb";

/// Complete tasks that are kept open, and for how long after their last use.
const MAX_OPENED: u64 = 512;
const OPENED_FOR: Duration = Duration::from_secs(30);

/// Where content is kept, and how much of it for how long.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The folder; made when it is not there.
    pub dir: PathBuf,
    /// Bytes of content above which the least recently used is evicted.
    pub quota: u64,
    /// Percent of the file system's space in use (by anybody) above which content is evicted: 1 to 100.
    pub quota_percent: u8,
    /// Content that nobody opened for so long is evicted; content without a digest is fetched anew at this age.
    pub expire: Duration,
}

/// The store cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the content store {}: {reason}", dir.display())]
pub struct StoreError {
    dir: PathBuf,
    reason: String,
}

/// The content on disk.
#[derive(Debug)]
pub(crate) struct Store {
    config: StoreConfig,
    catalog: Catalog,
    alarm: Alarm,
    /// Bytes reserved by complete and incomplete tasks.
    used: AtomicU64,
    /// Complete tasks that were opened a moment ago: a small object that many ask for costs no look at the disk. Each holds
    /// a file open.
    opened: moka::sync::Cache<TaskId, Complete>,
    /// When complete tasks were last opened, until that is written to the catalog.
    touched: Mutex<HashMap<TaskId, SystemTime>>,
    /// Incomplete tasks. Those that nobody works on may be evicted, too: each has its whole space reserved.
    partials: Mutex<HashMap<TaskId, Weak<InUse>>>,
    /// Tasks that were evicted, until somebody asks.
    evicted: Mutex<Vec<TaskId>>,
    /// Held while files appear under or vanish from their names, and while the file of a catalog entry is opened: so an
    /// eviction cannot unlink what a new download just made, and what a new download just made is not taken for complete.
    names: Mutex<()>,
    /// The catalog, by device and number, with which the folder was last tidied. Whoever needs the catalog opens it, and
    /// nobody has counted then what is there.
    tidied: Mutex<Option<(u64, u64)>>,
}

/// Somebody works on an incomplete task.
#[derive(Debug)]
struct InUse;

/// A complete task.
#[derive(Debug, Clone)]
pub(crate) struct Complete {
    pub(crate) record: Record,
    pub(crate) hashes: Arc<[PieceHash]>,
    pub(crate) file: Arc<TaskFile>,
}

/// What the store has of a task.
#[derive(Debug)]
pub(crate) enum Stored {
    Absent,
    Partial,
    /// Complete, and too old to be served: see [`StoreConfig::expire`].
    Stale,
    Complete {
        length: u64,
        created: SystemTime,
        file: PathBuf,
    },
}

/// Pieces that are on disk, with their hashes.
pub(crate) type Held = Vec<(PieceIndex, PieceHash)>;

/// A task that is being downloaded.
#[derive(Debug)]
pub(crate) struct Partial {
    pub(crate) record: Record,
    pub(crate) file: Arc<TaskFile>,
    journal: Journal,
    _in_use: Arc<InUse>,
}

impl Partial {
    /// Notes that `piece` is on disk, for a later start. That is no promise: what is not noted is fetched again then, and
    /// nobody who waits for the content now need be told.
    pub(crate) fn note(&mut self, piece: PieceIndex, hash: &PieceHash) {
        if let Err(error) = self.journal.append(piece, hash) {
            tracing::warn!(%error, "a download will not be resumed where it is now");
        }
    }
}

impl Store {
    /// Opens the store and clears away what a crash left behind. On a disk that is full or read-only the store stays closed,
    /// and opens when it can be: nothing is stored until then.
    ///
    /// # Errors
    /// When the folder cannot be made or read, or another process uses it.
    pub(crate) fn open(config: StoreConfig) -> Result<Self, StoreError> {
        let store = Self {
            catalog: Catalog::at(config.dir.join(CATALOG)),
            config,
            alarm: Alarm::default(),
            used: AtomicU64::new(0),
            opened: moka::sync::Cache::builder().max_capacity(MAX_OPENED).time_to_idle(OPENED_FOR).build(),
            touched: Mutex::default(),
            partials: Mutex::default(),
            evicted: Mutex::default(),
            names: Mutex::default(),
            tidied: Mutex::default(),
        };
        let opened = store.try_open();
        match opened {
            Err(error) if is_passing(&error) => store.alarm.hear(&store.config.dir, Err(&error)),
            Err(error) => return Err(StoreError { dir: store.config.dir, reason: error.to_string() }),
            Ok(()) => {}
        }
        Ok(store)
    }

    fn try_open(&self) -> io::Result<()> {
        std::fs::create_dir_all(self.config.dir.join("content"))?;
        self.catalog.open()?;
        let catalog = self.catalog.open_inode();
        self.tidy()?;
        *lock(&self.tidied) = catalog;
        Ok(())
    }

    /// The task, if it is complete and was opened a moment ago. Counts as a use of it. Does not block.
    ///
    /// It may have been evicted meanwhile; whoever holds an open file may read it all the same.
    pub(crate) fn opened(&self, task: &TaskId) -> Option<Complete> {
        let complete = self.opened.get(task)?;
        let now = SystemTime::now();
        if self.is_stale(&complete.record, now) {
            return None;
        }
        lock(&self.touched).insert(*task, now);
        Some(complete)
    }

    /// The task, if it is complete. Counts as a use of it.
    pub(crate) fn complete(&self, task: &TaskId) -> io::Result<Option<Complete>> {
        let _names = lock(&self.names);
        let Some(Entry { record, hashes }) = self.catalog.get(task)? else {
            return Ok(None);
        };
        let now = SystemTime::now();
        if self.is_stale(&record, now) {
            self.forget_named(&[*task])?;
            return Ok(None);
        }
        let layout = layout(&record)?;
        let file = match TaskFile::open(&self.path(task), layout, Access::Read) {
            Ok(file) => Arc::new(file),
            // The file was taken away under us: an entry without content is worth nothing.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {
                tracing::warn!(%task, %error, "a stored task has lost its file; it will be fetched again");
                self.forget_named(&[*task])?;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        lock(&self.touched).insert(*task, now);
        let complete = Complete { record, hashes: hashes.into(), file };
        self.opened.insert(*task, complete.clone());
        Ok(Some(complete))
    }

    /// What there is of a task. No use of it.
    pub(crate) fn stat(&self, task: &TaskId) -> io::Result<Stored> {
        let path = self.path(task);
        let Some(Entry { record, .. }) = self.catalog.get(task)? else {
            let journal = journal_path(&path).try_exists()?;
            return Ok(if journal { Stored::Partial } else { Stored::Absent });
        };
        let stale = self.is_stale(&record, SystemTime::now());
        Ok(if stale {
            Stored::Stale
        } else {
            Stored::Complete { length: record.info.length, created: record.created, file: path }
        })
    }

    /// What has no digest may have changed at its origin after a while.
    fn is_stale(&self, record: &Record, now: SystemTime) -> bool {
        grows_stale(record) && self.expires(record.created).is_some_and(|at| at < now)
    }

    /// Makes room for a task and reserves its space.
    ///
    /// # Errors
    /// `StorageFull` when it does not fit, even after evicting all that may go.
    pub(crate) fn create(&self, task: &TaskId, record: Record) -> io::Result<Partial> {
        let layout = layout(&record)?;
        let length = layout.length();
        self.make_room(length)?;
        let created = match self.try_create(task, record.clone(), layout) {
            // Others use this disk, too.
            Err(error) if is_full(&error) && self.free_up(length)? => {
                self.take_space(length)?;
                self.try_create(task, record, layout)
            }
            tried => tried,
        };
        created.inspect_err(|error| self.judge(error))
    }

    /// Makes a task's files. Its space was taken; it is given back on failure.
    fn try_create(&self, task: &TaskId, record: Record, layout: PieceLayout) -> io::Result<Partial> {
        let created = self.create_named(task, record, layout);
        // May take its time for a large task: nobody who only looks for a name waits for it.
        let reserved = created.and_then(|partial| partial.file.reserve().map(|()| partial));
        if reserved.is_err() {
            self.discard(task)?;
        }
        reserved
    }

    /// As [`Self::try_create`], without reserving the space on the disk; what there is of the files on failure stays.
    fn create_named(&self, task: &TaskId, record: Record, layout: PieceLayout) -> io::Result<Partial> {
        let _names = lock(&self.names);
        // What was taken for a file that has its length goes back with it, and for any other now.
        self.make_files(task, record, layout).inspect_err(|_| self.give_space(layout.length()))
    }

    /// Puts a task's files in place of what was called so. `names` is held.
    fn make_files(&self, task: &TaskId, record: Record, layout: PieceLayout) -> io::Result<Partial> {
        let path = self.path(task);
        std::fs::create_dir_all(path.parent().expect("the path of a task has a folder"))?;
        // Never truncate: somebody may still read an earlier file of this name through an open descriptor.
        self.unlink(task)?;
        let journal = Journal::create(&journal_path(&path), &record, layout.pieces())?;
        let file = Arc::new(TaskFile::create(&path, layout)?);
        Ok(Partial { record, file, journal, _in_use: self.occupy(task) })
    }

    /// Counts `length` more bytes as used.
    ///
    /// # Errors
    /// `StorageFull` when that is more than the quota.
    fn take_space(&self, length: u64) -> io::Result<()> {
        let fits = |used: u64| used.checked_add(length).filter(|total| *total <= self.config.quota);
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        taken.map(drop).map_err(|_| io::ErrorKind::StorageFull.into())
    }

    fn give_space(&self, length: u64) {
        let rest = |used: u64| Some(used.saturating_sub(length));
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest);
    }

    /// Notes that somebody works on an incomplete task, until what this gives is dropped. `names` is held.
    fn occupy(&self, task: &TaskId) -> Arc<InUse> {
        let in_use = Arc::new(InUse);
        lock(&self.partials).insert(*task, Arc::downgrade(&in_use));
        in_use
    }

    /// An incomplete task from before, with those of its noted pieces whose bytes match their hashes; those in `checked`
    /// are known to. `None` when there is none, or when it does not fit together.
    pub(crate) fn resume(
        &self,
        task: &TaskId,
        checked: &[(PieceIndex, PieceHash)],
    ) -> io::Result<Option<(Partial, Held)>> {
        let path = self.path(task);
        let (opened, in_use) = {
            let _names = lock(&self.names);
            match Journal::open(&journal_path(&path)) {
                Ok(opened) => (opened, self.occupy(task)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            }
        };
        let Some((journal, record, noted)) = opened else {
            self.discard(task)?;
            return Ok(None);
        };
        let layout = layout(&record)?;
        let Ok(file) = TaskFile::open(&path, layout, Access::Write) else {
            self.discard(task)?;
            return Ok(None);
        };
        let noted: HashMap<PieceIndex, PieceHash> =
            noted.into_iter().filter(|(piece, _)| layout.piece(piece.get()).is_some()).collect();
        let checked: HashMap<PieceIndex, PieceHash> = checked.iter().copied().collect();
        let mut verified = Vec::with_capacity(noted.len());
        for (piece, hash) in noted {
            if checked.get(&piece) == Some(&hash) {
                verified.push((piece, hash));
                continue;
            }
            let mut hasher = darter_protocol::hash::PieceHasher::new(&layout, piece);
            file.read_piece(piece, |part| hasher.update(part))?;
            if hasher.finish() == hash {
                verified.push((piece, hash));
            }
        }
        Ok(Some((Partial { record, file: Arc::new(file), journal, _in_use: in_use }, verified)))
    }

    /// Makes a task complete: flushed first, then entered, then its journal goes. The content must have been verified.
    pub(crate) fn commit(
        &self,
        task: &TaskId,
        record: Record,
        file: &TaskFile,
        hashes: Vec<PieceHash>,
    ) -> io::Result<()> {
        self.enter(task, file, Entry { record, hashes }).inspect_err(|error| self.judge(error))?;
        let _names = lock(&self.names);
        lock(&self.partials).remove(task);
        remove_file(&journal_path(&self.path(task)))
    }

    fn enter(&self, task: &TaskId, file: &TaskFile, entry: Entry) -> io::Result<()> {
        file.sync()?;
        // So that the file is found under its name after a power cut, too.
        let folder = self.path(task);
        for folder in folder.ancestors().skip(1).take(2) {
            std::fs::File::open(folder)?.sync_all()?;
        }
        Ok(self.catalog.insert(task, &entry, SystemTime::now())?)
    }

    /// Whether the disk takes content.
    pub(crate) fn alarm(&self) -> &Alarm {
        &self.alarm
    }

    /// Throws an incomplete task away.
    pub(crate) fn discard(&self, task: &TaskId) -> io::Result<()> {
        let _names = lock(&self.names);
        self.unlink(task)
    }

    /// Throws a task away, unless a download works on it. Gives whether there was anything of it.
    pub(crate) fn delete(&self, task: &TaskId) -> io::Result<bool> {
        let _names = lock(&self.names);
        let complete = !self.forget_named(&[*task])?.is_empty();
        let idle = lock(&self.partials).get(task).is_some_and(|in_use| in_use.strong_count() == 0);
        if idle {
            self.unlink(task)?;
        }
        Ok(complete || idle)
    }

    /// Calls `each` with every complete task.
    pub(crate) fn inventory(&self, mut each: impl FnMut(TaskId, &Record, &[PieceHash])) -> io::Result<()> {
        Ok(self.catalog.for_each(|task, entry, _| {
            if let Some(Entry { record, hashes }) = entry {
                each(task, &record, &hashes);
            }
        })?)
    }

    /// Bytes reserved by all tasks.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes complete tasks out of the catalog, then removes their files. Gives those that were there: where one was
    /// not, the files of its name are those of a download that has begun since.
    fn forget(&self, tasks: &[TaskId]) -> io::Result<Vec<TaskId>> {
        let _names = lock(&self.names);
        self.forget_named(tasks)
    }

    /// As [`Self::forget`]. `names` is held.
    fn forget_named(&self, tasks: &[TaskId]) -> io::Result<Vec<TaskId>> {
        let gone = match self.catalog.remove(tasks).map_err(io::Error::from) {
            Err(error) if is_full(&error) => self.forget_without_room(tasks)?,
            removed => removed?,
        };
        gone.iter().try_for_each(|task| self.unlink(task))?;
        // The cache lets go of what it forgets when it is asked to: only a closed file gives its space back.
        self.opened.run_pending_tasks();
        Ok(gone)
    }

    /// There is not even room for saying what goes: then the files go first. An entry without its file is noticed by whoever
    /// comes across it.
    fn forget_without_room(&self, tasks: &[TaskId]) -> io::Result<Vec<TaskId>> {
        for task in tasks {
            // With a journal it is a download that has begun since.
            if !journal_path(&self.path(task)).try_exists()? {
                self.unlink(task)?;
            }
        }
        self.opened.run_pending_tasks();
        Ok(self.catalog.remove(tasks)?)
    }

    /// Removes a task's files and gives back what they reserved. `names` is held.
    fn unlink(&self, task: &TaskId) -> io::Result<()> {
        self.opened.invalidate(task);
        let path = self.path(task);
        let length = std::fs::metadata(&path).map_or(0, |meta| meta.len());
        remove_file(&journal_path(&path))?;
        remove_file(&path)?;
        // Not before: what cannot be removed now is tried again.
        lock(&self.partials).remove(task);
        self.give_space(length);
        Ok(())
    }

    /// When content that was stored or used at `since` is expired; `None` for never.
    fn expires(&self, since: SystemTime) -> Option<SystemTime> {
        since.checked_add(self.config.expire)
    }

    /// Where a task's content stands.
    fn path(&self, task: &TaskId) -> PathBuf {
        content_path(&self.config.dir, task)
    }
}

/// Where a task's content stands in the store in `dir`.
fn content_path(dir: &Path, task: &TaskId) -> PathBuf {
    let name = task.to_string();
    dir.join("content").join(&name[..2]).join(name)
}

/// Every file under `content/`, journals included.
fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for folder in std::fs::read_dir(dir.join("content"))? {
        let folder = folder?.path();
        if folder.is_dir() {
            for file in std::fs::read_dir(folder)? {
                files.push(file?.path());
            }
        }
    }
    Ok(files)
}

/// What is known by its place at an origin only: that may have changed, however much it is used here.
fn grows_stale(record: &Record) -> bool {
    record.digest.is_none() && !record.info.headers.contains_key(IMPORTED)
}

/// There is no room on the disk.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The disk may take content again without anybody's changing our configuration.
fn is_passing(error: &io::Error) -> bool {
    is_full(error) || error.kind() == io::ErrorKind::ReadOnlyFilesystem
}

fn journal_path(content: &Path) -> PathBuf {
    content.with_extension("partial")
}

/// Removes a file. One that is not there is as good as removed.
fn remove_file(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn layout(record: &Record) -> io::Result<PieceLayout> {
    record
        .layout()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the content is too long to be kept"))
}

/// The state behind these locks is valid between any two statements, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ContentInfo;
    use darter_protocol::hash::PieceHasher;

    const MIB: u64 = 1 << 20;
    const PIECE: u64 = PieceLayout::MIN_PIECE_SIZE;

    pub(crate) fn config(dir: &Path, quota: u64) -> StoreConfig {
        StoreConfig { dir: dir.to_owned(), quota, quota_percent: 100, expire: Duration::from_secs(3600) }
    }

    pub(crate) fn task(n: u8) -> TaskId {
        TaskId::from([n; 32])
    }

    pub(crate) fn record(length: u64) -> Record {
        let digest = format!("sha256:{}", "00".repeat(32)).parse().unwrap();
        Record::new(ContentInfo { length, headers: http::HeaderMap::new() }, Some(digest))
    }

    pub(crate) fn write_piece(partial: &mut Partial, index: u32, fill: u8) -> PieceHash {
        let layout = *partial.file.layout();
        let piece = layout.piece(index).unwrap();
        let bytes = vec![fill; layout.range(piece).len() as usize];
        partial.file.write_at(layout.range(piece).start(), &bytes).unwrap();
        let mut hasher = PieceHasher::new(&layout, piece);
        hasher.update(&bytes);
        partial.note(piece, &hasher.finish());
        hasher.finish()
    }

    pub(crate) fn store_complete(store: &Store, task: &TaskId, length: u64) {
        let mut partial = store.create(task, record(length)).unwrap();
        let hashes: Vec<_> =
            partial.file.layout().iter().map(|piece| write_piece(&mut partial, piece.get(), 7)).collect();
        store.commit(task, partial.record, &partial.file, hashes).unwrap();
    }

    #[test]
    fn a_complete_task_survives_a_restart_and_a_partial_one_resumes() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
        store_complete(&store, &task(1), 3 * PIECE - 5);
        let mut partial = store.create(&task(2), record(3 * PIECE)).unwrap();
        let hash = write_piece(&mut partial, 1, 3);
        write_piece(&mut partial, 2, 4);
        // The journal claims piece 2, but its bytes did not survive.
        partial.file.write_at(2 * PIECE + 5, b"xyz").unwrap();
        drop((store, partial));

        let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
        assert_eq!(store.used(), 6 * PIECE - 5);
        assert_eq!(store.complete(&task(1)).unwrap().unwrap().hashes.len(), 3);
        assert!(store.complete(&task(2)).unwrap().is_none());
        let (_, verified) = store.resume(&task(2), &[]).unwrap().unwrap();
        assert_eq!(verified, vec![(PieceIndex::new(1), hash)]);
        assert!(store.resume(&task(3), &[]).unwrap().is_none());
    }

    #[test]
    fn what_a_crash_left_behind_is_cleared_away() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
        store_complete(&store, &task(1), MIB);
        store_complete(&store, &task(2), MIB);
        let (kept, lost) = (store.path(&task(1)), store.path(&task(2)));
        drop(store);
        std::fs::remove_file(&lost).unwrap();
        let orphan = kept.with_file_name("0".repeat(64));
        std::fs::write(&orphan, b"left over").unwrap();

        let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
        assert!(!orphan.exists());
        assert!(store.complete(&task(1)).unwrap().is_some());
        assert!(store.complete(&task(2)).unwrap().is_none());
        assert_eq!(store.used(), MIB);
    }

    #[test]
    fn an_open_file_outlives_its_eviction_and_its_successor() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
        store_complete(&store, &task(1), MIB);
        let held = store.complete(&task(1)).unwrap().unwrap();
        store.forget(&[task(1)]).unwrap();
        let mut next = store.create(&task(1), record(MIB)).unwrap();
        write_piece(&mut next, 0, 9);
        held.file.read_piece(PieceIndex::new(0), |part| assert!(part.iter().all(|byte| *byte == 7))).unwrap();
    }

    #[test]
    fn an_evicted_task_is_closed_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
        store_complete(&store, &task(1), MIB);
        let file = Arc::downgrade(&store.complete(&task(1)).unwrap().unwrap().file);
        assert!(file.upgrade().is_some(), "kept open for the next one");
        store.forget(&[task(1)]).unwrap();
        assert!(file.upgrade().is_none());
    }

    #[test]
    fn what_does_not_fit_is_refused_before_a_byte_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), 10 * MIB)).unwrap();
        assert_eq!(store.create(&task(1), record(11 * MIB)).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(store.used(), 0);
        assert!(!store.path(&task(1)).exists());
    }
    #[test]
    fn a_download_that_starts_over_does_not_count_twice() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
        for _ in 0..3 {
            drop(store.create(&task(1), record(9 * MIB)).unwrap());
            assert_eq!(store.used(), 9 * MIB);
        }
        store.discard(&task(1)).unwrap();
        assert_eq!(store.used(), 0);
    }

    #[test]
    fn files_that_cannot_be_made_take_no_space() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
        // What cannot be removed is in the way, as on a disk that has become read-only.
        std::fs::create_dir_all(store.path(&task(1))).unwrap();
        assert!(store.create(&task(1), record(MIB)).is_err());
        assert_eq!(store.used(), 0);
        // Longer than ext4 lets a file be, and than any disk has room for.
        let huge = record(PieceLayout::MAX_LENGTH);
        store.take_space(huge.info.length).unwrap();
        let layout = layout(&huge).unwrap();
        assert!(store.try_create(&task(2), huge, layout).is_err());
        assert_eq!(store.used(), 0);
    }

    #[test]
    fn what_cannot_be_removed_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
        drop(store.create(&task(1), record(MIB)).unwrap());
        let path = store.path(&task(1));
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(store.delete(&task(1)).is_err());
        std::fs::remove_dir(&path).unwrap();
        assert!(store.delete(&task(1)).unwrap());
        assert!(!store.delete(&task(1)).unwrap());
    }

    #[test]
    fn what_a_download_just_made_is_not_forgotten_with_what_was_there_before() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
        store_complete(&store, &task(1), MIB);
        assert_eq!(store.forget(&[task(1)]).unwrap(), [task(1)]);
        let mut partial = store.create(&task(1), record(MIB)).unwrap();
        // A second one who found the same entry expired, a moment later.
        assert_eq!(store.forget(&[task(1)]).unwrap(), []);
        let hash = write_piece(&mut partial, 0, 7);
        store.commit(&task(1), partial.record, &partial.file, vec![hash]).unwrap();
        assert!(store.complete(&task(1)).unwrap().is_some());
    }

    #[test]
    fn a_record_from_the_far_future_is_no_panic() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
        let created = SystemTime::UNIX_EPOCH + Duration::from_secs(i64::MAX as u64 - 5);
        let record = Record { digest: None, created, ..record(0) };
        let partial = store.create(&task(1), record).unwrap();
        store.commit(&task(1), partial.record, &partial.file, vec![]).unwrap();
        assert!(store.complete(&task(1)).unwrap().is_some());
        store.collect(SystemTime::now()).unwrap();
    }
    #[test]
    fn what_was_checked_is_not_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
        let mut partial = store.create(&task(1), record(3 * PIECE)).unwrap();
        let held = [
            (PieceIndex::new(0), write_piece(&mut partial, 0, 3)),
            (PieceIndex::new(1), write_piece(&mut partial, 1, 4)),
        ];
        // Only whoever reads a piece notices.
        partial.file.write_at(0, &[9; 2 * PIECE as usize]).unwrap();
        drop(partial);
        let other_hash = [held[0], (held[1].0, held[0].1)];
        assert_eq!(store.resume(&task(1), &other_hash).unwrap().unwrap().1, [held[0]]);
        assert_eq!(store.resume(&task(1), &[]).unwrap().unwrap().1, []);
    }
}
