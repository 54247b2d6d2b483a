//! Connections of clients that know of no proxy: they come by a listener for SNI, or the packet filter turned them to us.
//!
//! Whom such a client wants is what it *says*: the name in its ClientHello, the Host header of each request. The address
//! that it connected to counts only where it says nothing: TLS without a name, HTTP without Host, other protocols. So a name
//! is resolved here, as it is for every other client, and never taken to be at the address that the client chose: otherwise
//! a client could put its own bytes into the cache under somebody else's name, or reach what the white list forbids by
//! calling it by an allowed name.

use crate::access;
use crate::admit;
use crate::connected::Connected;
use crate::intercept;
use crate::labels::{Misplaced, Outcome, Way};
use crate::listen;
use crate::pipeline::{self, Downstream, Next};
use crate::refusal::Refusal;
use crate::request::Side;
use crate::request_id::RequestId;
use crate::serve::{self, serve};
use crate::sniff::{Protocol, Rewound, Spoke, first_to_speak};
use crate::socket::Socket;
use crate::{Settings, tunnel};
use bytes::{Bytes, BytesMut};
use darter_listen::Parsed;
use darter_listen::client_hello::{self, ClientHello};
use darter_rules::Host;
use http::Uri;
use http::uri::{Authority, Scheme};
use std::io;
use std::net::{IpAddr, SocketAddr};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// Where a client believes to have connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meant {
    /// To us.
    Us,
    /// To some host, at this port.
    Port(u16),
    /// To this address.
    Address(SocketAddr),
}

/// Fatal alerts of TLS (RFC 8446 section 6.2), for clients that can be told nothing else.
#[derive(Debug, Clone, Copy)]
enum Alert {
    AccessDenied = 49,
    InternalError = 80,
    UnrecognizedName = 112,
}

/// sniff > intercept > serve, or a blind tunnel.
pub(crate) async fn connection(mut client: Rewound<Socket>, meant: Meant, downstream: Downstream) -> Next {
    let (address, port) = match meant {
        Meant::Address(address) => (Some(address), address.port()),
        Meant::Port(port) => (None, port),
        Meant::Us => {
            not_redirected(client, &downstream).await;
            return None;
        }
    };
    let settings = downstream.proxy.settings();
    let ends = both_ends(client.get_ref().tcp());
    // Known when its first bytes are here, or it is silent for a moment: what we make is remembered before it is used.
    let is_our_own = || ends.is_some_and(|(from, to)| downstream.proxy.upstream.made(from, to));
    let server = async {
        let Some(address) = address else { return std::future::pending().await };
        if is_our_own() {
            return Err(io::Error::other("nobody speaks: it is our own connection"));
        }
        if !settings.clients.allow(downstream.peer.ip()) {
            return std::future::pending().await;
        }
        intercept::server_that_speaks(&address.ip().into(), address.port(), &downstream.proxy).await
    };
    let spoke = first_to_speak(&mut client, Protocol::of, server);
    let spoke = tokio::time::timeout(settings.limits.header_timeout, spoke);
    // A client that says nothing for long, or goes away, is owed nothing.
    let spoke = downstream.scope.unless_draining(spoke).await?.ok()?.ok()?;
    if is_our_own() {
        came_back(client, &authority(meant), &downstream).await;
        return None;
    }
    // HTTP is judged request by request.
    let is_http = matches!(spoke, Spoke::Client(Protocol::Http1 | Protocol::Http2, _)) && address.is_some();
    if !is_http
        && !matches!(spoke, Spoke::Nobody)
        && let Err(refusal) = admit::asking(&downstream, &settings)
    {
        let way = if address.is_some() { Way::Transparent } else { Way::Sni };
        turn_away(client, &refusal, Connected::unasked(authority(meant), way, &downstream)).await;
        return None;
    }
    match (spoke, address) {
        (Spoke::Nobody, _) => {}
        (Spoke::Client(Protocol::Tls, hello), _) => {
            client.unread(hello);
            return tls(client, (address.map(|it| it.ip()), port), downstream, &settings).await;
        }
        (Spoke::Client(protocol @ (Protocol::Http1 | Protocol::Http2), bytes), Some(address)) => {
            client.unread(bytes);
            let version =
                if protocol == Protocol::Http2 { serve::Version::Http2 } else { serve::Version::Http1 };
            let redirected = Downstream { side: Side::Redirected { address }, ..downstream };
            return Some(serve(client, version, redirected));
        }
        (Spoke::Client(Protocol::Other, bytes), Some(address)) => {
            client.unread(bytes);
            blind(client, (&address.ip().into(), port), Way::Transparent, &downstream).await;
        }
        (Spoke::Server(upstream), _) => {
            let record = Connected::unasked(authority(meant), Way::Transparent, &downstream);
            tunnel::carry_link(client, upstream, &downstream.proxy, record).await;
        }
        (Spoke::Client(..), None) => {
            let sentence =
                "this port speaks TLS: the name in its greeting says for which host a connection is";
            tracing::warn!(client = %downstream.peer, "a client did not speak TLS to a port in hijackHTTPS.sni");
            listen::refuse(client, &downstream, Misplaced::Plain, sentence).await;
        }
    }
    None
}

