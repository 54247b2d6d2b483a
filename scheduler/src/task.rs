//! [`Task`]: one task's peers and content, and what each event does to them.
//!
//! Invariants, which the tests check after every event (`check.rs`):
//! - A host is at most one peer of a task, in exactly one role, and only while its life line is open.
//! - When two peers download, either both name each other as partners or neither does. A partner is a peer, is not struck,
//!   and has not failed the one that has it. Whoever may use a source has one among its partners.
//! - `suppliers`, `sources`, `lonely`, `hungry`, `sourceless`, every peer's `named_to` and the counts follow from the
//!   peers' roles and partners. A peer that is struck is no supplier.
//! - A peer that downloads and has no partner exists only where no supplier with room for it does.
//! - At most one lease. While no lease lives, no peer that could be told waits for one without a source (`lease.rs`).
//!
//! The parts: here, roles, content and reports; `mesh.rs`, who is named to whom; `lease.rs`, who may go to the origin.

use crate::bag::Bag;
use crate::hashes::{Hashes, Insert};
use crate::host::{ByHost, HostKey, HostSet, Hosts};
use crate::lease::Lease;
use crate::message::{Content, Report};
use crate::peer::{Download, Named, Peer, Role, Standing};
use crate::policy::PARTNERS;
use crate::refusal::Refusal;
use crate::stream::StreamId;
use crate::world::{Cx, Timer};
use darter_protocol::scheduler as proto;
use darter_protocol::{HostId, PieceHash};
use std::collections::BTreeSet;
use std::time::Duration;

/// How long a peer may be registered without a stream. It opens one right after it registered, or needs none because the
/// content is one request to a holder away; nobody takes a minute for either.
pub(crate) const SILENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(crate) struct Task {
    pub(crate) content: Option<Content>,
    pub(crate) hashes: Hashes,
    pub(crate) peers: ByHost<Peer>,
    /// Peers with bytes to give.
    pub(crate) suppliers: Bag,
    /// Those of them that have every byte.
    pub(crate) sources: Bag,
    /// Peers that download, would have partners, and have none.
    pub(crate) lonely: Bag,
    /// Those that have some, and fewer than they may.
    pub(crate) hungry: Bag,
    /// Those that have no source among them, be they none or many.
    pub(crate) sourceless: Bag,
    /// Hosts that sent corrupt bytes of this task. By name, so that a new life does not wash them clean.
    pub(crate) struck: BTreeSet<HostId>,
    pub(crate) lease: Option<Lease>,
    /// The last lease ended before its holder was done: whoever gets the next one takes over.
    pub(crate) abandoned: bool,
    /// Leases in a row that ended without any progress.
    pub(crate) stalls: u32,
    /// The origin's answer cannot be shared: everybody goes there for itself.
    pub(crate) unshareable: bool,
    pub(crate) tickets: u64,
    pub(crate) complete: usize,
    pub(crate) downloading: usize,
}

// === events ===

impl Task {
    /// The host wants the task: it begins anew, whatever it was before. Returns what it is told at once.
    pub(crate) fn register(&mut self, cx: &mut Cx<'_>, key: HostKey, held: u64) -> proto::PeerPacket {
        self.leave(cx, key, Some(Refusal::Replaced));
        let ticket = self.ticket();
        let silent_until = cx.now + SILENCE;
        let mut download = Download::new(held, ticket);
        download.silent_until = Some(silent_until);
        cx.world.timers.insert((silent_until, Timer::Silent(cx.task, key)));
        self.set_role(cx, key, Some(Role::Downloading(Box::new(download))));
        if self.unshareable {
            self.go_alone(cx, key);
        } else {
            self.consider(cx, key);
        }
        self.connect(cx, key);
        if self.supplies(key) {
            self.offer(cx, key);
        }
        let mut packet = self.take(&cx.world.hosts, key).unwrap_or_default();
        // The answer to a registration has one way to say "go to the origin": a lease, though nobody waits for it.
        if packet.unshareable {
            packet.lease = Some(proto::Lease { id: cx.world.lease_id() });
        }
        packet
    }

