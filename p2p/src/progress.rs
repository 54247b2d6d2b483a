//! [`Progress`]: how far a download has come, as its readers see it; and [`Demands`]: what its readers want.

use crate::{ReadError, Supplier};
use darter_protocol::{BlockHash, BlockSet, PieceHash, PieceIndex, PieceLayout, PieceSet};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// How far a download has come.
#[derive(Debug)]
pub(crate) struct Progress {
    layout: PieceLayout,
    have: PieceSet,
    /// Blocks that are there, those of these pieces too.
    there: BlockSet,
    /// Blocks that are arriving from the origin, and how many of their bytes are on disk from the start of each.
    growing: BTreeMap<u32, u64>,
    /// Those of `there` that this download brought.
    from_peers: BlockSet,
    from_origin: BlockSet,
    /// What the pieces hash to that this download has completed.
    hashes: BTreeMap<PieceIndex, PieceHash>,
    /// Pieces that are coming from partners, block by proven block, and may be passed on.
    relays: BTreeMap<PieceIndex, Relay>,
    next_relay: u64,
    /// One more for everybody who would take them.
    audience: Arc<()>,
    pub(crate) state: State,
    /// Where the disk fails a reader, it may go on at the origin: the operator does not keep this host from there.
    pub(crate) past: bool,
}

/// One fetch of a whole piece, for those who are given what it brings. It is over when the fetch is, and never another one's: what
/// a later fetch brings of the piece is not passed on by it. So whatever waits for this one waits for a fetch that began before it,
/// and at the end of all waiting stands somebody who has the piece: nobody ever waits for himself, through however many hands.
#[derive(Debug)]
pub(crate) struct Relay {
    id: RelayId,
    /// What all blocks of the piece hash to, as the piece's hash has proven.
    pub(crate) list: Arc<[BlockHash]>,
    /// The blocks of the piece before this one are there, and are what they must be.
    end: u32,
}

/// The name of a [`Relay`] in its download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RelayId(u64);

/// Stands for one of those who would take what is coming.
#[derive(Debug)]
pub(crate) struct Listening {
    _one: Arc<()>,
}

