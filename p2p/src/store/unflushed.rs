//! [`Unflushed`]: what was imported, and is not on the disk yet.
//!
//! A download is flushed before it is complete: whoever reads it has every byte before that, and waits for nothing. Whoever
//! imports a file would wait for the disk alone, for a gigabyte twice as long as for everything else (two cores, a disk of
//! 1.5 GB/s). So an import ends when its bytes are hashed and in the catalog, and the disk writes them a moment later.
//!
//! Until it has them the task keeps its journal, which was flushed before the entry was made. Who finds both after a crash
//! compares every byte with its hash, and forgets what is not right: the next start (`Store::tidy`), and `check`. A process
//! that is killed loses nothing so, and a power cut what was imported a moment before; neither makes a wrong byte right.

use super::catalog::Entry;
use super::names::{journal_path, remove_file};
use super::{Partial, Store, TaskFile, lock};
use darter_protocol::{PieceHash, TaskId};
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

/// A complete task of which the disk does not have every byte yet.
#[derive(Debug)]
pub(crate) struct Unflushed {
    task: TaskId,
    file: Arc<TaskFile>,
}

impl Store {
    /// As [`Self::commit`], but does not wait for the disk: somebody is to call [`Self::flush`] with what this gives. `None`
    /// when the disk has it.
    pub(super) fn commit_unflushed(
        &self,
        task: &TaskId,
        partial: &Partial,
        hashes: Vec<PieceHash>,
    ) -> io::Result<Option<Unflushed>> {
        if partial.file.is_staged() {
            return self.commit(task, partial, hashes).map(|()| None);
        }
        let entry = Entry { record: partial.record.clone(), hashes, place: None };
        let entered = partial
            .sync_journal()
            .and_then(|()| self.sync_names(task))
            .and_then(|()| Ok(self.catalog.insert(task, &entry, SystemTime::now())?));
        entered.inspect_err(|error| self.judge(error))?;
        let _names = lock(&self.names);
        lock(&self.partials).remove(task);
        Ok(Some(Unflushed { task: *task, file: Arc::clone(&partial.file) }))
    }

    /// Waits until the disk has what was imported. Blocks.
    ///
    /// # Errors
    /// When it cannot be written: it is forgotten then, for what is read again may be something else.
    pub(crate) fn flush(&self, Unflushed { task, file }: &Unflushed) -> io::Result<()> {
        self.flushed(task, file, file.sync())
    }

    /// The disk has a task's content, or cannot have it.
    fn flushed(&self, task: &TaskId, file: &TaskFile, synced: io::Result<()>) -> io::Result<()> {
        let synced = synced.inspect_err(|error| self.judge(error));
        let _names = lock(&self.names);
        let path = self.path(task);
        match (synced, file.is_at(&path)) {
            // Deleted, or replaced, meanwhile: what stands there is another's.
            (_, Ok(false)) => Ok(()),
            (Ok(()), Ok(true)) => remove_file(&journal_path(&path)),
            (Ok(()), Err(error)) => Err(error),
            (Err(error), _) => {
                // The content first: without it nobody is given what the disk may have in its place, whatever becomes of the entry.
                let unlinked = self.unlink(task);
                let gone = self.forget_named(&[*task])?;
                lock(&self.evicted).extend(gone);
                unlinked.and(Err(error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{MIB, config, task};
    use super::super::{Fault, Reading, Stored, check};
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;
    use std::path::Path;

    /// A file of so many bytes, each `fill`.
    fn file(fill: u8, length: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![fill; length as usize], 0).unwrap();
        file
    }

    fn take(store: &Store, given: &File) -> Option<Unflushed> {
        store.import(&task(1), given, &Reading::default()).unwrap().unflushed
    }

    fn open(dir: &Path) -> Store {
        Store::open(config(dir, u64::MAX)).unwrap()
    }

    fn is_here(store: &Store) -> bool {
        store.complete(&task(1)).unwrap().is_some()
    }

    /// A store into which a file was imported, that has died before the disk had it; what a power cut leaves of it.
    fn crashed(lost: Option<u64>) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let unflushed = take(&store, &file(3, 3 * MIB));
        assert!(unflushed.is_some() && is_here(&store), "it can be served at once");
        if let Some(lost) = lost {
            let content = File::options().write(true).open(store.path(&task(1))).unwrap();
            content.write_all_at(&[0; 100], lost).unwrap();
        }
        dir
    }

    #[test]
    fn what_the_disk_does_not_have_yet_survives_a_crash_if_every_byte_is_there() {
        let dir = crashed(None);
        for _ in 0..2 {
            let store = open(dir.path());
            assert!(is_here(&store) && !journal_path(&store.path(&task(1))).exists());
        }
    }

    #[test]
    fn what_the_disk_did_not_get_is_never_served() {
        let dir = crashed(Some(2 * MIB + 5));
        let store = open(dir.path());
        assert!(!is_here(&store));
        assert!(matches!(store.stat(&task(1)).unwrap(), Stored::Absent | Stored::Partial));
    }

    #[test]
    fn check_tells_what_a_crash_has_left() {
        let whole = crashed(None);
        let report = check(whole.path(), true).unwrap();
        assert!(report.findings.iter().map(|is| &is.fault).eq([&Fault::StrayJournal]), "{report:?}");
        assert!(is_here(&open(whole.path())));

        let damaged = crashed(Some(5));
        let report = check(damaged.path(), false).unwrap();
        let [finding] = &report.findings[..] else { panic!("{report:?}") };
        assert_eq!(finding.fault, Fault::WrongPieces { wrong: 1, pieces: 3 });
        assert!(finding.left_over, "the next start takes it away");
    }

    #[test]
    fn what_is_flushed_is_as_a_download_is() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let unflushed = take(&store, &file(3, 3 * MIB)).unwrap();
        assert!(journal_path(&store.path(&task(1))).exists());
        store.flush(&unflushed).unwrap();
        assert!(!journal_path(&store.path(&task(1))).exists() && is_here(&store));
    }

    #[test]
    fn what_the_disk_cannot_have_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let Unflushed { task, file } = take(&store, &file(3, 3 * MIB)).unwrap();
        assert!(is_here(&store));
        let failed = store.flushed(&task, &file, Err(io::Error::other("the disk is gone")));
        assert!(failed.is_err() && !is_here(&store) && !store.path(&task).exists());
        assert_eq!((store.take_evicted(), store.used()), (vec![task], 0));
    }

    #[test]
    fn what_has_taken_its_place_is_not_taken_for_flushed() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let first = take(&store, &file(3, 3 * MIB)).unwrap();
        let _second = take(&store, &file(4, 3 * MIB)).unwrap();
        store.flush(&first).unwrap();
        assert!(journal_path(&store.path(&task(1))).exists(), "it is the second one's");
        store.delete(&task(1), |_| ()).unwrap();
        store.flush(&first).unwrap();
    }

    #[test]
    fn what_is_small_is_on_the_disk_at_once() {
        let dir = tempfile::tempdir().unwrap();
        assert!(take(&open(dir.path()), &file(3, 4096)).is_none());
        assert!(is_here(&open(dir.path())));
    }
}
