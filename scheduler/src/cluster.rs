//! [`Cluster`]: the whole state of a scheduler. Events go in with the time at which they happened; packets and a deadline
//! come out. It does no IO, reads no clock, and draws only on the generator that it was made with: the same events give
//! the same packets, in production and in a simulation of ten thousand hosts.
//!
//! The driver's part:
//! - It calls `handle_*` for what it hears, and [`Cluster::handle_timeout`] when [`Cluster::poll_timeout`] has come.
//! - After each of these it asks [`Cluster::poll_ready`] which streams have something to say, and lets each
//!   [`Cluster::take`] until there is nothing more, as fast as its reader takes it.
//! - It calls [`Cluster::handle_stream_closed`] once for every stream that was opened, however it ended.
//!
//! Invariants: a host is here exactly while its life line is open; a task exactly while it has a peer or is marked as not
//! shareable. Everything else is each task's own (`task.rs`).

use crate::access::{Access, Verdict};
use crate::copies::Copies;
use crate::host::HostKey;
use crate::message::{Content, Held, Host, Registration, Report};
use crate::refusal::Refusal;
use crate::stream::{Line, StreamId};
use crate::task::Task;
use crate::world::{Counts, Cx, Timer, World};
use darter_protocol::scheduler as proto;
use darter_protocol::{HostId, TaskId};
use rand::rngs::StdRng;
use std::collections::BTreeMap;
use std::time::Instant;

/// Hosts at once. A host without tasks costs about a KiB (measured by `darter-bench scheduler`, as below).
const MAX_HOSTS: usize = 100_000;
/// Tasks of one host, held or wanted. A task with one holder costs 0.9 KiB and its headers, each further holder 0.2 KiB: so
/// one host that makes tasks up costs 200 MiB at most.
pub(crate) const MAX_TASKS_PER_HOST: usize = 200_000;
/// Tasks of all hosts together: 5 GiB.
const MAX_TASKS: usize = 5_000_000;
/// Downloads of one host at once, 0.6 KiB each. Below the streams that a connection may have (`service.rs`), so that a daemon
/// with all its downloads open can still register and report.
pub(crate) const MAX_DOWNLOADS_PER_HOST: usize = 4_000;

/// Who has what, who asks whom, and who may go to the origin.
#[derive(Debug)]
pub struct Cluster {
    epoch: u64,
    /// In order, so that a listing goes on where it stopped.
    pub(crate) tasks: BTreeMap<TaskId, Box<Task>>,
    /// Tasks of which more copies are being made.
    pub(crate) copies: BTreeMap<TaskId, Copies>,
    pub(crate) world: World,
}

/// What a stream has to say.
#[derive(Debug, Clone, PartialEq)]
pub enum Taken {
    /// This, and perhaps more.
    Packet(proto::PeerPacket),
    /// Nothing now: wait until it is ready.
    Nothing,
    /// Nothing ever: close it, with the refusal if there is one.
    Ended(Option<Refusal>),
}

/// Bytes of a finished download, by where they came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sources {
    /// From the origin.
    pub from_origin: u64,
    /// From other daemons.
    pub from_peers: u64,
}

// === hosts ===

impl Cluster {
    /// An empty cluster. `epoch` tells daemons that this is a new one: it should differ from every earlier one's.
    pub fn new(epoch: u64, rng: StdRng) -> Self {
        Self { epoch, tasks: BTreeMap::new(), copies: BTreeMap::new(), world: World::new(rng) }
    }

    /// What the daemons are told at the start of their life lines.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// A host's life line is open. One that it had before ends, and takes nothing with it.
    ///
    /// # Errors
    /// [`Refusal::TooMany`]. No stream has been opened then.
    pub fn handle_host_announced(&mut self, now: Instant, host: Host) -> Result<StreamId, Refusal> {
        let Some(key) = self.world.hosts.key(&host.id) else {
            if self.world.hosts.len() >= MAX_HOSTS {
                return Err(Refusal::TooMany("hosts"));
            }
            return Ok(self.insert_host(now, host));
        };
        let lifeline = self.world.streams.open(Line::Lifeline { host: key });
        if let Some(life) = self.world.hosts.life_mut(key) {
            let before = std::mem::replace(&mut life.lifeline, lifeline);
            self.world.streams.end(before, Some(Refusal::Replaced));
        }
        self.update_host(now, key, host);
        self.repeat_wanted(key);
        Ok(lifeline)
    }

