//! Partners: who is one, what they have, and the pieces that come from them.

use super::{End, Transfer};
use crate::download::fetch::{Fetch, Underway};
use crate::download::jobs::{Brought, PieceError};
use crate::peer::{Asking, PeerError, Said};
use crate::{Supplier, TRACE};
use darter_protocol::scheduler::Partner;
use darter_protocol::{BlockHash, ByteRange, HostId, PieceIndex, PieceSet};
use darter_swarm::Side;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use tokio::task::{AbortHandle, Id as JobId};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

/// Partners at once. A scheduler names about twenty, and more only to one that has everything already; each may cost a
/// connection.
const MAX_NEIGHBOURS: usize = 64;

/// A partner, as this daemon reaches it.
pub(super) struct Neighbour {
    pub(super) address: SocketAddr,
    pub(super) complete: bool,
    pub(super) following: Option<AbortHandle>,
    /// Whether the follower has heard what is there; then it hears what is new.
    pub(super) heard: bool,
}

impl Transfer {
    pub(super) fn fetch_piece(
        &mut self,
        partner: HostId,
        (piece, blocks): (PieceIndex, Range<u32>),
        (awaited, called): (bool, bool),
    ) {
        let known = self.hashes.pieces[piece.as_usize()].zip(self.neighbours.get(&partner));
        let Some((expected, neighbour)) = known else {
            // Asked again, it would be chosen again.
            self.swarm.handle_fetch_failed(piece, &partner);
            self.swarm.handle_partner_gone(&partner);
            return;
        };
        let underway = Underway {
            heard: Arc::default(),
            stop: self.bench.stop.child_token(),
            ended: CancellationToken::new(),
        };
        // Of a rest, what is before it in its block.
        let rests = self.streams.rests.range(blocks.clone());
        let kept =
            rests.filter_map(|(block, rest)| ByteRange::new(self.layout.start_of(*block), rest.offset));
        let same = self.fetches.iter().filter(|((_, other), _)| *other == piece);
        let fetch = Fetch {
            partner: partner.clone(),
            address: neighbour.address,
            piece,
            list: self.hashes.lists.get(&piece).cloned(),
            blocks,
            awaited,
            asking: Asking { called, across: self.swarm.is_across(&partner) },
            expected,
            kept: kept.collect(),
            others: same.map(|(_, other)| other.clone()).collect(),
            ended: underway.ended.clone().drop_guard(),
            underway: underway.clone(),
        };
        let peer = tracing::info_span!(
            target: TRACE, "piece", otel.kind = "client", piece = piece.get(), blocks = fetch.blocks.len(), network.peer.address = %neighbour.address,
        );
        self.fetches.insert((partner, piece), underway);
        self.spawn(self.bench.clone().fetch_piece(fetch).instrument(peer));
    }

    /// Lets the swarm see who is slow or silent.
    pub(super) fn look_after_fetches(&mut self, now: Instant) {
        let fetches = &self.fetches;
        for ((partner, piece), underway) in fetches {
            self.swarm.handle_held(partner, *piece, underway.heard.held());
        }
        self.swarm.handle_timeout(now.into_std(), |partner, piece| {
            Some(fetches.get(&(partner.clone(), piece))?.heard.last()?.into_std())
        });
    }

    pub(super) fn handle_piece(
        &mut self,
        partner: &HostId,
        piece: PieceIndex,
        result: Result<Brought, PieceError>,
    ) -> Result<(), End> {
        if let Some(ended) = self.fetches.remove(&(partner.clone(), piece)) {
            self.swarm.handle_held(partner, piece, ended.heard.held());
        }
        match result {
            Ok(Brought { blocks, told, list }) => {
                let Some(run) = run_of(&blocks) else { return Ok(()) };
                self.count_from_peer(&blocks[told.min(blocks.len())..])?;
                self.outbox.served(partner, self.layout.bytes_of(&run).map_or(0, ByteRange::len));
                if self.swarm.there().contains_all(&run) {
                    // Another was faster by a hair; it is the same on disk.
                    self.swarm.handle_fetch_failed(piece, partner);
                    return Ok(());
                }
                if let Some(list) = list {
                    self.hashes.remember(piece, list);
                }
                run.clone().for_each(|block| drop(self.streams.rests.remove(&block)));
                self.bench.progress.send_modify(|progress| progress.arrive(run, Supplier::Peer));
                self.take_blocks(&blocks, Some(partner))?;
                self.note_blocks();
                self.outbox.progress(Instant::now(), self.counts.held, self.counts.under_lease);
                Ok(())
            }
            Err(PieceError::Peer(PeerError::Busy)) => {
                self.swarm.handle_busy(Instant::now().into_std(), partner, piece);
                self.listen(partner);
                Ok(())
            }
            Err(error) => {
                let relayed = self.swarm.handle_fetch_failed(piece, partner);
                // What it has proven before.
                self.note_blocks();
                match error {
                    PieceError::Cancelled => Ok(()),
                    // What it was itself receiving it does not get any more; if it is gone, it says nothing more either.
                    PieceError::Peer(PeerError::NotHeld | PeerError::Unreachable) if relayed => {
                        tracing::debug!(task = %self.download.task, %partner, %piece, "a piece is not passed on any more");
                        Ok(())
                    }
                    PieceError::Peer(error) => {
                        self.drop_partner(partner, &error);
                        Ok(())
                    }
                    PieceError::Store(error) => Err(End::store(Arc::new(error))),
                    PieceError::Spoiled => Err(self.changed()),
                }
            }
        }
    }

