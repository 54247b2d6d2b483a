//! The world's side of the scheduler: what it is told and tells, and how it and its hosts are lost.

use super::*;

impl World {
    /// All that the scheduler knew is lost. Everybody comes back with what he has, spread over a second as in `p2p`.
    pub(super) fn lose_scheduler(&mut self) {
        self.cluster = Cluster::new(2, StdRng::seed_from_u64(self.scenario.seed + 1));
        self.lines.clear();
        self.scheduler_wakes = None;
        for no in SEED..self.nodes.len() {
            let place = &mut self.places[no];
            place.talks += 1;
            (place.talk, place.lifeline) = (None, None);
            self.with(no, |node| (node.talk.open, node.talk.lease) = (false, None));
            let back = Duration::from_millis(self.rng.random_range(100..1000));
            self.clock.plan(self.clock.now() + back, Event::Healed(no));
        }
    }

    /// Whoever has the lease is lost.
    pub(super) fn lose_holder(&mut self, now: Instant) {
        let has_it = |node: &&Node| node.talk.lease.is_some();
        let Some(no) = self.nodes.iter().flatten().find(has_it).map(|node| node.no) else { return };
        if self.scenario.holder_lost.is_some_and(|(_, how)| how == Loss::Killed) {
            return self.crash(no, now);
        }
        let place = &mut self.places[no];
        (place.cut_off, place.cut_until) = (true, self.one_copy * (MOST + 1) + self.scenario.arrivals);
        self.clock.plan(self.clock.now() + PROBED, Event::Missed(no));
    }

    pub(super) fn is_lost(&self, no: HostNo) -> bool {
        self.places[no].dead || self.places[no].cut_off
    }

    pub(super) fn crash(&mut self, no: HostNo, now: Instant) {
        if self.nodes[no].as_ref().is_some_and(Node::is_done) {
            return;
        }
        self.places[no].dead = true;
        self.leave_scheduler(no, now);
        for stream in self.net.streams_of(no) {
            let other =
                self.net.stream(stream).map(|stream| if stream.from == no { stream.to } else { stream.from });
            self.end(stream);
            if let Some(other) = other.filter(|other| *other != ORIGIN) {
                self.clock.plan(self.clock.now() + self.scenario.latency, Event::Lost(other, no));
            }
        }
    }

    pub(super) fn leave_scheduler(&mut self, no: HostNo, now: Instant) {
        let place = &mut self.places[no];
        place.talks += 1;
        for stream in [place.talk.take(), place.lifeline.take()].into_iter().flatten() {
            self.lines.remove(&stream);
            self.cluster.handle_stream_closed(now, stream);
        }
        self.with(no, |node| (node.talk.open, node.talk.lease) = (false, None));
        self.pump_scheduler();
    }

    // === the scheduler ===

    pub(super) fn handle_at_scheduler(
        &mut self,
        now: Instant,
        from: HostNo,
        talk: u32,
        message: ToScheduler,
    ) {
        if self.places[from].talks != talk || self.places[from].dead {
            return;
        }
        let id = host_id(from);
        match message {
            ToScheduler::Register { held, moved, at_origin } => {
                let registration = Registration { held, moved, at_origin, ..Registration::default() };
                self.register(now, from, &registration);
            }
            ToScheduler::Report(report) => {
                let report = Report::try_from(*report).expect("nodes say nothing that is malformed");
                if let Some(stream) = self.places[from].talk {
                    self.cluster.handle_report(now, stream, report).expect("a report that can be true");
                }
            }
            ToScheduler::Complete(content) => {
                let content = Content::try_from(content).expect("nodes say nothing that is malformed");
                self.cluster
                    .handle_peer_result(now, (&id, self.task), Some(content), Sources::default())
                    .expect("what is complete is the right content");
                if let Some(stream) = self.places[from].talk.take() {
                    self.lines.remove(&stream);
                    self.cluster.handle_stream_closed(now, stream);
                }
            }
        }
        self.pump_scheduler();
    }

    pub(super) fn register(&mut self, now: Instant, from: HostNo, registration: &Registration) {
        let id = host_id(from);
        let Ok(answer) = self.cluster.handle_registered(now, &id, self.task, registration) else { return };
        if let Some(before) = self.places[from].talk.take() {
            self.lines.remove(&before);
            self.cluster.handle_stream_closed(now, before);
        }
        let Ok(stream) = self.cluster.handle_conversation_opened(now, &id, self.task) else { return };
        self.places[from].talk = Some(stream);
        self.lines.insert(stream, from);
        self.send_packet(
            from,
            PeerPacket {
                content: answer.content,
                partners: answer.partners,
                hashes: answer.hashes,
                lease: answer.lease,
                ..PeerPacket::default()
            },
        );
    }

    pub(super) fn send_packet(&mut self, to: HostNo, packet: PeerPacket) {
        let after = self.clock.now() + self.delay();
        let (at, talk) = (self.through(to, ORIGIN, after), self.places[to].talks);
        self.clock.plan(at, Event::FromScheduler(to, talk, Box::new(packet)));
    }

    pub(super) fn pump_scheduler(&mut self) {
        while let Some(stream) = self.cluster.poll_ready() {
            let Some(to) = self.lines.get(&stream).copied() else { continue };
            while let Taken::Packet(packet) = self.cluster.take(stream) {
                self.send_packet(to, packet);
            }
        }
        if let Some(at) = self.cluster.poll_timeout()
            && self.scheduler_wakes.is_none_or(|armed| at < armed)
        {
            self.scheduler_wakes = Some(at);
            self.clock.plan(self.clock.since_start(at), Event::WakeScheduler);
        }
    }
}
