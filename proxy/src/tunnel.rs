//! Tunnels: bytes to and fro until both sides have finished, or nothing passes for long.

use crate::connected::Connected;
use crate::idle::{Activity, Kind};
use crate::labels::{Cut, Outcome};
use crate::listen::Slot;
use crate::pipeline::Downstream;
use crate::refusal::Refusal;
use crate::{BoxError, Proxy};
use bytes::BytesMut;
use darter_listen::Parsed;
use darter_listen::client_hello;
use darter_rules::Host;
use darter_upstream::{Link, Reached};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection of any kind.
trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}

impl<W: AsyncRead + AsyncWrite + Unpin + Send> Wire for W {}

/// A tunnel whose far end is connected, and whose near end is about to be.
pub(crate) struct Tunnel {
    upstream: Upstream,
    /// What a connection of its own leads to.
    reached: Option<Reached>,
    client: OnUpgrade,
    idle_timeout: Duration,
}

/// The far end.
enum Upstream {
    Connected(Box<dyn Wire>),
    /// It has agreed to become something else than HTTP.
    Switching(OnUpgrade),
}

impl Tunnel {
    /// Connects the far end. The near end follows when the client has got its 200.
    ///
    /// # Errors
    /// When it cannot be connected, or may not.
    pub(crate) async fn open(
        downstream: &Downstream,
        host: &Host,
        port: u16,
        client: OnUpgrade,
    ) -> Result<Self, Refusal> {
        let proxy = &downstream.proxy;
        let upstream = proxy.upstream.dial(&host.to_string(), port).await?;
        let idle_timeout = proxy.settings().limits.tunnel_idle_timeout;
        let reached = Some(upstream.reached().clone());
        Ok(Self { upstream: Upstream::Connected(Box::new(upstream)), reached, client, idle_timeout })
    }

    /// Of two connections whose HTTP has agreed to become something else.
    pub(crate) fn switched(client: OnUpgrade, upstream: OnUpgrade, proxy: &Proxy) -> Self {
        let idle_timeout = proxy.settings().limits.tunnel_idle_timeout;
        Self { upstream: Upstream::Switching(upstream), reached: None, client, idle_timeout }
    }

    /// Carries bytes until both sides have finished, and writes the record. The client keeps its `slot` meanwhile.
    pub(crate) async fn run(self, record: Connected, slot: Arc<Slot>) {
        let Self { upstream, reached, client, idle_timeout } = self;
        if let Some(reached) = &reached {
            record.trail().reached(reached);
        }
        match ends(upstream, client).await {
            Ok((client, upstream)) => carry(client, upstream, idle_timeout, record).await,
            Err(error) => record.end(Outcome::Failed, None, Some(error.to_string())),
        }
        drop(slot);
    }
}

async fn ends(
    upstream: Upstream,
    client: OnUpgrade,
) -> Result<(TokioIo<hyper::upgrade::Upgraded>, Box<dyn Wire>), BoxError> {
    let client = TokioIo::new(client.await?);
    let upstream = match upstream {
        Upstream::Connected(wire) => wire,
        Upstream::Switching(switching) => Box::new(TokioIo::new(switching.await?)),
    };
    Ok((client, upstream))
}

/// Connects the far end of a tunnel whose client has been told already that there is one, and carries on.
pub(crate) async fn connect_late(
    client: impl AsyncRead + AsyncWrite + Unpin,
    host: &Host,
    port: u16,
    proxy: &Proxy,
    record: Connected,
) {
    match proxy.upstream.dial(&host.to_string(), port).await {
        Ok(upstream) => carry_link(client, upstream, proxy, record).await,
        Err(error) => record.end(Outcome::Failed, None, Some(error.to_string())),
    }
}

/// As [`carry`], to the end of a connection that was made for this tunnel.
pub(crate) async fn carry_link(
    client: impl AsyncRead + AsyncWrite + Unpin,
    upstream: Link,
    proxy: &Proxy,
    record: Connected,
) {
    record.trail().reached(upstream.reached());
    let idle_timeout = proxy.settings().limits.tunnel_idle_timeout;
    carry(client, upstream, idle_timeout, record).await;
}

/// Carries bytes to and fro. A side that has finished sending is told to the other, which may go on (TCP's half-close).
/// A tunnel through which nothing passes for `idle_timeout` is closed.
async fn carry(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    upstream: impl AsyncRead + AsyncWrite + Unpin,
    idle_timeout: Duration,
    record: Connected,
) {
    let _counted = darter_upstream::Counted::one_of(record.tunnels());
    let activity = Activity::new();
    let _open = activity.open(Kind::Tunnel);
    let mut upstream =
        Counted { stream: upstream, greeting: Greeting::default(), activity: activity.clone(), record };
    let (cut, note) = tokio::select! {
        carried = crate::carry::carry(&mut client, &mut upstream) => {
            (None, carried.err().map(|error| error.to_string()))
        }
        quiet = activity.quiet_for(idle_timeout) => (Some(Cut::Idle), Some(quiet.to_string())),
    };
    upstream.record.end(Outcome::Tunnel, cut, note);
}

// === Counted ===

/// Counts what passes, so that a tunnel has its numbers however it ends.
struct Counted<S> {
    stream: S,
    greeting: Greeting,
    activity: Activity,
    record: Connected,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.record.sent += (buf.filled().len() - before) as u64;
        if result.is_ready() {
            self.activity.moved();
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        if let Poll::Ready(Ok(written)) = result {
            let this = &mut *self;
            if let Some(name) = this.greeting.see(buf.get(..written).unwrap_or_default()) {
                this.record.asks_for(Some(name));
            }
            this.record.received += written as u64;
            this.activity.moved();
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

// === Greeting ===

/// Reads along until it is clear whether a client begins with TLS, and which name it asks for. Nothing waits for it.
#[derive(Default)]
struct Greeting {
    seen: BytesMut,
    decided: bool,
}

impl Greeting {
    /// The name, when these bytes complete it.
    fn see(&mut self, bytes: &[u8]) -> Option<String> {
        if self.decided {
            return None;
        }
        self.seen.extend_from_slice(bytes);
        let name = match client_hello::parse(&self.seen) {
            Ok(Parsed::Partial) => return None,
            Ok(Parsed::Whole(hello)) => hello.server_name,
            Err(_) => None,
        };
        self.decided = true;
        self.seen = BytesMut::new();
        name
    }
}
