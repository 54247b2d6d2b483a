//! The file of the catalog: opened, checked when that is due, made, and given space in advance.

use super::error::no_page;
use super::{CatalogError, TASKS, USED};
use crate::store::names::remove_file;
use crate::store::weights::Weights;
use redb::{Database, ReadableDatabase, ReadableTable};
use rustix::fs::FallocateFlags;
use std::cell::Cell;
use std::os::unix::fs::MetadataExt;
use std::panic::catch_unwind;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// What a catalog may grow by on a full disk, in bytes: some thousand tasks.
const SPARE_BYTES: u64 = 1 << 20;
/// Memory for pages of the catalog, in bytes: those above its leaves of a few million tasks.
const CACHE_BYTES: usize = 32 << 20;
/// How much is looked at when a catalog is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Care {
    /// All of it when it was not closed in good order.
    AfterCrash,
    /// All of it.
    Always,
}
/// An open database.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) database: Database,
    /// Device and number of its file.
    pub(super) inode: (u64, u64),
    /// The tasks that are there, and seldom one that is not. So for what nobody has asked for before, nobody looks at the disk.
    pub(super) index: Index,
    /// All of it was compared with its checksums.
    #[cfg(test)]
    pub(super) checked: bool,
}

/// The tasks in memory.
pub(super) type Index = Arc<Mutex<Weights>>;
/// Device and number of a file; `None` when there is none.
pub(super) fn inode(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Opens the catalog, or makes an empty one.
pub(super) fn open(path: &Path, care: Care) -> Result<Open, CatalogError> {
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
pub(super) fn reserve(path: &Path) {
    let reserved = std::fs::File::options().write(true).open(path).and_then(|file| {
        let length = file.metadata()?.len() + SPARE_BYTES;
        Ok(rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, length)?)
    });
    if let Err(error) = reserved {
        tracing::debug!(%error, "no space could be reserved for the catalog");
    }
}
