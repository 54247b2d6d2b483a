//! [`Ready`]: connections that were made to find out whether they can be, and wait for their first request.

use crate::connector::{Stream, Target};
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long one waits. Servers drop a connection without a request after 5 to 60 seconds; who asked is about to use it. One
/// that nobody took is closed when the next comes or is asked for, so that a few may stay open until then.
const WAIT: Duration = Duration::from_secs(4);

/// How many wait. Whoever finds none only makes another.
const MOST: usize = 64;

/// Connections without a request so far.
#[derive(Default)]
pub(crate) struct Ready(Mutex<VecDeque<Waiting>>);

struct Waiting {
    target: Target,
    since: Instant,
    stream: Stream,
}

impl Ready {
    /// Keeps a connection to `target` for a moment.
    pub(crate) fn keep(&self, target: Target, stream: Stream) {
        let mut waiting = self.fresh();
        if waiting.len() == MOST {
            waiting.pop_front();
        }
        waiting.push_back(Waiting { target, since: Instant::now(), stream });
    }

    /// A connection to `target`, if one is there and still open.
    pub(crate) fn take(&self, target: &Target) -> Option<Stream> {
        let mut waiting = self.fresh();
        let index = waiting.iter().position(|waiting| waiting.target == *target)?;
        waiting.remove(index).map(|waiting| waiting.stream)
    }

    /// Whether there is one.
    pub(crate) fn has(&self, target: &Target) -> bool {
        self.fresh().iter().any(|waiting| waiting.target == *target)
    }

    /// Those that still can be used.
    fn fresh(&self) -> std::sync::MutexGuard<'_, VecDeque<Waiting>> {
        // Nothing panics while it is held.
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain_mut(|waiting| waiting.since.elapsed() < WAIT && waiting.stream.is_open());
        waiting
    }
}
