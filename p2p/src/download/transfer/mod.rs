//! Bringing the pieces: what happens becomes calls on the swarm, and the swarm's actions become jobs.
//!
//! Here is the driver. What it does about the single things stands apart: `streams` from the origin, `partners`, `hashes`,
//! the `talk` with the scheduler, the `end`.

mod end;
mod hashes;
mod partners;
mod streams;
mod talk;

use self::end::{End, no_panic};
use self::hashes::Hashes;
use self::partners::Neighbour;
use self::streams::Streams;
use super::fetch::Underway;
use super::jobs::{Bench, Event};
use super::outbox::Outbox;
use super::right::Right;
use super::scheduled::{next_packet, sleep_until};
use super::ways::WayId;
use super::{Download, Known, Start};
use crate::ReadError;
use crate::peer::PeerError;
use crate::progress::{State, Wanted};
use crate::store::{Held, Partial};
use crate::verify::Verifier;
use darter_protocol::scheduler::PeerPacket;
use darter_protocol::{BlockHash, BlockSet, HostId, PieceHash, PieceIndex, PieceLayout, PieceSet};
use darter_swarm::{Action, Limits, Swarm};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use rand::rngs::SmallRng;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

/// Events that wait for the driver. Jobs wait when it is full.
const EVENTS: usize = 64;

/// Memory of one download for pieces that are asked of several, in bytes.
const SPARE_BYTES: u64 = 16 << 20;

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
    fetches: HashMap<(HostId, PieceIndex), Underway>,
    streams: Streams,
    right: Right,
    /// Until when it is waited for those who have what is promised.
    promise: Option<Instant>,
    /// Until when it is waited for those who have what this download may not fetch.
    hope: Option<Instant>,
    /// Why this download gets nothing more from the origin; others may.
    shut_out: Option<String>,
    /// Whether some reader lacks something.
    lacking: watch::Sender<bool>,
    outbox: Outbox,
    counts: Counts,
    jobs: JoinSet<()>,
    /// Jobs of content in memory, which never block: to hand them to other threads, and hear from there, would cost more than
    /// what they do.
    near: FuturesUnordered<BoxFuture<'static, ()>>,
    /// Jobs that write or read the file and have not said their last word.
    at_work: usize,
    events: mpsc::Receiver<Event>,
    bench: Bench,
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

