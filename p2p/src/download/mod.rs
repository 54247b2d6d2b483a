//! One running download: the driver around [`Swarm`](crate::swarm::Swarm).
//!
//! `learn` finds out what the content is (from the disk, the scheduler, or the origin) and answers the first caller.
//! `transfer` then brings the pieces: it turns what happens into calls on the swarm, and the swarm's actions into `jobs`.
//! The download ends when everything is there and verified, when nobody wants what is missing, or when it has failed.

mod jobs;
mod learn;
mod outbox;
mod right;
mod transfer;

use crate::engine::Shared;
use crate::origin::{Part, Source};
use crate::progress::{Demand, Demands, Progress};
use crate::schedule::Conversation;
use crate::store::{Partial, TaskFile};
use crate::{ContentInfo, OpenError, OpenRequest, Opened, Want};
use darter_protocol::scheduler::PeerPacket;
use darter_protocol::{ByteRange, Digest, PieceHash, PieceIndex, TaskId};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{oneshot, watch};

pub use right::Backoff;

/// Callers whose credentials a download remembers, the newest last. More would only be older tokens.
const MAX_SOURCES: usize = 8;

/// A running download, as those see it who join it.
pub(crate) struct Active {
    pub(crate) phase: watch::Receiver<Phase>,
    pub(crate) demands: Arc<Demands>,
    sources: Mutex<Vec<Source>>,
}

/// How much a download knows.
#[derive(Clone)]
pub(crate) enum Phase {
    /// Not even the content's length.
    Opening,
    Known(Arc<Known>),
    /// It has ended. With an error that holds for everybody, before anything was known; without one, whoever comes or
    /// waited tries for himself: the answer was meant for the first caller alone, or what there is has its place.
    Over(Option<OpenError>),
}

/// The content of a running download.
pub(crate) struct Known {
    pub(crate) info: ContentInfo,
    pub(crate) digest: Option<Digest>,
    pub(crate) file: Arc<TaskFile>,
    pub(crate) progress: watch::Receiver<Progress>,
}

/// What the first caller gets.
pub(crate) enum First {
    /// Its own answer: the origin's word, or an error.
    Answer(Result<Opened, OpenError>),
    /// The content, and the part that it wanted, with its demand for it.
    Content { known: Arc<Known>, range: Option<ByteRange>, demand: Demand },
}

/// A download that is about to start.
pub(crate) struct Download {
    shared: Arc<Shared>,
    task: TaskId,
    digest: Option<Digest>,
    active: Arc<Active>,
    /// The first caller's way: what the origin answers to it is this caller's answer.
    first: Source,
    phase: watch::Sender<Phase>,
    scheduled: Scheduled,
}

/// What the scheduler has to do with a download.
#[derive(Default)]
struct Scheduled {
    talk: Option<Conversation>,
    /// Packets that came while the content was not known yet.
    early: Vec<PeerPacket>,
    lease: Option<u64>,
    unshareable: bool,
    /// The lease was given back because nobody wanted more.
    done: bool,
}

/// The content, and what there is of it.
struct Start {
    known: Arc<Known>,
    partial: Partial,
    held: Vec<(PieceIndex, PieceHash)>,
    progress: watch::Sender<Progress>,
    /// The body of the first request to the origin.
    body: Option<Part>,
}

impl Active {
    /// A download for `request`, and what drives it.
    pub(crate) fn new(shared: &Arc<Shared>, request: &OpenRequest) -> (Arc<Self>, Download) {
        let (phase, watched) = watch::channel(Phase::Opening);
        let active = Arc::new(Self { phase: watched, demands: Arc::default(), sources: Mutex::default() });
        active.add_source(request);
        shared.metrics.downloads.inc();
        let download = Download {
            shared: Arc::clone(shared),
            task: request.task,
            digest: request.digest,
            active: Arc::clone(&active),
            first: source_of(request),
            phase,
            scheduled: Scheduled::default(),
        };
        (active, download)
    }

