//! The gRPC service: takes messages, checks them, hands them to the cluster, and says what it answered.

use crate::cluster::{MAX_DOWNLOADS_PER_HOST, Sources};
use crate::copies::Copied;
use crate::message::{self, Content, Invalid, Registration};
use crate::refusal::Refusal;
use crate::shared::Shared;
use crate::speakers::Usurper;
use crate::talk::{Answers, Conversation, LifeLine, answers};
use darter_enrol::Caller;
use darter_protocol::HostId;
use darter_protocol::scheduler as proto;
use darter_protocol::scheduler::scheduler_server::Scheduler as Rpc;
use std::sync::Arc;
use tonic::{Request, Response, Status, Streaming};

/// Streams that one connection may have open: all downloads of a host, its life line, and calls in between.
pub(crate) const MAX_STREAMS: u32 = MAX_DOWNLOADS_PER_HOST as u32 + 96;

/// How many tasks of a list are handled under one lock: about a millisecond's worth.
const BATCH: usize = 500;

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
        let caller = caller(&request)?;
        let line = LifeLine::New(Arc::clone(&self.0), caller, request.into_inner());
        Ok(Response::new(answers(line, LifeLine::next)))
    }

    async fn leave_host(
        &self,
        request: Request<proto::LeaveHostRequest>,
    ) -> Result<Response<proto::LeaveHostResponse>, Status> {
        let caller = caller(&request)?;
        let host = self.speaker(request.into_inner().host_id, caller)?;
        tracing::info!(%host, "host leaves");
        self.0.with(|cluster, now| cluster.handle_host_left(now, &host));
        Ok(Response::new(proto::LeaveHostResponse {}))
    }

    async fn announce_task(
        &self,
        request: Request<proto::AnnounceTaskRequest>,
    ) -> Result<Response<proto::AnnounceTaskResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let host = self.speaker(request.host_id, caller)?;
        let tasks = message::inventory(request.tasks).map_err(|invalid| self.nonsense(&host, invalid))?;
        for batch in batches(tasks) {
            // Not asleep until its turn: thousands of such messages would wait in memory.
            self.0.with(|cluster, now| cluster.handle_inventory(now, &host, batch)).map_err(refused)?;
            tokio::task::yield_now().await;
        }
        Ok(Response::new(proto::AnnounceTaskResponse {}))
    }

    async fn register_peer_task(
        &self,
        request: Request<proto::RegisterPeerTaskRequest>,
    ) -> Result<Response<proto::RegisterPeerTaskResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let registration = Registration::try_from(&request);
        let host = self.speaker(request.host_id, caller)?;
        let registration = registration.map_err(|invalid| self.nonsense(&host, invalid))?;
        let task = message::task_id(&request.task_id).map_err(malformed)?;
        // Whoever waits for his turn holds no more than he must.
        drop((request.origin, request.url_prefixes));
        let registered =
            self.0.in_turn(|cluster, now| cluster.handle_registered(now, &host, task, &registration));
        let answer = registered.await.map_err(refused)?;
        let (partners, lease) = (answer.partners.len(), answer.lease.is_some());
        tracing::debug!(%host, %task, partners, lease, "registered");
        Ok(Response::new(answer))
    }

    async fn report_piece_result(
        &self,
        request: Request<Streaming<proto::PieceResult>>,
    ) -> Result<Response<Self::ReportPieceResultStream>, Status> {
        let caller = caller(&request)?;
        let conversation = Conversation::New(Arc::clone(&self.0), caller, request.into_inner());
        Ok(Response::new(answers(conversation, Conversation::next)))
    }

    async fn report_peer_result(
        &self,
        request: Request<proto::ReportPeerResultRequest>,
    ) -> Result<Response<proto::ReportPeerResultResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let host = self.speaker(request.host_id, caller)?;
        let task = message::task_id(&request.task_id).map_err(malformed)?;
        let complete = match request.complete {
            Some(content) => {
                Some(Content::complete(Some(content)).map_err(|invalid| self.nonsense(&host, invalid))?)
            }
            None => None,
        };
        let (from_origin, from_peers) = (request.bytes_from_origin, request.bytes_from_peers);
        tracing::debug!(%host, %task, complete = complete.is_some(), from_origin, from_peers, "download ended");
        let bytes = Sources { from_origin, from_peers };
        let heard =
            self.0.in_turn(|cluster, now| cluster.handle_peer_result(now, (&host, task), complete, bytes));
        heard.await.map_err(refused)?;
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
        let caller = caller(&request)?;
        let request = request.into_inner();
        let host = self.speaker(request.host_id, caller)?;
        let tasks = message::task_ids(&request.task_ids).map_err(malformed)?;
        for batch in batches(tasks) {
            self.0.with(|cluster, now| cluster.handle_tasks_left(now, &host, batch));
            tokio::task::yield_now().await;
        }
        Ok(Response::new(proto::LeaveTaskResponse {}))
    }

    async fn delete_task(
        &self,
        request: Request<proto::DeleteTaskRequest>,
    ) -> Result<Response<proto::DeleteTaskResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let host = self.speaker(request.host_id, caller)?;
        let task = message::task_id(&request.task_id).map_err(malformed)?;
        let told =
            self.0.with(|cluster, now| cluster.handle_task_deleted(now, &host, task)).map_err(refused)?;
        tracing::info!(%host, %task, told, "task deleted");
        let hosts = u32::try_from(told).unwrap_or(u32::MAX);
        Ok(Response::new(proto::DeleteTaskResponse { hosts, left: true }))
    }

    async fn replicate_task(
        &self,
        request: Request<proto::ReplicateTaskRequest>,
    ) -> Result<Response<proto::ReplicateTaskResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let host = self.speaker(request.host_id, caller)?;
        let task = message::task_id(&request.task_id).map_err(malformed)?;
        let hosts = request.hosts as usize;
        let copied = self.0.with(|cluster, now| cluster.handle_copies_wanted(now, &host, task, hosts));
        let Copied { complete, pending } = copied.map_err(refused)?;
        tracing::debug!(%host, %task, hosts, complete, pending, "copies wanted");
        let [complete, pending] = [complete, pending].map(|hosts| u32::try_from(hosts).unwrap_or(u32::MAX));
        Ok(Response::new(proto::ReplicateTaskResponse { complete, pending }))
    }

    async fn stat_cluster(
        &self,
        _: Request<proto::StatClusterRequest>,
    ) -> Result<Response<proto::StatClusterResponse>, Status> {
        let (version, uptime_seconds) = (env!("CARGO_PKG_VERSION").to_owned(), self.0.uptime().as_secs());
        let stat = self.0.with(|cluster, _| cluster.stat_cluster());
        Ok(Response::new(proto::StatClusterResponse { version, uptime_seconds, ..stat }))
    }

    async fn list_hosts(
        &self,
        request: Request<proto::ListHostsRequest>,
    ) -> Result<Response<proto::ListHostsResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(self.0.with(|cluster, now| cluster.list_hosts(now, &request))))
    }

    async fn explain_task(
        &self,
        request: Request<proto::ExplainTaskRequest>,
    ) -> Result<Response<proto::ExplainTaskResponse>, Status> {
        let request = request.into_inner();
        let task = message::task_id(&request.task_id).map_err(malformed)?;
        let host = match request.host_id.is_empty() {
            true => None,
            false => Some(message::host_id(request.host_id).map_err(malformed)?),
        };
        Ok(Response::new(self.0.with(|cluster, _| cluster.explain(&task, host.as_ref()))))
    }

    async fn list_tasks(
        &self,
        request: Request<proto::ListTasksRequest>,
    ) -> Result<Response<proto::ListTasksResponse>, Status> {
        let request = request.into_inner();
        let after = match request.after.as_ref() {
            [] => None,
            after => Some(message::task_id(after).map_err(malformed)?),
        };
        Ok(Response::new(self.0.with(|cluster, now| cluster.list_tasks(now, after, &request))))
    }
}

