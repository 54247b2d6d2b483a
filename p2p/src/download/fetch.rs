//! One piece from a partner, or blocks of it: into the file, or, beside another that may be writing it, into memory first.
//!
//! A whole piece is proven by its hash. Blocks are proven by the list of all blocks' hashes of their piece, which comes from
//! the partner, too, and which the piece's hash proves. Nobody reads a block before it is proven. The list is asked for with the
//! blocks of a part, and with a whole piece that a reader waits for, or others: that reads each block when it has come, and what has
//! come stays when the rest does not. Each byte is hashed once in any case, by its block; the partner has the list from when it got the
//! piece, or hashes the piece for it (`lists.rs`).
//!
//! **Cut-through.** A fetch of a whole piece whose list has come is a [relay](crate::progress::Relay): it is told to those who follow what
//! is here, and they may ask for the piece at once, and get each block when it has come and is proven (`peer/server.rs`). So may those
//! who follow them: a piece goes through many hands in little more than the time of one. Where it breaks off anywhere, all behind that
//! are cut short, keep what they have, and ask others; nobody is blamed but who sent a block that is not what the list says. Waiting
//! goes in no circle, since each relay is one fetch, and waits only for one that began before it.
//!
//! In the simulation (`sim/tests/mesh.rs`, `pieces_that_are_passed_on_while_they_come_are_everywhere_sooner`) the last of 16 hosts at 80
//! Mbit/s has 64 pieces of 4 MiB after 1.18 times one copy, and after 1.32 without. What comes from the origin is not passed on so: what
//! its pieces hash to is known when they are whole, and whoever gave on an unproven block would answer for another's lie.
//!
//! Each ends with one [`Event::Piece`], unless the whole download has stopped.

use super::jobs::{Bench, Brought, Event, PieceError};
use crate::Supplier;
use crate::intake::{Heard, parts};
use crate::peer::{Asking, At, Data, PeerError, Wish};
use crate::progress::RelayId;
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
    /// A reader waits for some of them.
    pub(super) awaited: bool,
    pub(super) asking: Asking,
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
        let asked = fetch.underway.stop.run_until_cancelled(self.ask(fetch, range)).await;
        let (body, list) = asked.unwrap_or(Err(PieceError::Cancelled))?;
        let mut told = 0;
        let blocks = if fetch.others.is_empty() {
            let relay = self.begin_relay(fetch, list.as_ref());
            let came = self.receive(fetch, (range, list.as_ref(), relay), body).await;
            if let Some(relay) = relay.filter(|_| came.is_err()) {
                self.progress.send_modify(|progress| progress.end_relay(fetch.piece, relay));
            }
            let came = came?;
            told = came.told;
            came.blocks
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
        Ok(Brought { blocks, told, list })
    }

    /// Passes on what comes from now on, where it can be proven and nobody else brings any of it.
    fn begin_relay(&self, fetch: &Fetch, list: Option<&Arc<[BlockHash]>>) -> Option<RelayId> {
        let all = self.file.layout().blocks_of(fetch.piece);
        let list = list.filter(|_| all.len() > 1 && fetch.blocks == all && fetch.kept.is_empty())?;
        let mut relay = None;
        self.progress.send_modify(|progress| {
            relay = Some(progress.begin_relay(fetch.piece, Arc::clone(list)));
        });
        relay
    }

    /// The bytes, and what the blocks must hash to, where that is of use: a whole piece is known by its own hash.
    async fn ask(
        &self,
        fetch: &Fetch,
        range: ByteRange,
    ) -> Result<(Incoming, Option<Arc<[BlockHash]>>), PieceError> {
        let layout = self.file.layout();
        let all = layout.blocks_of(fetch.piece);
        let part = fetch.blocks != all;
        let waited = fetch.awaited || self.progress.borrow().is_listened_to();
        let useful = fetch.list.is_none() && (part || waited && all.len() > 1);
        // Who passes it on can do without; who reads it waits for less than the whole piece, and a part can be proven by nothing else.
        let if_known = !part && !fetch.awaited;
        let wish = Wish { range, asking: fetch.asking, proof: useful.then_some(all.len()), if_known };
        let Data { body, proof } =
            self.peers.data(fetch.at(), &self.task, wish).await.map_err(PieceError::Peer)?;
        let said = match proof {
            Some(list) => list,
            // A daemon of an earlier version tells it in an answer of its own.
            None if part && useful => {
                let asked = self.peers.blocks(fetch.at(), &self.task, layout, fetch.piece);
                asked.await.map_err(PieceError::Peer)?
            }
            None => return Ok((body, fetch.list.clone())),
        };
        if hash::piece(layout, &said) == fetch.expected {
            Ok((body, Some(said.into())))
        } else {
            Err(PieceError::Peer(PeerError::Corrupt))
        }
    }

    /// Receives the blocks into the file.
    async fn receive(
        &self,
        fetch: &Fetch,
        (range, list, relay): (ByteRange, Option<&Arc<[BlockHash]>>, Option<RelayId>),
        body: Incoming,
    ) -> Result<Came, PieceError> {
        let goal = Goal::new(range.end());
        let Underway { heard, stop: stopped, .. } = &fetch.underway;
        // Also by the first wrong block.
        let stop = &stopped.child_token();
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
        // What was read before may be another's bytes: it is compared first.
        let shown = list.filter(|_| fetch.kept.is_empty());
        let arriving = Arriving { bench: self, fetch, list: shown, relay, stop, came: Mutex::default() };
        let (sink, pumped) = pump(body, sink, limits, &arriving).await;
        match pumped {
            Ok(()) => {}
            Err(PumpError::Broke(_)) => return Err(PieceError::Peer(PeerError::Unreachable)),
            Err(PumpError::Store(error)) => return Err(PieceError::Store(error)),
        }
        let came = arriving.came.into_inner().unwrap_or_else(PoisonError::into_inner);
        if came.blocks.len() < fetch.blocks.len() && stopped.is_cancelled() && !came.wrong {
            return Err(PieceError::Cancelled);
        }
        self.check(fetch, list.map(|list| &**list), &came.blocks)?;
        let whole = self.file.layout().range(fetch.piece) == range;
        let in_passing = whole && sink.is_some_and(|sink| sink.in_passing);
        if let Some(Ok(mut verifier)) = self.verifier.as_deref().filter(|_| in_passing).map(Mutex::try_lock) {
            verifier.settle(range.end());
        }
        Ok(came)
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

/// Takes what a partner's body brings. With a list, each block is proven and shown to readers when it has come.
struct Arriving<'a> {
    bench: &'a Bench,
    fetch: &'a Fetch,
    list: Option<&'a Arc<[BlockHash]>>,
    /// What is passed on by it.
    relay: Option<RelayId>,
    /// Ends the body.
    stop: &'a CancellationToken,
    came: Mutex<Came>,
}