/// How far one can read in a piece that is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// To the end of the piece, which is there.
    Whole,
    /// To this block.
    To(u32),
    /// The fetch is over, and the piece is not there.
    Over,
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
    pub(crate) fn new(layout: PieceLayout, have: PieceSet, mut there: BlockSet) -> Self {
        there.extend(have.iter().map(|piece| layout.blocks_of(piece)));
        Self {
            layout,
            have,
            there,
            growing: BTreeMap::new(),
            from_peers: BlockSet::default(),
            from_origin: BlockSet::default(),
            hashes: BTreeMap::new(),
            relays: BTreeMap::new(),
            next_relay: 0,
            audience: Arc::default(),
            state: State::Running,
            past: false,
        }
    }

    /// The pieces that are there, and right.
    pub(crate) fn have(&self) -> &PieceSet {
        &self.have
    }

    /// All of `piece` is there, and it is right.
    pub(crate) fn complete(&mut self, piece: PieceIndex, hash: PieceHash) {
        self.have.insert(piece);
        self.hashes.insert(piece, hash);
        self.relays.remove(&piece);
    }

    /// All of `piece` was there before this download, and it is right.
    pub(crate) fn hold(&mut self, piece: PieceIndex) {
        self.have.insert(piece);
        self.there.insert(self.layout.blocks_of(piece));
    }

    /// What `piece` hashes to, if this download has completed it.
    pub(crate) fn hash(&self, piece: PieceIndex) -> Option<&PieceHash> {
        self.hashes.get(&piece)
    }

    /// One who would take pieces as they come.
    pub(crate) fn listen(&self) -> Listening {
        Listening { _one: Arc::clone(&self.audience) }
    }

    /// Whether there is anybody who would take pieces as they come.
    pub(crate) fn is_listened_to(&self) -> bool {
        Arc::strong_count(&self.audience) > 1
    }

    /// A fetch brings all of `piece`, from the first block on. `list` is what its blocks hash to, as was proven.
    pub(crate) fn begin_relay(&mut self, piece: PieceIndex, list: Arc<[BlockHash]>) -> RelayId {
        let id = RelayId(self.next_relay);
        self.next_relay += 1;
        self.relays.insert(piece, Relay { id, list, end: self.layout.blocks_of(piece).start });
        id
    }

    /// That fetch has brought the blocks before `end`, and each is right.
    pub(crate) fn grow_relay(&mut self, piece: PieceIndex, id: RelayId, end: u32) {
        if let Some(relay) = self.relays.get_mut(&piece).filter(|relay| relay.id == id) {
            relay.end = relay.end.max(end);
        }
    }

    /// That fetch has failed.
    pub(crate) fn end_relay(&mut self, piece: PieceIndex, id: RelayId) {
        if self.relays.get(&piece).is_some_and(|relay| relay.id == id) {
            self.relays.remove(&piece);
        }
    }

    /// The pieces that are coming and may be passed on.
    pub(crate) fn relays(&self) -> impl Iterator<Item = (PieceIndex, RelayId)> + '_ {
        self.relays.iter().map(|(piece, relay)| (*piece, relay.id))
    }

    /// How `piece` is passed on.
    pub(crate) fn relay(&self, piece: PieceIndex) -> Option<(RelayId, Arc<[BlockHash]>)> {
        self.relays.get(&piece).map(|relay| (relay.id, Arc::clone(&relay.list)))
    }

    /// How far one can read what that fetch brings of `piece`.
    pub(crate) fn relayed(&self, piece: PieceIndex, id: RelayId) -> Reach {
        match self.relays.get(&piece) {
            _ if self.have.contains(piece) => Reach::Whole,
            Some(relay) if relay.id == id && !matches!(self.state, State::Failed(_)) => Reach::To(relay.end),
            _ => Reach::Over,
        }
    }

    /// `blocks` are there, and came from `supplier`.
    pub(crate) fn arrive(&mut self, blocks: Range<u32>, supplier: Supplier) {
        while let Some((grown, _)) = self.growing.range(blocks.clone()).next() {
            let grown = *grown;
            self.growing.remove(&grown);
        }
        match supplier {
            Supplier::Peer => self.from_peers.insert(blocks.clone()),
            Supplier::Origin => self.from_origin.insert(blocks.clone()),
            Supplier::Disk => {}
        }
        self.there.insert(blocks);
    }

    /// Where the readable byte at `offset` came from, and the offset up to which others came from there, too; of a block
    /// that both brought, who completed it.
    pub(crate) fn supplier(&self, offset: u64) -> (Supplier, u64) {
        let Some(block) = self.layout.block_at(offset) else { return (Supplier::Disk, offset) };
        let sets = [(Supplier::Peer, &self.from_peers), (Supplier::Origin, &self.from_origin)];
        let brought = sets.into_iter().find(|(_, set)| set.contains(block));
        let (supplier, end) = match brought {
            Some((supplier, set)) => (supplier, set.end_from(block)),
            None if self.growing.contains_key(&block) => (Supplier::Origin, block + 1),
            None => {
                let next = sets.iter().filter_map(|(_, set)| set.next_from(block)).min();
                (Supplier::Disk, next.unwrap_or(u32::MAX).min(self.there.end_from(block)))
            }
        };
        (supplier, self.layout.start_of(end))
    }

    /// The bytes before `offset` of the block that holds it are there.
    pub(crate) fn grow(&mut self, offset: u64) {
        if let Some(block) = self.layout.block_at(offset).filter(|block| !self.there.contains(*block)) {
            let bytes = offset - self.layout.start_of(block);
            if bytes > 0 {
                self.growing.insert(block, bytes);
            }
        }
    }

    /// The offset up to which content can be read from `offset` on without a gap. Bytes that could be read once never
    /// change: an origin run that breaks off is resumed at its byte, and a partner's blocks keep what is there.
    pub(crate) fn readable(&self, offset: u64) -> u64 {
        let Some(block) = self.layout.block_at(offset) else { return offset };
        let end = self.there.end_from(block);
        let grown = self.growing.get(&end).map_or(0, |bytes| self.layout.start_of(end) + bytes);
        offset.max(self.layout.start_of(end)).max(grown)
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
    /// The blocks that each reader wants.
    readers: BTreeMap<u64, Range<u32>>,
    /// The blocks that readers began to wait for since that was last asked.
    waiting: BTreeMap<u64, u32>,
    /// What is fetched ahead of readers that go on and on, the newest last. It is fetched also when they go away.
    ahead: VecDeque<Range<u32>>,
    /// Somebody asked for all of it: that is fetched to its end, also when he goes away.
    all: bool,
    /// The driver has ended: no demand is taken any more.
    closed: bool,
}

/// What is read ahead at most in how many places of one content. One of them is a few pieces at most.
const MAX_AHEAD: usize = 16;

/// One reader's wish.
#[derive(Debug, Default)]
pub(crate) struct Wish {
    pub(crate) blocks: Range<u32>,
    /// What it presumably asks for next.
    pub(crate) ahead: Option<Range<u32>>,
    /// The rest, too.
    pub(crate) all: bool,
}

