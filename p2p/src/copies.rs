//! Copies of imported content on more hosts than one: asking the scheduler for them, and fetching those that it wants here.

use crate::download::Phase;
use crate::engine::{Engine, Shared};
use crate::store::Stored;
use crate::{OpenRequest, Opened, Served};
use darter_protocol::TaskId;
use std::sync::Arc;

/// Copies that are fetched at once because a scheduler wants them; others wait, so that they leave room for clients.
pub(crate) const MAX_FETCHES: usize = 4;

/// On how many hosts some content is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Copies {
    /// As the scheduler knows.
    Hosts {
        /// Have all of it.
        complete: u32,
        /// Fetch it.
        pending: u32,
    },
    /// This daemon is a cluster of its own.
    Alone,
    /// The scheduler did not answer; why is in the text.
    Failed(String),
}

impl Engine {
    /// Wants `hosts` hosts to have all of `task`, this one among them: the scheduler tells others to fetch it. Asked again,
    /// it says how far that is, and tells others in place of those that could not.
    pub async fn replicate(&self, task: TaskId, hosts: u32) -> Copies {
        let shared = &self.0;
        if shared.config.schedulers.is_empty() {
            return Copies::Alone;
        }
        let Some(link) = shared.schedulers.of(&task) else {
            return Copies::Failed("no scheduler can be reached".to_owned());
        };
        match link.replicate(&task, hosts).await {
            Ok(said) => Copies::Hosts { complete: said.complete, pending: said.pending },
            Err(status) => Copies::Failed(format!("{}: {}", link.address(), status.message())),
        }
    }

    /// Fetches all of `task` from others, unless it is here.
    async fn fetch_copy(&self, task: TaskId) -> Result<(), String> {
        let shared = &self.0;
        match self.open(OpenRequest::imported(task)).await {
            Ok(Opened::Content(content)) if content.served == Served::Disk => {
                // The scheduler thinks that it is not.
                shared.announce_stored(task).await;
                return Ok(());
            }
            // Nobody reads it: that somebody has asked for all of it is enough for it to be fetched to its end.
            Ok(Opened::Content(_)) => {}
            Ok(Opened::Relay(_)) => return Err("it has no origin, and one has answered".to_owned()),
            Err(error) => return Err(error.to_string()),
        }
        let phase = shared.lock_active().get(&task).map(|active| active.phase.clone());
        if let Some(mut phase) = phase {
            // Closed without a word, it is over, too.
            let _ = phase.wait_for(|phase| matches!(phase, Phase::Over(_))).await;
        }
        let store = Arc::clone(&shared.store);
        match tokio::task::spawn_blocking(move || store.stat(&task)).await {
            Ok(Ok(Stored::Complete { .. })) => Ok(()),
            Ok(Ok(_)) => Err("not all of it could be had or kept".to_owned()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Shared {
    /// Begins to fetch what a scheduler wants here. What cannot be had is left, so that it looks for another host.
    pub(crate) fn fetch_copies(self: &Arc<Self>, tasks: Vec<TaskId>) {
        for task in tasks {
            let shared = Arc::clone(self);
            let fetch = async move {
                let _one = shared.copying.acquire().await;
                match Engine(Arc::clone(&shared)).fetch_copy(task).await {
                    Ok(()) => tracing::info!(%task, "holds a copy, as another host asked for"),
                    Err(reason) => {
                        tracing::warn!(%task, reason, "cannot hold a copy that another host asked for");
                        shared.schedulers.leave(vec![task]).await;
                    }
                }
            };
            self.tracker.spawn(self.shutdown.clone().run_until_cancelled_owned(fetch));
        }
    }

    /// Tells the task's scheduler that all of it is here.
    async fn announce_stored(&self, task: TaskId) {
        if let Ok(Some(complete)) = self.complete(task).await {
            self.schedulers.announce_one(&task, &complete.record, &complete.hashes).await;
        }
    }
}
