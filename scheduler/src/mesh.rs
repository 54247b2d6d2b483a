//! Who is named to whom: partners are linked, lost and replaced. Whom to choose is `policy.rs`.

use crate::host::HostKey;
use crate::peer::{Download, Named, Role};
use crate::policy::{self, Asker, Candidate, PARTNERS};
use crate::task::Task;
use crate::world::Cx;
use darter_protocol::HostId;
use darter_protocol::scheduler::FailureReason;
use rand::seq::{IndexedRandom, IteratorRandom};

/// How many suppliers the policy looks at for one peer, drawn at random where there are more. It bounds what a decision
/// costs in a task with ten thousand peers; a dozen candidates for every partner are choice enough.
const SNAPSHOT: usize = 256;

impl Task {
    /// Gives a peer that downloads the partners that it lacks.
    pub(crate) fn connect(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        let Some(download) = self.download(key).filter(|download| download.meshes()) else { return };
        let sources = download.partners.keys().filter(|partner| self.sources.contains(partner)).count();
        let asker = Asker { partners: download.partners.len(), sources };
        if asker.partners >= PARTNERS && asker.sources > 0 {
            return;
        }
        let candidates = self.candidates(cx, key);
        for partner in policy::choose(asker, candidates, &mut cx.world.rng) {
            self.link(cx, key, partner);
        }
    }

    fn candidates(&self, cx: &mut Cx<'_>, key: HostKey) -> Vec<Candidate> {
        let fits = |supplier: &HostKey| self.usable(key, *supplier) && !self.named(key, *supplier);
        let mut pool: Vec<HostKey> = if self.suppliers.len() <= SNAPSHOT {
            self.suppliers.iter().copied().filter(fits).collect()
        } else {
            self.suppliers.sample(&mut cx.world.rng, SNAPSHOT).copied().filter(fits).collect()
        };
        if self.suppliers.len() > SNAPSHOT {
            if pool.is_empty() {
                pool.extend(self.suppliers.iter().copied().filter(fits).take(SNAPSHOT));
            }
            if !pool.iter().any(|supplier| self.sources.contains(supplier)) {
                pool.extend(self.sources.iter().copied().filter(fits).choose(&mut cx.world.rng));
            }
        }
        pool.into_iter().map(|supplier| self.candidate(cx, key, supplier)).collect()
    }

    fn candidate(&self, cx: &Cx<'_>, asker: HostKey, host: HostKey) -> Candidate {
        Candidate {
            host,
            source: self.sources.contains(&host),
            seed: cx.world.hosts.is_seed(host),
            nearness: cx.world.hosts.nearness(asker, host),
            partners: self.download(host).map_or(0, |download| download.partners.len()),
        }
    }

    /// Names a supplier, who is new as such, to peers that lack partners or a source.
    pub(crate) fn offer(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        let source = self.sources.contains(&key);
        let lacks = |download: &Download| {
            download.partners.len() < PARTNERS
                || source && !download.partners.keys().any(|partner| self.sources.contains(partner))
        };
        let candidates = self
            .downloads()
            .filter(|(peer, download)| download.meshes() && lacks(download) && !self.named(*peer, key))
            .filter(|(peer, _)| self.usable(*peer, key))
            .map(|(peer, _)| self.candidate(cx, key, peer))
            .collect();
        for peer in policy::invite(candidates, self.room(key), &mut cx.world.rng) {
            self.link(cx, peer, key);
        }
    }

    /// Names a supplier that has room again to those that have nobody.
    pub(crate) fn welcome(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        if !self.supplies(key) || self.lonely.is_empty() {
            return;
        }
        let lonely =
            self.lonely.iter().copied().filter(|peer| self.usable(*peer, key) && !self.named(*peer, key));
        let lonely: Vec<HostKey> = lonely.take(self.room(key)).collect();
        for peer in lonely {
            self.link(cx, peer, key);
        }
    }

    /// To how many more a supplier may be named. Whoever holds everything, or downloads nothing, enforces its upload
    /// slots itself and is not bound to exchange.
    pub(crate) fn room(&self, key: HostKey) -> usize {
        match self.download(key) {
            Some(download) if !self.sources.contains(&key) => {
                PARTNERS.saturating_sub(download.partners.len())
            }
            _ => usize::MAX,
        }
    }

    /// Whether `asker` may be given `supplier`: it has bytes, is not struck, and neither has failed the other. Links
    /// between two that download are mutual, so one that is struck gets none of these.
    pub(crate) fn usable(&self, asker: HostKey, supplier: HostKey) -> bool {
        let (Some(a), Some(s)) = (self.peers.get(&asker), self.peers.get(&supplier)) else { return false };
        let Role::Downloading(download) = &a.role else { return false };
        asker != supplier
            && s.supplier
            && !download.failed.contains(&supplier)
            && match &s.role {
                Role::Downloading(theirs) => !a.struck && !theirs.failed.contains(&asker),
                _ => true,
            }
    }

