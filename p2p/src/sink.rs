//! How content enters the engine: from a body into the file, hashed on the way.
//!
//! Every byte is copied once (into the page cache) and hashed once by BLAKE3, and once more by the content's own digest
//! when it comes in order. Writing and hashing run on a blocking thread, one batch at a time, while the next batch is
//! being received: a slow disk holds the body back, never the other way round.
//!
//! It is hashed block by block: a stream may begin and end anywhere in a piece, and the hashes of blocks that came in any
//! order merge into the piece's.
//!
//! Invariant: at any time at most one sink may write a block. Before a sink writes into a block it has taken it, under the
//! lock of its [`Goal`]; whoever lowers the goal to give the blocks behind it to another learns which are taken.

use crate::intake::{Heard, parts};
use crate::store::TaskFile;
use crate::throttle::Way;
use crate::verify::Verifier;
use bytes::Bytes;
use darter_protocol::hash::BlockHasher;
use darter_protocol::{BlockHash, ByteRange, PieceLayout};
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
    /// These bytes are there already and stay as they are: in order, and few.
    pub(crate) kept: Vec<ByteRange>,
    /// The offset of the next byte.
    pub(crate) offset: u64,
    /// The hash of the block that `offset` lies in, up to there.
    pub(crate) hasher: Option<Box<BlockHasher>>,
    /// Whether the verifier has taken all of its piece from here, so far.
    pub(crate) in_passing: bool,
}

/// Blocks that follow each other, with their hashes.
pub(crate) type Blocks = Vec<(u32, BlockHash)>;

impl Sink {
    /// Writes and hashes the next bytes; gives the blocks that they complete. Blocks.
    fn write(&mut self, batch: &[Bytes]) -> io::Result<Blocks> {
        let verifier = self.verifier.clone();
        // Somebody who holds it reads back a gap; these bytes will be read back in their turn.
        let mut verifier = verifier.as_deref().and_then(|verifier| verifier.try_lock().ok());
        let layout = *self.file.layout();
        let mut blocks = Vec::new();
        for bytes in batch {
            let fits = usize::try_from(layout.length().saturating_sub(self.offset)).unwrap_or(usize::MAX);
            let mut rest = &bytes[..bytes.len().min(fits)];
            // In one call: what is hashed in blocks need not be written in blocks.
            write_kept(&self.file, &self.kept, self.offset, rest)?;
            while let Some((piece, block)) = self.place().filter(|_| !rest.is_empty()) {
                let end = layout.start_of(block + 1);
                let (now, later) = rest.split_at(rest.len().min((end - self.offset) as usize));
                let hasher = self.hasher.get_or_insert_with(|| Box::new(BlockHasher::new(&layout, block)));
                hasher.update(now);
                let so_far = self.in_passing || self.offset == piece.start();
                self.in_passing =
                    so_far && verifier.as_mut().is_some_and(|verifier| verifier.offer(self.offset, now));
                self.offset += now.len() as u64;
                rest = later;
                if self.offset == end {
                    blocks.push((block, hasher.finish()));
                    self.hasher = None;
                }
                if self.offset == piece.end()
                    && let Some(verifier) = verifier.as_mut().filter(|_| self.settles && self.in_passing)
                {
                    verifier.settle(piece.end());
                }
            }
        }
        Ok(blocks)
    }

    /// The piece and the block that the next byte lies in.
    fn place(&self) -> Option<(ByteRange, u32)> {
        let layout = self.file.layout();
        Some((layout.range(layout.piece_at(self.offset)?), layout.block_at(self.offset)?))
    }
}

/// Writes `bytes` at `offset`, but not over those that are kept: in order, and few. Blocks.
pub(crate) fn write_kept(file: &TaskFile, kept: &[ByteRange], offset: u64, bytes: &[u8]) -> io::Result<()> {
    let (mut at, end) = (offset, offset + bytes.len() as u64);
    let kept = kept.iter().filter(|kept| kept.start() < end);
    for (start, kept_to) in kept.map(|kept| (kept.start(), kept.end())).chain([(end, end)]) {
        if at < start {
            file.write_at(at, &bytes[(at - offset) as usize..(start - offset) as usize])?;
        }
        at = at.max(kept_to);
    }
    Ok(())
}

