//! [`Calls`]: what is under way on one connection, and [`Clock`]: when it has stood still for too long.
//!
//! A command asks at once, and takes what it is given. A connection on which nothing is asked, or whose caller does not take
//! the answer, holds memory, content that cannot be evicted, and a place that others may want. It has a clock of its own,
//! because whoever takes nothing is not asked for more, so that no answer is polled in which a timer could be noticed. What
//! waits for us (an import, an origin) may take as long as it likes.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::Stream;
use tokio::time::{Instant, Sleep, sleep};

/// How long nothing may be asked.
const IDLE: Duration = Duration::from_secs(60);

/// How long a caller may take nothing of what he is given: as long as a client of the proxy (`proxy.timeouts.bodyIdle`).
const STALL: Duration = Duration::from_secs(600);

/// How often it is looked. So much longer than they say may both take.
const LOOK: Duration = Duration::from_secs(15);

/// What is under way on one connection.
#[derive(Debug, Default)]
pub(super) struct Calls {
    open: AtomicUsize,
    /// Those of them whose callers have not asked for more since they were given something.
    given: AtomicUsize,
    /// Changes whenever something happens.
    steps: AtomicU64,
}

/// A call, until this is dropped.
#[derive(Debug)]
pub(super) struct Call(Arc<Calls>);

impl Calls {
    /// A call begins.
    pub(super) fn begin(self: &Arc<Self>) -> Call {
        self.open.fetch_add(1, Ordering::AcqRel);
        self.step();
        Call(Arc::clone(self))
    }

    fn step(&self) {
        self.steps.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether something happened since `before`, which is brought up to date, or is to happen here.
    fn moves(&self, before: &mut u64) -> bool {
        let steps = self.steps.load(Ordering::Acquire);
        let moved = std::mem::replace(before, steps) != steps;
        moved || self.open.load(Ordering::Acquire) > self.given.load(Ordering::Acquire)
    }

    fn patience(&self) -> Duration {
        if self.open.load(Ordering::Acquire) == 0 { IDLE } else { STALL }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
        self.0.step();
    }
}

/// The answer to a call, in parts.
pub(super) struct Answer<S> {
    parts: S,
    call: Call,
    given: bool,
}

impl<S> Answer<S> {
    pub(super) fn new(parts: S, call: Call) -> Self {
        Self { parts, call, given: false }
    }

    fn take_back(&mut self) {
        if std::mem::take(&mut self.given) {
            self.call.0.given.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl<S: Stream + Unpin> Stream for Answer<S> {
    type Item = S::Item;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        let this = self.get_mut();
        this.take_back();
        let polled = Pin::new(&mut this.parts).poll_next(cx);
        if polled.is_ready() {
            this.given = true;
            this.call.0.given.fetch_add(1, Ordering::AcqRel);
            this.call.0.step();
        }
        polled
    }
}

impl<S> Drop for Answer<S> {
    fn drop(&mut self) {
        self.take_back();
    }
}

/// Goes while a connection stands still.
pub(super) struct Clock {
    calls: Arc<Calls>,
    seen: u64,
    since: Instant,
    look: Pin<Box<Sleep>>,
}

impl Clock {
    pub(super) fn of(calls: Arc<Calls>) -> Self {
        Self { calls, seen: 0, since: Instant::now(), look: Box::pin(sleep(LOOK)) }
    }

    /// Is ready when it has stood still for too long.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.look.as_mut().poll(cx));
            let now = Instant::now();
            if self.calls.moves(&mut self.seen) {
                self.since = now;
            }
            if now - self.since >= self.calls.patience() {
                return Poll::Ready(());
            }
            self.look.as_mut().reset(now + LOOK);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{StreamExt as _, stream};
    use std::future::poll_fn;
    use tokio::time::timeout;

    /// How long it goes on, in seconds: at most an hour.
    async fn lasts(clock: &mut Clock) -> u64 {
        let begun = Instant::now();
        let _ = timeout(Duration::from_secs(3600), poll_fn(|cx| clock.poll(cx))).await;
        begun.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_on_which_nothing_is_asked_ends() {
        let calls = Arc::new(Calls::default());
        let mut clock = Clock::of(Arc::clone(&calls));
        assert_eq!(lasts(&mut clock).await, 60);
        let mut clock = Clock::of(Arc::clone(&calls));
        let call = calls.begin();
        assert_eq!(lasts(&mut clock).await, 3600, "what is waited for may take long");
        drop(call);
        assert_eq!(lasts(&mut clock).await, 75, "it counts from then on");
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_takes_nothing_is_cut_off_and_one_that_waits_is_not() {
        let calls = Arc::new(Calls::default());
        let mut clock = Clock::of(Arc::clone(&calls));
        let parts = stream::iter([1, 2]).chain(stream::pending());
        let mut answer = Answer::new(Box::pin(parts), calls.begin());
        assert_eq!(answer.next().await, Some(1));
        assert_eq!(lasts(&mut clock).await, 615);

        let mut clock = Clock::of(Arc::clone(&calls));
        for _ in 0..20 {
            assert!(timeout(Duration::from_secs(500), poll_fn(|cx| clock.poll(cx))).await.is_err());
            calls.step();
        }
        assert_eq!(answer.next().await, Some(2));
        assert!(timeout(Duration::from_secs(1), answer.next()).await.is_err());
        assert_eq!(lasts(&mut clock).await, 3600, "there is nothing to take");
        drop(answer);
        assert_eq!((calls.open.load(Ordering::Acquire), calls.given.load(Ordering::Acquire)), (0, 0));
    }
}