    /// The first blocks of a fetch that goes on are on disk, and right.
    pub(super) fn handle_proven(
        &mut self,
        blocks: &[(u32, BlockHash)],
        list: &Arc<[BlockHash]>,
    ) -> Result<(), End> {
        self.count_from_peer(blocks)?;
        let run = run_of(blocks).filter(|run| !self.swarm.there().contains_all(run));
        let Some(run) = run else { return Ok(()) };
        let piece = self.layout.piece_of(run.start);
        run.clone().for_each(|block| drop(self.streams.rests.remove(&block)));
        self.swarm.handle_proven(run);
        // The last block comes with the end of the fetch; unless it was there before.
        match self.hashes.add(&self.layout, blocks) {
            Some(hash) => self.take_piece(piece, hash, None),
            None => {
                self.hashes.remember(piece, Arc::clone(list));
                Ok(())
            }
        }
    }

    /// Blocks that follow each other came from a partner.
    fn count_from_peer(&mut self, blocks: &[(u32, BlockHash)]) -> Result<(), End> {
        let bytes = run_of(blocks).and_then(|run| self.layout.bytes_of(&run)).map_or(0, ByteRange::len);
        self.counts.from_peers += bytes;
        self.download.shared.metrics.add_bytes(Supplier::Peer, bytes);
        self.check_version()
    }

    /// Hears when it is our turn at a partner, if it is not heard yet.
    fn listen(&mut self, partner: &HostId) {
        if let Some(neighbour) = self.neighbours.get_mut(partner)
            && neighbour.following.is_none()
        {
            let follow = self.bench.clone().follow(partner.clone(), neighbour.address);
            neighbour.following = Some(self.jobs.spawn(follow));
        }
    }

    pub(super) fn handle_said(&mut self, partner: &HostId, said: Said) {
        let Some(neighbour) = self.neighbours.get_mut(partner) else { return };
        match said {
            Said::Come(best) => self.swarm.handle_come(partner, best),
            Said::Have(_) | Said::Coming(_) if neighbour.complete => {}
            Said::Coming(coming) => coming.iter().for_each(|piece| self.swarm.handle_coming(partner, piece)),
            Said::Have(more) if neighbour.heard => self.swarm.handle_more(partner, more.iter()),
            Said::Have(all) => {
                neighbour.heard = true;
                self.swarm.handle_have(partner, all);
            }
        }
    }

    pub(super) fn add_partner(&mut self, partner: &Partner) {
        let (Ok(host), Ok(ip)) = (partner.host_id.parse::<HostId>(), partner.ip.parse::<IpAddr>()) else {
            return;
        };
        let Some(port) = u16::try_from(partner.piece_port).ok().filter(|port| *port > 0) else { return };
        if host == self.download.shared.config.host.id
            || self.neighbours.len() >= MAX_NEIGHBOURS && !self.neighbours.contains_key(&host)
        {
            return;
        }
        let address = SocketAddr::new(ip, port);
        let neighbour = self.neighbours.entry(host.clone()).or_insert(Neighbour {
            address,
            complete: false,
            following: None,
            heard: false,
        });
        neighbour.address = address;
        neighbour.complete |= partner.complete;
        self.swarm.handle_side(&host, side(partner));
        if neighbour.complete {
            // It is followed only when it has us wait.
            self.swarm.handle_have(&host, PieceSet::full(self.layout.pieces()));
        } else {
            // Named again, it has begun anew: what it says on the old way may be about to end.
            let follower = self.jobs.spawn(self.bench.clone().follow(host, address));
            neighbour.heard = false;
            if let Some(before) = neighbour.following.replace(follower) {
                before.abort();
            }
        }
    }

    /// Whether it is this follower that says what the partner has. What one said whose partner was forgotten meanwhile, or
    /// has everything by now, is no news: it would bring back a partner without an address, or take away what it has.
    pub(super) fn is_following(&self, partner: &HostId, follower: JobId) -> bool {
        let following = self.neighbours.get(partner).and_then(|neighbour| neighbour.following.as_ref());
        following.is_some_and(|following| following.id() == follower)
    }

    pub(super) fn handle_have_ended(&mut self, partner: &HostId, error: Option<PeerError>) {
        if let Some(neighbour) = self.neighbours.get_mut(partner) {
            (neighbour.following, neighbour.heard) = (None, false);
        }
        // Without an error it stops or failed; what it has it may still give.
        if let Some(error) = error {
            self.drop_partner(partner, &error);
        }
    }

    pub(super) fn drop_partner(&mut self, partner: &HostId, error: &PeerError) {
        tracing::debug!(task = %self.download.task, %partner, %error, "a partner failed");
        if matches!(error, PeerError::Corrupt) {
            self.download.shared.metrics.corrupt_pieces.inc();
            tracing::warn!(task = %self.download.task, %partner, "a partner sent bytes that do not match their hash");
        }
        if self.forget_partner(partner) {
            self.outbox.failed(Instant::now(), partner, error.reason());
        }
        self.ask_hashes();
    }

    pub(super) fn forget_partner(&mut self, partner: &HostId) -> bool {
        self.swarm.handle_partner_gone(partner);
        if self.hashes.asked.as_ref() == Some(partner) {
            self.hashes.asked = None;
        }
        let Some(neighbour) = self.neighbours.remove(partner) else { return false };
        if let Some(following) = neighbour.following {
            following.abort();
        }
        true
    }
}

/// From the first of these blocks, which follow each other, to the last.
fn run_of(blocks: &[(u32, BlockHash)]) -> Option<Range<u32>> {
    Some(blocks.first()?.0..blocks.last()?.0 + 1)
}

fn side(partner: &Partner) -> Side {
    match (partner.across, partner.bridge) {
        (true, _) => Side::Across,
        (false, true) => Side::Bridge,
        (false, false) => Side::Here,
    }
}
