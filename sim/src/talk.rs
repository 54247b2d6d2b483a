//! What a [`Node`] says to the scheduler and hears from it.

use crate::node::{Node, Out};
use darter_protocol::scheduler::{
    Content, FailureReason, LeaseOutcome, LeaseReturned, PartnerFailed, PartnerServed, PeerPacket,
    PieceHash as HashMessage, PieceResult,
};
use darter_protocol::{HostId, PieceHash, PieceIndex, hash};
use darter_swarm::{Bridge, Side};
use std::time::{Duration, Instant};

/// As in `p2p`: reports are this far apart at least, so that a thousand pieces are not a thousand messages.
const MERGE_FOR: Duration = Duration::from_millis(50);

/// As in `p2p`: whoever holds the lease says at least so often that it is there.
const BEAT: Duration = Duration::from_millis(500);

/// What daemons say to the scheduler.
#[derive(Debug)]
pub(crate) enum ToScheduler {
    Register { held: u64, moved: bool, at_origin: bool },
    Report(Box<PieceResult>),
    Complete(Content),
}

/// A node's side of its conversation.
#[derive(Debug, Default)]
pub(crate) struct Talk {
    pub(crate) open: bool,
    pub(crate) lease: Option<u64>,
    /// The lease went back because nothing was left to fetch.
    pub(crate) satisfied: bool,
    report: PieceResult,
    due: Option<Instant>,
    last: Option<Instant>,
}

impl Talk {
    pub(crate) fn report_at(&self) -> Option<Instant> {
        let beat = self.last.filter(|_| self.lease.is_some()).map(|last| last + BEAT);
        self.due.into_iter().chain(beat).min().filter(|_| self.open)
    }
}

impl Node {
    /// `moved`: it was with a scheduler that it has lost.
    pub(crate) fn begin(&mut self, moved: bool) {
        self.talk = Talk::default();
        // Who is one is for the scheduler to say to which it goes.
        self.take_bridge(None);
        let held = u64::from(self.swarm.have().len()) * darter_protocol::PieceLayout::MIN_PIECE_SIZE;
        let at_origin = self.swarm.asks_origin();
        self.out.push(Out::ToScheduler(ToScheduler::Register { held, moved, at_origin }));
        let parents = self.parents.clone().unwrap_or_default();
        parents.into_iter().for_each(|parent| self.add_partner(&crate::node::host_id(parent), false));
    }

    pub(crate) fn handle_packet(&mut self, now: Instant, packet: PeerPacket) {
        self.talk.open = true;
        if packet.lease_revoked {
            self.talk.lease = None;
        }
        if let Some(lease) = packet.lease {
            self.talk.lease = Some(lease.id);
            self.talk.satisfied = false;
            self.vouch(now);
        }
        if let Some(content) = packet.content {
            self.handle_root(&content.root);
        }
        for message in packet.hashes {
            let piece = self.layout.piece(message.index);
            if let Some((piece, hash)) = piece.zip(PieceHash::try_from(message.hash.as_ref()).ok()) {
                self.hashes[piece.as_usize()] = Some(hash);
                self.swarm.handle_hash(piece);
            }
        }
        if self.parents.is_some() {
            return;
        }
        for gone in packet.gone {
            gone.parse::<HostId>().into_iter().for_each(|gone| self.forget(&gone));
        }
        if let Some(bridge) = packet.bridge {
            self.take_bridge(Bridge::new(bridge.number, bridge.of));
        }
        for partner in packet.partners {
            if let Ok(id) = partner.host_id.parse::<HostId>() {
                self.swarm.handle_side(&id, side(&partner));
                self.add_partner(&id, partner.complete);
            }
        }
    }

    fn take_bridge(&mut self, bridge: Option<Bridge>) {
        self.swarm.handle_bridge(bridge);
        self.uploads.handle_bringing(self.task, self.layout.pieces(), bridge.is_some());
    }

