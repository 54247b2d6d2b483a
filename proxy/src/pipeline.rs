//! A request's way through the proxy, step by step:
//!
//! ```text
//! listen     accept a connection, learn who made it and where to        listen, darter-listen
//! sniff      its first bytes: HTTP/1.1, HTTP/2, or TLS                   sniff, port_tls
//! serve      HTTP/1.1 or HTTP/2                                          serve
//! admit      is the client allowed, is the request unambiguous           admit, request, auth
//! decide     rules: refuse, tunnel, direct, p2p, or a name of our own    darter-rules
//! lend       credentials of the operator's, to clients without any       accounts
//! route      own, tunnel, direct, p2p                                    own, tunnel, direct, p2p
//! entitle    p2p: may this caller have what the cluster holds            entitle, darter-entitle
//! body       bytes leave as they arrive
//! log        one line and one set of counts                              access, metrics
//! ```
//!
//! A tunnel to an intercepted host sniffs the client's first bytes, intercepts its TLS, and serves what is inside: the
//! same way again, on another side. What comes to a listener for SNI, or was turned to us by the packet filter, has no
//! CONNECT: `redirected` finds out whom it is for, and then goes the same way.

use crate::access::{Pending, Record};
use crate::accounts::Lent;
use crate::admit::{self, Verdict};
use crate::connected::Connected;
use crate::direct;
use crate::headers;
use crate::intercept;
use crate::labels::{Outcome, Way};
use crate::listen::{self, Entrance, Mode, Slot};
use crate::p2p::{self, Peers};
use crate::port_tls;
use crate::redirected;
use crate::refusal::{Refusal, Shape};
use crate::request::{self, Asked, Side};
use crate::scope::Scope;
use crate::serve::{self, serve};
use crate::sniff::{self, Protocol, Rewound, Speaks, Spoke};
use crate::socket::Socket;
use crate::sockets;
use crate::status_headers::Kind;
use crate::tunnel::{self, Tunnel};
use crate::via::Came;
use crate::{Accounts, Body, Proxy, Settings};
use bytes::Bytes;
use darter_rules::{Decision, Host, Request as Seen};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tracing::Instrument as _;

/// A client's connection, or one that was opened up inside it.
#[derive(Clone)]
pub(crate) struct Downstream {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) peer: SocketAddr,
    pub(crate) side: Side,
    /// Whether it speaks TLS to the proxy port.
    pub(crate) secure: bool,
    pub(crate) scope: Scope,
    /// Held by whatever is left of the connection.
    pub(crate) slot: Arc<Slot>,
}

/// What is left to do on a connection; `None`: nothing. It is handed back by what came to it, and not awaited there, so that a
/// connection that rests has no room any more for how it was opened: see [`rest`](crate::rest).
pub(crate) type Next = Option<BoxFuture<'static, ()>>;

/// What a request gets.
pub(crate) enum Answer {
    /// A response, its outcome, and a word on why, if it is worth one.
    Body(Response<Body>, Outcome, Option<String>),
    /// A 200 or a 101, after which the connection is a tunnel.
    Tunnel(Response<Body>, Tunnel),
    /// A 200, after which the connection is opened up.
    Intercept { host: Host, port: u16, client: OnUpgrade },
}

/// listen > admit > sniff > serve: any connection.
pub(crate) async fn connection(stream: TcpStream, mode: Arc<Mode>, mut downstream: Downstream) {
    let scope = downstream.scope.clone();
    // Until something has been asked, nothing is owed.
    let identified = listen::identify(stream, &mode, &mut downstream).boxed();
    let Some(Some((client, meant))) = scope.unless_draining(identified).await else { return };
    let verdict = admit::connection(&downstream);
    let slot = downstream.slot.clone();
    let served = match (&mode.entrance, meant) {
        (Entrance::Proxy { tls }, _) => port(client, *tls, downstream).boxed(),
        (Entrance::Sni { .. } | Entrance::Transparent, meant) => {
            redirected::connection(client, meant, downstream).boxed()
        }
    };
    let served = to_its_end(served);
    match verdict {
        Verdict::Welcome(visit) => {
            visit.into_iter().for_each(|visit| slot.belongs_to(visit));
            drop(slot);
            served.await;
        }
        // Whatever it asks is refused there. It holds a place of those who are served no longer than that takes.
        Verdict::Stranger => drop(tokio::time::timeout(listen::REFUSAL_TIMEOUT, served).await),
        Verdict::TooMany => {}
    }
}

