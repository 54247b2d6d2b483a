//! What is asked of one scheduler, page by page, and what of it is shown: the fields of `--json` are those of [`Answer`].

use std::time::Duration;

use darter_enrol::Membership;
use darter_protocol::scheduler as proto;
use darter_protocol::scheduler::scheduler_client::SchedulerClient;
use darter_protocol::scheduler::{HostState, MAX_MESSAGE_BYTES, TaskFilter};
use hyper::body::Bytes;
use serde::Serialize;
use tonic::transport::{Channel, Endpoint};

/// How long a scheduler may take to be reached, and to answer all.
const DIAL: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_secs(10);

/// How much is asked for.
pub(super) struct Wanted {
    /// Rows of each table.
    pub(super) limit: usize,
    /// Tasks without a download, too.
    pub(super) all_tasks: bool,
}

/// What a scheduler said, or why it did not.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    pub(super) scheduler: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(super) view: Option<View>,
}

#[derive(Debug, Serialize)]
pub(super) struct View {
    pub(super) cluster: Cluster,
    /// The hosts that have been there longest.
    pub(super) hosts: Vec<Host>,
    /// All that are quarantined or on probation, up to the limit.
    pub(super) quarantine: Vec<Host>,
    /// Tasks that somebody downloads.
    pub(super) swarms: Vec<Task>,
    /// Tasks for which somebody may go to the origin.
    pub(super) leases: Vec<Task>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tasks: Option<Vec<Task>>,
}

