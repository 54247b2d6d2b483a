//! [`Proxy`]: everything that requests are answered with.

use crate::auth::BasicAuth;
use crate::entitle::Gate;
use crate::metrics::Metrics;
use bytes::Bytes;
use darter_certs::Leaves;
use darter_p2p::Engine;
use darter_rules::Rules;
use darter_upstream::Upstream;
use prometheus_client::registry::Registry;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What a proxy is made of.
pub struct ProxyConfig {
    /// What happens with which URL.
    pub rules: Rules,
    /// The way to origins. Its `permit` must ask the same rules' destinations about every address.
    pub upstream: Upstream,
    /// The piece engine.
    pub engine: Engine,
    /// What intercepted clients are shown; `None`: nothing is intercepted, whatever the rules say.
    pub leaves: Option<Leaves>,
    /// Whom the proxy serves; `None`: everybody.
    ///
    /// Every request to the proxy port must bring it in Proxy-Authorization, a CONNECT for all that comes inside. So must
    /// requests to the mirror, although the clients of a mirror do not know of proxies: containerd sends what a
    /// `[host.header]` in hosts.toml says, and for those that can send nothing (dockerd's `registry-mirrors`) a mirror
    /// behind a password is no mirror. To leave it open would let anybody past the password by way of `?ns=`. The names
    /// of our own (`/ca.crt`, `/healthy`) ask for nothing.
    pub basic_auth: Option<BasicAuth>,
    /// How much at once, and how long.
    pub limits: Limits,
}

/// What bounds clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once; more wait in the listener's backlog.
    pub connections: usize,
    /// Requests through the engine at once (`proxy.maxConcurrency`); more wait. `None`: no limit.
    pub p2p_requests: Option<NonZeroUsize>,
    /// How long the head of a request may take, from the moment when one could begin: also how long a connection may be
    /// idle between two requests.
    pub header_timeout: Duration,
    /// How long the TLS handshake of an intercepted connection may take.
    pub handshake_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // At a few KiB each. The limit on open files is usually nearer, and `accept` survives that, too.
            connections: 16_384,
            p2p_requests: None,
            // Long enough for the idle connections that clients keep (Go: 30 to 90 s), short enough for slowloris.
            header_timeout: Duration::from_secs(60),
            // What Go's clients give their own side of it.
            handshake_timeout: Duration::from_secs(10),
        }
    }
}

/// A running proxy's state, shared by its listeners.
pub struct Proxy {
    pub(crate) rules: Rules,
    pub(crate) upstream: Upstream,
    pub(crate) engine: Engine,
    pub(crate) gate: Arc<Gate>,
    pub(crate) leaves: Option<Leaves>,
    /// The certificate of the CA that signs the leaves, as PEM.
    pub(crate) ca: Option<Bytes>,
    pub(crate) basic_auth: Option<BasicAuth>,
    pub(crate) limits: Limits,
    pub(crate) metrics: Metrics,
    pub(crate) connection_slots: Arc<Semaphore>,
    p2p_slots: Option<Arc<Semaphore>>,
}

impl Proxy {
    /// A proxy that serves nobody yet: see [`crate::run`]. Its metrics are registered under `proxy_`.
    pub fn new(config: ProxyConfig, registry: &mut Registry) -> Self {
        let ProxyConfig { rules, upstream, engine, leaves, basic_auth, limits } = config;
        let slots = |number: usize| Arc::new(Semaphore::new(number.min(Semaphore::MAX_PERMITS)));
        Self {
            ca: leaves.as_ref().map(|leaves| leaves.authority().certificate_pem().into()),
            rules,
            upstream,
            engine,
            gate: Arc::new(Gate::new()),
            leaves,
            basic_auth,
            limits,
            metrics: Metrics::register(registry),
            connection_slots: slots(limits.connections),
            p2p_slots: limits.p2p_requests.map(|number| slots(number.get())),
        }
    }

    /// Waits until there may be one more request through the engine.
    pub(crate) async fn p2p_slot(&self) -> Option<OwnedSemaphorePermit> {
        // The semaphore is never closed.
        self.p2p_slots.clone()?.acquire_owned().await.ok()
    }
}
