//! Bringing the pieces: what happens becomes calls on the swarm, and the swarm's actions become jobs.

use super::jobs::{Bench, Event, Fetch, PieceError, Rest, Run, RunError};
use super::outbox::Outbox;
use super::right::Right;
use super::{Download, Known, Scheduled, SourceId, Start};
use crate::ReadError;
use crate::metrics::From;
use crate::origin::Part;
use crate::peer::PeerError;
use crate::progress::State;
use crate::schedule::{self, Conversation};
use crate::sink::{Goal, Wrote};
use crate::store::Partial;
use crate::swarm::{Action, MayAsk, RunId, Swarm};
use crate::verify::Verifier;
use darter_protocol::scheduler::{Content, LeaseOutcome, Partner, PeerPacket};
use darter_protocol::{HostId, PieceHash, PieceIndex, PieceLayout, PieceSet, Root, hash};
use futures_util::future::BoxFuture;
use http::StatusCode;
use rand::RngExt;
use rand::rngs::SmallRng;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, Id as JobId, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Events that wait for the driver. Jobs wait when it is full.
const EVENTS: usize = 64;
/// Partners at once. A scheduler names about twenty, and more only to one that has everything already; each may cost a
/// connection.
const MAX_NEIGHBOURS: usize = 64;
/// How long a daemon that has just lost its scheduler looks for another one, or for partners, before it goes to the origin;
/// half of it is left to chance.
const ALONE_AFTER: Duration = Duration::from_secs(2);

/// A download whose content is known.
pub(super) struct Transfer {
    download: Download,
    known: Arc<Known>,
    partial: Partial,
    layout: PieceLayout,
    swarm: Swarm,
    rng: SmallRng,
    hashes: Hashes,
    verifier: Option<Arc<Mutex<Verifier>>>,
    catching_up: bool,
    neighbours: HashMap<HostId, Neighbour>,
    streams: Streams,
    right: Right,
    outbox: Outbox,
    joining: Option<BoxFuture<'static, Result<(Conversation, PeerPacket), Status>>>,
    counts: Counts,
    jobs: JoinSet<()>,
    /// Jobs that write or read the file and have not said their last word.
    at_work: usize,
    events: mpsc::Receiver<Event>,
    bench: Bench,
}

/// What the pieces hash to.
struct Hashes {
    pieces: Vec<Option<PieceHash>>,
    /// What the whole hashes to, as the scheduler says.
    root: Option<Root>,
    /// The partner that was asked for the whole list.
    asked: Option<HostId>,
}

/// A partner, as this daemon reaches it.
struct Neighbour {
    address: SocketAddr,
    complete: bool,
    following: Option<AbortHandle>,
}

/// Streams from the origin.
#[derive(Default)]
struct Streams {
    /// The body of the first request, until a run takes it.
    first: Option<Part>,
    running: HashMap<RunId, Stream>,
    /// Where streams stopped inside a piece. The bytes before stay: readers may have seen them.
    rests: HashMap<PieceIndex, Rest>,
}

/// One stream from the origin.
struct Stream {
    goal: Arc<Goal>,
    stop: CancellationToken,
    as_whom: SourceId,
}

/// Bytes of this download.
#[derive(Default)]
struct Counts {
    held: u64,
    from_origin: u64,
    from_peers: u64,
    /// From the origin under the lease that is held now.
    under_lease: u64,
}

/// How a download ends.
enum End {
    /// All pieces are there.
    Complete,
    /// Nobody wants what is missing.
    Suspended,
    /// The daemon stops. What is there stays for the next start.
    Stopped,
    Failed {
        error: ReadError,
        outcome: LeaseOutcome,
        keep: bool,
    },
}

impl End {
    /// What is there is right, but there will be no more.
    fn unavailable(text: String, outcome: LeaseOutcome) -> Self {
        Self::Failed { error: ReadError::Unavailable(text), outcome, keep: true }
    }

    fn store(error: Arc<io::Error>) -> Self {
        Self::Failed { error: ReadError::Store(error), outcome: LeaseOutcome::Failed, keep: false }
    }
}

