//! How content leaves the engine: in order, as it arrives, out of the page cache.
//!
//! A byte that a client gets was copied twice here: into the file when it came, and out of it. Bytes from another daemon
//! are readable once their blocks, or the whole piece, matched their hashes; bytes from the origin as soon as they are
//! written. When the content has a digest, whoever reads all of it gets the very last byte only when the whole was verified:
//! a client that received everything received what it asked for, and one that did not has a short body.

use crate::metrics::Metrics;
use crate::progress::{Demand, Progress, State};
use crate::store::TaskFile;
use crate::{ReadError, Supplied, Supplier};
use bytes::Bytes;
use darter_protocol::ByteRange;
use futures_util::stream;
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
    pub(crate) progress: watch::Receiver<Progress>,
    pub(crate) demand: Demand,
    /// The offset of the byte that waits for the verification of the whole, when there is a digest to verify.
    pub(crate) last: Option<u64>,
    /// The block that was last waited for: it is said once.
    pub(crate) waited_for: Option<u32>,
}

impl Reader {
    /// The bytes, counted in `supplied`.
    pub(crate) fn into_frames(self, supplied: Arc<Supplied>) -> UnsyncBoxBody<Bytes, ReadError> {
        let frames = stream::unfold(Some((self, supplied)), |reading| async {
            let (mut reader, counted) = reading?;
            match reader.next(&counted).await {
                Ok(bytes) => bytes.map(|bytes| (Ok(Frame::data(bytes)), Some((reader, counted)))),
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
}

impl Live {
    /// Waits until the first byte of `rest` may be read; gives the part from there on that may and came from the same source,
    /// and which that is.
    async fn ready(&mut self, rest: ByteRange, file: &TaskFile) -> Result<(ByteRange, Supplier), ReadError> {
        loop {
            {
                let progress = self.progress.borrow_and_update();
                if let State::Failed(error) = &progress.state {
                    return Err(error.clone());
                }
                let held = self.last.filter(|_| matches!(progress.state, State::Running)).unwrap_or(u64::MAX);
                let (supplier, same) = progress.supplier(rest.start());
                let end = progress.readable(rest.start()).min(held).min(same);
                if let Some(ready) = ByteRange::new(rest.start(), end.min(rest.end())) {
                    return Ok((ready, supplier));
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
