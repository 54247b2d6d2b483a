//! Daemons and schedulers of the version before: its messages are in `previous/scheduler.proto`, as they were.

use crate::lab::{LENGTH, server};
use darter_protocol::scheduler as proto;
use darter_protocol::scheduler::scheduler_client::SchedulerClient as NewClient;
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;
use tonic::{Code, Request, Response, Status, Streaming};

#[expect(
    unreachable_pub,
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
mod old {
    include!(concat!(env!("OUT_DIR"), "/darter.scheduler.v1.rs"));
}

use old::scheduler_client::SchedulerClient as OldClient;
use old::scheduler_server::{Scheduler as OldRpc, SchedulerServer as OldServer};

fn old_host(id: &str) -> old::Host {
    old::Host { id: id.into(), ip: "127.0.0.1".into(), piece_port: 1, ..Default::default() }
}

#[tokio::test]
async fn a_daemon_of_the_version_before_downloads_and_serves() {
    let server = server().await;
    let mut a = OldClient::connect(server.address.clone()).await.unwrap();
    let (up, lines) = tokio::sync::mpsc::channel(4);
    up.send(old::AnnounceHostRequest { host: Some(old_host("a")) }).await.unwrap();
    let stream = tokio_stream::wrappers::ReceiverStream::new(lines);
    let mut life = a.announce_host(stream).await.unwrap().into_inner();
    assert_ne!(life.message().await.unwrap().unwrap().epoch, 0);
    let register = |task: u8| old::RegisterPeerTaskRequest {
        host_id: "a".into(),
        task_id: vec![task; 32].into(),
        held_bytes: 0,
    };
    let told = a.register_peer_task(register(1)).await.unwrap().into_inner();
    assert!(told.lease.is_some());
    let content = old::Content { length: LENGTH, root: vec![9; 32].into(), ..Default::default() };
    let result = old::ReportPeerResultRequest {
        host_id: "a".into(),
        task_id: vec![1; 32].into(),
        complete: Some(content),
        ..Default::default()
    };
    a.report_peer_result(result).await.unwrap();

    // A new daemon gets it from the old one, and says so with words that the old one does not know.
    let b = crate::lab::Daemon::connect(&server, "b").await;
    let _line = b.announce().await;
    let told = b.register().await.unwrap();
    assert_eq!(told.partners.iter().map(|partner| partner.host_id.as_str()).collect::<Vec<_>>(), ["a"]);
    let served = vec![proto::PartnerServed { host_id: "a".into(), pieces: 1, bytes: 1 }];
    let _talk = b.talk_from(proto::PieceResult { served, held_bytes: LENGTH, ..Default::default() }).await;
    let task_id = vec![1; 32].into();
    assert_eq!(a.stat_task(old::StatTaskRequest { task_id }).await.unwrap().into_inner().complete, 1);
}

/// A scheduler of the version before, as far as a daemon needs it to begin a download.
struct Old;

type Answers<T> = std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl OldRpc for Old {
    type AnnounceHostStream = Answers<old::AnnounceHostResponse>;
    type ReportPieceResultStream = Answers<old::PeerPacket>;

    async fn announce_host(
        &self,
        request: Request<Streaming<old::AnnounceHostRequest>>,
    ) -> Result<Response<Self::AnnounceHostStream>, Status> {
        let host = request.into_inner().message().await?.and_then(|first| first.host);
        assert_eq!(host.unwrap(), old_host("new"), "it understands what it knows, and passes over the rest");
        let answer = old::AnnounceHostResponse { epoch: 5, deleted: Vec::new() };
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(answer)))))
    }

    async fn register_peer_task(
        &self,
        _: Request<old::RegisterPeerTaskRequest>,
    ) -> Result<Response<old::RegisterPeerTaskResponse>, Status> {
        let lease = Some(old::Lease { id: 3 });
        Ok(Response::new(old::RegisterPeerTaskResponse { lease, ..Default::default() }))
    }

    async fn report_piece_result(
        &self,
        request: Request<Streaming<old::PieceResult>>,
    ) -> Result<Response<Self::ReportPieceResultStream>, Status> {
        let said = request.into_inner().message().await?.unwrap();
        assert_eq!(said.held_bytes, 7);
        let packet = old::PeerPacket { lease_revoked: true, ..Default::default() };
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(packet)))))
    }

    async fn leave_host(
        &self,
        _: Request<old::LeaveHostRequest>,
    ) -> Result<Response<old::LeaveHostResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn announce_task(
        &self,
        _: Request<old::AnnounceTaskRequest>,
    ) -> Result<Response<old::AnnounceTaskResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn report_peer_result(
        &self,
        _: Request<old::ReportPeerResultRequest>,
    ) -> Result<Response<old::ReportPeerResultResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn stat_task(
        &self,
        _: Request<old::StatTaskRequest>,
    ) -> Result<Response<old::StatTaskResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn leave_task(
        &self,
        _: Request<old::LeaveTaskRequest>,
    ) -> Result<Response<old::LeaveTaskResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn delete_task(
        &self,
        _: Request<old::DeleteTaskRequest>,
    ) -> Result<Response<old::DeleteTaskResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tokio::test]
async fn a_scheduler_of_the_version_before_understands_a_daemon_of_this_one() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let serve =
        tonic::transport::Server::builder().add_service(OldServer::new(Old)).serve_with_incoming(incoming);
    let _serving = TaskTracker::new().spawn(serve);

    let mut daemon = NewClient::connect(address).await.unwrap();
    let host = proto::Host {
        id: "new".into(),
        ip: "127.0.0.1".into(),
        piece_port: 1,
        draining: true,
        free_uploads: Some(3),
        version: "9".into(),
        protocol: 9,
        ..Default::default()
    };
    let hello = tokio_stream::once(proto::AnnounceHostRequest { host: Some(host), ..Default::default() });
    let answer = daemon.announce_host(hello).await.unwrap().into_inner().message().await.unwrap().unwrap();
    assert_eq!((answer.epoch, answer.protocol), (5, 0), "from before there were numbers");
    let request = proto::RegisterPeerTaskRequest {
        host_id: "new".into(),
        task_id: vec![1; 32].into(),
        held_bytes: 0,
        ..Default::default()
    };
    assert!(daemon.register_peer_task(request).await.unwrap().into_inner().lease.is_some());
    let served = vec![proto::PartnerServed { host_id: "a".into(), pieces: 1, bytes: 1 }];
    let report = proto::PieceResult { held_bytes: 7, served, free_uploads: Some(1), ..Default::default() };
    let mut packets = daemon.report_piece_result(tokio_stream::once(report)).await.unwrap().into_inner();
    assert!(packets.message().await.unwrap().unwrap().lease_revoked);
    let unknown = daemon.stat_cluster(proto::StatClusterRequest {}).await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unimplemented, "what it cannot do, it says so");
}
