//! [`Metrics`]: what an operator graphs of the connections that are made. They outlive a change of the configuration.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::fmt::{self, Write as _};
use std::future::Future;
use tokio::time::Instant;

/// What a connection is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Purpose {
    /// Requests, one after the other.
    Requests,
    /// A tunnel.
    Tunnel,
    /// To see whether it can be made. The next request takes it.
    Probe,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum DialResult {
    Connected,
    Failed,
}

impl EncodeLabelValue for Purpose {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Requests => "requests",
            Self::Tunnel => "tunnel",
            Self::Probe => "probe",
        })
    }
}

impl EncodeLabelValue for DialResult {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Connected => "connected",
            Self::Failed => "failed",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DialLabels {
    purpose: Purpose,
    result: DialResult,
}

/// Counters and gauges of the way to origins. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    connections: Gauge,
    dials: Family<DialLabels, Counter>,
    dial: Histogram,
    pub(crate) requests: Counter,
    pub(crate) waiting: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            connections: Gauge::default(),
            dials: Family::default(),
            // 0.5 ms to 32 s in steps of four: this host, this network, another continent, a name server that is sick.
            dial: Histogram::new(std::iter::successors(Some(0.0005), |bound| Some(bound * 4.0)).take(9)),
            requests: Counter::default(),
            waiting: Gauge::default(),
        }
    }
}

impl Metrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let upstream = registry.sub_registry_with_prefix("upstream");
        let help = "Connections to origins and parent proxies that are open: in use, idle, and tunnels";
        upstream.register("connections", help, self.connections.clone());
        let help = "Attempts to connect to an origin, TLS included, by what for and how they ended";
        upstream.register("dials", help, self.dials.clone());
        let help = "How long it took to connect, from the name's resolution to the end of TLS";
        upstream.register_with_unit("dial", help, Unit::Seconds, self.dial.clone());
        let help = "Requests sent to origins; those that came to no new connection used a kept one";
        upstream.register("requests", help, self.requests.clone());
        let help = "Requests to origins whose answer has not begun";
        upstream.register("requests_waiting", help, self.waiting.clone());
    }

    /// Runs an attempt to connect.
    pub(crate) async fn dial<T, E>(
        &self,
        purpose: Purpose,
        dial: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let begun = Instant::now();
        let dialled = dial.await;
        let result = if dialled.is_ok() { DialResult::Connected } else { DialResult::Failed };
        self.dials.get_or_create(&DialLabels { purpose, result }).inc();
        if dialled.is_ok() {
            self.dial.observe(begun.elapsed().as_secs_f64());
        }
        dialled
    }

    /// A connection is open for as long as what is given lives.
    pub(crate) fn connection(&self) -> Counted {
        Counted::one_of(&self.connections)
    }
}

// === Counted ===

/// Something that is counted in a gauge for as long as it lives.
#[derive(Debug)]
pub(crate) struct Counted(Gauge);

impl Counted {
    pub(crate) fn one_of(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