impl Transfer {
    /// Of the content, `held` is there.
    pub(super) fn new(download: Download, start: Start, held: Held) -> Self {
        let Start { known, partial, noted: _, progress, body } = start;
        let layout = *known.file.layout();
        let mut have = PieceSet::empty(layout.pieces());
        let mut pieces = vec![None; layout.pieces() as usize];
        for (piece, hash) in &held.pieces {
            have.insert(*piece);
            pieces[piece.as_usize()] = Some(*hash);
        }
        let blocks: BTreeMap<u32, BlockHash> = held.blocks.into_iter().collect();
        let there: BlockSet = blocks.keys().map(|block| *block..block + 1).collect();
        let verifier = known.verifier.clone();
        let (tell, events) = mpsc::channel(EVENTS);
        let shared = &download.shared;
        let lacking = watch::Sender::new(true);
        let ahead = shared.config.prefetch.then(|| lacking.subscribe());
        let bench = Bench {
            task: download.task,
            file: Arc::clone(&known.file),
            verifier: verifier.clone(),
            upstream: shared.upstream.clone(),
            origins: Arc::clone(&shared.origins),
            peers: shared.peers.clone(),
            throttles: shared.throttles.of_task(download.task, ahead),
            progress,
            events: tell,
            idle: shared.config.idle_timeout,
            stop: CancellationToken::new(),
        };
        Self {
            right: Right::new(shared.config.backoff),
            promise: None,
            hope: None,
            shut_out: None,
            lacking,
            counts: Counts {
                held: have.iter().map(|piece| layout.range(piece).len()).sum(),
                ..Counts::default()
            },
            swarm: Swarm::new(layout, have, there, limits(&layout, !shared.config.schedulers.is_empty())),
            rng: rand::make_rng(),
            hashes: Hashes { pieces, blocks, ..Hashes::default() },
            verifier,
            catching_up: false,
            neighbours: HashMap::new(),
            fetches: HashMap::new(),
            streams: Streams { first: body, ..Streams::default() },
            outbox: Outbox::default(),
            jobs: JoinSet::new(),
            near: FuturesUnordered::new(),
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
        let beats = self.download.beats(self.outbox.counts());
        tokio::select! {
            () = self.end(end) => {}
            never = beats => match never {},
        }
    }

    async fn end(mut self, end: End) {
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
        let past = self.download.may_go_past();
        self.bench.progress.send_modify(|progress| (progress.state, progress.past) = (state, past));
        let end = match (self.quiesce().await, end) {
            (Err(late), End::Suspended | End::Stopped) => late,
            (_, end) => end,
        };
        let mut leaving = std::mem::take(&mut self.download.leaving);
        self.close(end).await;
        while leaving.join_next().await.is_some() {}
    }

    async fn drive(&mut self) -> End {
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
            self.tell_past();
            self.follow_demand();
            self.update_promise(now);
            self.update_right(now);
            if let Some(end) = self.update_hope(now) {
                return end;
            }
            self.look_after_fetches(now);
            while let Some(action) = self.swarm.poll_action(now.into_std(), &mut self.rng) {
                self.perform(action);
            }
            self.catch_up();
            self.return_unused_lease(now);
            // A run that finishes the piece that is arriving needs its lease still.
            let idle = self.swarm.is_satisfied() && !self.swarm.asks_origin();
            if idle && !self.swarm.is_complete() {
                let there = self.swarm.there();
                if self.at_work == 0 && active.demands.try_close(|blocks| there.contains_all(blocks)) {
                    return End::Suspended;
                }
            }
            let Download { scheduled, joining, alone_from, came_up, shared, .. } = &mut self.download;
            let has_lease = scheduled.lease.is_some();
            if let Some(talk) = &scheduled.talk {
                self.outbox.flush(now, (talk, has_lease), || shared.turns.free());
            }
            let report_due = self.outbox.due(has_lease).filter(|_| scheduled.talk.is_some());
            let look = self.swarm.poll_timeout().map(Instant::from_std);
            let wake = report_due
                .into_iter()
                .chain(self.right.due_at(now))
                .chain(alone_from.filter(|then| *then > now))
                .chain(self.promise)
                .chain(self.hope)
                .chain(look)
                .min();
            let joins = joining.is_under_way();
            let ended = tokio::select! {
                Some(event) = self.events.recv() => self.handle_event(event),
                Some(()) = self.near.next() => Ok(()),
                Some(ended) = self.jobs.join_next() => no_panic(ended),
                packet = next_packet(&mut scheduled.talk) => match packet {
                    Some(packet) => self.handle_packet(packet),
                    None => self.handle_scheduler_lost(),
                },
                joined = joining.ended() => self.handle_joined(joined),
                // What changes while it registers is looked at then.
                _ = came_up.changed(), if !joins => {
                    self.follow_ring();
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
        if let Some(reservation) = self.partial.take_reservation() {
            let store = Arc::clone(&self.download.shared.store);
            self.spawn(self.bench.clone().allocate(reservation, store));
        }
        if let Some(part) = self.streams.first.take() {
            self.adopt(part, Some(WayId::FIRST));
        }
        for packet in std::mem::take(&mut self.download.scheduled.early) {
            // The lease was taken while learning; only what else stands in the packets is new.
            self.handle_packet(PeerPacket { lease: None, lease_revoked: false, ..packet })?;
        }
        if self.download.scheduled.lease.is_some() {
            self.vouch(Instant::now());
        }
        // One that lost its scheduler while it learned what the content is.
        let scheduled = &self.download.scheduled;
        if let Some(then) =
            self.download.alone_from.filter(|_| scheduled.talk.is_none() && !self.swarm.asks_origin())
        {
            self.right.handle_alone(then);
        }
        // One that did without so far.
        if scheduled.talk.is_none() {
            self.follow_ring();
        }
        Ok(())
    }

    /// Tells the readers whether they may go on at the origin where the disk fails them.
    fn tell_past(&self) {
        let past = self.download.may_go_past();
        if self.bench.progress.borrow().past != past {
            // It is looked at when that happens; nobody waits for it.
            self.bench.progress.send_if_modified(|progress| {
                progress.past = past;
                false
            });
        }
    }

    /// Wants what the readers want.
    fn follow_demand(&mut self) {
        let Wanted { now, all, waiting } = self.download.active.demands.take(self.layout.blocks());
        let lacking = now.runs().any(|blocks| !self.swarm.there().contains_all(&blocks));
        self.lacking.send_if_modified(|before| std::mem::replace(before, lacking) != lacking);
        self.swarm.set_wanted(all);
        if waiting.is_empty() {
            return;
        }
        // Readers see bytes before the driver hears of them.
        for (run, stream) in &self.streams.running {
            if let Some(reached) = self.layout.block_at(stream.goal.reached()) {
                self.swarm.handle_run_reached(*run, reached);
            }
        }
        waiting.into_iter().for_each(|(block, until)| self.swarm.handle_waiting(block, until));
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::FetchOrigin { run, blocks } => self.start_run(run, blocks, None),
            Action::ShortenOrigin { run, end } => {
                if let Some(stream) = self.streams.running.get(&run) {
                    let end = stream.goal.lower(self.layout.start_of(end), &self.layout);
                    let end = self.layout.block_at(end).unwrap_or(self.layout.blocks());
                    self.swarm.handle_overrun(run, end);
                }
            }
            Action::ExtendOrigin { run, end } => {
                if let Some(stream) = self.streams.running.get(&run) {
                    stream.goal.raise(self.layout.start_of(end));
                }
            }
            Action::StopOrigin { run } => {
                if let Some(stream) = self.streams.running.get(&run) {
                    stream.stop.cancel();
                }
            }
            Action::Fetch { partner, piece, blocks, awaited, called, .. } => {
                self.fetch_piece(partner, (piece, blocks), (awaited, called));
            }
            Action::Cancel { partner, piece } => {
                if let Some(underway) = self.fetches.get(&(partner, piece)) {
                    underway.stop.cancel();
                }
            }
            Action::Pass { partner } => {
                if let Some(neighbour) = self.neighbours.get(&partner) {
                    self.jobs.spawn(self.bench.clone().pass(partner, neighbour.address));
                }
            }
            Action::Replace { partner } => self.drop_partner(&partner, &PeerError::Timeout),
        }
    }

    fn catch_up(&mut self) {
        // Nobody may ever ask for the rest of a download that serves a part; then the reading would be for nothing.
        let useful = !self.catching_up && self.swarm.wants_all();
        let Some(verifier) = self.verifier.as_deref().filter(|_| useful) else { return };
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
        if self.known.file.is_staged() {
            self.near.push(Box::pin(job.in_current_span()));
        } else {
            self.jobs.spawn(job.in_current_span());
        }
    }

    fn handle_event(&mut self, event: Event) -> Result<(), End> {
        match event {
            Event::Wrote { run, wrote } => self.handle_wrote(run, wrote),
            Event::RunEnded { run, rest, result } => {
                self.at_work -= 1;
                self.handle_run_ended(run, rest, result)
            }
            Event::Whole { run, rest, part } => {
                self.at_work -= 1;
                self.handle_whole(run, rest, part);
                Ok(())
            }
            Event::Piece { partner, piece, result } => {
                self.at_work -= 1;
                self.handle_piece(&partner, piece, result)
            }
            Event::Proven { blocks, list } => self.handle_proven(&blocks, &list),
            Event::Said { partner, follower, said } => {
                if self.is_following(&partner, follower) {
                    self.handle_said(&partner, said);
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
            Event::Allocated(result) => {
                self.at_work -= 1;
                result.map_err(|error| End::store(Arc::new(error)))
            }
        }
    }

    /// Blocks that follow each other are on disk, and right as far as that can be known. Without a partner, they came from
    /// the origin.
    fn take_blocks(&mut self, blocks: &[(u32, BlockHash)], partner: Option<&HostId>) -> Result<(), End> {
        let layout = self.layout;
        // Somebody brings what is missing.
        self.hope = None;
        for part in blocks.chunk_by(|(a, _), (b, _)| layout.piece_of(*a) == layout.piece_of(*b)) {
            let (Some((first, _)), Some((last, _))) = (part.first(), part.last()) else { continue };
            let (run, piece) = (*first..last + 1, layout.piece_of(*first));
            let of_all = partner.filter(|_| run == layout.blocks_of(piece));
            let complete = self.hashes.add(&layout, part);
            if of_all.is_none() {
                self.swarm.handle_blocks(Instant::now().into_std(), run, partner);
            }
            if let Some((hash, list)) = complete {
                self.take_piece(piece, (hash, list), of_all)?;
                if partner.is_none_or(|partner| self.swarm.is_across(partner)) {
                    self.download.shared.turns.fetched(self.download.task, piece, layout.pieces());
                }
                if partner.is_none() && self.download.scheduled.lease.is_some() {
                    self.outbox.vouch(piece, &hash);
                }
            }
        }
        Ok(())
    }

    /// All of a piece is on disk, and hashes to this.
    fn take_piece(
        &mut self,
        piece: PieceIndex,
        (hash, list): (PieceHash, Arc<[BlockHash]>),
        partner: Option<&HostId>,
    ) -> Result<(), End> {
        let known = self.hashes.pieces[piece.as_usize()].replace(hash);
        if known.is_some_and(|known| known != hash) {
            return Err(self.changed());
        }
        self.partial.note(piece, &hash);
        self.counts.held += self.layout.range(piece).len();
        self.swarm.handle_piece(Instant::now().into_std(), piece, partner);
        self.download.shared.lists.insert(hash, list);
        self.bench.progress.send_modify(|progress| progress.complete(piece, hash));
        Ok(())
    }

    /// Keeps the blocks of pieces that are not complete, over a restart too.
    fn note_blocks(&mut self) {
        let unnoted = std::mem::take(&mut self.hashes.unnoted);
        let blocks = unnoted.iter().filter_map(|block| Some((*block, *self.hashes.blocks.get(block)?)));
        self.partial.note_blocks(&blocks.collect::<Vec<_>>());
    }
}

/// How much a download of this content may have under way, and what it owes to others.
fn limits(layout: &PieceLayout, in_cluster: bool) -> Limits {
    let limits = Limits::default();
    let spares = usize::try_from(SPARE_BYTES / layout.piece_size()).unwrap_or(usize::MAX);
    Limits { spares: limits.spares.min(spares), whole_pieces: in_cluster, ..limits }
}
