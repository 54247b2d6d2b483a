//! [`Node`]: a daemon. It does for its [`Swarm`] and its [`Uploads`] what the driver in `p2p` does, with messages in place
//! of requests: the names say which. What it says to the scheduler stands in `talk.rs`.

use crate::hashes::Proof;
use crate::net::{HostNo, StreamNo};
use crate::scenario::Scenario;
use crate::talk::{Talk, ToScheduler};
use darter_protocol::{BlockSet, HostId, PieceHash, PieceIndex, PieceLayout, PieceSet, TaskId};
use darter_swarm::{Action, Limits, MayAsk, RunId, Swarm, UploadId, Uploads, Verdict};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// As in `p2p`: how long it takes at most until somebody who has a promised piece shows.
const PATIENCE: Duration = Duration::from_millis(500);

/// What daemons say to each other.
#[derive(Debug, Clone)]
pub(crate) enum Message {
    /// `GET /tasks/ID/have`
    Follow,
    /// Lines of its answer.
    Have(PieceSet),
    More(PieceIndex),
    /// It is receiving that, and passes on what it has of it.
    Coming(PieceIndex),
    Come(Option<PieceIndex>),
    /// `GET /tasks/ID/data`; the answer is a stream, or one of these.
    Ask {
        piece: PieceIndex,
        called: bool,
        across: bool,
    },
    /// The head of an answer that is a stream, with the proof.
    Head(PieceIndex),
    Busy(PieceIndex),
    Failed(PieceIndex),
    /// The stream ends early: the sender does not get the piece any more.
    Cut(PieceIndex),
    /// `DELETE /tasks/ID/turn`
    Pass,
    /// `GET /tasks/ID/hashes`, and its answer.
    AskHashes,
    Hashes(Vec<PieceHash>),
    /// The receiver of an upload has closed the connection.
    HungUp(UploadId),
}

/// What a node wants to be done.
#[derive(Debug)]
pub(crate) enum Out {
    To(HostNo, Message),
    ToScheduler(ToScheduler),
    /// Begin an upload.
    Send {
        to: HostNo,
        piece: PieceIndex,
        upload: UploadId,
        /// What this node is itself receiving it by, and through how many it comes.
        source: Option<StreamNo>,
    },
    /// Begin a run.
    Run {
        run: RunId,
        first: PieceIndex,
    },
    /// Close a connection.
    End(StreamNo),
}

/// Somebody who is known.
#[derive(Debug, Default)]
struct Neighbour {
    following: bool,
    complete: bool,
}

pub(crate) struct Node {
    pub(crate) no: HostNo,
    pub(crate) id: HostId,
    pub(crate) task: TaskId,
    pub(crate) layout: PieceLayout,
    pub(crate) swarm: Swarm,
    pub(crate) uploads: Uploads,
    rng: SmallRng,
    neighbours: BTreeMap<HostId, Neighbour>,
    followers: BTreeSet<HostNo>,
    /// What was asked of whom, and the stream in which it comes.
    pub(crate) fetches: HashMap<(HostNo, PieceIndex), Option<StreamNo>>,
    /// Of these, what it passes on while it comes, and from whom that is.
    relays: BTreeMap<PieceIndex, HostNo>,
    may_relay: bool,
    pub(crate) runs: BTreeMap<RunId, (StreamNo, u32)>,
    pub(crate) hashes: Vec<Option<PieceHash>>,
    pub(crate) proof: Proof,
    /// What is on its disk.
    pub(crate) content: Vec<Option<PieceHash>>,
    pub(crate) talk: Talk,
    promise: Option<Instant>,
    pub(crate) reads: bool,
    pub(crate) corrupt: bool,
    /// Whoever it names beside what the scheduler says: with a tree's parents, nobody else.
    pub(crate) parents: Option<Vec<HostNo>>,
    pub(crate) begun: Option<Duration>,
    pub(crate) done: Option<Duration>,
    pub(crate) rejected: u64,
    pub(crate) out: Vec<Out>,
}

pub(crate) fn host_id(no: HostNo) -> HostId {
    format!("h{no}").parse().expect("a letter and digits are a host's id")
}

pub(crate) fn host_no(id: &HostId) -> HostNo {
    id.as_str()[1..].parse().expect("every host here has such an id")
}

