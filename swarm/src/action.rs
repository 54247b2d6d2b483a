//! What a [`Swarm`](crate::Swarm) tells its driver to do.

use darter_protocol::{HostId, PieceIndex};
use std::ops::Range;

/// A run of blocks that is being fetched from the origin in one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunId(pub(crate) u64);

/// What the driver shall do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ask `partner` for `blocks` of `piece`. Each ends with exactly one of
    /// [`Swarm::handle_piece`](crate::Swarm::handle_piece), [`handle_blocks`](crate::Swarm::handle_blocks),
    /// [`handle_busy`](crate::Swarm::handle_busy) and [`handle_fetch_failed`](crate::Swarm::handle_fetch_failed).
    Fetch {
        /// Whom to ask.
        partner: HostId,
        /// For what.
        piece: PieceIndex,
        /// For which of its blocks: all, or what is missing of those that are wanted.
        blocks: Range<u32>,
        /// Another is fetching the piece already, and may write it: what comes is kept in memory until it is known to be
        /// right.
        spare: bool,
        /// A reader waits for some of it: what can be proven of it before all has come is of use.
        awaited: bool,
        /// The partner is itself receiving the piece: it passes on what it has of it, as it comes.
        relayed: bool,
        /// The partner keeps a place for it; see [`Uploads::handle_asked`](crate::Uploads::handle_asked).
        called: bool,
    },
    /// Stop that fetch: the piece is here, or comes from somewhere else. It ends as any other.
    Cancel {
        /// Who was asked.
        partner: HostId,
        /// For what.
        piece: PieceIndex,
    },
    /// The place that `partner` keeps is not needed.
    Pass {
        /// Who keeps it.
        partner: HostId,
    },
    /// `partner` is silent or far slower than others: it is to be replaced. Its fetches have been cancelled.
    Replace {
        /// Whom.
        partner: HostId,
    },
    /// Fetch these blocks from the origin, in order.
    FetchOrigin {
        /// The name of the run.
        run: RunId,
        /// First block, and the one after the last.
        blocks: Range<u32>,
    },
    /// The run is to end earlier than it was started for. When it has gone further than that already, the driver says so
    /// at once: [`Swarm::handle_overrun`](crate::Swarm::handle_overrun).
    ShortenOrigin {
        /// Which run.
        run: RunId,
        /// The block before which it is to end.
        end: u32,
    },
    /// The run is to go on further than it was started for, if it has not come to its end yet.
    ExtendOrigin {
        /// Which run.
        run: RunId,
        /// The block before which it is to end.
        end: u32,
    },
    /// The run must stop: the right to go to the origin is gone. Its blocks are its own until it has ended.
    StopOrigin {
        /// Which run.
        run: RunId,
    },
}

/// The right to go to the origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MayAsk {
    /// Not at all: runs stop.
    No,
    /// Runs go on, but no new one starts.
    Later,
    /// A run may start now.
    Now,
}
