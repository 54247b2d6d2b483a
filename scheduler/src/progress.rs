//! What counts as progress of who has the lease: what brings others further. What is known already does not, however often it is said,
//! and bytes alone only as far as pieces come of them.

use crate::host::HostKey;
use crate::message::Content;
use crate::task::Task;
use crate::world::Cx;
use darter_protocol::PieceLayout;
use std::time::Duration;

/// Bytes from the origin keep a lease for as long as pieces come of them at this rate, and no longer: a holder that says each second
/// that there is one byte more, and has no piece for anybody, would otherwise have it for ever.
const SLOWEST_BYTES_PER_SECOND: u64 = 8 << 10;

/// So many pieces may grow at the same time, and be complete at the same time (`RUNS` in `darter_swarm`).
const PIECES_AT_ONCE: u64 = 4;

/// And at least for so long: small pieces wait for an origin as long as large ones.
const SOONEST_PIECE: Duration = Duration::from_secs(60);

/// So often the content's bytes may come from the origin under one lease: what broke off in the middle of a block is read again.
const READ_AGAIN: u64 = 2;

/// How long the next piece of the content may take.
pub(crate) fn piece_time(content: Option<&Content>) -> Duration {
    let piece = content.map_or(PieceLayout::MIN_PIECE_SIZE, |content| piece_bytes(&content.layout));
    Duration::from_secs(piece * PIECES_AT_ONCE / SLOWEST_BYTES_PER_SECOND).max(SOONEST_PIECE)
}

/// Bytes of its largest piece.
fn piece_bytes(layout: &PieceLayout) -> u64 {
    layout.piece_size().min(layout.length())
}

impl Task {
    /// The peer has so many bytes from the origin under its lease: progress if they are more than before and may be true, and if
    /// pieces come of them.
    pub(crate) fn hear_origin_bytes(&mut self, cx: &mut Cx<'_>, key: HostKey, bytes: u64) {
        let content = self.content.as_ref();
        let most = content.map_or(u64::MAX, |content| content.layout.length().saturating_mul(READ_AGAIN));
        let lease = self.lease.as_mut().filter(|lease| lease.holder == key);
        let Some(lease) = lease.filter(|lease| bytes > lease.origin_bytes && bytes <= most) else { return };
        lease.origin_bytes = bytes;
        if cx.now < lease.piece_by {
            self.progress(cx, key);
        }
    }

    /// The holder has a piece more than when that was so last, whoever gave it: it is not by its bytes alone that it gets further. A
    /// piece whose hash is known shows in nothing else, as where one who held everything gave the list of all, and is gone.
    pub(crate) fn hear_held_under_lease(&mut self, cx: &mut Cx<'_>, key: HostKey, held: u64) {
        let Some(layout) = self.content.as_ref().map(|content| content.layout) else { return };
        let held = held.min(layout.length());
        let lease = self.lease.as_mut().filter(|lease| lease.holder == key && lease.held < held);
        let Some(lease) = lease else { return };
        if held - lease.held >= piece_bytes(&layout) || held == layout.length() {
            (lease.held, lease.piece_by) = (held, cx.now + piece_time(self.content.as_ref()));
        }
    }

    /// The peer has said what the content is, or has brought a piece of it, if it is the holder: that is progress, and the next piece has
    /// its time.
    pub(crate) fn further(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        let piece_by = cx.now + piece_time(self.content.as_ref());
        if let Some(lease) = self.lease.as_mut().filter(|lease| lease.holder == key) {
            lease.piece_by = piece_by;
            self.progress(cx, key);
        }
    }
}
