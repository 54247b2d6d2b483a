//! The life line of a [`Link`]: kept up for as long as this daemon runs. By it the scheduler knows that the daemon is there and all that it
//! holds; and what others want of it comes on it.

use super::held;
use super::link::{LAST_WORDS, Link, in_time};
use crate::metrics::Metrics;
use crate::store::Store;
use darter_protocol::TaskId;
use darter_protocol::scheduler::{AnnounceHostRequest, Host, LeaveHostRequest};
use darter_upstream::Upstream;
use rand::{Rng, RngExt};
use rustls_pki_types::CertificateDer;
use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

/// The pause before a lost link is tried again: at first, and at most. Half of it is left to chance, so that a thousand
/// daemons do not come back in step.
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// Daemons that lose a scheduler together come back spread over this time, each with all that it holds: a scheduler that was
/// restarted would otherwise have ten thousand inventories to take in at one moment. Shorter than a download waits before it
/// goes on without one (`ALONE_AFTER`).
const SPREAD: Duration = Duration::from_millis(800);
/// How often a scheduler is told how many uploads are free, where that has changed.
const LOAD_INTERVAL: Duration = Duration::from_secs(1);
/// Tasks in one message of the inventory: about 200 bytes each, far below the limit of a message.
const INVENTORY_BATCH: usize = 1000;

/// What a life line needs.
pub(crate) struct Life {
    /// This host, as the schedulers are told of it.
    pub(crate) host: Host,
    /// How many more uploads it could begin now.
    pub(crate) free_uploads: Arc<dyn Fn() -> u32 + Send + Sync>,
    /// It is about to stop.
    pub(crate) draining: watch::Receiver<bool>,
    /// Whom names are asked of.
    pub(crate) upstream: Upstream,
    pub(crate) store: Arc<Store>,
    pub(crate) metrics: Metrics,
    pub(crate) shutdown: CancellationToken,
    /// Throws a task away. Blocks.
    pub(crate) forget: Arc<Forget>,
    /// Begins to fetch tasks of which the scheduler wants more copies.
    pub(crate) fetch: Arc<dyn Fn(Vec<TaskId>) + Send + Sync>,
}

/// Gives whether there was anything of the task.
pub(crate) type Forget = dyn Fn(&TaskId) -> io::Result<bool> + Send + Sync;

// === impl Link ===

impl Link {
    /// Keeps the life line up until shutdown, or until this is no scheduler any more, then says goodbye. Calls `came_up`
    /// whenever it came up, and `lost` whenever it could not be reached.
    pub(super) async fn keep_up(&self, life: &Life, came_up: impl Fn(), lost: impl Fn()) {
        // Of being refused it is told each time that the reason is another.
        let (mut told, mut verdict) = (false, None);
        let (mut pause, mut spread) = (FIRST_RETRY, Duration::ZERO);
        while !life.shutdown.is_cancelled() && !self.removed.is_cancelled() {
            let ended = tokio::select! {
                ended = self.live(life, &came_up) => ended,
                () = life.shutdown.cancelled() => break,
                () = self.removed.cancelled() => break,
            };
            lost();
            let refused = darter_enrol::explain(&ended);
            if self.note_down() {
                life.metrics.scheduler_up.dec();
                tracing::warn!(
                    scheduler = self.address,
                    reason = darter_enrol::reason(&ended),
                    "lost the scheduler"
                );
                (pause, told) = (FIRST_RETRY, true);
                spread = SPREAD;
            } else if !std::mem::replace(&mut told, true) || refused != verdict {
                let reason = darter_enrol::reason(&ended);
                tracing::warn!(
                    scheduler = self.address,
                    reason,
                    "cannot reach the scheduler; serving without it"
                );
            }
            verdict = refused;
            let wait = retry_after(pause, std::mem::take(&mut spread), &mut rand::rng());
            tokio::select! {
                () = tokio::time::sleep(wait) => pause = (pause * 2).min(LAST_RETRY),
                () = life.shutdown.cancelled() => {}
                () = self.removed.cancelled() => {}
            }
        }
        if self.note_down() {
            life.metrics.scheduler_up.dec();
            tracing::info!(scheduler = self.address, "left the scheduler");
            let goodbye = LeaveHostRequest { host_id: self.host_id.clone() };
            let _ = tokio::time::timeout(LAST_WORDS, self.client.clone().leave_host(goodbye)).await;
        }
    }