impl Node {
    pub(crate) fn new(
        no: HostNo,
        (task, layout): (TaskId, PieceLayout),
        scenario: &Scenario,
        limits: Limits,
    ) -> Self {
        let seed = scenario.seed;
        let pieces = layout.pieces();
        let mut swarm = Swarm::new(layout, PieceSet::empty(pieces), BlockSet::default(), limits);
        swarm.set_wanted(std::iter::once(0..layout.blocks()).collect());
        Self {
            no,
            id: host_id(no),
            task,
            layout,
            swarm,
            uploads: Uploads::new(scenario.places),
            rng: SmallRng::seed_from_u64(seed ^ (no as u64) << 20),
            neighbours: BTreeMap::new(),
            followers: BTreeSet::new(),
            fetches: HashMap::new(),
            relays: BTreeMap::new(),
            may_relay: scenario.relays,
            runs: BTreeMap::new(),
            hashes: vec![None; pieces as usize],
            proof: Proof::default(),
            content: vec![None; pieces as usize],
            talk: Talk::default(),
            promise: None,
            reads: true,
            corrupt: false,
            parents: None,
            begun: None,
            done: None,
            rejected: 0,
            out: Vec::new(),
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.done.is_some()
    }

    /// What is still to be done after something has happened.
    pub(crate) fn drive(&mut self, now: Instant) {
        if !self.is_done() {
            self.update_promise(now);
            self.ask_hashes();
            // As in `p2p`: what was begun goes on while the next scheduler is asked.
            let goes_on = !self.talk.open && self.swarm.asks_origin();
            let may = if self.talk.lease.is_some() || goes_on { MayAsk::Now } else { MayAsk::No };
            self.swarm.handle_right(may);
            while let Some(action) = self.swarm.poll_action(now, &mut self.rng) {
                self.perform(now, action);
            }
            self.return_idle_lease();
            self.flush_report(now);
        }
        self.invite(now);
    }

    /// When it wants to be woken.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        let swarm = if self.is_done() { None } else { self.swarm.poll_timeout() };
        let report = if self.is_done() { None } else { self.talk.report_at() };
        swarm.into_iter().chain(report).chain(self.promise).chain(self.uploads.poll_timeout()).min()
    }

    pub(crate) fn wake(&mut self, now: Instant, last_byte: impl Fn(&HostId, PieceIndex) -> Option<Instant>) {
        self.swarm.handle_timeout(now, last_byte);
        self.uploads.handle_timeout(now);
    }

    fn update_promise(&mut self, now: Instant) {
        if !self.swarm.awaits_promise() {
            self.promise = None;
        } else if *self.promise.get_or_insert(now + PATIENCE) <= now {
            self.promise = None;
            self.swarm.handle_promises_broken();
        }
    }

    fn perform(&mut self, now: Instant, action: Action) {
        match action {
            Action::Fetch { partner, piece, called, .. } => {
                self.fetches.insert((host_no(&partner), piece), None);
                let across = self.swarm.is_across(&partner);
                self.out.push(Out::To(host_no(&partner), Message::Ask { piece, called, across }));
            }
            Action::Cancel { partner, piece } => {
                if let Some(Some(stream)) = self.fetches.remove(&(host_no(&partner), piece)) {
                    self.out.push(Out::End(stream));
                }
                self.swarm.handle_fetch_failed(piece, &partner);
            }
            Action::Pass { partner } => self.out.push(Out::To(host_no(&partner), Message::Pass)),
            Action::Replace { partner } => {
                self.forget(&partner);
                self.report_failure(now, &partner, darter_protocol::scheduler::FailureReason::Timeout);
            }
            // All of the content is wanted here, and comes piece by piece: so do runs.
            Action::FetchOrigin { run, blocks } => {
                self.out.push(Out::Run { run, first: self.layout.piece_of(blocks.start) });
                self.runs.insert(run, (StreamNo::NONE, self.layout.piece_of(blocks.end - 1).get() + 1));
                self.uploads.handle_coming(self.task, self.layout.pieces(), true);
            }
            Action::ShortenOrigin { run, end } => {
                if let Some((_, until)) = self.runs.get_mut(&run) {
                    let last = self.layout.piece_of(end.saturating_sub(1));
                    *until = (*until).min(last.get() + 1);
                    self.swarm.handle_overrun(run, self.layout.blocks_of(last).end);
                }
            }
            Action::ExtendOrigin { run, end } => {
                if let Some((_, until)) = self.runs.get_mut(&run) {
                    *until = self.layout.piece_of(end - 1).get() + 1;
                }
            }
            Action::StopOrigin { run } => {
                if let Some((stream, _)) = self.runs.remove(&run) {
                    self.out.push(Out::End(stream));
                }
                self.handle_run_ended(run);
            }
        }
    }

