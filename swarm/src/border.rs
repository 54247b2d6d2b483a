//! [`Border`]: which partners stand on the other side of a border, and what may be asked of them.
//!
//! A zone imports a content once, however many of its hosts want it. Its bridges, a few hosts that the scheduler names, know
//! bridges of the other zones, and each piece is the duty of one of them: the others get it from that one. A bridge that is slow
//! or dies is no reason to stall: what only the other side has for [`PATIENCE`] may be asked by every bridge, and by anybody
//! who knows somebody there after [`LONG_PATIENCE`].

use darter_protocol::{HostId, PieceIndex, PieceSet};
use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// For this long at least, and at most for twice as long, a piece that is across the border is left to the bridge whose duty it is.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);
/// And to all bridges, by those who are none: longer than the scheduler takes to put others in the place of those that were lost.
pub(crate) const LONG_PATIENCE: Duration = Duration::from_secs(5);

/// A host is one of those who bring pieces into their zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bridge {
    number: u32,
    of: NonZeroU32,
}

impl Bridge {
    /// The one of this number, from 0 on, of so many. `None` where there is none of this number.
    pub fn new(number: u32, of: u32) -> Option<Self> {
        NonZeroU32::new(of).filter(|of| number < of.get()).map(|of| Self { number, of })
    }

    /// Whether it is this one that brings the piece.
    fn brings(self, piece: PieceIndex) -> bool {
        piece.get() % self.of == self.number
    }
}

/// Where a partner stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// On this side of all borders.
    Here,
    /// Here, and a bridge like this host. What it brought is not asked of it while others have anything: passed on to a
    /// bridge, which has more of that kind to give, it would come to nobody sooner.
    Bridge,
    /// On the other side.
    Across,
}

#[derive(Debug)]
pub(crate) struct Border {
    across: BTreeSet<HostId>,
    bridges: BTreeSet<HostId>,
    bridge: Option<Bridge>,
    /// What only the other side had when it was looked at last, and what it had then and the time before.
    seen: PieceSet,
    overdue: PieceSet,
    look: Option<Instant>,
}

impl Border {
    pub(crate) fn new(pieces: u32) -> Self {
        let none = || PieceSet::empty(pieces);
        Self {
            across: BTreeSet::new(),
            bridges: BTreeSet::new(),
            bridge: None,
            seen: none(),
            overdue: none(),
            look: None,
        }
    }

    pub(crate) fn is_across(&self, partner: &HostId) -> bool {
        !self.across.is_empty() && self.across.contains(partner)
    }

    pub(crate) fn is_bridge(&self, partner: &HostId) -> bool {
        !self.bridges.is_empty() && self.bridges.contains(partner)
    }

    /// Whether it stands across now and did not, or the other way.
    pub(crate) fn set_side(&mut self, partner: &HostId, side: Side) -> bool {
        let _ = match side {
            Side::Bridge => self.bridges.insert(partner.clone()),
            Side::Here | Side::Across => self.bridges.remove(partner),
        };
        match side {
            Side::Across => self.across.insert(partner.clone()),
            Side::Here | Side::Bridge => self.across.remove(partner),
        }
    }

    pub(crate) fn set_bridge(&mut self, bridge: Option<Bridge>) {
        let before = std::mem::replace(&mut self.bridge, bridge);
        // Who becomes one looks sooner than it would have. Who is one still, under another number, looks when it would have: what the other
        // side alone has is the same, and where bridges come and go each second it would never be time.
        if before.is_some() != bridge.is_some() {
            self.look = None;
        }
    }

    /// Whether there may be anything to ask of the other side.
    pub(crate) fn may_ask(&self) -> bool {
        self.bridge.is_some() || !self.overdue.is_empty()
    }

    /// Whether this host may ask the other side for what nobody on this side has.
    pub(crate) fn brings(&self, piece: PieceIndex) -> bool {
        self.bridge.is_some_and(|bridge| bridge.brings(piece)) || self.overdue.contains(piece)
    }

    /// When to look again what the other side alone has.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.look.filter(|_| !self.across.is_empty())
    }

    /// Arms the clock.
    pub(crate) fn wind(&mut self, now: Instant) {
        if self.look.is_none() && !self.across.is_empty() {
            self.look = Some(now + if self.bridge.is_some() { PATIENCE } else { LONG_PATIENCE });
        }
    }

    /// Whether it is time to look at what the other side alone has: these.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.look.is_some_and(|look| look <= now)
    }

    pub(crate) fn handle_far(&mut self, now: Instant, far: PieceSet) {
        self.overdue = PieceSet::empty(far.pieces());
        for piece in far.common(&self.seen) {
            self.overdue.insert(piece);
        }
        self.seen = far;
        self.look = None;
        self.wind(now);
    }
}
