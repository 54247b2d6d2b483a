//! How content enters the engine: from a body into the file, hashed on the way.
//!
//! Every byte is copied once (into the page cache) and hashed once by BLAKE3, and once more by the content's own digest
//! when it comes in order. Writing and hashing run on a blocking thread, one batch at a time, while the next batch is
//! being received: a slow disk holds the body back, never the other way round.
//!
//! Invariant: at any time at most one sink may write a piece. Before a sink writes into a piece it has taken it, under the
//! lock of its [`Goal`]; whoever lowers the goal to give the pieces behind it to another learns which are taken.

use crate::intake::{Heard, parts};
use crate::store::TaskFile;
use crate::throttle::Way;
use crate::verify::Verifier;
use bytes::Bytes;
use darter_protocol::hash::PieceHasher;
use darter_protocol::{PieceHash, PieceIndex, PieceLayout};
use futures_util::StreamExt;
use http_body::Body;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What is received while a batch is being written, in bytes: the memory that one stream may take.
const MAX_PENDING: usize = 1 << 20;

/// Where the bytes of one stream go.
pub(crate) struct Sink {
    pub(crate) file: Arc<TaskFile>,
    /// Hashes the whole; `None` when nothing is known to compare it with.
    pub(crate) verifier: Option<Arc<Mutex<Verifier>>>,
    /// A piece is right by itself when it is complete (it came from the origin). Otherwise the caller settles it.
    pub(crate) settles: bool,
    /// Bytes before this offset are there already and stay as they are.
    pub(crate) keep_before: u64,
    /// The offset of the next byte.
    pub(crate) offset: u64,
    /// The hash of the piece that `offset` lies in, up to there.
    pub(crate) hasher: Option<Box<PieceHasher>>,
    /// Whether the verifier has taken all of that piece from here, so far.
    pub(crate) in_passing: bool,
}

/// Pieces that a batch completed.
type Pieces = Vec<(PieceIndex, PieceHash)>;

impl Sink {
    /// Writes and hashes the next bytes; gives the pieces that they complete. Blocks.
    fn write(&mut self, batch: &[Bytes]) -> io::Result<Pieces> {
        let verifier = self.verifier.clone();
        // Somebody who holds it reads back a gap; these bytes will be read back in their turn.
        let mut verifier = verifier.as_deref().and_then(|verifier| verifier.try_lock().ok());
        let layout = *self.file.layout();
        let mut pieces = Vec::new();
        for bytes in batch {
            let mut rest = bytes.as_ref();
            while let Some(piece) = layout.piece_at(self.offset).filter(|_| !rest.is_empty()) {
                let end = layout.range(piece).end();
                let (now, later) = rest.split_at(rest.len().min((end - self.offset) as usize));
                self.write_kept(now)?;
                let hasher = self.hasher.get_or_insert_with(|| Box::new(PieceHasher::new(&layout, piece)));
                hasher.update(now);
                let so_far = self.in_passing || self.offset == layout.range(piece).start();
                self.in_passing =
                    so_far && verifier.as_mut().is_some_and(|verifier| verifier.offer(self.offset, now));
                self.offset += now.len() as u64;
                rest = later;
                if self.offset == end {
                    pieces.push((piece, hasher.finish()));
                    self.hasher = None;
                    if let Some(verifier) = verifier.as_mut().filter(|_| self.settles && self.in_passing) {
                        verifier.settle(end);
                    }
                }
            }
        }
        Ok(pieces)
    }

    fn write_kept(&self, bytes: &[u8]) -> io::Result<()> {
        let kept = self.keep_before.saturating_sub(self.offset).min(bytes.len() as u64);
        self.file.write_at(self.offset + kept, &bytes[kept as usize..])
    }
}

/// What a stream has brought since the last report.
pub(crate) struct Wrote {
    /// How many bytes.
    pub(crate) bytes: u64,
    /// Everything of this stream before this offset is on disk.
    pub(crate) offset: u64,
    pub(crate) pieces: Pieces,
}

/// Who is told of what was written.
pub(crate) trait Report {
    fn report(&self, wrote: Wrote) -> impl Future<Output = ()> + Send;
}