impl Transfer {
    pub(super) fn new(download: Download, start: Start) -> Self {
        let Start { known, partial, held, progress, body } = start;
        let layout = *known.file.layout();
        let mut have = PieceSet::empty(layout.pieces());
        let mut pieces = vec![None; layout.pieces() as usize];
        for (piece, hash) in &held {
            have.insert(*piece);
            pieces[piece.as_usize()] = Some(*hash);
        }
        let verifier = known.digest.map(|digest| Arc::new(Mutex::new(Verifier::new(digest, layout))));
        let (tell, events) = mpsc::channel(EVENTS);
        let shared = &download.shared;
        let bench = Bench {
            task: download.task,
            file: Arc::clone(&known.file),
            verifier: verifier.clone(),
            upstream: shared.upstream.clone(),
            peers: shared.peers.clone(),
            progress,
            events: tell,
            idle: shared.config.idle_timeout,
            stop: CancellationToken::new(),
        };
        Self {
            right: Right::new(shared.config.backoff),
            counts: Counts {
                held: have.iter().map(|piece| layout.range(piece).len()).sum(),
                ..Counts::default()
            },
            swarm: Swarm::new(have),
            rng: rand::make_rng(),
            hashes: Hashes { pieces, root: None, asked: None },
            verifier,
            catching_up: false,
            neighbours: HashMap::new(),
            streams: Streams { first: body, ..Streams::default() },
            outbox: Outbox::default(),
            joining: None,
            jobs: JoinSet::new(),
            at_work: 0,
            download,
            known,
            partial,
            layout,
            events,
            bench,
        }
    }

    /// Runs the download to its end, and leaves nothing running.
    pub(super) async fn run(mut self) {
        let end = self.drive().await;
        // Others wait for the last hashes, and need not wait for the verification.
        self.report_rest(Instant::now());
        let end = match end {
            End::Complete => match self.verify().await {
                Ok(()) => End::Complete,
                Err(error) => error,
            },
            other => other,
        };
        if let End::Failed { error, .. } = &end {
            let task = self.download.task;
            tracing::warn!(%task, %error, "a download failed");
            self.download.shared.metrics.failed.inc();
        }
        let state = match &end {
            End::Complete => State::Verified,
            End::Suspended => State::Running,
            End::Stopped => State::Failed(ReadError::Unavailable("the daemon is stopping".to_owned())),
            End::Failed { error, .. } => State::Failed(error.clone()),
        };
        if !matches!(end, End::Complete) {
            // Whoever comes now must not get the error of those who were here.
            self.download.active.demands.close();
        }
        // Readers first; what follows is for this daemon and for others.
        self.bench.progress.send_modify(|progress| progress.state = state);
        let end = match (self.quiesce().await, end) {
            (Err(late), End::Suspended | End::Stopped) => late,
            (_, end) => end,
        };
        self.close(end).await;
    }

    async fn drive(&mut self) -> End {
        let mut came_up = self.download.shared.schedulers.came_up();
        if let Err(end) = self.begin() {
            return end;
        }
        let shutdown = self.download.shared.shutdown.clone();
        let active = Arc::clone(&self.download.active);
        loop {
            if self.swarm.is_complete() && !self.catching_up {
                return End::Complete;
            }
            let now = Instant::now();
            self.follow_demand();
            self.update_right(now);
            while let Some(action) = self.swarm.poll_action(&mut self.rng) {
                self.perform(action);
            }
            self.catch_up();
            // A run that finishes the piece that is arriving needs its lease still.
            let idle = self.swarm.is_satisfied() && !self.swarm.asks_origin();
            if idle && !self.swarm.is_complete() {
                self.return_lease(now, LeaseOutcome::Done);
                let have = self.swarm.have();
                if self.at_work == 0 && active.demands.try_close(|piece| have.contains(piece)) {
                    return End::Suspended;
                }
            }
            let scheduled = &mut self.download.scheduled;
            if let Some(talk) = &scheduled.talk {
                self.outbox.flush(now, talk);
            }
            let report_due = self.outbox.due().filter(|_| scheduled.talk.is_some());
            let wake = report_due.into_iter().chain(self.right.due_at(now)).min();
            let alone = scheduled.talk.is_none() && self.joining.is_none();
            let ended = tokio::select! {
                Some(event) = self.events.recv() => self.handle_event(event),
                Some(ended) = self.jobs.join_next() => no_panic(ended),
                packet = next_packet(&mut scheduled.talk) => match packet {
                    Some(packet) => self.handle_packet(packet),
                    None => self.handle_scheduler_lost(),
                },
                joined = async { self.joining.as_mut().expect("checked").await }, if self.joining.is_some() => {
                    self.joining = None;
                    self.handle_joined(joined)
                }
                _ = came_up.changed(), if alone => {
                    self.rejoin(Duration::ZERO);
                    Ok(())
                }
                () = active.demands.changed() => Ok(()),
                () = sleep_until(wake) => Ok(()),
                () = shutdown.cancelled() => return End::Stopped,
            };
            if let Err(end) = ended {
                return end;
            }
        }
    }

