//! [`UpstreamConfig`]: what the caller decides about connections to origins.

use crate::route::Route;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

/// May a connection for this host and port be made to this address? The host is a name in lower case or an IP literal
/// without brackets. No address: a parent proxy resolves the name, so that its name is all there is to judge it by; IP
/// literals always come with their address. The error is one sentence for people.
pub type Permit = Arc<dyn Fn(&str, u16, Option<IpAddr>) -> Result<(), String> + Send + Sync>;

/// How this host and port is reached. Must give the same route for the same host and port every time: pooled connections
/// are found by these. What changes is told by [`crate::Upstream::replace`].
pub type Routes = Arc<dyn Fn(&str, u16) -> Route + Send + Sync>;

/// How connections to origins are made.
#[derive(Clone)]
pub struct UpstreamConfig {
    /// Asked for every resolved address, for IP literals, and for names that a parent proxy resolves.
    pub permit: Permit,
    /// Asked for every connection.
    pub routes: Routes,
    /// How names become addresses.
    pub dns: Dns,
    /// How long each stage may take.
    pub timeouts: Timeouts,
    /// How many connections there are, and how long idle ones are kept.
    pub pool: Pool,
    /// The mark that connections bear (SO_MARK), by which a packet filter that turns other connections to us knows ours.
    /// Setting one takes CAP_NET_ADMIN: without it no connection can be made.
    pub mark: Option<u32>,
}

/// How names become addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// The servers that are asked, over UDP and where need be TCP, after `/etc/hosts`; none: the system's resolver is.
    pub servers: Vec<SocketAddr>,
    /// Whether a name's IPv6 addresses count.
    pub ipv6: bool,
}

impl Default for Dns {
    fn default() -> Self {
        // The system knows best: its resolver is what people test with.
        Self { servers: Vec::new(), ipv6: true }
    }
}

/// How long each stage of a request to an origin may take. There is no limit on a body, which may take hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Resolving the name and connecting to one of its addresses (`dialTimeout`).
    pub dial: Duration,
    /// The TLS handshake (`tlsHandshakeTimeout`).
    pub tls_handshake: Duration,
    /// From the last byte of the request to the head of the answer (`responseHeaderTimeout`). An upload may take as long
    /// as it likes before that, and its answer 15 minutes at least.
    pub response_header: Duration,
    /// After this long without traffic the kernel probes the connection (`keepAlive`).
    pub keep_alive: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            // A lost SYN is repeated after 1 s and again after 2 s: room for two losses.
            dial: Duration::from_secs(5),
            tls_handshake: Duration::from_secs(5),
            // containerd gives up after 30 s without a head; our sentence is to reach it before.
            response_header: Duration::from_secs(25),
            keep_alive: Duration::from_secs(30),
        }
    }
}

/// How many connections there are, and which are kept when they are idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    /// Requests that one host and port gets in turn ([`crate::Upstream::send_in_turn`]) at once (`maxConnsPerHost`); more wait.
    /// Over HTTP/1.1 each of them is a connection. `None`: any number.
    pub max_per_host: Option<NonZeroUsize>,
    /// How many to one host and port (`maxIdleConns`).
    pub max_idle_per_host: usize,
    /// How long one may stay idle (`idleConnTimeout`).
    pub idle_timeout: Duration,
}

impl Default for Pool {
    fn default() -> Self {
        // Go's numbers, to which registries' own idle timeouts are tuned.
        Self { max_per_host: None, max_idle_per_host: 100, idle_timeout: Duration::from_secs(90) }
    }
}
