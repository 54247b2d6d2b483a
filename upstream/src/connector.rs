//! The connector under the pool: takes the route, and speaks TLS where the scheme asks for it.

use crate::client::Ways;
use crate::error::{Kind, UpstreamError};
use crate::link::{Hop, Link, Reached};
use crate::metrics::{Protocol, Purpose};
use crate::route::{HttpVersion, Route};
use crate::tls::Polled;
use crate::uses::Open;
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

const H2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// What a server says before it is asked anything comes in fewer reads than this.
const MOST_READS: usize = 16;

/// Makes connections for [`hyper_util::client::legacy::Client`].
#[derive(Clone)]
pub(crate) struct Connector {
    pub(crate) ways: Arc<Ways>,
    /// Speak HTTP/1.1, whatever else could be: only there can a connection be switched to another protocol.
    pub(crate) only_http1: bool,
}

impl tower_service::Service<Uri> for Connector {
    type Response = Stream;
    type Error = UpstreamError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, UpstreamError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), UpstreamError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Self { ways, only_http1 } = self.clone();
        Box::pin(async move {
            let target = Target::of(&uri)?;
            if !only_http1 && let Some(stream) = ways.ready.take(&target) {
                return Ok(stream);
            }
            let route = ways.route(&target, only_http1);
            let dialled = ways.metrics.dial(Purpose::Requests, connect(&target, &route, &ways)).await;
            dialled.map_err(|kind| target.error(kind))
        })
    }
}

/// A connection on which requests for `target` can be sent.
pub(crate) async fn connect(target: &Target, route: &Route, ways: &Ways) -> Result<Stream, Kind> {
    let mut stream = made(target, route, ways).await?;
    let protocol = if stream.h2 { Protocol::Http2 } else { Protocol::Http1 };
    stream.link_mut().counted(Open::new(protocol, &ways.metrics));
    Ok(stream)
}

async fn made(target: &Target, route: &Route, ways: &Ways) -> Result<Stream, Kind> {
    if let Some(parent) = route.forwarder(target.tls) {
        judge(target, ways)?;
        let hop = parent.connect(&ways.dialer).await?;
        let link = parent.link(hop, Default::default());
        return Ok(Stream::plain(link, false, true));
    }
    let link = reach(target, route, ways).await?;
    let h2 = route.http == HttpVersion::Http2;
    if !target.tls {
        return Ok(Stream::plain(link, h2, false));
    }
    let alpn: &[&[u8]] = match route.http {
        HttpVersion::Auto => &[H2, HTTP1],
        HttpVersion::Http1 => &[HTTP1],
        HttpVersion::Http2 => &[H2],
    };
    let tls = ways.dialer.tls(link, &target.host, &route.tls, alpn).await?;
    let stream = Stream::tls(tls);
    if h2 && !stream.h2 {
        let reason = "it does not speak HTTP/2 there (ALPN), which is configured for it".to_owned();
        return Err(Kind::Tls { reason });
    }
    Ok(stream)
}

/// A connection to `target` itself, straight or by a tunnel through a parent.
pub(crate) async fn reach(target: &Target, route: &Route, ways: &Ways) -> Result<Link, Kind> {
    if let Some(parent) = &route.parent {
        judge(target, ways)?;
        return parent.tunnel(&target.host, target.port, &ways.dialer).await;
    }
    let tcp = ways.dialer.origin(&target.host, target.port, &route.lookup).await?;
    Ok(Link::new(Hop::Left(tcp), Default::default(), None))
}

/// Judges a destination that a parent connects to, by what is known of it here.
fn judge(target: &Target, ways: &Ways) -> Result<(), Kind> {
    let address = target.host.parse::<IpAddr>().ok();
    (ways.dialer.permit)(&target.host, target.port, address).map_err(|reason| Kind::NotPermitted { reason })
}

// === Target ===

/// Where a URL points.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    /// A name in lower case, or an IP literal without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls: bool,
}

impl Target {
    /// # Errors
    /// When the URL is not http or https, or has no host.
    pub(crate) fn of(uri: &Uri) -> Result<Self, UpstreamError> {
        let (tls, default_port) = match uri.scheme_str() {
            Some("http") => (false, 80),
            Some("https") => (true, 443),
            _ => return Err(invalid(uri, "only http and https are spoken")),
        };
        let port = uri.port_u16().unwrap_or(default_port);
        let target = Self::new(uri.host().unwrap_or_default(), port, tls);
        if target.host.is_empty() {
            return Err(invalid(uri, "it has no host"));
        }
        Ok(target)
    }

    /// What speaks `tls` at this host, a name or an IP literal with or without brackets.
    pub(crate) fn new(host: &str, port: u16, tls: bool) -> Self {
        Self { host: bare(host).to_ascii_lowercase(), port, tls }
    }

    pub(crate) fn error(&self, kind: Kind) -> UpstreamError {
        UpstreamError { host: self.host.clone(), port: self.port, kind }
    }
}

fn invalid(uri: &Uri, reason: &'static str) -> UpstreamError {
    UpstreamError {
        host: uri.host().unwrap_or_default().to_owned(),
        port: uri.port_u16().unwrap_or_default(),
        kind: Kind::InvalidUrl { reason },
    }
}

/// A host without the brackets that stand around an IPv6 address in a URL.
pub(crate) fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

// === Stream ===

/// A connection to an origin, on which HTTP is spoken.
pub(crate) struct Stream {
    /// Without TLS, or with it.
    io: TokioIo<Either<Link, Box<TlsStream<Link>>>>,
    h2: bool,
    /// Its other end is a parent proxy, to which requests are sent in absolute form.
    forwarded: bool,
}

impl Stream {
    /// Without TLS. `h2` with prior knowledge.
    fn plain(link: Link, h2: bool, forwarded: bool) -> Self {
        Self { io: TokioIo::new(Either::Left(link)), h2, forwarded }
    }

    fn tls(tls: TlsStream<Link>) -> Self {
        let h2 = tls.get_ref().1.alpn_protocol() == Some(H2);
        Self { io: TokioIo::new(Either::Right(Box::new(tls))), h2, forwarded: false }
    }

    fn link(&self) -> &Link {
        match self.io.inner() {
            Either::Left(link) => link,
            Either::Right(tls) => tls.get_ref().0,
        }
    }

    fn link_mut(&mut self) -> &mut Link {
        match self.io.inner_mut() {
            Either::Left(link) => link,
            Either::Right(tls) => tls.get_mut().0,
        }
    }

    /// Whether the other side has not closed it. Whatever it has sent in between is kept for whoever reads: a TLS server
    /// speaks before it is asked, with tickets and with HTTP/2's settings.
    pub(crate) fn is_open(&mut self) -> bool {
        let Either::Right(tls) = self.io.inner_mut() else { return true };
        let (link, session) = tls.get_mut();
        for _ in 0..MOST_READS {
            let mut cx = Context::from_waker(Waker::noop());
            match session.read_tls(&mut Polled { io: link, cx: &mut cx }) {
                Ok(0) => return false,
                Ok(_) => match session.process_new_packets() {
                    Ok(state) if !state.peer_has_closed() => {}
                    _ => return false,
                },
                // Nothing more, or no more room for it.
                Err(error) => {
                    return matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Other);
                }
            }
        }
        // Whoever says so much unasked is no HTTP server.
        false
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        let reached: Reached = self.link().reached().clone();
        let mut connected = Connected::new().extra(reached).proxy(self.forwarded);
        if let Some(connection) = self.link().connection() {
            connected = connected.extra(connection.clone());
        }
        if self.h2 { connected.negotiated_h2() } else { connected }
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
}
