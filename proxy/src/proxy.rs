//! [`Proxy`]: everything that requests are answered with.
//!
//! What an operator may change while it runs stands together in [`Settings`]. They are replaced as a whole: a request is
//! judged by the settings of the moment when it came, from its first step to its last, and connections stay.

use crate::accounts::Accounts;
use crate::admit;
use crate::auth::BasicAuth;
use crate::clients::Clients;
use crate::entitle::Gate;
use crate::genuine::Genuine;
use crate::line::Line;
use crate::metrics::Metrics;
use crate::missing::Missing;
use crate::port_tls::PortTls;
use crate::realms::Judges;
use crate::slots::{Slot, Slots};
use crate::tasks::Operator;
use crate::version::Versions;
use crate::via::{Marks, Pseudonym};
use crate::visitors::Visitors;
use arc_swap::ArcSwap;
use bytes::Bytes;
use darter_certs::Leaves;
use darter_entitle::Ages;
use darter_p2p::Engine;
use darter_rules::{Rules, Scheme, Target};
use darter_upstream::Upstream;
use http::HeaderMap;
use prometheus_client::registry::Registry;
use regex::Regex;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

/// What a proxy is made of.
pub struct ProxyConfig {
    /// What may change while it runs.
    pub settings: Settings,
    /// The way to origins. Its `permit` must ask the same rules' destinations about every address.
    pub upstream: Upstream,
    /// The piece engine.
    pub engine: Engine,
    /// How a request's trace goes on that of its client; `None`: nothing is traced.
    pub adopt: Option<Adopt>,
}

/// Makes a span, which has just been made, part of the trace that a request's headers name, if they do.
pub type Adopt = Arc<dyn Fn(&tracing::Span, &HeaderMap) + Send + Sync>;

/// What an operator may change while the proxy runs: see [`Proxy::replace`].
pub struct Settings {
    /// What happens with which URL.
    pub rules: Rules,
    /// What intercepted clients are shown; `None`: nothing is intercepted, whatever the rules say.
    pub leaves: Option<Leaves>,
    /// How TLS is spoken on proxy ports, by the number in [`Entrance::Proxy`](crate::Entrance::Proxy). A renewed certificate
    /// is shown from the next handshake on.
    pub port_tls: Vec<PortTls>,
    /// Whom the proxy serves by their addresses, and how much of it each of them may have. Holds on every way in.
    pub clients: Clients,
    /// Whom the proxy serves by a password; `None`: everybody.
    ///
    /// Every request to the proxy port must bring it in Proxy-Authorization, a CONNECT for all that comes inside. So must
    /// requests to the mirror, although the clients of a mirror do not know of proxies: containerd sends what a
    /// `[host.header]` in hosts.toml says, and for those that can send nothing (dockerd's `registry-mirrors`) a mirror
    /// behind a password is no mirror. To leave it open would let anybody past the password by way of `?ns=`. The names
    /// of our own (`/ca.crt`, `/healthy`) ask for nothing.
    pub basic_auth: Option<BasicAuth>,
    /// Credentials that are lent to clients that bring none.
    pub accounts: Accounts,
    /// Registries (host:port) that are believed when they say what they have: content has one
    /// name among all of them (`proxy.trustedRegistries`). `None`: each has names of its own.
    pub trusted: Option<Regex>,
    /// Whether clients may change what registries hold.
    pub allow_push: bool,
    /// How much at once, and how long.
    pub limits: Limits,
    /// What messages say of the proxy.
    pub marks: Marks,
}

/// What bounds clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once; more wait in the listener's backlog.
    pub connections: usize,
    /// Idle connections of HTTP/2 that are kept. A third as many more may be about to leave: see `line`.
    pub idle_http2: NonZeroUsize,
    /// Requests through the engine at once (`proxy.maxConcurrency`); more wait. `None`: no limit.
    pub p2p_requests: Option<NonZeroUsize>,
    /// Questions about who a client is that one registry or token service gets at once (`proxy.maxAuthentications`); more
    /// wait. `None`: no limit.
    pub authentications: Option<NonZeroUsize>,
    /// How long it is believed what an origin said of whom it lets have what (`proxy.entitlement`).
    pub proofs: Ages,
    /// How long it counts that an origin does not have some content, for whoever it said so to (`proxy.negativeTTL`).
    pub negative_ttl: Duration,
    /// How long the head of a request may take, from the moment when one could begin: also how long a connection may be
    /// idle between two requests.
    pub header_timeout: Duration,
    /// How long the TLS handshake of an intercepted connection may take.
    pub handshake_timeout: Duration,
    /// How long a body may stand still, in either direction: while the client sends or takes nothing, or the origin. Never
    /// how long it may take as a whole.
    pub body_idle_timeout: Duration,
    /// How long nothing may pass through a tunnel, in either direction.
    pub tunnel_idle_timeout: Duration,
}

