//! Past the engine: a reader goes on at the origin when the disk has failed the download that it reads from.
//!
//! A download ends when its disk takes nothing more. Its readers have their headers and some of the bytes: they can be cut, or
//! be brought the rest. So each asks the origin, as its own caller, for what it lacks, and gets that as it comes; nothing of it is
//! kept, and no other daemon is given it.
//!
//! What holds for bytes out of the file holds for these. They are of the version that was begun, or the body is cut; whoever
//! reads all of content with a digest gets the end only when the whole is right: what it got before is hashed out of the file, where
//! the download has not hashed it, and the rest in passing. Where the operator keeps this host from the origin
//! ([`Progress::past`](crate::progress::Progress::past)) the disk's error is the end, and so it is of content without an origin.
//! Limits and turns of the origin count as for any download.

use crate::download::{Known, in_turn};
use crate::engine::Shared;
use crate::intake::{Heard, next_part};
use crate::metrics::Metrics;
use crate::origin::{self, Answer, Ask, Part, Source};
use crate::origins::{self, Patience};
use crate::throttle::Way;
use crate::verify::{Check, Verifier};
use crate::{OpenRequest, ReadError, Supplied, Supplier};
use bytes::{Buf as _, Bytes};
use darter_protocol::{ByteRange, TaskId};
use darter_upstream::Incoming;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// One caller's own way to the origin.
pub(crate) struct Detour {
    /// Bodies outlive engines, and do not keep a store open.
    shared: Weak<Shared>,
    task: TaskId,
    source: Source,
}

/// What a reader lacks, as it comes from the origin.
pub(crate) struct Passing {
    body: Incoming,
    /// What the body has given, and what has not passed the limits yet.
    held: Bytes,
    /// Bytes of the body that the reader has: an origin that does not honour ranges sends everything from the start.
    skip: u64,
    /// Bytes that the reader lacks.
    lacks: u64,
    /// What it got, when that must be right before its end.
    check: Option<Check>,
    known: Arc<Known>,
    way: Way,
    heard: Heard,
    idle: Duration,
    metrics: Metrics,
    stop: CancellationToken,
}

// === impl Detour ===

impl Detour {
    /// `None` for content without an origin, for a caller who wants nothing from one, and for what is in memory: no disk fails it.
    pub(crate) fn of(shared: &Arc<Shared>, known: &Known, request: &OpenRequest) -> Option<Box<Self>> {
        let has_origin = matches!(request.url.scheme(), "http" | "https");
        let keeps_away = request.priority.is_from_peers_only() || request.priority.is_forbidden();
        (has_origin && !keeps_away && !known.file.is_staged()).then(|| {
            let (shared, source) = (Arc::downgrade(shared), Source::from(request));
            Box::new(Self { shared, task: request.task, source })
        })
    }

    /// Asks for `rest`. `whole`: the reader reads all of it. `error` is what the disk said.
    ///
    /// # Errors
    /// `error` where it cannot be tried; [`ReadError::Store`] when what the reader got cannot be read back;
    /// [`ReadError::Mismatch`] when there is another version now; otherwise [`ReadError::Unavailable`].
    pub(crate) async fn take(
        &self,
        known: &Arc<Known>,
        (rest, whole): (ByteRange, bool),
        error: ReadError,
        supplied: &Supplied,
    ) -> Result<Passing, ReadError> {
        let Some(shared) = self.shared.upgrade() else { return Err(error) };
        tracing::debug!(task = %self.task, %error, offset = rest.start(), "a reader goes on at the origin");
        let asking = async {
            let check = if whole { check(known, rest.start()).await? } else { None };
            // What is hashed is right, by whatever validators its servers know it.
            let part = self.ask(&shared, known, (rest, check.is_some()), &error).await?;
            Ok((check, part))
        };
        let stop = shared.shutdown.clone();
        let (check, part) = stop.run_until_cancelled(asking).await.unwrap_or_else(|| Err(stopping()))?;
        supplied.set_queued(supplied.queued() + part.queued);
        Ok(Passing {
            skip: rest.start() - part.start,
            body: part.body,
            held: Bytes::new(),
            lacks: rest.len(),
            check,
            known: Arc::clone(known),
            way: shared.throttles.of_task(self.task, None).of_origin(),
            heard: Heard::default(),
            idle: shared.config.idle_timeout,
            metrics: shared.metrics.clone(),
            stop,
        })
    }