impl Service {
    /// In whose name the connection speaks.
    fn speaker(&self, host: String, caller: Caller) -> Result<HostId, Status> {
        let host = message::host_id(host).map_err(malformed)?;
        self.0.may_speak(&host, &caller).map_err(usurped)?;
        Ok(host)
    }

    /// A host sent what cannot be read: it is told so, and it is remembered.
    fn nonsense(&self, host: &HostId, invalid: Invalid) -> Status {
        self.0.with(|cluster, now| cluster.handle_nonsense(now, host));
        malformed(invalid)
    }
}

/// Who calls, and from where.
fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| Status::internal("the connection is nobody's"))
}

/// A long list as several short ones, so that others get their turn in between.
fn batches<T>(mut all: Vec<T>) -> impl Iterator<Item = Vec<T>> {
    std::iter::from_fn(move || {
        let rest = all.split_off(all.len().min(BATCH));
        let batch = std::mem::replace(&mut all, rest);
        (!batch.is_empty()).then_some(batch)
    })
}

// === errors ===

/// The daemon sent what no daemon should send: it is a bug there, and trying again does not help.
pub(crate) fn malformed(invalid: Invalid) -> Status {
    Status::invalid_argument(invalid.to_string())
}

/// What the cluster refused, as a gRPC code that says what to do.
pub(crate) fn refused(refusal: Refusal) -> Status {
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

/// Somebody else is that host: what is wrong does not go away by itself, unless the other one does.
pub(crate) fn usurped(usurper: Usurper) -> Status {
    match usurper {
        Usurper::Elsewhere => Status::already_exists(usurper.to_string()),
        Usurper::Other | Usurper::Stranger | Usurper::Unproven | Usurper::NoSeed => {
            Status::permission_denied(usurper.to_string())
        }
    }
}

/// Go to the next scheduler.
pub(crate) fn closing() -> Status {
    Status::unavailable("the scheduler is shutting down")
}
