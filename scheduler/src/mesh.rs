//! Who is named to whom: partners are linked, lost and replaced. Whom to choose is `policy.rs`.

use crate::conduct::Fault;
use crate::host::{HostKey, Regard};
use crate::peer::{Named, Role};
use crate::policy::{self, Asker, Candidate, PARTNERS};
use crate::task::Task;
use crate::world::Cx;
use darter_protocol::HostId;
use darter_protocol::scheduler::FailureReason;

/// How many peers the policy looks at for one, at most, drawn at random where there are more. It bounds what a decision costs
/// in a task with ten thousand peers: 30 us for one that is named to twenty others while all is in the processor's caches,
/// several times that in a cluster of ten thousand hosts and twenty such tasks.
const SNAPSHOT: usize = 128;

/// Candidates for each place: choice enough.
const CHOICE: usize = 6;

/// However few places are free, so many are looked at: one of them should be near.
const LEAST: usize = 32;

/// How many are looked at for so many places.
fn snapshot(places: usize) -> usize {
    places.saturating_mul(CHOICE).clamp(LEAST, SNAPSHOT)
}

/// To so many peers of a task one on probation is named at once: enough to prove itself, few enough to hurt nobody.
pub(crate) const PROBED_BY: usize = 2;

impl Task {
    /// Gives a peer that downloads the partners that it lacks.
    pub(crate) fn connect(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        let Some(download) = self.download(key).filter(|download| download.meshes()) else { return };
        let sources = download.partners.keys().filter(|partner| self.is_source(**partner)).count();
        let asker = Asker { partners: self.filled(key, download), sources };
        if asker.partners >= PARTNERS && asker.sources > 0 {
            return;
        }
        let candidates = self.candidates(cx, key, asker);
        for partner in policy::choose(asker, candidates, &mut cx.world.rng) {
            self.link(cx, key, partner);
        }
    }

    fn candidates(&self, cx: &mut Cx<'_>, key: HostKey, asker: Asker) -> Vec<Candidate> {
        let fits = |supplier: &HostKey| {
            self.usable(key, *supplier) && !self.named(key, *supplier) && !self.is_probed_enough(*supplier)
        };
        let near = |supplier: &HostKey| fits(supplier) && self.may_be_neighbours(key, *supplier);
        let suppliers = self.bordered(key).map_or(&self.suppliers, |zone| &zone.suppliers);
        let rng = &mut cx.world.rng;
        let mut pool = suppliers.some(snapshot(PARTNERS.saturating_sub(asker.partners)), rng);
        pool.retain(near);
        // What must not be missed for bad luck or behind a border: anybody at all, and a source for one that has none.
        if pool.is_empty() {
            pool.extend(suppliers.iter_anywhere(rng).find(near));
        }
        if pool.is_empty() && self.is_gate(key) {
            pool.extend(self.suppliers.iter_anywhere(rng).find(near));
        }
        if asker.sources == 0 && !pool.iter().any(|supplier| self.is_source(*supplier)) {
            let source = self.sources.iter_anywhere(rng).find(|source| near(source));
            pool.extend(source.or_else(|| self.sources.iter_anywhere(rng).find(fits)));
        }
        pool.into_iter().map(|supplier| self.seen_by(&cx.world.hosts, Some(key), supplier)).collect()
    }

