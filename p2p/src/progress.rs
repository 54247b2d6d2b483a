//! [`Progress`]: how far a download has come, as its readers see it; and [`Demands`]: what its readers want.

use crate::{ReadError, Supplier};
use darter_protocol::{PieceIndex, PieceLayout, PieceSet};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// How far a download has come.
#[derive(Debug)]
pub(crate) struct Progress {
    layout: PieceLayout,
    have: PieceSet,
    /// Pieces that are arriving from the origin, and how many of their bytes are on disk from the start of each.
    growing: BTreeMap<PieceIndex, u64>,
    /// Those of `have` that this download brought.
    from_peers: PieceSet,
    from_origin: PieceSet,
    pub(crate) state: State,
}

/// Where a download stands.
#[derive(Debug, Clone)]
pub(crate) enum State {
    Running,
    /// Everything is there and is what it should be.
    Verified,
    Failed(ReadError),
}

impl Progress {
    pub(crate) fn new(layout: PieceLayout, have: PieceSet) -> Self {
        let none = PieceSet::empty(have.pieces());
        Self {
            layout,
            have,
            growing: BTreeMap::new(),
            from_peers: none.clone(),
            from_origin: none,
            state: State::Running,
        }
    }

    pub(crate) fn have(&self) -> &PieceSet {
        &self.have
    }

    /// `piece` is there, and came from `supplier`.
    pub(crate) fn complete(&mut self, piece: PieceIndex, supplier: Supplier) {
        self.growing.remove(&piece);
        self.have.insert(piece);
        match supplier {
            Supplier::Peer => self.from_peers.insert(piece),
            Supplier::Origin => self.from_origin.insert(piece),
            Supplier::Disk => false,
        };
    }

    /// Where the readable bytes of `piece` came from; of one that both brought, who completed it.
    pub(crate) fn supplier(&self, piece: PieceIndex) -> Supplier {
        if self.from_peers.contains(piece) {
            Supplier::Peer
        } else if self.from_origin.contains(piece) || self.growing.contains_key(&piece) {
            Supplier::Origin
        } else {
            Supplier::Disk
        }
    }

    /// The bytes before `offset` of the piece that holds it are there.
    pub(crate) fn grow(&mut self, offset: u64) {
        if let Some(piece) = self.layout.piece_at(offset).filter(|piece| !self.have.contains(*piece)) {
            self.growing.insert(piece, offset - self.layout.range(piece).start());
        }
    }

    /// The offset up to which content can be read from `offset` on without a gap. Bytes that could be read once never
    /// change: an origin run that breaks off is resumed at its byte, and a partner's piece keeps what is there.
    pub(crate) fn readable(&self, offset: u64) -> u64 {
        let mut end = offset;
        while let Some(piece) = self.layout.piece_at(end) {
            let range = self.layout.range(piece);
            if self.have.contains(piece) {
                end = range.end();
                continue;
            }
            let grown = self.growing.get(&piece).map_or(0, |bytes| range.start() + bytes);
            return end.max(grown);
        }
        end
    }
}

/// What the readers of one download want. Shared between them and the driver.
#[derive(Debug, Default)]
pub(crate) struct Demands {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    readers: BTreeMap<u64, Range<u32>>,
    /// Somebody asked for all of it: that is fetched to its end, also when he goes away.
    all: bool,
    waiting: Option<PieceIndex>,
    /// The driver has ended: no demand is taken any more.
    closed: bool,
}

/// One reader's demand; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Demand {
    demands: Arc<Demands>,
    id: u64,
}

impl Demands {
    /// Adds a reader of `pieces`; `None` when the driver has ended.
    pub(crate) fn add(self: &Arc<Self>, pieces: Range<u32>, all: bool) -> Option<Demand> {
        let mut inner = self.lock();
        if inner.closed {
            return None;
        }
        let id = inner.next;
        inner.next += 1;
        inner.readers.insert(id, pieces);
        inner.all |= all;
        drop(inner);
        self.changed.notify_one();
        Some(Demand { demands: Arc::clone(self), id })
    }

