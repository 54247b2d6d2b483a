//! Content that a user of this host brings in himself, and takes out again: it has no origin.

use crate::engine::{Engine, Shared};
use crate::schedule::{self, Schedulers};
use crate::store::{Given, Imported, PinsUse, Reading, Record, Stored};
use darter_protocol::{PieceHash, TaskId, hash};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Files that are taken in at once, or that the disk is still to get; others wait. Each reads with all cores.
pub(crate) const MAX_IMPORTS: usize = 4;

/// How long a read of the given file may take. A dead NFS server or a FUSE program that hangs never answers.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether it goes on.
const LOOK: Duration = Duration::from_secs(2);

/// How long others may take to throw away what was called so before, and how often it is looked whether they have.
const DISPLACE_TIMEOUT: Duration = Duration::from_secs(10);
const DISPLACE_PAUSE: Duration = Duration::from_millis(50);

/// A file that was taken in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedFile {
    /// Its length in bytes.
    pub length: u64,
    /// It was here before, byte for byte.
    pub unchanged: bool,
    /// The file system shares its bytes with the given file.
    pub shared: bool,
    /// Why others may still give other bytes by this name; empty when they do not.
    pub outdated: String,
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
    /// Takes the bytes of `source`, a file that is open for reading, in as those of `task`, and tells the scheduler that
    /// they are here. The disk may get them a moment later: a power cut until then undoes the import. What was called so before makes way, here and on every other host; the same bytes stay.
    ///
    /// # Errors
    /// `StorageFull` when it does not fit, `ResourceBusy` when the task is being fetched, `InvalidInput` when it is no regular
    /// file, `TimedOut` when the file's own file system does not answer, and those of the file system. After `TimedOut` a
    /// thread still waits for the file, and the task is busy until it comes back: how many these may be is for the caller to
    /// bound.
    pub async fn import(&self, task: TaskId, source: impl Given) -> io::Result<ImportedFile> {
        // To its end, also when the caller goes away: half of a file must not be taken for a free name.
        let import = Arc::clone(&self.0).import(task, source);
        self.0.tracker.spawn(import).await.map_err(io::Error::other)?
    }

    /// Throws a task away: here, and, with `everywhere`, on every host of the cluster that is there. What a download works on
    /// at this moment stays. Gives whether there was anything here, and who else was told.
    ///
    /// # Errors
    /// When the store cannot be written to; of the kind `ResourceBusy` while something is being imported by this name.
    pub async fn delete(&self, task: TaskId, everywhere: bool) -> io::Result<(bool, Option<Told>)> {
        let shared = Arc::clone(&self.0);
        if shared.lock_importing().contains(&task) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let (here, told) = tokio::join!(Arc::clone(&shared).forget_soon(task), async {
            if everywhere {
                Some(shared.delete_everywhere(&task).await)
            } else {
                shared.schedulers.leave(vec![task]).await;
                None
            }
        });
        Ok((here?, told))
    }

    /// Keeps a task that is complete here, however long nobody uses it; `None` when it is not. Gives what all pins take then.
    ///
    /// # Errors
    /// When the store cannot be written to.
    pub async fn pin(&self, task: TaskId) -> io::Result<Option<PinsUse>> {
        let store = Arc::clone(&self.0.store);
        tokio::task::spawn_blocking(move || store.pin(&task)).await.map_err(io::Error::other)?
    }

    /// Lets a task go when its time has come; `false` when it was not pinned.
    ///
    /// # Errors
    /// When the store cannot be written to.
    pub async fn unpin(&self, task: TaskId) -> io::Result<bool> {
        let store = Arc::clone(&self.0.store);
        tokio::task::spawn_blocking(move || store.unpin(&task)).await.map_err(io::Error::other)?
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
    async fn import(self: Arc<Self>, task: TaskId, source: impl Given) -> io::Result<ImportedFile> {
        let one = Arc::clone(&self.imports).acquire_owned().await.map_err(io::Error::other)?;
        let one = Arc::new(Mutex::new(Some(one)));
        let name = Importing::begin(&self, task)?;
        let (store, reading) = (Arc::clone(&self.store), Arc::new(Reading::default()));
        let watched = Arc::clone(&reading);
        let (said, import) = oneshot::channel();
        let (tracker, writing) = (self.tracker.clone(), Arc::clone(&one));
        tokio::task::spawn_blocking(move || {
            let mut imported = store.import(&task, &source, &watched);
            // Before it is tracked the thread may wait for ever for the given file.
            let _tracked = tracker.token();
            let unflushed = imported.as_mut().ok().and_then(|imported| imported.unflushed.take());
            // For as long as a thread may write to it, nobody else has the name. Who asked may have given it up.
            drop(said.send((imported, name)));
            if let Some(unflushed) = unflushed
                && let Err(error) = store.flush(&unflushed)
            {
                tracing::error!(%task, %error, "what was imported cannot be written to the disk, and is forgotten");
            }
            // The disk gets no more than so many at once.
            drop(writing);
        });
        let imported = tokio::select! {
            imported = import => imported.map_err(io::Error::other)?,
            () = stalled(&reading) => {
                // Its thread may never come back, and takes nobody's turn meanwhile.
                one.lock().unwrap_or_else(PoisonError::into_inner).take();
                return self.not_imported(task, io::ErrorKind::TimedOut.into()).await;
            }
            () = self.shutdown.cancelled() => {
                reading.give_up();
                return self.not_imported(task, io::Error::other("the daemon is stopping")).await;
            }
        };
        // Also until everybody knows what is here: who took the name meanwhile would be announced with these hashes, and be
        // taken for a liar.
        let (imported, _name) = imported;
        let stays = match &imported {
            Ok(imported) => imported.unchanged,
            Err(_) => self.is_stored(task).await,
        };
        if !stays {
            // Whoever got the new bytes from here would otherwise measure them by the hashes of the old ones.
            self.schedulers.leave(vec![task]).await;
        }
        let Imported { record, hashes, unchanged, shared, .. } = imported?;
        let told = displace(&self.schedulers, &task, &record, &hashes).await;
        let (length, outdated) = (record.info.length, told.err().unwrap_or_default());
        Ok(ImportedFile { length, unchanged, shared, outdated })
    }

    /// The import has failed, and may have taken away what was here before.
    async fn not_imported(&self, task: TaskId, error: io::Error) -> io::Result<ImportedFile> {
        if !self.is_stored(task).await {
            self.schedulers.leave(vec![task]).await;
        }
        Err(error)
    }

    async fn is_stored(&self, task: TaskId) -> bool {
        let store = Arc::clone(&self.store);
        let stored = tokio::task::spawn_blocking(move || store.stat(&task)).await;
        matches!(stored, Ok(Ok(Stored::Complete { .. } | Stored::Stale)))
    }

    /// One call tells the task's scheduler that it is gone here, and is to go elsewhere.
    async fn delete_everywhere(&self, task: &TaskId) -> Told {
        // Whoever does not hear it now hears it soon.
        self.schedulers.note(*task, None, None);
        if self.config.schedulers.is_empty() {
            return Told::Alone;
        }
        let Some(link) = self.schedulers.of(task) else {
            return Told::Failed("no scheduler can be reached".to_owned());
        };
        match link.delete(task).await {
            Ok(hosts) => Told::Hosts(hosts),
            Err(status) => Told::Failed(format!("{}: {}", link.address(), status.message())),
        }
    }

    /// Throws a task away here; gives whether there was anything of it, as soon as nobody is given it any more. The disk has that
    /// a moment later.
    async fn forget_soon(self: Arc<Self>, task: TaskId) -> io::Result<bool> {
        let (said, here) = oneshot::channel();
        let shared = Arc::clone(&self);
        self.tracker.spawn_blocking(move || {
            let mut said = Some(said);
            // Who asked may be gone.
            let mut say = |here| said.take().is_some_and(|said| said.send(here).is_ok());
            let forgotten = shared.forget(&task, |here| {
                say(Ok(here));
            });
            if let Err(error) = forgotten {
                tracing::error!(%task, %error, "what was deleted may be here again after a crash");
                say(Err(error));
            }
        });
        here.await.map_err(io::Error::other)?
    }

    /// Throws a task away here, and tells `gone` whether there was anything of it, when nobody is given it any more. Blocks, until
    /// the disk has that.
    pub(crate) fn forget(&self, task: &TaskId, gone: impl FnOnce(bool)) -> io::Result<()> {
        let suspended = self.unsuspend(task);
        self.store.delete(task, |here| {
            // Before anybody knows: what is imported by this name next is told later.
            self.schedulers.note(*task, None, None);
            gone(suspended || here);
        })
    }
}