    async fn ask(
        &self,
        shared: &Shared,
        known: &Known,
        (rest, is_checked): (ByteRange, bool),
        error: &ReadError,
    ) -> Result<Part, ReadError> {
        let length = known.info.length;
        let version = (!is_checked).then_some(&known.info.headers);
        let ask = if rest.len() < length { Ask::Range(rest) } else { Ask::All };
        let validator = version.and_then(origin::validator);
        let patience = Patience { pause: origins::LONGEST, turn: in_turn(&self.task, false) };
        let asked = shared.origins.fetch(&shared.upstream, &self.source, (ask, validator), patience).await;
        let unavailable = |why: String| ReadError::Unavailable(format!("{error}; past it: {why}"));
        match asked.map_err(|why| unavailable(why.to_string()))? {
            Answer::Content { info, part }
                if info.length == length
                    && part.start <= rest.start()
                    && part.end >= rest.end()
                    && version.is_none_or(|version| origin::same_version(version, &info.headers)) =>
            {
                Ok(part)
            }
            Answer::Content { .. } | Answer::Outside { .. } => Err(known.changed()),
            Answer::Other { response, .. } => {
                Err(unavailable(format!("the origin answered with status {}", response.status())))
            }
        }
    }
}

/// What a reader got that stands at `offset`, hashed; `None` when nothing is known to compare it with.
async fn check(known: &Known, offset: u64) -> Result<Option<Check>, ReadError> {
    let Some(verifier) = known.verifier.clone() else { return Ok(None) };
    let file = Arc::clone(&known.file);
    let read = tokio::task::spawn_blocking(move || Verifier::check_from(&verifier, offset, &file)).await;
    let read = read.map_err(io::Error::other).and_then(|read| read);
    read.map(Some).map_err(|error| ReadError::Store(Arc::new(error)))
}

fn stopping() -> ReadError {
    ReadError::Unavailable("the daemon is stopping".to_owned())
}

// === impl Passing ===

impl Passing {
    /// The next bytes; `None` after the last.
    ///
    /// # Errors
    /// When the origin breaks off, or has sent what is not the content.
    pub(crate) async fn next(&mut self, supplied: &Supplied) -> Result<Option<Bytes>, ReadError> {
        while self.lacks > 0 {
            let limits = (&self.way, self.idle, &self.heard);
            let part = self.stop.run_until_cancelled(next_part(&mut self.body, &mut self.held, limits)).await;
            let part = part.ok_or_else(stopping)?.map_err(ReadError::Unavailable)?;
            let Some(mut bytes) = part else {
                return Err(ReadError::Unavailable("the connection ended early".to_owned()));
            };
            let passed = self.skip.min(bytes.len() as u64);
            self.skip -= passed;
            bytes.advance(passed as usize);
            bytes.truncate(usize::try_from(self.lacks).unwrap_or(usize::MAX));
            if bytes.is_empty() {
                continue;
            }
            let length = bytes.len() as u64;
            self.lacks -= length;
            if let Some(check) = &mut self.check {
                check.update(&bytes);
                // The last byte is among these.
                if self.lacks == 0 && !check.matches() {
                    return Err(self.known.changed());
                }
            }
            supplied.add(Supplier::Origin, length);
            self.metrics.add_bytes(Supplier::Origin, length);
            return Ok(Some(bytes));
        }
        Ok(None)
    }
}
