//! [`Upstream`]: requests to origins over pooled connections.

use crate::body::{Body, Incoming, Watched, empty_body};
use crate::config::{Timeouts, UpstreamConfig};
use crate::connector::{Connector, Target, connect, reach};
use crate::dial::{Dialer, Recent};
use crate::error::{Kind, Stage, UpstreamError, io_reason};
use crate::link::Link;
use crate::metrics::{Counted, Metrics, Protocol, Purpose};
use crate::ready::Ready;
use crate::resolve::Resolver;
use crate::route::{HttpVersion, Route};
use crate::turns::Turns;
use crate::uses::{Connection, Exchange, Open};
use arc_swap::ArcSwap;
use darter_certs::{crypto_provider, sha256};
use futures_util::FutureExt as _;
use http::{Extensions, HeaderMap, Method, Request, Response, StatusCode, Version, header};
use http_body::Body as _;
use hyper_util::client::legacy::connect::{CaptureConnection, capture_connection};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use prometheus_client::registry::Registry;
use std::error::Error as StdError;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// An HTTP/2 connection that answers no ping within this time is dead: requests on it fail instead of hanging.
const PING_TIMEOUT: Duration = Duration::from_secs(15);

/// How long an answer's head may take at least where the request made work: a registry hashes and copies a layer of many
/// gigabytes between its last byte and the answer. Docker's own recipe for a proxy before a registry says as much.
const WORK_TIMEOUT: Duration = Duration::from_secs(900);

/// A head of an answer that is larger than this is refused, in bytes.
const MAX_HEAD_BYTES: usize = 256 << 10;

/// More header lines than this in an answer are refused.
const MAX_HEADERS: usize = 256;

/// The way to origins. Clones share the pool, and what [`Self::replace`] puts in its place.
#[derive(Clone)]
pub struct Upstream {
    current: Arc<ArcSwap<Generation>>,
    turns: Turns,
    metrics: Metrics,
}

/// A request that waits for its turn: see [`Upstream::send_in_turn`].
#[derive(Debug, Clone, Copy)]
pub struct InTurn {
    /// Requests of the same number have their turns together: what one wants does not keep out what another wants.
    pub whose: u64,
    /// Whether it waits no longer than an answer may take. Otherwise it waits for as long as it must.
    pub hurries: bool,
}

/// One configuration, with the connections that were made under it. Whatever changes how a host is reached or whom to
/// trust makes a new one, so that no connection outlives what it was judged by.
struct Generation {
    pool: Client<Connector, Watched>,
    /// For requests that switch to another protocol (RFC 9110 section 7.8), which HTTP/2 cannot. Those connections do not
    /// come back, and those that were refused the switch are few.
    http1_pool: Client<Connector, Watched>,
    ways: Arc<Ways>,
}

/// How connections are made.
pub(crate) struct Ways {
    config: UpstreamConfig,
    pub(crate) dialer: Dialer,
    pub(crate) ready: Ready,
    pub(crate) metrics: Metrics,
}

impl Upstream {
    /// An empty pool. Must be used within a tokio runtime.
    pub fn new(config: UpstreamConfig) -> Self {
        let metrics = Metrics::default();
        let turns = Turns::new(config.pool.max_per_host, metrics.clone());
        let generation = Generation::new(config, metrics.clone());
        Self { current: Arc::new(ArcSwap::from_pointee(generation)), turns, metrics }
    }

    /// Shows its metrics under `upstream_`.
    pub fn register(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }

    /// From now on goes by `config`, in all clones. Requests and tunnels under way finish as they began; no idle connection
    /// is used again.
    pub fn replace(&self, config: UpstreamConfig) {
        self.turns.resize(config.pool.max_per_host);
        self.current.store(Arc::new(Generation::new(config, self.metrics.clone())));
    }

