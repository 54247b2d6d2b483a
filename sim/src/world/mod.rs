//! [`World`]: everybody, the network between them, and what happens in which order.

mod end;
mod scheduler;

use crate::clock::Clock;
use crate::fate::{self, Fate};
use crate::net::{Cargo, HostNo, Net, Sending, StreamNo};
use crate::node::{Message, Node, Out, host_id, host_no};
use crate::outcome::Outcome;
use crate::scenario::{Loss, Scenario, Shape};
use crate::talk::ToScheduler;
use crate::tree;
use darter_protocol::scheduler::PeerPacket;
use darter_protocol::{PieceHash, PieceIndex, PieceLayout, TaskId};
use darter_scheduler::message::{Content, Host, Registration, Report};
use darter_scheduler::{Cluster, Sources, StreamId, Taken};
use darter_swarm::Limits;
use rand::rngs::{SmallRng, StdRng};
use rand::{RngExt, SeedableRng};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The origin's number.
const ORIGIN: HostNo = 0;
/// The daemon that is asked first to go to the origin.
const SEED: HostNo = 1;
/// What is lost is sent again after this.
const RESENT: Duration = Duration::from_millis(200);
/// After this the scheduler notices that a host is cut off.
const NOTICED: Duration = Duration::from_secs(5);
/// For so long nobody reaches who is cut off.
const CUT: Duration = Duration::from_secs(10);
/// After this the scheduler's probe of a connection has failed: twice `KEEP_ALIVE` in `darter_scheduler`.
const PROBED: Duration = Duration::from_secs(10);
/// Longer than this many times one copy nothing is played.
const MOST: u32 = 20;

enum Event {
    Begin(HostNo),
    Sent(Sending, HostNo),
    Came(Sending, HostNo),
    Message(HostNo, HostNo, Box<Message>),
    ToScheduler(HostNo, u32, Box<ToScheduler>),
    FromScheduler(HostNo, u32, Box<PeerPacket>),
    Wake(HostNo),
    WakeScheduler,
    Crash(HostNo),
    CutOff(HostNo),
    Missed(HostNo),
    Healed(HostNo),
    Lost(HostNo, HostNo),
    ZoneCut,
    ZoneMissed,
    ZoneHealed,
    SchedulerLost,
    HolderLost,
}

pub(crate) struct World {
    scenario: Scenario,
    layout: PieceLayout,
    task: TaskId,
    one_copy: Duration,
    clock: Clock<Event>,
    net: Net,
    cluster: Cluster,
    /// By number; those before the seed are nobody.
    nodes: Vec<Option<Node>>,
    fates: Vec<Fate>,
    places: Vec<Place>,
    lines: HashMap<StreamId, HostNo>,
    rng: SmallRng,
    scheduler_wakes: Option<Instant>,
    origin_bytes: u64,
    peer_bytes: u64,
    /// Bytes that came into each zone from others.
    border_bytes: Vec<u64>,
    zone_cut_until: Duration,
    events: u64,
}

/// How the world stands with a host.
#[derive(Debug, Clone, Default)]
struct Place {
    dead: bool,
    /// It lives, and nobody will ever reach it again.
    cut_off: bool,
    cut_until: Duration,
    wakes: Option<Instant>,
    lifeline: Option<StreamId>,
    talk: Option<StreamId>,
    /// Counts its conversations: what is said on an earlier one is not heard.
    talks: u32,
}

