//! [`Catalog`]: the complete tasks, in an embedded transactional store (redb).
//!
//! An entry is written after its content was flushed to disk, so whatever the catalog names is there, also after a power
//! cut.
//!
//! After one failed read or write redb refuses everything. So a catalog whose disk was full or gone is closed, and opened
//! anew by whoever needs it next: that rolls back what was not committed.

use super::record::{Record, decode_hashes, encode_hashes, seconds};
use darter_protocol::{PieceHash, TaskId};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use rustix::fs::FallocateFlags;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Task id -> length of the record (u32, little-endian), the record, the hashes of all pieces.
const TASKS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("tasks");
/// Task id -> when it was last opened, in seconds since 1970.
const USED: TableDefinition<'_, &[u8; 32], u64> = TableDefinition::new("used");

/// What a catalog may grow by on a full disk, in bytes: some thousand tasks.
const SPARE_BYTES: u64 = 1 << 20;

/// What went wrong with the catalog.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct CatalogError(#[from] pub(super) redb::Error);

impl CatalogError {
    /// The database must be opened anew.
    fn is_final(&self) -> bool {
        matches!(self.0, redb::Error::Io(_) | redb::Error::PreviousIo | redb::Error::DatabaseClosed)
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
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) record: Record,
    pub(crate) hashes: Vec<PieceHash>,
}

/// The complete tasks.
#[derive(Debug)]
pub(crate) struct Catalog {
    path: PathBuf,
    /// `None` until it is opened, and after a failure.
    database: RwLock<Option<Open>>,
}

/// An open database.
#[derive(Debug)]
struct Open {
    database: Database,
    /// Device and number of its file.
    inode: (u64, u64),
}

impl Catalog {
    /// The catalog at `path`, which nobody has opened yet.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path, database: RwLock::new(None) }
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
            *database = Some(open(&self.path)?);
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

    fn close(&self) {
        *self.database.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Does something with the database; closes it when that is all that can be done with it any more.
    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, CatalogError>) -> Result<T, CatalogError> {
        self.open()?;
        let done = match self.database.read().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Some(open) => work(&open.database),
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

    /// Adds a complete task, durably.
    pub(crate) fn insert(&self, task: &TaskId, entry: &Entry, now: SystemTime) -> Result<(), CatalogError> {
        self.with(|database| {
            let write = database.begin_write()?;
            write.open_table(TASKS)?.insert(task.as_bytes(), encode(entry).as_slice())?;
            write.open_table(USED)?.insert(task.as_bytes(), seconds(now))?;
            Ok(write.commit()?)
        })
    }

    /// Whether there is an entry of a task, readable or not.
    pub(crate) fn contains(&self, task: &TaskId) -> Result<bool, CatalogError> {
        self.with(|database| Ok(database.begin_read()?.open_table(TASKS)?.get(task.as_bytes())?.is_some()))
    }

    /// Takes tasks out, durably; gives those that were there.
    pub(crate) fn remove(&self, remove: &[TaskId]) -> Result<Vec<TaskId>, CatalogError> {
        self.with(|database| {
            let mut gone = Vec::with_capacity(remove.len());
            let write = database.begin_write()?;
            {
                let mut tasks = write.open_table(TASKS)?;
                let mut used = write.open_table(USED)?;
                for task in remove {
                    if tasks.remove(task.as_bytes())?.is_some() {
                        gone.push(*task);
                    }
                    used.remove(task.as_bytes())?;
                }
            }
            write.commit()?;
            Ok(gone)
        })
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

fn inode(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Opens the database, and compares all of it with its checksums.
fn open(path: &Path) -> Result<Open, CatalogError> {
    // redb panics over some pages that it did not write.
    catch_unwind(|| open_checked(path))
        .unwrap_or_else(|_| Err(redb::Error::Corrupted("a page of it is none".to_owned()).into()))
}

fn open_checked(path: &Path) -> Result<Open, CatalogError> {
    if !path.try_exists()? {
        create(path)?;
    }
    let mut database = Database::open(path)?;
    if !database.check_integrity()? {
        // What is missing in an older state, or is too much, is put right when the folder is looked through.
        tracing::warn!(path = %path.display(), "the catalog was damaged; an older state of it is used");
    }
    reserve(path);
    Ok(Open { database, inode: inode(path).unwrap_or_default() })
}

/// Makes an empty catalog, whole or not at all: half a one, for which there was no room, could never be opened.
fn create(path: &Path) -> Result<(), CatalogError> {
    let beside = path.with_extension("new");
    super::remove_file(&beside)?;
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
    [&(record.len() as u32).to_le_bytes(), record.as_slice(), &encode_hashes(&entry.hashes)].concat()
}

fn decode(bytes: &[u8]) -> Option<Entry> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (record, hashes) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    let record = Record::decode(record)?;
    let hashes = decode_hashes(&record.layout()?, hashes)?;
    Some(Entry { record, hashes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ContentInfo;
    use darter_protocol::PieceLayout;

    fn entry(length: u64) -> Entry {
        let record = Record::new(ContentInfo { length, headers: http::HeaderMap::new() }, None);
        let pieces = record.layout().unwrap().pieces();
        Entry { record, hashes: (0..pieces).map(|n| PieceHash::from([n as u8; 32])).collect() }
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
        assert_eq!(catalog.remove(&[b, TaskId::from([3; 32])]).unwrap(), [b]);
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