/// Why a stream ended before its end.
#[derive(Debug)]
pub(crate) enum PumpError {
    /// The body broke off, or was silent for too long.
    Broke(String),
    Store(io::Error),
}

/// Where a stream stops. May be lowered while the stream is being received.
#[derive(Debug)]
pub(crate) struct Goal(Mutex<Reach>);

#[derive(Debug)]
struct Reach {
    /// Bytes before this offset are taken: they have been or will be written.
    taken: u64,
    end: u64,
}

impl Goal {
    pub(crate) fn new(end: u64) -> Self {
        Self(Mutex::new(Reach { taken: 0, end }))
    }

    pub(crate) fn end(&self) -> u64 {
        self.lock().end
    }

    /// The offset of the next byte; 0 before the first.
    pub(crate) fn reached(&self) -> u64 {
        self.lock().taken
    }

    /// Lowers the goal to `end`, but not into a piece that is taken. Gives where it stands then.
    pub(crate) fn lower(&self, end: u64, layout: &PieceLayout) -> u64 {
        let mut reach = self.lock();
        let last = reach.taken.checked_sub(1).and_then(|last| layout.piece_at(last));
        let taken = last.map_or(0, |piece| layout.range(piece).end());
        reach.end = reach.end.min(end.max(taken));
        reach.end
    }

    /// How many of `bytes` bytes at `offset` lie before the goal. These are taken.
    fn take(&self, offset: u64, bytes: usize) -> usize {
        let mut reach = self.lock();
        let bytes = reach.end.saturating_sub(offset).min(bytes as u64);
        if bytes > 0 {
            reach.taken = offset + bytes;
        }
        bytes as usize
    }

    fn lock(&self) -> MutexGuard<'_, Reach> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a stream is received.
pub(crate) struct Limits<'a> {
    /// Bytes of the body to pass over: an origin that does not honour ranges sends everything from the start.
    pub(crate) skip: u64,
    pub(crate) goal: &'a Goal,
    /// How long the body may be silent.
    pub(crate) idle: Duration,
    /// What the body's bytes pass.
    pub(crate) way: &'a Way,
    /// Told of everything that comes.
    pub(crate) heard: &'a Heard,
    pub(crate) stop: &'a CancellationToken,
}