    /// The peer's stream is open.
    pub(crate) fn open(&mut self, cx: &mut Cx<'_>, key: HostKey, stream: StreamId) -> Result<(), Refusal> {
        let lease = self.lease.as_ref().filter(|lease| lease.holder == key).map(|lease| lease.id);
        let download = self.download_mut(key).ok_or(Refusal::NotRegistered)?;
        if let Some(before) = download.stream.replace(stream) {
            download.repeat_all(lease);
            cx.world.streams.end(before, Some(Refusal::Replaced));
        }
        if let Some(at) = download.silent_until.take() {
            cx.world.timers.remove(&(at, Timer::Silent(cx.task, key)));
        }
        self.consider(cx, key);
        cx.world.streams.wake(stream);
        Ok(())
    }

    /// The peer's stream has ended without a word on how the download ended.
    pub(crate) fn closed(&mut self, cx: &mut Cx<'_>, key: HostKey, stream: StreamId) {
        if self.download(key).is_some_and(|download| download.stream == Some(stream)) {
            self.stop(cx, key);
        }
    }

    /// The peer never opened its stream.
    pub(crate) fn silent(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        if let Some(download) = self.download_mut(key) {
            download.silent_until = None;
            self.stop(cx, key);
        }
    }

    /// The peer's report. In the order of the fields: what the origin sent counts before the lease is given back.
    ///
    /// # Errors
    /// When it names a piece that does not exist; what came before that counts.
    pub(crate) fn report(&mut self, cx: &mut Cx<'_>, key: HostKey, report: Report) -> Result<(), Refusal> {
        if let Some(content) = report.content {
            self.hear_content(cx, key, content);
        }
        self.hear_origin_bytes(cx, key, report.origin_bytes);
        self.hear_hashes(cx, key, report.from_origin)?;
        self.hear_held(cx, key, report.held_bytes);
        for (host, reason) in report.failed {
            self.hear_failure(cx, key, &host, reason);
        }
        if let Some((lease, outcome)) = report.lease_returned {
            self.hear_lease_returned(cx, key, lease, outcome);
        }
        Ok(())
    }

    /// The host holds the whole content, whatever it was before.
    ///
    /// # Errors
    /// When that content is not this task's.
    pub(crate) fn holds(&mut self, cx: &mut Cx<'_>, key: HostKey, content: Content) -> Result<(), Refusal> {
        self.adopt(cx, key, content)?;
        let had_lease = self.surrender(cx, key, Standing::Satisfied);
        self.set_role(cx, key, Some(Role::Complete));
        self.changed(cx, key);
        self.offer(cx, key);
        if had_lease {
            self.pass_on(cx);
        }
        Ok(())
    }

    /// The host does not hold the task any more. One that downloads it holds it again by now: the two messages crossed.
    pub(crate) fn dropped(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        if self.download(key).is_none() {
            self.leave(cx, key, None);
        }
    }

    /// The download has ended, and not with the whole content. A peer that has every byte and yet does not hold the
    /// content has found it wrong, so its bytes are not passed on.
    pub(crate) fn gave_up(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        if self.download(key).is_some() {
            if self.sources.contains(key) {
                self.leave(cx, key, None);
            } else {
                self.stop(cx, key);
            }
        }
    }

    /// The host is no peer of this task any more. With `why`, its stream ends; without, the daemon ends it.
    pub(crate) fn leave(&mut self, cx: &mut Cx<'_>, key: HostKey, why: Option<Refusal>) {
        let had_lease = self.surrender(cx, key, Standing::Out);
        let was_source = self.sources.contains(key);
        let named_to = self.named_to(key);
        let role = self.set_role(cx, key, None);
        if let Some(Role::Downloading(download)) = role
            && let (Some(stream), Some(_)) = (download.stream, why)
        {
            cx.world.streams.end(stream, why);
        }
        self.unname(cx, key, named_to);
        if had_lease || was_source {
            self.pass_on(cx);
        }
    }

    /// The task is tried as a shared one again.
    pub(crate) fn shareable(&mut self, cx: &mut Cx<'_>) {
        self.unshareable = false;
        self.pass_on(cx);
    }

