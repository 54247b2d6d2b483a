//! [`run`]: a way in, and [`identify`]: who comes by it, and where they believe to have come.

use crate::Proxy;
use crate::access;
use crate::labels::Misplaced;
use crate::pipeline::{self, Downstream};
use crate::redirected::Meant;
use crate::refusal::Refusal;
use crate::request::Side;
use crate::request_id::RequestId;
use crate::scope::{Scope, Shutdown};
use crate::slots;
use crate::sniff::Rewound;
use crate::socket::{Prompt, Socket};
use crate::sockets::Listening;
use crate::visitors::Visit;
use bytes::Bytes;
use darter_listen::proxy_protocol::{self, Ends, Header};
use darter_upstream::Counted;
use ipnet::IpNet;
use prometheus_client::metrics::gauge::Gauge;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A way in.
pub struct Listener {
    /// Where.
    pub socket: TcpListener,
    /// For whom.
    pub mode: Mode,
}

/// What comes by a listener.
#[derive(Debug, Clone, Default)]
pub struct Mode {
    /// What clients take it for.
    pub entrance: Entrance,
    /// Load balancers, which begin every connection with the PROXY protocol and say there who the client is. Nobody else
    /// may: from other addresses such a header is what it looks like, a malformed request.
    pub balancers: Vec<IpNet>,
}

/// What clients take a listener for.
#[derive(Debug, Clone)]
pub enum Entrance {
    /// A proxy, or a registry.
    Proxy {
        /// How TLS is spoken on it: this one of [`Settings::port_tls`](crate::Settings::port_tls); `None`: plain HTTP.
        tls: Option<usize>,
    },
    /// Any host, over TLS: the ClientHello says which.
    Sni {
        /// The port at that host. `None`: the one that the client connected to, as far as it is known: as the load balancer
        /// says, before the packet filter changed it, or the listener's own.
        port: Option<u16>,
    },
    /// The host that the client connected to, before the packet filter turned the connection to us.
    Transparent,
}

impl Default for Entrance {
    fn default() -> Self {
        Self::Proxy { tls: None }
    }
}

impl From<TcpListener> for Listener {
    /// A plain proxy port.
    fn from(socket: TcpListener) -> Self {
        Self { socket, mode: Mode::default() }
    }
}

/// As much as is read of what a refused client has to say, in bytes.
const MAX_UNREAD: u64 = 64 << 10;

/// How long a client that is refused may take to hear it.
pub(crate) const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves clients on `listener`. When `shutdown` says that it drains, it takes no more of them, closes idle connections, and
/// returns when the last request has its answer and the last tunnel is closed. How long that may take is the caller's to
/// say, by cutting it short: then it returns when all that was under way is written down.
///
/// # Cancel safety
/// Dropping it is the end of all its connections, too, but nobody waits for their lines.
pub async fn run(listener: impl Into<Listener>, proxy: Arc<Proxy>, shutdown: impl Into<Shutdown>) {
    let Listener { socket, mode } = listener.into();
    let mode = Arc::new(mode);
    let _listening = socket.local_addr().ok().map(Listening::on);
    let (scope, _cut_when_dropped) = Scope::new(shutdown.into());
    tokio::select! {
        () = accept_all(&socket, &mode, &proxy, &scope) => {}
        () = scope.draining() => {}
    }
    drop(socket);
    scope.finished().await;
}

/// Runs until it is dropped. When as many clients as there may be are connected, others wait in the backlog.
async fn accept_all(socket: &TcpListener, mode: &Arc<Mode>, proxy: &Arc<Proxy>, scope: &Scope) {
    loop {
        let place = proxy.connection_slots.take().await;
        let (stream, peer) = darter_listen::accept(socket).await;
        let downstream = Downstream {
            proxy: proxy.clone(),
            // A listener on :: shows IPv4 clients in IPv6 addresses.
            peer: SocketAddr::new(peer.ip().to_canonical(), peer.port()),
            side: Side::Port,
            secure: false,
            scope: scope.clone(),
            slot: Arc::new(Slot::new(place, &proxy.metrics.connections)),
        };
        scope.spawn(pipeline::connection(stream, mode.clone(), downstream));
    }
}

/// Learns who made a connection, and where its client believes to have made it to. `None`: it is refused.
pub(crate) async fn identify(
    stream: TcpStream,
    mode: &Mode,
    downstream: &mut Downstream,
) -> Option<(Rewound<Socket>, Meant)> {
    let own_port = stream.local_addr().ok()?.port();
    let turned = match mode.entrance {
        Entrance::Proxy { .. } => None,
        // Gone already, if this fails.
        Entrance::Sni { .. } | Entrance::Transparent => darter_listen::original_destination(&stream).ok()?,
    };
    let socket = Socket::new(stream, downstream.slot.prompt.clone());
    let mut client = Rewound::new(Bytes::new(), socket);
    let told = introduction(&mut client, mode, downstream).await?;
    if let Some(ends) = told {
        downstream.peer = ends.client;
    }
    // Whom the client called is known to who took its call.
    let destination = told.map(|ends| ends.destination).or(turned);
    let meant = match mode.entrance {
        Entrance::Proxy { .. } => Meant::Us,
        Entrance::Sni { port } => Meant::Port(port.or(destination.map(|it| it.port())).unwrap_or(own_port)),
        Entrance::Transparent => destination.map_or(Meant::Us, Meant::Address),
    };
    Some((client, meant))
}

