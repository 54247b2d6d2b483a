//! One piece from a partner: into the file, or, beside another that may be writing it, into memory first.
//!
//! Each ends with one [`Event::Piece`], unless the whole download has stopped.

use super::jobs::{Bench, Event, PieceError};
use crate::intake::{Heard, parts};
use crate::peer::PeerError;
use crate::sink::{Goal, Limits, PumpError, Report, Sink, Wrote, pump};
use bytes::{Bytes, BytesMut};
use darter_protocol::hash::PieceHasher;
use darter_protocol::{HostId, PieceHash, PieceIndex};
use futures_util::StreamExt;
use hyper::body::Incoming;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::task;
use tokio_util::sync::{CancellationToken, DropGuard};

/// One piece from a partner.
pub(super) struct Fetch {
    pub(super) partner: HostId,
    pub(super) address: SocketAddr,
    pub(super) piece: PieceIndex,
    pub(super) expected: PieceHash,
    /// Bytes of the piece before this offset came from an origin; readers may have seen them, so they stay.
    pub(super) keep_before: u64,
    pub(super) underway: Underway,
    /// The others who fetch the same piece. With any, this one does not write before they have ended.
    pub(super) others: Vec<Underway>,
    pub(super) ended: DropGuard,
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

    async fn bring_piece(&self, fetch: &Fetch) -> Result<PieceHash, PieceError> {
        let range = self.file.layout().range(fetch.piece);
        let asked = self.peers.data(fetch.address, &self.task, range);
        let body = match fetch.underway.stop.run_until_cancelled(asked).await {
            Some(body) => body.map_err(PieceError::Peer)?,
            None => return Err(PieceError::Cancelled),
        };
        if fetch.others.is_empty() {
            self.receive_piece(fetch, body).await?;
        } else {
            let bytes = self.collect_piece(fetch, body).await?;
            for other in &fetch.others {
                other.stop.cancel();
                other.ended.cancelled().await;
            }
            self.write_piece(fetch, bytes).await?;
        }
        if fetch.keep_before > range.start() {
            self.check_kept(fetch).await?;
        }
        Ok(fetch.expected)
    }

    /// Receives the piece into the file.
    async fn receive_piece(&self, fetch: &Fetch, body: Incoming) -> Result<(), PieceError> {
        let range = self.file.layout().range(fetch.piece);
        let goal = Goal::new(range.end());
        let Underway { heard, stop, .. } = &fetch.underway;
        let way = self.throttles.of_partner(&fetch.partner);
        let limits = Limits { skip: 0, goal: &goal, idle: self.idle, way: &way, heard, stop };
        let sink = Sink {
            file: Arc::clone(&self.file),
            verifier: self.verifier.clone(),
            settles: false,
            keep_before: fetch.keep_before,
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
        match collected.hash() {
            Some(hash) if hash == fetch.expected => {}
            None if stop.is_cancelled() => return Err(PieceError::Cancelled),
            _ => return Err(PieceError::Peer(PeerError::Corrupt)),
        }
        let in_passing = sink.is_some_and(|sink| sink.in_passing);
        if let Some(Ok(mut verifier)) = self.verifier.as_deref().filter(|_| in_passing).map(Mutex::try_lock) {
            verifier.settle(range.end());
        }
        Ok(())
    }

    /// Receives the piece into memory, and checks it.
    async fn collect_piece(&self, fetch: &Fetch, body: Incoming) -> Result<Bytes, PieceError> {
        let layout = self.file.layout();
        let length = layout.range(fetch.piece).len() as usize;
        let mut bytes = BytesMut::with_capacity(length);
        let mut hasher = PieceHasher::new(layout, fetch.piece);
        let Underway { heard, stop, .. } = &fetch.underway;
        let way = self.throttles.of_partner(&fetch.partner);
        let mut parts = std::pin::pin!(parts(body, &way, self.idle, heard));
        while bytes.len() < length {
            let Some(part) = stop.run_until_cancelled(parts.next()).await else {
                return Err(PieceError::Cancelled);
            };
            let Some(Ok(data)) = part else { return Err(PieceError::Peer(PeerError::Unreachable)) };
            let data = &data[..data.len().min(length - bytes.len())];
            hasher.update(data);
            bytes.extend_from_slice(data);
        }
        if hasher.finish() == fetch.expected {
            Ok(bytes.freeze())
        } else {
            Err(PieceError::Peer(PeerError::Corrupt))
        }
    }

    async fn write_piece(&self, fetch: &Fetch, bytes: Bytes) -> Result<(), PieceError> {
        let range = self.file.layout().range(fetch.piece);
        let kept = fetch.keep_before.saturating_sub(range.start()).min(range.len());
        let file = Arc::clone(&self.file);
        let written =
            task::spawn_blocking(move || file.write_at(range.start() + kept, &bytes[kept as usize..])).await;
        written.map_err(io::Error::other).and_then(|written| written).map_err(PieceError::Store)
    }

    /// Whether the bytes that were there before fit to those that came.
    async fn check_kept(&self, fetch: &Fetch) -> Result<(), PieceError> {
        let (file, piece) = (Arc::clone(&self.file), fetch.piece);
        let read = task::spawn_blocking(move || {
            let mut hasher = PieceHasher::new(file.layout(), piece);
            file.read_piece(piece, |part| hasher.update(part)).map(|()| hasher.finish())
        });
        let on_disk =
            read.await.map_err(io::Error::other).and_then(|read| read).map_err(PieceError::Store)?;
        if on_disk == fetch.expected { Ok(()) } else { Err(PieceError::Spoiled) }
    }
}

/// The hash of the one piece that a partner's body completes.
#[derive(Default)]
struct Collected(Mutex<Option<PieceHash>>);

impl Collected {
    fn hash(&self) -> Option<PieceHash> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Report for &Collected {
    async fn report(&self, wrote: Wrote) {
        if let Some((_, hash)) = wrote.pieces.first() {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(*hash);
        }
    }
}
