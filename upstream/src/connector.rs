//! The connector under the pool: dials, and speaks TLS where the scheme asks for it.

use crate::config::UpstreamConfig;
use crate::dial::dial;
use crate::error::{Kind, Stage, UpstreamError};
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Makes connections for [`hyper_util::client::legacy::Client`].
#[derive(Clone)]
pub(crate) struct Connector(pub(crate) Arc<UpstreamConfig>);

impl tower_service::Service<Uri> for Connector {
    type Response = Stream;
    type Error = UpstreamError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, UpstreamError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), UpstreamError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let config = self.0.clone();
        Box::pin(async move {
            let target = Target::of(&uri)?;
            connect(&target, &config).await.map_err(|kind| target.error(kind))
        })
    }
}

async fn connect(target: &Target, config: &UpstreamConfig) -> Result<Stream, Kind> {
    let tcp = dial(&target.host, target.port, &config.permit, &config.timeouts).await?;
    if !target.tls {
        return Ok(Stream::Plain(TokioIo::new(tcp)));
    }
    let name = ServerName::try_from(target.host.clone()).map_err(|_| Kind::Tls {
        reason: "no certificate can be for this name: it is no valid host name".to_owned(),
    })?;
    let connector = TlsConnector::from((config.trust)(&target.host, target.port));
    let after = config.timeouts.tls_handshake;
    let stream = tokio::time::timeout(after, connector.connect(name, tcp))
        .await
        .map_err(|_| Kind::Timeout { stage: Stage::TlsHandshake, after })?
        .map_err(|error| Kind::Tls { reason: darter_certs::describe_io(&error) })?;
    Ok(Stream::Tls(Box::new(TokioIo::new(stream))))
}

// === Target ===

/// Where a URL points.
pub(crate) struct Target {
    pub(crate) host: String,
    pub(crate) port: u16,
    tls: bool,
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
        let host = bare(uri.host().unwrap_or_default()).to_ascii_lowercase();
        if host.is_empty() {
            return Err(invalid(uri, "it has no host"));
        }
        Ok(Self { host, port: uri.port_u16().unwrap_or(default_port), tls })
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

/// A connection to an origin.
pub(crate) enum Stream {
    Plain(TokioIo<TcpStream>),
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        let h2 = match self {
            Self::Plain(_) => false,
            Self::Tls(stream) => stream.inner().get_ref().1.alpn_protocol() == Some(b"h2"),
        };
        if h2 { Connected::new().negotiated_h2() } else { Connected::new() }
    }
}

/// `$call` on whichever stream it is.
macro_rules! either {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Self::Plain(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
            Self::Tls(stream) => {
                let $stream = Pin::new(stream.as_mut());
                $call
            }
        }
    };
}

impl Read for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_read(cx, buf))
    }
}

impl Write for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_shutdown(cx))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write_vectored(cx, bufs))
    }
}