/// What has come.
#[derive(Default)]
struct Came {
    /// The blocks that are complete, with their hashes.
    blocks: Blocks,
    /// So many of them are proven, and told to the driver.
    told: usize,
    /// The next one is not what it must be.
    wrong: bool,
}

impl Arriving<'_> {
    /// Takes the blocks; gives those that the driver is to hear of now, with the list.
    fn take(&self, blocks: Blocks) -> Option<(Blocks, Arc<[BlockHash]>)> {
        let mut came = self.came.lock().unwrap_or_else(PoisonError::into_inner);
        let first = self.bench.file.layout().blocks_of(self.fetch.piece).start;
        let list = self.list.filter(|_| !blocks.is_empty());
        let Some(list) = list else {
            came.blocks.extend(blocks);
            return None;
        };
        let right = |(block, hash): &(u32, BlockHash)| {
            list.get((block - first) as usize).is_some_and(|is| is == hash)
        };
        if !blocks.iter().all(right) {
            came.wrong = true;
            self.stop.cancel();
            return None;
        }
        came.blocks.extend(&blocks);
        // The last ones are told with the end.
        if came.blocks.len() < self.fetch.blocks.len() {
            came.told = came.blocks.len();
        }
        Some((blocks, Arc::clone(list)))
    }
}

impl Report for &Arriving<'_> {
    async fn report(&self, wrote: Wrote) {
        let Some((blocks, list)) = self.take(wrote.blocks) else { return };
        let (Some((first, _)), Some((last, _))) = (blocks.first(), blocks.last()) else { return };
        let run = *first..last + 1;
        let ends = run.end == self.fetch.blocks.end;
        self.bench.progress.send_modify(|progress| {
            if let Some(relay) = self.relay {
                progress.grow_relay(self.fetch.piece, relay, run.end);
            }
            progress.arrive(run, Supplier::Peer);
        });
        if !ends {
            self.bench.tell(Event::Proven { blocks, list }).await;
        }
    }
}
