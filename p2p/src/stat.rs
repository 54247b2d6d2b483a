//! [`TaskStat`]: where a task's content is, for people. Looking changes nothing: it is no use of the content.

use crate::download::Phase;
use crate::engine::{Engine, Shared};
use crate::store::Stored;
use darter_protocol::TaskId;
use darter_protocol::scheduler::StatTaskResponse;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

/// Where a task's content is.
#[derive(Debug)]
pub struct TaskStat {
    /// On this host.
    pub local: LocalStat,
    /// Elsewhere.
    pub cluster: ClusterStat,
}

/// What this host has of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalStat {
    /// Nothing.
    Absent,
    /// All of it.
    Complete {
        /// Its length in bytes.
        length: u64,
        /// The file that holds it.
        file: PathBuf,
        /// When it was fetched.
        since: SystemTime,
        /// Eviction passes it over.
        pinned: bool,
    },
    /// All of it, but without a digest and so old that the origin is asked anew.
    Stale,
    /// Some of it; nobody reads it at the moment.
    Partial,
    /// It is being fetched.
    Fetching {
        /// Its length in bytes; `None` while that is not known.
        length: Option<u64>,
        /// Pieces that are here.
        have: u32,
        /// Pieces in all; 0 while that is not known.
        pieces: u32,
    },
}

/// What is known of a task in the cluster.
#[derive(Debug)]
pub enum ClusterStat {
    /// This daemon is a cluster of its own.
    Alone,
    /// There are schedulers, and none can be reached.
    Unreachable,
    /// What the task's scheduler says.
    Known {
        /// The scheduler's address.
        scheduler: String,
        /// Its answer.
        stat: StatTaskResponse,
    },
    /// The task's scheduler did not answer; why is in the text.
    Failed(String),
}

impl Engine {
    /// Where the content of `task` is.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn stat(&self, task: TaskId) -> io::Result<TaskStat> {
        Ok(TaskStat { local: self.0.stat_here(task).await?, cluster: self.0.stat_elsewhere(task).await })
    }

    /// What this host has of `task`. Nobody else is asked.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn stat_here(&self, task: TaskId) -> io::Result<LocalStat> {
        self.0.stat_here(task).await
    }
}

impl Shared {
    /// The store is asked first, as for a reader: a download that has stored everything may still be taking its leave.
    async fn stat_here(self: &Arc<Self>, task: TaskId) -> io::Result<LocalStat> {
        let stored = match self.store.stat_now(&task) {
            Some(stored) => stored,
            None => {
                let store = Arc::clone(&self.store);
                tokio::task::spawn_blocking(move || store.stat(&task)).await.map_err(io::Error::other)??
            }
        };
        Ok(match (stored, self.phase(&task)) {
            (Stored::Complete { length, created, file, pinned }, _) => {
                LocalStat::Complete { length, file, since: created, pinned }
            }
            (_, Some(phase)) => fetching(&phase),
            (Stored::Absent, None) => LocalStat::Absent,
            (Stored::Partial, None) => LocalStat::Partial,
            (Stored::Stale, None) => LocalStat::Stale,
        })
    }

    async fn stat_elsewhere(&self, task: TaskId) -> ClusterStat {
        if self.config.schedulers.is_empty() {
            return ClusterStat::Alone;
        }
        let Some(link) = self.schedulers.of(&task) else { return ClusterStat::Unreachable };
        match link.stat(&task).await {
            Ok(stat) => ClusterStat::Known { scheduler: link.address().to_owned(), stat },
            Err(status) => ClusterStat::Failed(format!("{}: {}", link.address(), status.message())),
        }
    }
}

fn fetching(phase: &Phase) -> LocalStat {
    match phase {
        Phase::Known(known) => {
            let pieces = known.file.layout().pieces();
            let have = known.progress.borrow().have().len();
            LocalStat::Fetching { length: Some(known.info.length), have, pieces }
        }
        Phase::Opening | Phase::Over(_) => LocalStat::Fetching { length: None, have: 0, pieces: 0 },
    }
}