    /// Another caller's way to the same content: a newer token outlives an older one.
    pub(crate) fn add_source(&self, request: &OpenRequest) {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if sources.len() == MAX_SOURCES {
            sources.remove(0);
        }
        sources.push(source_of(request));
    }

    /// The way that was added last.
    fn source(&self) -> Source {
        let sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        sources.last().cloned().expect("a download starts with one source and only replaces them")
    }

    /// Takes the newest way out because the origin refuses it; `false` when it was the only one.
    fn drop_source(&self) -> bool {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let others = sources.len() > 1;
        if others {
            sources.pop();
        }
        others
    }
}

impl Download {
    /// Runs the download to its end.
    pub(crate) async fn run(mut self, want: Want, first: oneshot::Sender<First>) {
        match self.learn(want).await {
            Ok(start) => {
                let layout = *start.known.file.layout();
                // The first demand stands before anybody could find that nothing is wanted.
                let answer = want.resolve(layout.length()).map(|range| {
                    let pieces = range.map_or(0..0, |range| layout.covering(range));
                    let demand = self
                        .active
                        .demands
                        .add(pieces, want.is_all())
                        .expect("nobody closes it before transfer");
                    First::Content { known: Arc::clone(&start.known), range, demand }
                });
                self.phase.send_replace(Phase::Known(Arc::clone(&start.known)));
                // A caller that is gone has dropped its demand, too.
                let _ = first.send(answer.unwrap_or_else(|error| First::Answer(Err(error))));
                transfer::Transfer::new(self, start).run().await;
            }
            Err(ended) => {
                let _ = first.send(First::Answer(ended.answer));
                if let Some(talk) = self.scheduled.talk.take() {
                    talk.finish(None, 0, 0).await;
                }
                self.over(ended.for_others);
            }
        }
    }

    /// The download has ended: whoever comes now starts anew, whoever waited gets the error or does so, too.
    ///
    /// Only after the scheduler was told of an end without the content: it knows a download by its host and task, and would
    /// take what was meant for this one for the end of the next.
    fn over(&self, error: Option<OpenError>) {
        self.active.demands.close();
        self.shared.remove(&self.task, &self.active);
        self.phase.send_if_modified(|phase| {
            let first = !matches!(phase, Phase::Over(_));
            if first {
                *phase = Phase::Over(error);
            }
            first
        });
    }
}

impl Drop for Download {
    /// Also when the driver panics: nobody may wait for it, or find it, for ever.
    fn drop(&mut self) {
        self.over(None);
        self.shared.metrics.downloads.dec();
    }
}

fn source_of(request: &OpenRequest) -> Source {
    Source { url: request.url.clone(), headers: request.headers.clone(), verified: request.digest.is_some() }
}

/// A download that ended before its content was known.
struct Ended {
    answer: Result<Opened, OpenError>,
    for_others: Option<OpenError>,
}

impl Ended {
    /// The same error for everybody who waits.
    fn failed(error: OpenError) -> Self {
        Self { answer: Err(error.clone()), for_others: Some(error) }
    }

    /// An answer for the first caller alone.
    fn answered(answer: Result<Opened, OpenError>) -> Self {
        Self { answer, for_others: None }
    }
}

impl Want {
    /// The bytes that are wanted of content of `length` bytes; `None` for all of nothing.
    pub(crate) fn resolve(self, length: u64) -> Result<Option<ByteRange>, OpenError> {
        let range = match self {
            Self::All => return Ok(ByteRange::new(0, length)),
            Self::Range(range) => ByteRange::new(range.start(), range.end().min(length)),
            Self::From(0) => return Ok(ByteRange::new(0, length)),
            Self::From(start) => ByteRange::new(start, length),
            Self::Suffix(bytes) => ByteRange::new(length.saturating_sub(bytes), length),
        };
        range.map(Some).ok_or(OpenError::NotSatisfiable { length })
    }

    pub(crate) fn is_all(self) -> bool {
        matches!(self, Self::All)
    }
}
