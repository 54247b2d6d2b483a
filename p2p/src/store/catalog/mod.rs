//! [`Catalog`]: the complete tasks, in an embedded transactional store (redb).
//!
//! An entry is written after its content was flushed to disk, so whatever the catalog names is there, also after a power
//! cut.
//!
//! After one failed read or write redb refuses everything. So a catalog whose disk was full or gone is closed, and opened
//! anew by whoever needs it next: that rolls back what was not committed.

mod changes;
mod entry;
mod error;
mod open;
#[cfg(test)]
mod tests;

pub(crate) use entry::Entry;
pub(super) use entry::{Move, Removed};
pub(crate) use error::CatalogError;

use self::error::no_page;
use self::open::{Care, Index, Open, inode, open, reserve};
use super::weights::{Short, Weight, names, short};
use darter_protocol::TaskId;
use redb::{
    Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, TableError,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Task id -> length of the record (u32, little-endian), the record, the hashes of all pieces;
/// of what is packed also its place ([`Place::ENCODED`] bytes).
const TASKS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("tasks");
/// Task id -> when it was last opened, in seconds since 1970.
const USED: TableDefinition<'_, &[u8; 32], u64> = TableDefinition::new("used");
/// Task id -> when it was pinned, in seconds since 1970; complete or not. Not there before the first pin.
const PINNED: TableDefinition<'_, &[u8; 32], u64> = TableDefinition::new("pinned");

/// The complete tasks.
#[derive(Debug)]
pub(crate) struct Catalog {
    path: PathBuf,
    care: Care,
    /// `None` until it is opened, and after a failure.
    database: RwLock<Option<Open>>,
}

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
            Ok(tasks.get(task.as_bytes())?.and_then(|value| Entry::decode(value.value())))
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

    /// Whether there is an entry of a task, readable or not.
    pub(crate) fn contains(&self, task: &TaskId) -> Result<bool, CatalogError> {
        self.with(|database| Ok(database.begin_read()?.open_table(TASKS)?.get(task.as_bytes())?.is_some()))
    }

    /// Whether a task is pinned, if that is known without a look at the disk. Does not block.
    pub(super) fn is_pinned_now(&self, task: &TaskId) -> Option<bool> {
        let database = self.database.try_read().ok()?;
        super::lock(&database.as_ref()?.index).is_pinned(task.as_bytes())
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
                all.push((
                    short(id.value()),
                    Weight::of(Entry::decode(value.value()).as_ref(), when, pinned),
                ));
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
                each(TaskId::from(*id.value()), Entry::decode(value.value()), when);
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