/// sniff > judge > intercept or tunnel: TLS. `address` is the one that the client connected to, where that is known.
async fn tls(
    mut client: Rewound<Socket>,
    (address, port): (Option<IpAddr>, u16),
    downstream: Downstream,
    settings: &Settings,
) -> Next {
    let way = if address.is_some() { Way::Transparent } else { Way::Sni };
    let hello = tokio::time::timeout(settings.limits.handshake_timeout, read_hello(&mut client));
    let hello = downstream.scope.unless_draining(hello).await?;
    let (name, hello) = match (hello, address) {
        (Ok(Ok((ClientHello { server_name }, hello))), _) => (server_name, hello),
        // Whatever it is, its server may know.
        (Ok(Err((io::ErrorKind::InvalidData, read))), Some(address)) => {
            client.unread(read);
            blind(client, (&address.into(), port), way, &downstream).await;
            return None;
        }
        // Gone, too slow, or without any sense.
        _ => return None,
    };
    client.unread(hello);
    let host = match name {
        Some(name) => name.parse::<Host>().ok(),
        None => address.map(Host::from),
    };
    let Some(host) = host else {
        let note = "a client's TLS greeting does not say for which host it is";
        tracing::warn!(client = %downstream.peer, "{note}");
        access::no_request(&RequestId::new(), &downstream, Misplaced::Nameless, note);
        alert(client, Alert::UnrecognizedName).await;
        return None;
    };
    match intercept::opens((&host, port), &downstream.proxy, settings).await {
        Ok(true) => {
            // Where it may not go by name, it is told inside.
            let record = Connected::unasked(in_authority(&host, port), way, &downstream);
            let opened = (Bytes::new(), client);
            return pipeline::open_up(opened, (host, port), downstream, settings, record).await;
        }
        Ok(false) => blind(client, (&host, port), way, &downstream).await,
        Err(refusal) => {
            let record = Connected::unasked(in_authority(&host, port), way, &downstream);
            turn_away(client, &refusal, record).await;
        }
    }
    None
}

/// judge > tunnel: what is not looked into.
async fn blind(client: Rewound<Socket>, (host, port): (&Host, u16), way: Way, downstream: &Downstream) {
    let record = Connected::unasked(in_authority(host, port), way, downstream);
    let destinations = &downstream.proxy.settings().rules.destinations;
    if let Err(refused) = destinations.check_host(host, port) {
        record.end(Outcome::Refused, None, Some(refused.to_string()));
        return alert(client, Alert::AccessDenied).await;
    }
    match downstream.proxy.upstream.dial(&host.to_string(), port).await {
        Ok(upstream) => tunnel::carry_link(client, upstream, &downstream.proxy, record).await,
        Err(error) => turn_away(client, &Refusal::from(&error), record).await,
    }
}

