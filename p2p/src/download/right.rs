//! [`Right`]: when this daemon may go to the origin for a task. Plain state, `now` passed in.
//!
//! With a scheduler: while it holds the lease, or when the task cannot be shared. Without one: always, but after a pause
//! when the scheduler was only just lost, so that a thousand daemons that lose it together do not all run to the origin
//! for what they are about to get from each other. Never within the back-off after a failure.

use std::time::Duration;
use tokio::time::Instant;

/// The pause before the first, and before any later try after failures in a row.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// Before the second try (`download.concurrent.initBackoff`).
    pub first: Duration,
    /// Between any two (`download.concurrent.maxBackoff`).
    pub most: Duration,
    /// Tries in a row without a byte after which a download fails (`download.concurrent.maxAttempts`).
    pub attempts: u32,
}

#[derive(Debug)]
pub(super) struct Right {
    backoff: Backoff,
    failures: u32,
    /// Bytes came since the last failure: what fails next is no try without a byte.
    fed: bool,
    not_before: Option<Instant>,
}

impl Right {
    pub(super) fn new(backoff: Backoff) -> Self {
        Self { backoff, failures: 0, fed: false, not_before: None }
    }

    /// The scheduler is gone: wait until `then`, in case another one or a partner helps.
    pub(super) fn handle_alone(&mut self, then: Instant) {
        self.wait_until(then);
    }

    /// Bytes came from the origin.
    pub(super) fn handle_bytes(&mut self) {
        self.failures = 0;
        self.fed = true;
    }

    /// A request to the origin failed, or broke off; `false` when that was one too many.
    pub(super) fn handle_failure(&mut self, now: Instant) -> bool {
        let pause = self.backoff.first.saturating_mul(1 << self.failures.min(16)).min(self.backoff.most);
        self.failures += u32::from(!std::mem::take(&mut self.fed));
        self.wait_until(now + pause);
        self.failures < self.backoff.attempts
    }

    /// Whether the time has come, given that the scheduler (or its absence) allows it.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|then| then <= now)
    }

    /// When to look again.
    pub(super) fn due_at(&self, now: Instant) -> Option<Instant> {
        self.not_before.filter(|then| *then > now)
    }

    fn wait_until(&mut self, then: Instant) {
        self.not_before = Some(self.not_before.map_or(then, |earlier| earlier.max(then)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff =
        Backoff { first: Duration::from_millis(500), most: Duration::from_secs(3), attempts: 3 };

    #[test]
    fn failures_in_a_row_wait_longer_and_end() {
        let mut right = Right::new(BACKOFF);
        let now = Instant::now();
        assert!(right.is_due(now));
        assert!(right.handle_failure(now));
        assert_eq!(right.due_at(now), Some(now + Duration::from_millis(500)));
        let now = now + Duration::from_millis(500);
        assert!(right.is_due(now));
        assert!(right.handle_failure(now));
        assert_eq!(right.due_at(now), Some(now + Duration::from_secs(1)));
        assert!(!right.handle_failure(now));
    }

    #[test]
    fn a_byte_forgives_all_failures() {
        let mut right = Right::new(BACKOFF);
        let now = Instant::now();
        right.handle_failure(now);
        right.handle_failure(now);
        right.handle_bytes();
        // What broke off in the middle, and two tries without a byte.
        for _ in 0..3 {
            assert!(right.handle_failure(now));
        }
        assert!(!right.handle_failure(now));
    }

    #[test]
    fn whoever_is_left_alone_waits_first() {
        let mut right = Right::new(BACKOFF);
        let now = Instant::now();
        right.handle_alone(now + Duration::from_secs(1));
        assert!(!right.is_due(now));
        assert!(right.is_due(now + Duration::from_secs(1)));
    }
}
