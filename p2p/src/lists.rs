//! [`Lists`]: what all blocks of pieces hash to, for the proofs that go ahead of data (`peer/proof.rs`).
//!
//! Who brings a piece learns the hashes of its blocks in passing, and who asks for it wants them: kept here, a proof costs neither a
//! look at the disk nor a hash. A list is found by what its piece hashes to, so that it is right for every task that has
//! this piece, and never out of date. It is 2 KiB for 4 MiB of content; all of them together take [`MAX_BYTES`] at most, the oldest
//! go first, and what is not here is read and hashed again.

use darter_protocol::{BlockHash, PieceHash};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Those of 8 GiB in blocks of the smallest size, which is where a large download may have its readers and its fetches.
const MAX_BYTES: usize = 4 << 20;
/// What keeping one takes beside its hashes.
const OVERHEAD: usize = 128;

#[derive(Debug, Default)]
pub(crate) struct Lists(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    lists: HashMap<PieceHash, Arc<[BlockHash]>>,
    /// The oldest first.
    order: VecDeque<PieceHash>,
    bytes: usize,
}

impl Lists {
    /// The hashes of the `count` blocks of a piece that hashes to `piece`: cut in blocks of another size it has other ones.
    pub(crate) fn get(&self, piece: &PieceHash, count: usize) -> Option<Arc<[BlockHash]>> {
        self.lock().lists.get(piece).filter(|list| list.len() == count).cloned()
    }

    /// All blocks of a piece that hashes to `piece` hash to these.
    pub(crate) fn insert(&self, piece: PieceHash, list: Arc<[BlockHash]>) {
        // Of one block the piece's hash says all.
        if list.len() < 2 {
            return;
        }
        let mut inner = self.lock();
        inner.bytes += bytes(&list);
        match inner.lists.insert(piece, list) {
            Some(before) => inner.bytes -= bytes(&before),
            None => inner.order.push_back(piece),
        }
        while inner.bytes > MAX_BYTES
            && let Some(oldest) = inner.order.pop_front()
        {
            inner.bytes -= inner.lists.remove(&oldest).map_or(0, |list| bytes(&list));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bytes(list: &[BlockHash]) -> usize {
    size_of_val(list) + OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(n: u32) -> PieceHash {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&n.to_le_bytes());
        PieceHash::from(bytes)
    }

    fn list(n: u32, count: usize) -> Arc<[BlockHash]> {
        vec![BlockHash::from(*hash(n).as_bytes()); count].into()
    }

    #[test]
    fn the_newest_are_kept_and_no_more_than_there_is_room_for() {
        let lists = Lists::default();
        for n in 0..5000 {
            lists.insert(hash(n), list(n, 64));
            lists.insert(hash(n), list(n, 64));
        }
        let held = (0..5000).filter(|n| lists.get(&hash(*n), 64).is_some()).count();
        assert!(held * (64 * 32 + OVERHEAD) <= MAX_BYTES && held > 1900, "{held}");
        assert_eq!(lists.get(&hash(4999), 64), Some(list(4999, 64)));
        assert_eq!(lists.get(&hash(4999), 16), None, "of other blocks");
        assert_eq!(lists.lock().bytes, held * (64 * 32 + OVERHEAD));
        assert_eq!(lists.lock().order.len(), held);
    }

    #[test]
    fn of_one_block_there_is_nothing_to_keep() {
        let lists = Lists::default();
        lists.insert(hash(1), list(1, 1));
        assert_eq!(lists.get(&hash(1), 1), None);
    }
}
