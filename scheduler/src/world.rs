//! [`World`]: what all tasks share, and [`Cx`], the view of it in which one task handles one event.

use crate::budgets::Budgets;
use crate::conduct::{Fault, State, Why};
use crate::host::{HostKey, Hosts};
use crate::stream::Streams;
use darter_protocol::TaskId;
use darter_protocol::scheduler::FailureReason;
use rand::rngs::StdRng;
use std::collections::BTreeSet;
use std::time::Instant;

/// Hosts, streams, timers, counts and the source of chance.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) hosts: Hosts,
    pub(crate) streams: Streams,
    pub(crate) timers: BTreeSet<(Instant, Timer)>,
    pub(crate) counts: Counts,
    pub(crate) rng: StdRng,
    pub(crate) next_lease: u64,
    /// Hosts whose standing has changed, and whose tasks have not been told.
    pub(crate) judged: Vec<HostKey>,
    pub(crate) budgets: Budgets,
}

impl World {
    pub(crate) fn new(rng: StdRng) -> Self {
        Self {
            hosts: Hosts::default(),
            streams: Streams::default(),
            timers: BTreeSet::new(),
            counts: Counts::default(),
            rng,
            next_lease: 1,
            judged: Vec::new(),
            budgets: Budgets::default(),
        }
    }

    /// A host says that another one, which it was given as a partner, failed it. The word of one that is quarantined counts
    /// for nothing. Returns whether it is believed: what is doubted counts only together with what others say.
    pub(crate) fn blame(&mut self, now: Instant, reporter: HostKey, accused: HostKey, fault: Fault) -> bool {
        let hosts = self.hosts.len();
        let Some(life) = self.hosts.life_mut(reporter) else { return false };
        if matches!(life.conduct.state(), State::Quarantined { .. }) {
            return false;
        }
        let word = life.conduct.accuses(now, accused, fault, hosts);
        let doubted = fault == Fault::Corrupt && !word.at_once;
        let overdid = if doubted { life.conduct.overdid(now) } else { None };
        let blamed = self.hosts.life_mut(accused).and_then(|life| life.conduct.blamed(now, fault, word));
        self.condemn(now, accused, blamed);
        self.condemn(now, reporter, overdid);
        !doubted || blamed.is_some()
    }

    /// A host sent what no honest one sends.
    pub(crate) fn heard_nonsense(&mut self, now: Instant, key: HostKey) {
        self.counts.nonsense += 1;
        let why = self.hosts.life_mut(key).and_then(|life| life.conduct.talked_nonsense(now));
        self.condemn(now, key, why);
    }

    fn condemn(&mut self, now: Instant, key: HostKey, why: Option<Why>) {
        let (Some(why), Some(life)) = (why, self.hosts.life_mut(key)) else { return };
        if let Some(before) = life.conduct.timeout() {
            self.timers.remove(&(before, Timer::Conduct(key)));
        }
        let until = life.conduct.condemn(now, why);
        tracing::warn!(
            host = %life.host.id, reason = why.word(), seconds = until.duration_since(now).as_secs(),
            "host quarantined: it is named to nobody"
        );
        self.timers.insert((until, Timer::Conduct(key)));
        self.counts.quarantines[why as usize] += 1;
        self.hosts.note(key);
        self.judged.push(key);
    }

    /// A host's quarantine or its probation may be over.
    pub(crate) fn conduct_due(&mut self, now: Instant, key: HostKey) {
        let Some(life) = self.hosts.life_mut(key) else { return };
        let changed = life.conduct.due(now);
        if let Some(at) = life.conduct.timeout() {
            self.timers.insert((at, Timer::Conduct(key)));
        }
        if changed {
            match life.conduct.state() {
                State::Good => {
                    tracing::info!(host = %life.host.id, "nothing bad was heard of the host for a day")
                }
                _ => tracing::info!(host = %life.host.id, "quarantine over: the host is on probation"),
            }
            self.hosts.note(key);
            self.judged.push(key);
        }
    }

