//! [`Catalog`]: the complete tasks, in an embedded transactional store (redb).
//!
//! An entry is written after its content was flushed to disk, so whatever the catalog names is there, also after a power
//! cut.
//!
//! After one failed read or write redb refuses everything. So a catalog whose disk was full or gone is closed, and opened
//! anew by whoever needs it next: that rolls back what was not committed.

use super::names::remove_file;
use super::pack::Place;
use super::record::{Record, decode_hashes, encode_hashes, seconds};
use super::weights::{Short, Weight, Weights, names, short};
use darter_protocol::{PieceHash, TaskId};
use redb::{
    Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, TableError,
};
use rustix::fs::FallocateFlags;
use std::cell::Cell;
use std::collections::HashSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Task id -> length of the record (u32, little-endian), the record, the hashes of all pieces;
/// of what is packed also its place ([`Place::ENCODED`] bytes).
const TASKS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("tasks");
/// Task id -> when it was last opened, in seconds since 1970.
const USED: TableDefinition<'_, &[u8; 32], u64> = TableDefinition::new("used");
/// Task id -> when it was pinned, in seconds since 1970; complete or not. Not there before the first pin.
const PINNED: TableDefinition<'_, &[u8; 32], u64> = TableDefinition::new("pinned");

/// What a catalog may grow by on a full disk, in bytes: some thousand tasks.
const SPARE_BYTES: u64 = 1 << 20;

/// Bytes of a piece's hash.
const HASH_BYTES: usize = 32;

/// Memory for pages of the catalog, in bytes: those above its leaves of a few million tasks.
const CACHE_BYTES: usize = 32 << 20;

/// What went wrong with the catalog.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct CatalogError(#[from] pub(super) redb::Error);

impl CatalogError {
    /// The database must be opened anew.
    fn is_final(&self) -> bool {
        let closed = matches!(self.0, redb::Error::PreviousIo | redb::Error::DatabaseClosed);
        closed || matches!(self.0, redb::Error::Io(_) | redb::Error::Corrupted(_))
    }

    /// What stands in the file is no catalog, whoever opens it. That a file is shorter than it says, redb calls an error of
    /// the disk.
    pub(super) fn is_damage(&self) -> bool {
        match &self.0 {
            redb::Error::Io(error) => {
                matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
            }
            redb::Error::Corrupted(_) => true,
            // Another version's format or tables, or what passes: all that can be read by whoever knows how.
            _ => false,
        }
    }
}

/// As the disk said it, where it did.
impl From<CatalogError> for io::Error {
    fn from(error: CatalogError) -> Self {
        let is_damage = error.is_damage();
        match error.0 {
            redb::Error::Io(error) => error,
            redb::Error::DatabaseAlreadyOpen => Self::other("another process uses it"),
            other if is_damage => {
                Self::other(format!("{other}; `darter store repair` takes away what is damaged"))
            }
            other => Self::other(other),
        }
    }
}

macro_rules! from_redb {
    ($($error:ident),*) => {
        $(impl From<redb::$error> for CatalogError {
            fn from(error: redb::$error) -> Self {
                Self(error.into())
            }
        })*
    };
}
impl From<io::Error> for CatalogError {
    fn from(error: io::Error) -> Self {
        Self(redb::Error::Io(error))
    }
}
from_redb!(DatabaseError, TransactionError, TableError, StorageError, CommitError);

/// A complete task as the catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) record: Record,
    pub(crate) hashes: Vec<PieceHash>,
    /// Where it is packed; `None` when it has a file of its own.
    pub(super) place: Option<Place>,
}

/// An entry that was taken out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Removed {
    pub(super) task: TaskId,
    /// Where it was packed, and its length in bytes.
    pub(super) packed: Option<(Place, u64)>,
}

/// A packed object that lies at another place now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Move {
    pub(super) task: TaskId,
    pub(super) from: Place,
    pub(super) to: Place,
}

/// How much is looked at when a catalog is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Care {
    /// All of it when it was not closed in good order.
    AfterCrash,
    /// All of it.
    Always,
}

