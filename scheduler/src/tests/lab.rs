//! [`Lab`]: a cluster with a clock that is set by hand, and daemons that do what they are told and remember what they
//! hear. After every event the invariants are checked, and that what each daemon was told adds up to what the cluster
//! means.

use crate::access::Access;
use crate::cluster::{Cluster, Sources, Taken};
use crate::message::{Content, Held, Host, Registration, Report};
use crate::refusal::Refusal;
use crate::stream::StreamId;
use darter_protocol::scheduler as proto;
use darter_protocol::scheduler::{FailureReason, LeaseOutcome};
use darter_protocol::{HostId, PieceHash, PieceLayout, Priority, Root, TaskId};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Ten pieces.
pub(super) const LENGTH: u64 = 10 * PieceLayout::MIN_PIECE_SIZE;

pub(super) struct Lab {
    pub(super) cluster: Cluster,
    pub(super) now: Instant,
    lifelines: BTreeMap<String, StreamId>,
    talks: BTreeMap<(String, u8), Talk>,
    locations: BTreeMap<String, String>,
}

/// A daemon's side of a download.
#[derive(Debug, Default, Clone)]
pub(super) struct Talk {
    pub(super) stream: Option<StreamId>,
    pub(super) partners: BTreeMap<String, proto::Partner>,
    pub(super) hashes: BTreeMap<u32, u8>,
    pub(super) length: Option<u64>,
    pub(super) root: bool,
    pub(super) lease: Option<u64>,
    pub(super) revoked: usize,
    pub(super) unshareable: bool,
    pub(super) share: Option<proto::Share>,
    pub(super) refused: Option<proto::Refused>,
    /// Which bridge it is, of how many.
    pub(super) bridge: Option<(u32, u32)>,
    pub(super) ended: Option<Option<Refusal>>,
    /// It does not read its stream.
    pub(super) deaf: bool,
    /// It gave a lease back while it did not read: that may have crossed the revocation.
    crossed: bool,
    pub(super) packets: usize,
}

impl Talk {
    pub(super) fn partners(&self) -> Vec<&str> {
        self.partners.keys().map(String::as_str).collect()
    }

    fn hear(&mut self, packet: proto::PeerPacket) {
        self.packets += 1;
        for host in packet.gone {
            assert!(self.partners.remove(&host).is_some(), "told to drop a stranger");
        }
        for partner in packet.partners {
            self.partners.insert(partner.host_id.clone(), partner);
        }
        if let Some(content) = packet.content {
            if self.length != Some(content.length) {
                self.hashes.clear();
            }
            (self.length, self.root) = (Some(content.length), !content.root.is_empty());
        }
        self.hashes.extend(packet.hashes.iter().map(|piece| (piece.index, piece.hash[0])));
        assert!(!packet.lease_revoked || packet.lease.is_none(), "which of the two came first?");
        if packet.lease_revoked {
            assert!(self.lease.take().is_some() || self.crossed, "a lease revoked that it did not have");
            self.revoked += 1;
        }
        if let Some(lease) = packet.lease {
            assert_eq!(self.lease.replace(lease.id), None, "two leases at once");
        }
        self.share = packet.share.or(self.share);
        if let Some(bridge) = packet.bridge {
            self.bridge = (bridge.of > 0).then_some((bridge.number, bridge.of));
        }
        self.refused = packet.refused.or(self.refused.take());
        if packet.unshareable {
            // It drops everything and goes by itself.
            (self.unshareable, self.lease) = (true, None);
            self.partners.clear();
        }
    }
}

pub(super) fn id(name: &str) -> HostId {
    name.parse().unwrap()
}

pub(super) fn task(n: u8) -> TaskId {
    TaskId::from([n; 32])
}

pub(super) fn content(length: u64) -> Content {
    Content { layout: PieceLayout::new(length).unwrap(), headers: [].into(), root: None }
}

pub(super) fn whole(length: u64) -> Content {
    Content { root: Some(Root::from([9; 32])), ..content(length) }
}

pub(super) fn hash(n: u8) -> PieceHash {
    PieceHash::from([n; 32])
}

impl Lab {
    pub(super) fn new() -> Self {
        Self::seeded(1)
    }

    pub(super) fn seeded(seed: u64) -> Self {
        let cluster = Cluster::new(7, StdRng::seed_from_u64(seed));
        Self {
            cluster,
            now: Instant::now(),
            lifelines: BTreeMap::new(),
            talks: BTreeMap::new(),
            locations: BTreeMap::new(),
        }
    }

