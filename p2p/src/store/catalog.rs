//! [`Catalog`]: the complete tasks, in an embedded transactional store (redb).
//!
//! An entry is written after its content was flushed to disk, so whatever the catalog names is there, also after a power
//! cut.

use super::record::{Record, decode_hashes, encode_hashes, seconds};
use darter_protocol::{PieceHash, TaskId};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Task id -> length of the record (u32, little-endian), the record, the hashes of all pieces.
const TASKS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("tasks");
/// Task id -> when it was last opened, in seconds since 1970.
const USED: TableDefinition<'_, &[u8; 32], u64> = TableDefinition::new("used");

/// What went wrong with the catalog.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct CatalogError(#[from] pub(super) redb::Error);

macro_rules! from_redb {
    ($($error:ident),*) => {
        $(impl From<redb::$error> for CatalogError {
            fn from(error: redb::$error) -> Self {
                Self(error.into())
            }
        })*
    };
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
pub(crate) struct Catalog(Database);

impl Catalog {
    /// Opens the catalog, or makes an empty one. Blocks, as all that follows.
    ///
    /// # Errors
    /// `DatabaseAlreadyOpen` when another process has it.
    pub(crate) fn open(path: &Path) -> Result<Self, CatalogError> {
        let database = Database::create(path)?;
        let write = database.begin_write()?;
        write.open_table(TASKS)?;
        write.open_table(USED)?;
        write.commit()?;
        Ok(Self(database))
    }

    /// The entry of a task. One that cannot be read counts as absent.
    pub(crate) fn get(&self, task: &TaskId) -> Result<Option<Entry>, CatalogError> {
        let tasks = self.0.begin_read()?.open_table(TASKS)?;
        Ok(tasks.get(task.as_bytes())?.and_then(|value| decode(value.value())))
    }

    /// Adds a complete task, durably.
    pub(crate) fn insert(&self, task: &TaskId, entry: &Entry, now: SystemTime) -> Result<(), CatalogError> {
        let write = self.0.begin_write()?;
        write.open_table(TASKS)?.insert(task.as_bytes(), encode(entry).as_slice())?;
        write.open_table(USED)?.insert(task.as_bytes(), seconds(now))?;
        Ok(write.commit()?)
    }

    /// Whether there is an entry of a task, readable or not.
    pub(crate) fn contains(&self, task: &TaskId) -> Result<bool, CatalogError> {
        Ok(self.0.begin_read()?.open_table(TASKS)?.get(task.as_bytes())?.is_some())
    }

    /// Takes tasks out, durably; gives those that were there.
    pub(crate) fn remove(&self, remove: &[TaskId]) -> Result<Vec<TaskId>, CatalogError> {
        let mut gone = Vec::with_capacity(remove.len());
        let write = self.0.begin_write()?;
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
    }

    /// Notes when tasks were last opened. Tasks that are not in the catalog are passed over.
    pub(crate) fn touch(&self, when: &[(TaskId, SystemTime)]) -> Result<(), CatalogError> {
        let write = self.0.begin_write()?;
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
    }

    /// Calls `each` with every task, its entry (`None` when it cannot be read) and when it was last opened.
    pub(crate) fn for_each(
        &self,
        mut each: impl FnMut(TaskId, Option<Entry>, SystemTime),
    ) -> Result<(), CatalogError> {
        let read = self.0.begin_read()?;
        let (tasks, used) = (read.open_table(TASKS)?, read.open_table(USED)?);
        for row in tasks.iter()? {
            let (id, value) = row?;
            let when = used.get(id.value())?.map_or(0, |when| when.value());
            let when = UNIX_EPOCH.checked_add(Duration::from_secs(when)).unwrap_or(UNIX_EPOCH);
            each(TaskId::from(*id.value()), decode(value.value()), when);
        }
        Ok(())
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
        let catalog = Catalog::open(&path).unwrap();
        catalog.insert(&a, &entry(PieceLayout::MIN_PIECE_SIZE * 2 + 1), now).unwrap();
        catalog.insert(&b, &entry(0), now).unwrap();
        assert_eq!(catalog.remove(&[b, TaskId::from([3; 32])]).unwrap(), [b]);
        assert!(catalog.contains(&a).unwrap() && !catalog.contains(&b).unwrap());
        let later = now + Duration::from_secs(5);
        catalog.touch(&[(a, later), (b, later)]).unwrap();
        drop(catalog);

        let catalog = Catalog::open(&path).unwrap();
        assert_eq!(catalog.get(&a).unwrap().unwrap().hashes.len(), 3);
        assert!(catalog.get(&b).unwrap().is_none());
        let mut all = Vec::new();
        catalog.for_each(|task, entry, used| all.push((task, entry.is_some(), used))).unwrap();
        assert_eq!(all, vec![(a, true, later)]);
    }

    #[test]
    fn a_second_process_is_told_that_the_catalog_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog.redb");
        let _first = Catalog::open(&path).unwrap();
        assert!(matches!(Catalog::open(&path), Err(CatalogError(redb::Error::DatabaseAlreadyOpen))));
    }
}
