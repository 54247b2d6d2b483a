//! How content leaves the engine: in order, as it arrives, out of the page cache.
//!
//! A byte that a client gets was copied twice here: into the file when it came, and out of it. Bytes from another daemon
//! are readable once their blocks, or the whole piece, matched their hashes; bytes from the origin as soon as they are
//! written. When the content has a digest, whoever reads all of it gets the very last byte only when the whole was verified:
//! a client that received everything received what it asked for, and one that did not has a short body.
//!
//! Where the disk fails a running download its readers get what is there, and go on past the engine (see `past`).

use crate::download::Known;
use crate::metrics::Metrics;
use crate::past::{Detour, Passing};
use crate::progress::{Demand, Progress, State};
use crate::store::TaskFile;
use crate::{ReadError, Supplied, Supplier};
use bytes::Bytes;
use darter_protocol::ByteRange;
use futures_util::{FutureExt as _, stream};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use std::sync::Arc;
use tokio::sync::watch;

/// One reader of some content.
pub(crate) struct Reader {
    pub(crate) file: Arc<TaskFile>,
    /// What is still to be read.
    pub(crate) rest: Option<ByteRange>,
    /// The download that brings it; `None` when everything is there.
    pub(crate) live: Option<Live>,
    pub(crate) metrics: Metrics,
    /// Whether its bytes may be lent: see [`ContentBody::lend`].
    pub(crate) lends: bool,
}

/// A running download, as one reader sees it.
pub(crate) struct Live {
    known: Arc<Known>,
    progress: watch::Receiver<Progress>,
    demand: Demand,
    /// The offset of the byte that waits for the verification of the whole, when there is a digest to verify.
    last: Option<u64>,
    /// The block that was last waited for: it is said once.
    waited_for: Option<u32>,
    /// For when the disk fails; `None` for content without an origin.
    detour: Option<Box<Detour>>,
}

/// Where a reader's next bytes come from.
enum Reading {
    Here(Reader),
    Past(Box<Passing>),
}

impl Reader {
    /// The bytes, counted in `supplied`.
    pub(crate) fn into_frames(self, supplied: Arc<Supplied>) -> UnsyncBoxBody<Bytes, ReadError> {
        let frames = stream::unfold(Some((Reading::Here(self), supplied)), |reading| async {
            let (mut reading, counted) = reading?;
            match reading.next(&counted).await {
                Ok(bytes) => bytes.map(|bytes| (Ok(Frame::data(bytes)), Some((reading, counted)))),
                Err(error) => Some((Err(error), None)),
            }
        });
        StreamBody::new(frames).boxed_unsync()
    }

    async fn next(&mut self, supplied: &Supplied) -> Result<Option<Bytes>, ReadError> {
        let Some(rest) = self.rest else { return Ok(None) };
        let (ready, supplier) = match &mut self.live {
            Some(live) => live.ready(rest, &self.file).await?,
            None => (rest, Supplier::Disk),
        };
        let bytes = if self.lends { self.file.lend(ready).await } else { self.file.read(ready).await };
        let bytes = bytes.map_err(|error| ReadError::Store(Arc::new(error)))?;
        supplied.add(supplier, bytes.len() as u64);
        if supplier == Supplier::Disk {
            self.metrics.add_bytes(supplier, bytes.len() as u64);
        }
        self.rest = ByteRange::new(rest.start() + bytes.len() as u64, rest.end());
        Ok(Some(bytes))
    }

    /// The disk has failed with `error`: the rest comes from the origin, where it may.
    async fn go_past(&self, error: ReadError, supplied: &Supplied) -> Result<Passing, ReadError> {
        let (Some(rest), Some(live)) = (self.rest, &self.live) else { return Err(error) };
        let may = live.progress.borrow().past;
        let Some(detour) = live.detour.as_ref().filter(|_| may) else { return Err(error) };
        detour.take(&live.known, (rest, live.last.is_some()), error, supplied).await
    }
}

impl Reading {
    async fn next(&mut self, supplied: &Supplied) -> Result<Option<Bytes>, ReadError> {
        loop {
            match self {
                Self::Here(reader) => match reader.next(supplied).await {
                    // Boxed, as what follows is: few readers need the room for it.
                    Err(error @ ReadError::Store(_)) => {
                        *self = Self::Past(Box::new(reader.go_past(error, supplied).boxed().await?));
                    }
                    given => return given,
                },
                Self::Past(passing) => return passing.next(supplied).boxed().await,
            }
        }
    }
}

impl Live {
    /// For a reader of `range`.
    pub(crate) fn new(
        known: &Arc<Known>,
        range: Option<ByteRange>,
        demand: Demand,
        detour: Option<Box<Detour>>,
    ) -> Self {
        let length = known.info.length;
        // Whoever reads all of it waits with the last byte; a part says nothing about the whole.
        let whole = range.is_some() && range == ByteRange::new(0, length);
        let last = (whole && known.digest.is_some()).then(|| length - 1);
        let progress = known.progress.clone();
        Self { known: Arc::clone(known), progress, demand, last, waited_for: None, detour }
    }

    /// Waits until the first byte of `rest` may be read; gives the part from there on that may and came from the same source,
    /// and which that is.
    async fn ready(&mut self, rest: ByteRange, file: &TaskFile) -> Result<(ByteRange, Supplier), ReadError> {
        loop {
            {
                let progress = self.progress.borrow_and_update();
                let failed = match &progress.state {
                    State::Failed(error) => Some(error),
                    State::Running | State::Verified => None,
                };
                // What a disk has taken that takes no more is right.
                if let Some(error) = failed.filter(|error| !matches!(error, ReadError::Store(_))) {
                    return Err(error.clone());
                }
                let is_verified = matches!(progress.state, State::Verified);
                let held = self.last.filter(|_| !is_verified).unwrap_or(u64::MAX);
                let (supplier, same) = progress.supplier(rest.start());
                let end = progress.readable(rest.start()).min(held).min(same);
                if let Some(ready) = ByteRange::new(rest.start(), end.min(rest.end())) {
                    return Ok((ready, supplier));
                }
                if let Some(error) = failed {
                    return Err(error.clone());
                }
            }
            let block = file.layout().block_at(rest.start()).filter(|block| self.waited_for != Some(*block));
            if let Some(block) = block {
                self.waited_for = Some(block);
                self.demand.wait_for(block);
            }
            if self.progress.changed().await.is_err() {
                return Err(ReadError::Unavailable("the download was stopped".to_owned()));
            }
        }
    }
}