/// What begins a connection, and what is left to do on it then.
async fn to_its_end(beginning: BoxFuture<'static, Next>) {
    if let Some(next) = beginning.await {
        next.await;
    }
}

/// sniff > serve: a connection to the proxy port. What follows the sniffing is boxed: a client that says nothing is not to
/// keep room for all that it might say (29 KB each, measured with 5,000 of them).
async fn port(mut client: Rewound<Socket>, tls: Option<usize>, downstream: Downstream) -> Next {
    let patience = downstream.proxy.settings().limits.header_timeout;
    let sniffed = tokio::time::timeout(patience, sniff::speaks(&mut client));
    let (speaks, prefix) = match downstream.scope.unless_draining(sniffed).await? {
        Ok(sniffed) => sniffed.ok()?,
        Err(_) => {
            let peer = downstream.peer;
            tracing::debug!(%peer, "a client's connection was closed: it began no request in time");
            return None;
        }
    };
    client.unread(prefix);
    Some(match (speaks, tls) {
        (Speaks::Nothing, _) => return None,
        (Speaks::Tls, None) => listen::refuse_tls(client, downstream).boxed(),
        (Speaks::Tls, Some(tls)) => {
            let handshake = port_tls::handshake(tls, client, &downstream).boxed();
            let client = downstream.scope.unless_draining(handshake).await??;
            let version = serve::Version::agreed(client.get_ref().1.alpn_protocol());
            let downstream = Downstream { secure: true, ..downstream };
            serve(client, version, downstream)
        }
        (_, Some(_)) => listen::refuse_plain(client, downstream).boxed(),
        (Speaks::Http1, None) => serve(client, serve::Version::Http1, downstream),
        (Speaks::Http2, None) => serve(client, serve::Version::Http2, downstream),
    })
}

