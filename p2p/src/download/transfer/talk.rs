//! The conversation with the scheduler: what it says, what it is told, and when it is gone.

use super::{End, Transfer};
use crate::schedule::{self, Arrival, Conversation, Joined};
use darter_protocol::scheduler::{LeaseOutcome, PeerPacket, Share};
use darter_protocol::{HostId, PieceHash, Root};
use darter_swarm::{Bridge, Rate};
use tokio::time::Instant;
use tonic::Status;

impl Transfer {
    pub(super) fn handle_packet(&mut self, packet: PeerPacket) -> Result<(), End> {
        if packet.unshareable {
            self.go_alone()?;
        }
        let scheduled = &mut self.download.scheduled;
        if packet.lease_revoked {
            scheduled.lease = None;
        }
        if let Some(refused) = packet.refused {
            scheduled.refused = Some(refused.reason);
        }
        if let Some(lease) = packet.lease {
            scheduled.lease = Some(lease.id);
            scheduled.done = false;
            scheduled.refused = None;
            self.vouch(Instant::now());
        }
        if let Some(share) = packet.share {
            self.take_share(share);
        }
        if let Some(content) = packet.content {
            if content.length != self.layout.length() {
                return Err(self.changed());
            }
            self.hashes.root = Root::try_from(content.root.as_ref()).ok().or(self.hashes.root);
        }
        for message in packet.hashes {
            let piece = self.layout.piece(message.index);
            if let Some((piece, hash)) = piece.zip(PieceHash::try_from(message.hash.as_ref()).ok()) {
                self.learn_hash(piece, hash);
            }
        }
        for gone in packet.gone {
            gone.parse().ok().map(|gone| self.forget_partner(&gone));
        }
        if let Some(bridge) = packet.bridge {
            self.take_bridge(Bridge::new(bridge.number, bridge.of));
        }
        packet.partners.iter().for_each(|partner| self.add_partner(partner));
        self.ask_hashes();
        Ok(())
    }

    /// Whether it brings pieces into its zone from now on, and which.
    fn take_bridge(&mut self, bridge: Option<Bridge>) {
        self.swarm.handle_bridge(bridge);
        let pieces = self.layout.pieces();
        self.download.shared.turns.bringing(self.download.task, pieces, bridge.is_some());
    }

    /// So much of the origin is this download's.
    fn take_share(&mut self, share: Share) {
        self.bench.throttles.set_share(Rate::new(share.bytes_per_second));
        self.swarm.set_most_runs((share.connections > 0).then_some(share.connections as usize));
    }

    /// As the holder of the lease: says what the content is and which pieces it knows.
    pub(super) fn vouch(&mut self, now: Instant) {
        self.counts.under_lease = 0;
        for (piece, hash) in self.layout.iter().zip(&self.hashes.pieces) {
            if let Some(hash) = hash {
                self.outbox.vouch(piece, hash);
            }
        }
        self.outbox.progress(now, self.counts.held, 0);
        self.outbox.content(now, schedule::content(&self.partial.record, None));
    }

    pub(super) fn return_lease(&mut self, now: Instant, outcome: LeaseOutcome) {
        if let Some(lease) = self.download.scheduled.lease.take() {
            self.outbox.return_lease(now, lease, outcome);
            self.download.scheduled.done = outcome == LeaseOutcome::Done;
        }
    }

    /// Gives the lease back when there is nothing to use it for: all that is missing comes from partners, or nobody wants
    /// it. Others may lack what only the origin has.
    pub(super) fn return_unused_lease(&mut self, now: Instant) {
        let swarm = &self.swarm;
        let used = swarm.asks_origin() || swarm.needs_origin() || swarm.awaits_promise();
        if !used && !swarm.is_complete() {
            self.return_lease(now, LeaseOutcome::Done);
        }
    }

    /// Sends what waited for more to go with it: there will be no more.
    pub(super) fn report_rest(&mut self, now: Instant) {
        self.outbox.hurry(now);
        if let Some(talk) = &self.download.scheduled.talk {
            self.outbox.flush(now, (talk, false), || self.download.shared.turns.free());
        }
    }

    /// What the origin sends to this daemon is not what others have of it.
    fn go_alone(&mut self) -> Result<(), End> {
        self.download.scheduled.unshareable = true;
        let partners: Vec<HostId> = self.neighbours.keys().cloned().collect();
        for partner in &partners {
            self.forget_partner(partner);
        }
        self.check_version()
    }

    /// Without a digest nobody would notice that this daemon's version was mixed with what others have.
    pub(super) fn check_version(&self) -> Result<(), End> {
        let mixed = self.download.scheduled.unshareable && self.counts.from_peers > 0;
        if mixed && self.known.digest.is_none() { Err(self.changed()) } else { Ok(()) }
    }

    pub(super) fn handle_scheduler_lost(&mut self) -> Result<(), End> {
        let (held_lease, arrival) = (self.download.scheduled.lease.is_some(), self.arrival());
        self.download.lose_scheduler(arrival);
        self.outbox.clear();
        if let Some(then) = self.download.alone_from.filter(|_| !held_lease) {
            self.right.handle_alone(then);
        }
        Ok(())
    }

    /// How it comes to the next scheduler. What it reads from the origin goes on there, for all; also where it is about to go on
    /// reading, after a stream broke off.
    fn arrival(&self) -> Arrival {
        let scheduled = &self.download.scheduled;
        let reads = scheduled.lease.is_some() || self.swarm.asks_origin();
        let at_origin = reads && !scheduled.unshareable;
        Arrival { held_bytes: self.counts.held, moved: false, at_origin }
    }

    /// Registers anew, in place of the conversation that there is. Its end is no loss of the scheduler.
    pub(super) fn register_again(&mut self) {
        let before = std::mem::take(&mut self.download.scheduled).talk;
        let arrival = Arrival { held_bytes: self.counts.held, ..Arrival::default() };
        self.download.join_after(end_of(before), arrival);
    }

    /// Goes to the scheduler that the task belongs to now.
    pub(super) fn follow_ring(&mut self) {
        let arrival = self.arrival();
        if self.download.follow_ring(arrival) {
            self.outbox.clear();
        }
    }

    pub(super) fn handle_joined(&mut self, joined: Result<Joined, Status>) -> Result<(), End> {
        let arrival = self.arrival();
        let first = self.download.hear_joined(joined, arrival);
        match first.map_err(|reason| End::unavailable(reason, LeaseOutcome::Refused))? {
            Some(first) => {
                self.outbox.clear();
                // What another scheduler said of this is not this one's word.
                self.take_share(Share::default());
                self.take_bridge(None);
                self.handle_packet(first)
            }
            None => Ok(()),
        }
    }
}

/// Ends a conversation, once all that was said on it is heard.
async fn end_of(talk: Option<Conversation>) {
    if let Some(mut talk) = talk {
        talk.end().await;
    }
}
