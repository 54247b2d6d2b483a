//! The content on disk: complete tasks, which survive anything, and incomplete ones, which resume.
//!
//! Under the store's folder:
//!
//! ```text
//! catalog.redb           which tasks are complete, with their piece hashes (see `catalog`)
//! content/ab/<task id>   one file per task above a MiB
//! content/ab/<task id>.partial   the journal of a task that is not complete (see `journal`)
//! packs/<number>.pack    smaller tasks, many in one file (see `pack`)
//! ```
//!
//! Invariants: a task is either in the catalog, or has a journal, or is in memory, or is not there. A file without an entry
//! or a journal is left over from a crash and is removed at the next start, and so is what no entry names in a pack. An entry
//! enters the catalog only after its content was verified and flushed, or keeps its journal until it is (see `unflushed`). Everything here blocks unless it says otherwise; the
//! callers go to blocking threads.
//!
//! Locks, in the order in which they are taken: the writer of the packs, `names`, and then any other, one at a time.

mod alarm;
mod buffers;
mod catalog;
mod check;
mod collect;
mod file;
mod forget;
mod given;
mod guard;
mod held;
mod import;
mod journal;
mod names;
mod pack;
mod partial;
mod pins;
mod record;
mod space;
#[cfg(test)]
pub(crate) mod tests;
mod unflushed;
mod weights;

use crate::origin::IMPORTED;
use alarm::Alarm;
use catalog::{Catalog, Entry};
use collect::takes;
use darter_protocol::hash::PieceHasher;
use darter_protocol::{PieceHash, PieceLayout, TaskId};
use guard::Guard;
use names::{CATALOG, PACKS, content_path, journal_path, remove_file, sync_folder};
use pack::{Packs, Place, Waiting, extent_length};
use partial::InUse;
use space::Space;
use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};
use tokio::sync::oneshot;

pub use check::{Fault, Finding, StoreReport, check};
use file::Access;
pub(crate) use file::TaskFile;
pub use given::Given;
pub(crate) use given::Reading;
pub(crate) use held::{Held, Noted, Right};
pub(crate) use import::Imported;
pub(crate) use partial::{Partial, Reservation};
pub(crate) use pins::PinGauges;
pub use pins::PinsUse;
pub(crate) use record::{Record, decode_hashes, encode_hashes};
pub(crate) use unflushed::Unflushed;

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
    /// Small objects.
    packs: Packs,
    alarm: Alarm,
    pins: PinGauges,
    space: Arc<Space>,
    guard: Mutex<Option<Guard>>,
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
    /// nobody has counted then what is there; `None` also after a transaction of which nobody knows whether it was done.
    tidied: Mutex<Option<(u64, u64)>>,
}

