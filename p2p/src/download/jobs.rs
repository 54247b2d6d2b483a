//! What runs beside the driver: streams from the origin, what partners have, reading back for the digest. Pieces from
//! partners are in `fetch.rs`. Each job ends with an event, and holds nothing that its end would leave behind.

use crate::Supplier;
use crate::intake::Heard;
use crate::origin::{self, Answer, Ask, OriginError, Part, Source};
use crate::origins::{self, Origins, Patience};
use crate::peer::{At, PeerError, Peers, Said};
use crate::progress::Progress;
use crate::sink::{Blocks, Goal, Limits, PumpError, Report, Sink, Wrote, pump};
use crate::store::{Reservation, Store, TaskFile};
use crate::throttle::TaskThrottles;
use crate::verify::Verifier;
use darter_protocol::hash::BlockHasher;
use darter_protocol::{BlockHash, ByteRange, HostId, PieceHash, PieceIndex, PieceSet, TaskId};
use darter_swarm::RunId;
use darter_upstream::Upstream;
use http::{HeaderMap, StatusCode};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::{self, Id as JobId};
use tokio_util::sync::CancellationToken;

/// What a job has to say.
pub(super) enum Event {
    /// A stream from the origin brought bytes.
    Wrote {
        run: RunId,
        wrote: Wrote,
    },
    RunEnded {
        run: RunId,
        rest: Option<Rest>,
        result: Result<(), RunError>,
    },
    /// The origin gave all of the content where a run asked for a part.
    Whole {
        run: RunId,
        rest: Option<Rest>,
        part: Part,
    },
    Piece {
        partner: HostId,
        piece: PieceIndex,
        result: Result<Brought, PieceError>,
    },
    /// A fetch that goes on has brought these blocks; readers know it.
    Proven {
        blocks: Blocks,
        /// What all blocks of their piece hash to.
        list: Arc<[BlockHash]>,
    },
    Said {
        partner: HostId,
        follower: JobId,
        said: Said,
    },
    HaveEnded {
        partner: HostId,
        follower: JobId,
        error: Option<PeerError>,
    },
    Hashes {
        partner: HostId,
        result: Result<Vec<PieceHash>, PeerError>,
    },
    CaughtUp(io::Result<()>),
    /// The disk has what the content takes; or not.
    Allocated(io::Result<()>),
}

/// What a partner brought of a piece.
pub(super) struct Brought {
    pub(super) blocks: Blocks,
    /// So many of them were told of before.
    pub(super) told: usize,
    /// What all blocks of the piece hash to, where that was learned.
    pub(super) list: Option<Arc<[BlockHash]>>,
}

/// Where a stream from the origin stopped inside a block.
pub(super) struct Rest {
    pub(super) offset: u64,
    /// Boxed: a BLAKE3 state is two kilobytes.
    pub(super) hasher: Box<BlockHasher>,
}

/// Why a stream from the origin ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    #[error(transparent)]
    Origin(#[from] OriginError),
    #[error("the origin answered with status {0}")]
    Refused(StatusCode),
    /// The origin leads there, and may lead somewhere else when it is asked again: signed addresses end, or are good for once.
    #[error("where the origin led, the answer was status {0}")]
    LedAstray(StatusCode),
    #[error("the content changed at its origin")]
    Changed,
    #[error("{0}")]
    Broke(String),
    #[error("local storage: {0}")]
    Store(Arc<io::Error>),
}

/// Why a piece did not come.
pub(super) enum PieceError {
    Peer(PeerError),
    /// It was stopped: the piece is here, or comes from somewhere else.
    Cancelled,
    Store(io::Error),
    /// The partner's bytes fit to the hash, but what an origin had sent of this piece before, and what readers may have
    /// seen of it, does not.
    Spoiled,
}

/// What every job of a download needs.
#[derive(Clone)]
pub(super) struct Bench {
    pub(super) task: TaskId,
    pub(super) file: Arc<TaskFile>,
    pub(super) verifier: Option<Arc<Mutex<Verifier>>>,
    pub(super) upstream: Upstream,
    pub(super) origins: Arc<Origins>,
    pub(super) peers: Peers,
    pub(super) throttles: TaskThrottles,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) events: mpsc::Sender<Event>,
    /// How long a stream may be silent.
    pub(super) idle: Duration,
    /// Stops everything that is being received.
    pub(super) stop: CancellationToken,
}

/// One stream from the origin.
pub(super) struct Run {
    pub(super) id: RunId,
    pub(super) source: Source,
    /// The first byte to fetch.
    pub(super) start: u64,
    /// The hash of the block that `start` lies in, up to there.
    pub(super) hasher: Option<Box<BlockHasher>>,
    /// Where to stop; lowered when the run is shortened.
    pub(super) goal: Arc<Goal>,
    /// The answer that every other one must be of the same version with; `None` when a digest checks the whole.
    pub(super) version: Option<HeaderMap>,
    /// A body that is there already.
    pub(super) body: Option<Part>,
    /// The origin is known to send everything from the start: what comes before the run is passed over.
    pub(super) in_order: bool,
    pub(super) stop: CancellationToken,
}

/// Tells the readers of a stream's bytes at once, and the driver in its turn.
struct RunReport<'a>(&'a Bench, RunId);

impl Report for RunReport<'_> {
    async fn report(&self, wrote: Wrote) {
        self.0.progress.send_modify(|progress| {
            if let (Some((first, _)), Some((last, _))) = (wrote.blocks.first(), wrote.blocks.last()) {
                progress.arrive(*first..last + 1, Supplier::Origin);
            }
            progress.grow(wrote.offset);
        });
        self.0.tell(Event::Wrote { run: self.1, wrote }).await;
    }
}

