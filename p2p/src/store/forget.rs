//! How content leaves the store: out of the catalog first, then off the disk.

use super::catalog::{CatalogError, Removed};
use super::names::{journal_path, remove_file};
use super::pack::Step;
use super::{Store, extent_length, is_full, lock};
use darter_protocol::TaskId;
use std::io;

impl Store {
    /// Takes complete tasks out of the catalog, then removes their content. Gives those that were there: where one was
    /// not, the files of its name are those of a download that has begun since.
    pub(super) fn forget(&self, tasks: &[TaskId]) -> io::Result<Vec<TaskId>> {
        let _names = lock(&self.names);
        self.forget_named(tasks)
    }

    /// As [`Self::forget`]. `names` is held.
    pub(super) fn forget_named(&self, tasks: &[TaskId]) -> io::Result<Vec<TaskId>> {
        self.forget_by(tasks, || self.catalog.remove(tasks))
    }

    /// As [`Self::forget_named`]. Tells `gone` whether it was there, before the disk has it that it is not.
    pub(super) fn forget_soon(&self, task: &TaskId, gone: impl FnOnce(bool)) -> io::Result<()> {
        let (tasks, mut gone) = (&[*task], Some(gone));
        let removed = self.forget_by(tasks, || {
            let removed = self.catalog.remove_soon(tasks)?;
            if !removed.is_empty() {
                self.opened.invalidate(task);
                gone.take().into_iter().for_each(|gone| gone(true));
                self.catalog.settle()?;
            }
            Ok(removed)
        })?;
        gone.into_iter().for_each(|gone| gone(!removed.is_empty()));
        Ok(())
    }

    /// Forgets tasks, which `remove` takes out of the catalog.
    fn forget_by(
        &self,
        tasks: &[TaskId],
        remove: impl FnOnce() -> Result<Vec<Removed>, CatalogError>,
    ) -> io::Result<Vec<TaskId>> {
        let gone = match remove().map_err(io::Error::from) {
            Err(error) if is_full(&error) => self.forget_without_room(tasks)?,
            // They may be gone all the same.
            removed => removed.inspect_err(|_| self.untidy())?,
        };
        let own = gone.iter().filter(|gone| gone.packed.is_none());
        own.map(|gone| &gone.task).try_for_each(|task| self.unlink(task))?;
        self.let_go(&gone)?;
        Ok(gone.into_iter().map(|gone| gone.task).collect())
    }

    /// There is not even room for saying what goes: then the content goes first. An entry without its content is noticed by
    /// whoever comes across it.
    fn forget_without_room(&self, tasks: &[TaskId]) -> io::Result<Vec<Removed>> {
        for task in tasks {
            match self.catalog.get(task)? {
                Some(entry) if entry.place.is_some() => {
                    let length = entry.record.info.length;
                    self.opened.invalidate(task);
                    entry.place.into_iter().for_each(|place| self.packs.free_early((place, length)));
                }
                // The files are those of a download that has begun since.
                _ if lock(&self.partials).contains_key(task) => {}
                _ => self.unlink(task)?,
            }
        }
        self.opened.run_pending_tasks();
        Ok(self.catalog.remove(tasks)?)
    }

    /// Lets go of packed content that the catalog names no more.
    fn let_go(&self, gone: &[Removed]) -> io::Result<()> {
        gone.iter().for_each(|gone| self.opened.invalidate(&gone.task));
        // The cache lets go of what it forgets when it is asked to: only what nobody has open gives its space back.
        self.opened.run_pending_tasks();
        let packed: Vec<_> = gone.iter().filter_map(|gone| gone.packed).collect();
        packed.iter().for_each(|(_, length)| self.space.give(extent_length(*length)));
        self.packs.step(Step::Forgotten)?;
        self.packs.free(&packed);
        Ok(())
    }

    /// Removes a task's files and gives back what they reserved. `names` is held.
    pub(super) fn unlink(&self, task: &TaskId) -> io::Result<()> {
        self.opened.invalidate(task);
        let path = self.path(task);
        let length = std::fs::metadata(&path).map_or(0, |meta| meta.len());
        remove_file(&journal_path(&path))?;
        remove_file(&path)?;
        // Not before: what cannot be removed now is tried again.
        lock(&self.partials).remove(task);
        self.space.give(length);
        Ok(())
    }
}
