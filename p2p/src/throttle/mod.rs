//! How fast bytes move: limits for the whole host, a task, another daemon, origins, what is fetched ahead, and uploads.
//!
//! - [`Rates`]: what is limited, and may be changed at any time; whoever waits then goes on at the new rate.
//! - [`Throttle`]: one limit ([`Bucket`](darter_swarm::Bucket)) with the line of those who wait.
//! - [`Way`]: the limits that a byte passes: from another daemon those of that daemon, its task and the host; from an origin
//!   those of its task, of origins and the host; to another daemon those of that daemon and of uploads.
//!
//! Who receives takes bytes out of what its socket has given before it reads on, so that the sender is held back by TCP; who
//! sends takes them before it reads from its disk. Nothing is buffered for it.
//!
//! `governor`, the usual crate for this, lets whoever asks first after a pause pass first, has its quota fixed when it is
//! made, and takes nothing back.

mod line;
mod rates;
mod way;

#[cfg(test)]
mod tests;

pub(crate) use line::Throttle;
pub(crate) use rates::Limit;
pub use rates::Rates;
pub(crate) use way::Way;

use crate::metrics::Metrics;
use darter_protocol::{HostId, TaskId};
use darter_swarm::Rate;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// All limits of an engine.
pub(crate) struct Throttles {
    rates: watch::Sender<Rates>,
    total: Arc<Throttle>,
    origin: Arc<Throttle>,
    prefetch: Arc<Throttle>,
    upload: Arc<Throttle>,
    tasks: Each<TaskId>,
    partners: Each<HostId>,
    /// Those who do not say who they are share one.
    upload_partners: Each<Option<HostId>>,
}

/// A limit for each of many.
struct Each<K> {
    limit: Limit,
    rates: watch::Receiver<Rates>,
    metrics: Metrics,
    throttles: Mutex<HashMap<K, Arc<Throttle>>>,
}

/// The limits of one download.
#[derive(Clone)]
pub(crate) struct TaskThrottles {
    all: Arc<Throttles>,
    task: Arc<Throttle>,
    /// What the scheduler lets this download take from the origin.
    share: Arc<watch::Sender<Rates>>,
    origin: Arc<Throttle>,
    /// Whether some reader lacks something; `None`: nothing is fetched ahead.
    lacking: Option<watch::Receiver<bool>>,
}

// === impl Throttles ===

impl Throttles {
    pub(crate) fn new(rates: Rates, metrics: &Metrics) -> Self {
        let rates = watch::Sender::new(rates);
        let one = |limit| Arc::new(Throttle::new(limit, rates.subscribe(), metrics.clone()));
        Self {
            total: one(Limit::Total),
            origin: one(Limit::Origin),
            prefetch: one(Limit::Prefetch),
            upload: one(Limit::Upload),
            tasks: Each::new(Limit::Task, &rates, metrics),
            partners: Each::new(Limit::Partner, &rates, metrics),
            upload_partners: Each::new(Limit::UploadPartner, &rates, metrics),
            rates,
        }
    }

    /// These count from now on, also for what is under way.
    pub(crate) fn set(&self, rates: Rates) {
        self.rates.send_if_modified(|before| std::mem::replace(before, rates) != rates);
    }

    /// The limits of a download of `task`. `lacking`: whether some reader lacks something, where more is fetched than readers
    /// want.
    pub(crate) fn of_task(
        self: &Arc<Self>,
        task: TaskId,
        lacking: Option<watch::Receiver<bool>>,
    ) -> TaskThrottles {
        let share = Arc::new(watch::Sender::default());
        let origin = Arc::new(Throttle::new(Limit::Origin, share.subscribe(), self.tasks.metrics.clone()));
        TaskThrottles { all: Arc::clone(self), task: self.tasks.get(&task), share, origin, lacking }
    }

    /// What a byte passes that is sent to `partner`.
    pub(crate) fn to(&self, partner: Option<&HostId>) -> Way {
        Way::through([self.upload_partners.get(&partner.cloned()), Arc::clone(&self.upload)])
    }
}

// === impl TaskThrottles ===

impl TaskThrottles {
    /// What a byte passes that comes from `partner`.
    pub(crate) fn of_partner(&self, partner: &HostId) -> Way {
        let partner = self.all.partners.get(partner);
        self.way([partner, Arc::clone(&self.task), Arc::clone(&self.all.total)])
    }

    /// What a byte passes that comes from the origin.
    pub(crate) fn of_origin(&self) -> Way {
        let own = [Arc::clone(&self.origin), Arc::clone(&self.task)];
        self.way(own.into_iter().chain([Arc::clone(&self.all.origin), Arc::clone(&self.all.total)]))
    }

    /// So much this download may take from the origin from now on, also by what is under way.
    pub(crate) fn set_share(&self, rate: Option<Rate>) {
        self.share.send_replace(Rates { origin: rate, ..Rates::default() });
    }

    fn way(&self, throttles: impl IntoIterator<Item = Arc<Throttle>>) -> Way {
        let way = Way::through(throttles);
        match &self.lacking {
            Some(lacking) => way.prefetching(Arc::clone(&self.all.prefetch), lacking.clone()),
            None => way,
        }
    }
}

// === impl Each ===

impl<K: Clone + Eq + Hash> Each<K> {
    fn new(limit: Limit, rates: &watch::Sender<Rates>, metrics: &Metrics) -> Self {
        Self { limit, rates: rates.subscribe(), metrics: metrics.clone(), throttles: Mutex::default() }
    }

    fn get(&self, of: &K) -> Arc<Throttle> {
        let mut throttles = self.throttles.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(throttle) = throttles.get(of) {
            return Arc::clone(throttle);
        }
        // One that nobody uses stays until it has filled up, or going away and coming back would be worth a burst.
        throttles.retain(|_, throttle| Arc::strong_count(throttle) > 1 || !throttle.is_as_new());
        let throttle = Arc::new(Throttle::new(self.limit, self.rates.clone(), self.metrics.clone()));
        throttles.insert(of.clone(), Arc::clone(&throttle));
        throttle
    }
}
