//! [`Net`]: links with a rate in each direction, and the streams over them.
//!
//! A stream is sent in blocks. A host sends the blocks of its streams by turns; a block takes its time on the sender's link,
//! the latency, and its time on the receiver's link, where blocks come one after the other. A stream has only a few blocks
//! on the way, so that a receiver who is busy holds its senders back and leaves their links to others, as TCP does.
//!
//! A stream that is fed by another one, which brings the same piece to its sender, sends no byte before that has brought it
//! and it is proven.

use darter_protocol::PieceIndex;
use std::collections::VecDeque;
use std::time::Duration;

/// Blocks of one stream on the way, beside those that fill the line at its latency.
const WINDOW: u32 = 3;

/// A host's number. The origin is 0.
pub(crate) type HostNo = usize;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StreamNo {
    at: usize,
    /// The how manieth of all streams it is: its place is another one's when it has ended.
    opened: u64,
}

impl StreamNo {
    /// No stream yet.
    pub(crate) const NONE: Self = Self { at: usize::MAX, opened: 0 };
}

/// What a stream carries.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cargo {
    /// A piece, as an upload of the sender.
    Piece(darter_swarm::UploadId),
    /// The pieces from the first one on, up to the run's end.
    Run(darter_swarm::RunId),
}

#[derive(Debug)]
pub(crate) struct Stream {
    no: StreamNo,
    pub(crate) from: HostNo,
    pub(crate) to: HostNo,
    pub(crate) piece: PieceIndex,
    pub(crate) cargo: Cargo,
    /// Bytes that could be on the way and are not yet.
    unsent: u64,
    /// Bytes that the sender has not got itself.
    withheld: u64,
    /// The stream that brings it what this one sends, and those to which this one does that.
    source: Option<StreamNo>,
    fed: Vec<StreamNo>,
    /// What comes is passed on at once; when not, only when all of it has come and is right.
    proven: bool,
    /// Bytes of the piece that have arrived.
    arrived: u64,
    /// Bytes of the piece that have not arrived; below zero, those of the next one that have.
    missing: i64,
    on_the_way: u32,
    queued: bool,
    pub(crate) last_byte: Option<Duration>,
    /// Ended early: what is still on the way counts for nothing.
    pub(crate) over: bool,
}

#[derive(Debug)]
struct Link {
    up: u64,
    down: u64,
    /// Streams that have something to send.
    ready: VecDeque<StreamNo>,
    sending: bool,
    /// When everything that is on its way here will have come.
    down_free: Duration,
}

#[derive(Debug)]
pub(crate) struct Net {
    links: Vec<Link>,
    streams: Vec<Option<Stream>>,
    free: Vec<usize>,
    opened: u64,
    window: u32,
    /// What is sent at once.
    block: u64,
}

/// A block that is being sent: when it is out, and how long it takes at the other end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sending {
    pub(crate) stream: StreamNo,
    pub(crate) bytes: u64,
    pub(crate) takes: Duration,
}

impl Net {
    /// Without hosts. A host of `rate` fills its line with one stream at `latency`.
    pub(crate) fn new(rate: u64, latency: Duration, block: u64) -> Self {
        let filling = (rate as f64 * latency.as_secs_f64() / block as f64).ceil() as u32;
        Self {
            links: Vec::new(),
            streams: Vec::new(),
            free: Vec::new(),
            opened: 0,
            window: WINDOW + filling,
            block,
        }
    }

    pub(crate) fn add_host(&mut self, up: u64, down: u64) {
        let (ready, sending, down_free) = (VecDeque::new(), false, Duration::ZERO);
        self.links.push(Link { up, down, ready, sending, down_free });
    }

    pub(crate) fn stream(&self, no: StreamNo) -> Option<&Stream> {
        self.streams.get(no.at)?.as_ref().filter(|stream| stream.no == no)
    }

    pub(crate) fn stream_mut(&mut self, no: StreamNo) -> Option<&mut Stream> {
        self.streams.get_mut(no.at)?.as_mut().filter(|stream| stream.no == no)
    }

    /// Opens a stream of `all` bytes, of which the first `bytes` are those of a piece. Kick the sender's link then.
    pub(crate) fn open(
        &mut self,
        (from, to): (HostNo, HostNo),
        (piece, bytes, all): (PieceIndex, u64, u64),
        (cargo, source): (Cargo, Option<StreamNo>),
    ) -> StreamNo {
        let brought = source.and_then(|source| self.stream(source)).map(Stream::passed_on);
        let unsent = brought.map_or(all, |brought| brought.min(all));
        let at = self.free.pop().unwrap_or_else(|| {
            self.streams.push(None);
            self.streams.len() - 1
        });
        self.opened += 1;
        let no = StreamNo { at, opened: self.opened };
        let stream = Stream {
            no,
            from,
            to,
            piece,
            cargo,
            unsent,
            withheld: all - unsent,
            source,
            fed: Vec::new(),
            proven: true,
            arrived: 0,
            missing: bytes as i64,
            on_the_way: 0,
            queued: true,
            last_byte: None,
            over: false,
        };
        self.streams[at] = Some(stream);
        if let Some(source) = source.and_then(|source| self.stream_mut(source)) {
            source.fed.push(no);
        }
        self.links[from].ready.push_back(no);
        no
    }

