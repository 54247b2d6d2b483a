//! [`Scope`]: the tasks of one listener. None outlives it.

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use std::future::Future;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// Where tasks of one listener run. Clones are the same scope.
#[derive(Clone)]
pub(crate) struct Scope {
    tracker: TaskTracker,
    draining: CancellationToken,
    cut: CancellationToken,
}

impl Scope {
    /// A scope, and the guard that ends all its tasks when it is dropped. From `draining` on, idle connections close.
    pub(crate) fn new(draining: CancellationToken) -> (Self, DropGuard) {
        let cut = CancellationToken::new();
        let guard = cut.clone().drop_guard();
        (Self { tracker: TaskTracker::new(), draining, cut }, guard)
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

    /// What `waiting` gives; `None` when idle connections should close before that. It is held twice meanwhile (as the
    /// compiler lays futures out): what is large and may wait for long had better be boxed, or pinned.
    pub(crate) fn unless_draining<T>(
        &self,
        waiting: impl Future<Output = T>,
    ) -> impl Future<Output = Option<T>> {
        self.draining.run_until_cancelled(waiting)
    }

    /// Waits for the tasks that are under way.
    pub(crate) async fn finished(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}