/// What the load balancer says about the client; the outer `None`: nothing that can be understood, so that nothing else on
/// the connection can be, either.
async fn introduction(
    client: &mut Rewound<Socket>,
    mode: &Mode,
    downstream: &Downstream,
) -> Option<Option<Ends>> {
    let from = downstream.peer.ip();
    if !mode.balancers.iter().any(|net| net.contains(&from)) {
        return Some(None);
    }
    let after = downstream.proxy.settings().limits.handshake_timeout;
    let problem = match tokio::time::timeout(after, proxy_protocol::read(client)).await {
        Ok(Ok((Header { ends, .. }, behind))) => {
            client.unread(behind);
            return Some(ends.map(canonical));
        }
        // It looked whether somebody listens: load balancers do that.
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => return None,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("there is no PROXY protocol header within {after:?}"),
    };
    access::no_request(&RequestId::new(), downstream, Misplaced::NoProxyHeader, &problem);
    tracing::warn!(client = %downstream.peer, "refused a connection from an address in proxyProtocol.from: {problem}");
    None
}

fn canonical(ends: Ends) -> Ends {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    Ends { client: canonical(ends.client), destination: canonical(ends.destination) }
}

// === refusals before there is a request ===

/// Tells a client that it has to speak plain HTTP here, in plain HTTP: a TLS client that finds it where it expects a
/// ServerHello says so in words that people understand ("server gave HTTP response to HTTPS client"), or shows it.
pub(crate) async fn refuse_tls(client: impl AsyncRead + AsyncWrite + Unpin, downstream: Downstream) {
    tracing::warn!(
        client = %downstream.peer,
        "a client spoke TLS to the proxy port, which speaks plain HTTP; its proxy URL must begin with http://"
    );
    let sentence = "this proxy port speaks plain HTTP: the proxy's URL must begin with http://...";
    refuse(client, &downstream, Misplaced::Tls, sentence).await;
}

/// Tells a client that it has to speak TLS here.
pub(crate) async fn refuse_plain(client: impl AsyncRead + AsyncWrite + Unpin, downstream: Downstream) {
    tracing::warn!(
        client = %downstream.peer,
        "a client spoke plain HTTP to a port that speaks TLS (proxy.security); its proxy URL must begin with https://"
    );
    let sentence = "this proxy port speaks TLS: the proxy's URL must begin with https://...";
    refuse(client, &downstream, Misplaced::Plain, sentence).await;
}

/// Answers whatever the client says with a sentence for people, and writes the line.
pub(crate) async fn refuse(
    client: impl AsyncRead + AsyncWrite + Unpin,
    downstream: &Downstream,
    reason: Misplaced,
    sentence: &str,
) {
    let id = RequestId::new();
    access::no_request(&id, downstream, reason, sentence);
    say_and_close(client, &Refusal::malformed(sentence).as_http1(&id)).await;
}

/// Writes some last words, and closes the connection so that they are not lost on their way.
pub(crate) async fn say_and_close(mut client: impl AsyncRead + AsyncWrite + Unpin, words: &[u8]) {
    // The client is refused whether or not it hears why.
    let told = async {
        client.write_all(words).await?;
        client.shutdown().await?;
        // Closed with unread bytes, the connection would be reset and the answer lost.
        tokio::io::copy(&mut (&mut client).take(MAX_UNREAD), &mut tokio::io::sink()).await
    };
    let _ = tokio::time::timeout(REFUSAL_TIMEOUT, told).await;
}

/// One client's place among those that may be connected. A tunnel keeps it after its connection's HTTP has ended.
pub(crate) struct Slot {
    _place: slots::Slot,
    _connection: Counted,
    /// Its place among the connections of its client, once that is known.
    visit: OnceLock<Visit>,
    /// Of its socket.
    pub(crate) prompt: Prompt,
}

impl Slot {
    fn new(place: slots::Slot, connections: &Gauge) -> Self {
        Self {
            _place: place,
            _connection: Counted::one_of(connections),
            visit: OnceLock::new(),
            prompt: Prompt::default(),
        }
    }

    /// Counts for its client, too.
    pub(crate) fn belongs_to(&self, visit: Visit) {
        // It is said once, by who has accepted the connection.
        let _ = self.visit.set(visit);
    }
}