/// The complete tasks.
#[derive(Debug)]
pub(crate) struct Catalog {
    path: PathBuf,
    care: Care,
    /// `None` until it is opened, and after a failure.
    database: RwLock<Option<Open>>,
}

/// An open database.
#[derive(Debug)]
struct Open {
    database: Database,
    /// Device and number of its file.
    inode: (u64, u64),
    /// The tasks that are there, and seldom one that is not. So for what nobody has asked for before, nobody looks at the disk.
    index: Index,
    /// All of it was compared with its checksums.
    #[cfg(test)]
    checked: bool,
}

/// The tasks in memory.
type Index = Arc<Mutex<Weights>>;

impl Catalog {
    /// The catalog at `path`, which nobody has opened yet.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path, care: Care::AfterCrash, database: RwLock::new(None) }
    }

    /// The catalog at `path`, all of which is looked at when it is opened, however it was closed.
    pub(super) fn suspected(path: PathBuf) -> Self {
        Self { care: Care::Always, ..Self::at(path) }
    }

    /// Opens the catalog, or makes an empty one; does nothing when it is open. Blocks, as all that follows.
    ///
    /// # Errors
    /// `DatabaseAlreadyOpen` when another process has it.
    pub(crate) fn open(&self) -> Result<(), CatalogError> {
        if self.database.read().unwrap_or_else(PoisonError::into_inner).is_some() {
            return Ok(());
        }
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if database.is_none() {
            *database = Some(open(&self.path, self.care)?);
        }
        Ok(())
    }

    /// Whether the catalog is open, and is still what its path names. Closes it when it is not, and takes the space that it may
    /// need otherwise.
    pub(crate) fn is_current(&self) -> bool {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let named = inode(&self.path);
        let current = database.as_ref().is_some_and(|open| named.is_some_and(|named| named == open.inode));
        drop(database);
        if current {
            reserve(&self.path);
        } else {
            self.close();
        }
        current
    }

    /// Device and number of the file that is open; `None` when none is.
    pub(super) fn open_inode(&self) -> Option<(u64, u64)> {
        self.database.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(|open| open.inode)
    }

    /// The same, without waiting for somebody who opens it: `None` then, too.
    pub(super) fn open_inode_now(&self) -> Option<(u64, u64)> {
        self.database.try_read().ok()?.as_ref().map(|open| open.inode)
    }

    /// Closes it in good order. Whoever needs it opens it again.
    pub(crate) fn close(&self) {
        *self.database.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Does something with the database; closes it when that is all that can be done with it any more.
    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, CatalogError>) -> Result<T, CatalogError> {
        self.open()?;
        let done = match self.database.read().unwrap_or_else(PoisonError::into_inner).as_ref() {
            // redb panics over some pages that it did not write.
            Some(open) => {
                catch_unwind(AssertUnwindSafe(|| work(&open.database))).unwrap_or_else(|_| Err(no_page()))
            }
            // Somebody else's work has failed in between.
            None => Err(redb::Error::DatabaseClosed.into()),
        };
        if done.as_ref().is_err_and(CatalogError::is_final) {
            self.close();
        }
        done
    }

    /// The entry of a task. One that cannot be read counts as absent.
    pub(crate) fn get(&self, task: &TaskId) -> Result<Option<Entry>, CatalogError> {
        self.with(|database| {
            let tasks = database.begin_read()?.open_table(TASKS)?;
            Ok(tasks.get(task.as_bytes())?.and_then(|value| decode(value.value())))
        })
    }

    /// Whether there is certainly no entry of a task; `None` while the catalog is not open. Does not block.
    pub(crate) fn lacks(&self, task: &TaskId) -> Option<bool> {
        let database = self.database.try_read().ok()?;
        Some(!super::lock(&database.as_ref()?.index).contains(task.as_bytes()))
    }

    fn index(&self) -> Option<Index> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        database.as_ref().map(|open| Arc::clone(&open.index))
    }

    /// Adds a complete task, durably.
    pub(crate) fn insert(&self, task: &TaskId, entry: &Entry, now: SystemTime) -> Result<(), CatalogError> {
        self.insert_all(&[(*task, entry.clone())], now)
    }

    /// Adds complete tasks, durably: all, or none.
    pub(super) fn insert_all(
        &self,
        entries: &[(TaskId, Entry)],
        now: SystemTime,
    ) -> Result<(), CatalogError> {
        self.open()?;
        if let Some(index) = self.index() {
            // Before they are there: for one that is not, the disk is looked at for nothing, and no more.
            let mut index = super::lock(&index);
            for (task, entry) in entries {
                index.insert(task.as_bytes(), Weight::of(Some(entry), seconds(now), false));
            }
        }
        let inserted = self.with(|database| {
            let write = database.begin_write()?;
            {
                let mut tasks = write.open_table(TASKS)?;
                let mut used = write.open_table(USED)?;
                for (task, entry) in entries {
                    tasks.insert(task.as_bytes(), encode(entry).as_slice())?;
                    used.insert(task.as_bytes(), seconds(now))?;
                }
            }
            Ok(write.commit()?)
        });
        if inserted.is_err()
            && let Some(index) = self.index()
        {
            // What they replaced may be there still, or they may.
            let mut index = super::lock(&index);
            entries.iter().for_each(|(task, _)| index.note(task.as_bytes()));
        }
        inserted
    }

    /// Notes where packed objects lie now, durably. Gives those that were where they should have been.
    pub(super) fn move_all(&self, moves: &[Move]) -> Result<HashSet<TaskId>, CatalogError> {
        self.with(|database| {
            let mut moved = HashSet::with_capacity(moves.len());
            let write = database.begin_write()?;
            {
                let mut tasks = write.open_table(TASKS)?;
                for Move { task, from, to } in moves {
                    let entry = tasks.get(task.as_bytes())?.and_then(|value| decode(value.value()));
                    if let Some(entry) = entry.filter(|entry| entry.place == Some(*from)) {
                        let entry = Entry { place: Some(*to), ..entry };
                        tasks.insert(task.as_bytes(), encode(&entry).as_slice())?;
                        moved.insert(*task);
                    }
                }
            }
            write.commit()?;
            Ok(moved)
        })
    }

    /// Whether there is an entry of a task, readable or not.
    pub(crate) fn contains(&self, task: &TaskId) -> Result<bool, CatalogError> {
        self.with(|database| Ok(database.begin_read()?.open_table(TASKS)?.get(task.as_bytes())?.is_some()))
    }

    /// Takes tasks out, durably; gives those that were there.
    pub(super) fn remove(&self, remove: &[TaskId]) -> Result<Vec<Removed>, CatalogError> {
        let gone = self.with(|database| {
            let mut gone = Vec::with_capacity(remove.len());
            let write = database.begin_write()?;
            {
                let mut tasks = write.open_table(TASKS)?;
                let mut used = write.open_table(USED)?;
                for task in remove {
                    if let Some(value) = tasks.remove(task.as_bytes())? {
                        let entry = decode(value.value());
                        let packed = entry.and_then(|entry| Some((entry.place?, entry.record.info.length)));
                        gone.push(Removed { task: *task, packed });
                    }
                    used.remove(task.as_bytes())?;
                }
            }
            write.commit()?;
            Ok(gone)
        })?;
        if let Some(index) = self.index() {
            let mut index = super::lock(&index);
            gone.iter().for_each(|gone| index.remove(gone.task.as_bytes()));
        }
        Ok(gone)
    }

    /// Notes when tasks were last opened. Tasks that are not in the catalog are passed over.
    pub(crate) fn touch(&self, when: &[(TaskId, SystemTime)]) -> Result<(), CatalogError> {
        self.with(|database| {
            let write = database.begin_write()?;
            {
                let tasks = write.open_table(TASKS)?;
                let mut used = write.open_table(USED)?;
                for (task, time) in when {
                    if tasks.get(task.as_bytes())?.is_some() {
                        used.insert(task.as_bytes(), seconds(*time))?;
                    }
                }
            }
            Ok(write.commit()?)
        })?;
        if let Some(index) = self.index() {
            let mut index = super::lock(&index);
            when.iter().for_each(|(task, time)| index.touch(task.as_bytes(), seconds(*time)));
        }
        Ok(())
    }

    /// Pins a complete task, durably; `false` when there is no entry of it.
    pub(super) fn pin(&self, task: &TaskId, now: SystemTime) -> Result<bool, CatalogError> {
        let is_here = self.with(|database| {
            let write = database.begin_write()?;
            let is_here = write.open_table(TASKS)?.get(task.as_bytes())?.is_some();
            if is_here {
                write.open_table(PINNED)?.insert(task.as_bytes(), seconds(now))?;
            }
            write.commit()?;
            Ok(is_here)
        })?;
        self.set_pinned(task, is_here);
        Ok(is_here)
    }

    /// Takes a pin away, durably; `false` when there was none.
    pub(super) fn unpin(&self, task: &TaskId) -> Result<bool, CatalogError> {
        // Most that is deleted has no pin, and should cost no transaction.
        if !self.is_pinned(task)? {
            return Ok(false);
        }
        let was_pinned = self.with(|database| {
            let write = database.begin_write()?;
            let was_pinned = write.open_table(PINNED)?.remove(task.as_bytes())?.is_some();
            write.commit()?;
            Ok(was_pinned)
        })?;
        self.set_pinned(task, false);
        Ok(was_pinned)
    }

    fn set_pinned(&self, task: &TaskId, pinned: bool) {
        if let Some(index) = self.index() {
            super::lock(&index).set_pinned(task.as_bytes(), pinned);
        }
    }

    pub(super) fn is_pinned(&self, task: &TaskId) -> Result<bool, CatalogError> {
        self.with(|database| match pins(&database.begin_read()?)? {
            Some(pins) => Ok(pins.get(task.as_bytes())?.is_some()),
            None => Ok(false),
        })
    }

    /// What all tasks weigh. Reads the catalog when it does so for the first time since it was opened.
    pub(super) fn weights(&self) -> Result<Vec<(Short, Weight)>, CatalogError> {
        self.open()?;
        let Some(index) = self.index() else { return Err(redb::Error::DatabaseClosed.into()) };
        if !super::lock(&index).is_known() {
            let all = self.weigh()?;
            super::lock(&index).learn(all);
        }
        let index = super::lock(&index);
        Ok(index.iter().collect())
    }

    fn weigh(&self) -> Result<Vec<(Short, Weight)>, CatalogError> {
        self.with(|database| {
            let read = database.begin_read()?;
            let (tasks, used, pins) = (read.open_table(TASKS)?, read.open_table(USED)?, pins(&read)?);
            let mut all = Vec::new();
            for row in tasks.iter()? {
                let (id, value) = row?;
                let when = used.get(id.value())?.map_or(0, |when| when.value());
                let pinned = pins.as_ref().map(|pins| pins.get(id.value())).transpose()?.flatten().is_some();
                all.push((short(id.value()), Weight::of(decode(value.value()).as_ref(), when, pinned)));
            }
            Ok(all)
        })
    }

    /// The tasks whose names begin so.
    pub(super) fn named(&self, shorts: &[Short]) -> Result<Vec<TaskId>, CatalogError> {
        self.with(|database| {
            let tasks = database.begin_read()?.open_table(TASKS)?;
            let mut named = Vec::with_capacity(shorts.len());
            for short in shorts {
                let names = names(*short);
                for row in tasks.range::<&[u8; 32]>(names.start()..=names.end())? {
                    named.push(TaskId::from(*row?.0.value()));
                }
            }
            Ok(named)
        })
    }

    /// Calls `each` with every task, its entry (`None` when it cannot be read) and when it was last opened. `each` asks
    /// nothing of the catalog.
    pub(crate) fn for_each(
        &self,
        mut each: impl FnMut(TaskId, Option<Entry>, SystemTime),
    ) -> Result<(), CatalogError> {
        self.with(|database| {
            let read = database.begin_read()?;
            let (tasks, used) = (read.open_table(TASKS)?, read.open_table(USED)?);
            for row in tasks.iter()? {
                let (id, value) = row?;
                let when = used.get(id.value())?.map_or(0, |when| when.value());
                let when = UNIX_EPOCH.checked_add(Duration::from_secs(when)).unwrap_or(UNIX_EPOCH);
                each(TaskId::from(*id.value()), decode(value.value()), when);
            }
            Ok(())
        })
    }
}

