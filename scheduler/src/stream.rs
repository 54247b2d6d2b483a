//! [`Streams`]: the open streams, and which of them have something to send.
//!
//! A stream has no queue. What it still has to say is kept by the peer as state (which partners are unsent, how far the
//! hashes were sent), and becomes one packet when the driver takes it. So a daemon that reads slowly costs a bounded
//! amount of memory, gets the newest state in few packets, and never holds up another.

use crate::host::HostKey;
use crate::refusal::Refusal;
use darter_protocol::TaskId;
use std::collections::{HashMap, VecDeque};

/// An open stream of the cluster: a life line or a conversation. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(u64);

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line {
    Lifeline {
        host: HostKey,
    },
    Conversation {
        task: TaskId,
        host: HostKey,
    },
    /// The cluster has ended it; the driver closes it as soon as it asks. Without a refusal it ends well.
    Ended(Option<Refusal>),
}

#[derive(Debug)]
struct Stream {
    line: Line,
    queued: bool,
}

/// All open streams. One is in `ready` exactly when it is `queued`, and once.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    open: HashMap<StreamId, Stream>,
    ready: VecDeque<StreamId>,
    next: u64,
}

impl Streams {
    pub(crate) fn open(&mut self, line: Line) -> StreamId {
        let id = StreamId(self.next);
        self.next += 1;
        self.open.insert(id, Stream { line, queued: false });
        id
    }

    pub(crate) fn line(&self, id: StreamId) -> Option<Line> {
        self.open.get(&id).map(|stream| stream.line)
    }

    /// The driver is to take what the stream has to say.
    pub(crate) fn wake(&mut self, id: StreamId) {
        if let Some(stream) = self.open.get_mut(&id)
            && !std::mem::replace(&mut stream.queued, true)
        {
            self.ready.push_back(id);
        }
    }

    /// The cluster ends a stream.
    pub(crate) fn end(&mut self, id: StreamId, why: Option<Refusal>) {
        if let Some(stream) = self.open.get_mut(&id) {
            stream.line = Line::Ended(why);
        }
        self.wake(id);
    }

    /// The driver has closed a stream.
    pub(crate) fn remove(&mut self, id: StreamId) -> Option<Line> {
        self.open.remove(&id).map(|stream| stream.line)
    }

    pub(crate) fn poll_ready(&mut self) -> Option<StreamId> {
        loop {
            let id = self.ready.pop_front()?;
            if let Some(stream) = self.open.get_mut(&id) {
                stream.queued = false;
                return Some(id);
            }
        }
    }
}
