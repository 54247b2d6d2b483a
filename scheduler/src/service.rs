//! The gRPC service around the cluster: reads messages, checks them, hands them in, and carries out what comes out.
//!
//! One mutex holds the state; a decision takes microseconds and the lock is never held over an await. No task is spawned
//! for a stream: its answer is a future that hears the daemon and speaks to it in turns, and that closes the stream in
//! the state when it is dropped, for whatever reason. Since a stream has no queue (`stream.rs`), a daemon that does not
//! read is not read either, and holds up nobody.

use crate::cluster::{Cluster, MAX_DOWNLOADS_PER_HOST, Sources, Taken};
use crate::message::{self, Content, Host, Invalid, Report};
use crate::refusal::Refusal;
use crate::stream::StreamId;
use crate::world::Counts;
use darter_protocol::scheduler as proto;
use darter_protocol::scheduler::scheduler_server::Scheduler as Rpc;
use futures_util::Stream;
use futures_util::stream::unfold;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// Streams that one connection may have open: all downloads of a host, its life line, and calls in between.
pub(crate) const MAX_STREAMS: u32 = MAX_DOWNLOADS_PER_HOST as u32 + 96;

/// A stream that has not said whose it is by then is closed: no host and no task pays for it.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The state, and whom to wake.
pub(crate) struct Shared {
    state: Mutex<State>,
    /// The next deadline is nearer than it was.
    sooner: Notify,
    /// No stream is served any more.
    closing: CancellationToken,
}

struct State {
    cluster: Cluster,
    readers: HashMap<StreamId, Arc<Notify>>,
}

// === impl Shared ===