    /// A host gave verified pieces to another.
    pub(crate) fn praise(&mut self, now: Instant, key: HostKey, pieces: u32, bytes: u64) {
        let Some(life) = self.hosts.life_mut(key) else { return };
        life.served = life.served.saturating_add(bytes);
        let until = life.conduct.timeout();
        if life.conduct.proven(now, pieces) {
            if let Some(at) = until {
                self.timers.remove(&(at, Timer::Conduct(key)));
            }
            tracing::info!(host = %life.host.id, "host proved itself: it is named to others again");
            self.counts.releases += 1;
            self.hosts.note(key);
            self.judged.push(key);
        }
    }

    pub(crate) fn cx(&mut self, now: Instant, task: TaskId) -> Cx<'_> {
        Cx { now, task, world: self }
    }

    /// A lease's number: never used twice, never 0.
    pub(crate) fn lease_id(&mut self) -> u64 {
        let id = self.next_lease;
        self.next_lease += 1;
        id
    }
}

/// The moment, the task's name, and the world.
#[derive(Debug)]
pub(crate) struct Cx<'a> {
    pub(crate) now: Instant,
    pub(crate) task: TaskId,
    pub(crate) world: &'a mut World,
}

/// What is to be looked at when its time comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// Has the task's lease stalled?
    Lease(TaskId),
    /// Nobody has come for whom the task's lease is kept.
    Kept(TaskId),
    /// The peer has registered and opened no stream.
    Silent(TaskId, HostKey),
    /// The task may be tried as a shared one again.
    Shareable(TaskId),
    /// The host's quarantine is over, or its probation.
    Conduct(HostKey),
}

/// What has happened since the start, and what there is now. Kept as plain numbers by the state; `metrics.rs` shows
/// them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Hosts that are alive.
    pub hosts: usize,
    /// Tasks that anybody holds, wants, or that are marked as not shareable.
    pub tasks: usize,
    /// Peers that hold a task complete.
    pub complete: usize,
    /// Peers that hold some of a task and download nothing.
    pub partial: usize,
    /// Peers that download.
    pub downloading: usize,
    /// Registrations answered.
    pub registrations: u64,
    /// Leases given.
    pub leases_granted: u64,
    /// Leases taken from a holder that made no progress.
    pub leases_expired: u64,
    /// Leases that went to another peer because the one before did not finish.
    pub leases_handed_over: u64,
    /// Packets sent to peers.
    pub packets: u64,
    /// Failures of partners that were reported, by [`FailureReason`]'s number.
    pub failures: [u64; FAILURE_REASONS.len()],
    /// What was reported and could not be used: hashes from peers without the lease, failures of hosts that were never
    /// named, inventory of different content.
    pub ignored: u64,
    /// Bytes that finished downloads took from origins.
    pub bytes_from_origin: u64,
    /// Bytes that finished downloads took from peers.
    pub bytes_from_peers: u64,
    /// Hosts that are named to nobody.
    pub quarantined: usize,
    /// Hosts that have to prove themselves.
    pub on_probation: usize,
    /// Quarantines so far, by [`Why`]'s number.
    pub quarantines: [u64; Why::ALL.len()],
    /// Hosts that proved themselves.
    pub releases: u64,
    /// Messages that no honest daemon sends.
    pub nonsense: u64,
    /// Tasks that wait until their origin has room.
    pub waiting_for_room: usize,
    /// Registrations that were refused by the operator's rules.
    pub refused: u64,
    /// Downloads that were told that nobody has what they lack, and that they may not fetch it.
    pub hopeless: u64,
}

/// Every reason, in the order of its number.
pub(crate) const FAILURE_REASONS: [FailureReason; 5] = [
    FailureReason::Unspecified,
    FailureReason::Unreachable,
    FailureReason::Timeout,
    FailureReason::Corrupt,
    FailureReason::NotHeld,
];