    /// Sends a request to the origin that its absolute URI names, and gives the answer when its head is there; the body
    /// streams. The Host header is made from the URI; whatever stands in the request's is not sent, and neither is
    /// Proxy-Authorization: the only one is our own to a parent. Follows no redirect. A request with an Upgrade header goes
    /// over HTTP/1.1, and a 101 can be taken over with [`hyper::upgrade::on`]. The answer's extensions hold a
    /// [`crate::Reached`].
    ///
    /// # Errors
    /// When no head of an answer came. Statuses of any kind are answers; a parent's own 407 is none.
    ///
    /// # Cancel safety
    /// Dropping the future gives the request up.
    pub async fn send(&self, mut request: Request<Body>) -> Result<Response<Incoming>, UpstreamError> {
        let target = Target::of(request.uri())?;
        let generation = self.current.load_full();
        // The client decides by ALPN; a version in the request would only be refused or ignored.
        *request.version_mut() = Version::HTTP_11;
        request.headers_mut().remove(header::HOST);
        request.headers_mut().remove(header::PROXY_AUTHORIZATION);
        let only_http1 = switches(request.headers());
        let route = generation.ways.route(&target, only_http1);
        let forwarder = route.forwarder(target.tls);
        if let Some(credentials) = forwarder.and_then(|parent| parent.credentials.as_ref()) {
            request.headers_mut().insert(header::PROXY_AUTHORIZATION, credentials.basic());
        }
        let response = generation.send(request, &target).await?;
        match forwarder {
            // It is about us, not about whoever asked us.
            Some(parent) if response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                Err(target.error(parent.refused_with(&response)))
            }
            _ => Ok(response),
        }
    }

    /// Sends a request when its origin has fewer of those than it may have at once ([`crate::Pool::max_per_host`]): of all
    /// redirects each origin for itself. Until the answer's body has ended, or is dropped, it counts as one of them.
    ///
    /// # Errors
    /// As [`Self::send`], and when one that hurries had no turn in time.
    ///
    /// # Cancel safety
    /// Dropping the future gives the request up.
    pub async fn send_in_turn(
        &self,
        request: Request<Body>,
        InTurn { whose, hurries }: InTurn,
    ) -> Result<Response<Incoming>, UpstreamError> {
        let target = Target::of(request.uri())?;
        let turn = self.turns.take(&target, whose);
        let turn = if hurries {
            let after = self.current.load().ways.config.timeouts.response_header;
            let late = |_| target.error(Kind::Timeout { stage: Stage::Turn, after });
            tokio::time::timeout(after, turn).await.map_err(late)?
        } else {
            turn.await
        };
        Ok(self.send(request).await?.map(|body| body.in_turn(turn)))
    }

    /// The addresses of a name, asked as those of an origin are; never none.
    ///
    /// # Errors
    /// When there are none, or nobody answers.
    pub async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, UpstreamError> {
        let ways = Arc::clone(&self.current.load().ways);
        let found = ways.dialer.resolver.resolve(name, None).await;
        found.map_err(|kind| Target::new(name, 0, false).error(kind))
    }

    /// The targets of a service (RFC 2782, SRV), like `_darter._tcp.example.org`: names and ports, those of the smallest
    /// number of priority. Asked of the configured servers, otherwise of those in `/etc/resolv.conf`.
    ///
    /// # Errors
    /// When there are none, or nobody answers.
    pub async fn services(&self, name: &str) -> Result<Vec<(String, u16)>, UpstreamError> {
        let ways = Arc::clone(&self.current.load().ways);
        let found = ways.dialer.resolver.services(name).await;
        found.map_err(|kind| Target::new(name, 0, false).error(kind))
    }

    /// A connection for a tunnel. `host` is a name or an IP literal, with or without brackets.
    ///
    /// # Errors
    /// When nothing permitted could be connected to.
    ///
    /// # Cancel safety
    /// Dropping the future gives the attempt up.
    pub async fn dial(&self, host: &str, port: u16) -> Result<Link, UpstreamError> {
        let target = Target::new(host, port, false);
        let ways = Arc::clone(&self.current.load().ways);
        let route = ways.route(&target, false);
        let dialled = self.metrics.dial(Purpose::Tunnel, reach(&target, &route, &ways)).await;
        let mut link = dialled.map_err(|kind| target.error(kind))?;
        link.counted(Open::new(Protocol::Tunnel, &self.metrics));
        Ok(link)
    }

    /// The way to this host and port, and who says where it is, in words for people. Nobody is asked.
    pub fn way(&self, host: &str, port: u16) -> String {
        let target = Target::new(host, port, false);
        let ways = Arc::clone(&self.current.load().ways);
        ways.route(&target, false).described(&target.host, &ways.config.dns)
    }

    /// The SHA-256 of the client certificate that this host and port is shown when it asks for one (`upstream.hosts[].clientCert`).
    pub fn certificate(&self, host: &str, port: u16) -> Option<[u8; 32]> {
        let target = Target::new(host, port, true);
        let shows = Arc::clone(&self.current.load().ways).route(&target, false).tls;
        let shows = &shows.client_auth_cert_resolver;
        let schemes = &crypto_provider().signature_verification_algorithms.supported_schemes();
        let shown = shows.has_certs().then(|| shows.resolve(&[], schemes))??;
        shown.cert.first().map(|certificate| sha256(certificate))
    }

    /// Whether one of the last connections was made from `local` to `remote`. If it comes in again, the packet filter turned
    /// it to us, or a name led here: to take it for a client's would go round for ever.
    pub fn made(&self, local: SocketAddr, remote: SocketAddr) -> bool {
        self.current.load().ways.dialer.recent.has(local, remote)
    }

    /// Whether `https` can be spoken with this host: connects and does the TLS handshake, and keeps the connection for a
    /// few seconds for the first request. Asks anew every time when nobody used the last answer's connection; whoever asks
    /// often remembers the answers.
    ///
    /// # Errors
    /// The same that a request would get.
    ///
    /// # Cancel safety
    /// Dropping the future gives the attempt up.
    pub async fn probe(&self, host: &str, port: u16) -> Result<(), UpstreamError> {
        let target = Target::new(host, port, true);
        let ways = Arc::clone(&self.current.load().ways);
        if ways.ready.has(&target) {
            return Ok(());
        }
        let route = ways.route(&target, false);
        let stream = self.metrics.dial(Purpose::Probe, connect(&target, &route, &ways)).await;
        let stream = stream.map_err(|kind| target.error(kind))?;
        ways.ready.keep(target, stream);
        Ok(())
    }
}

