//! [`Partner`]: what another daemon has, and how it stands with this one; [`Fetch`]: a piece, or blocks of one, that were asked of it.

use darter_protocol::{HostId, PieceIndex, PieceSet};
use std::ops::Range;
use std::time::{Duration, Instant};

/// A partner that has said to wait, and then nothing for this long, is asked again: its word to come was lost.
pub(crate) const ASK_AGAIN: Duration = Duration::from_secs(5);

/// A partner that has said to come for something else than what is missing here is asked again after this: at once, the two would
/// go on with it for as long as it has something else to give.
pub(crate) const ASK_SOON: Duration = Duration::from_millis(100);

/// After so many of [`Partner::vain_relays`], what it says that it is receiving is not listened to any more. None of them is its fault
/// for certain, and so many in a row are still no use.
pub(crate) const VAIN_RELAYS: u8 = 8;

#[derive(Debug)]
pub(crate) struct Partner {
    pub(crate) have: PieceSet,
    /// What it is receiving, and passes on as it comes. None of what it has.
    pub(crate) coming: PieceSet,
    /// Fetches from it that have not ended, cancelled ones too.
    pub(crate) in_flight: u32,
    pub(crate) standing: Standing,
    /// How often it has said to come.
    pub(crate) comes: u32,
    /// The last time was of no use.
    pub(crate) passed: bool,
    /// Fetches in a row that somebody else had to bring in its place.
    pub(crate) strikes: u8,
    /// Pieces in a row that it was itself receiving, and that did not come by it.
    pub(crate) vain_relays: u8,
}

/// Whether a partner may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Free,
    /// It has put us into its line, or is not trusted to answer before then.
    Waiting {
        until: Instant,
    },
    /// It keeps a place, and would rather give this piece.
    Invited {
        best: Option<PieceIndex>,
    },
}

/// A piece, or blocks of one, that were asked of a partner.
#[derive(Debug)]
pub(crate) struct Fetch {
    pub(crate) partner: HostId,
    pub(crate) piece: PieceIndex,
    pub(crate) blocks: Range<u32>,
    /// The partner was itself receiving the piece when it was asked.
    pub(crate) relayed: bool,
    /// Beside another fetch of the same piece.
    pub(crate) spare: bool,
    pub(crate) asked: Instant,
    /// How often the partner had said to come by then.
    pub(crate) comes: u32,
    /// When the last byte came, as far as was looked.
    pub(crate) alive: Instant,
    /// For how long this host itself has held its bytes back so far.
    pub(crate) held: Duration,
    /// When to look again.
    pub(crate) look: Instant,
    pub(crate) pace: Pace,
    pub(crate) cancelled: bool,
    /// The partner is one no more: others say that it is gone.
    pub(crate) forsaken: bool,
}

/// How a fetch is going.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pace {
    Well,
    /// It takes much longer than others did.
    Slow,
    /// Nothing has come for a while.
    Silent,
}

impl Partner {
    pub(crate) fn new(pieces: u32, in_flight: u32) -> Self {
        Self {
            have: PieceSet::empty(pieces),
            coming: PieceSet::empty(pieces),
            in_flight,
            standing: Standing::Free,
            comes: 0,
            passed: false,
            strikes: 0,
            vain_relays: 0,
        }
    }
}
