//! [`Hosts`]: the daemons whose life line is open, and nobody else.
//!
//! Invariant: `by_id` and `lives` name the same hosts, and a life's `tasks` are exactly the tasks in which the host is a
//! peer (the tasks keep that, see `task.rs`).

use crate::conduct::{Conduct, State};
use crate::message::Host;
use crate::policy::Nearness;
use crate::stream::StreamId;
use crate::zone::ZoneId;
use darter_protocol::{HostId, TaskId};
use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::time::Instant;

/// One life of a host: from its announcement until its life line ends without another in its place. A host that comes
/// back has a new key, so that nothing that was said of its former life sticks to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct HostKey(u64);

impl HostKey {
    /// Its number, by which a listing goes on where it stopped.
    pub(crate) const fn number(self) -> u64 {
        self.0
    }

    #[cfg(test)]
    pub(crate) const fn for_test(key: u64) -> Self {
        Self(key)
    }
}

/// Things by host. The keys are numbers that this process hands out in order, so that nobody can choose colliding ones,
/// and that a map goes through them in the same order at every run.
pub(crate) type ByHost<T> = HashMap<HostKey, T, BuildHasherDefault<KeyHasher>>;

/// Spreads small numbers over all bits.
#[derive(Debug, Default)]
pub(crate) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        // An odd number near 2^64 divided by the golden ratio: neighbours end far apart (Knuth, TAOCP 6.4).
        self.0 = (self.0.rotate_left(5) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// A host that is alive.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) host: Host,
    /// Where it stood when it came.
    pub(crate) zone: ZoneId,
    pub(crate) lifeline: StreamId,
    /// Where it is a peer. Ordered, so that what follows from its end does not depend on a hash's seed.
    pub(crate) tasks: BTreeSet<TaskId>,
    /// In how many of these it downloads.
    pub(crate) downloads: usize,
    /// What it is to throw away, until it is told.
    pub(crate) deleted: BTreeSet<TaskId>,
    /// What it is to fetch from others, until it is told.
    pub(crate) wanted: BTreeSet<TaskId>,
    /// How it served others, over all its lives.
    pub(crate) conduct: Conduct,
    pub(crate) uploads: Uploads,
    /// Bytes that others said they got from it, in this life.
    pub(crate) served: u64,
    pub(crate) since: Instant,
}

/// What a host said of its upload slots, and what came of it since.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Uploads {
    /// How many more it could begin when it said so last.
    pub(crate) free: Option<u32>,
    /// To how many it was named since.
    pub(crate) named: u32,
}

/// Of those to whom a host is named, one in this many asks it at the same moment: a peer has twenty partners and fetches
/// from a few of them at a time.
const ASKING: u32 = 4;

impl Uploads {
    /// Whether nobody should be sent there now.
    pub(crate) const fn is_busy(self) -> bool {
        match self.free {
            Some(free) => self.named / ASKING >= free,
            None => false,
        }
    }

    /// It says anew how many are free.
    pub(crate) const fn hear(&mut self, free: Option<u32>) {
        if free.is_some() {
            *self = Self { free, named: 0 };
        }
    }
}

/// How a host may be named to others, as each of its peers keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Regard {
    /// To nobody.
    pub(crate) struck: bool,
    /// Not to those who download while it does, to few others, and never as the one on whom they rely.
    pub(crate) on_probation: bool,
    /// To nobody new.
    pub(crate) draining: bool,
}

/// All hosts that are alive.
#[derive(Debug, Default)]
pub(crate) struct Hosts {
    lives: ByHost<Life>,
    by_id: HashMap<HostId, HostKey>,
    /// Those that are quarantined or on probation.
    suspects: BTreeSet<HostKey>,
    /// The conduct of hosts that are gone, so that a new life does not wash them clean.
    remembered: HashMap<HostId, Conduct>,
    next: u64,
}

/// Hosts that are gone and whose conduct is remembered. A KiB each at most.
const MAX_REMEMBERED: usize = 10_000;

