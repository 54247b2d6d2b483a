//! [`Hashes`]: the hashes of a task's pieces, in the order in which they became known.
//!
//! Invariant: `order` names each piece that has a hash once. So a peer that was sent the first `n` of `order` is told the
//! news by sending it the rest, and needs no list of its own.

use crate::host::HostKey;
use darter_protocol::hash::root;
use darter_protocol::scheduler as proto;
use darter_protocol::{PieceHash, PieceIndex, PieceLayout, Root};

#[derive(Debug, Default)]
pub(crate) struct Hashes {
    by_index: Vec<Option<PieceHash>>,
    order: Vec<(PieceIndex, HostKey)>,
}

/// What became of a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Insert {
    New,
    Known,
    /// Another hash is known for this piece: somebody saw other content.
    Differs,
}

impl Hashes {
    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    /// Takes the hash of a piece of `layout`, which must be the same at every call.
    pub(crate) fn insert(
        &mut self,
        layout: &PieceLayout,
        piece: PieceIndex,
        hash: PieceHash,
        from: HostKey,
    ) -> Insert {
        self.by_index.resize(layout.pieces() as usize, None);
        match &mut self.by_index[piece.as_usize()] {
            Some(known) if *known == hash => Insert::Known,
            Some(_) => Insert::Differs,
            place => {
                *place = Some(hash);
                self.order.push((piece, from));
                Insert::New
            }
        }
    }

    /// What `peer` is to be sent that was sent the first `sent`: all but what it reported itself.
    pub(crate) fn since(&self, sent: usize, peer: HostKey) -> Vec<proto::PieceHash> {
        let news = self.order.get(sent..).unwrap_or_default();
        news.iter()
            .filter(|(_, from)| *from != peer)
            .filter_map(|(piece, _)| {
                let hash = self.by_index[piece.as_usize()]?;
                Some(proto::PieceHash { index: piece.get(), hash: hash.as_bytes().to_vec().into() })
            })
            .collect()
    }

    /// The root that the hashes give, once there is one for every piece of `layout`.
    pub(crate) fn root(&self, layout: &PieceLayout) -> Option<Root> {
        let all: Vec<PieceHash> = self.by_index.iter().copied().collect::<Option<_>>()?;
        (all.len() == layout.pieces() as usize && !all.is_empty()).then(|| root(layout, &all))
    }
}
