//! [`Clock`]: virtual time, and what is to happen when.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

/// Events by their time; those of one moment in the order in which they were planned.
#[derive(Debug)]
pub(crate) struct Clock<E> {
    start: Instant,
    now: Duration,
    heap: BinaryHeap<Reverse<Planned<E>>>,
    planned: u64,
}

#[derive(Debug)]
struct Planned<E> {
    at: Duration,
    number: u64,
    event: E,
}

impl<E> Clock<E> {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), now: Duration::ZERO, heap: BinaryHeap::new(), planned: 0 }
    }

    /// Since the beginning.
    pub(crate) fn now(&self) -> Duration {
        self.now
    }

    /// As the state machines know time.
    pub(crate) fn instant(&self) -> Instant {
        self.start + self.now
    }

    /// The time that a state machine has named.
    pub(crate) fn since_start(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.start)
    }

    pub(crate) fn plan(&mut self, at: Duration, event: E) {
        self.planned += 1;
        self.heap.push(Reverse(Planned { at: at.max(self.now), number: self.planned, event }));
    }

    pub(crate) fn next(&mut self) -> Option<E> {
        let Reverse(planned) = self.heap.pop()?;
        self.now = planned.at;
        Some(planned.event)
    }
}

impl<E> PartialEq for Planned<E> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl<E> Eq for Planned<E> {}

impl<E> PartialOrd for Planned<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Planned<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}
