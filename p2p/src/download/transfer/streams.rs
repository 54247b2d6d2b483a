//! Streams from the origin: when there may be one, what it brings, and what follows when it ends.

use super::{End, Transfer};
use crate::download::SourceId;
use crate::download::jobs::{Rest, Run, RunError};
use crate::download::learn::NOT_ALONE;
use crate::origin::Part;
use crate::sink::{Goal, Wrote};
use crate::{Supplier, TRACE};
use darter_protocol::scheduler::LeaseOutcome;
use darter_swarm::{MayAsk, RunId};
use http::StatusCode;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

/// How long it takes at most until somebody who has a piece shows: he is named, connected to, and says so.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long it takes at most until somebody who has a piece is found, after a scheduler came back or a partner was lost.
const HOPE: Duration = Duration::from_secs(5);

/// Streams from the origin.
#[derive(Default)]
pub(super) struct Streams {
    /// The body of the first request, until a run takes it.
    pub(super) first: Option<Part>,
    pub(super) running: HashMap<RunId, Stream>,
    /// Bytes come from the origin: places for uploads are kept for new pieces.
    pub(super) coming: bool,
    /// Where streams stopped inside a block. Its bytes before that stay: readers may have seen them.
    pub(super) rests: BTreeMap<u32, Rest>,
}

/// One stream from the origin.
pub(super) struct Stream {
    pub(super) goal: Arc<Goal>,
    pub(super) stop: CancellationToken,
    pub(super) as_whom: SourceId,
}

impl Transfer {
    /// A piece whose hash is known was fetched by somebody. The hash comes from the scheduler and the have-map from that
    /// daemon: without patience in between, the origin would be asked for what is there already.
    pub(super) fn update_promise(&mut self, now: Instant) {
        if !self.swarm.awaits_promise() {
            self.promise = None;
        } else if *self.promise.get_or_insert(now + PATIENCE) <= now {
            self.promise = None;
            self.swarm.handle_promises_broken();
        }
    }

    pub(super) fn update_right(&mut self, now: Instant) {
        let scheduled = &self.download.scheduled;
        let allowed = match scheduled.talk {
            Some(_) => scheduled.lease.is_some() || scheduled.unshareable,
            // What was begun goes on while the scheduler changes: that is no refusal.
            None if self.download.shared.config.only_with_scheduler => {
                self.swarm.asks_origin() && self.download.is_changing_over()
            }
            None => !self.download.joining.is_under_way() || self.swarm.asks_origin(),
        };
        self.swarm.handle_right(match (allowed, self.right.is_due(now)) {
            (false, _) => MayAsk::No,
            // One run that broke off is no reason to stop the others.
            (true, false) => MayAsk::Later,
            (true, true) => MayAsk::Now,
        });
        let starved = allowed || !self.swarm.needs_origin() || self.download.joining.is_under_way();
        if !starved && scheduled.done {
            // The lease was given back when nobody wanted more. Now somebody does.
            self.register_again();
        }
    }

    /// A download that may not go to the origin ends when what is missing has been with nobody for a while.
    pub(super) fn update_hope(&mut self, now: Instant) -> Option<End> {
        let scheduled = &self.download.scheduled;
        let alone = scheduled.talk.is_none() && self.download.shared.config.only_with_scheduler;
        let why = scheduled.refused.as_deref().or(alone.then_some(NOT_ALONE));
        let Some(why) = why.filter(|_| scheduled.lease.is_none() && self.swarm.needs_origin()) else {
            self.hope = None;
            return None;
        };
        (*self.hope.get_or_insert(now + HOPE) <= now)
            .then(|| End::unavailable(why.to_owned(), LeaseOutcome::Refused))
    }

    pub(super) fn start_run(&mut self, run: RunId, blocks: Range<u32>) {
        let (start, hasher) = match self.streams.rests.remove(&blocks.start) {
            Some(rest) => (rest.offset, Some(rest.hasher)),
            None => (self.layout.start_of(blocks.start), None),
        };
        let goal = Arc::new(Goal::new(self.layout.start_of(blocks.end)));
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
        let origin = tracing::info_span!(target: TRACE, "origin", otel.kind = "client", offset = start);
        self.spawn(self.bench.clone().fetch_origin(job).instrument(origin));
    }

    pub(super) fn handle_wrote(&mut self, wrote: Wrote) -> Result<(), End> {
        let now = Instant::now();
        self.right.handle_bytes();
        // Not before: an origin that does not answer would keep places from those who could use them.
        self.set_coming(!self.streams.running.is_empty());
        self.counts.from_origin += wrote.bytes;
        self.counts.under_lease += wrote.bytes;
        self.download.shared.metrics.add_bytes(Supplier::Origin, wrote.bytes);
        self.take_blocks(&wrote.blocks, None)?;
        self.outbox.progress(now, self.counts.held, self.counts.under_lease);
        Ok(())
    }

    fn set_coming(&mut self, coming: bool) {
        if std::mem::replace(&mut self.streams.coming, coming) != coming {
            self.download.shared.turns.coming(self.download.task, self.layout.pieces(), coming);
        }
    }

    pub(super) fn handle_run_ended(
        &mut self,
        run: RunId,
        rest: Option<Rest>,
        result: Result<(), RunError>,
    ) -> Result<(), End> {
        let stream = self.streams.running.remove(&run);
        if self.streams.running.is_empty() {
            self.set_coming(false);
        }
        self.swarm.handle_run_ended(run);
        if let Some((block, rest)) = rest.and_then(|rest| Some((self.layout.block_at(rest.offset)?, rest))) {
            self.streams.rests.insert(block, rest);
        }
        self.note_blocks();
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
            RunError::Refused(_) | RunError::LedAstray(_) | RunError::Origin(_) | RunError::Broke(_) => {}
        }
        if self.right.handle_failure(Instant::now()) {
            Ok(())
        } else {
            Err(End::unavailable(error.to_string(), LeaseOutcome::Failed))
        }
    }
}

/// Statuses that a moment later may be others.
fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
}
