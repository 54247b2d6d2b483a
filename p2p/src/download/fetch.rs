//! One piece from a partner, or blocks of it: into the file, or, beside another that may be writing it, into memory first.
//!
//! A whole piece is proven by its hash. Blocks are proven by the list of all blocks' hashes of their piece, which comes from
//! the partner, too, and which the piece's hash proves. Nobody reads a block before it is proven.
//!
//! A partner gives on only what it has whole, and a whole piece is read when it has come whole. What passing blocks on would gain is
//! bounded by `sim/tests/mesh.rs` (`what_pieces_in_sixteen_parts_would_gain`): with 64 pieces of 4 MiB the last of 16 hosts at
//! 80 Mbit/s is done after 1.44 times one copy, and could be after 1.02. Whoever relays a block would have to prove it, by the list
//! of its piece: otherwise another's wrong bytes would be its fault.
//!
//! Each ends with one [`Event::Piece`], unless the whole download has stopped.

use super::jobs::{Bench, Brought, Event, PieceError};
use crate::intake::{Heard, parts};
use crate::peer::{At, PeerError};
use crate::sink::{Blocks, Goal, Limits, PumpError, Report, Sink, Wrote, pump, write_kept};
use bytes::{Bytes, BytesMut};
use darter_protocol::hash::{self, BlockHasher};
use darter_protocol::{BlockHash, ByteRange, HostId, PieceHash, PieceIndex};
use futures_util::StreamExt;
use hyper::body::Incoming;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::task;
use tokio_util::sync::{CancellationToken, DropGuard};

/// One piece from a partner, or blocks of it.
pub(super) struct Fetch {
    pub(super) partner: HostId,
    pub(super) address: SocketAddr,
    pub(super) piece: PieceIndex,
    pub(super) blocks: Range<u32>,
    /// The partner keeps a place for this.
    pub(super) called: bool,
    pub(super) expected: PieceHash,
    /// What all blocks of the piece hash to, if that is known; it was proven by `expected`.
    pub(super) list: Option<Arc<[BlockHash]>>,
    /// These bytes of the blocks came from an origin; readers may have seen them, so they stay. In order, none in the block
    /// of another.
    pub(super) kept: Vec<ByteRange>,
    pub(super) underway: Underway,
    /// The others who fetch the same. With any, this one does not write before they have ended.
    pub(super) others: Vec<Underway>,
    pub(super) ended: DropGuard,
}

impl Fetch {
    fn at(&self) -> At<'_> {
        At { host: &self.partner, address: self.address }
    }
}

/// A fetch, as the driver and other fetches know it.
#[derive(Debug, Clone)]
pub(super) struct Underway {
    pub(super) heard: Arc<Heard>,
    pub(super) stop: CancellationToken,
    /// Cancelled when it has ended, and will not write any more.
    pub(super) ended: CancellationToken,
}

impl Bench {
    pub(super) async fn fetch_piece(self, fetch: Fetch) {
        let result = self.bring_piece(&fetch).await;
        drop(fetch.ended);
        if !self.stop.is_cancelled() || result.is_ok() {
            self.tell(Event::Piece { partner: fetch.partner, piece: fetch.piece, result }).await;
        }
    }

    async fn bring_piece(&self, fetch: &Fetch) -> Result<Brought, PieceError> {
        let Some(range) = self.file.layout().bytes_of(&fetch.blocks) else {
            return Err(PieceError::Peer(PeerError::NotHeld));
        };
        let asked = async {
            let data = self.peers.data(fetch.at(), &self.task, range, fetch.called);
            tokio::try_join!(data, self.learn_list(fetch))
        };
        let (body, list) = match fetch.underway.stop.run_until_cancelled(asked).await {
            Some(answers) => answers.map_err(PieceError::Peer)?,
            None => return Err(PieceError::Cancelled),
        };
        let blocks = if fetch.others.is_empty() {
            self.receive(fetch, range, list.as_deref(), body).await?
        } else {
            let (blocks, bytes) = self.collect(fetch, range, list.as_deref(), body).await?;
            for other in &fetch.others {
                other.stop.cancel();
                other.ended.cancelled().await;
            }
            self.write(fetch, range, bytes).await?;
            blocks
        };
        self.check_kept(fetch, &blocks).await?;
        Ok(Brought { blocks, list })
    }

    /// What the blocks must hash to. A whole piece is known by its own hash.
    async fn learn_list(&self, fetch: &Fetch) -> Result<Option<Arc<[BlockHash]>>, PeerError> {
        let layout = self.file.layout();
        if fetch.list.is_some() || fetch.blocks == layout.blocks_of(fetch.piece) {
            return Ok(fetch.list.clone());
        }
        let list = self.peers.blocks(fetch.at(), &self.task, layout, fetch.piece).await?;
        if hash::piece(layout, &list) == fetch.expected {
            Ok(Some(list.into()))
        } else {
            Err(PeerError::Corrupt)
        }
    }

