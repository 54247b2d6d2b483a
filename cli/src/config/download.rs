//! `download`: how content is fetched, from origins and from other daemons.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use darter_p2p::Backoff;
use darter_upstream::{Pool, Timeouts};

use super::listen;
use super::section::Section;
use super::value::{self, Read};

/// How content is fetched.
#[derive(Debug, Clone)]
pub(crate) struct Download {
    /// How connections to origins are made.
    pub(crate) timeouts: Timeouts,
    pub(crate) pool: Pool,
    /// How failures of an origin are retried.
    pub(crate) backoff: Backoff,
    /// How long a stream of content may be silent.
    pub(crate) idle_timeout: Duration,
    /// A request for a range also fetches the rest.
    pub(crate) prefetch: bool,
    /// Where commands reach the daemon, if not in the usual place.
    pub(crate) socket: Option<PathBuf>,
}

/// What Dragonfly ships: three tries within a few seconds tell an origin that stumbles from one that is down.
const BACKOFF: Backoff =
    Backoff { first: Duration::from_millis(500), most: Duration::from_secs(3), attempts: 3 };

/// What clients themselves wait for a byte: containerd and dockerd give up after about as long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) fn download(section: &mut Section<'_>) -> Download {
    without_effect(section);
    let socket = socket(&mut section.section("downloadGRPC"));
    let (timeouts, pool) = transport(&mut section.section("transportOption"));
    Download {
        timeouts,
        pool,
        backoff: backoff(&mut section.section("concurrent")),
        idle_timeout: section.value("pieceDownloadTimeout", value::some_time).unwrap_or(IDLE_TIMEOUT),
        prefetch: section.value("prefetch", value::boolean).unwrap_or(false),
        socket,
    }
}

/// The socket for commands. It never leaves this host, so that TLS would guard nothing.
fn socket(section: &mut Section<'_>) -> Option<PathBuf> {
    listen::no_tls(section, "commands of this host come over a Unix socket");
    listen::unused_tcp(&mut section.section("tcpListen"), "commands come over the Unix socket alone");
    section.section("unixListen").filled("socket", value::path)
}

fn without_effect(section: &mut Section<'_>) {
    section.always(
        "calculateDigest",
        true,
        value::boolean,
        "every piece and every known digest is always checked",
    );
    section.unused("trafficShaperType", value::text, "downloads share a limit evenly");
    section.unused(
        "watchdogTimeout",
        value::duration,
        "pieceDownloadTimeout says how long content may be silent",
    );
    section.unused("getPiecesMaxRetry", value::count, "another peer is asked at once");
    section.unused(
        "defaultPattern",
        value::text,
        "where bytes come from is decided by task, not by a pattern",
    );
    section.unused("grpcDialTimeout", value::duration, "a scheduler that cannot be reached delays nothing");
    section.unused(
        "syncPieceViaHTTPS",
        value::boolean,
        "daemons always encrypt, unless security.insecure says otherwise",
    );
    section.unused("splitRunningTasks", value::boolean, "all readers of a task share one download");
    let by_command = "darter get reads indexes itself, one file after the other";
    section.section("recursiveConcurrent").unused("goroutineCount", value::count, by_command);
    section.unused("cacheRecursiveMetadata", value::duration, by_command);
    let mut peers = section.section("peerGRPC");
    listen::unused(&mut peers, "daemons talk to each other over the piece port, upload.tcpListen");
}

fn backoff(section: &mut Section<'_>) -> Backoff {
    let one_stream = "an origin is asked by one stream per node in this version";
    section.unused("thresholdSize", value::size, one_stream);
    section.unused("thresholdSpeed", value::size, one_stream);
    section.unused("goroutineCount", value::count, one_stream);
    Backoff {
        first: section.value("initBackoff", value::seconds).unwrap_or(BACKOFF.first),
        most: section.value("maxBackoff", value::seconds).unwrap_or(BACKOFF.most),
        attempts: section.value("maxAttempts", attempts).unwrap_or(BACKOFF.attempts),
    }
}

fn attempts(text: &str) -> Read<u32> {
    let attempts = text.parse().ok().filter(|attempts| *attempts > 0);
    attempts.ok_or_else(|| format!("expected a whole number from 1, found `{text}`"))
}

fn transport(section: &mut Section<'_>) -> (Timeouts, Pool) {
    let Timeouts { dial, tls_handshake, response_header, keep_alive } = Timeouts::default();
    let Pool { max_per_host, max_idle_per_host, idle_timeout } = Pool::default();
    section.unused(
        "expectContinueTimeout",
        value::duration,
        "the origin's 100 Continue is passed on when it comes",
    );
    let timeouts = Timeouts {
        dial: section.value("dialTimeout", value::some_time).unwrap_or(dial),
        tls_handshake: section.value("tlsHandshakeTimeout", value::some_time).unwrap_or(tls_handshake),
        response_header: section.value("responseHeaderTimeout", value::some_time).unwrap_or(response_header),
        keep_alive: section.value("keepAlive", value::some_time).unwrap_or(keep_alive),
    };
    let pool = Pool {
        max_per_host: section.value("maxConnsPerHost", value::count).map_or(max_per_host, NonZeroUsize::new),
        max_idle_per_host: section.value("maxIdleConns", value::count).unwrap_or(max_idle_per_host),
        idle_timeout: section.value("idleConnTimeout", value::some_time).unwrap_or(idle_timeout),
    };
    (timeouts, pool)
}
