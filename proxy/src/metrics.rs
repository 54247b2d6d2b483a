//! [`Metrics`]: what an operator graphs of the proxy. Every label has a fixed set of values.

use crate::labels::{Cut, Handshake, Misplaced, Outcome, Source, TurnedAway, UpstreamClass, Way};
use crate::serve::Left;
use crate::trail::Trail;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    way: Way,
    outcome: Outcome,
    upstream: UpstreamClass,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SentLabels {
    outcome: Outcome,
    source: Source,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CutLabel {
    by: Cut,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MisplacedLabel {
    reason: Misplaced,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TurnedAwayLabel {
    reason: TurnedAway,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HandshakeLabel {
    kind: Handshake,
}

/// Counters, gauges and histograms of the proxy.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    requests: Family<RequestLabels, Counter>,
    sent_bytes: Family<SentLabels, Counter>,
    received_bytes: Family<OutcomeLabel, Counter>,
    cut: Family<CutLabel, Counter>,
    first_byte: Family<OutcomeLabel, Histogram>,
    pub(crate) connections: Gauge,
    pub(crate) resting: Gauge,
    crowded_out: Counter,
    pub(crate) in_flight: Gauge,
    pub(crate) tunnels: Gauge,
    handshakes: Family<HandshakeLabel, Counter>,
    pub(crate) handshake_failures: Counter,
    pub(crate) leaf_mints: Counter,
    pub(crate) malformed: Counter,
    misplaced: Family<MisplacedLabel, Counter>,
    turned_away: Family<TurnedAwayLabel, Counter>,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        // 0.5 ms to 131 s in steps of four: an answer from disk, from a peer, from an origin far away, from a sick one.
        let buckets =
            || Histogram::new(std::iter::successors(Some(0.0005), |bound| Some(bound * 4.0)).take(10));
        let metrics = Self {
            requests: Family::default(),
            sent_bytes: Family::default(),
            received_bytes: Family::default(),
            cut: Family::default(),
            first_byte: Family::new_with_constructor(buckets),
            connections: Gauge::default(),
            resting: Gauge::default(),
            crowded_out: Counter::default(),
            in_flight: Gauge::default(),
            tunnels: Gauge::default(),
            handshakes: Family::default(),
            handshake_failures: Counter::default(),
            leaf_mints: Counter::default(),
            malformed: Counter::default(),
            misplaced: Family::default(),
            turned_away: Family::default(),
        };
        let proxy = registry.sub_registry_with_prefix("proxy");
        metrics.register_requests(proxy);
        metrics.register_connections(proxy);
        metrics
    }

    fn register_requests(&self, proxy: &mut Registry) {
        let help = "Requests that have ended, by way in, outcome, and who gave what they got";
        proxy.register("requests", help, self.requests.clone());
        let help = "Requests that have begun and not ended; tunnels among them";
        proxy.register("requests_in_flight", help, self.in_flight.clone());
        let help = "Bytes of bodies sent to clients, by outcome and where they came from";
        proxy.register("sent_bytes", help, self.sent_bytes.clone());
        let help = "Bytes of bodies and tunnels received from clients, by outcome";
        proxy.register("received_bytes", help, self.received_bytes.clone());
        proxy.register("bodies_cut", "Bodies that ended early, by who ended them", self.cut.clone());
        let help = "From the request's head to the answer's first byte, by outcome";
        proxy.register_with_unit("first_byte", help, Unit::Seconds, self.first_byte.clone());
        let help = "Requests whose head was not understood";
        proxy.register("malformed_requests", help, self.malformed.clone());
    }

    fn register_connections(&self, proxy: &mut Registry) {
        proxy.register("connections", "Connections of clients that are open", self.connections.clone());
        let help = "Those of them that wait for their next request";
        proxy.register("resting_connections", help, self.resting.clone());
        let help = "Idle connections of HTTP/2 whose clients were told to go because there were too many";
        proxy.register("connections_crowded_out", help, self.crowded_out.clone());
        proxy.register("tunnels", "Tunnels that are open", self.tunnels.clone());
        let help = "Intercepted TLS handshakes that succeeded, by kind";
        proxy.register("handshakes", help, self.handshakes.clone());
        let help = "Intercepted TLS handshakes that failed";
        proxy.register("handshake_failures", help, self.handshake_failures.clone());
        proxy.register("leaf_mints", "Certificates signed for intercepted hosts", self.leaf_mints.clone());
        let help = "Connections that a listener could not take, by reason";
        proxy.register("misplaced_connections", help, self.misplaced.clone());
        let help =
            "Requests and connections of clients that are not served, or have too much already, by reason";
        proxy.register("turned_away", help, self.turned_away.clone());
    }

    /// A client of HTTP/2 is told to go.
    pub(crate) fn left(&self, why: Left) {
        if why == Left::Crowded {
            self.crowded_out.inc();
        }
    }

    /// Records one request when it is over.
    pub(crate) fn record(&self, way: Way, outcome: Outcome, traffic: Traffic, trail: &Trail) {
        let upstream = trail.upstream_class();
        self.requests.get_or_create(&RequestLabels { way, outcome, upstream }).inc();
        for (source, bytes) in trail.sources(outcome, traffic.sent) {
            self.sent_bytes.get_or_create(&SentLabels { outcome, source }).inc_by(bytes);
        }
        let label = OutcomeLabel { outcome };
        let received = traffic.received + trail.received();
        if received > 0 {
            self.received_bytes.get_or_create(&label).inc_by(received);
        }
        if let Some(first_byte) = traffic.first_byte {
            self.first_byte.get_or_create(&label).observe(first_byte.as_secs_f64());
        }
        if let Some(by) = traffic.cut {
            self.cut.get_or_create(&CutLabel { by }).inc();
        }
    }

    /// A head that was not understood.
    pub(crate) fn malformed(&self, way: Way) {
        self.unread(way, Outcome::Refused);
        self.malformed.inc();
    }

    /// A request of which nothing is known.
    pub(crate) fn unread(&self, way: Way, outcome: Outcome) {
        let upstream = UpstreamClass::None;
        self.requests.get_or_create(&RequestLabels { way, outcome, upstream }).inc();
    }

    pub(crate) fn misplaced(&self, reason: Misplaced) {
        self.misplaced.get_or_create(&MisplacedLabel { reason }).inc();
    }

    pub(crate) fn turned_away(&self, reason: TurnedAway) {
        self.turned_away.get_or_create(&TurnedAwayLabel { reason }).inc();
    }

    pub(crate) fn handshake(&self, kind: Handshake) {
        self.handshakes.get_or_create(&HandshakeLabel { kind }).inc();
    }
}

/// What flowed for one request.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Traffic {
    /// Bytes of the body that went to the client, or of a tunnel.
    pub(crate) sent: u64,
    /// Bytes that came from the client in a tunnel. Those of a body are on the request's trail.
    pub(crate) received: u64,
    /// From the request's head to the first byte of the body, or its end.
    pub(crate) first_byte: Option<Duration>,
    /// Who ended it early, if somebody did.
    pub(crate) cut: Option<Cut>,
}
