//! [`Space`]: how many bytes the store takes of its quota, and of the disk before they are allocated there.
//!
//! Invariant: every byte is either *kept* (it lies under a name, and goes back when that goes), or *claimed* by somebody who
//! has not put it under a name yet. Looking through the folder counts what is kept anew, and leaves alone what is claimed.

use super::lock;
use std::io;
use std::sync::{Arc, Mutex};

/// What is taken of the quota.
#[derive(Debug)]
pub(super) struct Space {
    quota: u64,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    kept: u64,
    claimed: u64,
    /// Of what is kept or claimed, bytes that the disk has not allocated yet.
    promised: u64,
}

/// Bytes that were taken of the quota for something that has no name yet. They go back when this is dropped.
#[derive(Debug)]
pub(super) struct Claim {
    space: Arc<Space>,
    bytes: u64,
}

/// Bytes that the disk is to allocate still: nobody else may count on them. They are let go when this is dropped.
#[derive(Debug)]
pub(super) struct Promise {
    space: Arc<Space>,
    bytes: u64,
}

impl Space {
    pub(super) fn new(quota: u64) -> Arc<Self> {
        Arc::new(Self { quota, counts: Mutex::default() })
    }

    /// Bytes that are kept or claimed.
    pub(super) fn used(&self) -> u64 {
        let counts = lock(&self.counts);
        counts.kept.saturating_add(counts.claimed)
    }

    /// Takes `bytes` more.
    ///
    /// # Errors
    /// `StorageFull` when that is more than the quota.
    pub(super) fn claim(self: &Arc<Self>, bytes: u64) -> io::Result<Claim> {
        let mut counts = lock(&self.counts);
        let total = counts.kept.checked_add(counts.claimed).and_then(|used| used.checked_add(bytes));
        if total.is_none_or(|total| total > self.quota) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        counts.claimed += bytes;
        drop(counts);
        Ok(Claim { space: Arc::clone(self), bytes })
    }

    /// Gives back what was kept.
    pub(super) fn give(&self, bytes: u64) {
        let mut counts = lock(&self.counts);
        counts.kept = counts.kept.saturating_sub(bytes);
    }

    /// So many bytes are kept, as the folder says.
    pub(super) fn recount(&self, kept: u64) {
        lock(&self.counts).kept = kept;
    }

    /// Bytes that the disk is to allocate still.
    pub(super) fn promised(&self) -> u64 {
        lock(&self.counts).promised
    }

    /// Counts `bytes` as not allocated yet.
    pub(super) fn promise(self: &Arc<Self>, bytes: u64) -> Promise {
        lock(&self.counts).promised += bytes;
        Promise { space: Arc::clone(self), bytes }
    }
}

impl Claim {
    /// What was claimed lies under a name from now on.
    pub(super) fn keep(mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut counts = lock(&self.space.counts);
        counts.claimed -= bytes;
        counts.kept += bytes;
    }
}

impl Claim {
    /// Gives back what is more than `bytes`.
    pub(super) fn shrink(&mut self, bytes: u64) {
        let more = self.bytes.saturating_sub(bytes);
        self.bytes -= more;
        lock(&self.space.counts).claimed -= more;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.space.counts).claimed -= self.bytes;
    }
}

impl Promise {
    /// The disk has allocated `bytes` of them.
    pub(super) fn redeem(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        lock(&self.space.counts).promised -= bytes;
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.redeem(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counting_the_folder_anew_leaves_alone_what_has_no_name_yet() {
        let space = Space::new(100);
        space.claim(40).unwrap().keep();
        let on_its_way = space.claim(30).unwrap();
        assert_eq!(space.claim(31).unwrap_err().kind(), io::ErrorKind::StorageFull);
        space.recount(10);
        assert_eq!(space.used(), 40);
        on_its_way.keep();
        assert_eq!(space.used(), 40);
        space.give(40);
        drop(space.claim(100).unwrap());
        assert_eq!(space.used(), 0);
    }

    #[test]
    fn a_promise_is_over_when_it_was_kept_or_nobody_wants_it() {
        let space = Space::new(100);
        let mut promise = space.promise(50);
        promise.redeem(20);
        assert_eq!(space.promised(), 30);
        promise.redeem(100);
        drop(space.promise(7));
        assert_eq!(space.promised(), 0);
    }
}
