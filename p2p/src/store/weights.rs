//! [`Weights`]: what eviction must know of each complete task, in memory: 25 bytes a task, where to read it all from the catalog
//! takes seconds for a million.
//!
//! Eight bytes of a task's name stand for it, which are a hash already; the catalog tells the rest of those that are to go. Invariant:
//! every task of the catalog is here, and seldom one that is not; of some nothing may be known but that, until
//! [`Weights::learn`] has been told of all.

use super::catalog::Entry;
use super::record::seconds;
use super::{grows_stale, takes};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The first bytes of a task's name.
pub(super) type Short = u64;

/// What eviction must know of a complete task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Weight {
    /// Bytes that come back when it goes; [`Self::UNKNOWN`], or with [`Self::PINNED`].
    bytes: u64,
    /// When it was last opened, in seconds since 1970.
    used: u32,
    /// From when on its age counts: [`Self::AS_USED`], or when it was fetched.
    since: u32,
}

/// The weights of all complete tasks.
#[derive(Debug, Default)]
pub(super) struct Weights {
    tasks: HashMap<Short, Weight, BuildHasherDefault<Itself>>,
    /// Every task's weight is known.
    known: bool,
}

/// A number is its own hash.
#[derive(Debug, Default)]
pub(super) struct Itself(u64);

impl Hasher for Itself {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

pub(super) fn short(task: &[u8; 32]) -> Short {
    u64::from_le_bytes(*task.first_chunk().expect("32 are more than 8"))
}

/// The names that begin so.
pub(super) fn names(short: Short) -> std::ops::RangeInclusive<[u8; 32]> {
    let with = |rest: u8| {
        let mut name = [rest; 32];
        name[..8].copy_from_slice(&short.to_le_bytes());
        name
    };
    with(0)..=with(u8::MAX)
}

// === impl Weight ===

impl Weight {
    const UNKNOWN: Self = Self { bytes: u64::MAX, used: 0, since: 0 };
    /// Set in `bytes` of what is pinned. No content is so long.
    const PINNED: u64 = 1 << 62;
    const AS_USED: u32 = u32::MAX;

    /// What an entry weighs; one that cannot be read weighs nothing, and is as old as can be.
    pub(super) fn of(entry: Option<&Entry>, used: u64, pinned: bool) -> Self {
        let Some(entry) = entry else { return Self { bytes: 0, used: 0, since: 0 } };
        let narrow = |seconds: u64| u32::try_from(seconds).unwrap_or(u32::MAX - 1);
        let stale = grows_stale(&entry.record);
        Self {
            bytes: takes(entry) | if pinned { Self::PINNED } else { 0 },
            used: narrow(used),
            since: if stale { narrow(seconds(entry.record.created)) } else { Self::AS_USED },
        }
    }

    pub(super) fn is_pinned(self) -> bool {
        self.bytes & Self::PINNED != 0
    }

    pub(super) fn bytes(self) -> u64 {
        self.bytes & !Self::PINNED
    }

    pub(super) fn used(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.used.into())
    }

    /// When it was fetched, where its age counts from then on.
    pub(super) fn fetched(self) -> Option<SystemTime> {
        (self.since != Self::AS_USED).then(|| UNIX_EPOCH + Duration::from_secs(self.since.into()))
    }
}

// === impl Weights ===

impl Weights {
    pub(super) fn contains(&self, task: &[u8; 32]) -> bool {
        self.tasks.contains_key(&short(task))
    }

    /// A task is there of which nothing else is known.
    pub(super) fn note(&mut self, task: &[u8; 32]) {
        self.tasks.insert(short(task), Weight::UNKNOWN);
        self.known = false;
    }

    pub(super) fn insert(&mut self, task: &[u8; 32], weight: Weight) {
        let pinned = self
            .tasks
            .get(&short(task))
            .is_some_and(|before| *before != Weight::UNKNOWN && before.is_pinned());
        let bytes = weight.bytes | if pinned { Weight::PINNED } else { 0 };
        self.tasks.insert(short(task), Weight { bytes, ..weight });
    }

    pub(super) fn remove(&mut self, task: &[u8; 32]) {
        self.tasks.remove(&short(task));
    }

    pub(super) fn touch(&mut self, task: &[u8; 32], when: u64) {
        if let Some(weight) = self.tasks.get_mut(&short(task)).filter(|weight| **weight != Weight::UNKNOWN) {
            weight.used = when.try_into().unwrap_or(u32::MAX - 1);
        }
    }

    /// Whether a task is pinned; `None` while nothing is known of it.
    pub(super) fn is_pinned(&self, task: &[u8; 32]) -> Option<bool> {
        let weight = self.tasks.get(&short(task)).filter(|weight| **weight != Weight::UNKNOWN)?;
        Some(weight.is_pinned())
    }

    pub(super) fn set_pinned(&mut self, task: &[u8; 32], pinned: bool) {
        if let Some(weight) = self.tasks.get_mut(&short(task)).filter(|weight| **weight != Weight::UNKNOWN) {
            weight.bytes = weight.bytes() | if pinned { Weight::PINNED } else { 0 };
        }
    }

    pub(super) fn is_known(&self) -> bool {
        self.known
    }

    /// What the catalog said of all its tasks. What has come meanwhile is known already; what nobody knows is not there.
    pub(super) fn learn(&mut self, all: impl IntoIterator<Item = (Short, Weight)>) {
        for (task, weight) in all {
            if let Some(unknown) = self.tasks.get_mut(&task).filter(|weight| **weight == Weight::UNKNOWN) {
                *unknown = weight;
            }
        }
        self.tasks.retain(|_, weight| *weight != Weight::UNKNOWN);
        self.known = true;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Short, Weight)> {
        self.tasks
            .iter()
            .map(|(task, weight)| (*task, *weight))
            .filter(|(_, weight)| *weight != Weight::UNKNOWN)
    }
}
