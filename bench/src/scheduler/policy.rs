//! Decisions alone, in this process: what one takes in a task that ten thousand peers download, and what hosts, tasks and
//! peers cost in memory.

use super::{percentile, row};
use anyhow::{Context, Result, ensure};
use darter_protocol::scheduler as proto;
use darter_protocol::{HostId, TaskId};
use darter_scheduler::message::{Content, Held, Host, Registration, Report};
use darter_scheduler::{Cluster, Taken};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// Decisions that are measured.
const DECISIONS: usize = 5_000;
/// Tasks of the host that has many.
const TASKS: usize = 100_000;
/// Bytes of a piece.
const PIECE: u64 = 1 << 20;

struct Player {
    cluster: Cluster,
    now: Instant,
}

pub(super) fn measure(peers: usize) -> Result<()> {
    let empty = resident()?;
    let mut player = Player { cluster: Cluster::new(1, StdRng::seed_from_u64(1)), now: Instant::now() };
    let hosts: Vec<HostId> = (0..peers + DECISIONS).map(|n| player.host(n)).collect::<Result<_>>()?;
    let with_hosts = resident()?;
    row("a host without tasks: memory", "bytes", (with_hosts - empty) / hosts.len() as u64);
    player.inventory(&hosts[0])?;
    let with_tasks = resident()?;
    row("a task with one holder: memory", "bytes", (with_tasks - with_hosts) / TASKS as u64);
    let (crowd, late) = hosts.split_at(peers);
    let task = TaskId::from([1; 32]);
    for host in crowd {
        player.join(host, task)?;
    }
    let with_peers = resident()?;
    row(
        &format!("a peer of a task that {peers} download: memory"),
        "bytes",
        (with_peers - with_tasks) / peers as u64,
    );
    let mut took = Vec::with_capacity(late.len());
    for host in late {
        let began = Instant::now();
        player.register(host, task)?;
        took.push(began.elapsed());
        player.deliver();
        player.cluster.handle_tasks_left(player.now, host, vec![task]);
    }
    let all: Duration = took.iter().sum();
    took.sort_unstable();
    row(
        &format!("decisions among {peers} peers, one core"),
        "1/s",
        (took.len() as f64 / all.as_secs_f64()).round(),
    );
    row("a decision: p50", "us", percentile(&took, 50).as_micros());
    row("a decision: p99", "us", percentile(&took, 99).as_micros());
    let each = player.crowd(crowd, TaskId::from([2; 32]))? / peers as u32;
    row(
        &format!("{peers} register before anybody has a byte: each, until all have partners"),
        "us",
        each.as_micros(),
    );
    Ok(())
}

impl Player {
    fn host(&mut self, n: usize) -> Result<HostId> {
        let host = proto::Host {
            id: format!("host-{n}"),
            hostname: format!("host-{n}"),
            ip: "192.0.2.1".to_owned(),
            piece_port: 1,
            idc: format!("idc-{}", n % 4),
            location: format!("eu|de|rack-{}", n % 200),
            ..Default::default()
        };
        let host = Host::try_from(host)?;
        let id = host.id.clone();
        self.cluster.handle_host_announced(self.now, host)?;
        Ok(id)
    }

    fn inventory(&mut self, host: &HostId) -> Result<()> {
        let content = proto::Content { length: 1 << 20, root: vec![9; 32].into(), ..Default::default() };
        let content = Content::complete(Some(content))?;
        let id = |n: usize| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&n.to_le_bytes());
            TaskId::from(id)
        };
        let held = (0..TASKS).map(|n| Held { task: id(n), content: content.clone() }).collect();
        Ok(self.cluster.handle_inventory(self.now, host, held)?)
    }

    fn register(&mut self, host: &HostId, task: TaskId) -> Result<proto::RegisterPeerTaskResponse> {
        Ok(self.cluster.handle_registered(self.now, host, task, &Registration::default())?)
    }

    /// Downloads, and has its first bytes.
    fn join(&mut self, host: &HostId, task: TaskId) -> Result<()> {
        let told = self.register(host, task)?;
        let stream = self.cluster.handle_conversation_opened(self.now, host, task)?;
        let content =
            told.lease.map(|_| Content::try_from(proto::Content { length: 64 << 20, ..Default::default() }));
        let report = Report { content: content.transpose()?, held_bytes: PIECE, ..Report::default() };
        self.cluster.handle_report(self.now, stream, report).context("a report")?;
        self.deliver();
        Ok(())
    }

    /// All ask for a content that nobody has; then the first has a piece, and everybody who is given a partner has one a
    /// moment later. How long the scheduler works on that.
    fn crowd(&mut self, hosts: &[HostId], task: TaskId) -> Result<Duration> {
        let began = Instant::now();
        let (mut holder, mut hungry) = (None, HashSet::new());
        for host in hosts {
            let told = self.register(host, task)?;
            let stream = self.cluster.handle_conversation_opened(self.now, host, task)?;
            match told.lease {
                Some(_) => holder = Some(stream),
                None => drop(hungry.insert(stream)),
            }
        }
        let content = Content::try_from(proto::Content { length: 64 << 20, ..Default::default() })?;
        let first = Report { content: Some(content), held_bytes: PIECE, ..Report::default() };
        self.cluster.handle_report(self.now, holder.context("nobody may go to the origin")?, first)?;
        while let Some(stream) = self.cluster.poll_ready() {
            while let Taken::Packet(packet) = self.cluster.take(stream) {
                if !packet.partners.is_empty() && hungry.remove(&stream) {
                    let report = Report { held_bytes: PIECE, ..Report::default() };
                    self.cluster.handle_report(self.now, stream, report)?;
                }
            }
        }
        ensure!(hungry.is_empty(), "{} have nobody", hungry.len());
        Ok(began.elapsed())
    }

    /// Everybody reads what there is to be told.
    fn deliver(&mut self) {
        while let Some(stream) = self.cluster.poll_ready() {
            while matches!(self.cluster.take(stream), Taken::Packet(_)) {}
        }
    }
}

/// Resident memory of this process, in bytes.
fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}