/// admit > decide > route > body > log: a request on either side.
pub(crate) async fn request(mut request: Request<Incoming>, downstream: Downstream) -> Response<Body> {
    headers::hide_credentials(request.headers_mut());
    let shape = Shape::for_request(&request);
    let record = Record::begin(&request, &downstream);
    request.extensions_mut().insert(Arc::clone(record.trail()));
    let span = record.span();
    let mut record = Pending::new(record);
    let last = request::is_last(&request, &downstream.side);
    let answer = walk(request, &downstream, &mut record).instrument(span).await;
    let scope = downstream.scope.clone();
    let mut response = record.finish(|record| match answer {
        Ok(Answer::Body(response, outcome, note)) => record.answered(response, outcome, note),
        Ok(Answer::Tunnel(mut granted, tunnel)) => {
            record.id().say(granted.headers_mut());
            scope.spawn(tunnel.run(Connected::granted(record, granted.status()), downstream.slot));
            granted
        }
        Ok(Answer::Intercept { host, port, client }) => {
            let mut granted = Response::new(crate::full(""));
            record.id().say(granted.headers_mut());
            let record = Connected::granted(record, granted.status());
            scope.spawn(to_its_end(intercepted(client, host, port, downstream, record)));
            granted
        }
        Err(refusal) => {
            let outcome = if refusal.is_failure() { Outcome::Failed } else { Outcome::Refused };
            let (note, cache) = (refusal.to_string(), record.cache_status(refusal.is_failure()));
            let mut response = refusal.into_response(shape);
            response.headers_mut().insert(p2p::CACHE_STATUS, HeaderValue::from_static(cache));
            record.answered(response, outcome, Some(note))
        }
    });
    if last {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn walk(
    mut request: Request<Incoming>,
    downstream: &Downstream,
    record: &mut Pending,
) -> Result<Answer, Refusal> {
    let proxy = &*downstream.proxy;
    let settings = proxy.settings();
    admit::asking(downstream, &settings)?;
    let mut asked = Asked::by(&request, &downstream.side)?;
    if asked == Asked::Forward && sockets::names_own(request.uri()).await {
        asked = request::by_whole_url(&mut request, &downstream.side)?;
    }
    if let Asked::Own(own) = asked {
        let response = own.answer(&request, downstream.secure, &settings)?;
        return Ok(Answer::Body(response, Outcome::Own, None));
    }
    proxy.pseudonym.check(request.headers())?;
    admit::password(request.headers(), &downstream.side, &settings)?;
    admit::push(&request, &settings)?;
    let secure = matches!(downstream.side, Side::Inside { .. });
    let version = request.version();
    let plain = !secure && !downstream.secure && version < Version::HTTP_2;
    let came = Came { from: downstream.peer, version, secure, plain };
    request.extensions_mut().insert(came);
    let way = match (&asked, &downstream.side) {
        (Asked::Tunnel { host, port }, _) => {
            // Boxed, as all is that few requests need: each has room for what is not (35 KB of it, measured with all).
            return connect((host, *port), &mut request, downstream, &settings).boxed().await;
        }
        (Asked::Inside, Side::Inside { host, port }) => darter_rules::Way::Intercepted { host, port: *port },
        (Asked::Mirror, _) => darter_rules::Way::Mirror,
        _ => darter_rules::Way::Forward,
    };
    let recorded = match &asked {
        Asked::Redirected { host, port } => {
            *request.uri_mut() = redirected::absolute(request.uri(), host, *port)?;
            Way::Transparent
        }
        _ => Way::of(way),
    };
    let seen = Seen { method: request.method(), way, uri: request.uri(), headers: request.headers() };
    let decision = settings.rules.decide(&seen);
    record.note(|record| record.goes_to(recorded, &decision));
    let kind = Kind::of(request.uri().path()).filter(|_| settings.marks.docker_registry_proxy);
    let mut answer = lend_and_route(decision, request, proxy, &settings.accounts).await;
    if let (Some(kind), Ok(Answer::Body(response, outcome, _))) = (kind, &mut answer) {
        kind.say(response, *outcome);
    }
    if let (Err(refusal), Side::Inside { host, port }) = (&answer, &downstream.side)
        && refusal.is_distrust()
    {
        proxy.genuine.forget(host, *port).await;
    }
    answer
}

/// lend > route.
async fn lend_and_route(
    decision: Decision,
    mut request: Request<Incoming>,
    proxy: &Proxy,
    accounts: &Accounts,
) -> Result<Answer, Refusal> {
    let (Decision::Direct { target, .. } | Decision::Peers { target, .. }) = &decision else {
        return route(decision, request, proxy).await;
    };
    let method = request.method().clone();
    let lent = accounts.lend(proxy.judges(), target, &method, request.headers_mut()).await?;
    if lent == Lent::Nothing {
        return route(decision, request, proxy).await;
    }
    let target = target.clone();
    if let Some(lender) = accounts.lender(&target, lent) {
        request.extensions_mut().insert(lender);
    }
    let answer = route(decision, request, proxy).await;
    if let Ok(Answer::Body(response, ..)) = &answer
        && response.status() == StatusCode::UNAUTHORIZED
    {
        accounts.refused(&target, lent).await;
    }
    answer
}

/// route: what was decided.
async fn route(decision: Decision, request: Request<Incoming>, proxy: &Proxy) -> Result<Answer, Refusal> {
    match decision {
        Decision::Refuse(refusal) => Err(refusal.into()),
        Decision::Direct { target, .. } if proxy.gate.realms.is_named(&target) => {
            proxy.gate.realms.answer(proxy, &target, request).boxed().await
        }
        Decision::Direct { target, .. } => direct::answer(proxy, &target, request, Outcome::Direct).await,
        Decision::Peers { target, identity, digest, settled, .. } => {
            p2p::answer(
                proxy,
                Peers { target, identity, digest, task: None, settled, by_rule: true },
                request,
            )
            .await
        }
    }
}

/// decide > route, for a CONNECT.
async fn connect(
    (host, port): (&Host, u16),
    request: &mut Request<Incoming>,
    downstream: &Downstream,
    settings: &Settings,
) -> Result<Answer, Refusal> {
    settings.rules.destinations.check_name(&host.to_string(), port)?;
    let client = hyper::upgrade::on(request);
    if intercept::opens((host, port), &downstream.proxy, settings).await? {
        return Ok(Answer::Intercept { host: host.clone(), port, client });
    }
    let tunnel = Tunnel::open(downstream, host, port, client).await?;
    Ok(Answer::Tunnel(Response::new(crate::full("")), tunnel))
}

/// sniff > intercept > serve: the tunnel to a host whose TLS is opened up. What is not TLS in it stays a tunnel, and so
/// does a protocol in which the server speaks first. Boxed, because what is served inside comes back to [`request`].
fn intercepted(
    client: OnUpgrade,
    host: Host,
    port: u16,
    downstream: Downstream,
    record: Connected,
) -> BoxFuture<'static, Next> {
    Box::pin(async move {
        let proxy = downstream.proxy.clone();
        let settings = proxy.settings();
        let mut client = match client.await {
            Ok(client) => TokioIo::new(client),
            Err(error) => {
                record.end(Outcome::Failed, None, Some(error.to_string()));
                return None;
            }
        };
        let spoke = tokio::select! {
            spoke = intercept::sniff(&mut client, (&host, port), &proxy, &settings).boxed() => spoke,
            () = downstream.scope.draining() => Ok(Spoke::Nobody),
        };
        match spoke {
            Ok(Spoke::Client(Protocol::Tls, hello)) => {
                return open_up((hello, client), (host, port), downstream, &settings, record).boxed().await;
            }
            Ok(Spoke::Client(_, prefix)) => {
                tunnel::connect_late(Rewound::new(prefix, client), &host, port, &proxy, record).boxed().await;
            }
            Ok(Spoke::Server(upstream)) => {
                tunnel::carry_link(client, upstream, &proxy, record).boxed().await;
            }
            Ok(Spoke::Nobody) => record.end(Outcome::Tunnel, None, None),
            Err(error) => record.end(Outcome::Failed, None, Some(error.to_string())),
        }
        None
    })
}

/// intercept > serve: a client that believes to speak to `host` at `port` and has said `hello`.
pub(crate) async fn open_up(
    (hello, client): (Bytes, impl AsyncRead + AsyncWrite + Unpin + Send + 'static),
    (host, port): (Host, u16),
    downstream: Downstream,
    settings: &Settings,
    mut record: Connected,
) -> Next {
    let handshake = intercept::handshake((hello, client), (&host, port), &downstream.proxy, settings).boxed();
    let prompted = downstream.slot.prompt.on();
    let opened = handshake.await;
    drop(prompted);
    match opened {
        Ok(tls) => {
            record.asks_for(tls.get_ref().1.server_name().map(str::to_owned));
            record.end(Outcome::Intercepted, None, None);
            let version = serve::Version::agreed(tls.get_ref().1.alpn_protocol());
            let inside = Downstream { side: Side::Inside { host, port }, ..downstream };
            Some(serve(tls, version, inside))
        }
        Err(problem) => {
            record.end(Outcome::Failed, None, Some(problem));
            None
        }
    }
}