    fn insert_host(&mut self, now: Instant, host: Host) -> StreamId {
        let World { streams, hosts, timers, .. } = &mut self.world;
        let mut born = None;
        let lifeline = hosts.insert(now, host, |key| {
            born = Some(key);
            streams.open(Line::Lifeline { host: key })
        });
        let quarantined =
            born.and_then(|key| Some((hosts.life(key)?.conduct.timeout()?, Timer::Conduct(key))));
        timers.extend(quarantined);
        lifeline
    }

    /// A life line says what is new about its host.
    ///
    /// # Errors
    /// [`Refusal::OtherHost`], or why the stream has ended.
    pub fn handle_host_renewed(&mut self, now: Instant, stream: StreamId, host: Host) -> Result<(), Refusal> {
        let Some(Line::Lifeline { host: key }) = self.world.streams.line(stream) else {
            return Err(Refusal::Replaced);
        };
        if self.world.hosts.key(&host.id) != Some(key) {
            return Err(Refusal::OtherHost);
        }
        self.update_host(now, key, host);
        Ok(())
    }

    fn update_host(&mut self, now: Instant, key: HostKey, host: Host) {
        let Some(life) = self.world.hosts.life_mut(key) else { return };
        let moved = (life.host.ip, life.host.piece_port) != (host.ip, host.piece_port);
        if life.host.draining != host.draining {
            self.world.judged.push(key);
        }
        life.uploads.hear(host.free_uploads);
        life.host = host;
        if moved {
            for task in life.tasks.clone() {
                self.on_task(now, task, |task, cx| task.changed(cx, key));
            }
        }
        self.carry_out(now);
    }

    /// The host says goodbye. One that is not here has gone already.
    pub fn handle_host_left(&mut self, now: Instant, host: &HostId) {
        if let Some(key) = self.world.hosts.key(host) {
            if let Some(life) = self.world.hosts.life(key) {
                self.world.streams.end(life.lifeline, None);
            }
            self.host_gone(now, key);
        }
    }

    fn host_gone(&mut self, now: Instant, key: HostKey) {
        // Its peers leave while the host is still known, so that others can be told by name who is gone.
        let tasks = self.world.hosts.life(key).map(|life| life.tasks.clone()).unwrap_or_default();
        for task in tasks {
            self.on_task(now, task, |task, cx| task.leave(cx, key, Some(Refusal::HostGone)));
        }
        if let Some(at) = self.world.hosts.life(key).and_then(|life| life.conduct.timeout()) {
            self.world.timers.remove(&(at, Timer::Conduct(key)));
        }
        self.world.hosts.remove(now, key);
        self.carry_out(now);
    }

    /// The operator's rules from now on. Who goes to an origin already goes on.
    pub fn set_access(&mut self, now: Instant, access: Access) {
        self.world.budgets.set_access(access);
        self.carry_out(now);
    }

    /// The tasks of hosts whose standing has changed act on it, and what origins may give is handed out.
    fn carry_out(&mut self, now: Instant) {
        while let Some(key) = self.world.judged.pop() {
            let tasks = self.world.hosts.life(key).map(|life| life.tasks.clone()).unwrap_or_default();
            for task in tasks {
                self.on_task(now, task, |task, cx| task.reconsider(cx, key));
            }
        }
        self.hand_out(now);
    }