/// What all readers want.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    /// What they read now.
    pub(crate) now: BlockSet,
    /// That, and what was wanted beside it.
    pub(crate) all: BlockSet,
    /// The blocks that readers began to wait for, and before which block each of them ends, with what is fetched ahead of it.
    pub(crate) waiting: Vec<(u32, u32)>,
}

/// One reader's demand; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Demand {
    demands: Arc<Demands>,
    id: u64,
}

impl Demands {
    /// Adds a reader; `None` when the driver has ended.
    pub(crate) fn add(self: &Arc<Self>, wish: Wish) -> Option<Demand> {
        let mut inner = self.lock();
        if inner.closed {
            return None;
        }
        let id = inner.next;
        inner.next += 1;
        // From the first moment: what is asked for it is asked for before it has looked.
        if !wish.blocks.is_empty() {
            inner.waiting.insert(id, wish.blocks.start);
        }
        inner.readers.insert(id, wish.blocks);
        inner.all |= wish.all;
        if let Some(ahead) = wish.ahead {
            if inner.ahead.len() == MAX_AHEAD {
                inner.ahead.pop_front();
            }
            inner.ahead.push_back(ahead);
        }
        drop(inner);
        self.changed.notify_one();
        Some(Demand { demands: Arc::clone(self), id })
    }

    /// Resolves when something changed since this was last awaited.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// What is wanted of a content of so many blocks; and the blocks that readers began to wait for, once.
    pub(crate) fn take(&self, blocks: u32) -> Wanted {
        let mut inner = self.lock();
        let ahead: BlockSet = inner.ahead.iter().cloned().collect();
        // What is fetched ahead of a reader comes with what it waits for.
        let until = |id: &u64, block: u32| {
            let mut goes_on = ahead.clone();
            goes_on.insert(inner.readers.get(id)?.clone());
            Some((block, goes_on.end_from(block)))
        };
        let waiting = inner.waiting.iter().filter_map(|(id, block)| until(id, *block)).collect();
        inner.waiting.clear();
        let now: BlockSet = inner.readers.values().cloned().collect();
        let mut all = ahead;
        all.extend(now.runs());
        all.extend(inner.all.then_some(0..blocks));
        Wanted { now, all, waiting }
    }