    /// A run from the origin is over.
    pub(crate) fn handle_run_ended(&mut self, run: RunId) {
        self.swarm.handle_run_ended(run);
        self.uploads.handle_coming(self.task, self.layout.pieces(), self.swarm.asks_origin());
    }

    pub(crate) fn invite(&mut self, now: Instant) {
        while let Some(invitation) = self.uploads.poll_invitation(now) {
            self.out.push(Out::To(host_no(&invitation.peer), Message::Come(invitation.best)));
        }
    }

    /// Whom it may fetch from.
    pub(crate) fn add_partner(&mut self, id: &HostId, complete: bool) {
        if *id == self.id {
            return;
        }
        let neighbour = self.neighbours.entry(id.clone()).or_default();
        neighbour.complete |= complete;
        if complete {
            self.swarm.handle_have(id, PieceSet::full(self.layout.pieces()));
        } else if !neighbour.following {
            neighbour.following = true;
            self.out.push(Out::To(host_no(id), Message::Follow));
        }
    }

    pub(crate) fn complete_neighbour(&self) -> Option<HostId> {
        self.neighbours.iter().find(|(_, neighbour)| neighbour.complete).map(|(id, _)| id.clone())
    }

    pub(crate) fn forget(&mut self, id: &HostId) {
        self.swarm.handle_partner_gone(id);
        self.neighbours.remove(id);
        self.forget_holder(id);
    }

    pub(crate) fn handle_message(&mut self, now: Instant, from: HostNo, message: Message) {
        let id = host_id(from);
        match message {
            Message::Follow => {
                self.followers.insert(from);
                self.out.push(Out::To(from, Message::Have(self.swarm.have().clone())));
                let relays = self.relays.keys().filter(|piece| self.relayed(**piece).is_some());
                let coming: Vec<Out> = relays.map(|piece| Out::To(from, Message::Coming(*piece))).collect();
                self.out.extend(coming);
            }
            Message::Have(have) if self.neighbours.contains_key(&id) => self.swarm.handle_have(&id, have),
            Message::Have(_) => {}
            Message::More(piece) => self.swarm.handle_more(&id, [piece]),
            Message::Coming(piece) => self.swarm.handle_coming(&id, piece),
            Message::Head(piece) => {
                let comes = self.fetches.get(&(from, piece)).is_some_and(Option::is_some);
                if comes && self.may_relay && !self.is_done() {
                    self.relays.insert(piece, from);
                    let followers = self.followers.iter();
                    self.out.extend(followers.map(|follower| Out::To(*follower, Message::Coming(piece))));
                }
            }
            Message::Come(best) => {
                if self.is_done() || !self.neighbours.contains_key(&id) {
                    self.out.push(Out::To(from, Message::Pass));
                } else {
                    self.swarm.handle_come(&id, best);
                }
            }
            Message::Ask { piece, .. }
                if self.content[piece.as_usize()].is_none() && self.relayed(piece).is_none() =>
            {
                self.out.push(Out::To(from, Message::Failed(piece)));
            }
            Message::Ask { piece, called, across } => {
                let bytes = self.layout.range(piece).len();
                let verdict = if across {
                    self.uploads.handle_asked_across(now, self.task, (&id, called), (piece, bytes))
                } else if called {
                    self.uploads.handle_asked(now, self.task, Some(&id), (piece, bytes))
                } else {
                    self.uploads.handle_asked_uncalled(now, self.task, Some(&id), (piece, bytes))
                };
                match verdict {
                    Verdict::Serve(upload) => {
                        // Links here take what they are given; who leaves takes his place with him.
                        self.uploads.handle_handed(upload, None);
                        let here = self.content[piece.as_usize()].is_some();
                        let source = if here { None } else { self.relayed(piece) };
                        self.out.push(Out::Send { to: from, piece, upload, source });
                    }
                    Verdict::Wait => self.out.push(Out::To(from, Message::Busy(piece))),
                }
            }
            Message::Busy(piece) => {
                if self.fetches.remove(&(from, piece)).is_some() {
                    self.swarm.handle_busy(now, &id, piece);
                }
            }
            Message::Failed(piece) => {
                if self.fetches.remove(&(from, piece)).is_some() {
                    let relayed = self.swarm.handle_fetch_failed(piece, &id);
                    if !relayed {
                        self.drop_partner(now, &id, darter_protocol::scheduler::FailureReason::Unreachable);
                    }
                }
            }
            Message::Cut(piece) => {
                if self.fetches.remove(&(from, piece)).is_some() {
                    self.swarm.handle_fetch_failed(piece, &id);
                }
            }
            Message::AskHashes => self.tell_hashes(from),
            Message::Hashes(list) => self.handle_hashes(now, from, &list),
            Message::Pass => self.uploads.handle_passed(&self.task, &id),
            Message::HungUp(upload) => self.uploads.handle_sent(now, upload, false),
        }
    }