impl World {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let mut rng = SmallRng::seed_from_u64(scenario.seed);
        let layout = PieceLayout::new(u64::from(scenario.pieces) * PieceLayout::MIN_PIECE_SIZE)
            .expect("not longer than content may be");
        let one_copy = Duration::from_secs_f64(layout.length() as f64 / scenario.rate as f64);
        let hosts = scenario.peers + 2;
        let mut fates = vec![Fate::default(); 2];
        fates.extend(fate::draw(scenario, one_copy, &mut rng));
        let task = TaskId::from([7; 32]);
        let mut net = Net::new(scenario.rate, scenario.latency, scenario.block);
        net.add_host(scenario.origin_rate, scenario.origin_rate);
        let mut nodes = vec![None];
        let limits = match scenario.shape {
            Shape::Mesh => scenario.limits,
            Shape::Tree => Limits { window: scenario.pieces as usize, ..scenario.limits },
        };
        let numbers: Vec<HostNo> = (SEED..hosts).collect();
        let parents = tree::parents(&numbers, &mut rng);
        for (no, parents) in numbers.into_iter().zip(parents) {
            let slow = scenario.slow_every > 0 && no > SEED && no % scenario.slow_every == 0;
            let rate = if slow { scenario.rate / 4 } else { scenario.rate };
            net.add_host(rate, rate);
            let mut node = Node::new(no, (task, layout), scenario, limits);
            node.reads = scenario.readers;
            node.corrupt = fates[no].corrupt;
            node.parents = (scenario.shape == Shape::Tree).then_some(parents);
            nodes.push(Some(node));
        }
        Self {
            layout,
            task,
            one_copy,
            clock: Clock::new(),
            net,
            cluster: Cluster::new(1, StdRng::seed_from_u64(scenario.seed)),
            nodes,
            fates,
            places: vec![Place::default(); hosts],
            lines: HashMap::new(),
            rng,
            scheduler_wakes: None,
            origin_bytes: 0,
            peer_bytes: 0,
            border_bytes: vec![0; scenario.zones],
            zone_cut_until: Duration::ZERO,
            events: 0,
            scenario: scenario.clone(),
        }
    }

    pub(crate) fn play(mut self) -> Outcome {
        let peers = self.scenario.peers.max(1) as u32;
        for no in SEED..self.nodes.len() {
            let after = self.scenario.arrivals * (no - SEED) as u32 / peers;
            self.clock.plan(after, Event::Begin(no));
            let fate = self.fates[no];
            fate.crashes.into_iter().for_each(|at| self.clock.plan(at, Event::Crash(no)));
            fate.cut_off.into_iter().for_each(|at| self.clock.plan(at, Event::CutOff(no)));
        }
        if let Some((at, _)) = self.scenario.zone_cut {
            self.clock.plan(at, Event::ZoneCut);
        }
        if let Some(at) = self.scenario.scheduler_lost {
            self.clock.plan(at, Event::SchedulerLost);
        }
        if let Some((at, _)) = self.scenario.holder_lost {
            self.clock.plan(at, Event::HolderLost);
        }
        while let Some(event) = self.clock.next() {
            self.events += 1;
            if self.clock.now() > self.one_copy * MOST + self.scenario.arrivals || self.all_done() {
                break;
            }
            self.handle(event);
        }
        self.outcome()
    }

    fn all_done(&self) -> bool {
        // Looked at now and then: it takes a look at everybody.
        self.events.is_multiple_of(4096)
            && (SEED..self.nodes.len()).all(|no| {
                self.is_lost(no)
                    || self.fates[no].corrupt
                    || self.nodes[no].as_ref().is_some_and(Node::is_done)
            })
    }

    fn handle(&mut self, event: Event) {
        let now = self.clock.instant();
        match event {
            Event::Begin(no) | Event::Healed(no) => self.begin(no),
            Event::Sent(sending, from) => {
                let latency = self.delay();
                if let Some(at) = self.net.sent(sending, self.clock.now(), latency) {
                    let to = self.net.stream(sending.stream).map_or(from, |stream| stream.to);
                    let at = self.through(from, to, at);
                    self.clock.plan(at, Event::Came(sending, from));
                }
                self.kick(from);
            }
            Event::Came(sending, from) => {
                let to = self.net.stream(sending.stream).map(|stream| stream.to);
                if self.net.came(sending, self.clock.now()) {
                    self.handle_arrived(now, sending.stream);
                }
                self.kick(from);
                // What has come may be passed on.
                to.into_iter().for_each(|to| self.kick(to));
            }
            Event::Message(from, to, message) => self.handle_message(now, from, to, *message),
            Event::ToScheduler(from, talk, message) => self.handle_at_scheduler(now, from, talk, *message),
            Event::FromScheduler(to, talk, packet) => {
                if self.places[to].talks == talk && !self.places[to].dead {
                    self.with(to, |node| {
                        if !node.is_done() {
                            node.handle_packet(now, *packet);
                        }
                    });
                }
            }
            Event::Wake(no) => {
                if self.places[no].wakes == Some(now) {
                    self.places[no].wakes = None;
                    self.wake(no, now);
                }
            }
            Event::WakeScheduler => {
                self.scheduler_wakes = None;
                self.cluster.handle_timeout(now);
                self.pump_scheduler();
            }
            Event::Crash(no) => self.crash(no, now),
            Event::CutOff(no) => {
                let until = self.clock.now() + CUT;
                self.places[no].cut_until = until;
                self.clock.plan(self.clock.now() + NOTICED, Event::Missed(no));
                self.clock.plan(until, Event::Healed(no));
            }
            Event::Missed(no) => self.leave_scheduler(no, now),
            Event::ZoneCut => {
                let lasts = self.scenario.zone_cut.map_or(Duration::ZERO, |(_, lasts)| lasts);
                self.zone_cut_until = self.clock.now() + lasts;
                self.clock.plan(self.clock.now() + NOTICED, Event::ZoneMissed);
                self.clock.plan(self.zone_cut_until, Event::ZoneHealed);
            }
            Event::ZoneMissed => self.of_last_zone().for_each(|no| self.leave_scheduler(no, now)),
            Event::ZoneHealed => self.of_last_zone().for_each(|no| self.begin(no)),
            Event::SchedulerLost => self.lose_scheduler(),
            Event::HolderLost => self.lose_holder(now),
            Event::Lost(no, lost) => {
                if !self.places[no].dead {
                    self.with(no, |node| node.handle_peer_lost(now, lost));
                }
            }
        }
    }

    fn delay(&mut self) -> Duration {
        let lost = self.scenario.loss > 0.0 && self.rng.random_bool(self.scenario.loss);
        self.scenario.latency + if lost { RESENT } else { Duration::ZERO }
    }

    /// When what was sent between the two really comes.
    fn through(&self, a: HostNo, b: HostNo, at: Duration) -> Duration {
        let hosts = self.places[a].cut_until.max(self.places[b].cut_until);
        let cut = if self.crosses_cut(a, b) { hosts.max(self.zone_cut_until) } else { hosts };
        if cut > self.clock.now() { at.max(cut + RESENT) } else { at }
    }

    /// Whether the last zone's border stands between the two.
    fn crosses_cut(&self, a: HostNo, b: HostNo) -> bool {
        let last = self.scenario.zones.checked_sub(1);
        last.is_some() && (self.zone(a) == last) != (self.zone(b) == last)
    }

    /// Lets a node do something, and carries out what comes of it.
    fn with(&mut self, no: HostNo, event: impl FnOnce(&mut Node)) {
        let (now, at) = (self.clock.instant(), self.clock.now());
        let Some(node) = &mut self.nodes[no] else { return };
        event(node);
        node.drive(now);
        if node.swarm.is_complete() && !node.is_done() && !self.places[no].dead {
            node.finish(now, at);
            node.drive(now);
        }
        let out = std::mem::take(&mut node.out);
        let wake = node.wake_at();
        for out in out {
            self.carry_out(no, out);
        }
        if let Some(wake) = wake
            && self.places[no].wakes.is_none_or(|armed| wake < armed)
        {
            let wake = wake.max(now);
            self.places[no].wakes = Some(wake);
            self.clock.plan(self.clock.since_start(wake), Event::Wake(no));
        }
    }

    fn wake(&mut self, no: HostNo, now: Instant) {
        if self.places[no].dead {
            return;
        }
        let Some(node) = &self.nodes[no] else { return };
        let start = now - self.clock.now();
        let last: HashMap<(HostNo, PieceIndex), Instant> = node
            .fetches
            .iter()
            .filter_map(|(key, stream)| Some((*key, start + self.net.stream((*stream)?)?.last_byte?)))
            .collect();
        self.with(no, |node| node.wake(now, |id, piece| last.get(&(host_no(id), piece)).copied()));
    }

    fn carry_out(&mut self, no: HostNo, out: Out) {
        match out {
            Out::To(to, message) => {
                let later = matches!(message, Message::Busy(_)).then_some(self.scenario.busy_later);
                let after = self.clock.now() + self.delay() + later.unwrap_or_default();
                let at = self.through(no, to, after);
                self.clock.plan(at, Event::Message(no, to, Box::new(message)));
            }
            Out::ToScheduler(message) => {
                let after = self.clock.now() + self.delay();
                let (at, talk) = (self.through(no, ORIGIN, after), self.places[no].talks);
                self.clock.plan(at, Event::ToScheduler(no, talk, Box::new(message)));
            }
            Out::Send { to, piece, upload, source } => self.upload((no, to), piece, upload, source),
            Out::Run { run, first } => {
                let bytes = self.layout.range(first).len();
                let stream = self.net.open(
                    (ORIGIN, no),
                    (first, bytes, self.layout.length() - self.layout.range(first).start()),
                    (Cargo::Run(run), None),
                );
                if let Some((known, _)) = self.nodes[no].as_mut().and_then(|node| node.runs.get_mut(&run)) {
                    *known = stream;
                }
                self.kick(ORIGIN);
            }
            Out::End(stream) => self.end(stream),
        }
    }

    fn upload(
        &mut self,
        (no, to): (HostNo, HostNo),
        piece: PieceIndex,
        upload: darter_swarm::UploadId,
        source: Option<StreamNo>,
    ) {
        let asked = self.nodes[to].as_mut().and_then(|node| node.fetches.get_mut(&(no, piece)));
        let Some(asked) = asked.filter(|asked| asked.is_none()) else {
            // It was cancelled on the way.
            let after = self.clock.now() + self.scenario.latency;
            self.clock.plan(after, Event::Message(to, no, Box::new(Message::HungUp(upload))));
            return;
        };
        if source.is_some_and(|source| self.net.stream(source).is_none_or(|stream| stream.over)) {
            // What it was to pass on has ended, and it is about to hear that.
            let now = self.clock.instant();
            self.nodes[no].iter_mut().for_each(|node| node.uploads.handle_sent(now, upload, false));
            self.carry_out(no, Out::To(to, Message::Failed(piece)));
            return;
        }
        let bytes = self.layout.range(piece).len();
        let stream = self.net.open((no, to), (piece, bytes, bytes), (Cargo::Piece(upload), source));
        *asked = Some(stream);
        if let Some(stream) = self.net.stream_mut(stream).filter(|_| self.fates[no].corrupt) {
            stream.lie();
        }
        self.carry_out(no, Out::To(to, Message::Head(piece)));
        self.kick(no);
    }

    fn end(&mut self, stream: StreamNo) {
        let Some(known) = self.net.stream(stream) else { return };
        let (from, to, cargo) = (known.from, known.to, known.cargo);
        let (piece, fed) = (known.piece, self.net.take_fed(stream));
        self.net.end(stream);
        self.settle_fed(to, piece, fed);
        if let Cargo::Piece(upload) = cargo {
            let after = self.clock.now() + self.scenario.latency;
            let at = self.through(from, to, after);
            self.clock.plan(at, Event::Message(to, from, Box::new(Message::HungUp(upload))));
        }
    }

    /// What fed these is over: whoever has the piece goes on with them, and whoever has not ends them.
    fn settle_fed(&mut self, no: HostNo, piece: PieceIndex, fed: Vec<StreamNo>) {
        let here = self.nodes[no].as_ref().is_some_and(|node| node.content[piece.as_usize()].is_some());
        for stream in fed {
            if here {
                self.net.feed(stream, u64::MAX);
                continue;
            }
            let Some((to, cargo)) = self.net.stream(stream).map(|stream| (stream.to, stream.cargo)) else {
                continue;
            };
            let further = self.net.take_fed(stream);
            self.net.end(stream);
            if let Cargo::Piece(upload) = cargo
                && let Some(node) = &mut self.nodes[no]
            {
                node.uploads.handle_sent(self.clock.instant(), upload, false);
            }
            self.carry_out(no, Out::To(to, Message::Cut(piece)));
            self.settle_fed(to, piece, further);
        }
        self.kick(no);
    }

    fn kick(&mut self, host: HostNo) {
        if let Some(sending) = self.net.send(host) {
            self.clock.plan(self.clock.now() + sending.takes, Event::Sent(sending, host));
        }
    }

    /// A stream has brought all of its piece.
    fn handle_arrived(&mut self, now: Instant, no: StreamNo) {
        let Some(stream) = self.net.stream(no) else { return };
        let (from, to, piece, cargo) = (stream.from, stream.to, stream.piece, stream.cargo);
        let bytes = self.layout.range(piece).len();
        match cargo {
            Cargo::Piece(upload) => {
                self.peer_bytes += bytes;
                self.count_border(from, to, bytes);
                let sent = self.nodes[from].as_ref().and_then(|node| node.content[piece.as_usize()]);
                let sent = if self.fates[from].corrupt { Some(PieceHash::from([0xee; 32])) } else { sent };
                if !self.places[from].dead {
                    self.with(from, |node| node.uploads.handle_sent(now, upload, true));
                }
                if let Some(sent) = sent.filter(|_| !self.places[to].dead) {
                    self.with(to, |node| node.handle_piece(now, from, piece, sent));
                }
                let fed = self.net.take_fed(no);
                self.net.end(no);
                self.settle_fed(to, piece, fed);
            }
            Cargo::Run(run) => {
                self.origin_bytes += bytes;
                self.count_border(ORIGIN, to, bytes);
                let end = self.nodes[to].as_ref().and_then(|node| node.runs.get(&run)).map(|(_, end)| *end);
                let next = PieceIndex::new(piece.get() + 1);
                let goes_on = end.is_some_and(|end| next.get() < end);
                if goes_on {
                    self.net.next_piece(no, next, self.layout.range(next).len());
                } else {
                    self.net.end(no);
                }
                self.with(to, |node| {
                    node.handle_origin_piece(now, piece, right(piece));
                    if !goes_on {
                        node.runs.remove(&run);
                        node.handle_run_ended(run);
                    }
                });
            }
        }
    }

    fn handle_message(&mut self, now: Instant, from: HostNo, to: HostNo, message: Message) {
        if self.places[to].dead {
            // Its kernel says that nobody is there.
            let after = self.clock.now() + self.scenario.latency;
            match message {
                Message::Ask { .. } | Message::AskHashes | Message::Follow => {
                    self.clock.plan(after, Event::Lost(from, to))
                }
                _ => {}
            }
            return;
        }
        if matches!(message, Message::More(_)) && self.nodes[to].as_ref().is_some_and(Node::is_done) {
            return;
        }
        // It may have hung up itself, and asked again: that is another stream.
        if let Message::Cut(piece) = message
            && !self.is_cut(from, to, piece)
        {
            return;
        }
        self.with(to, |node| node.handle_message(now, from, message));
    }

    /// Whether what a host fetches from another comes in a stream, and that has ended.
    fn is_cut(&self, from: HostNo, to: HostNo, piece: PieceIndex) -> bool {
        let fetch = self.nodes[to].as_ref().and_then(|node| *node.fetches.get(&(from, piece))?);
        fetch.is_some_and(|no| self.net.stream(no).is_none_or(|stream| stream.over))
    }

    // === hosts that come and go ===

    fn begin(&mut self, no: HostNo) {
        if self.places[no].dead {
            return;
        }
        let now = self.clock.instant();
        let host = Host {
            id: host_id(no),
            hostname: String::new(),
            ip: [192, 0, 2, 1].into(),
            piece_port: std::num::NonZeroU16::MIN,
            idc: String::new(),
            location: self.zone(no).map(|zone| format!("r|z{zone}")).unwrap_or_default(),
            seed: no == SEED,
            upload_slots: self.scenario.places,
            draining: false,
            free_uploads: None,
            version: String::new(),
            protocol: darter_protocol::scheduler::PROTOCOL,
        };
        let Ok(lifeline) = self.cluster.handle_host_announced(now, host) else { return };
        self.places[no].lifeline = Some(lifeline);
        self.lines.insert(lifeline, no);
        let at = self.clock.now();
        self.with(no, |node| {
            let moved = node.begun.is_some();
            node.begun.get_or_insert(at);
            if node.is_done() {
                node.announce();
            } else {
                node.begin(moved);
            }
        });
    }

    /// The zone in which a host stands.
    fn zone(&self, no: HostNo) -> Option<usize> {
        match self.scenario.zones {
            0 => None,
            _ if no <= SEED => Some(0),
            zones => Some((no - SEED) % zones),
        }
    }

    fn of_last_zone(&self) -> impl Iterator<Item = HostNo> + use<> {
        let last = self.scenario.zones.checked_sub(1);
        let hosts: Vec<HostNo> =
            (SEED..self.nodes.len()).filter(|no| last.is_some() && self.zone(*no) == last).collect();
        hosts.into_iter()
    }

    fn count_border(&mut self, from: HostNo, to: HostNo, bytes: u64) {
        let (from, to) = (self.zone(from), self.zone(to));
        if let Some(into) = to.filter(|_| from != to).and_then(|to| self.border_bytes.get_mut(to)) {
            *into += bytes;
        }
    }
}

/// What a piece is, when it is right.
fn right(piece: PieceIndex) -> PieceHash {
    let mut hash = [7; 32];
    hash[..4].copy_from_slice(&piece.get().to_le_bytes());
    PieceHash::from(hash)
}