impl Shared {
    pub(crate) fn new(cluster: Cluster) -> Self {
        Self {
            state: Mutex::new(State { cluster, readers: HashMap::new() }),
            sooner: Notify::new(),
            closing: CancellationToken::new(),
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        self.lock().cluster.counts()
    }

    /// Ends every stream.
    pub(crate) fn close(&self) {
        self.closing.cancel();
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

    /// Lets the cluster handle one event, and wakes whom it concerns.
    fn with<R>(&self, event: impl FnOnce(&mut Cluster, Instant) -> R) -> R {
        let mut state = self.lock();
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

    /// No event leaves the state half changed but by a bug; then serving on is better than refusing everybody.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tokio's clock, so that tests can stop it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

// === streams ===

/// A stream that is open in the cluster, until this is dropped.
struct Attached {
    shared: Arc<Shared>,
    id: StreamId,
    ready: Arc<Notify>,
}

impl Attached {
    fn new(shared: Arc<Shared>, id: StreamId) -> Self {
        let ready = Arc::new(Notify::new());
        shared.lock().readers.insert(id, Arc::clone(&ready));
        Self { shared, id, ready }
    }

    fn take(&self) -> Taken {
        self.shared.lock().cluster.take(self.id)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.shared.with(|cluster, now| cluster.handle_stream_closed(now, self.id));
        self.shared.lock().readers.remove(&self.id);
    }
}

/// What a stream does next.
enum Event<T> {
    Said(T),
    Ready,
    /// The daemon has said all that it wanted to say.
    End,
}

/// Waits for the daemon's next message, or for something to tell it.
///
/// # Cancel safety
/// Nothing is lost: a message or a wake-up that was not returned comes at the next call.
async fn next_event<T>(inbound: &mut Streaming<T>, attached: &Attached) -> Result<Event<T>, Status> {
    tokio::select! {
        () = attached.ready.notified() => Ok(Event::Ready),
        message = inbound.message() => Ok(message?.map_or(Event::End, Event::Said)),
        () = attached.shared.closing.cancelled() => Err(closing()),
    }
}

/// The message by which a stream says whose it is.
async fn first_message<T>(inbound: &mut Streaming<T>, shared: &Shared) -> Result<T, Status> {
    tokio::select! {
        message = tokio::time::timeout(FIRST_MESSAGE, inbound.message()) => match message {
            Ok(message) => message?.ok_or_else(|| Status::invalid_argument("the stream ended before its first message")),
            Err(_) => Err(Status::deadline_exceeded("the stream has not said whose it is")),
        },
        () = shared.closing.cancelled() => Err(closing()),
    }
}

/// A host's life line.
enum LifeLine {
    New(Arc<Shared>, Streaming<proto::AnnounceHostRequest>),
    Open(Attached, Streaming<proto::AnnounceHostRequest>),
}

impl LifeLine {
    /// The next answer, and the life line that goes on; `None` when it is over.
    async fn next(self) -> Result<Option<(proto::AnnounceHostResponse, Self)>, Status> {
        match self {
            Self::New(shared, mut inbound) => {
                let host = host(first_message(&mut inbound, &shared).await?)?;
                tracing::info!(host = %host.id, ip = %host.ip, port = host.piece_port, "host announced");
                let (opened, epoch) =
                    shared.with(|cluster, now| (cluster.handle_host_announced(now, host), cluster.epoch()));
                let attached = Attached::new(shared, opened.map_err(refused)?);
                Ok(Some((proto::AnnounceHostResponse { epoch }, Self::Open(attached, inbound))))
            }
            Self::Open(attached, mut inbound) => loop {
                if let Taken::Ended(why) = attached.take() {
                    return why.map_or(Ok(None), |why| Err(refused(why)));
                }
                match next_event(&mut inbound, &attached).await? {
                    Event::Said(message) => {
                        let host = host(message)?;
                        let renewed = attached
                            .shared
                            .with(|cluster, now| cluster.handle_host_renewed(now, attached.id, host));
                        renewed.map_err(refused)?;
                    }
                    Event::Ready => {}
                    Event::End => return Ok(None),
                }
            },
        }
    }
}

fn host(message: proto::AnnounceHostRequest) -> Result<Host, Status> {
    let host = message.host.ok_or_else(|| Status::invalid_argument("host: it is missing"))?;
    Host::try_from(host).map_err(malformed)
}

/// A download's conversation.
enum Conversation {
    New(Arc<Shared>, Streaming<proto::PieceResult>),
    Open(Attached, Streaming<proto::PieceResult>),
}

impl Conversation {
    /// The next packet, and the conversation that goes on; `None` when it is over.
    async fn next(self) -> Result<Option<(proto::PeerPacket, Self)>, Status> {
        let (attached, mut inbound) = match self {
            Self::Open(attached, inbound) => (attached, inbound),
            Self::New(shared, mut inbound) => {
                let mut first = first_message(&mut inbound, &shared).await?;
                let host = message::host_id(std::mem::take(&mut first.host_id)).map_err(malformed)?;
                let task = message::task_id(&first.task_id).map_err(malformed)?;
                let opened = shared.with(|cluster, now| cluster.handle_conversation_opened(now, &host, task));
                let attached = Attached::new(shared, opened.map_err(refused)?);
                hear(&attached, first)?;
                (attached, inbound)
            }
        };
        loop {
            match attached.take() {
                Taken::Packet(packet) => return Ok(Some((packet, Self::Open(attached, inbound)))),
                Taken::Ended(why) => return why.map_or(Ok(None), |why| Err(refused(why))),
                Taken::Nothing => {}
            }
            match next_event(&mut inbound, &attached).await? {
                Event::Said(message) => hear(&attached, message)?,
                Event::Ready => {}
                Event::End => return Ok(None),
            }
        }
    }
}

fn hear(attached: &Attached, message: proto::PieceResult) -> Result<(), Status> {
    let report = Report::try_from(message).map_err(malformed)?;
    attached.shared.with(|cluster, now| cluster.handle_report(now, attached.id, report)).map_err(refused)
}

/// A stream of answers from something that gives one and what comes after it. It ends after an error.
fn answers<S, T, F>(start: S, next: impl Fn(S) -> F + Send + Sync + 'static) -> Answers<T>
where
    S: Send + 'static,
    T: Send + 'static,
    F: Future<Output = Result<Option<(T, S)>, Status>> + Send,
{
    let next = Arc::new(next);
    Box::pin(unfold(Some(start), move |state| {
        let next = Arc::clone(&next);
        async move {
            match next(state?).await {
                Ok(Some((answer, state))) => Some((Ok(answer), Some(state))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        }
    }))
}

// === calls ===

/// The service, as tonic serves it.
#[derive(Clone)]
pub(crate) struct Service(pub(crate) Arc<Shared>);

#[tonic::async_trait]
impl Rpc for Service {
    type AnnounceHostStream = Answers<proto::AnnounceHostResponse>;
    type ReportPieceResultStream = Answers<proto::PeerPacket>;

    async fn announce_host(
        &self,
        request: Request<Streaming<proto::AnnounceHostRequest>>,
    ) -> Result<Response<Self::AnnounceHostStream>, Status> {
        // Answered before the first message is read: a daemon may wait for the answer before it sends any.
        let line = LifeLine::New(Arc::clone(&self.0), request.into_inner());
        Ok(Response::new(answers(line, LifeLine::next)))
    }

    async fn leave_host(
        &self,
        request: Request<proto::LeaveHostRequest>,
    ) -> Result<Response<proto::LeaveHostResponse>, Status> {
        let host = message::host_id(request.into_inner().host_id).map_err(malformed)?;
        tracing::info!(%host, "host leaves");
        self.0.with(|cluster, now| cluster.handle_host_left(now, &host));
        Ok(Response::new(proto::LeaveHostResponse {}))
    }

    async fn announce_task(
        &self,
        request: Request<proto::AnnounceTaskRequest>,
    ) -> Result<Response<proto::AnnounceTaskResponse>, Status> {
        let request = request.into_inner();
        let host = message::host_id(request.host_id).map_err(malformed)?;
        let tasks = message::inventory(request.tasks).map_err(malformed)?;
        self.0.with(|cluster, now| cluster.handle_inventory(now, &host, tasks)).map_err(refused)?;
        Ok(Response::new(proto::AnnounceTaskResponse {}))
    }

    async fn register_peer_task(
        &self,
        request: Request<proto::RegisterPeerTaskRequest>,
    ) -> Result<Response<proto::RegisterPeerTaskResponse>, Status> {
        let request = request.into_inner();
        let host = message::host_id(request.host_id).map_err(malformed)?;
        let task = message::task_id(&request.task_id).map_err(malformed)?;
        let registered =
            self.0.with(|cluster, now| cluster.handle_registered(now, &host, task, request.held_bytes));
        let answer = registered.map_err(refused)?;
        let (partners, lease) = (answer.partners.len(), answer.lease.is_some());
        tracing::debug!(%host, %task, partners, lease, "registered");
        Ok(Response::new(answer))
    }

    async fn report_piece_result(
        &self,
        request: Request<Streaming<proto::PieceResult>>,
    ) -> Result<Response<Self::ReportPieceResultStream>, Status> {
        let conversation = Conversation::New(Arc::clone(&self.0), request.into_inner());
        Ok(Response::new(answers(conversation, Conversation::next)))
    }

    async fn report_peer_result(
        &self,
        request: Request<proto::ReportPeerResultRequest>,
    ) -> Result<Response<proto::ReportPeerResultResponse>, Status> {
        let request = request.into_inner();
        let host = message::host_id(request.host_id).map_err(malformed)?;
        let task = message::task_id(&request.task_id).map_err(malformed)?;
        let complete = match request.complete {
            Some(content) => Some(Content::complete(Some(content)).map_err(malformed)?),
            None => None,
        };
        let (from_origin, from_peers) = (request.bytes_from_origin, request.bytes_from_peers);
        tracing::debug!(%host, %task, complete = complete.is_some(), from_origin, from_peers, "download ended");
        let bytes = Sources { from_origin, from_peers };
        let heard =
            self.0.with(|cluster, now| cluster.handle_peer_result(now, (&host, task), complete, bytes));
        heard.map_err(refused)?;
        Ok(Response::new(proto::ReportPeerResultResponse {}))
    }

    async fn stat_task(
        &self,
        request: Request<proto::StatTaskRequest>,
    ) -> Result<Response<proto::StatTaskResponse>, Status> {
        let task = message::task_id(&request.into_inner().task_id).map_err(malformed)?;
        Ok(Response::new(self.0.with(|cluster, _| cluster.stat(&task))))
    }

    async fn leave_task(
        &self,
        request: Request<proto::LeaveTaskRequest>,
    ) -> Result<Response<proto::LeaveTaskResponse>, Status> {
        let request = request.into_inner();
        let host = message::host_id(request.host_id).map_err(malformed)?;
        let tasks = message::task_ids(&request.task_ids).map_err(malformed)?;
        self.0.with(|cluster, now| cluster.handle_tasks_left(now, &host, tasks));
        Ok(Response::new(proto::LeaveTaskResponse {}))
    }
}

// === errors ===

/// The daemon sent what no daemon should send: it is a bug there, and trying again does not help.
fn malformed(invalid: Invalid) -> Status {
    Status::invalid_argument(invalid.to_string())
}

/// What the cluster refused, as a gRPC code that says what to do.
fn refused(refusal: Refusal) -> Status {
    let message = refusal.to_string();
    match refusal {
        // Announce or register, then try again.
        Refusal::UnknownHost | Refusal::NotRegistered | Refusal::HostGone => {
            Status::failed_precondition(message)
        }
        // A newer stream of the same host has taken over.
        Refusal::Replaced => Status::aborted(message),
        // Will not be right next time either.
        Refusal::OtherHost | Refusal::OtherContent | Refusal::NoSuchPiece => {
            Status::invalid_argument(message)
        }
        // Later, or elsewhere.
        Refusal::TooMany(_) => Status::resource_exhausted(message),
    }
}

/// Go to the next scheduler.
fn closing() -> Status {
    Status::unavailable("the scheduler is shutting down")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::LEASE_STALL;
    use darter_protocol::{HostId, TaskId};
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    fn host(id: &str) -> Host {
        let host = proto::Host { id: id.into(), ip: "192.0.2.1".into(), piece_port: 1, ..Default::default() };
        Host::try_from(host).unwrap()
    }

    /// A peer that has registered and opened its conversation.
    fn join(shared: &Arc<Shared>, id: &str, task: TaskId) -> (Attached, Attached) {
        let life = shared.with(|cluster, now| cluster.handle_host_announced(now, host(id)).unwrap());
        let talk = shared.with(|cluster, now| {
            let id: HostId = id.parse().unwrap();
            cluster.handle_registered(now, &id, task, 0).unwrap();
            cluster.handle_conversation_opened(now, &id, task).unwrap()
        });
        (Attached::new(Arc::clone(shared), life), Attached::new(Arc::clone(shared), talk))
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_stalls_is_taken_away_by_the_clock_alone() {
        let shared = Arc::new(Shared::new(Cluster::new(1, StdRng::seed_from_u64(1))));
        let scenario = async {
            // The clock is running before there is anything to wait for.
            tokio::task::yield_now().await;
            let start = now();
            let (_a_life, a) = join(&shared, "a", TaskId::from([1; 32]));
            let (_b_life, b) = join(&shared, "b", TaskId::from([1; 32]));
            assert_eq!((a.take(), b.take()), (Taken::Nothing, Taken::Nothing));
            a.ready.notified().await;
            assert_eq!(now() - start, LEASE_STALL);
            let revoked = proto::PeerPacket { lease_revoked: true, ..Default::default() };
            assert_eq!(a.take(), Taken::Packet(revoked));
            assert!(matches!(b.take(), Taken::Packet(packet) if packet.lease.is_some()));
        };
        tokio::select! {
            () = shared.keep_time() => {}
            () = scenario => {}
        }
        assert_eq!(shared.counts().hosts, 0);
    }
}
