//! [`Throttle`]: one bucket, and the line of those who wait for its bytes.

use super::rates::{Limit, Rates};
use crate::metrics::Metrics;
use darter_swarm::{Bucket, Rate};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep};

/// One limit, shared by all whom it concerns. They are served in the order in which they came, a chunk each.
pub(crate) struct Throttle {
    limit: Limit,
    rates: watch::Receiver<Rates>,
    /// `None` as long as nothing is limited.
    bucket: Mutex<Option<Bucket>>,
    /// Whoever has the one permit is the first in the line. Those who wait for it get it in their order.
    first: Semaphore,
    /// How long the line is, the first included.
    waiting: AtomicU64,
    metrics: Metrics,
}

/// Somebody waits; counted when this is dropped, however the waiting ends.
struct Waiting<'a> {
    throttle: &'a Throttle,
    since: Instant,
}

// === impl Throttle ===

impl Throttle {
    pub(super) fn new(limit: Limit, rates: watch::Receiver<Rates>, metrics: Metrics) -> Self {
        let (bucket, first, waiting) = (Mutex::default(), Semaphore::new(1), AtomicU64::new(0));
        Self { limit, rates, bucket, first, waiting, metrics }
    }

    /// The limit as it is now.
    pub(super) fn rate(&self) -> Option<Rate> {
        self.rates.borrow().of(self.limit)
    }

    /// Waits until up to `most` bytes may pass; gives how many, at most a chunk, which is smaller where many wait. `None`: there is
    /// no limit, and nothing was taken.
    ///
    /// # Cancel safety
    /// Nothing is taken before this resolves. Whoever comes again stands at the end of the line.
    pub(super) async fn take(&self, most: u64) -> Option<u64> {
        self.rate()?;
        let mut waiting = None;
        let _first = match self.first.try_acquire() {
            Ok(first) => Ok(first),
            Err(_) => {
                waiting = Some(Waiting::at(self));
                self.first.acquire().await
            }
        };
        let mut rates = self.rates.clone();
        loop {
            // Before the rate is looked at: a change after that is heard.
            rates.mark_unchanged();
            let streams = self.waiting.load(Ordering::Relaxed) + 1;
            let most = most.min(self.rate()?.chunk_of(streams));
            let wait = match self.with(|bucket, now| bucket.take(now, most))? {
                Ok(bytes) => return Some(bytes),
                Err(wait) => wait,
            };
            waiting.get_or_insert_with(|| Waiting::at(self));
            tokio::select! {
                () = sleep(wait) => {}
                Ok(()) = rates.changed() => {}
            }
        }
    }

    /// Puts back what did not pass.
    pub(super) fn give_back(&self, bytes: u64) {
        self.with(|bucket, now| bucket.give_back(now, bytes));
    }

    /// Whether a new one in its place would do the same.
    pub(super) fn is_as_new(&self) -> bool {
        self.with(|bucket, now| bucket.is_full(now)).unwrap_or(true)
    }

    /// `None`: there is no limit.
    fn with<T>(&self, does: impl FnOnce(&mut Bucket, std::time::Instant) -> T) -> Option<T> {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now().into_std();
        let Some(rate) = self.rate() else {
            *bucket = None;
            return None;
        };
        let bucket = bucket.get_or_insert_with(|| Bucket::new(now, rate));
        bucket.set_rate(now, rate);
        Some(does(bucket, now))
    }
}

// === impl Waiting ===

impl<'a> Waiting<'a> {
    fn at(throttle: &'a Throttle) -> Self {
        throttle.waiting.fetch_add(1, Ordering::Relaxed);
        Self { throttle, since: Instant::now() }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.throttle.waiting.fetch_sub(1, Ordering::Relaxed);
        self.throttle.metrics.add_wait(self.throttle.limit, self.since.elapsed());
    }
}