/// What a stream has brought since the last report.
pub(crate) struct Wrote {
    /// How many bytes.
    pub(crate) bytes: u64,
    /// Everything of this stream before this offset is on disk.
    pub(crate) offset: u64,
    pub(crate) blocks: Blocks,
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

/// Where a stream stops. May be lowered, or raised, while the stream is being received.
#[derive(Debug)]
pub(crate) struct Goal(Mutex<Reach>);

#[derive(Debug)]
struct Reach {
    /// Bytes before this offset are taken: they have been or will be written.
    taken: u64,
    end: u64,
    /// The stream has come to its end.
    is_met: bool,
}

impl Goal {
    pub(crate) fn new(end: u64) -> Self {
        Self(Mutex::new(Reach { taken: 0, end, is_met: false }))
    }

    pub(crate) fn end(&self) -> u64 {
        self.lock().end
    }

    /// The offset of the next byte; 0 before the first.
    pub(crate) fn reached(&self) -> u64 {
        self.lock().taken
    }

    /// Lowers the goal to `end`, but not into a block that is taken. Gives where it stands then.
    pub(crate) fn lower(&self, end: u64, layout: &PieceLayout) -> u64 {
        let mut reach = self.lock();
        let last = reach.taken.checked_sub(1).and_then(|last| layout.block_at(last));
        let taken = last.map_or(0, |block| layout.start_of(block + 1));
        reach.end = reach.end.min(end.max(taken));
        reach.end
    }

    /// Raises the goal to `end`, unless the stream has come to its end already.
    pub(crate) fn raise(&self, end: u64) {
        let mut reach = self.lock();
        if !reach.is_met {
            reach.end = reach.end.max(end);
        }
    }

    /// Whether a stream that has received everything before `offset` is at its end: then it stays where it is.
    fn is_met_at(&self, offset: u64) -> bool {
        let mut reach = self.lock();
        reach.is_met |= offset >= reach.end;
        reach.is_met
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
    let mut writing: Option<JoinHandle<(Sink, u64, io::Result<Blocks>)>> = None;
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
                    Ok(blocks) => report.report(Wrote { bytes, offset, blocks }).await,
                    Err(error) => return (sink, Err(PumpError::Store(error))),
                }
                continue;
            }
            writing = Some(tokio::task::spawn_blocking(move || {
                let before = taken.offset;
                let blocks = taken.write(&batch);
                let bytes = taken.offset - before;
                (taken, bytes, blocks)
            }));
        }
        if end.is_none() && limits.goal.is_met_at(received) {
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
                    Ok((done, bytes, Ok(blocks))) => {
                        report.report(Wrote { bytes, offset: done.offset, blocks }).await;
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

    const BLOCK: u64 = PieceLayout::MIN_BLOCK_SIZE;

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
            kept: Vec::new(),
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
    fn a_goal_is_not_lowered_into_a_block_that_is_taken() {
        let layout = PieceLayout::new(10 * BLOCK).unwrap();
        let goal = Goal::new(10 * BLOCK);
        assert_eq!(goal.lower(9 * BLOCK, &layout), 9 * BLOCK);
        assert_eq!(goal.take(2 * BLOCK, 1), 1);
        assert_eq!(goal.lower(BLOCK, &layout), 3 * BLOCK, "the third block is being written");
        assert_eq!(goal.take(3 * BLOCK - 5, 100), 5);
        assert_eq!(goal.take(3 * BLOCK, 100), 0);
        assert_eq!(goal.lower(5 * BLOCK, &layout), 3 * BLOCK, "what was given away does not come back");
    }

    #[test]
    fn what_is_kept_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let layout = PieceLayout::new(3 * BLOCK).unwrap();
        let file = Arc::new(TaskFile::create(&folder.path().join("a"), layout).unwrap());
        let range = |start, end| ByteRange::new(start, end).unwrap();
        let kept = vec![range(0, 10), range(BLOCK, BLOCK + 7), range(2 * BLOCK, 2 * BLOCK + 1)];
        let mut sink = Sink {
            file: Arc::clone(&file),
            verifier: None,
            settles: false,
            kept,
            offset: 5,
            hasher: None,
            in_passing: false,
        };
        let blocks =
            sink.write(&[Bytes::from(vec![1; BLOCK as usize]), Bytes::from(vec![1; BLOCK as usize])]);
        assert_eq!(blocks.unwrap().iter().map(|(block, _)| *block).collect::<Vec<_>>(), [0, 1]);
        let mut found = Vec::new();
        file.read_part(range(0, 3 * BLOCK), |part| found.extend_from_slice(part)).unwrap();
        let written = |at: u64| (10..BLOCK).contains(&at) || (BLOCK + 7..2 * BLOCK).contains(&at);
        let written = |at: u64| written(at) || (2 * BLOCK + 1..2 * BLOCK + 5).contains(&at);
        assert!((0..3 * BLOCK).all(|at| found[at as usize] == u8::from(written(at))));
    }
}