    /// Takes what was learned before the content was known, and the first body.
    fn begin(&mut self) -> Result<(), End> {
        self.follow_demand();
        if let Some(part) = &self.streams.first {
            let carried = self.layout.within(part.start, part.end);
            match self.swarm.adopt_run(carried) {
                Some((run, pieces)) => self.start_run(run, pieces),
                // One byte that told the length, or a part that larger pieces do not begin with.
                None => self.streams.first = None,
            }
        }
        for packet in std::mem::take(&mut self.download.scheduled.early) {
            // The lease was taken while learning; only what else stands in the packets is new.
            self.handle_packet(PeerPacket { lease: None, lease_revoked: false, ..packet })?;
        }
        if self.download.scheduled.lease.is_some() {
            self.vouch(Instant::now());
        }
        Ok(())
    }

    /// Wants what the readers want.
    fn follow_demand(&mut self) {
        let (mut wanted, waiting) = self.download.active.demands.take(self.layout.pieces());
        if self.download.shared.config.prefetch && !wanted.is_empty() {
            wanted = PieceSet::full(self.layout.pieces());
        }
        self.swarm.set_wanted(wanted);
        if let Some(piece) = waiting {
            self.swarm.handle_waiting(piece);
        }
    }

    // --- Going to the origin ---

    fn update_right(&mut self, now: Instant) {
        let scheduled = &self.download.scheduled;
        let allowed = match scheduled.talk {
            Some(_) => scheduled.lease.is_some() || scheduled.unshareable,
            None => self.joining.is_none() || self.swarm.asks_origin(),
        };
        self.swarm.handle_right(match (allowed, self.right.is_due(now)) {
            (false, _) => MayAsk::No,
            // One run that broke off is no reason to stop the others.
            (true, false) => MayAsk::Later,
            (true, true) => MayAsk::Now,
        });
        let starved = allowed || !self.swarm.needs_origin() || self.joining.is_some();
        if !starved && scheduled.done {
            // The lease was given back when nobody wanted more. Now somebody does. The end of the old conversation is no
            // loss of the scheduler.
            self.download.scheduled = Scheduled::default();
            self.rejoin(Duration::ZERO);
        }
    }

    /// As the holder of the lease: says what the content is and which pieces it knows.
    fn vouch(&mut self, now: Instant) {
        self.counts.under_lease = 0;
        for (piece, hash) in self.layout.iter().zip(&self.hashes.pieces) {
            if let Some(hash) = hash {
                self.outbox.vouch(piece, hash);
            }
        }
        self.outbox.progress(now, self.counts.held, 0);
        self.outbox.content(now, schedule::content(&self.partial.record, None));
    }

    fn return_lease(&mut self, now: Instant, outcome: LeaseOutcome) {
        if let Some(lease) = self.download.scheduled.lease.take() {
            self.outbox.return_lease(now, lease, outcome);
            self.download.scheduled.done = outcome == LeaseOutcome::Done;
        }
    }

    fn start_run(&mut self, run: RunId, pieces: Range<u32>) {
        let first = PieceIndex::new(pieces.start);
        let offset = |piece: u32| {
            self.layout.piece(piece).map_or(self.layout.length(), |piece| self.layout.range(piece).start())
        };
        let rest = self.streams.rests.remove(&first);
        let (start, hasher) = match rest {
            Some(rest) => (rest.offset, Some(rest.hasher)),
            None => (offset(pieces.start), None),
        };
        let goal = Arc::new(Goal::new(offset(pieces.end)));
        let stop = self.bench.stop.child_token();
        let (as_whom, source) = self.download.active.source();
        self.streams.running.insert(run, Stream { goal: Arc::clone(&goal), stop: stop.clone(), as_whom });
        let job = Run {
            id: run,
            source,
            start,
            hasher,
            goal,
            version: self.known.digest.is_none().then(|| self.known.info.headers.clone()),
            body: self.streams.first.take(),
            stop,
        };
        self.spawn(self.bench.clone().fetch_origin(job));
    }