    /// As the holder of the lease: says what the content is and which pieces it knows.
    fn vouch(&mut self, now: Instant) {
        self.talk.report.content = Some(self.content_message(false));
        for piece in self.layout.iter() {
            if let Some(hash) = self.hashes[piece.as_usize()] {
                self.report_fetched(piece, hash);
            }
        }
        self.talk.due = Some(now);
    }

    pub(crate) fn report_fetched(&mut self, piece: PieceIndex, hash: PieceHash) {
        if self.talk.lease.is_some() {
            let hash = hash.as_bytes().to_vec().into();
            self.talk.report.from_origin.push(HashMessage { index: piece.get(), hash });
            self.talk.report.origin_bytes += self.layout.range(piece).len();
        }
    }

    pub(crate) fn report_progress(&mut self, now: Instant, held: u64) {
        self.talk.report.held_bytes = held;
        let at = self.talk.last.map_or(now, |last| now.max(last + MERGE_FOR));
        self.talk.due.get_or_insert(at);
    }

    pub(crate) fn report_served(&mut self, id: &HostId, bytes: u64) {
        let served = &mut self.talk.report.served;
        match served.iter_mut().find(|served| served.host_id == id.as_str()) {
            Some(served) => (served.pieces, served.bytes) = (served.pieces + 1, served.bytes + bytes),
            None => served.push(PartnerServed { host_id: id.to_string(), pieces: 1, bytes }),
        }
    }

    pub(crate) fn report_failure(&mut self, now: Instant, id: &HostId, reason: FailureReason) {
        self.talk.report.failed.push(PartnerFailed { host_id: id.to_string(), reason: reason.into() });
        self.talk.due = Some(now);
    }

    /// Nothing is left that only the origin has: others may want the lease.
    pub(crate) fn return_idle_lease(&mut self) {
        let idle = !self.swarm.asks_origin() && !self.swarm.needs_origin() && !self.swarm.awaits_promise();
        if idle
            && !self.swarm.is_complete()
            && let Some(lease_id) = self.talk.lease.take()
        {
            self.talk.satisfied = true;
            let outcome = LeaseOutcome::Done.into();
            self.talk.report.lease_returned = Some(LeaseReturned { lease_id, outcome });
            self.talk.due = self.talk.last.or(self.talk.due);
        }
        if self.talk.satisfied && self.talk.open && self.swarm.needs_origin() {
            self.begin(false);
        }
    }

    pub(crate) fn flush_report(&mut self, now: Instant) {
        if self.talk.report_at().is_none_or(|due| due > now) {
            return;
        }
        let counts = PieceResult {
            held_bytes: self.talk.report.held_bytes,
            origin_bytes: self.talk.report.origin_bytes,
            ..PieceResult::default()
        };
        let report = std::mem::replace(&mut self.talk.report, counts);
        (self.talk.due, self.talk.last) = (None, Some(now));
        self.out.push(Out::ToScheduler(ToScheduler::Report(Box::new(report))));
    }

    pub(crate) fn tell_complete(&mut self, now: Instant) {
        self.talk.due = Some(now);
        self.flush_report(now);
        self.out.push(Out::ToScheduler(ToScheduler::Complete(self.content_message(true))));
        (self.talk.open, self.talk.lease) = (false, None);
    }

    /// Tells a scheduler that does not know it that everything is here.
    pub(crate) fn announce(&mut self) {
        self.out.push(Out::ToScheduler(ToScheduler::Complete(self.content_message(true))));
    }

    fn content_message(&self, whole: bool) -> Content {
        let hashes: Option<Vec<PieceHash>> = self.hashes.iter().copied().collect();
        let root = hashes.filter(|_| whole).map(|hashes| hash::root(&self.layout, &hashes));
        let root = root.map(|root| root.as_bytes().to_vec()).unwrap_or_default().into();
        Content { length: self.layout.length(), headers: Vec::new(), root }
    }
}

/// As in `p2p`.
fn side(partner: &darter_protocol::scheduler::Partner) -> Side {
    match (partner.across, partner.bridge) {
        (true, _) => Side::Across,
        (false, true) => Side::Bridge,
        (false, false) => Side::Here,
    }
}
