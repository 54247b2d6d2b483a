//! [`Task`]: one task's peers and content, and what each event does to them.
//!
//! Invariants, which the tests check after every event (`check.rs`):
//! - A host is at most one peer of a task, in exactly one role, and only while its life line is open.
//! - When two peers download, either both name each other as partners or neither does. A partner is a peer, is not struck,
//!   and has not failed the one that has it. Whoever may use a source has one among its partners.
//! - `suppliers`, `sources`, `lonely`, `hungry`, `sourceless`, every peer's `named_to` and the counts follow from the
//!   peers' roles and partners, and from how their hosts are regarded. A peer that is struck or drains is no supplier, one on
//!   probation no source.
//! - A peer that downloads and has no partner exists only where no supplier with room for it does, but for those on
//!   probation.
//! - At most one lease. While no lease lives, no peer that could be told waits for one without a source (`lease.rs`), but
//!   where the origins of all of them have no room; then the task stands in their lines (`share.rs`).
//!
//! The parts: here, how peers come, go and change their roles; `report.rs`, what they say; `packet.rs`, what they are told;
//! `mesh.rs`, who is named to whom; `lease.rs`, who may go to the origin; `share.rs`, how much the origin may give.

use crate::bag::Bag;
use crate::belief::Vouched;
use crate::budgets::Place;
use crate::hashes::Hashes;
use crate::host::{ByHost, HostKey, Regard};
use crate::lease::Lease;
use crate::message::{Content, Registration};
use crate::peer::{Download, Listed, Peer, Role, Standing};
use crate::policy::PARTNERS;
use crate::refusal::Refusal;
use crate::stream::StreamId;
use crate::world::{Cx, Timer};
use crate::zone::{Zone, ZoneId};
use darter_protocol::HostId;
use darter_protocol::scheduler as proto;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a peer may be registered without a stream. It opens one right after it registered, or needs none because the
/// content is one request to a holder away; nobody takes a minute for either.
pub(crate) const SILENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(crate) struct Task {
    pub(crate) content: Option<Content>,
    pub(crate) vouched: Vouched,
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
    /// Its peers by zone, and the zones in which somebody came, went or changed since `mend_borders` looked.
    pub(crate) zones: BTreeMap<ZoneId, Box<Zone>>,
    pub(crate) moved: BTreeSet<ZoneId>,
    /// Those who had the lease: they may give to everybody on their side again, which has not been looked at either.
    pub(crate) released: BTreeSet<HostKey>,
    /// Hosts that sent corrupt bytes of this task. By name, so that a new life does not wash them clean.
    pub(crate) struck: BTreeSet<HostId>,
    pub(crate) lease: Option<Lease>,
    /// Until then the lease is kept for one who reads from the origin already and is on his way here; with a timer.
    pub(crate) kept_until: Option<Instant>,
    /// It was kept, and nothing has come from the origin since: it is not kept again.
    pub(crate) kept_in_vain: bool,
    /// The origins that have no room for its peers now, and its places in their lines.
    pub(crate) places: BTreeMap<Arc<str>, Place>,
    /// Places whose turn came when nobody here could be given the lease: what waits there again has them back.
    pub(crate) missed: BTreeMap<Arc<str>, Place>,
    /// Downloads that may not go to the origin.
    pub(crate) barred: usize,
    /// The last lease ended before its holder was done: whoever gets the next one takes over.
    pub(crate) abandoned: bool,
    /// Leases in a row that ended without any progress.
    pub(crate) stalls: u32,
    /// The origin's answer cannot be shared: everybody goes there for itself.
    pub(crate) unshareable: bool,
    pub(crate) tickets: u64,
    pub(crate) complete: usize,
    pub(crate) downloading: usize,
    /// How many downloads were looked at for the line.
    #[cfg(test)]
    pub(crate) looked_at: std::cell::Cell<usize>,
}

// === events ===