/// The pins, if there ever was one.
fn pins(read: &ReadTransaction) -> Result<Option<ReadOnlyTable<&'static [u8; 32], u64>>, CatalogError> {
    match read.open_table(PINNED) {
        Ok(pins) => Ok(Some(pins)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

fn no_page() -> CatalogError {
    redb::Error::Corrupted("a page of it is none".to_owned()).into()
}

fn open(path: &Path, care: Care) -> Result<Open, CatalogError> {
    // redb panics over some pages that it did not write.
    catch_unwind(|| open_checked(path, care)).unwrap_or_else(|_| Err(no_page()))
}

/// Opens the database. What was not closed in good order is compared with its checksums, which takes the longer, the larger
/// it is.
fn open_checked(path: &Path, care: Care) -> Result<Open, CatalogError> {
    if !path.try_exists()? {
        create(path)?;
    }
    let crashed = std::rc::Rc::new(Cell::new(false));
    let noticed = std::rc::Rc::clone(&crashed);
    let mut database = Database::builder()
        .set_cache_size(CACHE_BYTES)
        .set_repair_callback(move |_| noticed.set(true))
        .open(path)?;
    let suspected = care == Care::Always || crashed.get();
    if suspected && !database.check_integrity()? {
        // What is missing in an older state, or is too much, is put right when the folder is looked through.
        tracing::warn!(path = %path.display(), "the catalog was damaged; an older state of it is used");
    }
    reserve(path);
    let mut index = Weights::default();
    for row in database.begin_read()?.open_table(TASKS)?.iter()? {
        index.note(row?.0.value());
    }
    Ok(Open {
        database,
        inode: inode(path).unwrap_or_default(),
        index: Arc::new(Mutex::new(index)),
        #[cfg(test)]
        checked: suspected,
    })
}

/// Makes an empty catalog, whole or not at all: half a one, for which there was no room, could never be opened.
fn create(path: &Path) -> Result<(), CatalogError> {
    let beside = path.with_extension("new");
    remove_file(&beside)?;
    let database = Database::create(&beside)?;
    let write = database.begin_write()?;
    write.open_table(TASKS)?;
    write.open_table(USED)?;
    write.commit()?;
    drop(database);
    Ok(std::fs::rename(beside, path)?)
}

/// Takes the space of the file's holes, and some behind its end: on a disk that others have filled, to evict something takes
/// a transaction, and so may opening the catalog after a crash. Where that cannot be had it is gone without.
fn reserve(path: &Path) {
    let reserved = std::fs::File::options().write(true).open(path).and_then(|file| {
        let length = file.metadata()?.len() + SPARE_BYTES;
        Ok(rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, length)?)
    });
    if let Err(error) = reserved {
        tracing::debug!(%error, "no space could be reserved for the catalog");
    }
}

fn encode(entry: &Entry) -> Vec<u8> {
    let record = entry.record.encode();
    let mut bytes = [&(record.len() as u32).to_le_bytes(), record.as_slice()].concat();
    bytes.extend(encode_hashes(&entry.hashes));
    bytes.extend(entry.place.iter().flat_map(|place| place.encode()));
    bytes
}

fn decode(bytes: &[u8]) -> Option<Entry> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (record, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    let record = Record::decode(record)?;
    let layout = record.layout()?;
    let (hashes, place) = rest.split_at_checked(layout.pieces() as usize * HASH_BYTES)?;
    let place = match <[u8; Place::ENCODED]>::try_from(place) {
        Ok(place) => Some(Place::decode(place)?),
        Err(_) if place.is_empty() => None,
        Err(_) => return None,
    };
    Some(Entry { hashes: decode_hashes(&layout, hashes)?, record, place })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ContentInfo;
    use darter_protocol::PieceLayout;

    fn entry(length: u64) -> Entry {
        let record = Record::new(ContentInfo { length, headers: http::HeaderMap::new() }, None);
        let pieces = record.layout().unwrap().pieces();
        Entry { place: None, record, hashes: (0..pieces).map(|n| PieceHash::from([n as u8; 32])).collect() }
    }

    #[test]
    fn entries_survive_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog.redb");
        let (a, b) = (TaskId::from([1; 32]), TaskId::from([2; 32]));
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let catalog = Catalog::at(path.clone());
        catalog.insert(&a, &entry(PieceLayout::MIN_PIECE_SIZE * 2 + 1), now).unwrap();
        catalog.insert(&b, &entry(0), now).unwrap();
        let gone = catalog.remove(&[b, TaskId::from([3; 32])]).unwrap();
        assert_eq!(gone.iter().map(|gone| gone.task).collect::<Vec<_>>(), [b]);
        assert!(catalog.contains(&a).unwrap() && !catalog.contains(&b).unwrap());
        let later = now + Duration::from_secs(5);
        catalog.touch(&[(a, later), (b, later)]).unwrap();
        drop(catalog);

        let catalog = Catalog::at(path);
        assert_eq!(catalog.get(&a).unwrap().unwrap().hashes.len(), 3);
        assert!(catalog.get(&b).unwrap().is_none());
        let mut all = Vec::new();
        catalog.for_each(|task, entry, used| all.push((task, entry.is_some(), used))).unwrap();
        assert_eq!(all, vec![(a, true, later)]);
    }

    #[test]
    fn only_what_was_not_closed_in_good_order_is_looked_at_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (path, crashed) = (dir.path().join("catalog.redb"), dir.path().join("crashed.redb"));
        let catalog = Catalog::at(path.clone());
        let was_checked = |catalog: &Catalog| {
            catalog.open().unwrap();
            catalog.database.read().unwrap().as_ref().unwrap().checked
        };
        catalog.insert(&TaskId::from([1; 32]), &entry(0), UNIX_EPOCH).unwrap();
        std::fs::copy(&path, &crashed).unwrap();
        catalog.close();
        assert!(!was_checked(&catalog));
        drop(catalog);
        assert!(was_checked(&Catalog::at(crashed)));
        assert!(was_checked(&Catalog::suspected(path)));
    }

    #[test]
    fn what_is_not_there_is_known_without_a_look_at_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::at(dir.path().join("catalog.redb"));
        let (a, b) = (TaskId::from([1; 32]), TaskId::from([2; 32]));
        assert_eq!(catalog.lacks(&a), None, "nobody has opened it");
        catalog.insert(&a, &entry(0), UNIX_EPOCH).unwrap();
        assert_eq!((catalog.lacks(&a), catalog.lacks(&b)), (Some(false), Some(true)));
        catalog.close();
        catalog.open().unwrap();
        assert_eq!((catalog.lacks(&a), catalog.lacks(&b)), (Some(false), Some(true)));
        catalog.remove(&[a]).unwrap();
        assert_eq!(catalog.lacks(&a), Some(true));
    }

    #[test]
    fn only_what_nobody_could_read_is_damage() {
        let is_damage = |error: redb::Error| CatalogError(error).is_damage();
        assert!(is_damage(redb::Error::Corrupted("a page".to_owned())));
        assert!(is_damage(redb::Error::Io(io::ErrorKind::UnexpectedEof.into())));
        assert!(!is_damage(redb::Error::UpgradeRequired(1)));
        assert!(!is_damage(redb::Error::TableDoesNotExist("tasks".to_owned())));
        assert!(!is_damage(redb::Error::Io(io::ErrorKind::PermissionDenied.into())));
    }

    #[test]
    fn a_second_process_is_told_that_the_catalog_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog.redb");
        let first = Catalog::at(path.clone());
        first.open().unwrap();
        assert!(matches!(Catalog::at(path).open(), Err(CatalogError(redb::Error::DatabaseAlreadyOpen))));
    }
}