    // --- Actions ---

    fn perform(&mut self, action: Action) {
        match action {
            Action::FetchOrigin { run, pieces } => self.start_run(run, pieces),
            Action::ShortenOrigin { run, end } => {
                if let (Some(stream), Some(piece)) = (self.streams.running.get(&run), self.layout.piece(end))
                {
                    let end = stream.goal.lower(self.layout.range(piece).start(), &self.layout);
                    let end = self.layout.piece_at(end).map_or(self.layout.pieces(), PieceIndex::get);
                    self.swarm.handle_overrun(run, end);
                }
            }
            Action::StopOrigin { run } => {
                if let Some(stream) = self.streams.running.get(&run) {
                    stream.stop.cancel();
                }
            }
            Action::FetchPeer { partner, piece } => self.fetch_piece(partner, piece),
        }
    }

    fn fetch_piece(&mut self, partner: HostId, piece: PieceIndex) {
        let known = self.hashes.pieces[piece.as_usize()].zip(self.neighbours.get(&partner));
        let Some((expected, neighbour)) = known else {
            // Asked again, it would be chosen again.
            self.swarm.handle_fetch_failed(piece, &partner);
            self.swarm.handle_partner_gone(&partner);
            return;
        };
        let keep_before = self.streams.rests.get(&piece).map_or(0, |rest| rest.offset);
        let fetch = Fetch { partner, address: neighbour.address, piece, expected, keep_before };
        self.spawn(self.bench.clone().fetch_piece(fetch));
    }

    fn catch_up(&mut self) {
        let Some(verifier) = self.verifier.as_deref().filter(|_| !self.catching_up) else { return };
        let have = self.swarm.have();
        // Somebody who holds it takes bytes in passing: nothing is behind for good.
        let behind = verifier.try_lock().is_ok_and(|verifier| verifier.is_behind(have));
        if behind {
            self.catching_up = true;
            self.spawn(self.bench.clone().catch_up(have.clone()));
        }
    }

    fn spawn(&mut self, job: impl Future<Output = ()> + Send + 'static) {
        self.at_work += 1;
        self.jobs.spawn(job);
    }

    // --- Events ---

    fn handle_event(&mut self, event: Event) -> Result<(), End> {
        match event {
            Event::Wrote(wrote) => self.handle_wrote(wrote),
            Event::RunEnded { run, rest, result } => {
                self.at_work -= 1;
                self.handle_run_ended(run, rest, result)
            }
            Event::Piece { partner, piece, result } => {
                self.at_work -= 1;
                self.handle_piece(&partner, piece, result)
            }
            Event::Have { partner, follower, have } => {
                if self.is_following(&partner, follower) {
                    self.swarm.handle_have(&partner, have);
                }
                Ok(())
            }
            Event::HaveEnded { partner, follower, error } => {
                if self.is_following(&partner, follower) {
                    self.handle_have_ended(&partner, error);
                }
                Ok(())
            }
            Event::Hashes { partner, result } => {
                self.at_work -= 1;
                self.handle_hash_list(&partner, result);
                Ok(())
            }
            Event::CaughtUp(result) => {
                self.at_work -= 1;
                self.catching_up = false;
                result.map_err(|error| End::store(Arc::new(error)))
            }
        }
    }

    fn handle_wrote(&mut self, wrote: Wrote) -> Result<(), End> {
        let now = Instant::now();
        self.right.handle_bytes();
        self.counts.from_origin += wrote.bytes;
        self.counts.under_lease += wrote.bytes;
        self.download.shared.metrics.add_bytes(From::Origin, wrote.bytes);
        for (piece, hash) in wrote.pieces {
            let known = self.hashes.pieces[piece.as_usize()].replace(hash);
            if known.is_some_and(|known| known != hash) {
                return Err(self.changed());
            }
            self.take_piece(piece, &hash, None)?;
            if self.download.scheduled.lease.is_some() {
                self.outbox.vouch(piece, &hash);
            }
        }
        self.outbox.progress(now, self.counts.held, self.counts.under_lease);
        Ok(())
    }

