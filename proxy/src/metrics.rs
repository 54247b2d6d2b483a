//! [`Metrics`]: what an operator graphs of the proxy. Every label has a fixed set of values.

use crate::request::Side;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::time::Duration;

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Outcome {
    /// Served from this host's disk.
    Hit,
    /// Served from peers or the origin by way of the engine.
    Miss,
    /// The engine asked the origin, whose answer was passed on as it came.
    Relayed,
    /// Streamed from and to the origin.
    Direct,
    /// Streamed from the origin because the engine could not keep the content.
    Bypass,
    /// A tunnel whose bytes nobody looked at.
    Tunnel,
    /// A tunnel that was opened up; what came inside counts by itself.
    Intercepted,
    /// A name of the proxy's own.
    Own,
    /// Not allowed, or not understood.
    Refused,
    /// The origin, or this host, failed.
    Failed,
    /// The client went away before there was an answer.
    Abandoned,
}

/// How a request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Way {
    /// To the forward proxy, or before it is known.
    Forward,
    /// Inside an intercepted connection.
    Intercepted,
    /// To the mirror.
    Mirror,
    /// By a listener that finds the host in the TLS greeting.
    Sni,
    /// Turned to us by the packet filter.
    Transparent,
}

/// How a body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Cut {
    /// The client went away.
    Client,
    /// The origin, the peers or the disk failed.
    Upstream,
    /// Nothing moved for too long. The line in the log says who was waited for.
    Idle,
}

impl Way {
    /// How what comes on `side` came in, as far as that is known before it is read.
    pub(crate) fn at(side: &Side) -> Self {
        match side {
            Side::Port => Self::Forward,
            Side::Inside { .. } => Self::Intercepted,
            Side::Redirected { .. } => Self::Transparent,
        }
    }