    /// Where origins have room, those who wait for it go there; and everybody hears of another share.
    fn hand_out(&mut self, now: Instant) {
        loop {
            let overdue = self.world.budgets.poll_overdue();
            if let Some(task) = overdue {
                self.on_task(now, task, |task, cx| task.overdue(cx));
            }
            let next = self.world.budgets.poll_next();
            if let Some((origin, task)) = &next {
                self.on_task(now, *task, |task, cx| task.its_turn(cx, origin));
            }
            // Behind the one for whom it had to go.
            if let Some(task) = overdue {
                self.on_task(now, task, |task, cx| task.pass_on(cx));
            }
            if next.is_none() && overdue.is_none() {
                break;
            }
        }
        loop {
            let users = self.world.budgets.poll_reshared();
            if users.is_empty() && !self.world.budgets.has_reshared() {
                break;
            }
            for (task, key) in users {
                self.on_task(now, task, |task, cx| task.reshared(cx, key));
            }
        }
    }

    /// A host sent something that cannot be read, or that cannot be. Whoever does that again and again is quarantined.
    pub fn handle_nonsense(&mut self, now: Instant, host: &HostId) {
        if let Some(key) = self.world.hosts.key(host) {
            self.world.heard_nonsense(now, key);
            self.carry_out(now);
        }
    }

    pub(crate) fn alive(&self, host: &HostId) -> Result<HostKey, Refusal> {
        self.world.hosts.key(host).ok_or(Refusal::UnknownHost)
    }
}

// === tasks ===

impl Cluster {
    /// A host holds these tasks complete. What it says of a task whose content is known otherwise is not believed.
    ///
    /// # Errors
    /// [`Refusal::UnknownHost`], [`Refusal::TooMany`]; none of the tasks has been taken then.
    pub fn handle_inventory(&mut self, now: Instant, host: &HostId, tasks: Vec<Held>) -> Result<(), Refusal> {
        let key = self.alive(host)?;
        self.check_room(key, MAX_TASKS_PER_HOST, tasks.iter().map(|held| &held.task))?;
        for Held { task, content } in tasks {
            if self.on_task_or_new(now, task, |task, cx| task.holds(cx, key, content)).is_err() {
                self.world.counts.ignored += 1;
            }
        }
        self.carry_out(now);
        Ok(())
    }

    /// A host wants a task. What it is told at once: the content, partners and hashes that are known, and a lease if it may
    /// go to the origin now; or that it is refused for good, and then it is not registered.
    ///
    /// # Errors
    /// [`Refusal::UnknownHost`], [`Refusal::TooMany`].
    pub fn handle_registered(
        &mut self,
        now: Instant,
        host: &HostId,
        task: TaskId,
        registration: &Registration,
    ) -> Result<proto::RegisterPeerTaskResponse, Refusal> {
        let key = self.alive(host)?;
        // What it downloads it may lack room to announce, and gets from others all the same.
        self.check_room(key, MAX_TASKS_PER_HOST + MAX_DOWNLOADS_PER_HOST, std::iter::once(&task))?;
        if self.world.hosts.life(key).is_some_and(|life| life.downloads >= MAX_DOWNLOADS_PER_HOST) {
            return Err(Refusal::TooMany("downloads of one host"));
        }
        self.world.counts.registrations += 1;
        let barred =
            match self.world.budgets.access().judge(&task, registration, self.world.hosts.is_seed(key)) {
                Verdict::Free => None,
                Verdict::FromPeers(why) => Some(why),
                Verdict::Refused(reason) => {
                    self.world.counts.refused += 1;
                    // An earlier download of the host is over all the same: it began anew.
                    self.on_task(now, task, |task, cx| task.replaced(cx, key));
                    self.carry_out(now);
                    let refused = Some(proto::Refused { for_good: true, reason });
                    return Ok(proto::RegisterPeerTaskResponse { refused, ..Default::default() });
                }
            };
        let packet = self.on_task_or_new(now, task, |task, cx| task.register(cx, key, registration, barred));
        self.carry_out(now);
        Ok(proto::RegisterPeerTaskResponse {
            content: packet.content,
            partners: packet.partners,
            hashes: packet.hashes,
            lease: packet.lease,
            share: packet.share,
            refused: packet.refused,
            barred: barred.is_some(),
        })
    }

