//! What the scheduler shows to people who ask: numbers, and its hosts and tasks a page at a time.
//!
//! A page is bounded in what it holds and in what is looked at for it, so that somebody who watches a large cluster holds up
//! no download: a page of a thousand out of a hundred thousand hosts takes about a millisecond.

use crate::cluster::Cluster;
use crate::conduct::State;
use crate::host::{HostKey, Life};
use crate::peer::Role;
use crate::task::Task;
use darter_protocol::TaskId;
use darter_protocol::scheduler as proto;
use darter_protocol::scheduler::{HostState, TaskFilter};
use std::ops::Bound;
use std::time::Instant;

/// Hosts or tasks of a page: each is about 200 bytes.
const MAX_PAGE: usize = 1000;
/// Tasks that are looked at for a page.
const MAX_LOOKED_AT: usize = 10_000;
/// With so many peers of the tasks that it shows a page is full: each is looked at, while all downloads wait.
const MAX_PEERS: usize = 10_000;

impl Cluster {
    /// What there is, and what has happened, in numbers. The version and the time since the start are the caller's to say.
    pub fn stat_cluster(&self) -> proto::StatClusterResponse {
        let counts = self.counts();
        let hosts = || self.world.hosts.lives().map(|(_, life)| &life.host);
        proto::StatClusterResponse {
            epoch: self.epoch(),
            hosts: counts.hosts as u64,
            seeds: hosts().filter(|host| host.seed).count() as u64,
            draining: hosts().filter(|host| host.draining).count() as u64,
            quarantined: counts.quarantined as u64,
            on_probation: counts.on_probation as u64,
            tasks: counts.tasks as u64,
            complete: counts.complete as u64,
            partial: counts.partial as u64,
            downloading: counts.downloading as u64,
            registrations: counts.registrations,
            leases_granted: counts.leases_granted,
            leases_expired: counts.leases_expired,
            bytes_from_origin: counts.bytes_from_origin,
            bytes_from_peers: counts.bytes_from_peers,
            ..Default::default()
        }
    }

    /// A page of the hosts, those that have been there longest first.
    pub fn list_hosts(&self, now: Instant, request: &proto::ListHostsRequest) -> proto::ListHostsResponse {
        let most = page(request.limit);
        // `next` is the number of a page's last host, and one more: 0 stands for the beginning.
        let after = |key: &HostKey| key.number() >= request.after;
        let mut keys: Vec<HostKey> = if request.suspects {
            self.world.hosts.suspects().map(|(key, _)| key).filter(after).collect()
        } else {
            self.world.hosts.lives().map(|(key, _)| key).filter(after).collect()
        };
        let more = keys.len() > most;
        if more {
            keys.select_nth_unstable(most);
            keys.truncate(most);
        }
        keys.sort_unstable();
        let next = keys.last().filter(|_| more).map_or(0, |key| key.number() + 1);
        let hosts = keys.into_iter().filter_map(|key| Some(host(now, self.world.hosts.life(key)?)));
        proto::ListHostsResponse { hosts: hosts.collect(), next }
    }

    /// A page of the tasks, in the order of their ids, from `after` on.
    pub fn list_tasks(
        &self,
        now: Instant,
        after: Option<TaskId>,
        request: &proto::ListTasksRequest,
    ) -> proto::ListTasksResponse {
        let (most, only) = (page(request.limit), request.only());
        let begin = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut tasks = Vec::new();
        let (mut last, mut peers) = (None, 0);
        for (id, task) in self.tasks.range((begin, Bound::Unbounded)).take(MAX_LOOKED_AT) {
            if tasks.len() >= most || peers >= MAX_PEERS {
                break;
            }
            last = Some(*id);
            let shown = match only {
                TaskFilter::Unspecified => true,
                TaskFilter::Swarms => task.downloading > 0,
                TaskFilter::Leases => task.lease.is_some(),
            };
            if shown {
                peers += task.peers.len();
                tasks.push(self.task(now, id, task));
            }
        }
        let is_last = |last: &TaskId| self.tasks.last_key_value().is_none_or(|(id, _)| id == last);
        let next = last.filter(|last| !is_last(last)).map(|last| last.as_bytes().to_vec().into());
        proto::ListTasksResponse { tasks, next: next.unwrap_or_default() }
    }

    fn task(&self, now: Instant, id: &TaskId, task: &Task) -> proto::TaskStatus {
        let lease = task.lease.as_ref();
        let holder = lease.and_then(|lease| self.world.hosts.host(lease.holder));
        let left = lease.map(|lease| lease.deadline.saturating_duration_since(now).as_secs());
        proto::TaskStatus {
            task_id: id.as_bytes().to_vec().into(),
            length: task.content.as_ref().map(|content| content.layout.length()),
            complete: task.complete as u64,
            partial: task.peers.values().filter(|peer| matches!(peer.role, Role::Partial)).count() as u64,
            downloading: task.downloading as u64,
            held_bytes: task.downloads().fold(0, |sum, (_, download)| sum.saturating_add(download.held)),
            unshareable: task.unshareable,
            lease_holder: holder.map(|host| host.id.to_string()).unwrap_or_default(),
            lease_bytes: lease.map(|lease| lease.origin_bytes).unwrap_or_default(),
            lease_seconds_left: left.unwrap_or_default(),
        }
    }
}

fn page(limit: u32) -> usize {
    if limit == 0 { MAX_PAGE } else { MAX_PAGE.min(limit as usize) }
}

fn host(now: Instant, life: &Life) -> proto::HostStatus {
    let (score, quarantines) = life.conduct.score(now);
    let (state, reason, seconds_left) = match life.conduct.state() {
        State::Good => (HostState::Good, "", 0),
        State::Quarantined { until, why } => {
            (HostState::Quarantined, why.word(), until.saturating_duration_since(now).as_secs())
        }
        State::Probation { why, .. } => (HostState::Probation, why.word(), 0),
    };
    proto::HostStatus {
        host: Some(proto::Host { free_uploads: life.uploads.free, ..life.host.to_proto() }),
        state: state.into(),
        reason: reason.to_owned(),
        seconds_left,
        score,
        quarantines,
        tasks: life.tasks.len() as u64,
        downloads: life.downloads as u64,
        served_bytes: life.served,
        seconds: now.saturating_duration_since(life.since).as_secs(),
    }
}
