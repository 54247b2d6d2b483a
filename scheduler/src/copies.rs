//! More copies of a task than there are: which hosts are told to fetch it, so that it is there when one of them is not.
//!
//! A host that was told is pending until it holds the content, says that it does not (LeaveTask), is gone, or has got no
//! further for [`PATIENCE`]. No timer runs for it: whoever wants the copies asks again, and then others are chosen in place of
//! those that could not. A new life line of a host is told again what the one before was: that may have broken with the word
//! on it. When there are enough, or nobody is left to be told, all of that is forgotten, so that the next wish begins anew.

use crate::cluster::Cluster;
use crate::host::{HostKey, Life};
use crate::peer::Role;
use crate::refusal::Refusal;
use crate::stream::{Line, StreamId};
use darter_protocol::{HostId, TaskId};
use rand::seq::SliceRandom;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Hosts that hold a task at most because they were told to: beyond that content is spread by those who use it.
const MAX_COPIES: usize = 1_000;
/// Tasks that one host was told to fetch and has not heard of yet. One that reads its life line has none.
const MAX_WANTED: usize = 1_000;
/// The number of the protocol from which on a daemon fetches what it is told to.
const UNDERSTOOD: u32 = 2;
/// A host that has got no byte further for so long is not waited for any more. It may have others to fetch before, a few at a
/// time: long enough for tens of GiB of them.
pub(crate) const PATIENCE: Duration = Duration::from_secs(600);

/// What became of those who were told to fetch a task.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    pending: BTreeMap<HostKey, Pending>,
    failed: BTreeSet<HostKey>,
}

/// How far one is that was told, as seen when somebody asked.
#[derive(Debug, Clone, Copy)]
struct Pending {
    held: u64,
    since: Instant,
}

/// How many hosts have all of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Copied {
    /// Now.
    pub complete: usize,
    /// And will have it, unless they cannot.
    pub pending: usize,
}

impl Cluster {
    /// A host wants so many to have all of a task, itself among them. As many as are missing are told to fetch it: seeds
    /// first, and of their likes anybody, so that no host gets them all.
    ///
    /// # Errors
    /// [`Refusal::UnknownHost`].
    pub fn handle_copies_wanted(
        &mut self,
        now: Instant,
        host: &HostId,
        task: TaskId,
        hosts: usize,
    ) -> Result<Copied, Refusal> {
        self.alive(host)?;
        let complete = self.tasks.get(&task).map_or(0, |task| task.complete);
        if complete == 0 {
            // Nobody could give it.
            return Ok(Copied::default());
        }
        let mut copies = self.copies.remove(&task).unwrap_or_default();
        copies.pending.retain(|key, _| self.world.hosts.life(*key).is_some() && !self.has_all(&task, *key));
        self.give_up_waiting(now, &task, &mut copies);
        let missing = hosts.min(MAX_COPIES).saturating_sub(complete + copies.pending.len());
        for key in self.choose(&task, &copies, missing) {
            if let Some(life) = self.world.hosts.life_mut(key) {
                life.wanted.insert(task);
                self.world.streams.wake(life.lifeline);
                copies.pending.insert(key, Pending { held: self.held(&task, key), since: now });
            }
        }
        let copied = Copied { complete, pending: copies.pending.len() };
        if copied.pending > 0 && complete < hosts {
            self.copies.insert(task, copies);
        }
        Ok(copied)
    }

    fn choose(&mut self, task: &TaskId, copies: &Copies, missing: usize) -> Vec<HostKey> {
        if missing == 0 {
            return Vec::new();
        }
        let may = |key: HostKey, life: &Life| {
            life.host.protocol >= UNDERSTOOD
                && !life.host.draining
                && life.wanted.len() < MAX_WANTED
                && !self.world.hosts.regard(key).struck
                && !copies.pending.contains_key(&key)
                && !copies.failed.contains(&key)
                && !self.has_all(task, key)
        };
        let lives = self.world.hosts.lives().filter(|(key, life)| may(*key, life));
        let mut candidates: Vec<_> = lives.map(|(key, life)| (life.host.seed, key)).collect();
        // The order of a map is not chance.
        candidates.sort_unstable();
        candidates.shuffle(&mut self.world.rng);
        candidates.sort_by_key(|(seed, _)| Reverse(*seed));
        candidates.into_iter().take(missing).map(|(_, key)| key).collect()
    }

    /// Those that have got no further for too long could not.
    fn give_up_waiting(&self, now: Instant, task: &TaskId, copies: &mut Copies) {
        for (key, pending) in &mut copies.pending {
            let held = self.held(task, *key);
            if held > pending.held {
                *pending = Pending { held, since: now };
            }
        }
        let stuck = |pending: &Pending| now.saturating_duration_since(pending.since) >= PATIENCE;
        let stuck = copies.pending.extract_if(.., |_, pending| stuck(pending)).map(|(key, _)| key);
        copies.failed.extend(stuck);
    }

    /// How many bytes of it a host that downloads it has.
    fn held(&self, task: &TaskId, key: HostKey) -> u64 {
        let download = self.tasks.get(task).and_then(|task| task.download(key));
        download.map_or(0, |download| download.held)
    }

    fn has_all(&self, task: &TaskId, key: HostKey) -> bool {
        let peer = self.tasks.get(task).and_then(|task| task.peers.get(&key));
        peer.is_some_and(|peer| matches!(peer.role, Role::Complete))
    }

    /// A host says that it does not hold a task: if it was told to fetch it, it could not.
    pub(crate) fn could_not_copy(&mut self, task: &TaskId, key: HostKey) {
        if let Some(copies) = self.copies.get_mut(task)
            && copies.pending.remove(&key).is_some()
        {
            copies.failed.insert(key);
        }
    }

    /// The task is to be gone: nobody fetches it any more for the sake of others.
    pub(crate) fn want_no_copies(&mut self, task: &TaskId) {
        for key in self.copies.remove(task).into_iter().flat_map(|copies| copies.pending.into_keys()) {
            if let Some(life) = self.world.hosts.life_mut(key) {
                life.wanted.remove(task);
            }
        }
    }

    /// The host has another life line than before: it is told on that one, too, what it is to fetch.
    pub(crate) fn repeat_wanted(&mut self, key: HostKey) {
        let Some(life) = self.world.hosts.life_mut(key) else { return };
        let pending = self.copies.iter().filter(|(_, copies)| copies.pending.contains_key(&key));
        life.wanted.extend(pending.map(|(task, _)| *task));
        if !life.wanted.is_empty() {
            self.world.streams.wake(life.lifeline);
        }
    }

    /// What the host of a life line is to fetch; each task is told once on it.
    pub fn take_wanted(&mut self, stream: StreamId) -> Vec<TaskId> {
        let Some(Line::Lifeline { host }) = self.world.streams.line(stream) else { return Vec::new() };
        let life = self.world.hosts.life_mut(host);
        life.map(|life| std::mem::take(&mut life.wanted).into_iter().collect()).unwrap_or_default()
    }
}
