//! [`Shared`]: the cluster behind its mutex, its clock, and the wake-ups of its streams.
//!
//! A decision takes microseconds, and the lock is never held over an await. But a crowd of ten thousand hosts asks for more
//! decisions at once than there are in seconds. If the tasks of all these calls met at the mutex, they would hold all threads,
//! and nobody would answer the probes of connections meanwhile: they broke by the thousand, each of which is another crowd. So
//! what decides something waits for its turn, asleep, and one thread decides while the others serve.

use crate::cluster::{Cluster, Taken};
use crate::speakers::{Introduction, Speakers, Usurper};
use crate::stream::StreamId;
use crate::world::Counts;
use darter_enrol::{Caller, Membership};
use darter_protocol::HostId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

/// The state, and whom to wake.
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Conversations on which something has arrived that waits for its turn, until whoever decides next tells the cluster: one entry
    /// for each at most. Beside the state, whose lock is what they wait for.
    arrived: Mutex<Vec<StreamId>>,
    /// One place: whoever has it may decide.
    turn: Semaphore,
    /// The next deadline is nearer than it was.
    sooner: Notify,
    /// No stream is served any more.
    closing: CancellationToken,
    started: Instant,
    membership: Membership,
}

struct State {
    cluster: Cluster,
    readers: HashMap<StreamId, Arc<Notify>>,
    speakers: Speakers,
}

impl Shared {
    pub(crate) fn new(cluster: Cluster, membership: Membership) -> Self {
        Self {
            state: Mutex::new(State { cluster, readers: HashMap::new(), speakers: Speakers::default() }),
            arrived: Mutex::new(Vec::new()),
            turn: Semaphore::new(1),
            sooner: Notify::new(),
            closing: CancellationToken::new(),
            started: now(),
            membership,
        }
    }

    /// Whom it believes who he is.
    pub(crate) fn membership(&self) -> &Membership {
        &self.membership
    }

    /// The time since the start.
    pub(crate) fn uptime(&self) -> Duration {
        now().saturating_duration_since(self.started)
    }

    pub(crate) fn counts(&self) -> Counts {
        self.lock().cluster.counts()
    }

    /// Ends every stream.
    pub(crate) fn close(&self) {
        self.closing.cancel();
    }

    /// Whether every stream is to end.
    pub(crate) fn closing(&self) -> &CancellationToken {
        &self.closing
    }

    /// This connection speaks for `host`, until [`Self::silence`].
    ///
    /// # Errors
    /// When another one does, or it is not that host's.
    pub(crate) fn introduce(&self, host: &HostId, caller: &Caller) -> Result<Introduction, Usurper> {
        self.lock().speakers.introduce(host, caller)
    }

    /// Whether this connection may speak for `host`: nobody else does.
    ///
    /// # Errors
    /// When another one does, or it is not that host's.
    pub(crate) fn may_speak(&self, host: &HostId, caller: &Caller) -> Result<(), Usurper> {
        self.lock().speakers.may_speak(host, caller)
    }

    /// The life line of that connection has ended.
    pub(crate) fn silence(&self, host: &HostId, introduction: Introduction) {
        self.lock().speakers.silence(host, introduction);
    }