/// A complete task.
#[derive(Debug, Clone)]
pub(crate) struct Complete {
    pub(crate) record: Record,
    pub(crate) hashes: Arc<[PieceHash]>,
    pub(crate) file: Arc<TaskFile>,
    /// Where it is packed; `None` when it has a file of its own.
    place: Option<Place>,
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
        pinned: bool,
    },
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
            packs: Packs::at(config.dir.join(PACKS)),
            alarm: Alarm::default(),
            pins: PinGauges::default(),
            space: Space::new(config.quota),
            guard: Mutex::default(),
            config,
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
        self.take_folder()?;
        self.catalog.open()?;
        self.tidy()
    }

    fn take_folder(&self) -> io::Result<()> {
        let mut guard = lock(&self.guard);
        if !guard.as_ref().is_some_and(|guard| guard.is_of(&self.config.dir)) {
            *guard = Some(Guard::take(&self.config.dir)?);
        }
        Ok(())
    }

    /// Closes the catalog in good order: the next start need not look at all of it.
    pub(crate) fn close(&self) -> io::Result<()> {
        let touched: Vec<_> = lock(&self.touched).drain().collect();
        let noted = if touched.is_empty() { Ok(()) } else { self.catalog.touch(&touched) };
        self.catalog.close();
        Ok(noted?)
    }

    /// Whether the catalog is open, and the folder as it says. Does not block.
    fn is_tidied(&self) -> bool {
        let open = self.catalog.open_inode_now();
        open.is_some() && open == *lock(&self.tidied)
    }

    /// Whether there is certainly no complete task of this name. Does not block.
    pub(crate) fn is_absent(&self, task: &TaskId) -> bool {
        self.catalog.lacks(task) == Some(true)
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
        let Some((entry, file)) = self.open_complete(task)? else {
            return Ok(None);
        };
        // Many objects share a segment, and the catalog alone says which is where.
        if entry.place.is_some() && !matches(&file, &entry.hashes)? {
            tracing::warn!(%task, "a stored task is not what it was; it will be fetched again");
            let _names = lock(&self.names);
            if self.is_still(task, &entry)? {
                self.forget_named(&[*task])?;
            }
            return Ok(None);
        }
        lock(&self.touched).insert(*task, SystemTime::now());
        Ok(Some(self.keep_opened(task, entry, file)))
    }

    /// A task that was found complete, for the next one, too: unless it was evicted, moved or replaced meanwhile.
    fn keep_opened(&self, task: &TaskId, entry: Entry, file: TaskFile) -> Complete {
        let _names = lock(&self.names);
        // What was found right can be served, whatever becomes of the catalog.
        let is_still = self.is_still(task, &entry).unwrap_or(false);
        let Entry { record, hashes, place } = entry;
        let complete = Complete { record, hashes: hashes.into(), file: Arc::new(file), place };
        if is_still {
            self.opened.insert(*task, complete.clone());
        }
        complete
    }

    /// Whether the catalog says of a task what it said before. `names` is held.
    fn is_still(&self, task: &TaskId, entry: &Entry) -> io::Result<bool> {
        Ok(self.catalog.get(task)?.as_ref() == Some(entry))
    }

    /// The entry of a complete task, and its content as it is found.
    fn open_complete(&self, task: &TaskId) -> io::Result<Option<(Entry, TaskFile)>> {
        let _names = lock(&self.names);
        let Some(entry) = self.catalog.get(task)? else {
            return Ok(None);
        };
        if self.is_stale(&entry.record, SystemTime::now()) {
            self.forget_named(&[*task])?;
            return Ok(None);
        }
        let layout = layout(&entry.record)?;
        let opened = match entry.place {
            Some(place) => self.packs.open(place, layout),
            None => TaskFile::open(&self.path(task), layout, Access::Read),
        };
        match opened {
            Ok(file) => Ok(Some((entry, file))),
            // The file was taken away under us: an entry without content is worth nothing.
            Err(error) if is_loss(&error) => {
                tracing::warn!(%task, %error, "a stored task has lost its file; it will be fetched again");
                self.forget_named(&[*task])?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// As [`Self::stat`], if that takes no look at the disk: of what was opened a moment ago, or is certainly not there. Does not
    /// block.
    pub(crate) fn stat_now(&self, task: &TaskId) -> Option<Stored> {
        if self.is_absent(task) {
            return self.has_no_partial(task).then_some(Stored::Absent);
        }
        let Complete { record, place, .. } = self.opened.get(task)?;
        let pinned = self.catalog.is_pinned_now(task)?;
        Some(self.stored(task, &record, place, pinned))
    }

    /// What there is of a task. No use of it.
    pub(crate) fn stat(&self, task: &TaskId) -> io::Result<Stored> {
        let Some(Entry { record, place, .. }) = self.catalog.get(task)? else {
            let journal = journal_path(&self.path(task)).try_exists()?;
            return Ok(if journal { Stored::Partial } else { Stored::Absent });
        };
        Ok(self.stored(task, &record, place, self.catalog.is_pinned(task)?))
    }

    /// What a task is that is complete.
    fn stored(&self, task: &TaskId, record: &Record, place: Option<Place>, pinned: bool) -> Stored {
        if self.is_stale(record, SystemTime::now()) {
            return Stored::Stale;
        }
        let file = place.map_or_else(|| self.path(task), |place| self.packs.path(place));
        Stored::Complete { length: record.info.length, created: record.created, file, pinned }
    }

    /// What has no digest may have changed at its origin after a while.
    fn is_stale(&self, record: &Record, now: SystemTime) -> bool {
        grows_stale(record) && self.expires(record.created).is_some_and(|at| at < now)
    }

    /// Makes a task complete: flushed first, then entered, then its journal goes. The content must have been verified.
    pub(crate) fn commit(&self, task: &TaskId, partial: &Partial, hashes: Vec<PieceHash>) -> io::Result<()> {
        if !partial.file.is_staged() {
            return self.commit_file(task, partial.record.clone(), &partial.file, hashes);
        }
        let (leads, told) = self.pack(task, partial, hashes, true);
        if leads {
            self.write_groups();
        }
        told.blocking_recv().map_err(io::Error::other)?
    }

    /// As [`Self::commit`], of a task with a file of its own.
    pub(crate) fn commit_file(
        &self,
        task: &TaskId,
        record: Record,
        file: &TaskFile,
        hashes: Vec<PieceHash>,
    ) -> io::Result<()> {
        let entry = Entry { record, hashes, place: None };
        self.enter(task, file, entry).inspect_err(|error| self.judge(error))?;
        let _names = lock(&self.names);
        lock(&self.partials).remove(task);
        remove_file(&journal_path(&self.path(task)))
    }

    /// Makes a small task complete that is in memory, together with others; what is given tells when that is done. `true`: the
    /// caller must see to it that [`Self::write_groups`] is called. Does not block.
    pub(crate) fn pack(
        &self,
        task: &TaskId,
        partial: &Partial,
        hashes: Vec<PieceHash>,
        hurry: bool,
    ) -> (bool, oneshot::Receiver<io::Result<()>>) {
        let (done, told) = oneshot::channel();
        let waiting = Waiting {
            task: *task,
            entry: Entry { record: partial.record.clone(), hashes, place: None },
            file: Arc::clone(&partial.file),
            done,
            _in_use: Arc::clone(&partial.in_use),
        };
        (self.packs.add(waiting, hurry), told)
    }

    fn enter(&self, task: &TaskId, file: &TaskFile, entry: Entry) -> io::Result<()> {
        file.sync()?;
        self.sync_names(task)?;
        Ok(self.catalog.insert(task, &entry, SystemTime::now())?)
    }

    /// Makes the names of a task's files survive a power cut.
    fn sync_names(&self, task: &TaskId) -> io::Result<()> {
        self.path(task).ancestors().skip(1).take(2).try_for_each(sync_folder)
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

    /// Throws a task away, unless a download works on it, and its pin. Tells `gone` whether there was anything of it, as soon as
    /// nobody is given it any more. When this returns, the disk has that, too; a crash in between undoes it.
    pub(crate) fn delete(&self, task: &TaskId, gone: impl FnOnce(bool)) -> io::Result<()> {
        let _names = lock(&self.names);
        self.make_way_named(task, gone)?;
        // Afterwards: there may be no room to write it down before. And before anybody else can pin what gets its name.
        self.unpin(task)?;
        Ok(())
    }

    /// Throws a task away for content that gets its name; the pin is on the name, and stays.
    fn make_way(&self, task: &TaskId) -> io::Result<()> {
        let _names = lock(&self.names);
        self.make_way_named(task, |_| ())
    }

    /// As [`Self::delete`], and leaves the pin. `names` is held.
    fn make_way_named(&self, task: &TaskId, gone: impl FnOnce(bool)) -> io::Result<()> {
        let idle = lock(&self.partials).get(task).is_some_and(|in_use| in_use.strong_count() == 0);
        self.forget_soon(task, |complete| gone(complete || idle))?;
        if idle { self.unlink(task) } else { Ok(()) }
    }

    /// Calls `each` with every complete task.
    pub(crate) fn inventory(&self, mut each: impl FnMut(TaskId, &Record, &[PieceHash])) -> io::Result<()> {
        Ok(self.catalog.for_each(|task, entry, _| {
            if let Some(Entry { record, hashes, .. }) = entry {
                each(task, &record, &hashes);
            }
        })?)
    }

    /// Bytes reserved by all tasks.
    pub(crate) fn used(&self) -> u64 {
        self.space.used()
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

/// There is no content where some should be.
fn is_loss(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
    matches!(error.kind(), NotFound | InvalidData | UnexpectedEof)
}

/// Whether content is what its hashes say. Reads all of it.
fn matches(file: &TaskFile, hashes: &[PieceHash]) -> io::Result<bool> {
    let layout = file.layout();
    for (piece, hash) in layout.iter().zip(hashes) {
        let mut hasher = PieceHasher::new(layout, piece);
        file.read_piece(piece, |part| hasher.update(part))?;
        if hasher.finish() != *hash {
            return Ok(false);
        }
    }
    Ok(true)
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
