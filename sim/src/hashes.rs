//! What the pieces hash to, from a daemon that holds all of them: for whoever comes when nobody downloads any more, and the
//! scheduler remembers only the root.

use crate::net::HostNo;
use crate::node::{Message, Node, Out, host_id, host_no};
use darter_protocol::scheduler::FailureReason;
use darter_protocol::{HostId, PieceHash, Root, hash};
use std::time::Instant;

/// What is known of the whole, and who was asked for the parts.
#[derive(Debug, Default)]
pub(crate) struct Proof {
    root: Option<Root>,
    asked: Option<HostId>,
}

impl Node {
    pub(crate) fn handle_root(&mut self, root: &[u8]) {
        self.proof.root = Root::try_from(root).ok().or(self.proof.root);
    }

    /// As in `p2p`: asks one that holds everything, and the next one when that one goes.
    pub(crate) fn ask_hashes(&mut self) {
        if self.proof.root.is_none()
            || self.proof.asked.is_some()
            || self.is_done()
            || self.hashes.iter().all(Option::is_some)
        {
            return;
        }
        if let Some(holder) = self.complete_neighbour() {
            self.out.push(Out::To(host_no(&holder), Message::AskHashes));
            self.proof.asked = Some(holder);
        }
    }

    /// All hashes, when they are known; none otherwise.
    pub(crate) fn tell_hashes(&mut self, to: HostNo) {
        let all: Option<Vec<PieceHash>> = self.hashes.iter().copied().collect();
        self.out.push(Out::To(to, Message::Hashes(all.unwrap_or_default())));
    }

    pub(crate) fn handle_hashes(&mut self, now: Instant, from: HostNo, list: &[PieceHash]) {
        let proven =
            list.len() == self.hashes.len() && Some(hash::root(&self.layout, list)) == self.proof.root;
        if !proven {
            self.drop_partner(now, &host_id(from), FailureReason::NotHeld);
            return;
        }
        for (piece, hash) in self.layout.iter().zip(list) {
            self.hashes[piece.as_usize()].get_or_insert(*hash);
            self.swarm.handle_hash(piece);
        }
    }

    /// Whoever was asked is gone.
    pub(crate) fn forget_holder(&mut self, id: &HostId) {
        if self.proof.asked.as_ref() == Some(id) {
            self.proof.asked = None;
        }
    }
}