    /// A cluster in which these hosts are alive.
    pub(super) fn with(hosts: &[&str]) -> Self {
        let mut lab = Self::new();
        hosts.iter().for_each(|host| lab.host(host));
        lab
    }

    // What daemons do.

    /// The host is alive; one whose name begins with "seed" is a seed.
    pub(super) fn host(&mut self, name: &str) {
        let location = self.locations.get(name).cloned().unwrap_or_default();
        self.announce(Host { location, ..Self::description(name) });
    }

    /// The same, and from now on it says that it stands there.
    pub(super) fn host_at(&mut self, name: &str, location: &str) {
        self.locations.insert(name.to_owned(), location.to_owned());
        self.host(name);
    }

    fn description(name: &str) -> Host {
        Host {
            id: id(name),
            hostname: name.to_owned(),
            ip: "192.0.2.1".parse().unwrap(),
            piece_port: 65002.try_into().unwrap(),
            idc: String::new(),
            location: String::new(),
            seed: name.starts_with("seed"),
            upload_slots: 4,
            draining: false,
            free_uploads: None,
            version: String::new(),
            protocol: 0,
        }
    }

    /// A host as it announces itself, but for what `change` says.
    pub(super) fn described(&self, name: &str, change: impl FnOnce(&mut Host)) -> Host {
        let mut host = Self::description(name);
        change(&mut host);
        host
    }

    /// The life line says what is new.
    pub(super) fn renew(&mut self, host: Host) {
        let stream = self.lifelines[host.id.as_str()];
        self.cluster.handle_host_renewed(self.now, stream, host).unwrap();
        self.settle();
    }

    pub(super) fn announce(&mut self, host: Host) {
        let name = host.id.to_string();
        let stream = self.cluster.handle_host_announced(self.now, host).unwrap();
        if let Some(before) = self.lifelines.insert(name, stream) {
            assert_eq!(self.cluster.take(before), Taken::Ended(Some(Refusal::Replaced)));
            self.cluster.handle_stream_closed(self.now, before);
        }
        self.settle();
    }

    pub(super) fn nonsense(&mut self, name: &str) {
        self.cluster.handle_nonsense(self.now, &id(name));
        self.settle();
    }

    pub(super) fn is_alive(&self, name: &str) -> bool {
        self.lifelines.contains_key(name)
    }

    /// The host's life line ends; its conversations end with it or are ended.
    pub(super) fn die(&mut self, name: &str) {
        let stream = self.lifelines.remove(name).unwrap();
        self.cluster.handle_stream_closed(self.now, stream);
        self.settle();
        self.talks.retain(|(host, _), _| host != name);
    }

    pub(super) fn register(&mut self, name: &str, n: u8) -> Talk {
        self.try_register(name, n, 0).unwrap()
    }

    pub(super) fn try_register(&mut self, name: &str, n: u8, held: u64) -> Result<Talk, Refusal> {
        self.try_register_at(name, n, Registration { held, ..Registration::default() })
    }

    /// Registers with an origin and a priority, and opens the conversation if it is not refused for good.
    pub(super) fn join_at(&mut self, name: &str, n: u8, origin: &str, level: u32) -> Talk {
        let priority = Priority::level(level).unwrap();
        let talk = self
            .try_register_at(
                name,
                n,
                Registration { origin: origin.into(), priority, ..Registration::default() },
            )
            .unwrap();
        if talk.refused.as_ref().is_none_or(|refused| !refused.for_good) {
            self.open(name, n);
        }
        talk
    }

    /// The operator's rules from now on.
    pub(super) fn rule(&mut self, access: Access) {
        self.cluster.set_access(self.now, access);
        self.settle();
    }

    pub(super) fn try_register_at(
        &mut self,
        name: &str,
        n: u8,
        registration: Registration,
    ) -> Result<Talk, Refusal> {
        let answer = self.cluster.handle_registered(self.now, &id(name), task(n), &registration)?;
        let before = self.talks.remove(&(name.to_owned(), n)).and_then(|talk| talk.stream);
        if let Some(before) = before {
            self.cluster.handle_stream_closed(self.now, before);
        }
        let mut talk = Talk::default();
        talk.hear(answer.into());
        self.talks.insert((name.to_owned(), n), talk.clone());
        self.settle();
        Ok(talk)
    }

    pub(super) fn open(&mut self, name: &str, n: u8) {
        self.try_open(name, n).unwrap();
    }

