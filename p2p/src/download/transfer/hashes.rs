//! What the pieces must hash to: learned from the scheduler, or from a holder's list that the root proves. And what blocks
//! of pieces that are not complete hash to, until these are.

use super::Transfer;
use crate::peer::PeerError;
use darter_protocol::{BlockHash, HostId, PieceHash, PieceIndex, PieceLayout, Root, hash};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// What the pieces hash to.
#[derive(Default)]
pub(super) struct Hashes {
    pub(super) pieces: Vec<Option<PieceHash>>,
    /// What the whole hashes to, as the scheduler says.
    pub(super) root: Option<Root>,
    /// The partner that was asked for the whole list.
    pub(super) asked: Option<HostId>,
    /// Blocks that are there, of pieces that are not.
    pub(super) blocks: BTreeMap<u32, BlockHash>,
    /// Of these, those that the journal does not name yet.
    pub(super) unnoted: BTreeSet<u32>,
    /// What all blocks of some pieces hash to, as was proven: those that were asked for in part.
    pub(super) lists: HashMap<PieceIndex, Arc<[BlockHash]>>,
}

/// Lists of blocks' hashes that one download remembers, of a few KiB each. Any other can be asked for again.
const MAX_LISTS: usize = 256;

impl Hashes {
    /// `blocks` of one piece are there. Gives what the piece and its blocks hash to, if that was the last of it.
    pub(super) fn add(
        &mut self,
        layout: &PieceLayout,
        blocks: &[(u32, BlockHash)],
    ) -> Option<(PieceHash, Arc<[BlockHash]>)> {
        let piece = layout.piece_of(blocks.first()?.0);
        self.blocks.extend(blocks.iter().copied());
        self.unnoted.extend(blocks.iter().map(|(block, _)| *block));
        let all = layout.blocks_of(piece);
        let hashes: Vec<BlockHash> = self.blocks.range(all.clone()).map(|(_, hash)| *hash).collect();
        if hashes.len() < all.len() {
            return None;
        }
        for block in all {
            self.blocks.remove(&block);
            self.unnoted.remove(&block);
        }
        self.lists.remove(&piece);
        Some((hash::piece(layout, &hashes), hashes.into()))
    }

    pub(super) fn remember(&mut self, piece: PieceIndex, list: Arc<[BlockHash]>) {
        if self.lists.len() == MAX_LISTS
            && let Some(other) = self.lists.keys().next().copied()
        {
            self.lists.remove(&other);
        }
        self.lists.insert(piece, list);
    }
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
