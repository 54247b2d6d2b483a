//! Zones and their borders: a zone imports a content once, however many of its hosts want it.
//!
//! A zone is what has the same `host.idc` and the same first two parts of `host.location`. With at least [`LEAST`] peers in a task it
//! has a border: whoever downloads there has partners in its own zone. Across go its *bridges*, up to [`BRIDGES`] of those who
//! download, who know the bridges of all zones, and whoever brings the content from the origin. He gives to bridges alone, so
//! that each piece begins its life where every zone sees it. Each piece is the duty of one bridge of a zone, and the others
//! leave it to that one (`border.rs` of the swarm). A zone that has a holder of everything needs no bridge.
//!
//! Without a border are: zones with fewer peers, which would hang on too few; hosts that do not say where they stand; and those who
//! download nothing, and give to whoever comes. One exception: whoever knows no source on its side is given one across, or
//! it would go to the origin.

use crate::bag::Bag;
use crate::bridge::Duty;
use crate::host::HostKey;
use crate::message::Host;
use crate::peer::{Download, Listed, Role};
use crate::policy::PARTNERS;
use crate::task::Task;
use crate::world::Cx;
use rand::seq::SliceRandom;
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Peers of a zone in a task from which on it has a border: as many as one has partners, and itself. Fewer are no mesh.
pub(crate) const LEAST: usize = PARTNERS + 1;
/// Bridges of a zone. Each brings an eighth of the content; of fewer, each would be missed more.
pub(crate) const BRIDGES: usize = 8;
/// Partners of a bridge in other zones. All bridges of four other zones; of more, some of each.
pub(crate) const CROSSINGS: usize = 32;
/// Sources in other zones that a bridge is given.
const FAR_SOURCES: usize = 2;
/// How many peers are looked at for one bridge.
pub(crate) const LOOKED_AT: usize = 32;

/// Where a host stands, as far as borders go. `None`: it does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct ZoneId(Option<u64>);

impl ZoneId {
    pub(crate) fn of(host: &Host) -> Self {
        let mut parts = host.location.split('|').take_while(|part| !part.is_empty());
        let (region, zone) = (parts.next(), parts.next());
        if host.idc.is_empty() && region.is_none() {
            return Self(None);
        }
        // Two names with the same hash would be one zone, which costs a border nothing but its traffic.
        let mut hasher = DefaultHasher::new();
        (&host.idc, region, zone).hash(&mut hasher);
        Self(Some(hasher.finish()))
    }

    const fn is_known(self) -> bool {
        self.0.is_some()
    }
}

/// The peers of a task that stand in one zone.
#[derive(Debug, Default)]
pub(crate) struct Zone {
    /// All, whatever they do.
    pub(crate) peers: usize,
    pub(crate) has_border: bool,
    /// Its own sources are too few for those who download, and bridges bring it from others.
    pub(crate) imports: bool,
    pub(crate) downloads: Bag,
    pub(crate) suppliers: Bag,
    pub(crate) lonely: Bag,
    pub(crate) hungry: Bag,
    /// Those of them who have every byte.
    pub(crate) sources: usize,
    /// In the order of their numbers.
    pub(crate) bridges: Vec<HostKey>,
}

impl Zone {
    /// The last one takes its number, so that as few as may be get another.
    pub(crate) fn remove_bridge(&mut self, key: HostKey) {
        if let Some(number) = self.bridges.iter().position(|bridge| *bridge == key) {
            self.bridges.swap_remove(number);
        }
    }

    /// Whether its own sources are too few for those who download. It has enough again when they are enough for twice as many: at each
    /// change all who know its sources are told.
    fn should_import(&self) -> bool {
        let each = if self.imports { PARTNERS / 2 } else { PARTNERS };
        self.sources * each < self.downloads.len()
    }

    /// From so few on it has none any more, so that one who comes and goes does not change it each time.
    fn should_have_border(&self) -> bool {
        self.peers >= if self.has_border { LEAST / 2 } else { LEAST }
    }
}

// === who stands where ===

impl Task {
    pub(crate) fn zone_of(&self, key: HostKey) -> ZoneId {
        self.peers.get(&key).map(|peer| peer.zone).unwrap_or_default()
    }

