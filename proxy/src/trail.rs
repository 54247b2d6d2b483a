//! [`Trail`]: what is learned of a request on its way, for its line in the log and its counts. It travels in the request's
//! extensions, so that whoever learns something can leave it there, and nobody has to hand it back.

use crate::labels::{Outcome, Source, UpstreamClass};
use darter_p2p::{Supplied, Supplier, TaskId};
use darter_upstream::Reached;
use http::{Request, Response};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// What is learned of one request.
#[derive(Debug, Default)]
pub(crate) struct Trail {
    /// Bytes of the request's body that were sent on.
    received: AtomicU64,
    upstream: OnceLock<Upstream>,
    task: OnceLock<TaskId>,
    /// Where the content came from: one for each part of it that is sent.
    supplied: Mutex<Vec<Arc<Supplied>>>,
}

/// Who answered.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) reached: Reached,
    /// From the moment when it was asked to the head of its answer.
    pub(crate) first_byte: Option<Duration>,
}

impl Trail {
    /// That of `request`; one that nobody reads where it has none.
    pub(crate) fn of<B>(request: &Request<B>) -> Arc<Self> {
        request.extensions().get::<Arc<Self>>().cloned().unwrap_or_default()
    }

    /// Bytes of the request's body are sent on.
    pub(crate) fn receive(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// An origin that was asked at `asked` has answered.
    pub(crate) fn answered<B>(&self, asked: Instant, answer: &Response<B>) {
        if let Some(reached) = answer.extensions().get::<Reached>() {
            let first_byte = Some(asked.elapsed());
            let _ = self.upstream.set(Upstream { reached: reached.clone(), first_byte });
        }
    }

    /// A tunnel leads there.
    pub(crate) fn reached(&self, reached: &Reached) {
        let _ = self.upstream.set(Upstream { reached: reached.clone(), first_byte: None });
    }

    /// It is for this task of the engine.
    pub(crate) fn of_task(&self, task: TaskId) {
        let _ = self.task.set(task);
    }

    /// Content is sent whose bytes are counted there.
    pub(crate) fn supplied(&self, supplied: &Arc<Supplied>) {
        self.supplied.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(supplied));
    }

    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub(crate) fn upstream(&self) -> Option<&Upstream> {
        self.upstream.get()
    }

    pub(crate) fn task(&self) -> Option<TaskId> {
        self.task.get().copied()
    }

    /// Bytes of content that `supplier` gave.
    pub(crate) fn bytes_from(&self, supplier: Supplier) -> u64 {
        let supplied = self.supplied.lock().unwrap_or_else(PoisonError::into_inner);
        supplied.iter().map(|it| it.bytes(supplier)).sum()
    }

    /// How long it waited for its turn at an origin, if it did.
    pub(crate) fn queued(&self) -> Option<Duration> {
        let supplied = self.supplied.lock().unwrap_or_else(PoisonError::into_inner);
        let queued = supplied.iter().map(|it| it.queued()).max();
        queued.filter(|queued| !queued.is_zero())
    }

    pub(crate) fn upstream_class(&self) -> UpstreamClass {
        let is_served = !self.supplied.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        match self.upstream() {
            _ if is_served => UpstreamClass::Engine,
            Some(Upstream { reached: Reached { parent: Some(_), .. }, .. }) => UpstreamClass::Parent,
            Some(_) => UpstreamClass::Origin,
            None => UpstreamClass::None,
        }
    }

    /// Where the `sent` bytes of an answer came from. Their sum is `sent`.
    pub(crate) fn sources(&self, outcome: Outcome, sent: u64) -> impl Iterator<Item = (Source, u64)> + use<> {
        let mut rest = sent;
        let content = Supplier::ALL.map(|supplier| {
            let bytes = self.bytes_from(supplier).min(rest);
            rest -= bytes;
            (supplier.into(), bytes)
        });
        let all = content.into_iter().chain([(outcome.source(), rest)]);
        all.filter(|(_, bytes)| *bytes > 0)
    }
}