    /// Resolves when something changed since this was last awaited.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// What is wanted, of a task of `pieces` pieces; and the piece that a reader began to wait for, once.
    pub(crate) fn take(&self, pieces: u32) -> (PieceSet, Option<PieceIndex>) {
        let mut inner = self.lock();
        let waiting = inner.waiting.take();
        if inner.all {
            return (PieceSet::full(pieces), waiting);
        }
        let mut wanted = PieceSet::empty(pieces);
        wanted.extend(inner.readers.values().cloned().flatten().map(PieceIndex::new));
        (wanted, waiting)
    }

    /// Ends the taking of demands, unless there is one that `satisfied` does not hold for.
    pub(crate) fn try_close(&self, satisfied: impl Fn(PieceIndex) -> bool) -> bool {
        let mut inner = self.lock();
        let open = inner.readers.values().cloned().flatten().any(|piece| !satisfied(PieceIndex::new(piece)));
        inner.closed |= !open && !inner.all;
        inner.closed
    }

    /// Ends the taking of demands.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Demand {
    /// The reader waits for `piece`.
    pub(crate) fn wait_for(&self, piece: PieceIndex) {
        self.demands.lock().waiting = Some(piece);
        self.demands.changed.notify_one();
    }
}

impl Drop for Demand {
    fn drop(&mut self) {
        self.demands.lock().readers.remove(&self.id);
        self.demands.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: u64 = PieceLayout::MIN_PIECE_SIZE;

    #[test]
    fn what_is_readable_ends_at_the_first_gap() {
        let layout = PieceLayout::new(3 * PIECE + 10).unwrap();
        let mut progress = Progress::new(layout, PieceSet::empty(4));
        assert_eq!(progress.readable(0), 0);
        progress.grow(100);
        assert_eq!((progress.readable(0), progress.readable(40), progress.readable(200)), (100, 100, 200));
        progress.complete(PieceIndex::new(0), Supplier::Origin);
        progress.complete(PieceIndex::new(1), Supplier::Peer);
        progress.grow(2 * PIECE + 7);
        assert_eq!(progress.readable(5), 2 * PIECE + 7);
        progress.complete(PieceIndex::new(2), Supplier::Origin);
        progress.complete(PieceIndex::new(3), Supplier::Origin);
        assert_eq!(progress.readable(5), 3 * PIECE + 10);
    }

    #[test]
    fn what_a_download_did_not_bring_was_on_disk() {
        let mut had = PieceSet::empty(4);
        had.insert(PieceIndex::new(0));
        let mut progress = Progress::new(PieceLayout::new(4 * PIECE).unwrap(), had);
        progress.complete(PieceIndex::new(1), Supplier::Peer);
        progress.complete(PieceIndex::new(2), Supplier::Origin);
        progress.grow(3 * PIECE + 1);
        let suppliers: Vec<Supplier> =
            (0..4).map(|piece| progress.supplier(PieceIndex::new(piece))).collect();
        assert_eq!(suppliers, [Supplier::Disk, Supplier::Peer, Supplier::Origin, Supplier::Origin]);
    }

    #[test]
    fn a_demand_ends_with_its_reader_unless_it_was_for_all() {
        let demands = Arc::new(Demands::default());
        let a = demands.add(1..3, false).unwrap();
        let b = demands.add(2..5, false).unwrap();
        assert_eq!(demands.take(8).0.iter().map(PieceIndex::get).collect::<Vec<_>>(), [1, 2, 3, 4]);
        b.wait_for(PieceIndex::new(4));
        assert_eq!(demands.take(8).1, Some(PieceIndex::new(4)));
        drop(b);
        let (wanted, waiting) = demands.take(8);
        assert_eq!((wanted.len(), waiting), (2, None));
        drop(demands.add(0..8, true));
        drop(a);
        assert!(demands.take(8).0.is_full());
    }

    #[test]
    fn a_driver_ends_only_when_nobody_lacks_anything() {
        let demands = Arc::new(Demands::default());
        let reader = demands.add(1..3, false).unwrap();
        assert!(!demands.try_close(|piece| piece.get() == 1));
        assert!(demands.try_close(|_| true));
        assert!(demands.add(0..1, false).is_none());
        drop(reader);
    }
}
