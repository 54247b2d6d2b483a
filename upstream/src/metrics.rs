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

/// What is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Protocol {
    Http1,
    Http2,
    /// Whatever a client says.
    Tunnel,
}

/// Whether something is under way on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum State {
    InUse,
    Idle,
}

impl EncodeLabelValue for Protocol {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Tunnel => "tunnel",
        })
    }
}

impl EncodeLabelValue for State {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::InUse => "in_use",
            Self::Idle => "idle",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ConnectionLabels {
    pub(crate) protocol: Protocol,
    pub(crate) state: State,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProtocolLabel {
    protocol: Protocol,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DialLabels {
    purpose: Purpose,
    result: DialResult,
}

/// Counters and gauges of the way to origins. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    pub(crate) connections: Family<ConnectionLabels, Gauge>,
    in_flight: Family<ProtocolLabel, Gauge>,
    dials: Family<DialLabels, Counter>,
    dial: Histogram,
    pub(crate) requests: Counter,
    pub(crate) waiting: Gauge,
    pub(crate) queued: Gauge,
    pub(crate) turn_wait: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            connections: Family::default(),
            in_flight: Family::default(),
            dials: Family::default(),
            // 0.5 ms to 32 s in steps of four: this host, this network, another continent, a name server that is sick.
            dial: Histogram::new(std::iter::successors(Some(0.0005), |bound| Some(bound * 4.0)).take(9)),
            requests: Counter::default(),
            waiting: Gauge::default(),
            queued: Gauge::default(),
            // 1 ms to 66 s in steps of four.
            turn_wait: Histogram::new(std::iter::successors(Some(0.001), |bound| Some(bound * 4.0)).take(9)),
        }
    }
}

impl Metrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let upstream = registry.sub_registry_with_prefix("upstream");
        let help = "Connections to origins and parent proxies that are open, by what is spoken and whether something is under way";
        upstream.register("connections", help, self.connections.clone());
        let help = "Requests that have a connection and whose answers are not over";
        upstream.register("requests_in_flight", help, self.in_flight.clone());
        let help = "Attempts to connect to an origin, TLS included, by what for and how they ended";
        upstream.register("dials", help, self.dials.clone());
        let help = "How long it took to connect, from the name's resolution to the end of TLS";
        upstream.register_with_unit("dial", help, Unit::Seconds, self.dial.clone());
        let help = "Requests sent to origins; those that came to no new connection used a kept one";
        upstream.register("requests", help, self.requests.clone());
        let help = "Requests to origins whose answer has not begun";
        upstream.register("requests_waiting", help, self.waiting.clone());
        let help = "Requests for content that wait because their origin has as many as it may have at once";
        upstream.register("requests_queued", help, self.queued.clone());
        let help = "How long requests for content waited for their turn at an origin; those that did not wait are not counted";
        upstream.register_with_unit("turn_wait", help, Unit::Seconds, self.turn_wait.clone());
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

    pub(crate) fn requests_in_flight(&self, protocol: Protocol) -> Gauge {
        self.in_flight.get_or_create_owned(&ProtocolLabel { protocol })
    }
}

// === Counted ===

/// Something that is counted in a gauge for as long as it lives.
#[derive(Debug)]
pub struct Counted(Gauge);

impl Counted {
    /// One more in `gauge`.
    pub fn one_of(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