impl Bench {
    /// Says what happened. Waits for the driver: a job that ran ahead of it would only use memory.
    pub(super) async fn tell(&self, event: Event) {
        // The driver is gone: nobody needs to know.
        let _ = self.events.send(event).await;
    }

    pub(super) async fn fetch_origin(self, mut run: Run) {
        let id = run.id;
        let stop = run.stop.clone();
        let opened = tokio::select! {
            opened = self.open_origin(&mut run) => opened.map(Some),
            // Not the origin's fault.
            () = stop.cancelled() => Ok(None),
        };
        let (rest, result) = match opened {
            Ok(Some(part)) if part.no_ranges && part.start < run.start && !run.in_order => {
                let rest = run.hasher.map(|hasher| Rest { offset: run.start, hasher });
                return self.tell(Event::Whole { run: id, rest, part }).await;
            }
            Ok(Some(part)) => self.receive_run(&mut run, part).await,
            not_opened => {
                (run.hasher.map(|hasher| Rest { offset: run.start, hasher }), not_opened.map(|_| ()))
            }
        };
        self.tell(Event::RunEnded { run: id, rest, result }).await;
    }

    /// The body of a run. It begins at the run's start, or before.
    async fn open_origin(&self, run: &mut Run) -> Result<Part, RunError> {
        if let Some(body) = run.body.take() {
            return Ok(body);
        }
        let length = self.file.layout().length();
        let end = run.goal.end();
        let ask = match ByteRange::new(run.start, end) {
            Some(range) if range.len() < length => Ask::Range(range),
            _ => Ask::All,
        };
        let validator = run.version.as_ref().and_then(origin::validator);
        let same = |answer| run.version.as_ref().is_none_or(|known| origin::same_version(known, answer));
        let patience = Patience { pause: origins::LONGEST, turn: super::in_turn(&self.task, false) };
        let fetched = self.origins.fetch(&self.upstream, &run.source, (ask, validator), patience);
        match fetched.await? {
            Answer::Content { info, part }
                if info.length == length && part.start <= run.start && same(&info.headers) =>
            {
                Ok(part)
            }
            Answer::Content { .. } | Answer::Outside { .. } => Err(RunError::Changed),
            Answer::Other { response, led: true, .. } => Err(RunError::LedAstray(response.status())),
            Answer::Other { response, .. } => Err(RunError::Refused(response.status())),
        }
    }

    async fn receive_run(&self, run: &mut Run, part: Part) -> (Option<Rest>, Result<(), RunError>) {
        let sink = Sink {
            file: Arc::clone(&self.file),
            verifier: self.verifier.clone(),
            settles: true,
            kept: Vec::new(),
            offset: run.start,
            hasher: run.hasher.take(),
            in_passing: false,
        };
        let limits = Limits {
            skip: run.start - part.start,
            goal: &run.goal,
            idle: self.idle,
            way: &self.throttles.of_origin(),
            heard: &Heard::default(),
            stop: &run.stop,
        };
        let (sink, result) = pump(part.body, sink, limits, RunReport(self, run.id)).await;
        let rest = sink.and_then(|sink| Some(Rest { offset: sink.offset, hasher: sink.hasher? }));
        let result = result.map_err(|error| match error {
            PumpError::Broke(text) => RunError::Broke(text),
            PumpError::Store(error) => RunError::Store(Arc::new(error)),
        });
        (rest, result)
    }

    /// Follows what a partner has until it ends.
    pub(super) async fn follow(self, partner: HostId, address: SocketAddr) {
        let follower = task::id();
        let Some(followed) = self.stop.run_until_cancelled(self.hear(&partner, address)).await else {
            return;
        };
        self.tell(Event::HaveEnded { partner, follower, error: followed.err() }).await;
    }

    async fn hear(&self, partner: &HostId, address: SocketAddr) -> Result<(), PeerError> {
        let mut followed =
            self.peers.have(At { host: partner, address }, &self.task, self.file.layout().pieces()).await?;
        while let Some(said) = followed.next().await? {
            self.tell(Event::Said { partner: partner.clone(), follower: task::id(), said }).await;
        }
        Ok(())
    }

    /// Tells a partner that the place which it keeps is not needed.
    pub(super) async fn pass(self, partner: HostId, address: SocketAddr) {
        let told = self.peers.pass(At { host: &partner, address }, &self.task);
        self.stop.run_until_cancelled(told).await;
    }

    pub(super) async fn fetch_hashes(self, partner: HostId, address: SocketAddr) {
        let asked = self.peers.hashes(At { host: &partner, address }, &self.task, self.file.layout());
        if let Some(result) = self.stop.run_until_cancelled(asked).await {
            self.tell(Event::Hashes { partner, result }).await;
        }
    }

    /// Has the disk allocated what was reserved, while bytes come.
    pub(super) async fn allocate(self, reservation: Reservation, store: Arc<Store>) {
        let stop = self.stop.clone();
        let done = task::spawn_blocking(move || reservation.allocate(&store, || stop.is_cancelled())).await;
        self.tell(Event::Allocated(done.map_err(io::Error::other).and_then(|done| done))).await;
    }

    /// Hashes what was passed over, out of the page cache.
    pub(super) async fn catch_up(self, have: PieceSet) {
        let (verifier, file) = (self.verifier.clone(), Arc::clone(&self.file));
        let done = task::spawn_blocking(move || match verifier {
            Some(verifier) => verifier.lock().unwrap_or_else(PoisonError::into_inner).catch_up(&file, &have),
            None => Ok(()),
        });
        self.tell(Event::CaughtUp(done.await.map_err(io::Error::other).and_then(|done| done))).await;
    }
}