#[derive(Debug, Serialize)]
pub(super) struct Cluster {
    pub(super) version: String,
    pub(super) epoch: String,
    pub(super) uptime_seconds: u64,
    pub(super) hosts: u64,
    pub(super) seeds: u64,
    pub(super) draining: u64,
    pub(super) quarantined: u64,
    pub(super) on_probation: u64,
    pub(super) tasks: u64,
    pub(super) complete: u64,
    pub(super) partial: u64,
    pub(super) downloading: u64,
    pub(super) registrations: u64,
    pub(super) leases_granted: u64,
    pub(super) leases_expired: u64,
    pub(super) bytes_from_origin: u64,
    pub(super) bytes_from_peers: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Host {
    pub(super) id: String,
    pub(super) hostname: String,
    pub(super) ip: String,
    pub(super) piece_port: u32,
    pub(super) idc: String,
    pub(super) location: String,
    pub(super) seed: bool,
    pub(super) version: String,
    /// good, draining, quarantined, probation.
    pub(super) state: &'static str,
    pub(super) reason: String,
    pub(super) seconds_left: u64,
    pub(super) score: f32,
    pub(super) quarantines: u32,
    pub(super) tasks: u64,
    pub(super) downloads: u64,
    pub(super) upload_slots: u32,
    pub(super) free_uploads: Option<u32>,
    pub(super) served_bytes: u64,
    pub(super) seconds: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Task {
    pub(super) id: String,
    pub(super) length: Option<u64>,
    pub(super) complete: u64,
    pub(super) partial: u64,
    pub(super) downloading: u64,
    /// Of all that its downloads want: what they have, 0 to 1. Absent while nobody knows the length.
    pub(super) progress: Option<f64>,
    pub(super) unshareable: bool,
    pub(super) lease_holder: String,
    pub(super) lease_bytes: u64,
    pub(super) lease_seconds_left: u64,
}

/// Asks the scheduler at `address`.
pub(super) async fn scheduler(membership: &Membership, address: &str, wanted: &Wanted) -> Answer {
    let asked = tokio::time::timeout(LIMIT, view(membership, address, wanted)).await;
    let said = asked.unwrap_or_else(|_| Err(format!("it took longer than {} s", LIMIT.as_secs())));
    let (error, view) = match said {
        Ok(view) => (None, Some(view)),
        Err(why) => (Some(why), None),
    };
    Answer { scheduler: address.to_owned(), error, view }
}

/// A connection to the scheduler at `address`, made when it is used; or why there can be none.
pub(super) fn connect(membership: &Membership, address: &str) -> Result<SchedulerClient<Channel>, String> {
    let shape = |endpoint: Endpoint| endpoint.connect_timeout(DIAL).timeout(LIMIT);
    let channel = darter_enrol::channel(membership, address, shape);
    let channel = channel.map_err(|_| "that is no address: expected HOST:PORT".to_owned())?;
    Ok(SchedulerClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES))
}

/// What a scheduler's refusal means for a person.
pub(super) fn refusal(status: &tonic::Status) -> String {
    match status.code() {
        tonic::Code::Unimplemented => "it is a scheduler of an older version, or something else".to_owned(),
        _ => darter_enrol::reason(status),
    }
}

async fn view(membership: &Membership, address: &str, wanted: &Wanted) -> Result<View, String> {
    let mut client = connect(membership, address)?;
    let said = async {
        let cluster = client.stat_cluster(proto::StatClusterRequest {}).await?.into_inner();
        Ok(View {
            cluster: cluster.into(),
            hosts: hosts(&mut client, false, wanted.limit).await?,
            quarantine: hosts(&mut client, true, wanted.limit).await?,
            swarms: tasks(&mut client, TaskFilter::Swarms, wanted.limit).await?,
            leases: tasks(&mut client, TaskFilter::Leases, wanted.limit).await?,
            tasks: match wanted.all_tasks {
                true => Some(tasks(&mut client, TaskFilter::Unspecified, wanted.limit).await?),
                false => None,
            },
        })
    };
    said.await.map_err(|status: tonic::Status| refusal(&status))
}

async fn hosts(
    client: &mut SchedulerClient<Channel>,
    suspects: bool,
    limit: usize,
) -> Result<Vec<Host>, tonic::Status> {
    let (mut hosts, mut after) = (Vec::new(), 0);
    loop {
        let rest = u32::try_from(limit - hosts.len()).unwrap_or(u32::MAX);
        let request = proto::ListHostsRequest { after, limit: rest, suspects };
        let page = client.list_hosts(request).await?.into_inner();
        hosts.extend(page.hosts.into_iter().map(Host::from));
        after = page.next;
        if after == 0 || hosts.len() >= limit {
            return Ok(hosts);
        }
    }
}

async fn tasks(
    client: &mut SchedulerClient<Channel>,
    only: TaskFilter,
    limit: usize,
) -> Result<Vec<Task>, tonic::Status> {
    let (mut tasks, mut after) = (Vec::new(), Bytes::new());
    loop {
        let rest = u32::try_from(limit - tasks.len()).unwrap_or(u32::MAX);
        let request = proto::ListTasksRequest { after, limit: rest, only: only.into() };
        let page = client.list_tasks(request).await?.into_inner();
        tasks.extend(page.tasks.into_iter().map(Task::from));
        after = page.next;
        if after.is_empty() || tasks.len() >= limit {
            return Ok(tasks);
        }
    }
}

impl From<proto::StatClusterResponse> for Cluster {
    fn from(said: proto::StatClusterResponse) -> Self {
        Self {
            version: said.version,
            epoch: format!("{:016x}", said.epoch),
            uptime_seconds: said.uptime_seconds,
            hosts: said.hosts,
            seeds: said.seeds,
            draining: said.draining,
            quarantined: said.quarantined,
            on_probation: said.on_probation,
            tasks: said.tasks,
            complete: said.complete,
            partial: said.partial,
            downloading: said.downloading,
            registrations: said.registrations,
            leases_granted: said.leases_granted,
            leases_expired: said.leases_expired,
            bytes_from_origin: said.bytes_from_origin,
            bytes_from_peers: said.bytes_from_peers,
        }
    }
}

impl From<proto::HostStatus> for Host {
    fn from(said: proto::HostStatus) -> Self {
        let state = said.state();
        let host = said.host.unwrap_or_default();
        Self {
            state: match state {
                HostState::Quarantined => "quarantined",
                HostState::Probation => "probation",
                _ if host.draining => "draining",
                HostState::Good | HostState::Unspecified => "good",
            },
            id: host.id,
            hostname: host.hostname,
            ip: host.ip,
            piece_port: host.piece_port,
            idc: host.idc,
            location: host.location,
            seed: host.seed,
            version: host.version,
            reason: said.reason,
            seconds_left: said.seconds_left,
            score: said.score,
            quarantines: said.quarantines,
            tasks: said.tasks,
            downloads: said.downloads,
            upload_slots: host.upload_slots,
            free_uploads: host.free_uploads,
            served_bytes: said.served_bytes,
            seconds: said.seconds,
        }
    }
}

impl From<proto::TaskStatus> for Task {
    fn from(said: proto::TaskStatus) -> Self {
        let wanted = said.length.map(|length| length as f64 * said.downloading as f64);
        let progress =
            wanted.filter(|wanted| *wanted > 0.0).map(|wanted| (said.held_bytes as f64 / wanted).min(1.0));
        Self {
            id: said.task_id.iter().map(|byte| format!("{byte:02x}")).collect(),
            length: said.length,
            complete: said.complete,
            partial: said.partial,
            downloading: said.downloading,
            progress,
            unshareable: said.unshareable,
            lease_holder: said.lease_holder,
            lease_bytes: said.lease_bytes,
            lease_seconds_left: said.lease_seconds_left,
        }
    }
}
