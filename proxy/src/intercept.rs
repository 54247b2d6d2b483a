//! Opening up a client's TLS connection with a leaf certificate for the name that it asked for.
//!
//! There is a leaf only for a server that has proven who it is: see [`crate::genuine`]. What our CA may not sign (its name
//! constraints) stays a tunnel: the client gets the server's own certificate and works, where a refusal would break it for
//! the sake of a cache.
//!
//! What a client says in its ClientHello, and what comes of it: no name, or an address: the host that it connected to. Another
//! name than that: a leaf for the name, if its server proves itself, too, and our refusal inside. A name with a final dot, with
//! an underscore: as it is. `host:port`, or what else is no name: the TLS library ends the handshake (`illegal_parameter`),
//! and the log says so.

use crate::genuine::Standing;
use crate::labels::Handshake;
use crate::listen;
use crate::refusal::Refusal;
use crate::sniff::{Protocol, Rewound, Spoke, first_to_speak};
use crate::{Proxy, Settings};
use bytes::Bytes;
use darter_certs::{InvalidLeafName, Leaf, LeafName};
use darter_rules::Host;
use darter_upstream::Link;
use rustls::HandshakeKind;
use rustls::server::Acceptor;
use std::io;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

/// A fatal alert, "access_denied" (RFC 8446 section 6.2), as a record: what a client is told for whose name there is no leaf.
const NO_LEAF: &[u8] = &[0x15, 3, 3, 0, 2, 2, 49];

/// A client's TLS connection that we ended. Boxed, because each future through which it passes has room for it, and a session is
/// 1.3 KB.
pub(crate) type Opened<C> = Box<TlsStream<C>>;

/// Waits for the first bytes of either side of a tunnel that is to be opened up.
///
/// # Errors
/// When the client's connection fails, or neither side says anything for long.
pub(crate) async fn sniff(
    client: &mut (impl AsyncRead + Unpin),
    (host, port): (&Host, u16),
    proxy: &Proxy,
    settings: &Settings,
) -> io::Result<Spoke<Link>> {
    let server = server_that_speaks(host, port, proxy);
    let spoke = first_to_speak(client, Protocol::tls_or_other, server);
    tokio::time::timeout(settings.limits.header_timeout, spoke).await?
}

/// Connects to a server, and waits until it says something.
///
/// # Errors
/// When it cannot be reached, or may not.
pub(crate) async fn server_that_speaks(host: &Host, port: u16, proxy: &Proxy) -> io::Result<Link> {
    let mut server = proxy.upstream.dial(&host.to_string(), port).await.map_err(io::Error::other)?;
    server.readable().await?;
    Ok(server)
}

/// Whether the TLS of a connection to this host is opened up: the rules say so, our CA may sign for it, and its server has
/// proven who it is. Otherwise it is a tunnel.
///
/// # Errors
/// When its server fails to prove it, or cannot be asked: the client had better know.
pub(crate) async fn opens(
    (host, port): (&Host, u16),
    proxy: &Proxy,
    settings: &Settings,
) -> Result<bool, Refusal> {
    let Some(leaves) = &settings.leaves else { return Ok(false) };
    if settings.rules.intercept.entry_for(host, port).is_none() {
        return Ok(false);
    }
    match host.to_string().parse::<LeafName>() {
        Ok(name) if leaves.can_sign(&name) => {}
        _ => {
            tracing::debug!(%host, "stays a tunnel: our CA may not sign for it");
            return Ok(false);
        }
    }
    match standing(host, port, proxy).await {
        Standing::Genuine => Ok(true),
        Standing::OtherProtocol => Ok(false),
        Standing::Refused(error) => Err(error.into()),
    }
}

async fn standing(host: &Host, port: u16, proxy: &Proxy) -> Standing {
    let name = host.to_string();
    proxy.genuine.standing(host, port, proxy.upstream.probe(&name, port)).await
}

/// Does the handshake with a client that believes to speak to `host` and has already said `hello`. The leaf is for the
/// name in its ClientHello, or for `host` where there is none; so a client that asked for another name than it connected
/// to sees our refusal of its request instead of a failed handshake.
///
/// # Errors
/// When the client does not trust the leaf, speaks no TLS that we do, or is too slow: what went wrong, in words.
pub(crate) async fn handshake<C: AsyncRead + AsyncWrite + Unpin>(
    (hello, client): (Bytes, C),
    (host, port): (&Host, u16),
    proxy: &Proxy,
    settings: &Settings,
) -> Result<Opened<Rewound<C>>, String> {
    let after = settings.limits.handshake_timeout;
    let accepted = accept(Rewound::new(hello, client), (host, port), proxy, settings);
    let result = match tokio::time::timeout(after, accepted).await {
        Ok(result) => result,
        Err(_) => Err(format!("it did not finish the TLS handshake within {after:?}")),
    };
    result.map_err(|problem| {
        proxy.metrics.handshake_failures.inc();
        format!("the client's TLS connection for {host} cannot be opened up: {problem}")
    })
}

async fn accept<C: AsyncRead + AsyncWrite + Unpin>(
    client: Rewound<C>,
    (host, port): (&Host, u16),
    proxy: &Proxy,
    settings: &Settings,
) -> Result<Opened<Rewound<C>>, String> {
    let of_client = |error: io::Error| darter_certs::describe_downstream(&error);
    let start = LazyConfigAcceptor::new(Acceptor::default(), client).await.map_err(of_client)?;
    let name = start.client_hello().server_name().map(str::to_owned);
    let leaf = match leaf(name.as_deref(), (host, port), proxy, settings).await {
        Ok(leaf) => leaf,
        Err(problem) => {
            listen::say_and_close(start.io, NO_LEAF).await;
            return Err(problem);
        }
    };
    if leaf.minted {
        proxy.metrics.leaf_mints.inc();
    }
    let opened = Box::new(start.into_stream(leaf.config).await.map_err(of_client)?);
    let kind = match opened.get_ref().1.handshake_kind() {
        Some(HandshakeKind::Resumed) => Handshake::Resumed,
        _ => Handshake::Full,
    };
    proxy.metrics.handshake(kind);
    Ok(opened)
}

/// The leaf for the name that a client asks for, or for the host that it connected to, which has proven itself.
async fn leaf(
    asked: Option<&str>,
    (host, port): (&Host, u16),
    proxy: &Proxy,
    settings: &Settings,
) -> Result<Leaf, String> {
    let leaves = settings.leaves.as_ref().ok_or("there is no CA")?;
    let connected = || host.to_string();
    let name: LeafName = asked
        .map_or_else(connected, str::to_owned)
        .parse()
        .map_err(|invalid: InvalidLeafName| invalid.to_string())?;
    let asked = name.to_string().parse::<Host>().map_err(|invalid| invalid.to_string())?;
    if asked != *host {
        match standing(&asked, port, proxy).await {
            Standing::Genuine => {}
            Standing::OtherProtocol => return Err(format!("it asks for {asked}, which speaks no TLS there")),
            Standing::Refused(error) => return Err(format!("it asks for {asked}: {error}")),
        }
    }
    leaves.leaf_for(&name).await.map_err(|error| error.to_string())
}