    /// Fires the cluster's deadlines. Never returns.
    pub(crate) async fn keep_time(&self) {
        loop {
            let due = self.lock().cluster.poll_timeout();
            let wait = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wait => self.with(|cluster, now| cluster.handle_timeout(now)),
                () = self.sooner.notified() => {}
            }
        }
    }

    /// The same as [`Self::with`] for what may take long where many come at once: in the order of their coming, and asleep
    /// until it is their turn. For what takes little memory alone, since any number of them may wait: an inventory or thousands of
    /// hashes are handled at once, by whichever thread has read them, so that no more of them are read.
    ///
    /// # Cancel safety
    /// The event happens as a whole, or not at all.
    pub(crate) async fn in_turn<R>(&self, event: impl FnOnce(&mut Cluster, Instant) -> R) -> R {
        // It is never closed.
        let _turn = self.turn.acquire().await;
        self.with(event)
    }

    /// Lets the cluster handle one event, and wakes whom it concerns.
    pub(crate) fn with<R>(&self, event: impl FnOnce(&mut Cluster, Instant) -> R) -> R {
        let mut state = self.lock();
        for stream in self.take_arrived() {
            state.cluster.handle_report_arrived(stream);
        }
        let before = state.cluster.poll_timeout();
        let result = event(&mut state.cluster, now());
        while let Some(stream) = state.cluster.poll_ready() {
            if let Some(reader) = state.readers.get(&stream) {
                reader.notify_one();
            }
        }
        let sooner = match (before, state.cluster.poll_timeout()) {
            (Some(before), Some(after)) => after < before,
            (None, after) => after.is_some(),
            (Some(_), None) => false,
        };
        drop(state);
        if sooner {
            self.sooner.notify_one();
        }
        result
    }

    fn take_arrived(&self) -> Vec<StreamId> {
        std::mem::take(&mut *self.arrived.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// No event leaves the state half changed but by a bug; then serving on is better than refusing everybody.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tokio's clock, so that tests can stop it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

// === Attached ===

/// A stream that is open in the cluster, until this is dropped.
pub(crate) struct Attached {
    shared: Arc<Shared>,
    id: StreamId,
    ready: Arc<Notify>,
}

impl Attached {
    pub(crate) fn new(shared: Arc<Shared>, id: StreamId) -> Self {
        let ready = Arc::new(Notify::new());
        shared.lock().readers.insert(id, Arc::clone(&ready));
        Self { shared, id, ready }
    }

    /// What the stream has to say.
    pub(crate) fn take(&self) -> Taken {
        self.shared.lock().cluster.take(self.id)
    }

    /// Returns when it may have something to say that it had not when it was asked last.
    ///
    /// # Cancel safety
    /// A wake-up that is not waited for comes at the next call.
    pub(crate) async fn ready(&self) {
        self.ready.notified().await;
    }

    /// Lets the cluster handle something that was heard on the stream.
    pub(crate) fn with<R>(&self, event: impl FnOnce(&mut Cluster, Instant, StreamId) -> R) -> R {
        self.shared.with(|cluster, now| event(cluster, now, self.id))
    }

    /// The same, when it is its turn ([`Shared::in_turn`]). That it was heard is known at once.
    pub(crate) async fn in_turn<R>(&self, event: impl FnOnce(&mut Cluster, Instant, StreamId) -> R) -> R {
        self.shared.arrived.lock().unwrap_or_else(PoisonError::into_inner).push(self.id);
        self.shared.in_turn(|cluster, now| event(cluster, now, self.id)).await
    }

    /// The life line of that connection has ended.
    pub(crate) fn silence(&self, host: &HostId, introduction: Introduction) {
        self.shared.silence(host, introduction);
    }

    /// Whom the scheduler believes who he is.
    pub(crate) fn membership(&self) -> &Membership {
        self.shared.membership()
    }

    /// The scheduler's shutdown.
    pub(crate) fn closing(&self) -> &CancellationToken {
        self.shared.closing()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.shared.lock().readers.remove(&self.id);
        // When all streams end because the scheduler does, no lease is handed from one that is going to another.
        if !self.closing().is_cancelled() {
            self.with(|cluster, now, stream| cluster.handle_stream_closed(now, stream));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::{HOLDER_SILENT, LEASE_STALL};
    use crate::message::{Host, Registration, Report};
    use darter_protocol::scheduler as proto;
    use darter_protocol::{HostId, TaskId};
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    fn host(id: &str) -> Host {
        let host = proto::Host { id: id.into(), ip: "192.0.2.1".into(), piece_port: 1, ..Default::default() };
        Host { protocol: if id == "beats" { proto::PROTOCOL } else { 0 }, ..Host::try_from(host).unwrap() }
    }

    /// A peer that has registered and opened its conversation.
    fn join(shared: &Arc<Shared>, id: &str, task: TaskId) -> (Attached, Attached) {
        let life = shared.with(|cluster, now| cluster.handle_host_announced(now, host(id)).unwrap());
        let talk = shared.with(|cluster, now| {
            let id: HostId = id.parse().unwrap();
            cluster.handle_registered(now, &id, task, &Registration::default()).unwrap();
            cluster.handle_conversation_opened(now, &id, task).unwrap()
        });
        (Attached::new(Arc::clone(shared), life), Attached::new(Arc::clone(shared), talk))
    }

    /// Whether it is told so now.
    fn has_lease(talk: &Attached) -> bool {
        matches!(talk.take(), Taken::Packet(packet) if packet.lease.is_some())
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_whose_beats_wait_for_their_turn_is_not_silent_and_one_that_sends_none_is() {
        for beats in [true, false] {
            let shared = Arc::new(Shared::new(
                Cluster::new(1, StdRng::seed_from_u64(1)),
                Membership::insecure(darter_enrol::Metrics::default()),
            ));
            let (_a_life, a) = join(&shared, "beats", TaskId::from([1; 32]));
            let (_b_life, b) = join(&shared, "b", TaskId::from([1; 32]));
            let beat = |cluster: &mut Cluster, now, stream| {
                cluster.handle_report(now, stream, Report::default()).unwrap();
            };
            let scenario = async {
                // A crowd is decided for meanwhile.
                let crowd = shared.turn.acquire().await.unwrap();
                let says = async {
                    if beats {
                        a.in_turn(beat).await;
                    }
                };
                let decided = async {
                    tokio::time::sleep(HOLDER_SILENT * 2).await;
                    assert_eq!(has_lease(&b), !beats);
                    drop(crowd);
                };
                tokio::join!(says, decided);
                // And from then on it counts as ever.
                assert!(!has_lease(&b));
                tokio::time::sleep(HOLDER_SILENT + Duration::from_millis(1)).await;
                assert!(has_lease(&b) || !beats);
            };
            tokio::select! {
                () = shared.keep_time() => {}
                () = scenario => {}
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_stalls_is_taken_away_by_the_clock_alone() {
        let shared = Arc::new(Shared::new(
            Cluster::new(1, StdRng::seed_from_u64(1)),
            Membership::insecure(darter_enrol::Metrics::default()),
        ));
        let scenario = async {
            // The clock is running before there is anything to wait for.
            tokio::task::yield_now().await;
            let start = now();
            let (_a_life, a) = join(&shared, "a", TaskId::from([1; 32]));
            let (_b_life, b) = join(&shared, "b", TaskId::from([1; 32]));
            assert_eq!((a.take(), b.take()), (Taken::Nothing, Taken::Nothing));
            a.ready().await;
            assert_eq!(now() - start, LEASE_STALL);
            let revoked = proto::PeerPacket { lease_revoked: true, ..Default::default() };
            assert_eq!(a.take(), Taken::Packet(revoked));
            assert!(matches!(b.take(), Taken::Packet(packet) if packet.lease.is_some()));
        };
        tokio::select! {
            () = shared.keep_time() => {}
            () = scenario => {}
            () = tokio::time::sleep(LEASE_STALL * 2) => panic!("nobody looked at the clock"),
        }
        assert_eq!(shared.counts().hosts, 0);
    }
}
