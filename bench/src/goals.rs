//! Every figure that is measured: what it is, its unit, and what we want to reach.
//!
//! The targets are for an idle machine with two cores, and were set beside what the best of the field reached on one.

/// A figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Goal {
    pub(crate) what: &'static str,
    pub(crate) unit: &'static str,
    /// `None`: measured for the sake of the others.
    pub(crate) target: Option<Target>,
    /// What nginx reached on the idle machine where the target was set. On a busy machine the ratio to nginx says more than
    /// the figure.
    pub(crate) nginx_then: Option<f64>,
}

impl Goal {
    const fn nginx_had(self, figure: f64) -> Self {
        Self { nginx_then: Some(figure), ..self }
    }
}

/// What we want to reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
}

impl Target {
    pub(crate) const fn value(self) -> f64 {
        match self {
            Self::AtMost(value) | Self::AtLeast(value) => value,
        }
    }
}

const RATE: &str = "MB/s";
const COST: &str = "CPU s/GB";
const REQUESTS: &str = "requests/s";
const EACH: &str = "CPU us each";
const P50: &str = "p50 us";
const P99: &str = "p99 us";

const fn figure(what: &'static str, unit: &'static str) -> Goal {
    Goal { what, unit, target: None, nginx_then: None }
}

const fn at_most(what: &'static str, unit: &'static str, most: f64) -> Goal {
    Goal { what, unit, target: Some(Target::AtMost(most)), nginx_then: None }
}

const fn at_least(what: &'static str, unit: &'static str, least: f64) -> Goal {
    Goal { what, unit, target: Some(Target::AtLeast(least)), nginx_then: None }
}

/// Large content: how fast, and what it costs.
pub(crate) type Bulk = (Goal, Goal);

pub(crate) const WARM_1: Bulk =
    (figure("warm, 1 client", RATE), at_most("warm, 1 client", COST, 0.075).nginx_had(0.074));
pub(crate) const WARM_16: Bulk =
    (figure("warm, 16 clients", RATE), at_most("warm, 16 clients", COST, 0.045).nginx_had(0.041));
pub(crate) const TLS_1: Bulk =
    (figure("warm, TLS, 1 client", RATE), at_most("warm, TLS, 1 client", COST, 0.19).nginx_had(0.485));
pub(crate) const TLS_8: Bulk =
    (figure("warm, TLS, 8 clients", RATE), at_most("warm, TLS, 8 clients", COST, 0.20).nginx_had(0.395));
pub(crate) const COLD: Bulk = (
    at_least("cold, sha256 and BLAKE3", RATE, 2000.0),
    at_most("cold, sha256 and BLAKE3", COST, 0.80).nginx_had(0.33),
);
pub(crate) const COLD_TLS: Bulk = (
    figure("cold, TLS on both sides, sha256 and BLAKE3", RATE),
    at_most("cold, TLS on both sides, sha256 and BLAKE3", COST, 1.0),
);
pub(crate) const COLD_UNNAMED: Bulk =
    (figure("cold, no digest known", RATE), at_most("cold, no digest known", COST, 0.35).nginx_had(0.33));
pub(crate) const COLD_FIRST: Goal = at_most("cold, first byte", "ms", 2.0).nginx_had(0.85);
pub(crate) const DIRECT: Bulk = (figure("passed through", RATE), figure("passed through", COST));
pub(crate) const DIRECT_TLS: Bulk =
    (figure("passed through, TLS on both sides", RATE), figure("passed through, TLS on both sides", COST));
pub(crate) const PEER: Bulk = (
    figure("from a peer, no digest known", RATE),
    at_most("from a peer, no digest known; both ends", COST, 0.30),
);
pub(crate) const PEER_TLS: Bulk =
    (figure("from a peer, mutual TLS", RATE), at_most("from a peer, mutual TLS; both ends", COST, 0.70));
pub(crate) const PEER_NAMED: Bulk =
    (figure("from a peer, sha256 on top", RATE), figure("from a peer, sha256 on top; both ends", COST));

/// Small content: how many, and what each costs.
pub(crate) const SMALL: (Goal, Goal) = (
    at_least("4 KiB warm, 16 clients", REQUESTS, 100_000.0).nginx_had(136_000.0),
    at_most("4 KiB warm, 16 clients", EACH, 9.0).nginx_had(8.6),
);
pub(crate) const SMALL_TLS: (Goal, Goal) =
    (figure("4 KiB warm, TLS, 16 clients", REQUESTS), at_most("4 KiB warm, TLS, 16 clients", EACH, 12.0));
