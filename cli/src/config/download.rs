//! `download`: how content is fetched, from origins and from other daemons.

use darter_upstream::{Pool, Timeouts};

use super::listen;
use super::section::Section;
use super::value;

/// How connections to origins are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Origins {
    pub(crate) timeouts: Timeouts,
    pub(crate) pool: Pool,
}

pub(super) fn download(section: &mut Section<'_>) -> Origins {
    section.always(
        "calculateDigest",
        true,
        value::boolean,
        "every piece and every known digest is always checked",
    );
    section.always(
        "prefetch",
        false,
        value::boolean,
        "fetching the rest after a range request is not in this version",
    );
    let no_limits = "limits of bandwidth are not in this version";
    section.unused("totalRateLimit", value::size, no_limits);
    section.unused("perPeerRateLimit", value::size, no_limits);
    section.unused("trafficShaperType", value::text, no_limits);
    let own_pace = "a silent peer is given up by how long nothing came, not by a time for a whole piece";
    section.unused("pieceDownloadTimeout", value::duration, own_pace);
    section.unused("watchdogTimeout", value::duration, own_pace);
    section.unused("getPiecesMaxRetry", value::count, own_pace);
    section.unused(
        "defaultPattern",
        value::text,
        "where bytes come from is decided by task, not by a pattern",
    );
    section.unused("grpcDialTimeout", value::duration, "a scheduler that cannot be reached delays nothing");
    section.unused("syncPieceViaHTTPS", value::boolean, "TLS between daemons is not in this version");
    section.unused("splitRunningTasks", value::boolean, "all readers of a task share one download");
    section.no_effect("recursiveConcurrent", "the command-line download tool is not in this version");
    section.unused(
        "cacheRecursiveMetadata",
        value::duration,
        "the command-line download tool is not in this version",
    );
    concurrent(&mut section.section("concurrent"));
    grpc(section);
    transport(&mut section.section("transportOption"))
}

fn concurrent(section: &mut Section<'_>) {
    let reason = "how an origin is asked is not tunable in this version";
    section.unused("thresholdSize", value::size, reason);
    section.unused("thresholdSpeed", value::size, reason);
    section.unused("goroutineCount", value::count, reason);
    section.unused("initBackoff", value::seconds, reason);
    section.unused("maxBackoff", value::seconds, reason);
    section.unused("maxAttempts", value::count, reason);
}

fn grpc(section: &mut Section<'_>) {
    let mut local = section.section("downloadGRPC");
    listen::unused(&mut local, "the local socket for command-line tools is not in this version");
    let mut peers = section.section("peerGRPC");
    listen::unused(&mut peers, "daemons talk to each other over the piece port, upload.tcpListen");
}

fn transport(section: &mut Section<'_>) -> Origins {
    let defaults = Origins::default();
    let Timeouts { dial, tls_handshake, response_header, keep_alive } = defaults.timeouts;
    let Pool { max_idle_per_host, idle_timeout } = defaults.pool;
    section.unused(
        "expectContinueTimeout",
        value::duration,
        "the origin's 100 Continue is passed on when it comes",
    );
    Origins {
        timeouts: Timeouts {
            dial: section.value("dialTimeout", value::some_time).unwrap_or(dial),
            tls_handshake: section.value("tlsHandshakeTimeout", value::some_time).unwrap_or(tls_handshake),
            response_header: section
                .value("responseHeaderTimeout", value::some_time)
                .unwrap_or(response_header),
            keep_alive: section.value("keepAlive", value::some_time).unwrap_or(keep_alive),
        },
        pool: Pool {
            max_idle_per_host: section.value("maxIdleConns", value::count).unwrap_or(max_idle_per_host),
            idle_timeout: section.value("idleConnTimeout", value::some_time).unwrap_or(idle_timeout),
        },
    }
}