    /// After an event: lets go of what nobody needs. Returns whether the whole task is such.
    pub(crate) fn tidy(&mut self) -> bool {
        // A holder gives out the hashes itself, and they are checked against the content's root.
        if self.downloading == 0 && self.complete > 0 && self.hashes.len() > 0 {
            self.hashes = Hashes::default();
        }
        self.peers.is_empty() && !self.unshareable
    }
}

// === what a report says ===

impl Task {
    /// The first content wins. A holder of the lease that was answered differently replaces it only where nobody else has
    /// a byte of it; otherwise the two must not mix, and it fetches for itself, outside the task.
    fn hear_content(&mut self, cx: &mut Cx<'_>, key: HostKey, content: Content) {
        if self.download(key).is_none_or(|download| !download.meshes()) {
            return;
        }
        let layout = content.layout;
        if self.adopt(cx, key, content.clone()).is_ok() {
            self.progress(cx, key);
        } else if !self.has_lease(key) {
            cx.world.counts.ignored += 1;
        } else if self.content.as_ref().is_some_and(|known| known.layout != layout)
            && self.alone_has_bytes(key)
        {
            self.replace_content(cx, key, content);
            self.progress(cx, key);
        } else {
            tracing::info!(task = %cx.task, "the origin answers with other content than before");
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

    fn alone_has_bytes(&self, key: HostKey) -> bool {
        self.complete == 0 && self.suppliers.iter().all(|supplier| supplier == key)
    }

    fn hear_origin_bytes(&mut self, cx: &mut Cx<'_>, key: HostKey, bytes: u64) {
        if let Some(lease) = self.lease.as_mut().filter(|lease| lease.holder == key)
            && bytes > lease.origin_bytes
        {
            lease.origin_bytes = bytes;
            self.progress(cx, key);
        }
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
        for (index, hash) in hashes {
            let piece = layout.piece(index).ok_or(Refusal::NoSuchPiece)?;
            if self.hashes.insert(&layout, piece, hash, key) == Insert::Differs {
                // As with a different length: this peer sees other content.
                tracing::info!(task = %cx.task, piece = index, "the origin sends other bytes than before");
                self.go_alone(cx, key);
                self.pass_on(cx);
                break;
            }
        }
        self.progress(cx, key);
        self.wake_all(cx, Some(key));
        Ok(())
    }

    fn hear_held(&mut self, cx: &mut Cx<'_>, key: HostKey, bytes: u64) {
        let (supplied, was_source) = (self.supplies(key), self.sources.contains(key));
        let Some(download) = self.download_mut(key) else { return };
        download.held = download.held.max(bytes);
        self.index(key);
        if self.supplies(key) && (!supplied || !was_source && self.sources.contains(key)) {
            self.offer(cx, key);
        }
    }

    /// Takes in what an origin or a holder says of the content, and tells everybody but `from` what is new.
    ///
    /// # Errors
    /// When it is not the content that is known, by length, root or hashes. Nothing has changed then.
    fn adopt(&mut self, cx: &mut Cx<'_>, from: HostKey, content: Content) -> Result<(), Refusal> {
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
                _ => return Ok(()),
            },
        }
        self.downloads_mut().for_each(|(peer, download)| download.news.content |= peer != from);
        self.wake_all(cx, Some(from));
        // Who has every byte shows once the length is known.
        let keys: Vec<HostKey> = self.suppliers.iter().collect();
        for key in keys {
            let was_source = self.sources.contains(key);
            self.index(key);
            if !was_source && self.sources.contains(key) {
                self.offer(cx, key);
            }
        }
        Ok(())
    }
}

// === roles ===

impl Task {
    /// The one place where a peer changes its role: keeps the indexes, the counts, the host's list and the timers.
    pub(crate) fn set_role(&mut self, cx: &mut Cx<'_>, key: HostKey, role: Option<Role>) -> Option<Role> {
        let (before, named_to) = match self.peers.remove(&key) {
            Some(peer) => (Some(peer.role), peer.named_to),
            None => (None, HostSet::default()),
        };
        if let Some(role) = &before {
            self.uncount(cx, key, role);
        }
        if let Some(role) = role {
            self.count(cx, key, &role);
            let struck = cx.world.hosts.host(key).is_some_and(|host| self.struck.contains(&host.id));
            self.peers.insert(key, Peer { struck, role, named_to });
        }
        self.index(key);
        before
    }