// === impl Ways ===

impl Ways {
    /// How `target` is reached; `only_http1` where the version is not the operator's choice.
    pub(crate) fn route(&self, target: &Target, only_http1: bool) -> Route {
        let route = (self.config.routes)(&target.host, target.port);
        if only_http1 { Route { http: HttpVersion::Http1, ..route } } else { route }
    }
}

// === impl Generation ===

impl Generation {
    fn new(config: UpstreamConfig, metrics: Metrics) -> Self {
        let dialer = Dialer {
            permit: Arc::clone(&config.permit),
            resolver: Resolver::new(&config.dns),
            timeouts: config.timeouts,
            mark: config.mark,
            recent: Recent::default(),
        };
        let ways = Arc::new(Ways { config, dialer, ready: Ready::default(), metrics });
        Self { pool: pool(&ways, false), http1_pool: pool(&ways, true), ways }
    }

    /// How long the head of an answer may take. Whoever reads has all that he wants there already.
    fn head_timeout(&self, method: &Method) -> Duration {
        let Timeouts { response_header, .. } = self.ways.config.timeouts;
        if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
            response_header
        } else {
            response_header.max(WORK_TIMEOUT)
        }
    }

    async fn send(
        &self,
        request: Request<Body>,
        target: &Target,
    ) -> Result<Response<Incoming>, UpstreamError> {
        // A kept-alive connection may be closed by the origin at the moment when it is used again. What has no body and
        // changes nothing is then asked once more (RFC 9110 section 9.2.2).
        let again = (request.method().is_safe() && request.body().is_end_stream()).then(|| copy(&request));
        match (self.send_once(request, target).await, again) {
            (Err(UpstreamError { kind: Kind::Closed { .. }, .. }), Some(again)) => {
                self.send_once(again, target).await
            }
            (answer, _) => answer,
        }
    }

    async fn send_once(
        &self,
        request: Request<Body>,
        target: &Target,
    ) -> Result<Response<Incoming>, UpstreamError> {
        self.ways.metrics.requests.inc();
        let _waiting = Counted::one_of(&self.ways.metrics.waiting);
        let pool = if switches(request.headers()) { &self.http1_pool } else { &self.pool };
        let (parts, body) = request.into_parts();
        let (body, sent) = Watched::new(body);
        let after = self.head_timeout(&parts.method);
        let silence = async {
            // An error means that the body was dropped, which is as good as sent.
            let _ = sent.await;
            tokio::time::sleep(after).await;
        };
        let mut request = Request::from_parts(parts, body);
        let mut taken = taken(capture_connection(&mut request)).boxed();
        let (mut asking, mut exchange) = (pool.request(request), None);
        let answer = tokio::select! {
            answer = async {
                tokio::select! {
                    biased;
                    begun = &mut taken => exchange = begun,
                    answer = &mut asking => return answer,
                }
                (&mut asking).await
            } => answer.map_err(|error| classify(&error, target))?,
            () = silence => return Err(target.error(Kind::Timeout { stage: Stage::ResponseHeader, after })),
        };
        Ok(answered(answer, exchange))
    }
}