    fn zone(&self, key: HostKey) -> Option<&Zone> {
        self.zones.get(&self.zone_of(key)).map(AsRef::as_ref)
    }

    /// The peer's zone, if it has a border.
    pub(crate) fn bordered(&self, key: HostKey) -> Option<&Zone> {
        self.zone(key).filter(|zone| zone.has_border)
    }

    pub(crate) fn is_across(&self, a: HostKey, b: HostKey) -> bool {
        self.zone_of(a) != self.zone_of(b)
    }

    /// Whether the peer deals with those of other zones.
    pub(crate) fn is_gate(&self, key: HostKey) -> bool {
        self.bordered(key).is_none() || self.download(key).is_none_or(|download| download.gate)
    }

    /// Whether borders allow the two to be partners.
    pub(crate) fn may_meet(&self, a: HostKey, b: HostKey) -> bool {
        let may = |a, b| match self.is_across(a, b) {
            true => self.is_gate(a),
            false => !self.has_lease(b) || self.is_gate(a),
        };
        may(a, b) && may(b, a)
    }

    /// Whether the peer is told of `partner` as one across a border. The holder of the lease is so to everybody, and so are
    /// sources as long as they are few: they have what all zones are to get, and none of it is in their own before
    /// they have given it away.
    pub(crate) fn seems_across(&self, key: HostKey, partner: HostKey) -> bool {
        let few = |zone: &Zone| self.has_lease(partner) || zone.imports && self.is_source(partner);
        self.bordered(key).is_some_and(|zone| self.is_across(key, partner) || few(zone))
    }

    /// Whether both are bridges of one zone.
    pub(crate) fn are_fellows(&self, key: HostKey, partner: HostKey) -> bool {
        let both = |zone: &Zone| zone.bridges.contains(&key) && zone.bridges.contains(&partner);
        self.bordered(key).is_some_and(both)
    }

    /// How many of its partners take one of the places that a downloader has for them.
    pub(crate) fn filled(&self, key: HostKey, download: &Download) -> usize {
        let across = self.bordered(key).map_or(0, |_| download.across.len());
        download.partners.len() - across
    }
}

// === who comes and goes ===

impl Task {
    /// Those who do not say where they stand have no border, and need no zone: of tasks with one holder there are millions.
    pub(crate) fn enter_zone(&mut self, zone: ZoneId) {
        if zone.is_known() {
            self.zones.entry(zone).or_default().peers += 1;
            self.moved.insert(zone);
        }
    }

    pub(crate) fn leave_zone(&mut self, id: ZoneId) {
        let Some(zone) = self.zones.get_mut(&id) else { return };
        zone.peers -= 1;
        self.moved.insert(id);
        if zone.peers == 0 {
            self.zones.remove(&id);
        }
    }

    /// The peer begins or ends a download.
    pub(crate) fn count_download(&mut self, key: HostKey, id: ZoneId, begins: bool) {
        let Some(zone) = self.zones.get_mut(&id) else { return };
        if begins {
            zone.downloads.insert(key);
            self.moved.insert(id);
            return;
        }
        zone.downloads.remove(key);
        self.moved.insert(id);
        zone.remove_bridge(key);
    }

    /// As `Task::list`, for those of one zone.
    pub(crate) fn list_in_zone(&mut self, key: HostKey, id: ZoneId, before: Listed, now: Listed) {
        let Some(zone) = self.zones.get_mut(&id) else { return };
        for (bag, before, now) in [
            (&mut zone.suppliers, before.supplier, now.supplier),
            (&mut zone.lonely, before.lonely, now.lonely),
            (&mut zone.hungry, before.hungry, now.hungry),
        ] {
            match (before, now) {
                (false, true) => bag.insert(key),
                (true, false) => bag.remove(key),
                _ => {}
            }
        }
        zone.sources = zone.sources + usize::from(now.source) - usize::from(before.source);
        if before.source != now.source {
            self.moved.insert(id);
        }
    }
}

// === bridges ===

