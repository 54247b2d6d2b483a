//! Streams from the origin: when there may be one, what it brings, and what follows when it ends.

use super::{End, Transfer};
use crate::download::jobs::{Rest, Run, RunError};
use crate::download::learn::NOT_ALONE;
use crate::download::ways::WayId;
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
    /// By whose way it is asked.
    way: WayId,
    /// It has brought bytes.
    gave: bool,
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
        let (has_way, has_untried) = {
            let ways = self.download.active.ways();
            (!ways.is_empty(), ways.has_untried())
        };
        if !has_way {
            self.return_lease(now, LeaseOutcome::Refused);
        }
        if has_untried && self.shut_out.take().is_some() && self.download.scheduled.lease.is_none() {
            // The scheduler has taken this download out of the line, and would not hear that there is another way now.
            self.register_again();
        }
        let scheduled = &self.download.scheduled;
        let allowed = match scheduled.talk {
            _ if !has_way => false,
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
        let why = scheduled.refused.as_deref().or(alone.then_some(NOT_ALONE)).or(self.shut_out.as_deref());
        let Some(why) = why.filter(|_| scheduled.lease.is_none() && self.swarm.needs_origin()) else {
            self.hope = None;
            return None;
        };
        (*self.hope.get_or_insert(now + HOPE) <= now)
            .then(|| End::unavailable(why.to_owned(), LeaseOutcome::Refused))
    }

    /// Takes what the origin is sending already, by `way`, where there is use for it.
    pub(super) fn adopt(&mut self, part: Part, way: Option<WayId>) {
        if part.no_ranges {
            self.swarm.handle_no_ranges();
        }
        // One byte that told the length, and a part that larger blocks do not begin with, are of no use.
        let carried = self.layout.blocks_within(part.start, part.end);
        if let Some((run, blocks)) = self.swarm.adopt_run(carried) {
            self.start_run(run, blocks, Some((part, way)));
        }
    }

    /// The origin gave all of the content where a run asked for a part. Another run that goes on brings the rest; otherwise
    /// this one begins where something is missing.
    pub(super) fn handle_whole(&mut self, run: RunId, rest: Option<Rest>, part: Part) {
        let way = self.streams.running.remove(&run).map(|stream| stream.way);
        self.swarm.handle_run_ended(run);
        self.keep_rest(rest);
        self.swarm.handle_no_ranges();
        if !self.swarm.asks_origin() {
            self.adopt(part, way);
        }
    }

    pub(super) fn start_run(&mut self, run: RunId, blocks: Range<u32>, body: Option<(Part, Option<WayId>)>) {
        let (body, way) = body.map_or((None, None), |(body, way)| (Some(body), way));
        let found = {
            let ways = self.download.active.ways();
            way.and_then(|way| ways.get(way)).or_else(|| ways.best())
        };
        let Some((way, source)) = found else { return self.swarm.handle_run_ended(run) };
        let (start, hasher) = match self.streams.rests.remove(&blocks.start) {
            Some(rest) => (rest.offset, Some(rest.hasher)),
            None => (self.layout.start_of(blocks.start), None),
        };
        let goal = Arc::new(Goal::new(self.layout.start_of(blocks.end)));
        let stop = self.bench.stop.child_token();
        let stream = Stream { goal: Arc::clone(&goal), stop: stop.clone(), way, gave: false };
        self.streams.running.insert(run, stream);
        let job = Run {
            id: run,
            source,
            start,
            hasher,
            goal,
            version: self.known.digest.is_none().then(|| self.known.info.headers.clone()),
            body,
            in_order: self.swarm.is_in_order(),
            stop,
        };
        let origin = tracing::info_span!(target: TRACE, "origin", otel.kind = "client", offset = start);
        self.spawn(self.bench.clone().fetch_origin(job).instrument(origin));
    }

    pub(super) fn handle_wrote(&mut self, run: RunId, wrote: Wrote) -> Result<(), End> {
        let now = Instant::now();
        self.right.handle_bytes();
        if let Some(stream) = self.streams.running.get_mut(&run)
            && !std::mem::replace(&mut stream.gave, true)
        {
            self.download.active.ways().handle_bytes(stream.way);
        }
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
        self.keep_rest(rest);
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
        let Some(Stream { way, gave, .. }) = stream else { return Ok(()) };
        match error {
            RunError::Store(error) => return Err(End::store(error)),
            RunError::Refused(status) if !is_passing(status) => {
                self.download.active.ways().handle_refusal(way);
                // Another caller's newer token may still be good.
                let others = !self.download.active.ways().is_empty();
                return if others { Ok(()) } else { self.shut_out(&error, LeaseOutcome::Refused) };
            }
            // Another caller's server may have what this one has not, or no more. One that broke off goes on where it was.
            _ if !gave && self.download.active.ways().handle_failure(way) => return Ok(()),
            RunError::Changed => return Err(self.changed()),
            RunError::Refused(_) | RunError::LedAstray(_) | RunError::Origin(_) | RunError::Broke(_) => {}
        }
        if self.right.handle_failure(Instant::now()) {
            Ok(())
        } else {
            self.shut_out(&error, LeaseOutcome::Failed)
        }
    }

    fn keep_rest(&mut self, rest: Option<Rest>) {
        if let Some((block, rest)) = rest.and_then(|rest| Some((self.layout.block_at(rest.offset)?, rest))) {
            self.streams.rests.insert(block, rest);
        }
    }

    /// This download gets nothing more from the origin. What is missing others may bring, who are let in, or have it.
    fn shut_out(&mut self, error: &RunError, outcome: LeaseOutcome) -> Result<(), End> {
        let scheduled = &self.download.scheduled;
        if scheduled.talk.is_none() || scheduled.unshareable {
            return Err(End::unavailable(error.to_string(), outcome));
        }
        self.return_lease(Instant::now(), outcome);
        self.shut_out = Some(error.to_string());
        Ok(())
    }
}

/// Statuses that a moment later may be others.
fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
}