    /// One life of the life line; ends when it breaks.
    async fn live(&self, life: &Life, came_up: impl FnOnce()) -> Status {
        let (mut expelled, mut said_of) = (self.membership.expelled(), HashSet::new());
        let mut unsaid = self.membership.news(&mut said_of);
        let first = std::mem::take(&mut unsaid);
        let started = async {
            let (hold, outgoing) = mpsc::channel(1);
            let hello = announcement(life.host_now(), &first);
            hold.send(hello).await.map_err(|_| Status::internal("the queue is closed"))?;
            let mut client = self.client.clone();
            let mut incoming =
                in_time(client.announce_host(ReceiverStream::new(outgoing))).await?.into_inner();
            if let Some(hello) = in_time(incoming.message()).await? {
                self.learn(hello.expulsions).await;
            }
            // What came is in the inventory, which is looked through from now on. What went is not: a scheduler that was
            // there all the while would go on naming this host for it.
            let (_, went) = self.news.take();
            self.tell_gone(&went).await?;
            let told = self.announce_all(&life.store, HashSet::new()).await?;
            Ok((hold, incoming, told))
        };
        let (hold, mut incoming, told) = match started.await {
            Ok(started) => started,
            Err(status) => return status,
        };
        self.note_up();
        tracing::info!(scheduler = self.address, "joined the scheduler");
        life.metrics.scheduler_up.inc();
        came_up();
        // What was completed meanwhile found no scheduler that was up.
        if let Err(status) = self.announce_all(&life.store, told).await {
            return status;
        }
        let mut draining = life.draining.clone();
        let mut looks = tokio::time::interval(LOAD_INTERVAL);
        let mut last = life.host_now();
        loop {
            tokio::select! {
                said = incoming.message() => match said {
                    Ok(Some(said)) => {
                        self.learn(said.expulsions).await;
                        self.forget(life, ids(&said.deleted)).await;
                        (life.fetch)(ids(&said.wanted));
                    }
                    Ok(None) => return Status::unavailable("it closed the connection"),
                    Err(status) => return status,
                },
                _ = looks.tick() => {
                    if let Err(status) = self.tell_news().await {
                        return status;
                    }
                }
                Ok(()) = draining.changed() => {}
                Ok(()) = expelled.changed() => {}
            }
            let host = life.host_now();
            unsaid.extend(self.membership.news(&mut said_of));
            // What does not fit now is said at the next look.
            if (host != last || !unsaid.is_empty())
                && hold.try_send(announcement(host.clone(), &unsaid)).is_ok()
            {
                last = host;
                unsaid.clear();
            }
        }
    }

    /// Tells what came and went since the last time. What it has no room for it goes without, as with the inventory.
    pub(super) async fn tell_news(&self) -> Result<(), Status> {
        let (came, went) = self.news.take();
        self.tell_gone(&went).await?;
        for batch in came.chunks(INVENTORY_BATCH) {
            match self.announce(batch.to_vec()).await {
                Err(status) if status.code() == Code::ResourceExhausted => break,
                announced => announced?,
            }
        }
        Ok(())
    }

    /// Tells what went. What is not heard is told in the next life of the line.
    async fn tell_gone(&self, went: &[TaskId]) -> Result<(), Status> {
        for (at, batch) in went.chunks(INVENTORY_BATCH).enumerate() {
            if let Err(status) = self.try_leave(batch).await {
                went[at * INVENTORY_BATCH..].iter().for_each(|task| self.news.note_gone_again(*task));
                return Err(status);
            }
        }
        Ok(())
    }

