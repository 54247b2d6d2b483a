//! The invariants, checked against a whole cluster after every event of a test.

use crate::bag::Bag;
use crate::cluster::Cluster;
use crate::conduct::State;
use crate::host::{HostKey, Hosts, Regard};
use crate::peer::{Download, Listed, Role, Standing};
use crate::stream::Line;
use crate::task::Task;
use crate::world::Timer;
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
        self.check_lease(now);
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
            assert_eq!(peer.listed.hungry, partners.is_some_and(|p| (1..20).contains(&p.len())), "hungry");
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
                !on_probation && self.usable(key, *supplier) && self.room(*supplier) > 0
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
