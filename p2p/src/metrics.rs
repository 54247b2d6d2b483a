//! [`Metrics`]: what an operator graphs of the engine.

use crate::Supplier;
use crate::store::PinGauges;
use crate::throttle::Limit;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct FromLabel {
    pub(crate) from: Supplier,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct LimitLabel {
    pub(crate) limit: Limit,
}

/// Counters and gauges of the engine.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    bytes: Family<FromLabel, Counter>,
    pub(crate) uploaded_bytes: Counter,
    pub(crate) relayed_bytes: Counter,
    limit_waits: Family<LimitLabel, Counter<f64, AtomicU64>>,
    pub(crate) downloads: Gauge,
    pub(crate) completed: Counter,
    pub(crate) failed: Counter,
    pub(crate) corrupt_pieces: Counter,
    pub(crate) scheduler_up: Gauge,
}

impl Metrics {
    /// `store_failing` is 1 while the store takes nothing.
    pub(crate) fn register(registry: &mut Registry, store_failing: Gauge, pins: &PinGauges) -> Self {
        let metrics = Self::default();
        let p2p = registry.sub_registry_with_prefix("p2p");
        p2p.register("content_bytes", "Bytes of content by where they came from", metrics.bytes.clone());
        p2p.register("uploaded_bytes", "Bytes sent to other daemons", metrics.uploaded_bytes.clone());
        let help = "Of these, bytes of pieces that were themselves still coming";
        p2p.register("relayed_bytes", help, metrics.relayed_bytes.clone());
        p2p.register_with_unit(
            "limit_waits",
            "Time that streams of content waited at a limit of bandwidth",
            Unit::Seconds,
            metrics.limit_waits.clone(),
        );
        p2p.register("downloads", "Downloads that are running", metrics.downloads.clone());
        p2p.register("completed", "Downloads that completed, verified", metrics.completed.clone());
        p2p.register("failed", "Downloads that failed", metrics.failed.clone());
        p2p.register(
            "corrupt_pieces",
            "Pieces that did not match their hash",
            metrics.corrupt_pieces.clone(),
        );
        p2p.register(
            "schedulers_up",
            "Schedulers that this daemon is connected to",
            metrics.scheduler_up.clone(),
        );
        p2p.register("pinned_tasks", "Complete tasks that are pinned", pins.tasks.clone());
        p2p.register("pinned_bytes", "Bytes of the disk that they take", pins.bytes.clone());
        let help = "1 while pinned content leaves the store no room for anything else, otherwise 0";
        p2p.register("pins_crowding", help, pins.crowding.clone());
        p2p.register("store_failing", "1 while the disk takes no content, otherwise 0", store_failing);
        metrics
    }

    pub(crate) fn add_bytes(&self, from: Supplier, bytes: u64) {
        self.bytes.get_or_create(&FromLabel { from }).inc_by(bytes);
    }

    /// Seconds that were waited at a limit.
    #[cfg(test)]
    pub(crate) fn waited(&self, limit: Limit) -> f64 {
        self.limit_waits.get_or_create(&LimitLabel { limit }).get()
    }

    pub(crate) fn add_wait(&self, limit: Limit, waited: Duration) {
        self.limit_waits.get_or_create(&LimitLabel { limit }).inc_by(waited.as_secs_f64());
    }
}