pub(crate) const SMALL_NEW: [Goal; 3] = [
    at_most("4 KiB never seen, kept", P50, 36.0).nginx_had(32.0),
    at_most("4 KiB never seen, kept", P99, 81.0).nginx_had(79.0),
    figure("4 KiB never seen, kept", EACH),
];
pub(crate) const SMALL_DIRECT: [Goal; 2] =
    [at_most("4 KiB passed through", P50, 17.0).nginx_had(17.0), figure("4 KiB passed through", EACH)];
pub(crate) const SMALL_DIRECT_TLS: [Goal; 2] = [
    at_most("4 KiB passed through, TLS on both sides", P50, 27.0),
    figure("4 KiB passed through, TLS on both sides", EACH),
];

pub(crate) const FIRST_WARM: Goal = figure("first byte of 1 MiB, warm", P50);
pub(crate) const FIRST_COLD: Goal = at_most("first byte of 1 MiB, cold", P50, 2000.0);

pub(crate) const HANDSHAKE_FULL: Goal = at_most("TLS handshake, full", "CPU ms", 0.13).nginx_had(0.218);
pub(crate) const HANDSHAKE_RESUMED: Goal = figure("TLS handshake, resumed", "CPU ms");
pub(crate) const NEW_HOST: Goal = at_most("first byte from a host never seen", "p50 ms", 1.0);

pub(crate) const IDLE: Goal = at_most("resident, idle", "MB", 15.0);
pub(crate) const PER_TLS: Goal = at_most("resident, each of 1,000 TLS connections", "KB", 20.0);
pub(crate) const CROWDED: Goal = figure("resident, with 1,000 TLS connections", "MB");
pub(crate) const PEAK: Goal = at_most("resident at most, 16 readers of cold content", "MB", 60.0);

pub(crate) const HERD_LAST: Goal =
    at_most("herd: the last of 16 clients", "times the wire", 1.005).nginx_had(1.476);
pub(crate) const HERD_FIRST: Goal = at_most("herd: first byte, the last of 16", "ms", 2.0);
pub(crate) const HERD_COPIES: Goal = at_most("herd: what the origin sent", "copies", 1.0);

pub(crate) const CROWD_FIRST: Goal = figure("8 clients of one slow object: first byte, the last", "ms");
pub(crate) const CROWD_COPIES: Goal = figure("8 clients and a range: what the origin sent", "copies");
pub(crate) const RANGE: Goal = figure("1 KiB in the middle meanwhile", "ms");
pub(crate) const RANGE_FETCHED: Goal = at_most("1 KiB in the middle: fetched for it", "KiB", 64.0);

// Half of what dfcache was seen to take between two cloud hosts; the import, as fast as a disk of 3.9 GB/s lets it be.
pub(crate) const NO_QUESTION: Goal = figure("cache: a call that asks nothing", "p50 ms");
// The field's figures for a stat, of which these are to be half, have no room for the call over the socket.
pub(crate) const STAT_HERE: Goal = figure("cache: stat, on this host", "p50 ms");
pub(crate) const STAT_ALONE: Goal = at_most("cache: stat, on this host, without the call", "p50 ms", 0.035);
pub(crate) const STAT_PEER: Goal = figure("cache: stat, at a peer", "p50 ms");
pub(crate) const STAT_PEER_ALONE: Goal = at_most("cache: stat, at a peer, without the call", "p50 ms", 0.3);
pub(crate) const STAT_MISS: Goal = at_most("cache: stat of nothing", "p50 ms", 0.5);
/// What the field measured: its delete leaves the other hosts' copies.
pub(crate) const DELETE_HERE: Goal = at_most("cache: delete, on this host", "p50 ms", 0.5);
pub(crate) const DELETE_ALL: Goal = figure("cache: delete, on all hosts", "p50 ms");
pub(crate) const IMPORT_LARGE: Goal = at_most("cache: import of the large content", "ms", 300.0);
pub(crate) const START: Goal = figure("cache: a command that prints its version", "p50 ms");
pub(crate) const EXPORT_4K: Goal = figure("cache: export of 4 KiB", "p50 ms");
/// The field's figure, of which this is to be half, has no room for the start of a process.
pub(crate) const EXPORT_ALONE: Goal =
    at_most("cache: export of 4 KiB, without the command's start", "p50 ms", 1.7);
pub(crate) const EXPORT_4M: Goal = at_most("cache: export of 4 MiB", "ms", 7.0);
pub(crate) const EXPORT_128M: Goal = at_most("cache: export of 128 MiB", "ms", 85.0);
pub(crate) const EXPORT_LARGE: Goal = at_most("cache: export of the large content", "ms", 1075.0);