    pub(super) fn try_open(&mut self, name: &str, n: u8) -> Result<(), Refusal> {
        let stream = self.cluster.handle_conversation_opened(self.now, &id(name), task(n))?;
        let talk = self.talks.get_mut(&(name.to_owned(), n)).unwrap();
        if let Some(before) = talk.stream.replace(stream) {
            // What it heard on the other stream it does not rely on.
            assert_eq!(self.cluster.take(before), Taken::Ended(Some(Refusal::Replaced)));
            self.cluster.handle_stream_closed(self.now, before);
            *talk = Talk { stream: talk.stream, length: talk.length, ..Talk::default() };
        }
        self.settle();
        Ok(())
    }

    /// Registers and opens the conversation.
    pub(super) fn join(&mut self, name: &str, n: u8) -> Talk {
        let talk = self.register(name, n);
        self.open(name, n);
        talk
    }

    pub(super) fn is_open(&self, name: &str, n: u8) -> bool {
        self.talks.get(&(name.to_owned(), n)).is_some_and(|talk| talk.stream.is_some())
    }

    /// The conversation ends.
    pub(super) fn close(&mut self, name: &str, n: u8) {
        let talk = self.talks.remove(&(name.to_owned(), n)).unwrap();
        self.cluster.handle_stream_closed(self.now, talk.stream.unwrap());
        self.settle();
    }

    pub(super) fn report(&mut self, name: &str, n: u8, report: Report) {
        self.try_report(name, n, report).unwrap();
    }

    pub(super) fn try_report(&mut self, name: &str, n: u8, report: Report) -> Result<(), Refusal> {
        let stream = self.talk(name, n).stream.unwrap();
        let own = report.content.as_ref().map(|content| content.layout.length());
        let reported = self.cluster.handle_report(self.now, stream, report);
        // What it said and what was accepted, it is not told.
        if own.is_some() && own == self.cluster.stat(&task(n)).content.map(|content| content.length) {
            self.talks.get_mut(&(name.to_owned(), n)).unwrap().length = own;
        }
        self.settle();
        reported
    }

    /// A report of it has arrived, and waits for its turn.
    pub(super) fn arrives(&mut self, name: &str, n: u8) {
        let stream = self.talk(name, n).stream.unwrap();
        self.cluster.handle_report_arrived(stream);
        self.settle();
    }

    /// A report that gives the lease back, among other things.
    pub(super) fn try_report_returning(&mut self, name: &str, n: u8, report: Report) {
        self.talks.get_mut(&(name.to_owned(), n)).unwrap().lease = None;
        self.report(name, n, report);
    }

    pub(super) fn is_registered(&self, name: &str, n: u8) -> bool {
        self.talks.contains_key(&(name.to_owned(), n))
    }

    pub(super) fn content(&mut self, name: &str, n: u8, length: u64) {
        self.report(name, n, Report { content: Some(content(length)), ..Default::default() });
    }

    pub(super) fn hashes(&mut self, name: &str, n: u8, pieces: &[u32]) {
        let from_origin = pieces.iter().map(|piece| (*piece, hash(*piece as u8))).collect();
        self.report(name, n, Report { from_origin, ..Default::default() });
    }

    pub(super) fn held(&mut self, name: &str, n: u8, bytes: u64) {
        self.report(name, n, Report { held_bytes: bytes, ..Default::default() });
    }

    pub(super) fn origin_bytes(&mut self, name: &str, n: u8, bytes: u64) {
        self.report(name, n, Report { origin_bytes: bytes, ..Default::default() });
    }

    pub(super) fn failed(&mut self, name: &str, n: u8, partner: &str, reason: FailureReason) {
        // What it says is gone, it has dropped.
        self.talks.get_mut(&(name.to_owned(), n)).unwrap().partners.remove(partner);
        self.report(name, n, Report { failed: vec![(id(partner), reason)], ..Default::default() });
    }

    /// Gives back the lease that it has.
    pub(super) fn give_back(&mut self, name: &str, n: u8, outcome: LeaseOutcome) {
        let talk = self.talks.get_mut(&(name.to_owned(), n)).unwrap();
        let lease = talk.lease.take().unwrap();
        talk.crossed |= talk.deaf;
        if outcome == LeaseOutcome::Unshareable {
            talk.partners.clear();
        }
        self.report(name, n, Report { lease_returned: Some((lease, outcome)), ..Default::default() });
    }

    pub(super) fn complete(&mut self, name: &str, n: u8) {
        self.try_complete(name, n, whole(LENGTH)).unwrap();
    }

    pub(super) fn try_complete(&mut self, name: &str, n: u8, content: Content) -> Result<(), Refusal> {
        self.result(name, n, Some(content))
    }

    pub(super) fn give_up(&mut self, name: &str, n: u8) {
        self.result(name, n, None).unwrap();
    }