    fn count(&mut self, cx: &mut Cx<'_>, key: HostKey, role: &Role) {
        let counts = &mut cx.world.counts;
        let life = cx.world.hosts.life_mut(key);
        match role {
            Role::Complete => (self.complete, counts.complete) = (self.complete + 1, counts.complete + 1),
            Role::Partial => counts.partial += 1,
            Role::Downloading(_) => {
                (self.downloading, counts.downloading) = (self.downloading + 1, counts.downloading + 1);
            }
        }
        if let Some(life) = life {
            life.tasks.insert(cx.task);
            life.downloads += usize::from(matches!(role, Role::Downloading(_)));
        }
    }

    fn uncount(&mut self, cx: &mut Cx<'_>, key: HostKey, role: &Role) {
        let counts = &mut cx.world.counts;
        match role {
            Role::Complete => (self.complete, counts.complete) = (self.complete - 1, counts.complete - 1),
            Role::Partial => counts.partial -= 1,
            Role::Downloading(download) => {
                (self.downloading, counts.downloading) = (self.downloading - 1, counts.downloading - 1);
                if let Some(at) = download.silent_until {
                    cx.world.timers.remove(&(at, Timer::Silent(cx.task, key)));
                }
                for partner in download.partners.keys() {
                    self.peers.get_mut(partner).map(|partner| partner.named_to.remove(&key));
                }
            }
        }
        if let Some(life) = cx.world.hosts.life_mut(key) {
            life.tasks.remove(&cx.task);
            life.downloads -= usize::from(matches!(role, Role::Downloading(_)));
        }
    }

    /// Brings the indexes up to date with what the peer is and has now.
    pub(crate) fn index(&mut self, key: HostKey) {
        let length = self.content.as_ref().map(|content| content.layout.length());
        let (supplier, source) = match self.peers.get(&key) {
            None => (false, false),
            Some(peer) => match &peer.role {
                _ if peer.struck => (false, false),
                Role::Complete => (true, true),
                Role::Partial => (true, false),
                Role::Downloading(download) => {
                    let some = download.held > 0 && download.meshes();
                    (some, some && length.is_some_and(|length| download.held >= length))
                }
            },
        };
        self.suppliers.set(key, supplier);
        if self.sources.contains(key) != source {
            self.sources.set(key, source);
            for peer in self.named_to(key) {
                self.index_wants(peer);
            }
        }
        self.index_wants(key);
    }

    /// The part of [`Self::index`] that follows from the peer's partners.
    pub(crate) fn index_wants(&mut self, key: HostKey) {
        let meshing = self.download(key).filter(|download| download.meshes());
        let partners = meshing.map(|download| download.partners.len());
        let sourceless = meshing
            .is_some_and(|download| !download.partners.keys().any(|partner| self.sources.contains(*partner)));
        self.lonely.set(key, partners == Some(0));
        self.hungry.set(key, partners.is_some_and(|partners| (1..PARTNERS).contains(&partners)));
        self.sourceless.set(key, sourceless);
    }

    /// The peer downloads no more. What it has it goes on serving; one that has nothing leaves.
    fn stop(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        if !self.supplies(key) {
            return self.leave(cx, key, None);
        }
        let had_lease = self.surrender(cx, key, Standing::Out);
        let was_source = self.sources.contains(key);
        self.set_role(cx, key, Some(Role::Partial));
        self.welcome(cx, key);
        if was_source {
            self.reconnect(cx, key);
        }
        if had_lease || was_source {
            self.pass_on(cx);
        }
    }

    pub(crate) fn ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    pub(crate) fn supplies(&self, key: HostKey) -> bool {
        self.suppliers.contains(key)
    }