    pub(crate) fn of(way: darter_rules::Way<'_>) -> Self {
        match way {
            darter_rules::Way::Forward => Self::Forward,
            darter_rules::Way::Intercepted { .. } => Self::Intercepted,
            darter_rules::Way::Mirror => Self::Mirror,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    way: Way,
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CutLabel {
    by: Cut,
}

/// Why a connection does not belong where it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Misplaced {
    /// A load balancer did not say who the client is.
    NoProxyHeader,
    /// Plain HTTP to a port for TLS.
    Plain,
    /// The TLS handshake with the proxy port itself failed.
    Handshake,
    /// It was made to a port for redirected connections, and nobody redirected it.
    NotRedirected,
    /// It does not say for which host it is.
    Nameless,
    /// It is our own: the packet filter turned it to us, or a name led here.
    Loop,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct MisplacedLabel {
    pub(crate) reason: Misplaced,
}

/// Why a client was turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum TurnedAway {
    /// It is not served at all.
    Client,
    /// It has as many connections as it may.
    Connections,
    /// Its requests come too fast.
    Requests,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct TurnedAwayLabel {
    pub(crate) reason: TurnedAway,
}

/// How an intercepted TLS handshake went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Handshake {
    /// A certificate was shown.
    Full,
    /// A session went on.
    Resumed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct HandshakeLabel {
    pub(crate) kind: Handshake,
}

/// Counters, gauges and histograms of the proxy.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    requests: Family<RequestLabels, Counter>,
    sent_bytes: Family<OutcomeLabel, Counter>,
    received_bytes: Family<OutcomeLabel, Counter>,
    cut: Family<CutLabel, Counter>,
    first_byte: Family<OutcomeLabel, Histogram>,
    pub(crate) connections: Gauge,
    pub(crate) handshakes: Family<HandshakeLabel, Counter>,
    pub(crate) handshake_failures: Counter,
    pub(crate) leaf_mints: Counter,
    pub(crate) malformed: Counter,
    pub(crate) tls_on_plain_port: Counter,
    pub(crate) misplaced: Family<MisplacedLabel, Counter>,
    pub(crate) turned_away: Family<TurnedAwayLabel, Counter>,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        // 0.5 ms to 65 s in steps of four: an answer from disk, from a peer, from an origin far away, from a sick one.
        let buckets =
            || Histogram::new(std::iter::successors(Some(0.0005), |bound| Some(bound * 4.0)).take(10));
        let metrics = Self {
            requests: Family::default(),
            sent_bytes: Family::default(),
            received_bytes: Family::default(),
            cut: Family::default(),
            first_byte: Family::new_with_constructor(buckets),
            connections: Gauge::default(),
            handshakes: Family::default(),
            handshake_failures: Counter::default(),
            leaf_mints: Counter::default(),
            malformed: Counter::default(),
            tls_on_plain_port: Counter::default(),
            misplaced: Family::default(),
            turned_away: Family::default(),
        };
        let proxy = registry.sub_registry_with_prefix("proxy");
        proxy.register("requests", "Requests by way in and outcome", metrics.requests.clone());
        proxy.register(
            "sent_bytes",
            "Bytes of bodies sent to clients by outcome",
            metrics.sent_bytes.clone(),
        );
        let received = metrics.received_bytes.clone();
        proxy.register("received_bytes", "Bytes received from clients in tunnels, by outcome", received);
        proxy.register("bodies_cut", "Bodies that ended early, by who ended them", metrics.cut.clone());
        let first_byte = metrics.first_byte.clone();
        let help = "From the request's head to the answer's first byte, by outcome";
        proxy.register_with_unit("first_byte", help, Unit::Seconds, first_byte);
        proxy.register("connections", "Connections of clients that are open", metrics.connections.clone());
        let handshakes = metrics.handshakes.clone();
        proxy.register("handshakes", "Intercepted TLS handshakes that succeeded, by kind", handshakes);
        let mints = metrics.leaf_mints.clone();
        proxy.register("leaf_mints", "Certificates signed for intercepted hosts", mints);
        let failures = metrics.handshake_failures.clone();
        proxy.register("handshake_failures", "Intercepted TLS handshakes that failed", failures);
        let malformed = metrics.malformed.clone();
        proxy.register("malformed_requests", "Requests whose head was not understood", malformed);
        let misplaced = metrics.tls_on_plain_port.clone();
        proxy.register("tls_on_plain_port", "Connections that spoke TLS to the proxy port", misplaced);
        let misplaced = metrics.misplaced.clone();
        proxy.register(
            "misplaced_connections",
            "Connections that a listener could not take, by reason",
            misplaced,
        );
        let turned_away = metrics.turned_away.clone();
        let help =
            "Requests and connections of clients that are not served, or have too much already, by reason";
        proxy.register("turned_away", help, turned_away);
        metrics
    }

    /// Records one request when it is over.
    pub(crate) fn record(&self, way: Way, outcome: Outcome, traffic: Traffic) {
        let label = OutcomeLabel { outcome };
        self.requests.get_or_create(&RequestLabels { way, outcome }).inc();
        self.sent_bytes.get_or_create(&label).inc_by(traffic.sent);
        if traffic.received > 0 {
            self.received_bytes.get_or_create(&label).inc_by(traffic.received);
        }
        if let Some(first_byte) = traffic.first_byte {
            self.first_byte.get_or_create(&label).observe(first_byte.as_secs_f64());
        }
        if let Some(by) = traffic.cut {
            self.cut.get_or_create(&CutLabel { by }).inc();
        }
    }
}

/// What flowed for one request.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Traffic {
    /// Bytes of the body that went to the client.
    pub(crate) sent: u64,
    /// Bytes that came from the client, where they are counted: in tunnels.
    pub(crate) received: u64,
    /// From the request's head to the first byte of the body, or its end.
    pub(crate) first_byte: Option<Duration>,
    /// Who ended it early, if somebody did.
    pub(crate) cut: Option<Cut>,
}