/// Ends a connection of a client that cannot be told why.
async fn turn_away(client: Rewound<Socket>, refusal: &Refusal, record: Connected) {
    let (outcome, last_words) = if refusal.is_failure() {
        (Outcome::Failed, Alert::InternalError)
    } else {
        (Outcome::Refused, Alert::AccessDenied)
    };
    record.end(outcome, None, Some(refusal.to_string()));
    alert(client, last_words).await;
}

/// Reads a ClientHello, and gives it with all that was read. An error comes with what was read, too.
async fn read_hello(client: &mut Rewound<Socket>) -> Result<(ClientHello, Bytes), (io::ErrorKind, Bytes)> {
    let mut read = BytesMut::with_capacity(4096);
    loop {
        match client.read_buf(&mut read).await {
            Ok(0) => return Err((io::ErrorKind::UnexpectedEof, read.freeze())),
            Ok(_) => {}
            Err(error) => return Err((error.kind(), read.freeze())),
        }
        match client_hello::parse(&read) {
            Ok(Parsed::Partial) => {}
            Ok(Parsed::Whole(hello)) => return Ok((hello, read.freeze())),
            Err(_) => return Err((io::ErrorKind::InvalidData, read.freeze())),
        }
    }
}

/// Ends a connection on which TLS was begun, or something that we know nothing of, in the one way that a TLS client can
/// show. For others it is as good as a close.
async fn alert(client: Rewound<Socket>, alert: Alert) {
    // A record with an alert: type, version, length, fatal.
    listen::say_and_close(client, &[0x15, 3, 3, 0, 2, 2, alert as u8]).await;
}

async fn not_redirected(client: Rewound<Socket>, downstream: &Downstream) {
    tracing::warn!(
        client = %downstream.peer,
        "a client connected to the port for redirected connections itself; as a proxy, it has another"
    );
    let sentence =
        "this port takes connections to other hosts that the packet filter turned here; it is no proxy port";
    listen::refuse(client, downstream, Misplaced::NotRedirected, sentence).await;
}

/// Both ends of a connection, as whoever made it sees them.
fn both_ends(stream: &TcpStream) -> Option<(SocketAddr, SocketAddr)> {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let turned = darter_listen::original_destination(stream).ok()?;
    let to = turned.or_else(|| stream.local_addr().ok().map(canonical))?;
    Some((canonical(stream.peer_addr().ok()?), to))
}

/// Ends what would go round for ever.
async fn came_back(client: Rewound<Socket>, to: &str, downstream: &Downstream) {
    let note = format!("our own connection to {to} came back to us");
    access::no_request(&RequestId::new(), downstream, Misplaced::Loop, &note);
    tracing::warn!(
        "our own connection to {to} came back to us: the packet filter must leave out what this process sends (`darter setup \
         transparent`, with --uid where it has no CAP_NET_ADMIN), and a name in hijackHTTPS.sni must not lead here when \
         it is looked up on this host"
    );
    alert(client, Alert::InternalError).await;
}

/// The URL of a request to `host`, whose target is a path.
///
/// # Errors
/// When it makes no URL.
pub(crate) fn absolute(uri: &Uri, host: &Host, port: u16) -> Result<Uri, Refusal> {
    let malformed = || Refusal::malformed("the request's target makes no URL with its Host header");
    let authority = in_authority(host, port).parse::<Authority>().map_err(|_| malformed())?;
    let mut parts = uri.clone().into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(authority);
    Uri::from_parts(parts).map_err(|_| malformed())
}

fn in_authority(host: &Host, port: u16) -> String {
    match host {
        Host::Ip(IpAddr::V6(v6)) => format!("[{v6}]:{port}"),
        host => format!("{host}:{port}"),
    }
}

fn authority(meant: Meant) -> String {
    match meant {
        Meant::Address(address) => address.to_string(),
        Meant::Port(port) => format!(":{port}"),
        Meant::Us => String::new(),
    }
}
