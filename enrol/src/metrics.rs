//! [`Metrics`]: what an operator graphs of who may speak with whom.

use crate::refused::Refused;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use std::time::SystemTime;

type Label = [(&'static str, &'static str); 1];

/// Counters and gauges of one process.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    handshakes: Family<Label, Counter>,
    refused: Family<Label, Counter>,
    certificate_ends: Gauge,
    pub(crate) expelled: Gauge,
    pub(crate) insecure: Gauge,
}

impl Metrics {
    /// Under `enrol_` of this registry.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        for kind in ["full", "resumed"] {
            drop(metrics.handshakes.get_or_create(&[("kind", kind)]));
        }
        for reason in Refused::REASONS {
            drop(metrics.refused.get_or_create(&[("reason", reason)]));
        }
        let enrol = registry.sub_registry_with_prefix("enrol");
        enrol.register(
            "handshakes",
            "TLS handshakes with other members of the cluster that succeeded",
            metrics.handshakes.clone(),
        );
        enrol.register(
            "refused",
            "Connections from and to others that were refused, by reason",
            metrics.refused.clone(),
        );
        enrol.register_with_unit(
            "certificate_end_time",
            "When this process's certificate ends, since 1970; 0: there is none",
            Unit::Seconds,
            metrics.certificate_ends.clone(),
        );
        enrol.register("expelled_hosts", "Hosts that are known to be expelled", metrics.expelled.clone());
        enrol.register(
            "insecure",
            "1 while nobody here is asked who he is (security.insecure), otherwise 0",
            metrics.insecure.clone(),
        );
        metrics
    }

    pub(crate) fn shook_hands(&self, resumed: bool) {
        let kind = if resumed { "resumed" } else { "full" };
        self.handshakes.get_or_create(&[("kind", kind)]).inc();
    }

    pub(crate) fn refused(&self, refused: &Refused) {
        self.refused.get_or_create(&[("reason", refused.reason())]).inc();
    }

    pub(crate) fn certificate_until(&self, until: SystemTime) {
        let since = until.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.certificate_ends.set(i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
    }

    /// How often connections were refused for this reason.
    #[doc(hidden)]
    pub fn refusals(&self, reason: &'static str) -> u64 {
        self.refused.get_or_create(&[("reason", reason)]).get()
    }

    /// How many handshakes succeeded, full ones or resumed ones.
    #[doc(hidden)]
    pub fn handshakes(&self, kind: &'static str) -> u64 {
        self.handshakes.get_or_create(&[("kind", kind)]).get()
    }
}
