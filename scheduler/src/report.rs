//! What a peer's report says: hashes of what came from the origin, bytes held. What the content is is heard in `belief.rs`, bytes from the
//! origin in `progress.rs`, failures of partners in `mesh.rs`, a lease given back in `lease.rs`.

use crate::hashes::Insert;
use crate::host::HostKey;
use crate::message::{Report, Served};
use crate::refusal::Refusal;
use crate::task::Task;
use crate::world::Cx;
use darter_protocol::PieceHash;

impl Task {
    /// The peer's report. In the order of the fields: what the origin sent counts before the lease is given back.
    ///
    /// # Errors
    /// When it names a piece that does not exist; what came before that counts.
    pub(crate) fn report(&mut self, cx: &mut Cx<'_>, key: HostKey, report: Report) -> Result<(), Refusal> {
        self.heard(cx, key);
        let heard = self.hear(cx, key, report);
        self.heard_out(cx, key);
        heard
    }

    fn hear(&mut self, cx: &mut Cx<'_>, key: HostKey, report: Report) -> Result<(), Refusal> {
        if let Some(life) = cx.world.hosts.life_mut(key) {
            life.uploads.hear(report.free_uploads);
        }
        if let Some(content) = report.content {
            self.hear_content(cx, key, content);
        }
        self.hear_origin_bytes(cx, key, report.origin_bytes);
        self.hear_hashes(cx, key, report.from_origin)?;
        self.hear_held(cx, key, report.held_bytes);
        for served in report.served {
            self.hear_served(cx, key, &served);
        }
        for (host, reason) in report.failed {
            self.hear_failure(cx, key, &host, reason);
        }
        if let Some((lease, outcome)) = report.lease_returned {
            self.hear_lease_returned(cx, key, lease, outcome);
        }
        Ok(())
    }

    /// Only the holder of the lease may say what came from the origin: everybody checks bytes by these hashes.
    fn hear_hashes(
        &mut self,
        cx: &mut Cx<'_>,
        key: HostKey,
        hashes: Vec<(u32, PieceHash)>,
    ) -> Result<(), Refusal> {
        if hashes.is_empty() {
            return Ok(());
        }
        if !self.has_lease(key) {
            cx.world.counts.ignored += hashes.len() as u64;
            return Ok(());
        }
        let layout = self.content.as_ref().ok_or(Refusal::NoSuchPiece)?.layout;
        let known = self.hashes.len();
        for (index, hash) in hashes {
            let piece = layout.piece(index).ok_or(Refusal::NoSuchPiece)?;
            if self.hashes.insert(&layout, piece, hash, key) == Insert::Differs {
                // As with a different length: this peer sees other content.
                tracing::debug!(task = %cx.task, piece = index, "the origin sends other bytes than before");
                self.go_alone(cx, key);
                self.pass_on(cx);
                break;
            }
        }
        if self.hashes.len() > known {
            self.further(cx, key);
        }
        self.wake_all(cx, Some(key));
        Ok(())
    }

    fn hear_held(&mut self, cx: &mut Cx<'_>, key: HostKey, bytes: u64) {
        let (supplied, was_source) = (self.supplies(key), self.is_source(key));
        let Some(download) = self.download_mut(key) else { return };
        download.held = download.held.max(bytes);
        self.hear_held_under_lease(cx, key, bytes);
        self.index(key);
        if self.supplies(key) && (!supplied || !was_source && self.is_source(key)) {
            self.offer(cx, key);
        }
    }

    /// Only of partners that it has: nobody vouches for strangers.
    fn hear_served(&mut self, cx: &mut Cx<'_>, key: HostKey, served: &Served) {
        match cx.world.hosts.key(&served.host).filter(|partner| self.named(key, *partner)) {
            Some(partner) => {
                cx.world.praise(cx.now, partner, served.pieces, served.bytes);
                if served.pieces > 0 {
                    self.hear_brought(cx, key, partner);
                }
            }
            None => cx.world.counts.ignored += 1,
        }
    }
}
