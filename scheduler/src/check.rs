//! The invariants, checked against a whole cluster after every event of a test.

use crate::bag::Bag;
use crate::cluster::Cluster;
use crate::conduct::State;
use crate::host::{HostKey, Hosts, Regard};
use crate::peer::{Download, Listed, Role, Standing};
use crate::stream::Line;
use crate::task::Task;
use crate::world::Timer;
use crate::zone::{BRIDGES, ZoneId};
use darter_protocol::TaskId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

impl Cluster {
    /// Panics when an invariant is broken.
    pub(crate) fn check(&self, now: Instant) {
        for (key, life) in self.world.hosts.lives() {
            assert_eq!(self.world.hosts.key(&life.host.id), Some(key));
            assert_eq!(self.world.streams.line(life.lifeline), Some(Line::Lifeline { host: key }));
            let peer_of: BTreeSet<TaskId> = self
                .tasks
                .iter()
                .filter(|(_, task)| task.peers.contains_key(&key))
                .map(|(id, _)| *id)
                .collect();
            assert_eq!(life.tasks, peer_of, "a host's list of its tasks");
            assert_eq!(
                life.downloads,
                self.tasks.values().filter(|task| task.download(key).is_some()).count()
            );
        }
        assert!(self.world.judged.is_empty(), "a judgement that was not carried out");
        self.check_budgets();
        let suspects: Vec<HostKey> = self.world.hosts.suspects().map(|(key, _)| key).collect();
        let mut timers = BTreeSet::new();
        for (key, life) in self.world.hosts.lives() {
            timers.extend(life.conduct.timeout().map(|at| (at, Timer::Conduct(key))));
            assert_eq!(suspects.contains(&key), life.conduct.state() != State::Good, "the list of suspects");
            for task in &life.tasks {
                let peer = &self.tasks[task].peers[&key];
                let struck = self.tasks[task].struck.contains(&life.host.id);
                let regard = self.world.hosts.regard(key);
                assert_eq!(
                    peer.regard,
                    Regard { struck: regard.struck || struck, ..regard },
                    "how it is regarded"
                );
            }
        }
        for (id, task) in &self.tasks {
            self.check_streams(*id, task);
            task.check(&self.world.hosts, now);
            timers.extend(task.lease.as_ref().and_then(|lease| Some((lease.timer?, Timer::Lease(*id)))));
            timers.extend(task.kept_until.map(|at| (at, Timer::Kept(*id))));
            timers.extend(
                task.downloads().filter_map(|(key, d)| Some((d.silent_until?, Timer::Silent(*id, key)))),
            );
        }
        let armed =
            self.world.timers.iter().copied().filter(|(_, timer)| !matches!(timer, Timer::Shareable(_)));
        assert_eq!(armed.collect::<BTreeSet<_>>(), timers, "armed timers");
        for (id, task) in &self.tasks {
            let marked =
                self.world.timers.iter().filter(|(_, timer)| *timer == Timer::Shareable(*id)).count();
            assert_eq!(marked, usize::from(task.unshareable), "the end of the mark");
        }
        self.check_counts();
    }

    fn check_budgets(&self) {
        let mut users = BTreeSet::new();
        let mut places = BTreeSet::new();
        for (id, task) in &self.tasks {
            places.extend(task.places.iter().map(|(origin, place)| (Arc::clone(origin), *place)));
            for name in task.places.keys() {
                let waits = |(key, d): (HostKey, &Download)| {
                    d.origin == *name && d.stream.is_some() && task.ticket_of(key).is_some()
                };
                assert!(task.downloads().any(waits), "a place in line for nobody");
            }
            for (key, download) in task.downloads().filter(|(_, download)| download.uses) {
                assert!(
                    matches!(download.standing, Standing::Leased | Standing::Alone),
                    "it uses what it may not"
                );
                users.insert((Arc::clone(&download.origin), *id, key));
            }
        }
        self.world.budgets.check(&users, &places);
    }

    fn check_streams(&self, id: TaskId, task: &Task) {
        for (host, download) in task.downloads() {
            assert!(download.stream.is_none() || download.silent_until.is_none());
            if let Some(stream) = download.stream {
                assert_eq!(self.world.streams.line(stream), Some(Line::Conversation { task: id, host }));
            }
        }
    }

    fn check_counts(&self) {
        let counts = self.counts();
        let count = |wanted: fn(&Role) -> bool| {
            self.tasks.values().flat_map(|task| task.peers.values()).filter(|peer| wanted(&peer.role)).count()
        };
        assert_eq!(counts.complete, count(|role| matches!(role, Role::Complete)));
        assert_eq!(counts.partial, count(|role| matches!(role, Role::Partial)));
        assert_eq!(counts.downloading, count(|role| matches!(role, Role::Downloading(_))));
    }
}

