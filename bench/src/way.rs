//! [`Way`]: how clients reach a server.

use anyhow::{Result, anyhow};
use darter_e2e::http::{self, Stream};
use darter_e2e::net::Host;
use rustls::client::Resumption;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

/// The way to an origin: straight, or through a proxy; with or without TLS.
#[derive(Clone)]
pub(crate) struct Way {
    /// Where the clients are. `None`: on this host.
    from: Option<Host>,
    /// Where clients connect.
    pub(crate) server: SocketAddr,
    /// Whose content they ask a proxy for, `host:port`. `None`: the server is no proxy to them.
    pub(crate) origin: Option<String>,
    /// How they verify whom they speak to.
    pub(crate) tls: Option<Arc<ClientConfig>>,
}

/// A TLS session, its handshake not begun.
pub(crate) type Session = StreamOwned<ClientConnection, TcpStream>;

impl Way {
    /// Straight to a server.
    pub(crate) fn to(server: SocketAddr) -> Self {
        Self { from: None, server, origin: None, tls: None }
    }

    /// Through this proxy to an origin.
    pub(crate) fn through(proxy: SocketAddr, origin: impl ToString) -> Self {
        Self { from: None, server: proxy, origin: Some(origin.to_string()), tls: None }
    }

    /// The same with TLS, which is CONNECT first at a proxy.
    pub(crate) fn with_tls(self, tls: Arc<ClientConfig>) -> Self {
        Self { tls: Some(tls), ..self }
    }

    /// The same for clients on another host.
    pub(crate) fn from(self, host: &Host) -> Self {
        Self { from: Some(host.clone()), ..self }
    }

    /// The same for clients that have never been here: every handshake is a full one.
    pub(crate) fn anew(&self) -> Self {
        let tls = self.tls.as_deref().cloned().map(|mut tls| {
            tls.resumption = Resumption::in_memory_sessions(1);
            Arc::new(tls)
        });
        Self { tls, ..self.clone() }
    }

    /// A connection.
    pub(crate) fn connect(&self) -> Result<Box<dyn Stream>> {
        self.over(self.dial()?)
    }

    /// A connection to the server, on which nothing has been said.
    pub(crate) fn dial(&self) -> Result<TcpStream> {
        match &self.from {
            None => Ok(TcpStream::connect(self.server)?),
            Some(host) => host.connect(self.server),
        }
    }

    /// The same over a connection that is there already.
    pub(crate) fn over(&self, stream: TcpStream) -> Result<Box<dyn Stream>> {
        stream.set_nodelay(true)?;
        match self.tls {
            None => Ok(Box::new(stream)),
            Some(_) => Ok(Box::new(self.session(stream)?)),
        }
    }

    /// A TLS session over a connection that is there already.
    pub(crate) fn session(&self, mut stream: TcpStream) -> Result<Session> {
        stream.set_nodelay(true)?;
        let tls = self.tls.clone().ok_or_else(|| anyhow!("no TLS on this way"))?;
        let mut name = self.server.ip().to_string();
        if let Some(origin) = &self.origin {
            stream = http::tunnel(stream, origin)?.map_err(|answer| anyhow!("refused: {}", answer.reason))?;
            name = origin.rsplit_once(':').map_or(origin.as_str(), |(host, _)| host).to_owned();
        }
        Ok(StreamOwned::new(ClientConnection::new(tls, ServerName::try_from(name)?)?, stream))
    }

    /// What stands in the request line for a path.
    pub(crate) fn target(&self, path: &str) -> String {
        match &self.origin {
            Some(origin) if self.tls.is_none() => format!("http://{origin}{path}"),
            _ => path.to_owned(),
        }
    }

    /// What stands in the Host header.
    pub(crate) fn host(&self) -> String {
        self.origin.clone().unwrap_or_else(|| self.server.to_string())
    }
}