impl Task {
    /// After an event: zones that have become large or small get their border or lose it, and bridges that are missing are named.
    pub(crate) fn mend_borders(&mut self, cx: &mut Cx<'_>) {
        while let Some(key) = self.released.pop_first() {
            self.moved.insert(self.zone_of(key));
            self.connect(cx, key);
            self.welcome(cx, key);
        }
        while let Some(id) = self.moved.pop_first() {
            let Some(zone) = self.zones.get_mut(&id) else { continue };
            let should = zone.should_have_border();
            if std::mem::replace(&mut zone.has_border, should) != should {
                self.border_changed(cx, id);
            }
            if should {
                self.turn(cx, id);
                self.name_bridges(cx, id);
            }
        }
        // What is empty keeps a node of its tree otherwise.
        (self.moved, self.released) = (BTreeSet::new(), BTreeSet::new());
    }

    /// The zone begins to import, or has enough by now: those who have its sources are told how these stand.
    fn turn(&mut self, cx: &mut Cx<'_>, id: ZoneId) {
        let Some(zone) = self.zones.get_mut(&id) else { return };
        let should = zone.should_import();
        if std::mem::replace(&mut zone.imports, should) == should {
            return;
        }
        let sources: Vec<HostKey> = self.sources.iter().filter(|key| self.zone_of(*key) == id).collect();
        for source in sources {
            self.changed(cx, source);
        }
    }

    fn name_bridges(&mut self, cx: &mut Cx<'_>, id: ZoneId) {
        self.dismiss_unfit(cx, id);
        let Some(zone) = self.zones.get(&id) else { return };
        let missing = if zone.imports { BRIDGES.saturating_sub(zone.bridges.len()) } else { 0 };
        let mut pool = Vec::new();
        if missing > 0 {
            pool = zone.downloads.some(LOOKED_AT, &mut cx.world.rng);
            pool.retain(|key| self.may_bridge(*key));
            // Not only for bad luck: most may have no stream yet.
            if pool.is_empty() {
                pool.extend(zone.downloads.iter().find(|key| self.may_bridge(*key)));
            }
            // Seeds first: they are there to serve.
            pool.sort_by_key(|key| !cx.world.hosts.is_seed(*key));
            pool.truncate(missing);
        }
        let Some(zone) = self.zones.get_mut(&id) else { return };
        zone.bridges.extend(&pool);
        for bridge in zone.bridges.clone() {
            self.renumber(cx, bridge);
        }
        for bridge in pool {
            self.changed(cx, bridge);
            self.cross(cx, bridge);
        }
        let Some(zone) = self.zones.get(&id) else { return };
        if zone.imports
            && zone.bridges.len() < BRIDGES
            && zone.downloads.iter().any(|key| self.may_bridge(key))
        {
            self.name_bridges(cx, id);
        }
    }

    /// Bridges that are named to nobody, or to nobody new, are none any more.
    fn dismiss_unfit(&mut self, cx: &mut Cx<'_>, id: ZoneId) {
        let Some(zone) = self.zones.get(&id) else { return };
        let unfit: Vec<HostKey> =
            zone.bridges.iter().copied().filter(|key| !self.is_fit_for_bridge(*key)).collect();
        for key in unfit {
            if let Some(zone) = self.zones.get_mut(&id) {
                zone.remove_bridge(key);
            }
            if let Some(download) = self.download_mut(key) {
                download.end_duty();
            }
            self.wake(cx, key);
        }
    }

    fn is_fit_for_bridge(&self, key: HostKey) -> bool {
        let Some(peer) = self.peers.get(&key) else { return false };
        let Role::Downloading(download) = &peer.role else { return false };
        let regard = peer.regard;
        !regard.struck && !regard.on_probation && !regard.draining && download.meshes()
    }

    pub(crate) fn may_bridge(&self, key: HostKey) -> bool {
        self.is_fit_for_bridge(key)
            && self.download(key).is_some_and(|download| download.stream.is_some() && !download.relieved)
            && !self.has_lease(key)
            && !self.zone(key).is_some_and(|zone| zone.bridges.contains(&key))
    }