    /// Whether the peer need not go to the origin: somebody whom it may use has every byte.
    pub(crate) fn has_source(&self, key: HostKey) -> bool {
        self.sources.iter().any(|source| self.usable(key, *source))
    }

    fn named(&self, peer: HostKey, partner: HostKey) -> bool {
        self.download(peer).is_some_and(|download| download.partners.contains_key(&partner))
    }

    fn link(&mut self, cx: &mut Cx<'_>, peer: HostKey, partner: HostKey) {
        self.name(cx, peer, partner);
        if self.download(partner).is_some() {
            self.name(cx, partner, peer);
        }
    }

    fn name(&mut self, cx: &mut Cx<'_>, peer: HostKey, partner: HostKey) {
        let Some(host) = cx.world.hosts.host(partner) else { return };
        let Some(download) = self.download_mut(peer) else { return };
        // It was to be told to drop this partner and has not been: then it knows it still.
        let named = if download.gone.remove(&host.id) { Named::Changed } else { Named::Unsent };
        download.partners.entry(partner).or_insert(named);
        self.lonely.remove(&peer);
        self.wake(cx, peer);
    }

    /// Takes the link between the two away, on both sides.
    fn unlink(&mut self, cx: &mut Cx<'_>, a: HostKey, b: HostKey) {
        for (peer, partner) in [(a, b), (b, a)] {
            let id = cx.world.hosts.host(partner).map(|host| &host.id);
            let Some(download) = self.download_mut(peer) else { continue };
            match (download.partners.remove(&partner), id) {
                (None, _) => continue,
                (Some(Named::Changed | Named::Sent), Some(id)) => drop(download.gone.insert(id.clone())),
                _ => {}
            }
            self.index(peer);
            self.wake(cx, peer);
        }
    }

    /// Nobody has this partner any more; whoever loses it gets another.
    pub(crate) fn unname(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        let losers = self.partners_of(key);
        for loser in &losers {
            self.unlink(cx, *loser, key);
        }
        for loser in losers {
            self.rejoin(cx, loser);
        }
    }

    /// Its partners have it still, but it is no source any more: they may want another.
    pub(crate) fn reconnect(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        for peer in self.partners_of(key) {
            self.connect(cx, peer);
        }
    }

    fn partners_of(&self, key: HostKey) -> Vec<HostKey> {
        let has_it = |download: &Download| download.partners.contains_key(&key);
        self.downloads().filter(|(_, download)| has_it(download)).map(|(peer, _)| peer).collect()
    }

    /// After a peer lost a partner: it gets another, and its free place goes to one that has nobody.
    fn rejoin(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        self.connect(cx, key);
        self.welcome(cx, key);
    }

    /// Its partners are told that something about it is different now.
    pub(crate) fn changed(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        let mut streams = Vec::new();
        for (_, download) in self.downloads_mut() {
            if let Some(named @ Named::Sent) = download.partners.get_mut(&key) {
                *named = Named::Changed;
                streams.extend(download.stream);
            }
        }
        streams.into_iter().for_each(|stream| cx.world.streams.wake(stream));
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
        if reason == FailureReason::Corrupt {
            self.strike(cx, partner, host);
        }
        self.rejoin(cx, key);
        self.rejoin(cx, partner);
        self.wants_again(key);
        self.consider(cx, key);
    }

    /// The peer sent bytes that do not match. In this task nobody is given it any more, and since what it fetches from the
    /// origin could go to nobody, it does not hold the task's lease either.
    fn strike(&mut self, cx: &mut Cx<'_>, key: HostKey, host: &HostId) {
        let was_source = self.sources.contains(&key);
        self.struck.insert(host.clone());
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.struck = true;
        }
        self.index(key);
        self.unname(cx, key);
        let had_lease = self.has_lease(key);
        if had_lease {
            self.go_alone(cx, key);
        }
        if had_lease || was_source {
            self.pass_on(cx);
        }
        self.consider(cx, key);
    }

    /// The peer takes no part in the mesh from now on.
    pub(crate) fn unmesh(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        let Some(download) = self.download_mut(key) else { return };
        let partners = std::mem::take(&mut download.partners);
        download.gone.clear();
        self.index(key);
        for partner in partners.keys() {
            self.unlink(cx, *partner, key);
        }
        for partner in partners.into_keys() {
            self.rejoin(cx, partner);
        }
    }
}