    /// Names a supplier, who is new as such: a source to all that have none, any to peers that lack partners.
    pub(crate) fn offer(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        let fits = |task: &Self, peer: HostKey| task.usable(peer, key) && !task.named(peer, key);
        if self.is_source(key) {
            let without: Vec<HostKey> = self.sourceless.iter().filter(|peer| fits(self, *peer)).collect();
            without.into_iter().for_each(|peer| self.link(cx, peer, key));
        }
        if self.bordered(key).is_some() && self.is_gate(key) {
            self.cross(cx, key);
        }
        let room = self.room(key);
        // In a crowd most have all their partners before they have a first byte: looking at others would be half of all work.
        if room > 0 {
            let looked_at = snapshot(room);
            let zone = self.bordered(key);
            let lonely = zone.map_or(&self.lonely, |zone| &zone.lonely);
            let hungry = zone.map_or(&self.hungry, |zone| &zone.hungry);
            let near = |peer: &HostKey| fits(self, *peer) && self.may_be_neighbours(*peer, key);
            let mut pool = lonely.some(looked_at, &mut cx.world.rng);
            pool.retain(near);
            // Those who have nobody come first, so nobody else is looked at where they are enough.
            if pool.len() < room {
                let mut hungry = hungry.some(looked_at, &mut cx.world.rng);
                hungry.retain(near);
                pool.extend(hungry);
            }
            let candidates =
                pool.into_iter().map(|peer| self.seen_by(&cx.world.hosts, Some(key), peer)).collect();
            for peer in policy::invite(candidates, room, &mut cx.world.rng) {
                self.link(cx, peer, key);
            }
        }
        self.welcome(cx, key);
    }

    /// Names a supplier that has room to those that have nobody.
    pub(crate) fn welcome(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        if !self.supplies(key) {
            return;
        }
        let own = self.bordered(key).filter(|_| !self.is_gate(key));
        let lonely = own.map_or(&self.lonely, |zone| &zone.lonely).iter();
        let lonely: Vec<HostKey> =
            lonely.filter(|peer| self.usable(*peer, key) && self.may_meet(*peer, key)).collect();
        for peer in lonely {
            if self.room_for(key, peer) > 0 {
                self.link(cx, peer, key);
            }
        }
    }

    /// To how many more a supplier may be named. Whoever holds everything, or downloads nothing, enforces its upload
    /// slots itself and is not bound to exchange.
    pub(crate) fn room(&self, key: HostKey) -> usize {
        if let Some(peer) = self.peers.get(&key).filter(|peer| peer.regard.on_probation) {
            return PROBED_BY.saturating_sub(peer.named_to.len());
        }
        match self.download(key) {
            Some(download) if !self.is_source(key) => PARTNERS.saturating_sub(self.filled(key, download)),
            _ => usize::MAX,
        }
    }

    fn is_probed_enough(&self, key: HostKey) -> bool {
        self.peers.get(&key).is_some_and(|peer| peer.regard.on_probation) && self.room(key) == 0
    }

    /// Whether `asker` may be given `supplier`: it has bytes, is not struck, and neither has failed the other. Links
    /// between two that download are mutual, so one that is struck gets none of these.
    pub(crate) fn usable(&self, asker: HostKey, supplier: HostKey) -> bool {
        let (Some(a), Some(s)) = (self.peers.get(&asker), self.peers.get(&supplier)) else { return false };
        let Role::Downloading(download) = &a.role else { return false };
        asker != supplier
            && s.listed.supplier
            && !download.failed.contains(&supplier)
            && match &s.role {
                Role::Downloading(theirs) => {
                    !a.regard.struck && !a.regard.on_probation && !theirs.failed.contains(&asker)
                }
                _ => true,
            }
    }

    /// Whether the peer need not go to the origin: somebody whom it may use has every byte.
    pub(crate) fn has_source(&self, key: HostKey) -> bool {
        self.sources.iter().any(|source| self.usable(key, source))
    }

    pub(crate) fn named(&self, peer: HostKey, partner: HostKey) -> bool {
        self.download(peer).is_some_and(|download| download.partners.contains_key(&partner))
    }

    /// Whether borders allow it, and a gate of a bordered zone has room for one more from another.
    fn may_be_neighbours(&self, peer: HostKey, supplier: HostKey) -> bool {
        let across = self.bordered(supplier).is_some() && self.is_across(peer, supplier);
        self.may_meet(peer, supplier) && (!across || self.room_for(supplier, peer) > 0)
    }