    /// The stream's next piece, of which `bytes` bytes are to come.
    pub(crate) fn next_piece(&mut self, no: StreamNo, piece: PieceIndex, bytes: u64) {
        if let Some(stream) = self.stream_mut(no) {
            stream.piece = piece;
            stream.missing += bytes as i64;
        }
    }

    /// Ends a stream early. It is forgotten when nothing of it is on the way any more.
    pub(crate) fn end(&mut self, no: StreamNo) {
        if let Some(source) = self.stream_mut(no).and_then(|stream| stream.source.take())
            && let Some(source) = self.stream_mut(source)
        {
            source.fed.retain(|fed| *fed != no);
        }
        if let Some(stream) = self.stream_mut(no) {
            stream.over = true;
            stream.unsent = 0;
            self.forget(no);
        }
    }

    /// Whom a stream feeds: not any more.
    pub(crate) fn take_fed(&mut self, no: StreamNo) -> Vec<StreamNo> {
        let fed = self.stream_mut(no).map(|stream| std::mem::take(&mut stream.fed)).unwrap_or_default();
        for fed in &fed {
            if let Some(stream) = self.stream_mut(*fed) {
                stream.source = None;
            }
        }
        fed
    }

    /// The sender of a stream has got so many more bytes of it. Kick its link then.
    pub(crate) fn feed(&mut self, no: StreamNo, bytes: u64) {
        if let Some(stream) = self.stream_mut(no).filter(|stream| !stream.over) {
            let more = stream.withheld.min(bytes);
            stream.withheld -= more;
            stream.unsent += more;
            self.queue(no);
        }
    }

    fn forget(&mut self, no: StreamNo) {
        let done = |stream: &Stream| stream.over && stream.on_the_way == 0 && !stream.queued;
        if self.stream(no).is_some_and(done) {
            self.streams[no.at] = None;
            self.free.push(no.at);
        }
    }

    fn queue(&mut self, no: StreamNo) {
        let window = self.window;
        if let Some(stream) = self.stream_mut(no)
            && !stream.queued
            && stream.unsent > 0
            && stream.on_the_way < window
        {
            stream.queued = true;
            let from = stream.from;
            self.links[from].ready.push_back(no);
        }
    }

    /// The next block that a host begins to send, if it is not sending one.
    pub(crate) fn send(&mut self, host: HostNo) -> Option<Sending> {
        let link = &mut self.links[host];
        if link.sending {
            return None;
        }
        while let Some(no) = link.ready.pop_front() {
            let known = self.streams[no.at].as_mut().filter(|stream| stream.no == no);
            let Some(stream) = known else { continue };
            stream.queued = false;
            if stream.over || stream.unsent == 0 {
                let done = stream.over && stream.on_the_way == 0;
                if done {
                    self.streams[no.at] = None;
                    self.free.push(no.at);
                }
                continue;
            }
            let bytes = stream.unsent.min(self.block);
            stream.unsent -= bytes;
            stream.on_the_way += 1;
            link.sending = true;
            return Some(Sending { stream: no, bytes, takes: time(bytes, link.up) });
        }
        None
    }

    /// A block is out. Gives when it will have come, if it is on its way for `latency`.
    pub(crate) fn sent(&mut self, sending: Sending, now: Duration, latency: Duration) -> Option<Duration> {
        let stream = self.stream(sending.stream)?;
        let (from, to) = (stream.from, stream.to);
        self.links[from].sending = false;
        self.queue(sending.stream);
        let link = &mut self.links[to];
        link.down_free = link.down_free.max(now + latency) + time(sending.bytes, link.down);
        Some(link.down_free)
    }

    /// A block has come. Returns whether the stream has sent all that it is to send for now; kick the sender's link.
    pub(crate) fn came(&mut self, sending: Sending, now: Duration) -> bool {
        let Some(stream) = self.stream_mut(sending.stream) else { return false };
        stream.on_the_way -= 1;
        stream.missing -= sending.bytes as i64;
        stream.last_byte = Some(now);
        stream.arrived += sending.bytes;
        let fed = if stream.proven && !stream.over { stream.fed.clone() } else { Vec::new() };
        let all = !stream.over && stream.missing <= 0;
        self.queue(sending.stream);
        self.forget(sending.stream);
        fed.into_iter().for_each(|fed| self.feed(fed, sending.bytes));
        all
    }

    /// The streams from or to a host.
    pub(crate) fn streams_of(&self, host: HostNo) -> Vec<StreamNo> {
        let of = |stream: &Stream| !stream.over && (stream.from == host || stream.to == host);
        self.streams.iter().flatten().filter(|stream| of(stream)).map(|stream| stream.no).collect()
    }
}

impl Stream {
    /// So many bytes may its receiver pass on by now.
    fn passed_on(&self) -> u64 {
        if self.proven { self.arrived } else { 0 }
    }

    /// What it brings is not what it should be.
    pub(crate) fn lie(&mut self) {
        self.proven = false;
    }
}

fn time(bytes: u64, rate: u64) -> Duration {
    Duration::from_nanos((u128::from(bytes) * 1_000_000_000 / u128::from(rate)) as u64)
}