/// Resolves when the given file has not answered for [`PATIENCE`]; it is given up then.
async fn stalled(reading: &Reading) {
    let (mut seen, mut since) = (0, Instant::now());
    loop {
        tokio::time::sleep(LOOK).await;
        if reading.moves(&mut seen) {
            since = Instant::now();
        } else if since.elapsed() >= PATIENCE {
            return reading.give_up();
        }
    }
}

/// Tells the scheduler what is here by this name. Others that have other bytes by it are told to throw these away, and only
/// then does the scheduler believe what is here. The error says why it may not.
async fn displace(
    schedulers: &Schedulers,
    task: &TaskId,
    record: &Record,
    hashes: &[PieceHash],
) -> Result<(), String> {
    let root = record.layout().map(|layout| hash::root(&layout, hashes));
    let own = schedule::content(record, root);
    let (until, mut told) = (Instant::now() + DISPLACE_TIMEOUT, false);
    loop {
        schedulers.announce_one(task, record, hashes).await;
        let Some(link) = schedulers.of(task) else { return Ok(()) };
        let failed = |status: tonic::Status| format!("{}: {}", link.address(), status.message());
        let known = link.stat(task).await.map_err(failed)?.content;
        if known.is_none_or(|known| known.length == own.length && known.root == own.root) {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err("not all of them have thrown it away".to_owned());
        }
        if !std::mem::replace(&mut told, true) {
            link.delete(task).await.map_err(failed)?;
        }
        tokio::time::sleep(DISPLACE_PAUSE).await;
    }
}

/// A task into which a file is taken.
struct Importing {
    shared: Arc<Shared>,
    task: TaskId,
}

impl Importing {
    fn begin(shared: &Arc<Shared>, task: TaskId) -> io::Result<Self> {
        if shared.begin_import(task) {
            Ok(Self { shared: Arc::clone(shared), task })
        } else {
            Err(io::ErrorKind::ResourceBusy.into())
        }
    }
}

impl Drop for Importing {
    fn drop(&mut self) {
        self.shared.lock_importing().remove(&self.task);
    }
}