    pub(crate) fn link(&mut self, cx: &mut Cx<'_>, peer: HostKey, partner: HostKey) {
        self.name(cx, peer, partner);
        if self.download(partner).is_some() {
            self.name(cx, partner, peer);
        }
    }

    fn name(&mut self, cx: &mut Cx<'_>, peer: HostKey, partner: HostKey) {
        let Some(host) = cx.world.hosts.host(partner) else { return };
        let across = self.is_across(peer, partner);
        let Some(download) = self.download_mut(peer) else { return };
        // It was to be told to drop this partner and has not been: then it knows it still.
        let named = if download.gone.remove(&host.id) { Named::Changed } else { Named::Unsent };
        if download.partners.contains_key(&partner) {
            return;
        }
        download.partners.insert(partner, named);
        if across {
            download.across.insert(partner);
        }
        if let Some(life) = cx.world.hosts.life_mut(partner) {
            life.uploads.named += 1;
        }
        if let Some(partner) = self.peers.get_mut(&partner) {
            partner.named_to.insert(peer);
        }
        self.index(peer);
        self.wake(cx, peer);
    }

    /// Takes the link between the two away, on both sides.
    pub(crate) fn unlink(&mut self, cx: &mut Cx<'_>, a: HostKey, b: HostKey) {
        for (peer, partner) in [(a, b), (b, a)] {
            let id = cx.world.hosts.host(partner).map(|host| &host.id);
            let Some(download) = self.download_mut(peer) else { continue };
            download.across.remove(&partner);
            match (download.partners.remove(&partner), id) {
                (None, _) => continue,
                (Some(Named::Changed | Named::Sent), Some(id)) => drop(download.gone.insert(id.clone())),
                _ => {}
            }
            if let Some(partner) = self.peers.get_mut(&partner) {
                partner.named_to.remove(peer);
            }
            self.index(peer);
            self.wake(cx, peer);
        }
    }

    /// Nobody has this partner any more; whoever loses it gets another. Returns whether somebody waits for the lease again
    /// because of it.
    pub(crate) fn unname(&mut self, cx: &mut Cx<'_>, key: HostKey, named_to: Vec<HostKey>) -> bool {
        for loser in &named_to {
            self.unlink(cx, *loser, key);
        }
        named_to.into_iter().fold(false, |wanted_again, loser| self.rejoin(cx, loser) | wanted_again)
    }

    /// Its partners have it still, but it is no source any more: they may want another.
    pub(crate) fn reconnect(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        for peer in self.named_to(key) {
            self.connect(cx, peer);
        }
    }

    /// The peers that have this one as a partner.
    pub(crate) fn named_to(&self, key: HostKey) -> Vec<HostKey> {
        self.peers.get(&key).map(|peer| peer.named_to.iter().collect()).unwrap_or_default()
    }

    /// After a peer lost a partner: it gets another, and its free place goes to one that has nobody. Returns whether it waits
    /// for the lease again: what it hoped to get from that partner it may have to fetch.
    pub(crate) fn rejoin(&mut self, cx: &mut Cx<'_>, key: HostKey) -> bool {
        self.connect(cx, key);
        if self.bordered(key).is_some() && self.is_gate(key) {
            self.cross(cx, key);
        }
        self.welcome(cx, key);
        self.wants_again(key)
    }

    /// Its partners are told that something about it is different now.
    pub(crate) fn changed(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        for peer in self.named_to(key) {
            let Some(download) = self.download_mut(peer) else { continue };
            if let Some(named) = download.partners.get_mut(&key) {
                named.change();
                self.wake(cx, peer);
            }
        }
    }