    fn handle_run_ended(
        &mut self,
        run: RunId,
        rest: Option<Rest>,
        result: Result<(), RunError>,
    ) -> Result<(), End> {
        let stream = self.streams.running.remove(&run);
        self.swarm.handle_run_ended(run);
        if let Some((piece, rest)) = rest.and_then(|rest| Some((self.layout.piece_at(rest.offset)?, rest))) {
            self.streams.rests.insert(piece, rest);
        }
        let error = match result {
            Ok(()) => return Ok(()),
            Err(error) if self.bench.stop.is_cancelled() => {
                tracing::trace!(%error, "a stream was stopped");
                return Ok(());
            }
            Err(error) => error,
        };
        tracing::debug!(task = %self.download.task, %error, "a stream from the origin ended early");
        match error {
            RunError::Changed => return Err(self.changed()),
            RunError::Store(error) => return Err(End::store(error)),
            RunError::Refused(status) if !is_passing(status) => {
                // Another caller's newer token may still be good.
                let other = stream.is_some_and(|stream| self.download.active.drop_source(stream.as_whom));
                let refused = || End::unavailable(error.to_string(), LeaseOutcome::Refused);
                return if other { Ok(()) } else { Err(refused()) };
            }
            RunError::Refused(_) | RunError::Origin(_) | RunError::Broke(_) => {}
        }
        if self.right.handle_failure(Instant::now()) {
            Ok(())
        } else {
            Err(End::unavailable(error.to_string(), LeaseOutcome::Failed))
        }
    }

    fn handle_piece(
        &mut self,
        partner: &HostId,
        piece: PieceIndex,
        result: Result<PieceHash, PieceError>,
    ) -> Result<(), End> {
        match result {
            Ok(hash) => {
                let bytes = self.layout.range(piece).len();
                self.counts.from_peers += bytes;
                self.check_version()?;
                self.download.shared.metrics.add_bytes(From::Peer, bytes);
                self.streams.rests.remove(&piece);
                self.take_piece(piece, &hash, Some(partner))?;
                self.bench.progress.send_modify(|progress| progress.complete(piece));
                self.outbox.progress(Instant::now(), self.counts.held, self.counts.under_lease);
                Ok(())
            }
            Err(error) => {
                self.swarm.handle_fetch_failed(piece, partner);
                match error {
                    PieceError::Peer(error) => {
                        self.drop_partner(partner, &error);
                        Ok(())
                    }
                    PieceError::Store(error) => Err(End::store(Arc::new(error))),
                    PieceError::Spoiled => Err(self.changed()),
                }
            }
        }
    }

    /// A piece is on disk and right.
    fn take_piece(
        &mut self,
        piece: PieceIndex,
        hash: &PieceHash,
        partner: Option<&HostId>,
    ) -> Result<(), End> {
        self.partial.note(piece, hash).map_err(|error| End::store(Arc::new(error)))?;
        self.counts.held += self.layout.range(piece).len();
        self.swarm.handle_piece(piece, partner);
        Ok(())
    }

    // --- Partners ---

    fn add_partner(&mut self, partner: &Partner) {
        let (Ok(host), Ok(ip)) = (partner.host_id.parse::<HostId>(), partner.ip.parse::<IpAddr>()) else {
            return;
        };
        let Some(port) = u16::try_from(partner.piece_port).ok().filter(|port| *port > 0) else { return };
        if host == self.download.shared.config.host.id
            || self.neighbours.len() >= MAX_NEIGHBOURS && !self.neighbours.contains_key(&host)
        {
            return;
        }
        let address = SocketAddr::new(ip, port);
        let neighbour = self.neighbours.entry(host.clone()).or_insert(Neighbour {
            address,
            complete: false,
            following: None,
        });
        neighbour.address = address;
        neighbour.complete |= partner.complete;
        if neighbour.complete {
            if let Some(following) = neighbour.following.take() {
                following.abort();
            }
            self.swarm.handle_have(&host, PieceSet::full(self.layout.pieces()));
        } else if neighbour.following.is_none() {
            neighbour.following = Some(self.jobs.spawn(self.bench.clone().follow(host, address)));
        }
    }