    /// What an earlier download of the host ended with, heard while another one is going on.
    pub(super) fn give_up_late(&mut self, name: &str, n: u8) {
        self.cluster.handle_peer_result(self.now, (&id(name), task(n)), None, Sources::default()).unwrap();
        self.settle();
    }

    fn result(&mut self, name: &str, n: u8, complete: Option<Content>) -> Result<(), Refusal> {
        self.cluster.handle_peer_result(self.now, (&id(name), task(n)), complete, Sources::default())?;
        // The daemon ends its stream once it is done.
        if let Some(stream) = self.talks.remove(&(name.to_owned(), n)).and_then(|talk| talk.stream) {
            self.settle();
            self.cluster.handle_stream_closed(self.now, stream);
        }
        self.settle();
        Ok(())
    }

    pub(super) fn inventory(&mut self, name: &str, tasks: &[u8]) -> Result<(), Refusal> {
        let held = |n: &u8| Held { task: task(*n), content: whole(LENGTH) };
        let announced = self.cluster.handle_inventory(self.now, &id(name), tasks.iter().map(held).collect());
        self.talks.retain(|(host, n), talk| {
            let downloads = host != name || !tasks.contains(n);
            downloads || talk.stream.is_some()
        });
        self.settle();
        announced
    }

    pub(super) fn drop_task(&mut self, name: &str, n: u8) {
        self.cluster.handle_tasks_left(self.now, &id(name), vec![task(n)]);
        self.settle();
    }

    // What time does.

    pub(super) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(due) = self.cluster.poll_timeout().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            self.cluster.handle_timeout(self.now);
            self.settle();
        }
        self.now = until;
        self.settle();
    }

    // What can be seen.

    pub(super) fn talk(&self, name: &str, n: u8) -> &Talk {
        &self.talks[&(name.to_owned(), n)]
    }

    /// Whether it downloads and has no partner.
    pub(super) fn is_alone(&self, name: &str) -> bool {
        self.talks.get(&(name.to_owned(), 1)).is_some_and(|talk| talk.partners.is_empty())
    }

    pub(super) fn lease_holder(&self, n: u8) -> String {
        self.cluster.stat(&task(n)).lease_holder
    }

    /// Delivers all packets, and checks that everybody knows what it should.
    fn settle(&mut self) {
        while let Some(stream) = self.cluster.poll_ready() {
            self.listen(stream);
        }
        self.cluster.check(self.now);
        self.check_views();
    }

    fn listen(&mut self, stream: StreamId) {
        let Some(talk) = self.talks.values_mut().find(|talk| talk.stream == Some(stream) && !talk.deaf)
        else {
            return;
        };
        loop {
            match self.cluster.take(stream) {
                Taken::Packet(packet) => talk.hear(packet),
                Taken::Nothing => return,
                Taken::Ended(why) => {
                    talk.ended = Some(why);
                    return;
                }
            }
        }
    }

    /// From now on the daemon reads its stream, or does not.
    pub(super) fn set_deaf(&mut self, name: &str, n: u8, deaf: bool) {
        let talk = self.talks.get_mut(&(name.to_owned(), n)).unwrap();
        talk.deaf = deaf;
        if let Some(stream) = talk.stream {
            self.listen(stream);
        }
        self.settle();
    }

    fn check_views(&self) {
        let alive: BTreeSet<&str> = self.lifelines.keys().map(String::as_str).collect();
        for ((name, n), talk) in &self.talks {
            let Some(state) = self.cluster.tasks.get(&task(*n)) else { continue };
            let Some(key) = self.cluster.world.hosts.key(&id(name)) else { continue };
            let Some(download) = state.download(key).filter(|download| download.stream == talk.stream) else {
                continue;
            };
            if talk.stream.is_none() || talk.deaf {
                // It has not heard everything yet.
                continue;
            }
            assert!(
                talk.partners().iter().all(|partner| alive.contains(partner)),
                "{name} is told of the dead"
            );
            let meant: Vec<String> = {
                let hosts = &self.cluster.world.hosts;
                let mut meant: Vec<_> =
                    download.partners.keys().map(|key| hosts.host(*key).unwrap().id.to_string()).collect();
                meant.sort();
                meant
            };
            assert_eq!(talk.partners(), meant, "the partners of {name} as it knows them");
            let lease = state.lease.as_ref().filter(|lease| lease.holder == key).map(|lease| lease.id);
            if download.meshes() {
                assert_eq!(talk.lease, lease, "the lease of {name} as it knows it");
                assert_eq!(talk.length, state.content.as_ref().map(|c| c.layout.length()).or(talk.length));
            }
        }
    }
}
