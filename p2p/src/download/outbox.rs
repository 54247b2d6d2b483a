//! [`Outbox`]: what the scheduler is still to be told. Reports are merged until they go, so that a thousand pieces are not
//! a thousand messages.

use crate::schedule::{BEAT, Conversation};
use darter_protocol::scheduler::{
    Content, FailureReason, LeaseOutcome, LeaseReturned, PartnerFailed, PartnerServed,
    PieceHash as HashMessage, PieceResult,
};
use darter_protocol::{HostId, PieceHash, PieceIndex};
use std::time::Duration;
use tokio::time::Instant;

/// How far apart reports of progress are. The first goes at once: who has the first bytes of some content to give is named to
/// others only when the scheduler knows.
const MERGE_FOR: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
pub(super) struct Outbox {
    report: PieceResult,
    /// When it has to go; `None` while there is nothing to tell.
    due: Option<Instant>,
    /// When the last one went.
    last: Option<Instant>,
}

impl Outbox {
    /// How far the download is: it can wait for more of its kind.
    pub(super) fn progress(&mut self, now: Instant, held_bytes: u64, origin_bytes: u64) {
        self.report.held_bytes = held_bytes;
        self.report.origin_bytes = origin_bytes;
        let due = self.last.map_or(now, |last| now.max(last + MERGE_FOR));
        self.due.get_or_insert(due);
    }

    /// A piece that others may now ask for.
    pub(super) fn vouch(&mut self, piece: PieceIndex, hash: &PieceHash) {
        let hash = hash.as_bytes().to_vec().into();
        self.report.from_origin.push(HashMessage { index: piece.get(), hash });
    }

    /// What the content is. Others wait for this.
    pub(super) fn content(&mut self, now: Instant, content: Content) {
        self.report.content = Some(content);
        self.due = Some(now);
    }

    /// A partner gave a piece, which is verified. It goes with what is reported next.
    pub(super) fn served(&mut self, partner: &HostId, bytes: u64) {
        let served = &mut self.report.served;
        match served.iter_mut().find(|served| served.host_id == partner.as_str()) {
            Some(served) => (served.pieces, served.bytes) = (served.pieces + 1, served.bytes + bytes),
            None => {
                let host_id = partner.as_str().to_owned();
                served.push(PartnerServed { host_id, pieces: 1, bytes });
            }
        }
    }

    /// A partner that must be replaced.
    pub(super) fn failed(&mut self, now: Instant, partner: &HostId, reason: FailureReason) {
        let host_id = partner.as_str().to_owned();
        self.report.failed.push(PartnerFailed { host_id, reason: reason.into() });
        self.due = Some(now);
    }

    /// The lease goes back. Others wait for it.
    pub(super) fn return_lease(&mut self, now: Instant, lease_id: u64, outcome: LeaseOutcome) {
        self.report.lease_returned = Some(LeaseReturned { lease_id, outcome: outcome.into() });
        self.due = Some(now);
    }

    /// Lets what there is wait no longer.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.due = self.due.map(|due| due.min(now));
    }

    /// When there is something to send: with a lease, also that this daemon is there.
    pub(super) fn due(&self, has_lease: bool) -> Option<Instant> {
        let beat = self.last.filter(|_| has_lease).map(|last| last + BEAT);
        self.due.into_iter().chain(beat).min()
    }

    /// Sends what is due, and how many uploads are free. What does not fit into the conversation's queue stays, and waits for more to go with it.
    pub(super) fn flush(
        &mut self,
        now: Instant,
        (talk, has_lease): (&Conversation, bool),
        free_uploads: impl FnOnce() -> u32,
    ) {
        if self.due(has_lease).is_none_or(|due| due > now) {
            return;
        }
        self.report.free_uploads = Some(free_uploads());
        let counts = self.counts();
        match talk.report(Box::new(std::mem::replace(&mut self.report, counts))) {
            Ok(()) => (self.due, self.last) = (None, Some(now)),
            Err(report) => {
                self.report = *report;
                self.due = Some(now + MERGE_FOR);
            }
        }
    }

    /// How far the download is, as it was said last.
    pub(super) fn counts(&self) -> PieceResult {
        let PieceResult { held_bytes, origin_bytes, .. } = self.report;
        PieceResult { held_bytes, origin_bytes, ..PieceResult::default() }
    }

    /// Forgets everything: the scheduler that it was meant for is gone.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_holds_a_lease_has_something_to_say_each_second() {
        let now = Instant::now();
        let mut outbox = Outbox { last: Some(now), ..Outbox::default() };
        assert_eq!((outbox.due(false), outbox.due(true)), (None, Some(now + BEAT)));
        outbox.progress(now, 1, 1);
        assert_eq!(outbox.due(true), Some(now + MERGE_FOR));
        assert_eq!(Outbox::default().due(true), None, "what it has begins with its content");
    }
}