/// Receives a body into a sink, up to `limits.goal` or until stopped, and reports after every batch. Gives the sink back
/// with the offset that it reached.
///
/// Must be driven to its end: a batch that is being written when this is dropped is still written.
pub(crate) async fn pump(
    body: impl Body<Data = Bytes, Error = hyper::Error> + Unpin,
    sink: Sink,
    limits: Limits<'_>,
    report: impl Report,
) -> (Option<Sink>, Result<(), PumpError>) {
    let mut parts = std::pin::pin!(parts(body, limits.way, limits.idle, limits.heard));
    let mut skip = limits.skip;
    let mut received = sink.offset;
    let mut pending: Vec<Bytes> = Vec::new();
    let mut pending_bytes = 0;
    let mut writing: Option<JoinHandle<(Sink, u64, io::Result<Pieces>)>> = None;
    let mut sink = Some(sink);
    let mut end = None;
    loop {
        if !pending.is_empty()
            && let Some(mut taken) = sink.take()
        {
            let batch = std::mem::take(&mut pending);
            pending_bytes = 0;
            if taken.file.is_staged() {
                // Memory takes it at once.
                let before = taken.offset;
                let written = taken.write(&batch);
                let (bytes, offset) = (taken.offset - before, taken.offset);
                sink = Some(taken);
                match written {
                    Ok(pieces) => report.report(Wrote { bytes, offset, pieces }).await,
                    Err(error) => return (sink, Err(PumpError::Store(error))),
                }
                continue;
            }
            writing = Some(tokio::task::spawn_blocking(move || {
                let before = taken.offset;
                let pieces = taken.write(&batch);
                let bytes = taken.offset - before;
                (taken, bytes, pieces)
            }));
        }
        if end.is_none() && received >= limits.goal.end() {
            end = Some(Ok(()));
        }
        if writing.is_none()
            && pending.is_empty()
            && let Some(result) = end.take()
        {
            return (sink, result);
        }
        // Neither is it the other side's fault that the disk is slow.
        let _held = (pending_bytes >= MAX_PENDING).then(|| limits.heard.hold());
        tokio::select! {
            part = parts.next(), if end.is_none() && pending_bytes < MAX_PENDING => match part {
                Some(Ok(mut data)) => {
                    let passed = skip.min(data.len() as u64);
                    skip -= passed;
                    bytes::Buf::advance(&mut data, passed as usize);
                    data.truncate(limits.goal.take(received, data.len()));
                    received += data.len() as u64;
                    pending_bytes += data.len();
                    if !data.is_empty() {
                        pending.push(data);
                    }
                }
                Some(Err(error)) => end = Some(Err(PumpError::Broke(error))),
                None => end = Some(Err(PumpError::Broke("the connection ended early".to_owned()))),
            },
            written = async { writing.as_mut().expect("checked below").await }, if writing.is_some() => {
                writing = None;
                match written {
                    Ok((done, bytes, Ok(pieces))) => {
                        report.report(Wrote { bytes, offset: done.offset, pieces }).await;
                        sink = Some(done);
                    }
                    Ok((done, _, Err(error))) => return (Some(done), Err(PumpError::Store(error))),
                    Err(error) => return (None, Err(PumpError::Store(io::Error::other(error)))),
                }
            }
            () = limits.stop.cancelled(), if end.is_none() => end = Some(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::throttle::{Rates, Throttles};
    use http_body_util::{BodyExt as _, Full};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Wake};

    const PIECE: u64 = PieceLayout::MIN_PIECE_SIZE;

    struct Nobody;

    impl Report for Nobody {
        async fn report(&self, _: Wrote) {}
    }

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_stream_that_has_ended_does_nothing_until_its_last_bytes_are_written() {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.max_blocking_threads(1).enable_time().build().unwrap();
        let _entered = runtime.enter();
        // While this holds the only thread that may block, nothing is written. Not for ever: who looks again and again does
        // not come back before.
        let (go_on, held) = std::sync::mpsc::channel();
        let holder = runtime.spawn_blocking(move || held.recv_timeout(Duration::from_secs(10)));

        let folder = tempfile::tempdir().unwrap();
        let file = TaskFile::create(&folder.path().join("a"), PieceLayout::new(4).unwrap()).unwrap();
        let sink = Sink {
            file: Arc::new(file),
            verifier: None,
            settles: true,
            keep_before: 0,
            offset: 0,
            hasher: None,
            in_passing: false,
        };
        let throttles = Throttles::new(Rates::default(), &Metrics::default());
        let limits = Limits {
            skip: 0,
            goal: &Goal::new(4),
            idle: Duration::from_secs(30),
            way: &throttles.to(None),
            heard: &Heard::default(),
            stop: &CancellationToken::new(),
        };
        let body = Full::new(Bytes::from_static(b"abcd")).map_err(|never| match never {});
        let mut pumping = Box::pin(pump(body, sink, limits, Nobody));
        let woken = Arc::new(Woken::default());
        let waker = woken.clone().into();
        assert!(pumping.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        assert!(!woken.0.load(Ordering::Relaxed), "it wants to look again at once");

        go_on.send(()).unwrap();
        let (sink, result) = runtime.block_on(pumping);
        assert!(result.is_ok());
        assert_eq!(sink.unwrap().offset, 4);
        runtime.block_on(holder).unwrap().unwrap();
    }

    #[test]
    fn a_goal_is_not_lowered_into_a_piece_that_is_taken() {
        let layout = PieceLayout::new(10 * PIECE).unwrap();
        let goal = Goal::new(10 * PIECE);
        assert_eq!(goal.lower(9 * PIECE, &layout), 9 * PIECE);
        assert_eq!(goal.take(2 * PIECE, 1), 1);
        assert_eq!(goal.lower(PIECE, &layout), 3 * PIECE, "the third piece is being written");
        assert_eq!(goal.take(3 * PIECE - 5, 100), 5);
        assert_eq!(goal.take(3 * PIECE, 100), 0);
        assert_eq!(goal.lower(5 * PIECE, &layout), 3 * PIECE, "what was given away does not come back");
    }
}