    /// Tells a bridge which it is, if that is new.
    fn renumber(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        let Some(bridges) = self.zone(key).map(|zone| &zone.bridges) else { return };
        let of = bridges.len() as u32;
        let Some(number) = bridges.iter().position(|bridge| *bridge == key) else { return };
        let Some(download) = self.download_mut(key) else { return };
        download.gate = true;
        download.duty.get_or_insert_with(|| Box::new(Duty::new(cx.now)));
        let bridge = Some((number as u32, of));
        if std::mem::replace(&mut download.bridge, bridge) != bridge {
            download.news.bridge = true;
            self.wake(cx, key);
        }
    }

    /// The peer has the lease: what it brings goes to the bridges of all zones.
    pub(crate) fn open_gate(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        if let Some(download) = self.download_mut(key) {
            download.gate = true;
        }
        self.changed(cx, key);
        if self.bordered(key).is_some() {
            self.cross(cx, key);
        }
    }

    /// Links a gate with those of all zones whom it lacks.
    pub(crate) fn cross(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        let mut gates: Vec<HostKey> = self.zones.values().flat_map(|zone| &zone.bridges).copied().collect();
        gates.extend(self.lease.as_ref().map(|lease| lease.holder));
        gates.extend(self.sources.some(FAR_SOURCES, &mut cx.world.rng));
        let others = self.suppliers.some(LOOKED_AT, &mut cx.world.rng).into_iter();
        gates.extend(others.filter(|other| self.is_across(key, *other) && !self.is_source(*other)));
        gates.shuffle(&mut cx.world.rng);
        for gate in gates {
            self.meet(cx, key, gate);
        }
        self.welcome(cx, key);
    }

    /// Links two gates, if one of them has something for the other and both have room.
    fn meet(&mut self, cx: &mut Cx<'_>, a: HostKey, b: HostKey) {
        let alone = |key| self.download(key).is_some_and(|download| !download.meshes());
        if a == b || alone(a) || alone(b) || self.named(a, b) || self.named(b, a) || !self.may_meet(a, b) {
            return;
        }
        if self.room_for(a, b) == 0 || self.room_for(b, a) == 0 {
            return;
        }
        if self.usable(a, b) {
            self.link(cx, a, b);
        } else if self.usable(b, a) {
            self.link(cx, b, a);
        }
    }

    /// How many more partners the peer may have of the kind that `other` is.
    pub(crate) fn room_for(&self, key: HostKey, other: HostKey) -> usize {
        match self.download(key).filter(|_| self.bordered(key).is_some() && self.is_across(key, other)) {
            Some(download) if !self.is_source(key) => CROSSINGS.saturating_sub(download.across.len()),
            _ => self.room(key),
        }
    }

    /// The zone has a border now, or none any more: its peers are told how their partners stand, and those who are no gates lose
    /// those on the other side.
    fn border_changed(&mut self, cx: &mut Cx<'_>, id: ZoneId) {
        let Some(zone) = self.zones.get_mut(&id) else { return };
        let has_border = zone.has_border;
        let bridges = if has_border { Vec::new() } else { std::mem::take(&mut zone.bridges) };
        let downloads: Vec<HostKey> = zone.downloads.iter().collect();
        for bridge in bridges {
            if let Some(download) = self.download_mut(bridge) {
                download.gate = false;
                download.end_duty();
            }
        }
        if has_border {
            self.turn(cx, id);
            self.name_bridges(cx, id);
        }
        for key in downloads {
            self.index(key);
            self.retell(cx, key);
            self.keep_apart(cx, key);
            self.rejoin(cx, key);
        }
    }

    fn retell(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        let Some(download) = self.download_mut(key) else { return };
        for across in &download.across {
            if let Some(named) = download.partners.get_mut(across) {
                named.change();
            }
        }
        self.wake(cx, key);
    }

    /// Takes the partners away that borders do not allow.
    pub(crate) fn keep_apart(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        let across = self.download(key).map(|download| download.across.clone()).unwrap_or_default();
        for other in across {
            if !self.may_meet(key, other) && !self.is_source(key) && !self.is_source(other) {
                self.unlink(cx, key, other);
                self.rejoin(cx, key);
                self.rejoin(cx, other);
            }
        }
    }
}