/// A request is under way as soon as the pool has a connection for it. `None`: there is none.
async fn taken(mut connected: CaptureConnection) -> Option<Exchange> {
    let mut extras = Extensions::new();
    connected.wait_for_connection_metadata().await.as_ref()?.get_extras(&mut extras);
    extras.get::<Connection>().map(Connection::begin)
}

/// The answer to a request that began as `exchange`, which lasts until its end.
fn answered(
    mut answer: Response<hyper::body::Incoming>,
    mut exchange: Option<Exchange>,
) -> Response<Incoming> {
    if let Some(connection) = answer.extensions_mut().remove::<Connection>() {
        // A connection that turned out to be closed may have been the first.
        exchange = exchange.filter(|it| it.is_on(&connection)).or_else(|| Some(connection.begin()));
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            connection.switched();
        }
    }
    answer.map(|body| Incoming::new(body, exchange))
}

fn pool(ways: &Arc<Ways>, only_http1: bool) -> Client<Connector, Watched> {
    let UpstreamConfig { pool, timeouts, .. } = &ways.config;
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(pool.idle_timeout)
        .pool_max_idle_per_host(pool.max_idle_per_host)
        .http1_max_buf_size(MAX_HEAD_BYTES)
        .http1_max_headers(MAX_HEADERS)
        .http2_keep_alive_interval(timeouts.keep_alive)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .http2_max_header_list_size(MAX_HEAD_BYTES as u32)
        .build(Connector { ways: Arc::clone(ways), only_http1 })
}

/// Whether a request asks for another protocol on its connection.
fn switches(headers: &HeaderMap) -> bool {
    headers.contains_key(header::UPGRADE)
}

fn copy(request: &Request<Body>) -> Request<Body> {
    let mut copy = Request::new(empty_body());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// The connector's own error where it was the connector; otherwise what hyper says about the exchange.
fn classify(error: &legacy::Error, target: &Target) -> UpstreamError {
    if let Some(error) = find::<UpstreamError>(error) {
        return error.clone();
    }
    target.error(match find::<hyper::Error>(error) {
        Some(error) if error.is_user() => Kind::RequestBody { reason: innermost(error) },
        Some(error) if error.is_parse() => Kind::Protocol { reason: innermost(error) },
        Some(error) => match find::<std::io::Error>(error) {
            Some(error) => Kind::Closed { reason: io_reason(error) },
            None => Kind::Closed { reason: innermost(error) },
        },
        None => Kind::Closed { reason: innermost(error) },
    })
}

fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| (**error).source())
}

fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    chain(error).find_map(|error| error.downcast_ref())
}

pub(crate) fn innermost(error: &(dyn StdError + 'static)) -> String {
    chain(error).last().unwrap_or(error).to_string()
}