impl Task {
    fn check(&self, hosts: &Hosts, now: Instant) {
        assert!(!self.peers.is_empty() || self.unshareable, "a task that nobody has");
        assert!(self.peers.keys().all(|key| hosts.life(*key).is_some()), "a peer whose host is gone");
        assert_eq!(
            self.complete,
            self.peers.values().filter(|peer| matches!(peer.role, Role::Complete)).count()
        );
        assert_eq!(self.downloading, self.downloads().count());
        self.check_indexes();
        for key in self.peers.keys() {
            self.check_links(hosts, *key);
        }
        let is_barred = |d: &Download| matches!(d.standing, Standing::Barred { .. });
        assert_eq!(self.barred, self.downloads().filter(|(_, d)| is_barred(d)).count(), "who is barred");
        self.check_zones(hosts);
        self.check_lease(now);
    }

    fn check_zones(&self, hosts: &Hosts) {
        let mut zones: BTreeMap<ZoneId, Vec<HostKey>> = BTreeMap::new();
        for (key, peer) in &self.peers {
            assert_eq!(peer.zone, hosts.zone(*key), "where it stands");
            if peer.zone != ZoneId::default() {
                zones.entry(peer.zone).or_default().push(*key);
            }
        }
        assert!(zones.keys().eq(self.zones.keys()), "zones with peers");
        assert!(self.moved.is_empty(), "a zone that was not looked at");
        for (id, zone) in &self.zones {
            let peers = &zones[id];
            let listed = |listed: fn(&Listed) -> bool| {
                peers.iter().copied().filter(|key| listed(&self.peers[key].listed)).collect::<BTreeSet<_>>()
            };
            let downloads: BTreeSet<HostKey> =
                peers.iter().copied().filter(|key| self.download(*key).is_some()).collect();
            let set = |bag: &Bag| bag.iter().collect::<BTreeSet<_>>();
            assert_eq!((zone.peers, set(&zone.downloads)), (peers.len(), downloads), "who is in a zone");
            assert_eq!(set(&zone.suppliers), listed(|listed| listed.supplier), "a zone's suppliers");
            assert_eq!(set(&zone.lonely), listed(|listed| listed.lonely), "a zone's lonely ones");
            assert_eq!(set(&zone.hungry), listed(|listed| listed.hungry), "a zone's hungry ones");
            assert_eq!(zone.sources, listed(|listed| listed.source).len(), "a zone's sources");
            assert!(zone.has_border || zone.bridges.is_empty(), "bridges where there is no border");
            assert!(zone.bridges.len() <= BRIDGES, "too many bridges");
            let fits = peers.iter().filter(|key| self.may_bridge(**key)).count();
            let all = !zone.imports || zone.bridges.len() == BRIDGES || fits == 0 || !zone.has_border;
            assert!(all, "a zone lacks bridges, and somebody could be one");
            for (number, bridge) in zone.bridges.iter().enumerate() {
                let told = self.download(*bridge).and_then(|download| download.bridge);
                assert_eq!(told, Some((number as u32, zone.bridges.len() as u32)), "which bridge it is");
            }
        }
        for (key, download) in self.downloads() {
            let across: BTreeSet<HostKey> =
                download.partners.keys().copied().filter(|partner| self.is_across(key, *partner)).collect();
            assert_eq!(download.across, across, "partners in other zones");
            let is_bridge = self.zones.get(&hosts.zone(key)).is_some_and(|zone| zone.bridges.contains(&key));
            assert_eq!(download.bridge.is_some(), is_bridge, "who is a bridge");
            let apart = |partner: &&HostKey| !self.may_meet(key, **partner);
            // A source is named over every border to whoever knows none; one that drains is none any more, and stays where it is.
            let length = self.content.as_ref().map_or(u64::MAX, |content| content.layout.length());
            let has_all = |key: HostKey| self.download(key).is_none_or(|download| download.held >= length);
            let was_source = |partner: &HostKey| has_all(*partner) || has_all(key);
            assert!(across.iter().filter(apart).all(was_source), "a link over a border that is not a gate's");
        }
    }

