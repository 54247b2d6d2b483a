//! What the pieces must hash to: learned from the scheduler, or from a holder's list that the root proves.

use super::Transfer;
use crate::peer::PeerError;
use darter_protocol::{HostId, PieceHash, PieceIndex, Root, hash};

/// What the pieces hash to.
pub(super) struct Hashes {
    pub(super) pieces: Vec<Option<PieceHash>>,
    /// What the whole hashes to, as the scheduler says.
    pub(super) root: Option<Root>,
    /// The partner that was asked for the whole list.
    pub(super) asked: Option<HostId>,
}

impl Transfer {
    /// Learns the hashes of all pieces as soon as they can be proven: from the root alone, or from a holder's list.
    pub(super) fn ask_hashes(&mut self) {
        let Some(root) = self.hashes.root else { return };
        if self.hashes.asked.is_some() || self.hashes.pieces.iter().all(Option::is_some) {
            return;
        }
        if self.layout.pieces() == 1 {
            self.learn_hash(PieceIndex::new(0), PieceHash::from(*root.as_bytes()));
            return;
        }
        let holder = self.neighbours.iter().find(|(_, neighbour)| neighbour.complete);
        if let Some((host, neighbour)) = holder.map(|(host, neighbour)| (host.clone(), neighbour.address)) {
            self.hashes.asked = Some(host.clone());
            self.spawn(self.bench.clone().fetch_hashes(host, neighbour));
        }
    }

    pub(super) fn handle_hash_list(&mut self, partner: &HostId, result: Result<Vec<PieceHash>, PeerError>) {
        let root = self.hashes.root;
        let proven = result.and_then(|list| match Some(hash::root(&self.layout, &list)) == root {
            true => Ok(list),
            false => Err(PeerError::Corrupt),
        });
        match proven {
            Ok(list) => self.layout.iter().zip(list).for_each(|(piece, hash)| self.learn_hash(piece, hash)),
            Err(error) => self.drop_partner(partner, &error),
        }
    }

    pub(super) fn learn_hash(&mut self, piece: PieceIndex, hash: PieceHash) {
        if let Some(known) = self.hashes.pieces.get_mut(piece.as_usize()) {
            known.get_or_insert(hash);
            self.swarm.handle_hash(piece);
        }
    }
}
