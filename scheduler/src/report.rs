//! What a peer's report says: content, bytes and hashes from the origin, bytes held. Failures of partners are heard in
//! `mesh.rs`, a lease given back in `lease.rs`.

use crate::hashes::{Hashes, Insert};
use crate::host::HostKey;
use crate::message::{Content, Report, Served};
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

    /// The first content wins. A holder of the lease that was answered differently replaces it only where nobody else has
    /// a byte of it; otherwise the two must not mix, and it fetches for itself, outside the task.
    fn hear_content(&mut self, cx: &mut Cx<'_>, key: HostKey, content: Content) {
        if self.download(key).is_none_or(|download| !download.meshes()) {
            return;
        }
        let layout = content.layout;
        let adopted = self.adopt(cx, key, content.clone());
        if adopted == Ok(true) {
            self.further(cx, key);
        } else if adopted.is_ok() {
            // What was known already brings nobody further, however often it is said.
        } else if !self.has_lease(key) {
            cx.world.counts.ignored += 1;
        } else if self.content.as_ref().is_some_and(|known| known.layout != layout)
            && self.alone_has_bytes(key)
            && self.replaces_first(key)
        {
            self.replace_content(cx, key, content);
            self.further(cx, key);
        } else {
            tracing::debug!(task = %cx.task, "the origin answers with other content than before");
            self.go_alone(cx, key);
            self.pass_on(cx);
        }
    }

    /// The reporter's own bytes are of the content before, too.
    fn replace_content(&mut self, cx: &mut Cx<'_>, key: HostKey, content: Content) {
        self.content = Some(content);
        self.hashes = Hashes::default();
        for (peer, download) in self.downloads_mut() {
            (download.held, download.hashes_sent) = (0, 0);
            download.news.content |= peer != key;
        }
        self.index(key);
        self.wake_all(cx, Some(key));
    }

    /// Whether the holder of the lease says for the first time under it that the content is another one: who says so each second
    /// would have it for ever.
    fn replaces_first(&mut self, key: HostKey) -> bool {
        let lease = self.lease.as_mut().filter(|lease| lease.holder == key);
        lease.is_some_and(|lease| !std::mem::replace(&mut lease.replaced, true))
    }

    fn alone_has_bytes(&self, key: HostKey) -> bool {
        self.complete == 0 && self.suppliers.iter().all(|supplier| supplier == key)
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
            Some(partner) => cx.world.praise(cx.now, partner, served.pieces, served.bytes),
            None => cx.world.counts.ignored += 1,
        }
    }

    /// Takes in what an origin or a holder says of the content, and tells everybody but `from` what is new. Returns whether anything is.
    ///
    /// # Errors
    /// When it is not the content that is known, by length, root or hashes. Nothing has changed then.
    pub(crate) fn adopt(&mut self, cx: &mut Cx<'_>, from: HostKey, content: Content) -> Result<bool, Refusal> {
        match &mut self.content {
            None => self.content = Some(content),
            Some(known) if known.layout != content.layout => return Err(Refusal::OtherContent),
            Some(known) => match (known.root, content.root) {
                (Some(known), Some(root)) if known != root => return Err(Refusal::OtherContent),
                (None, Some(root)) => {
                    if self.hashes.root(&known.layout).is_some_and(|of_pieces| of_pieces != root) {
                        return Err(Refusal::OtherContent);
                    }
                    known.root = Some(root);
                }
                _ => return Ok(false),
            },
        }
        self.downloads_mut().for_each(|(peer, download)| download.news.content |= peer != from);
        self.wake_all(cx, Some(from));
        // Who has every byte shows once the length is known.
        let keys: Vec<HostKey> = self.suppliers.iter().collect();
        for key in keys {
            let was_source = self.is_source(key);
            self.index(key);
            if !was_source && self.is_source(key) {
                self.offer(cx, key);
            }
        }
        Ok(true)
    }
}