    /// Whether it is this follower that says what the partner has. What one said whose partner was forgotten meanwhile, or
    /// has everything by now, is no news: it would bring back a partner without an address, or take away what it has.
    fn is_following(&self, partner: &HostId, follower: JobId) -> bool {
        let following = self.neighbours.get(partner).and_then(|neighbour| neighbour.following.as_ref());
        following.is_some_and(|following| following.id() == follower)
    }

    fn handle_have_ended(&mut self, partner: &HostId, error: Option<PeerError>) {
        if let Some(neighbour) = self.neighbours.get_mut(partner) {
            neighbour.following = None;
        }
        // Without an error it got all that it wanted, and still has that.
        if let Some(error) = error {
            self.drop_partner(partner, &error);
        }
    }

    fn drop_partner(&mut self, partner: &HostId, error: &PeerError) {
        tracing::debug!(task = %self.download.task, %partner, %error, "a partner failed");
        if matches!(error, PeerError::Corrupt) {
            self.download.shared.metrics.corrupt_pieces.inc();
            tracing::warn!(task = %self.download.task, %partner, "a partner sent bytes that do not match their hash");
        }
        if self.forget_partner(partner) {
            self.outbox.failed(Instant::now(), partner, error.reason());
        }
        self.ask_hashes();
    }

    fn forget_partner(&mut self, partner: &HostId) -> bool {
        self.swarm.handle_partner_gone(partner);
        if self.hashes.asked.as_ref() == Some(partner) {
            self.hashes.asked = None;
        }
        let Some(neighbour) = self.neighbours.remove(partner) else { return false };
        if let Some(following) = neighbour.following {
            following.abort();
        }
        true
    }

    // --- Hashes ---

    /// Learns the hashes of all pieces as soon as they can be proven: from the root alone, or from a holder's list.
    fn ask_hashes(&mut self) {
        let Some(root) = self.hashes.root else { return };
        if self.hashes.asked.is_some() || self.hashes.pieces.iter().all(Option::is_some) {
            return;
        }
        if self.layout.pieces() == 1 {
            self.learn_hash(PieceIndex::new(0), PieceHash::from(*root.as_bytes()));
            return;
        }
        let holder = self.neighbours.iter().find(|(_, neighbour)| neighbour.complete);
        if let Some((host, neighbour)) = holder.map(|(host, neighbour)| (host.clone(), neighbour.address)) {
            self.hashes.asked = Some(host.clone());
            self.spawn(self.bench.clone().fetch_hashes(host, neighbour));
        }
    }

    fn handle_hash_list(&mut self, partner: &HostId, result: Result<Vec<PieceHash>, PeerError>) {
        let root = self.hashes.root;
        let proven = result.and_then(|list| match Some(hash::root(&self.layout, &list)) == root {
            true => Ok(list),
            false => Err(PeerError::Corrupt),
        });
        match proven {
            Ok(list) => self.layout.iter().zip(list).for_each(|(piece, hash)| self.learn_hash(piece, hash)),
            Err(error) => self.drop_partner(partner, &error),
        }
    }

    fn learn_hash(&mut self, piece: PieceIndex, hash: PieceHash) {
        if let Some(known) = self.hashes.pieces.get_mut(piece.as_usize()) {
            known.get_or_insert(hash);
            self.swarm.handle_hash(piece);
        }
    }

    // --- The scheduler ---

    fn handle_packet(&mut self, packet: PeerPacket) -> Result<(), End> {
        if packet.unshareable {
            self.go_alone()?;
        }
        let scheduled = &mut self.download.scheduled;
        if packet.lease_revoked {
            scheduled.lease = None;
        }
        if let Some(lease) = packet.lease {
            scheduled.lease = Some(lease.id);
            scheduled.done = false;
            self.vouch(Instant::now());
        }
        if let Some(content) = packet.content {
            if content.length != self.layout.length() {
                return Err(self.changed());
            }
            self.hashes.root = Root::try_from(content.root.as_ref()).ok().or(self.hashes.root);
        }
        for message in packet.hashes {
            let piece = self.layout.piece(message.index);
            if let Some((piece, hash)) = piece.zip(PieceHash::try_from(message.hash.as_ref()).ok()) {
                self.learn_hash(piece, hash);
            }
        }
        for gone in packet.gone {
            gone.parse().ok().map(|gone| self.forget_partner(&gone));
        }
        packet.partners.iter().for_each(|partner| self.add_partner(partner));
        self.ask_hashes();
        Ok(())
    }

