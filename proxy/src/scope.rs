//! [`Scope`]: the tasks of one listener. None outlives it.

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use std::future::Future;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// When a listener is to end. From a single token: when to drain; what is under way may take as long as it likes.
#[derive(Debug, Clone)]
pub struct Shutdown {
    /// From then on it takes no clients, closes idle connections, and ends with what is under way.
    pub drain: CancellationToken,
    /// From then on nothing is under way any more: it is cut off and written down.
    pub cut: CancellationToken,
}

impl From<CancellationToken> for Shutdown {
    fn from(drain: CancellationToken) -> Self {
        Self { drain, cut: CancellationToken::new() }
    }
}

/// Where tasks of one listener run. Clones are the same scope.
#[derive(Clone)]
pub(crate) struct Scope {
    tracker: TaskTracker,
    draining: CancellationToken,
    cut: CancellationToken,
}

impl Scope {
    /// A scope, and the guard that ends all its tasks when it is dropped.
    pub(crate) fn new(Shutdown { drain, cut }: Shutdown) -> (Self, DropGuard) {
        let cut = cut.child_token();
        let guard = cut.clone().drop_guard();
        (Self { tracker: TaskTracker::new(), draining: drain, cut }, guard)
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_boxed(task.boxed());
    }

    /// Boxed, because each async function that is handed a future holds it twice, before and while it awaits it: the four
    /// around a task here made 75 KiB of a stream's 6 (as the compiler lays futures out).
    fn spawn_boxed(&self, task: BoxFuture<'static, ()>) {
        let task = self.cut.clone().run_until_cancelled_owned(task);
        drop(self.tracker.spawn(task.map(Option::unwrap_or_default)));
    }

    /// Resolves when idle connections should close.
    pub(crate) async fn draining(&self) {
        self.draining.cancelled().await;
    }

    /// Whether they should.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// What `waiting` gives; `None` when idle connections should close before that. It is held twice meanwhile (as the
    /// compiler lays futures out): what is large and may wait for long had better be boxed, or pinned.
    pub(crate) fn unless_draining<T>(
        &self,
        waiting: impl Future<Output = T>,
    ) -> impl Future<Output = Option<T>> {
        self.draining.run_until_cancelled(waiting)
    }

    /// Whether its tasks were ended before they had finished.
    pub(crate) fn is_cut(&self) -> bool {
        self.cut.is_cancelled()
    }

    /// Waits for the tasks that are under way.
    pub(crate) async fn finished(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}