    /// A peer says that a partner failed it. Only of partners that it was given: nobody speaks of strangers.
    pub(crate) fn hear_failure(
        &mut self,
        cx: &mut Cx<'_>,
        key: HostKey,
        host: &HostId,
        reason: FailureReason,
    ) {
        let partner = cx.world.hosts.key(host).filter(|partner| self.named(key, *partner));
        let (Some(partner), Some(download)) = (partner, self.download_mut(key)) else {
            cx.world.counts.ignored += 1;
            return;
        };
        download.failed.insert(partner);
        cx.world.counts.failures[reason as usize] += 1;
        self.unlink(cx, key, partner);
        // The reporter knows already; it asked.
        if let Some(download) = self.download_mut(key) {
            download.gone.remove(host);
        }
        let believed = fault(reason).is_some_and(|fault| cx.world.blame(cx.now, key, partner, fault));
        if believed && reason == FailureReason::Corrupt {
            // Its host is judged by `conduct.rs`; in this task its bytes are wrong, whoever may trust it elsewhere. Who is not
            // believed keeps nobody out: it alone goes without this partner.
            self.struck.insert(host.clone());
            self.reconsider(cx, partner);
        }
        self.rejoin(cx, key);
        self.rejoin(cx, partner);
        // Neither may use the other now, so either may have lost its last source.
        if self.ticket_of(key).is_some() || self.ticket_of(partner).is_some() {
            self.pass_on(cx);
        }
        self.tell_barred(cx);
    }

    /// How a peer may be named in this task.
    pub(crate) fn regard(&self, cx: &Cx<'_>, key: HostKey) -> Regard {
        let mut regard = cx.world.hosts.regard(key);
        regard.struck |= cx.world.hosts.host(key).is_some_and(|host| self.struck.contains(&host.id));
        regard
    }

    /// The standing of a peer's host has changed.
    pub(crate) fn reconsider(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        let now = self.regard(cx, key);
        let was_source = self.is_source(key);
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let before = std::mem::replace(&mut peer.regard, now);
        if before == now {
            return;
        }
        self.index(key);
        self.moved.insert(cx.world.hosts.zone(key));
        if now.struck {
            return self.strike(cx, key, was_source);
        }
        if now.on_probation && !before.on_probation && self.download(key).is_some() {
            let wanted_again = self.unname(cx, key, self.named_to(key));
            if wanted_again {
                self.pass_on(cx);
            }
        }
        self.connect(cx, key);
        if self.supplies(key) {
            self.offer(cx, key);
        }
        if was_source && !self.is_source(key) {
            self.reconnect(cx, key);
            self.pass_on(cx);
        }
        self.consider(cx, key);
    }

    /// The peer is named to nobody from now on. Since what it fetches from the origin could go to nobody, it does not hold
    /// the task's lease either.
    fn strike(&mut self, cx: &mut Cx<'_>, key: HostKey, was_source: bool) {
        let wanted_again = self.unname(cx, key, self.named_to(key));
        let had_lease = self.has_lease(key);
        if had_lease {
            self.go_alone(cx, key);
        }
        if had_lease || was_source || wanted_again {
            self.pass_on(cx);
        }
        self.consider(cx, key);
    }

    /// The peer takes no part in the mesh from now on. Returns whether somebody waits for the lease again because of it.
    pub(crate) fn unmesh(&mut self, cx: &mut Cx<'_>, key: HostKey) -> bool {
        let Some(download) = self.download_mut(key) else { return false };
        let partners: Vec<HostKey> = download.partners.keys().copied().collect();
        self.index(key);
        self.moved.insert(cx.world.hosts.zone(key));
        for partner in &partners {
            self.unlink(cx, *partner, key);
        }
        if let Some(download) = self.download_mut(key) {
            download.gone.clear();
        }
        partners.into_iter().fold(false, |wanted_again, partner| self.rejoin(cx, partner) | wanted_again)
    }
}

/// What a reason says of the partner's conduct; nothing where it was only busy.
const fn fault(reason: FailureReason) -> Option<Fault> {
    match reason {
        FailureReason::Corrupt => Some(Fault::Corrupt),
        FailureReason::Unreachable | FailureReason::Timeout => Some(Fault::Failed),
        FailureReason::NotHeld => Some(Fault::NotHeld),
        FailureReason::Unspecified => None,
    }
}