impl Task {
    /// The host wants the task: it begins anew, whatever it was before. Returns what it is told at once.
    /// With `barred` it may not go to the origin, for that reason.
    pub(crate) fn register(
        &mut self,
        cx: &mut Cx<'_>,
        key: HostKey,
        registration: &Registration,
        barred: Option<&'static str>,
    ) -> proto::PeerPacket {
        self.leave(cx, key, Some(Refusal::Replaced));
        if registration.at_origin {
            self.keep_no_longer(cx);
        } else if registration.moved && self.downloading == 0 {
            self.keep_lease(cx);
        }
        let ticket = self.ticket();
        let silent_until = cx.now + SILENCE;
        let mut download = Download::new(registration, ticket);
        if let Some(why) = barred {
            download.standing = Standing::Barred { why, told: false };
        }
        download.silent_until = Some(silent_until);
        cx.world.timers.insert((silent_until, Timer::Silent(cx.task, key)));
        self.set_role(cx, key, Some(Role::Downloading(Box::new(download))));
        if !self.unshareable {
            self.consider(cx, key);
        } else if barred.is_none() && self.enter_origin(cx, key) {
            self.go_alone(cx, key);
        }
        if registration.at_origin {
            // Who came with what it reads may not be the one that may go there here: then it is others' turn.
            self.pass_on(cx);
        }
        self.connect(cx, key);
        if self.supplies(key) {
            self.offer(cx, key);
        }
        self.tell_barred(cx);
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
        self.moved.insert(cx.world.hosts.zone(key));
        // What waits on the stream before will not be heard.
        self.heard_out(cx, key);
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

    /// The host holds the whole content, whatever it was before.
    ///
    /// # Errors
    /// When that content is not this task's.
    pub(crate) fn holds(&mut self, cx: &mut Cx<'_>, key: HostKey, content: Content) -> Result<(), Refusal> {
        let disowned = self.hear_complete(cx, key, content)?;
        if self.peers.get(&key).is_some_and(|peer| matches!(peer.role, Role::Complete)) {
            return Ok(());
        }
        let had_lease = self.surrender(cx, key, Standing::Satisfied);
        self.set_role(cx, key, Some(Role::Complete));
        self.changed(cx, key);
        self.offer(cx, key);
        self.disown(cx, disowned);
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
        let Some(download) = self.download(key) else { return };
        // Its daemon has ended it, too, unless this came late and another download of the host has begun since: that one
        // must not wait on a stream on which nothing will be said.
        if let Some(stream) = download.stream {
            cx.world.streams.end(stream, None);
        }
        if self.is_source(key) {
            self.leave(cx, key, None);
        } else {
            self.stop(cx, key);
        }
    }

    /// The host is no peer of this task any more. With `why`, its stream ends; without, the daemon ends it.
    pub(crate) fn leave(&mut self, cx: &mut Cx<'_>, key: HostKey, why: Option<Refusal>) {
        let had_lease = self.surrender(cx, key, Standing::Out);
        let was_source = self.is_source(key);
        let named_to = self.named_to(key);
        let role = self.set_role(cx, key, None);
        if let Some(Role::Downloading(download)) = role
            && let (Some(stream), Some(_)) = (download.stream, why)
        {
            cx.world.streams.end(stream, why);
        }
        let wanted_again = self.unname(cx, key, named_to);
        if had_lease || was_source || wanted_again {
            self.pass_on(cx);
        }
        self.tell_barred(cx);
    }

    /// The host downloads it no more, and is not to be named as one that has it: it is refused now.
    pub(crate) fn replaced(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        if self.download(key).is_some() {
            self.leave(cx, key, Some(Refusal::Replaced));
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

// === roles ===

impl Task {
    /// The one place where a peer changes its role: keeps the indexes, the counts, the host's list and the timers.
    pub(crate) fn set_role(&mut self, cx: &mut Cx<'_>, key: HostKey, role: Option<Role>) -> Option<Role> {
        let (before, named_to, listed, zone) = match self.peers.remove(&key) {
            Some(peer) => (Some(peer.role), peer.named_to, peer.listed, peer.zone),
            None => (None, Bag::default(), Listed::default(), cx.world.hosts.zone(key)),
        };
        if let Some(role) = &before {
            self.uncount(cx, key, role);
            if matches!(role, Role::Downloading(_)) {
                self.count_download(key, zone, false);
            }
        }
        if let Some(role) = role {
            self.count(cx, key, &role);
            if before.is_none() {
                self.enter_zone(zone);
            }
            if matches!(role, Role::Downloading(_)) {
                self.count_download(key, zone, true);
            }
            let regard = self.regard(cx, key);
            self.peers.insert(key, Peer { zone, regard, role, named_to, listed });
            self.index(key);
        } else {
            self.list((key, zone), listed, Listed::default());
            if before.is_some() {
                self.leave_zone(zone);
            }
        }
        before
    }

    fn count(&mut self, cx: &mut Cx<'_>, key: HostKey, role: &Role) {
        let counts = &mut cx.world.counts;
        let life = cx.world.hosts.life_mut(key);
        match role {
            Role::Complete => (self.complete, counts.complete) = (self.complete + 1, counts.complete + 1),
            Role::Partial => counts.partial += 1,
            Role::Downloading(download) => {
                self.barred += usize::from(matches!(download.standing, Standing::Barred { .. }));
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
                self.barred -= usize::from(matches!(download.standing, Standing::Barred { .. }));
                if download.uses {
                    cx.world.budgets.leave(&download.origin, cx.task, key);
                }
                (self.downloading, counts.downloading) = (self.downloading - 1, counts.downloading - 1);
                if let Some(at) = download.silent_until {
                    cx.world.timers.remove(&(at, Timer::Silent(cx.task, key)));
                }
                for partner in download.partners.keys() {
                    if let Some(partner) = self.peers.get_mut(partner) {
                        partner.named_to.remove(key);
                    }
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
        let Some(peer) = self.peers.get(&key) else { return };
        let (before, now) = (peer.listed, self.listing(key, peer));
        if before == now {
            return;
        }
        self.list((key, peer.zone), before, now);
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.listed = now;
        }
        if before.source != now.source {
            self.named_to(key).into_iter().for_each(|peer| self.index(peer));
        }
    }

    fn listing(&self, key: HostKey, peer: &Peer) -> Listed {
        let Regard { struck, on_probation, draining } = peer.regard;
        let gives = !struck && !draining;
        match &peer.role {
            Role::Complete => Listed { supplier: gives, source: gives && !on_probation, ..Listed::default() },
            Role::Partial => Listed { supplier: gives, ..Listed::default() },
            Role::Downloading(download) if !download.meshes() => Listed::default(),
            Role::Downloading(download) => {
                let all = |content: &Content| download.held >= content.layout.length();
                let supplier = gives && !on_probation && download.held > 0;
                Listed {
                    supplier,
                    source: supplier && self.content.as_ref().is_some_and(all),
                    lonely: download.partners.is_empty(),
                    hungry: !download.partners.is_empty() && self.filled(key, download) < PARTNERS,
                    sourceless: !download.partners.keys().any(|partner| self.is_source(*partner)),
                }
            }
        }
    }

    fn list(&mut self, (key, zone): (HostKey, ZoneId), before: Listed, now: Listed) {
        self.list_in_zone(key, zone, before, now);
        for (bag, before, now) in [
            (&mut self.suppliers, before.supplier, now.supplier),
            (&mut self.sources, before.source, now.source),
            (&mut self.lonely, before.lonely, now.lonely),
            (&mut self.hungry, before.hungry, now.hungry),
            (&mut self.sourceless, before.sourceless, now.sourceless),
        ] {
            match (before, now) {
                (false, true) => bag.insert(key),
                (true, false) => bag.remove(key),
                _ => {}
            }
        }
    }

    /// The peer downloads no more. What it has it goes on serving; one that has nothing leaves.
    fn stop(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        if !self.supplies(key) {
            return self.leave(cx, key, None);
        }
        let had_lease = self.surrender(cx, key, Standing::Out);
        let was_source = self.is_source(key);
        self.set_role(cx, key, Some(Role::Partial));
        self.welcome(cx, key);
        if was_source {
            self.reconnect(cx, key);
        }
        if had_lease || was_source {
            self.pass_on(cx);
        }
        self.tell_barred(cx);
    }

    pub(crate) fn ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    /// Whether it has bytes to give.
    pub(crate) fn supplies(&self, key: HostKey) -> bool {
        self.peers.get(&key).is_some_and(|peer| peer.listed.supplier)
    }

    /// Whether it has every byte.
    pub(crate) fn is_source(&self, key: HostKey) -> bool {
        self.peers.get(&key).is_some_and(|peer| peer.listed.source)
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

    pub(crate) fn standing(&self, key: HostKey) -> Option<Standing> {
        self.download(key).map(|download| download.standing)
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