impl Hosts {
    pub(crate) fn len(&self) -> usize {
        self.lives.len()
    }

    /// All of them, in no particular order.
    pub(crate) fn lives(&self) -> impl Iterator<Item = (HostKey, &Life)> {
        self.lives.iter().map(|(key, life)| (*key, life))
    }

    pub(crate) fn key(&self, id: &HostId) -> Option<HostKey> {
        self.by_id.get(id).copied()
    }

    pub(crate) fn life(&self, key: HostKey) -> Option<&Life> {
        self.lives.get(&key)
    }

    pub(crate) fn life_mut(&mut self, key: HostKey) -> Option<&mut Life> {
        self.lives.get_mut(&key)
    }

    /// The host's checked description, for a key that a task holds.
    pub(crate) fn host(&self, key: HostKey) -> Option<&Host> {
        self.life(key).map(|life| &life.host)
    }

    pub(crate) fn zone(&self, key: HostKey) -> ZoneId {
        self.life(key).map(|life| life.zone).unwrap_or_default()
    }

    pub(crate) fn is_seed(&self, key: HostKey) -> bool {
        self.host(key).is_some_and(|host| host.seed)
    }

    pub(crate) fn nearness(&self, a: HostKey, b: HostKey) -> Nearness {
        match (self.host(a), self.host(b)) {
            (Some(a), Some(b)) => Nearness::between((&a.idc, &a.location), (&b.idc, &b.location)),
            _ => Nearness::default(),
        }
    }

    /// How the host may be named; not, when it is gone.
    pub(crate) fn regard(&self, key: HostKey) -> Regard {
        let Some(life) = self.life(key) else { return Regard { struck: true, ..Regard::default() } };
        let state = life.conduct.state();
        Regard {
            struck: matches!(state, State::Quarantined { .. }),
            on_probation: matches!(state, State::Probation { .. }),
            draining: life.host.draining,
        }
    }

    /// Those that are quarantined or on probation, oldest lives first.
    pub(crate) fn suspects(&self) -> impl Iterator<Item = (HostKey, &Life)> {
        self.suspects.iter().filter_map(|key| Some((*key, self.life(*key)?)))
    }

    /// The host's conduct has changed.
    pub(crate) fn note(&mut self, key: HostKey) {
        match self.life(key).map(|life| life.conduct.state()) {
            None | Some(State::Good) => self.suspects.remove(&key),
            Some(_) => self.suspects.insert(key),
        };
    }

    /// A host that was not alive begins a life, on the life line that `open` opens for it.
    pub(crate) fn insert(
        &mut self,
        now: Instant,
        host: Host,
        open: impl FnOnce(HostKey) -> StreamId,
    ) -> StreamId {
        let key = HostKey(self.next);
        self.next += 1;
        let lifeline = open(key);
        self.by_id.insert(host.id.clone(), key);
        let mut conduct = self.remembered.remove(&host.id).unwrap_or_default();
        conduct.restarted(now);
        let uploads = Uploads { free: host.free_uploads, named: 0 };
        let life = Life {
            zone: ZoneId::of(&host),
            host,
            lifeline,
            tasks: BTreeSet::new(),
            downloads: 0,
            deleted: BTreeSet::new(),
            wanted: BTreeSet::new(),
            conduct,
            uploads,
            served: 0,
            since: now,
        };
        self.lives.insert(key, life);
        self.note(key);
        lifeline
    }

    pub(crate) fn remove(&mut self, now: Instant, key: HostKey) {
        let Some(life) = self.lives.remove(&key) else { return };
        self.suspects.remove(&key);
        self.by_id.remove(&life.host.id);
        if !life.conduct.is_worth_remembering(now) {
            return;
        }
        if self.remembered.len() >= MAX_REMEMBERED {
            self.remembered.retain(|_, conduct| conduct.is_worth_remembering(now));
        }
        // Whoever fills this with made-up hosts washes nobody clean who was in it before.
        if self.remembered.len() < MAX_REMEMBERED {
            self.remembered.insert(life.host.id, life.conduct);
        }
    }
}
