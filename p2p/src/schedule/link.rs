//! [`Link`]: one scheduler, whether it is there, and what is asked of it in a single call.

use super::held;
use crate::news::News;
use crate::store::Record;
use darter_enrol::Membership;
use darter_protocol::scheduler::scheduler_client::SchedulerClient;
use darter_protocol::scheduler::{
    AnnounceTaskRequest, DeleteTaskRequest, HeldTask, LeaveTaskRequest, MAX_MESSAGE_BYTES,
    ReplicateTaskRequest, ReplicateTaskResponse, StatTaskRequest, StatTaskResponse,
};
use darter_protocol::{PieceHash, TaskId};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// How long dialling a scheduler may take.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a call may take. A decision takes microseconds, but in a crowd of ten thousand hosts it waits for its turn for
/// seconds (`darter-bench scheduler`), and who gave it up sooner would go to the origin with all the others. One that is dead
/// does not take that long: the probes end the connection, and the call with it. Impatient clients give up after ten seconds.
const CALL_TIMEOUT: Duration = Duration::from_secs(9);
/// How long a conversation that has ended waits for the last of what was said.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(3);
/// How often the life line is probed, and how long the answer may take: a scheduler that died without a word is noticed
/// within five seconds.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// For so long after a scheduler was lost or came back, its downloads may still be on their way from one to another: as long
/// as a scheduler keeps a lease for those (`KEPT` in `darter_scheduler`).
const SETTLES: Duration = Duration::from_secs(2);

/// One scheduler.
pub(crate) struct Link {
    pub(super) address: String,
    pub(super) host_id: String,
    pub(super) client: SchedulerClient<Channel>,
    pub(super) membership: Membership,
    presence: Mutex<Presence>,
    /// What it was not told of yet.
    pub(super) news: News,
    /// It is no scheduler of ours any more.
    pub(super) removed: CancellationToken,
}

/// Whether a scheduler is there, and when that was last another: contents change over to another scheduler then. Whoever sees
/// the one sees the other, or a download would come to a scheduler that has just taken over, and not say so.
#[derive(Debug, Default)]
struct Presence {
    up: bool,
    /// It was not there from the beginning, so that it takes contents over when it comes.
    was_away: bool,
    changed: Option<Instant>,
}

/// How a scheduler is at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) up: bool,
    /// Downloads may still be on their way from it, or to it.
    pub(super) settles: bool,
}

impl Link {
    /// With `was_away`, others have its contents until it comes up.
    pub(super) fn new(
        address: &str,
        host_id: &str,
        membership: &Membership,
        was_away: bool,
    ) -> Option<Arc<Self>> {
        let shape = |endpoint: Endpoint| {
            endpoint
                .connect_timeout(DIAL_TIMEOUT)
                .http2_keep_alive_interval(PROBE_INTERVAL)
                .keep_alive_timeout(PROBE_TIMEOUT)
                .keep_alive_while_idle(true)
        };
        let channel = darter_enrol::channel(membership, address, shape).ok()?;
        let client = SchedulerClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let (address, host_id) = (address.to_owned(), host_id.to_owned());
        let (membership, news) = (membership.clone(), News::default());
        let (presence, removed) =
            (Mutex::new(Presence { was_away, ..Presence::default() }), CancellationToken::new());
        Some(Arc::new(Self { address, host_id, client, membership, presence, news, removed }))
    }

    fn presence(&self) -> MutexGuard<'_, Presence> {
        self.presence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn seen(&self) -> Seen {
        let presence = self.presence();
        let settles = presence.changed.is_some_and(|changed| changed.elapsed() < SETTLES);
        Seen { up: presence.up, settles }
    }

    /// It is there. One that is there from the beginning takes nothing over.
    pub(super) fn note_up(&self) {
        let mut presence = self.presence();
        if presence.was_away {
            presence.changed = Some(Instant::now());
        }
        presence.up = true;
    }

    /// It is not there. Returns whether it was.
    pub(super) fn note_down(&self) -> bool {
        let mut presence = self.presence();
        let was_up = std::mem::take(&mut presence.up);
        presence.was_away = true;
        if was_up {
            presence.changed = Some(Instant::now());
        }
        was_up
    }

    /// It is no scheduler of ours any more: its contents go to others, though its line is still up.
    pub(super) fn note_removed(&self) {
        let mut presence = self.presence();
        if presence.up {
            presence.changed = Some(Instant::now());
        }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// What the scheduler knows of a task.
    pub(crate) async fn stat(&self, task: &TaskId) -> Result<StatTaskResponse, Status> {
        let request = StatTaskRequest { task_id: task.as_bytes().to_vec().into() };
        Ok(in_time(self.client.clone().stat_task(request)).await?.into_inner())
    }

    /// Has every other host that has some of a task throw it away; gives how many are told. It counts as gone from here then.
    pub(crate) async fn delete(&self, task: &TaskId) -> Result<u32, Status> {
        let task_id = task.as_bytes().to_vec().into();
        let request = DeleteTaskRequest { host_id: self.host_id.clone(), task_id };
        let said = in_time(self.client.clone().delete_task(request)).await?.into_inner();
        if said.left {
            self.news.settle_gone(task);
        } else {
            // One of an earlier version.
            self.leave(&[*task]).await;
        }
        Ok(said.hosts)
    }

    /// Has others fetch a task until so many hosts have all of it, this one among them; gives how far that is.
    pub(crate) async fn replicate(&self, task: &TaskId, hosts: u32) -> Result<ReplicateTaskResponse, Status> {
        let task_id = task.as_bytes().to_vec().into();
        let request = ReplicateTaskRequest { host_id: self.host_id.clone(), task_id, hosts };
        Ok(in_time(self.client.clone().replicate_task(request)).await?.into_inner())
    }

    pub(super) async fn announce(&self, tasks: Vec<HeldTask>) -> Result<(), Status> {
        let request = AnnounceTaskRequest { host_id: self.host_id.clone(), tasks };
        in_time(self.client.clone().announce_task(request)).await.map(drop)
    }

    /// Tells that tasks are complete here now, outside of a conversation.
    pub(crate) async fn announce_one(&self, task: &TaskId, record: &Record, hashes: &[PieceHash]) {
        let tasks = held(task, record, hashes).into_iter().collect();
        if let Err(status) = self.announce(tasks).await {
            tracing::debug!(%task, reason = status.message(), "cannot announce the task");
        }
    }

    /// Tells that tasks are not here any more. What was noted of them is told then; otherwise it is told again soon.
    pub(crate) async fn leave(&self, tasks: &[TaskId]) {
        match self.try_leave(tasks).await {
            Ok(()) => tasks.iter().for_each(|task| self.news.settle_gone(task)),
            Err(status) => {
                tracing::debug!(reason = status.message(), "cannot tell the scheduler which tasks are gone");
            }
        }
    }

    pub(super) async fn try_leave(&self, tasks: &[TaskId]) -> Result<(), Status> {
        let task_ids = tasks.iter().map(|task| task.as_bytes().to_vec().into()).collect();
        let request = LeaveTaskRequest { host_id: self.host_id.clone(), task_ids };
        in_time(self.client.clone().leave_task(request)).await.map(drop)
    }
}

pub(super) async fn in_time<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    tokio::time::timeout(CALL_TIMEOUT, call).await.map_err(|_| Status::deadline_exceeded("no answer"))?
}