    /// The stream in which a piece comes that is passed on.
    fn relayed(&self, piece: PieceIndex) -> Option<StreamNo> {
        *self.fetches.get(&(*self.relays.get(&piece)?, piece))?
    }

    /// All of a piece has come from a partner.
    pub(crate) fn handle_piece(&mut self, now: Instant, from: HostNo, piece: PieceIndex, bytes: PieceHash) {
        let id = host_id(from);
        if self.fetches.remove(&(from, piece)).is_none() || self.is_done() {
            return;
        }
        if self.hashes[piece.as_usize()] != Some(bytes) {
            self.rejected += 1;
            self.swarm.handle_fetch_failed(piece, &id);
            self.drop_partner(now, &id, darter_protocol::scheduler::FailureReason::Corrupt);
            return;
        }
        self.swarm.handle_piece(now, piece, Some(&id));
        if self.swarm.is_across(&id) {
            self.uploads.handle_fetched(self.task, piece, self.layout.pieces());
        }
        self.report_served(&id, self.layout.range(piece).len());
        self.take(now, piece, bytes);
    }

    /// A piece has come from the origin.
    pub(crate) fn handle_origin_piece(&mut self, now: Instant, piece: PieceIndex, bytes: PieceHash) {
        self.hashes[piece.as_usize()] = Some(bytes);
        self.swarm.handle_piece(now, piece, None);
        self.uploads.handle_fetched(self.task, piece, self.layout.pieces());
        self.report_fetched(piece, bytes);
        self.take(now, piece, bytes);
    }

    fn take(&mut self, now: Instant, piece: PieceIndex, bytes: PieceHash) {
        self.content[piece.as_usize()] = Some(bytes);
        let held = u64::from(self.swarm.have().len()) * PieceLayout::MIN_PIECE_SIZE;
        self.report_progress(now, held);
        self.out.extend(self.followers.iter().map(|follower| Out::To(*follower, Message::More(piece))));
        if self.reads {
            let have = self.swarm.have();
            if let Some(next) = self.layout.iter().find(|piece| !have.contains(*piece)) {
                self.swarm.handle_waiting(self.layout.blocks_of(next).start, self.layout.blocks());
            }
        }
    }

    /// Tells that everything is here.
    pub(crate) fn finish(&mut self, now: Instant, at: Duration) {
        self.done = Some(at);
        self.tell_complete(now);
        self.uploads.handle_task_ended(self.task);
        for ((from, _), stream) in self.fetches.drain() {
            match stream {
                Some(stream) => self.out.push(Out::End(stream)),
                None => self.out.push(Out::To(from, Message::Pass)),
            }
        }
    }

    pub(crate) fn drop_partner(
        &mut self,
        now: Instant,
        id: &HostId,
        reason: darter_protocol::scheduler::FailureReason,
    ) {
        if self.neighbours.contains_key(id) {
            self.forget(id);
            self.report_failure(now, id, reason);
        }
    }

    /// The connections to this host broke.
    pub(crate) fn handle_peer_lost(&mut self, now: Instant, lost: HostNo) {
        let id = host_id(lost);
        self.followers.remove(&lost);
        self.uploads.handle_left(&self.task, &id);
        let asked: Vec<PieceIndex> =
            self.fetches.keys().filter(|(from, _)| *from == lost).map(|(_, piece)| *piece).collect();
        for piece in asked {
            self.fetches.remove(&(lost, piece));
            self.swarm.handle_fetch_failed(piece, &id);
        }
        self.drop_partner(now, &id, darter_protocol::scheduler::FailureReason::Unreachable);
    }
}