    /// What the origin sends to this daemon is not what others have of it.
    fn go_alone(&mut self) -> Result<(), End> {
        self.download.scheduled.unshareable = true;
        let partners: Vec<HostId> = self.neighbours.keys().cloned().collect();
        for partner in &partners {
            self.forget_partner(partner);
        }
        self.check_version()
    }

    /// Without a digest nobody would notice that this daemon's version was mixed with what others have.
    fn check_version(&self) -> Result<(), End> {
        let mixed = self.download.scheduled.unshareable && self.counts.from_peers > 0;
        if mixed && self.known.digest.is_none() { Err(self.changed()) } else { Ok(()) }
    }

    fn handle_scheduler_lost(&mut self) -> Result<(), End> {
        let held_lease = self.download.scheduled.lease.is_some();
        self.download.scheduled = Scheduled::default();
        self.outbox.clear();
        if !held_lease {
            let pause = ALONE_AFTER.mul_f64(self.rng.random_range(0.5..1.0));
            self.right.handle_alone(Instant::now(), pause);
        }
        self.rejoin(schedule::rejoin_pause());
        Ok(())
    }

    /// Registers anew, with whichever scheduler is up.
    fn rejoin(&mut self, pause: Duration) {
        if self.joining.is_none()
            && let Some(link) = self.download.shared.schedulers.of(&self.download.task)
        {
            let join = link.join(self.download.task, self.counts.held);
            self.joining = Some(Box::pin(async move {
                tokio::time::sleep(pause).await;
                join.await
            }));
        }
    }

    fn handle_joined(&mut self, joined: Result<(Conversation, PeerPacket), Status>) -> Result<(), End> {
        match joined {
            Ok((talk, first)) => {
                self.download.scheduled = Scheduled { talk: Some(talk), ..Scheduled::default() };
                self.outbox.clear();
                self.handle_packet(first)
            }
            Err(status) => {
                tracing::debug!(task = %self.download.task, reason = status.message(), "cannot register; going on alone");
                self.download.scheduled = Scheduled::default();
                Ok(())
            }
        }
    }

    // --- The end ---

    /// The origin's content is not what it was when this download started.
    fn changed(&self) -> End {
        let expected = match &self.known.digest {
            Some(digest) => digest.to_string(),
            None => "what its origin sent before".to_owned(),
        };
        End::Failed { error: ReadError::Mismatch { expected }, outcome: LeaseOutcome::Failed, keep: false }
    }

