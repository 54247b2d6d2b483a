//! What is written into the catalog: each in one transaction, that is, all of it or nothing, and durably, unless it says otherwise.

use super::entry::{Entry, Move, Removed};
use super::{Catalog, CatalogError, PINNED, TASKS, USED};
use crate::store::lock;
use crate::store::record::seconds;
use crate::store::weights::Weight;
use darter_protocol::TaskId;
use redb::{Durability, ReadableTable};
use std::collections::HashSet;
use std::time::SystemTime;

impl Catalog {
    /// Adds a complete task, durably.
    pub(crate) fn insert(&self, task: &TaskId, entry: &Entry, now: SystemTime) -> Result<(), CatalogError> {
        self.insert_all(&[(*task, entry.clone())], now)
    }

    /// Adds complete tasks, durably: all, or none.
    pub(in crate::store) fn insert_all(
        &self,
        entries: &[(TaskId, Entry)],
        now: SystemTime,
    ) -> Result<(), CatalogError> {
        self.open()?;
        if let Some(index) = self.index() {
            // Before they are there: for one that is not, the disk is looked at for nothing, and no more.
            let mut index = lock(&index);
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
                    tasks.insert(task.as_bytes(), entry.encode().as_slice())?;
                    used.insert(task.as_bytes(), seconds(now))?;
                }
            }
            Ok(write.commit()?)
        });
        if inserted.is_err()
            && let Some(index) = self.index()
        {
            // What they replaced may be there still, or they may.
            let mut index = lock(&index);
            entries.iter().for_each(|(task, _)| index.note(task.as_bytes()));
        }
        inserted
    }

    /// Notes where packed objects lie now, durably. Gives those that were where they should have been.
    pub(in crate::store) fn move_all(&self, moves: &[Move]) -> Result<HashSet<TaskId>, CatalogError> {
        self.with(|database| {
            let mut moved = HashSet::with_capacity(moves.len());
            let write = database.begin_write()?;
            {
                let mut tasks = write.open_table(TASKS)?;
                for Move { task, from, to } in moves {
                    let entry = tasks.get(task.as_bytes())?.and_then(|value| Entry::decode(value.value()));
                    if let Some(entry) = entry.filter(|entry| entry.place == Some(*from)) {
                        let entry = Entry { place: Some(*to), ..entry };
                        tasks.insert(task.as_bytes(), entry.encode().as_slice())?;
                        moved.insert(*task);
                    }
                }
            }
            write.commit()?;
            Ok(moved)
        })
    }

    /// Takes tasks out, durably; gives those that were there.
    pub(in crate::store) fn remove(&self, remove: &[TaskId]) -> Result<Vec<Removed>, CatalogError> {
        self.remove_by(remove, Durability::Immediate)
    }

    /// As [`Self::remove`]; durably only with the next change, for which [`Self::settle`] will do.
    pub(in crate::store) fn remove_soon(&self, remove: &[TaskId]) -> Result<Vec<Removed>, CatalogError> {
        self.remove_by(remove, Durability::None)
    }

    /// Makes durable what is not.
    pub(in crate::store) fn settle(&self) -> Result<(), CatalogError> {
        self.with(|database| Ok(database.begin_write()?.commit()?))
    }

    fn remove_by(&self, remove: &[TaskId], durability: Durability) -> Result<Vec<Removed>, CatalogError> {
        let gone = self.with(|database| {
            let mut gone = Vec::with_capacity(remove.len());
            let mut write = database.begin_write()?;
            write.set_durability(durability).map_err(redb::Error::from)?;
            {
                let mut tasks = write.open_table(TASKS)?;
                let mut used = write.open_table(USED)?;
                for task in remove {
                    if let Some(value) = tasks.remove(task.as_bytes())? {
                        let entry = Entry::decode(value.value());
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
            let mut index = lock(&index);
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
            let mut index = lock(&index);
            when.iter().for_each(|(task, time)| index.touch(task.as_bytes(), seconds(*time)));
        }
        Ok(())
    }

    /// Pins a complete task, durably; `false` when there is no entry of it.
    pub(in crate::store) fn pin(&self, task: &TaskId, now: SystemTime) -> Result<bool, CatalogError> {
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
    pub(in crate::store) fn unpin(&self, task: &TaskId) -> Result<bool, CatalogError> {
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
            lock(&index).set_pinned(task.as_bytes(), pinned);
        }
    }
}