    /// Ends the taking of demands, unless there is one that `satisfied` does not hold for.
    pub(crate) fn try_close(&self, satisfied: impl Fn(&Range<u32>) -> bool) -> bool {
        let mut inner = self.lock();
        let open = inner.readers.values().chain(&inner.ahead).any(|blocks| !satisfied(blocks));
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
    /// The reader waits for `block`.
    pub(crate) fn wait_for(&self, block: u32) {
        self.demands.lock().waiting.insert(self.id, block);
        self.demands.changed.notify_one();
    }
}

impl Drop for Demand {
    fn drop(&mut self) {
        let mut inner = self.demands.lock();
        inner.readers.remove(&self.id);
        inner.waiting.remove(&self.id);
        drop(inner);
        self.demands.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = PieceLayout::MIN_BLOCK_SIZE;
    const IN_PIECE: u32 = (PieceLayout::MIN_PIECE_SIZE / BLOCK) as u32;

    fn progress(pieces: u64, have: PieceSet, there: BlockSet) -> Progress {
        Progress::new(PieceLayout::new(pieces * PieceLayout::MIN_PIECE_SIZE).unwrap(), have, there)
    }

    #[test]
    fn what_is_readable_ends_at_the_first_gap() {
        let layout = PieceLayout::new(3 * BLOCK + 10).unwrap();
        let mut progress = Progress::new(layout, PieceSet::empty(1), BlockSet::default());
        assert_eq!(progress.readable(0), 0);
        progress.grow(100);
        assert_eq!((progress.readable(0), progress.readable(40), progress.readable(200)), (100, 100, 200));
        progress.arrive(0..1, Supplier::Origin);
        progress.arrive(1..2, Supplier::Peer);
        progress.grow(2 * BLOCK + 7);
        assert_eq!(progress.readable(5), 2 * BLOCK + 7);
        progress.arrive(2..4, Supplier::Origin);
        assert_eq!(progress.readable(5), 3 * BLOCK + 10);
        assert!(progress.have().is_empty(), "nobody has said that the piece is right");
    }

    #[test]
    fn what_a_download_did_not_bring_was_on_disk() {
        let mut had = PieceSet::empty(4);
        had.insert(PieceIndex::new(0));
        let mut progress = progress(4, had, std::iter::once(20..24).collect());
        progress.arrive(IN_PIECE..20, Supplier::Peer);
        progress.arrive(24..40, Supplier::Origin);
        progress.grow(40 * BLOCK + 1);
        let supplier = |block: u64| progress.supplier(block * BLOCK + 5);
        assert_eq!(supplier(3), (Supplier::Disk, 16 * BLOCK));
        assert_eq!(supplier(17), (Supplier::Peer, 20 * BLOCK));
        assert_eq!(supplier(20), (Supplier::Disk, 24 * BLOCK));
        assert_eq!(supplier(39), (Supplier::Origin, 40 * BLOCK));
        assert_eq!(supplier(40), (Supplier::Origin, 41 * BLOCK));
    }

    #[test]
    fn what_is_passed_on_is_bound_to_the_fetch_that_it_began_with() {
        let mut progress = progress(2, PieceSet::empty(2), BlockSet::default());
        let (piece, list) =
            (PieceIndex::new(1), Arc::from(vec![BlockHash::from([0; 32]); IN_PIECE as usize]));
        let first = progress.begin_relay(piece, Arc::clone(&list));
        assert_eq!(progress.relayed(piece, first), Reach::To(IN_PIECE));
        progress.grow_relay(piece, first, IN_PIECE + 3);
        assert_eq!(progress.relayed(piece, first), Reach::To(IN_PIECE + 3));
        progress.end_relay(piece, first);
        assert_eq!(progress.relayed(piece, first), Reach::Over);
        let second = progress.begin_relay(piece, list);
        progress.end_relay(piece, first);
        progress.grow_relay(piece, first, 2 * IN_PIECE);
        assert_eq!(
            (progress.relayed(piece, first), progress.relayed(piece, second)),
            (Reach::Over, Reach::To(IN_PIECE))
        );
        progress.complete(piece, PieceHash::from([1; 32]));
        assert_eq!((progress.relayed(piece, first), progress.relays().count()), (Reach::Whole, 0));
        let listening = progress.listen();
        assert!(progress.is_listened_to());
        drop(listening);
        assert!(!progress.is_listened_to());
    }

    fn wish(blocks: Range<u32>) -> Wish {
        Wish { blocks, ..Wish::default() }
    }

    fn wanted(demands: &Demands) -> Vec<(u32, u32)> {
        demands.take(80).all.runs().map(|run| (run.start, run.end)).collect()
    }

    #[test]
    fn a_demand_ends_with_its_reader_unless_it_was_for_all() {
        let demands = Arc::new(Demands::default());
        let a = demands.add(wish(1..3)).unwrap();
        let b = demands.add(wish(20..50)).unwrap();
        assert_eq!(wanted(&demands), [(1, 3), (20, 50)]);
        b.wait_for(40);
        a.wait_for(2);
        assert_eq!(demands.take(80).waiting, [(2, 3), (40, 50)]);
        assert_eq!(demands.take(80).waiting, []);
        b.wait_for(41);
        drop(b);
        assert_eq!((wanted(&demands), demands.take(80).waiting), (vec![(1, 3)], vec![]));
        drop(demands.add(Wish { all: true, ..wish(0..80) }));
        assert_eq!(wanted(&demands), [(0, 80)]);
        assert_eq!(demands.take(80).now, std::iter::once(1..3).collect());
        drop(a);
        assert_eq!(wanted(&demands), [(0, 80)]);
    }

    #[test]
    fn who_comes_waits_for_its_first_block_before_it_has_looked() {
        let demands = Arc::new(Demands::default());
        let _reader = demands.add(wish(3..7)).unwrap();
        let _wants_nothing = demands.add(Wish { all: true, ..Wish::default() });
        assert_eq!(demands.take(80).waiting, [(3, 7)]);
    }

    #[test]
    fn what_is_read_ahead_is_fetched_also_when_its_reader_goes() {
        let demands = Arc::new(Demands::default());
        let reader = demands.add(Wish { ahead: Some(2..4), ..wish(1..2) }).unwrap();
        reader.wait_for(1);
        assert_eq!(demands.take(80).waiting, [(1, 4)], "in one request");
        drop(reader);
        assert_eq!(wanted(&demands), [(2, 4)]);
        assert!(!demands.try_close(|blocks| blocks.end < 4));
        assert!(demands.try_close(|_| true));
    }

    #[test]
    fn a_driver_ends_only_when_nobody_lacks_anything() {
        let demands = Arc::new(Demands::default());
        let reader = demands.add(wish(1..3)).unwrap();
        assert!(!demands.try_close(|blocks| *blocks != (1..3)));
        assert!(demands.try_close(|_| true));
        assert!(demands.add(wish(0..1)).is_none());
        drop(reader);
    }
}