    pub(crate) fn download(&self, key: HostKey) -> Option<&Download> {
        match &self.peers.get(&key)?.role {
            Role::Downloading(download) => Some(download),
            _ => None,
        }
    }

    pub(crate) fn download_mut(&mut self, key: HostKey) -> Option<&mut Download> {
        match &mut self.peers.get_mut(&key)?.role {
            Role::Downloading(download) => Some(download),
            _ => None,
        }
    }

    pub(crate) fn downloads(&self) -> impl Iterator<Item = (HostKey, &Download)> {
        self.peers.iter().filter_map(|(key, peer)| match &peer.role {
            Role::Downloading(download) => Some((*key, &**download)),
            _ => None,
        })
    }

    pub(crate) fn downloads_mut(&mut self) -> impl Iterator<Item = (HostKey, &mut Download)> {
        self.peers.iter_mut().filter_map(|(key, peer)| match &mut peer.role {
            Role::Downloading(download) => Some((*key, &mut **download)),
            _ => None,
        })
    }
}

// === what peers are told ===

impl Task {
    /// What the peer is to be told, if anything. Once taken, it counts as told.
    ///
    /// A lease that was taken back and another that was given since make two packets, the revocation first.
    pub(crate) fn take(&mut self, hosts: &Hosts, key: HostKey) -> Option<proto::PeerPacket> {
        let known = self.hashes.len();
        let download = self.download_mut(key)?;
        let meshes = download.meshes();
        let mut packet = proto::PeerPacket {
            gone: std::mem::take(&mut download.gone).iter().map(ToString::to_string).collect(),
            lease_revoked: std::mem::take(&mut download.news.revoked),
            unshareable: std::mem::take(&mut download.news.unshareable),
            ..Default::default()
        };
        if !packet.lease_revoked {
            packet.lease = download.news.lease.take().map(|id| proto::Lease { id });
        }
        let content = std::mem::take(&mut download.news.content);
        let sent = std::mem::replace(&mut download.hashes_sent, known);
        let fresh: Vec<HostKey> = download
            .partners
            .iter_mut()
            .filter_map(|(partner, named)| {
                (std::mem::replace(named, Named::Sent) != Named::Sent).then_some(*partner)
            })
            .collect();
        packet.partners = fresh.into_iter().filter_map(|partner| self.partner(hosts, partner)).collect();
        packet.hashes = if meshes { self.hashes.since(sent, key) } else { Vec::new() };
        packet.content = self.content.as_ref().filter(|_| content).map(Content::to_proto);
        (packet != proto::PeerPacket::default()).then_some(packet)
    }

    fn partner(&self, hosts: &Hosts, key: HostKey) -> Option<proto::Partner> {
        let host = hosts.host(key)?;
        Some(proto::Partner {
            host_id: host.id.to_string(),
            ip: host.ip.to_string(),
            piece_port: u32::from(host.piece_port.get()),
            complete: self.peers.get(&key).is_some_and(|peer| matches!(peer.role, Role::Complete)),
        })
    }

    pub(crate) fn wake(&self, cx: &mut Cx<'_>, key: HostKey) {
        if let Some(stream) = self.download(key).and_then(|download| download.stream) {
            cx.world.streams.wake(stream);
        }
    }

    fn wake_all(&self, cx: &mut Cx<'_>, but: Option<HostKey>) {
        let streams =
            self.downloads().filter(|(key, _)| Some(*key) != but).filter_map(|(_, download)| download.stream);
        streams.for_each(|stream| cx.world.streams.wake(stream));
    }

    pub(crate) fn stat(&self, hosts: &Hosts) -> proto::StatTaskResponse {
        let holder = self.lease.as_ref().and_then(|lease| hosts.host(lease.holder));
        proto::StatTaskResponse {
            content: self.content.as_ref().map(Content::to_proto),
            complete: self.complete as u32,
            downloading: self.downloading as u32,
            lease_holder: holder.map(|host| host.id.to_string()).unwrap_or_default(),
        }
    }

    pub(crate) fn standing(&self, key: HostKey) -> Option<Standing> {
        self.download(key).map(|download| download.standing)
    }
}