    /// Checks the whole content against its digest.
    async fn verify(&mut self) -> Result<(), End> {
        let Some(verifier) = self.verifier.clone() else { return Ok(()) };
        let (file, have) = (Arc::clone(&self.known.file), self.swarm.have().clone());
        let checked = tokio::task::spawn_blocking(move || {
            let mut verifier = verifier.lock().unwrap_or_else(PoisonError::into_inner);
            verifier.catch_up(&file, &have).map(|()| verifier.matches())
        });
        match checked.await.map_err(io::Error::other).and_then(|checked| checked) {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.changed()),
            Err(error) => Err(End::store(Arc::new(error))),
        }
    }

    /// Waits until no job is left that could touch the file. Pieces that arrive in the meantime count.
    async fn quiesce(&mut self) -> Result<(), End> {
        self.bench.stop.cancel();
        let mut result = Ok(());
        loop {
            let event = tokio::select! {
                Some(event) = self.events.recv() => event,
                ended = self.jobs.join_next() => match ended {
                    Some(_) => continue,
                    None => break,
                },
            };
            result = result.and(self.handle_last(event));
        }
        while let Ok(event) = self.events.try_recv() {
            result = result.and(self.handle_last(event));
        }
        result
    }

    fn handle_last(&mut self, event: Event) -> Result<(), End> {
        match event {
            Event::Wrote(wrote) => self.handle_wrote(wrote),
            Event::Piece { partner, piece, result: Ok(hash) } => self.handle_piece(&partner, piece, Ok(hash)),
            _ => Ok(()),
        }
    }

    /// Puts everything in its place: the store, the scheduler, and those who come next.
    async fn close(mut self, end: End) {
        let now = Instant::now();
        match &end {
            // The lease ends with the report that this daemon holds everything. Given back before that, it would send the
            // next one to the origin for what is being put in its place here.
            End::Complete | End::Stopped => {}
            End::Suspended => self.return_lease(now, LeaseOutcome::Done),
            End::Failed { outcome, .. } => self.return_lease(now, *outcome),
        }
        self.report_rest(now);
        let complete = match end {
            End::Complete => self.commit().await,
            End::Suspended => {
                let have = self.swarm.have().clone();
                self.download.shared.suspend(self.download.task, Arc::clone(&self.known.file), have);
                None
            }
            End::Stopped | End::Failed { keep: true, .. } => None,
            End::Failed { keep: false, .. } => {
                self.discard().await;
                None
            }
        };
        if complete.is_some() {
            // It is found on disk from now on, so that no other download begins while the scheduler is told.
            self.download.over(None);
        }
        let Counts { from_origin, from_peers, .. } = self.counts;
        match self.download.scheduled.talk.take() {
            Some(talk) => talk.finish(complete, from_origin, from_peers).await,
            None => self.announce(complete.is_some()).await,
        }
        self.download.over(None);
    }

    /// Sends what waited for more to go with it: there will be no more.
    fn report_rest(&mut self, now: Instant) {
        self.outbox.hurry(now);
        if let Some(talk) = &self.download.scheduled.talk {
            self.outbox.flush(now, talk);
        }
    }

    /// Makes the task complete on disk; gives what the scheduler is told of it.
    async fn commit(&mut self) -> Option<Content> {
        let hashes: Option<Vec<PieceHash>> = self.hashes.pieces.iter().copied().collect();
        let hashes = hashes.expect("a complete download knows the hash of every piece");
        let content = schedule::content(&self.partial.record, Some(hash::root(&self.layout, &hashes)));
        let (store, task) = (Arc::clone(&self.download.shared.store), self.download.task);
        let (record, file) = (self.partial.record.clone(), Arc::clone(&self.partial.file));
        let committed = tokio::task::spawn_blocking(move || store.commit(&task, record, &file, hashes)).await;
        match committed.map_err(io::Error::other).and_then(|committed| committed) {
            Ok(()) => {
                self.download.shared.metrics.completed.inc();
                Some(content)
            }
            Err(error) => {
                tracing::error!(%task, %error, "cannot keep a complete download");
                self.discard().await;
                None
            }
        }
    }

    /// Throws away what is here, and says so.
    async fn discard(&mut self) {
        let (store, task) = (Arc::clone(&self.download.shared.store), self.download.task);
        let discarded = tokio::task::spawn_blocking(move || store.discard(&task)).await;
        if let Err(error) = discarded.map_err(io::Error::other).and_then(|discarded| discarded) {
            tracing::error!(%task, %error, "cannot throw a failed download away");
        }
        if let Some(talk) = &self.download.scheduled.talk {
            talk.link().leave(&[task]).await;
        }
    }

    /// Without a conversation: tells whichever scheduler is up by now.
    async fn announce(&mut self, complete: bool) {
        let hashes: Option<Vec<PieceHash>> = self.hashes.pieces.iter().copied().collect();
        let link = self.download.shared.schedulers.of(&self.download.task).filter(|_| complete);
        if let Some((link, hashes)) = link.zip(hashes) {
            link.announce_one(&self.download.task, &self.partial.record, &hashes).await;
        }
    }
}

/// Statuses that a moment later may be others.
fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
}

/// A job that panics leaves its pieces in flight for ever; the download must not wait for them.
fn no_panic(ended: Result<(), JoinError>) -> Result<(), End> {
    match ended {
        Err(error) if error.is_panic() => {
            tracing::error!(%error, "a part of a download panicked");
            Err(End::unavailable("an internal error ended the download".to_owned(), LeaseOutcome::Failed))
        }
        _ => Ok(()),
    }
}

async fn next_packet(talk: &mut Option<Conversation>) -> Option<PeerPacket> {
    match talk {
        Some(talk) => talk.next().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}
