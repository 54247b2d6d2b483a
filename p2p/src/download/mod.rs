//! One running download: the driver around [`Swarm`](darter_swarm::Swarm).
//!
//! `learn` finds out what the content is (from the disk, the scheduler, or the origin) and answers the first caller.
//! `transfer` then brings the pieces: it turns what happens into calls on the swarm, and the swarm's actions into `jobs`.
//! The download ends when everything is there and verified, when nobody wants what is missing, or when it has failed.

mod ended;
mod fetch;
mod jobs;
mod learn;
mod outbox;
mod right;
mod scheduled;
mod transfer;
mod ways;

use self::ended::Word;
use self::scheduled::{Joining, Scheduled};
use self::ways::Ways;
use crate::engine::Shared;
use crate::origin::{Part, Source};
use crate::progress::{Demand, Demands, Progress};
use crate::schedule::Claim;
use crate::store::{Held, Noted, Partial, TaskFile};
use crate::unshareable::Question;
use crate::verify::Verifier;
use crate::{ContentInfo, OpenError, OpenRequest, Opened, ReadError, Want};
use darter_protocol::{ByteRange, Digest, TaskId};
use darter_upstream::InTurn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

pub(crate) use learn::first_ask;
pub use right::Backoff;

/// A running download, as those see it who join it.
pub(crate) struct Active {
    pub(crate) phase: watch::Receiver<Phase>,
    pub(crate) demands: Arc<Demands>,
    ways: Mutex<Ways>,
}

/// How much a download knows.
#[derive(Clone)]
pub(crate) enum Phase {
    /// Not even the content's length.
    Opening,
    Known(Arc<Known>),
    /// It has ended. With a word for some of those who waited, before anything was known. Everybody else tries for himself: the
    /// answer was meant for the first caller alone, or what there is has its place.
    Over(Option<Word>),
}

/// The content of a running download.
pub(crate) struct Known {
    pub(crate) info: ContentInfo,
    pub(crate) digest: Option<Digest>,
    pub(crate) file: Arc<TaskFile>,
    pub(crate) progress: watch::Receiver<Progress>,
    /// How long its first request waited for its turn at the origin.
    pub(crate) queued: Duration,
    /// Hashes the whole, when there is a digest to compare it with.
    pub(crate) verifier: Option<Arc<Mutex<Verifier>>>,
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
    /// What the scheduler is told of the first caller's request.
    claim: Claim,
    /// And what the origin is asked by it.
    question: Question,
    /// Pieces of an earlier download that were checked by it.
    checked: Held,
    phase: watch::Sender<Phase>,
    scheduled: Scheduled,
    joining: Joining,
    /// After a scheduler was lost: until then it is waited for another.
    alone_from: Option<Instant>,
    /// Changes whenever the task may belong to another scheduler. Subscribed to before the first one is asked.
    came_up: watch::Receiver<u64>,
    /// Conversations that are being ended, because the task belongs to another scheduler.
    leaving: JoinSet<()>,
}

/// The content, and what there is of it.
struct Start {
    known: Arc<Known>,
    partial: Partial,
    /// What is to be looked at before it is believed.
    noted: Noted,
    progress: watch::Sender<Progress>,
    /// The body of the first request to the origin.
    body: Option<Part>,
}

impl Active {
    /// A download for `request`, and what drives it. `checked` is what is known to be right of what an earlier one left.
    pub(crate) fn new(shared: &Arc<Shared>, request: &OpenRequest, checked: Held) -> (Arc<Self>, Download) {
        let (phase, watched) = watch::channel(Phase::Opening);
        let active = Arc::new(Self { phase: watched, demands: Arc::default(), ways: Mutex::default() });
        active.add_way(request);
        shared.metrics.downloads.inc();
        let download = Download {
            shared: Arc::clone(shared),
            task: request.task,
            digest: request.digest,
            active: Arc::clone(&active),
            first: Source::from(request),
            claim: Claim::of(request),
            question: Question::of(request),
            checked,
            phase,
            scheduled: Scheduled::default(),
            joining: Joining::default(),
            alone_from: None,
            came_up: shared.schedulers.came_up(),
            leaving: JoinSet::new(),
        };
        (active, download)
    }

    /// Another caller's way to the same content.
    pub(crate) fn add_way(&self, request: &OpenRequest) {
        self.ways().add(request.into());
    }

    fn ways(&self) -> MutexGuard<'_, Ways> {
        self.ways.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// The origin's content is not what it was when this download started.
    pub(crate) fn changed(&self) -> ReadError {
        let expected = match &self.digest {
            Some(digest) => digest.to_string(),
            None => "what its origin sent before".to_owned(),
        };
        ReadError::Mismatch { expected }
    }
}

impl Download {
    /// Runs the download to its end.
    pub(crate) async fn run(mut self, want: Want, first: oneshot::Sender<First>) {
        match self.learn(want).await {
            Ok(mut start) => {
                let layout = *start.known.file.layout();
                // The first demand stands before anybody could find that nothing is wanted.
                let answer = want.resolve(layout.length()).map(|range| {
                    let wish = self.shared.wish(self.task, &start.known.file, want, range);
                    let demand = self.active.demands.add(wish).expect("nobody closes it before transfer");
                    First::Content { known: Arc::clone(&start.known), range, demand }
                });
                self.phase.send_replace(Phase::Known(Arc::clone(&start.known)));
                // A caller that is gone has dropped its demand, too.
                let _ = first.send(answer.unwrap_or_else(|error| First::Answer(Err(error))));
                let held = self.verify(&mut start).await;
                transfer::Transfer::new(self, start, held).run().await;
            }
            Err(ended) => {
                let _ = first.send(First::Answer(ended.answer));
                if let Some(talk) = self.take_talk().await {
                    talk.finish(None, 0, 0).await;
                }
                self.over(ended.for_others);
                while self.leaving.join_next().await.is_some() {}
            }
        }
    }

    /// The download has ended: whoever comes now starts anew, and so does whoever waited and is not concerned by the word.
    ///
    /// Only after the scheduler was told of an end without the content: it knows a download by its host and task, and would
    /// take what was meant for this one for the end of the next.
    fn over(&self, word: Option<Word>) {
        self.active.demands.close();
        self.shared.remove(&self.task, &self.active);
        self.phase.send_if_modified(|phase| {
            let first = !matches!(phase, Phase::Over(_));
            if first {
                *phase = Phase::Over(word);
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

/// The requests of one task have their turns together; one of which nothing is known yet hurries.
pub(crate) fn in_turn(task: &TaskId, hurries: bool) -> InTurn {
    let [a, b, c, d, e, f, g, h, ..] = *task.as_bytes();
    InTurn { whose: u64::from_le_bytes([a, b, c, d, e, f, g, h]), hurries }
}