/// How many idle connections of HTTP/2 are kept unless the operator says otherwise. 46 KB each: with those that are about to
/// leave they take 45 MiB.
const IDLE_HTTP2: NonZeroUsize = NonZeroUsize::new(768).expect("not zero");

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Idle at 4 KB each, 10 with TLS. The limit on open files is usually nearer, and `accept` survives that, too.
            connections: 16_384,
            idle_http2: IDLE_HTTP2,
            p2p_requests: None,
            // Token services have quotas for seconds, and a question takes some ten milliseconds: a thousand a second.
            authentications: NonZeroUsize::new(16),
            proofs: Ages::default(),
            // Who tries again and again does so within seconds; and nobody waits longer for what somebody else has pushed.
            negative_ttl: Duration::from_secs(5),
            // Long enough for the idle connections that clients keep (Go: 30 to 90 s), short enough for slowloris.
            header_timeout: Duration::from_secs(60),
            // What Go's clients give their own side of it.
            handshake_timeout: Duration::from_secs(10),
            // Long enough for a client that unpacks or pushes what it has got before it takes more, and for an origin that
            // makes its answer as it goes; short enough that what was forgotten does not hold two connections for a day.
            body_idle_timeout: Duration::from_secs(600),
            // A shell, a watch or a database behind a tunnel may be silent for long; what has broken without a word is found
            // by TCP's own keep-alive towards the origin long before.
            tunnel_idle_timeout: Duration::from_secs(3600),
        }
    }
}

/// A running proxy's state, shared by its listeners.
pub struct Proxy {
    settings: ArcSwap<Settings>,
    pub(crate) upstream: Upstream,
    pub(crate) engine: Engine,
    pub(crate) gate: Arc<Gate>,
    pub(crate) versions: Versions,
    pub(crate) missing: Missing,
    pub(crate) genuine: Genuine,
    pub(crate) metrics: Metrics,
    pub(crate) pseudonym: Pseudonym,
    pub(crate) adopt: Option<Adopt>,
    pub(crate) connection_slots: Slots,
    pub(crate) visitors: Visitors,
    pub(crate) turned_away: admit::Log,
    /// Connections of HTTP/2 on which nothing is asked.
    pub(crate) idle: Line,
    /// Those of them whose clients have been told to go.
    pub(crate) leaving: Line,
    p2p_slots: Slots,
}

impl Proxy {
    /// A proxy that serves nobody yet: see [`crate::run`]. Its metrics are registered under `proxy_`.
    pub fn new(config: ProxyConfig, registry: &mut Registry) -> Self {
        let ProxyConfig { settings, upstream, engine, adopt } = config;
        let gate = Gate::new();
        gate.believe_for(settings.limits.proofs);
        Self {
            connection_slots: Slots::new(settings.limits.connections),
            p2p_slots: Slots::new(settings.limits.p2p_slots()),
            idle: Line::new(settings.limits.idle_http2.get()),
            leaving: Line::new(settings.limits.leaving_http2()),
            settings: ArcSwap::from_pointee(settings),
            upstream,
            engine,
            gate: Arc::new(gate),
            versions: Versions::new(),
            missing: Missing::new(),
            genuine: Genuine::new(),
            metrics: Metrics::register(registry),
            pseudonym: Pseudonym::draw(),
            adopt,
            visitors: Visitors::default(),
            turned_away: admit::Log::default(),
        }
    }

    /// Answers by these settings from now on. Connections stay, and what is under way ends by the old ones. Fewer slots
    /// than are taken come into force as those that are taken become free.
    pub fn replace(&self, settings: Settings) {
        self.connection_slots.resize(settings.limits.connections);
        self.p2p_slots.resize(settings.limits.p2p_slots());
        self.idle.resize(settings.limits.idle_http2.get());
        self.leaving.resize(settings.limits.leaving_http2());
        self.gate.believe_for(settings.limits.proofs);
        self.settings.store(Arc::new(settings));
        // What is trusted upstream changes with them.
        self.genuine.forget_all();
    }

    /// The settings of this moment. What belongs to one request takes them once.
    pub(crate) fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// The way to those who say who a caller is, and what it may have.
    pub(crate) fn judges(&self) -> Judges<'_> {
        let at_once = self.settings.load().limits.authentications();
        Judges { upstream: &self.upstream, realms: &self.gate.realms, at_once }
    }

    /// What the names of content at `target` depend on.
    pub(crate) fn operator<'a>(&self, settings: &'a Settings, target: &Target) -> Operator<'a> {
        let shown = || self.upstream.certificate(&target.host().to_string(), target.port());
        let certificate = if target.scheme() == Scheme::Https { shown() } else { None };
        Operator { trusted: settings.trusted.as_ref(), certificate }
    }

    /// Waits until there may be one more request through the engine.
    pub(crate) async fn p2p_slot(&self) -> Slot {
        self.p2p_slots.take().await
    }
}

impl Settings {
    /// The certificates that clients are to trust, as PEM.
    pub(crate) fn ca_pem(&self) -> Option<Bytes> {
        Some(self.leaves.as_ref()?.bundle_pem().into())
    }
}

impl Limits {
    pub(crate) fn authentications(&self) -> usize {
        self.authentications.map_or(usize::MAX, NonZeroUsize::get)
    }

    fn p2p_slots(&self) -> usize {
        self.p2p_requests.map_or(usize::MAX, NonZeroUsize::get)
    }

    fn leaving_http2(&self) -> usize {
        self.idle_http2.get().div_ceil(3)
    }
}