    /// Whether there is room for one more that the host holds. One that it downloads is among its tasks already, and was
    /// perhaps beyond what it may announce.
    fn check_holds(&self, key: HostKey, task: &TaskId) -> Result<(), Refusal> {
        let downloads = self.tasks.get(task).is_some_and(|task| task.download(key).is_some());
        let tasks = self.world.hosts.life(key).map_or(0, |life| life.tasks.len());
        if downloads && tasks > MAX_TASKS_PER_HOST {
            return Err(Refusal::TooMany("tasks of one host"));
        }
        self.check_room(key, MAX_TASKS_PER_HOST, std::iter::once(task))
    }

    /// Whether there is room for these tasks. What is there already takes none: a host that says again what it has, or joins
    /// others in a download, is welcome in a cluster that is full.
    fn check_room<'a>(
        &self,
        key: HostKey,
        most: usize,
        wanted: impl ExactSizeIterator<Item = &'a TaskId> + Clone,
    ) -> Result<(), Refusal> {
        if let Some(tasks) = self.world.hosts.life(key).map(|life| &life.tasks)
            && !fits(tasks.len(), most, wanted.clone(), |task| tasks.contains(task))
        {
            return Err(Refusal::TooMany("tasks of one host"));
        }
        if fits(self.tasks.len(), MAX_TASKS, wanted, |task| self.tasks.contains_key(task)) {
            Ok(())
        } else {
            Err(Refusal::TooMany("tasks"))
        }
    }

    /// The conversation about a download is open. What happened since the registration is told on it. If there was one
    /// already, it ends, and the new one is told everything again: what was said on the other may have been lost.
    ///
    /// # Errors
    /// [`Refusal::UnknownHost`], [`Refusal::NotRegistered`]. No stream has been opened then.
    pub fn handle_conversation_opened(
        &mut self,
        now: Instant,
        host: &HostId,
        task: TaskId,
    ) -> Result<StreamId, Refusal> {
        let key = self.alive(host)?;
        let stream = self.world.streams.open(Line::Conversation { task, host: key });
        let opened = self
            .on_task(now, task, |task, cx| task.open(cx, key, stream))
            .unwrap_or(Err(Refusal::NotRegistered));
        if let Err(refusal) = opened {
            self.world.streams.remove(stream);
            return Err(refusal);
        }
        self.carry_out(now);
        Ok(stream)
    }

    /// A report has arrived on a conversation, and the driver will hand it in when its turn comes: until then its sender is not one
    /// of whom nothing is heard.
    pub fn handle_report_arrived(&mut self, stream: StreamId) {
        let Some(Line::Conversation { task, host }) = self.world.streams.line(stream) else { return };
        let Some(task) = self.tasks.get_mut(&task) else { return };
        if task.download(host).is_some_and(|download| download.stream == Some(stream)) {
            task.arrived(host);
        }
    }

    /// A peer reports on its conversation. What comes after the download has ended is not heard.
    ///
    /// # Errors
    /// Why the stream has ended or must end now.
    pub fn handle_report(&mut self, now: Instant, stream: StreamId, report: Report) -> Result<(), Refusal> {
        let (task, host) = match self.world.streams.line(stream) {
            Some(Line::Conversation { task, host }) => (task, host),
            Some(Line::Ended(Some(refusal))) => return Err(refusal),
            _ => return Ok(()),
        };
        let reported = self.on_task(now, task, |task, cx| match task.download(host) {
            Some(download) if download.stream == Some(stream) => task.report(cx, host, report),
            _ => Ok(()),
        });
        if reported == Some(Err(Refusal::NoSuchPiece)) {
            self.world.heard_nonsense(now, host);
        }
        self.carry_out(now);
        reported.unwrap_or(Ok(()))
    }

    /// A download has ended. With `complete`, the host holds the whole content now, registered or not.
    ///
    /// # Errors
    /// [`Refusal::UnknownHost`], [`Refusal::TooMany`], [`Refusal::OtherContent`].
    pub fn handle_peer_result(
        &mut self,
        now: Instant,
        (host, task): (&HostId, TaskId),
        complete: Option<Content>,
        bytes: Sources,
    ) -> Result<(), Refusal> {
        let key = self.alive(host)?;
        if let Some(content) = complete {
            if let Err(refusal) = self.check_holds(key, &task) {
                self.on_task(now, task, |task, cx| task.replaced(cx, key));
                self.carry_out(now);
                return Err(refusal);
            }
            self.on_task_or_new(now, task, |task, cx| task.holds(cx, key, content))?;
        } else {
            self.on_task(now, task, |task, cx| task.gave_up(cx, key));
        }
        let counts = &mut self.world.counts;
        counts.bytes_from_origin = counts.bytes_from_origin.saturating_add(bytes.from_origin);
        counts.bytes_from_peers = counts.bytes_from_peers.saturating_add(bytes.from_peers);
        self.carry_out(now);
        Ok(())
    }

    /// The host does not hold these tasks any more. A host that is gone holds none anyway.
    pub fn handle_tasks_left(&mut self, now: Instant, host: &HostId, tasks: Vec<TaskId>) {
        if let Some(key) = self.world.hosts.key(host) {
            for task in tasks {
                self.could_not_copy(&task, key);
                self.on_task(now, task, |task, cx| task.dropped(cx, key));
            }
            self.carry_out(now);
        }
    }

    /// A host wants a task to be gone from the cluster, and holds it no more itself: every other one that has some of it is told.
    /// Gives how many these are. Who is not there now keeps what it has.
    ///
    /// # Errors
    /// [`Refusal::UnknownHost`].
    pub fn handle_task_deleted(
        &mut self,
        now: Instant,
        host: &HostId,
        task: TaskId,
    ) -> Result<usize, Refusal> {
        let asking = self.alive(host)?;
        self.want_no_copies(&task);
        let peers = self.tasks.get(&task).into_iter().flat_map(|task| task.peers.keys().copied());
        let others: Vec<HostKey> = peers.filter(|key| *key != asking).collect();
        for key in &others {
            if let Some(life) = self.world.hosts.life_mut(*key) {
                life.deleted.insert(task);
                self.world.streams.wake(life.lifeline);
            }
        }
        self.handle_tasks_left(now, host, vec![task]);
        Ok(others.len())
    }

    /// What the host of a life line is to throw away; each task is told once.
    pub fn take_deleted(&mut self, stream: StreamId) -> Vec<TaskId> {
        let Some(Line::Lifeline { host }) = self.world.streams.line(stream) else { return Vec::new() };
        let life = self.world.hosts.life_mut(host);
        life.map(|life| std::mem::take(&mut life.deleted).into_iter().collect()).unwrap_or_default()
    }

    /// What is known of a task; nothing of one that nobody has.
    pub fn stat(&self, task: &TaskId) -> proto::StatTaskResponse {
        self.tasks.get(task).map(|task| task.stat(&self.world.hosts)).unwrap_or_default()
    }

    /// Whether `host` is quarantined: nobody is named it, in any task.
    pub fn is_quarantined(&self, host: &HostId) -> bool {
        self.world.hosts.key(host).is_some_and(|key| self.world.hosts.regard(key).struck)
    }

    fn on_task<R>(
        &mut self,
        now: Instant,
        id: TaskId,
        event: impl FnOnce(&mut Task, &mut Cx<'_>) -> R,
    ) -> Option<R> {
        let task = self.tasks.get_mut(&id)?;
        let result = event(task, &mut self.world.cx(now, id));
        task.mend_borders(&mut self.world.cx(now, id));
        task.tidy_places(&mut self.world.cx(now, id));
        if task.tidy() {
            task.take_places().for_each(|(origin, place)| self.world.budgets.give_up(&origin, place));
            task.keep_no_longer(&mut self.world.cx(now, id));
            self.tasks.remove(&id);
            self.want_no_copies(&id);
        }
        Some(result)
    }

    fn on_task_or_new<R>(
        &mut self,
        now: Instant,
        id: TaskId,
        event: impl FnOnce(&mut Task, &mut Cx<'_>) -> R,
    ) -> R {
        self.tasks.entry(id).or_default();
        self.on_task(now, id, event).expect("it was there or has just been made")
    }
}

// === streams, time, numbers ===

impl Cluster {
    /// A stream is closed, by whomever. A life line takes its host along; a conversation ends the download.
    pub fn handle_stream_closed(&mut self, now: Instant, stream: StreamId) {
        match self.world.streams.remove(stream) {
            Some(Line::Lifeline { host }) => self.host_gone(now, host),
            Some(Line::Conversation { task, host }) => {
                self.on_task(now, task, |task, cx| task.closed(cx, host, stream));
                self.carry_out(now);
            }
            Some(Line::Ended(_)) | None => {}
        }
    }

    /// A stream that has something to say; each once, until something new happens to it.
    pub fn poll_ready(&mut self) -> Option<StreamId> {
        self.world.streams.poll_ready()
    }

    /// What a stream has to say. A packet counts as told once it is taken.
    pub fn take(&mut self, stream: StreamId) -> Taken {
        match self.world.streams.line(stream) {
            None => Taken::Ended(None),
            Some(Line::Ended(why)) => Taken::Ended(why),
            Some(Line::Lifeline { .. }) => Taken::Nothing,
            Some(Line::Conversation { task, host }) => match self.take_packet(stream, task, host) {
                Some(packet) => {
                    self.world.counts.packets += 1;
                    Taken::Packet(packet)
                }
                None => Taken::Nothing,
            },
        }
    }

    fn take_packet(&mut self, stream: StreamId, task: TaskId, host: HostKey) -> Option<proto::PeerPacket> {
        let task = self.tasks.get_mut(&task)?;
        let open = task.download(host).is_some_and(|download| download.stream == Some(stream));
        if open { task.take(&self.world.hosts, host) } else { None }
    }

    /// When [`Self::handle_timeout`] is due, if nothing else happens.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.world.timers.first().map(|(at, _)| *at)
    }

    /// Does what is due by `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        while self.world.timers.first().is_some_and(|(at, _)| *at <= now) {
            match self.world.timers.pop_first().map(|(_, timer)| timer) {
                Some(Timer::Lease(task)) => self.on_task(now, task, |task, cx| task.lease_due(cx)),
                Some(Timer::Kept(task)) => self.on_task(now, task, |task, cx| task.kept_due(cx)),
                Some(Timer::Silent(task, host)) => self.on_task(now, task, |task, cx| task.silent(cx, host)),
                Some(Timer::Shareable(task)) => self.on_task(now, task, |task, cx| task.shareable(cx)),
                Some(Timer::Conduct(host)) => {
                    self.world.conduct_due(now, host);
                    None
                }
                None => None,
            };
        }
        self.carry_out(now);
    }

    /// What there is, and what has happened since the start.
    pub fn counts(&self) -> Counts {
        let suspects = self.world.hosts.suspects().count();
        let quarantined =
            self.world.hosts.suspects().filter(|(key, _)| self.world.hosts.regard(*key).struck).count();
        Counts {
            hosts: self.world.hosts.len(),
            tasks: self.tasks.len(),
            quarantined,
            on_probation: suspects - quarantined,
            waiting_for_room: self.world.budgets.waiting(),
            ..self.world.counts
        }
    }
}

/// Whether there are at most `most` tasks with those that are wanted, where there are `there` now.
fn fits<'a>(
    there: usize,
    most: usize,
    wanted: impl ExactSizeIterator<Item = &'a TaskId>,
    is_there: impl Fn(&TaskId) -> bool,
) -> bool {
    if there + wanted.len() <= most {
        return true;
    }
    // Only near the limit is it worth looking for each.
    let new = wanted.filter(|task| !is_there(task)).count();
    new == 0 || there + new <= most
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_already_needs_no_room() {
        let tasks = [0, 1, 2].map(|n| TaskId::from([n; 32]));
        let there = &tasks[..2];
        let fits = |wanted: &[TaskId], most| fits(2, most, wanted.iter(), |task| there.contains(task));
        assert!(fits(there, 2) && fits(there, 1) && fits(&tasks, 3));
        assert!(!fits(&tasks, 2) && !fits(&tasks[2..], 2));
    }
}