    /// Receives the blocks into the file.
    async fn receive(
        &self,
        fetch: &Fetch,
        range: ByteRange,
        list: Option<&[BlockHash]>,
        body: Incoming,
    ) -> Result<Blocks, PieceError> {
        let goal = Goal::new(range.end());
        let Underway { heard, stop, .. } = &fetch.underway;
        let way = self.throttles.of_partner(&fetch.partner);
        let limits = Limits { skip: 0, goal: &goal, idle: self.idle, way: &way, heard, stop };
        let sink = Sink {
            file: Arc::clone(&self.file),
            verifier: self.verifier.clone(),
            settles: false,
            kept: fetch.kept.clone(),
            offset: range.start(),
            hasher: None,
            in_passing: false,
        };
        let collected = Collected::default();
        let (sink, pumped) = pump(body, sink, limits, &collected).await;
        match pumped {
            Ok(()) => {}
            Err(PumpError::Broke(_)) => return Err(PieceError::Peer(PeerError::Unreachable)),
            Err(PumpError::Store(error)) => return Err(PieceError::Store(error)),
        }
        let blocks = collected.take();
        if blocks.len() < fetch.blocks.len() && stop.is_cancelled() {
            return Err(PieceError::Cancelled);
        }
        self.check(fetch, list, &blocks)?;
        let whole = self.file.layout().range(fetch.piece) == range;
        let in_passing = whole && sink.is_some_and(|sink| sink.in_passing);
        if let Some(Ok(mut verifier)) = self.verifier.as_deref().filter(|_| in_passing).map(Mutex::try_lock) {
            verifier.settle(range.end());
        }
        Ok(blocks)
    }

    /// Whether these are the blocks, and are what they must be.
    fn check(
        &self,
        fetch: &Fetch,
        list: Option<&[BlockHash]>,
        blocks: &[(u32, BlockHash)],
    ) -> Result<(), PieceError> {
        let layout = self.file.layout();
        let first = layout.blocks_of(fetch.piece).start;
        let complete = blocks.iter().map(|(block, _)| *block).eq(fetch.blocks.clone());
        let right = complete
            && match list {
                Some(list) => {
                    blocks.iter().all(|(block, hash)| list.get((block - first) as usize) == Some(hash))
                }
                None => {
                    let hashes: Vec<BlockHash> = blocks.iter().map(|(_, hash)| *hash).collect();
                    fetch.blocks == layout.blocks_of(fetch.piece)
                        && hash::piece(layout, &hashes) == fetch.expected
                }
            };
        if right { Ok(()) } else { Err(PieceError::Peer(PeerError::Corrupt)) }
    }

    /// Receives the blocks into memory, and checks them.
    async fn collect(
        &self,
        fetch: &Fetch,
        range: ByteRange,
        list: Option<&[BlockHash]>,
        body: Incoming,
    ) -> Result<(Blocks, Bytes), PieceError> {
        let length = range.len() as usize;
        let mut bytes = BytesMut::with_capacity(length);
        let Underway { heard, stop, .. } = &fetch.underway;
        let way = self.throttles.of_partner(&fetch.partner);
        let mut parts = std::pin::pin!(parts(body, &way, self.idle, heard));
        while bytes.len() < length {
            let Some(part) = stop.run_until_cancelled(parts.next()).await else {
                return Err(PieceError::Cancelled);
            };
            let Some(Ok(data)) = part else { return Err(PieceError::Peer(PeerError::Unreachable)) };
            bytes.extend_from_slice(&data[..data.len().min(length - bytes.len())]);
        }
        let (layout, bytes) = (self.file.layout(), bytes.freeze());
        let parts = bytes.chunks(layout.block_size() as usize);
        let blocks = fetch.blocks.clone().zip(parts).map(|(block, part)| {
            let mut hasher = BlockHasher::new(layout, block);
            hasher.update(part);
            (block, hasher.finish())
        });
        let blocks: Blocks = blocks.collect();
        self.check(fetch, list, &blocks)?;
        Ok((blocks, bytes))
    }

    async fn write(&self, fetch: &Fetch, range: ByteRange, bytes: Bytes) -> Result<(), PieceError> {
        let (file, kept) = (Arc::clone(&self.file), fetch.kept.clone());
        let written = task::spawn_blocking(move || write_kept(&file, &kept, range.start(), &bytes)).await;
        written.map_err(io::Error::other).and_then(|written| written).map_err(PieceError::Store)
    }

    /// Whether the bytes that were there before fit to those that came.
    async fn check_kept(&self, fetch: &Fetch, came: &[(u32, BlockHash)]) -> Result<(), PieceError> {
        for kept in &fetch.kept {
            let blocks = self.file.layout().blocks_covering(*kept);
            let (first, end) = (blocks.start, blocks.end);
            let came = came.iter().filter(|(block, _)| (first..end).contains(block)).map(|(_, hash)| *hash);
            let file = Arc::clone(&self.file);
            let read = task::spawn_blocking(move || file.hash_blocks(blocks)).await;
            let on_disk = read.map_err(io::Error::other).and_then(|read| read).map_err(PieceError::Store)?;
            if !came.eq(on_disk) {
                return Err(PieceError::Spoiled);
            }
        }
        Ok(())
    }
}

/// The blocks that a partner's body completes, with their hashes.
#[derive(Default)]
struct Collected(Mutex<Blocks>);

impl Collected {
    fn take(&self) -> Blocks {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Report for &Collected {
    async fn report(&self, wrote: Wrote) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(wrote.blocks);
    }
}
