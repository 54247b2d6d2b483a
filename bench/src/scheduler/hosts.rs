//! [`Host`]: a daemon as the scheduler sees one.

use anyhow::{Context, Result};
use darter_protocol::scheduler as proto;
use darter_protocol::scheduler::scheduler_client::SchedulerClient;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// Connections that are made at a time: the backlog of a listener is bounded.
const AT_ONCE: usize = 128;

pub(super) struct Host {
    id: String,
    channel: Channel,
    pub(super) client: SchedulerClient<Channel>,
    _line: (mpsc::Sender<proto::AnnounceHostRequest>, Streaming<proto::AnnounceHostResponse>),
}

/// So many daemons, each with its life line open.
pub(super) async fn connect(address: &str, count: usize) -> Result<Vec<Host>> {
    let hosts = futures_util::stream::iter((0..count).map(|n| Host::connect(address, n)));
    hosts.buffer_unordered(AT_ONCE).collect::<Vec<_>>().await.into_iter().collect()
}

fn task(n: usize) -> prost::bytes::Bytes {
    [&n.to_le_bytes()[..], &[7; 24]].concat().into()
}

fn whole() -> proto::Content {
    proto::Content { length: 4096, root: vec![9; 32].into(), ..Default::default() }
}

impl Host {
    pub(super) async fn connect(address: &str, n: usize) -> Result<Self> {
        let channel = Endpoint::from_shared(address.to_owned())?.tcp_nodelay(true).connect().await?;
        let mut client = SchedulerClient::new(channel.clone());
        let host = proto::Host {
            id: format!("host-{n}"),
            hostname: format!("host-{n}"),
            ip: format!("10.{}.{}.{}", n >> 16 & 255, n >> 8 & 255, n & 255 | 1),
            piece_port: 65002,
            idc: format!("idc-{}", n % 4),
            location: format!("eu|de|rack-{}", n % 200),
            upload_slots: 6,
            ..Default::default()
        };
        let id = host.id.clone();
        let (up, lines) = mpsc::channel(1);
        up.send(proto::AnnounceHostRequest { host: Some(host), ..Default::default() }).await?;
        let mut down = client.announce_host(ReceiverStream::new(lines)).await?.into_inner();
        down.message().await?.context("a life line is answered")?;
        Ok(Self { id, channel, client, _line: (up, down) })
    }

    /// It holds these contents: one message, as of a daemon that has at most a thousand.
    pub(super) async fn announce(&self, contents: impl IntoIterator<Item = usize>) -> Result<()> {
        let held = |n| proto::HeldTask { task_id: task(n), content: Some(whole()) };
        let tasks = contents.into_iter().map(held).collect();
        self.client
            .clone()
            .announce_task(proto::AnnounceTaskRequest { host_id: self.id.clone(), tasks })
            .await?;
        Ok(())
    }

    /// Asks whether the scheduler is well: a call that decides nothing.
    pub(super) async fn ask_health(&self) -> Result<()> {
        HealthClient::new(self.channel.clone()).check(HealthCheckRequest::default()).await?;
        Ok(())
    }

    /// It wants that content.
    pub(super) async fn register(&self, n: usize) -> Result<proto::RegisterPeerTaskResponse> {
        let request = proto::RegisterPeerTaskRequest {
            host_id: self.id.clone(),
            task_id: task(n),
            held_bytes: 0,
            ..Default::default()
        };
        Ok(self.client.clone().register_peer_task(request).await?.into_inner())
    }

    /// It does not want it any more: as after a read of a part, so that it can ask for it again.
    pub(super) async fn done(&self, n: usize) -> Result<()> {
        let request = proto::ReportPeerResultRequest {
            host_id: self.id.clone(),
            task_id: task(n),
            ..Default::default()
        };
        self.client.clone().report_peer_result(request).await?;
        Ok(())
    }

    /// What a daemon says first on the conversation about that content.
    pub(super) fn hello(&self, n: usize) -> proto::PieceResult {
        proto::PieceResult { host_id: self.id.clone(), task_id: task(n), ..Default::default() }
    }
}
