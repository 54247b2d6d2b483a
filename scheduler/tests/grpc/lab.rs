//! A scheduler on loopback, and daemons that do what they are told.
use darter_enrol::{Membership, Metrics};
use darter_protocol::scheduler as proto;
use darter_protocol::scheduler::scheduler_client::SchedulerClient;
use darter_scheduler::{RunError, Scheduler};
use futures_util::Stream;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

pub(crate) const LENGTH: u64 = 5 << 20;

pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) registry: Registry,
    pub(crate) running: JoinHandle<Result<(), RunError>>,
    pub(crate) stop: DropGuard,
}

pub(crate) async fn server() -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let mut registry = Registry::default();
    let stop = CancellationToken::new();
    let scheduler = Scheduler::new(Membership::insecure(Metrics::default()), &mut registry);
    let running = TaskTracker::new().spawn(darter_scheduler::run(listener, scheduler, stop.clone()));
    Server { address, registry, running, stop: stop.drop_guard() }
}

impl Server {
    /// A connection.
    pub(crate) async fn channel(&self) -> Channel {
        Endpoint::from_shared(self.address.clone()).unwrap().connect().await.unwrap()
    }

    pub(crate) fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }
}

/// A daemon with its own connection.
pub(crate) struct Daemon {
    pub(crate) name: &'static str,
    pub(crate) client: SchedulerClient<Channel>,
}

/// A stream both ways.
#[derive(Debug)]
pub(crate) struct Talk<Up, Down> {
    pub(crate) up: mpsc::Sender<Up>,
    pub(crate) down: Streaming<Down>,
}

pub(crate) fn requests<T: Send + 'static>() -> (mpsc::Sender<T>, impl Stream<Item = T> + Send + 'static) {
    let (up, requests) = mpsc::channel(16);
    (up, ReceiverStream::new(requests))
}

impl Daemon {
    pub(crate) async fn connect(server: &Server, name: &'static str) -> Self {
        let channel = server.channel().await;
        Self { name, client: SchedulerClient::new(channel) }
    }

    pub(crate) fn host(&self) -> proto::Host {
        let (id, ip) = (self.name.to_owned(), "127.0.0.1".to_owned());
        proto::Host { id, ip, piece_port: 65002, ..Default::default() }
    }

    pub(crate) async fn life_line(&self) -> Talk<proto::AnnounceHostRequest, proto::AnnounceHostResponse> {
        let (up, requests) = requests();
        // Nothing has been said yet: the call must not wait for it.
        let down = self.client.clone().announce_host(requests).await.unwrap().into_inner();
        Talk { up, down }
    }

    /// Opens the life line, and returns it with the scheduler's epoch.
    pub(crate) async fn announce(
        &self,
    ) -> (Talk<proto::AnnounceHostRequest, proto::AnnounceHostResponse>, u64) {
        let mut line = self.life_line().await;
        line.up
            .send(proto::AnnounceHostRequest { host: Some(self.host()), ..Default::default() })
            .await
            .unwrap();
        let epoch = line.down.message().await.unwrap().unwrap().epoch;
        (line, epoch)
    }

    pub(crate) async fn register(&self) -> Result<proto::RegisterPeerTaskResponse, tonic::Status> {
        let request = proto::RegisterPeerTaskRequest {
            host_id: self.name.to_owned(),
            task_id: vec![1; 32].into(),
            held_bytes: 0,
            ..Default::default()
        };
        self.client.clone().register_peer_task(request).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn talk(&self) -> Talk<proto::PieceResult, proto::PeerPacket> {
        self.talk_from(proto::PieceResult::default()).await
    }

    pub(crate) async fn talk_from(
        &self,
        report: proto::PieceResult,
    ) -> Talk<proto::PieceResult, proto::PeerPacket> {
        self.talk_about(vec![1; 32].into(), report).await
    }

    pub(crate) async fn talk_about(
        &self,
        task_id: prost::bytes::Bytes,
        report: proto::PieceResult,
    ) -> Talk<proto::PieceResult, proto::PeerPacket> {
        let (up, requests) = requests();
        let first = proto::PieceResult { host_id: self.name.to_owned(), task_id, ..report };
        up.send(first).await.unwrap();
        let down = self.client.clone().report_piece_result(requests).await.unwrap().into_inner();
        Talk { up, down }
    }

    pub(crate) async fn complete(&self) -> Result<(), tonic::Status> {
        let content = proto::Content { length: LENGTH, root: vec![9; 32].into(), ..Default::default() };
        let request = proto::ReportPeerResultRequest {
            host_id: self.name.to_owned(),
            task_id: vec![1; 32].into(),
            complete: Some(content),
            bytes_from_origin: LENGTH,
            bytes_from_peers: 0,
        };
        self.client.clone().report_peer_result(request).await.map(drop)
    }
}
