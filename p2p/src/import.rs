//! Content that a user of this host brings in himself, and takes out again: it has no origin.

use crate::engine::{Engine, Shared};
use crate::store::{Imported, Stored};
use darter_protocol::{PieceHash, TaskId};
use std::fs::File;
use std::io;
use std::sync::Arc;

/// Files that are taken in at once. Each reads with all cores; what waits for a slow disk, or for a file system that a user
/// makes wait, holds a thread.
pub(crate) const MAX_IMPORTS: usize = 4;

/// A file that was taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImportedFile {
    /// Its length in bytes.
    pub length: u64,
    /// It was here before, byte for byte.
    pub unchanged: bool,
    /// The file system shares its bytes with the given file.
    pub shared: bool,
}

/// Whether others were told to throw a task away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// So many.
    Hosts(u32),
    /// This daemon is a cluster of its own.
    Alone,
    /// Nobody; why is in the text.
    Failed(String),
}

impl Engine {
    /// Takes the bytes of `source`, a regular file that is open for reading, in as those of `task`, and tells the scheduler
    /// that they are here. What was called so before makes way; the same bytes stay.
    ///
    /// # Errors
    /// `StorageFull` when it does not fit, `ResourceBusy` when the task is being fetched, and those of the file system.
    pub async fn import(&self, task: TaskId, source: File) -> io::Result<ImportedFile> {
        // To its end, also when the caller goes away: half of a file must not be taken for a free name.
        let import = Arc::clone(&self.0).import(task, source);
        self.0.tracker.spawn(import).await.map_err(io::Error::other)?
    }

    /// Throws a task away: here, and, with `everywhere`, on every host of the cluster that is there. What a download works on
    /// at this moment stays. Gives whether there was anything here, and who else was told.
    ///
    /// # Errors
    /// When the store cannot be written to.
    pub async fn delete(&self, task: TaskId, everywhere: bool) -> io::Result<(bool, Option<Told>)> {
        let shared = Arc::clone(&self.0);
        let here = {
            let shared = Arc::clone(&shared);
            tokio::task::spawn_blocking(move || shared.forget(&task)).await.map_err(io::Error::other)??
        };
        shared.schedulers.leave(vec![task]).await;
        if !everywhere {
            return Ok((here, None));
        }
        if shared.config.schedulers.is_empty() {
            return Ok((here, Some(Told::Alone)));
        }
        let told = match shared.schedulers.of(&task) {
            None => Told::Failed("no scheduler can be reached".to_owned()),
            Some(link) => match link.delete(&task).await {
                Ok(hosts) => Told::Hosts(hosts),
                Err(status) => Told::Failed(format!("{}: {}", link.address(), status.message())),
            },
        };
        Ok((here, Some(told)))
    }

    /// The hashes of the pieces of a task that is complete here. Counts as a use of it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn pieces(
        &self,
        task: TaskId,
    ) -> io::Result<Option<(darter_protocol::PieceLayout, Arc<[PieceHash]>)>> {
        let complete = self.0.complete(task).await.map_err(io::Error::other)?;
        Ok(complete.map(|complete| (*complete.file.layout(), complete.hashes)))
    }
}

impl Shared {
    async fn import(self: Arc<Self>, task: TaskId, source: File) -> io::Result<ImportedFile> {
        let _one = self.imports.acquire().await.map_err(io::Error::other)?;
        let _name = Importing::begin(&self, task)?;
        let store = Arc::clone(&self.store);
        let import = move || {
            let imported = store.import(&task, &source);
            let stays = match &imported {
                Ok(imported) => imported.unchanged,
                Err(_) => matches!(store.stat(&task), Ok(Stored::Complete { .. } | Stored::Stale)),
            };
            (imported, stays)
        };
        let (imported, stays) = tokio::task::spawn_blocking(import).await.map_err(io::Error::other)?;
        if !stays {
            // Whoever got the new bytes from here would otherwise measure them by the hashes of the old ones.
            self.schedulers.leave(vec![task]).await;
        }
        let Imported { record, hashes, unchanged, shared } = imported?;
        self.schedulers.announce_one(&task, &record, &hashes).await;
        Ok(ImportedFile { length: record.info.length, unchanged, shared })
    }

    /// Throws a task away here. Blocks.
    pub(crate) fn forget(&self, task: &TaskId) -> io::Result<bool> {
        let here = self.store.delete(task)?;
        self.schedulers.note(*task, None, None);
        Ok(self.unsuspend(task) || here)
    }
}

/// A task into which a file is taken.
struct Importing<'a> {
    shared: &'a Shared,
    task: TaskId,
}

impl<'a> Importing<'a> {
    fn begin(shared: &'a Shared, task: TaskId) -> io::Result<Self> {
        if shared.begin_import(task) {
            Ok(Self { shared, task })
        } else {
            Err(io::ErrorKind::ResourceBusy.into())
        }
    }
}

impl Drop for Importing<'_> {
    fn drop(&mut self) {
        self.shared.lock_importing().remove(&self.task);
    }
}