    fn check_indexes(&self) {
        let length = self.content.as_ref().map(|content| content.layout.length());
        for (key, peer) in &self.peers {
            let (supplier, source) = match &peer.role {
                Role::Complete => (true, true),
                Role::Partial => (true, false),
                Role::Downloading(download) => {
                    let supplier = download.meshes() && download.held > 0;
                    (supplier, supplier && length.is_some_and(|length| download.held >= length))
                }
            };
            let Regard { struck, on_probation, draining } = peer.regard;
            let mute = struck || draining;
            let trusted = !on_probation || !matches!(peer.role, Role::Downloading(_));
            assert_eq!(peer.listed.supplier, supplier && !mute && trusted, "suppliers");
            assert_eq!(peer.listed.source, source && !mute && !on_probation, "sources");
            let partners = self.download(*key).filter(|download| download.meshes()).map(|d| &d.partners);
            let sources = |partners: &BTreeMap<HostKey, _>| {
                partners.keys().filter(|partner| self.is_source(**partner)).count()
            };
            assert_eq!(peer.listed.lonely, partners.is_some_and(|p| p.is_empty()), "lonely");
            let filled = |p: &BTreeMap<HostKey, _>| match self.bordered(*key) {
                Some(_) => p.keys().filter(|partner| !self.is_across(*key, **partner)).count(),
                None => p.len(),
            };
            assert_eq!(
                peer.listed.hungry,
                partners.is_some_and(|p| !p.is_empty() && filled(p) < 20),
                "hungry"
            );
            assert_eq!(peer.listed.sourceless, partners.is_some_and(|p| sources(p) == 0), "sourceless");
            let has_it = |peer: &HostKey| self.download(*peer).is_some_and(|d| d.partners.contains_key(key));
            let named_to: BTreeSet<HostKey> = self.peers.keys().copied().filter(has_it).collect();
            assert_eq!(peer.named_to.iter().collect::<BTreeSet<_>>(), named_to, "named to");
            assert_eq!(peer.named_to.len(), named_to.len(), "named twice to one");
        }
        self.check_bag(&self.suppliers, |listed| listed.supplier);
        self.check_bag(&self.sources, |listed| listed.source);
        self.check_bag(&self.lonely, |listed| listed.lonely);
        self.check_bag(&self.hungry, |listed| listed.hungry);
        self.check_bag(&self.sourceless, |listed| listed.sourceless);
    }

    fn check_bag(&self, bag: &Bag, listed: fn(&Listed) -> bool) {
        let peers = self.peers.iter().filter(|(_, peer)| listed(&peer.listed));
        let meant: BTreeSet<HostKey> = peers.map(|(key, _)| *key).collect();
        assert_eq!(bag.iter().collect::<BTreeSet<_>>(), meant, "an index");
        assert_eq!(bag.len(), meant.len(), "a peer listed twice");
    }

    fn check_links(&self, hosts: &Hosts, key: HostKey) {
        let Some(download) = self.download(key) else { return };
        assert!(download.meshes() || download.partners.is_empty(), "one that goes alone has a partner");
        for partner in download.partners.keys() {
            let peer = self.peers.get(partner).expect("a partner is a peer");
            assert!(!peer.regard.struck, "a partner that is struck");
            assert!(!download.failed.contains(partner), "a partner that failed");
            let id = &hosts.life(*partner).expect("a partner is alive").host.id;
            assert!(!download.gone.contains(id), "a partner that is to be dropped");
            if let Some(theirs) = self.download(*partner) {
                assert!(theirs.partners.contains_key(&key), "a link that is not mutual");
            }
        }
        if download.meshes() && self.has_source(key) {
            let has = download.partners.keys().any(|partner| self.is_source(*partner));
            assert!(has, "there is a source, and the peer does not know it");
        }
        if self.peers[&key].listed.lonely {
            let free = |supplier: &HostKey| {
                let on_probation = self.peers[supplier].regard.on_probation;
                !on_probation
                    && self.usable(key, *supplier)
                    && self.may_meet(key, *supplier)
                    && self.room_for(*supplier, key) > 0
            };
            assert_eq!(self.suppliers.iter().find(free), None, "a peer has nobody, and somebody has room");
        }
    }

    fn check_lease(&self, now: Instant) {
        let holder = self.lease.as_ref().map(|lease| lease.holder);
        let leased = self.downloads().filter(|(_, d)| d.standing == Standing::Leased).map(|(key, _)| key);
        assert_eq!(leased.collect::<Vec<_>>(), Vec::from_iter(holder), "who holds the lease");
        assert!(holder.is_none() || self.kept_until.is_none(), "a lease that is kept and given");
        assert!(holder.is_none() || !self.unshareable, "a lease where everybody goes alone");
        if self.is_free(now) {
            let forgotten = self.downloads().find(|(key, d)| {
                d.stream.is_some() && self.ticket_of(*key).is_some() && !self.places.contains_key(&d.origin)
            });
            assert!(forgotten.is_none(), "the lease is free, and a peer waits for it");
        }
    }
}