    /// Takes in what the scheduler says of who was expelled.
    async fn learn(&self, statements: Vec<bytes::Bytes>) {
        if statements.is_empty() {
            return;
        }
        let membership = self.membership.clone();
        let learned = move || membership.learn(statements.iter().map(AsRef::as_ref));
        if let Err(error) = tokio::task::spawn_blocking(learned).await {
            tracing::error!(%error, "cannot take in who was expelled");
        }
    }

    /// Throws away what the scheduler says somebody has deleted, and tells it so.
    async fn forget(&self, life: &Life, tasks: Vec<TaskId>) {
        if tasks.is_empty() {
            return;
        }
        let (forget, gone) = (Arc::clone(&life.forget), tasks.clone());
        let forgotten = tokio::task::spawn_blocking(move || {
            for task in &gone {
                match forget(task) {
                    Ok(here) => tracing::info!(%task, here, "deleted, as another host asked for"),
                    Err(error) => {
                        tracing::error!(%task, %error, "cannot delete what another host wants gone")
                    }
                }
            }
        });
        if forgotten.await.is_ok() {
            self.leave(&tasks).await;
        }
    }

    /// Tells the scheduler everything that is complete here, and that it was not told; gives what it knows then.
    async fn announce_all(
        &self,
        store: &Arc<Store>,
        mut told: HashSet<TaskId>,
    ) -> Result<HashSet<TaskId>, Status> {
        let store = Arc::clone(store);
        let inventory = tokio::task::spawn_blocking(move || {
            let mut tasks = Vec::new();
            let listed = store.inventory(|task, record, hashes| {
                if told.insert(task) {
                    tasks.extend(held(&task, record, hashes));
                }
            });
            listed.map(|()| (tasks, told))
        });
        let inventory = inventory.await.map_err(|error| Status::internal(error.to_string()))?;
        let (inventory, told) = inventory.map_err(|error| Status::internal(error.to_string()))?;
        for batch in inventory.chunks(INVENTORY_BATCH) {
            match self.announce(batch.to_vec()).await {
                // It has no room for more; what it took is worth having.
                Err(status) if status.code() == Code::ResourceExhausted => {
                    tracing::warn!(
                        scheduler = self.address,
                        reason = status.message(),
                        "not all content is announced"
                    );
                    break;
                }
                announced => announced?,
            }
        }
        Ok(told)
    }
}

// === impl Life ===

impl Life {
    /// This host as it is now.
    fn host_now(&self) -> Host {
        let (free_uploads, draining) = (Some((self.free_uploads)()), *self.draining.borrow());
        Host { free_uploads, draining, ..self.host.clone() }
    }
}

/// When a link is tried again. With `spread`, anywhere in that time behind the pause.
fn retry_after(pause: Duration, spread: Duration, rng: &mut impl Rng) -> Duration {
    pause.mul_f64(rng.random_range(0.5..1.0)) + spread.mul_f64(rng.random_range(0.0..1.0))
}

fn announcement(host: Host, expulsions: &[CertificateDer<'static>]) -> AnnounceHostRequest {
    let expulsions = expulsions.iter().map(|it| it.to_vec().into()).collect();
    AnnounceHostRequest { host: Some(host), expulsions }
}

fn ids(ids: &[bytes::Bytes]) -> Vec<TaskId> {
    ids.iter().filter_map(|id| TaskId::try_from(id.as_ref()).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    #[test]
    fn those_who_lose_a_scheduler_together_do_not_come_back_together() {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut tenths = [0; 10];
        for _ in 0..10_000 {
            let wait = retry_after(FIRST_RETRY, SPREAD, &mut rng);
            assert!((FIRST_RETRY / 2..FIRST_RETRY + SPREAD).contains(&wait));
            tenths[(wait.as_millis() / 100) as usize] += 1;
        }
        assert!(tenths.iter().all(|came| *came < 1_600), "{tenths:?}");
    }
}
