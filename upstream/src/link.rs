//! [`Link`]: a connection to an origin, or to a parent proxy and through it to an origin.

use crate::uses::{Connection, Open};
use bytes::{Buf as _, Bytes, BytesMut};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

/// How much is read ahead to find out whether there is something to read, in bytes.
const AHEAD: usize = 4096;

/// A connection to an origin; TLS with the origin is not in it.
#[derive(Debug)]
pub struct Link {
    hop: Hop,
    /// What was read already, and comes first.
    early: Bytes,
    reached: Reached,
    open: Option<Open>,
}

/// What a connection really goes to. Stands in the extensions of every response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// The address that was dialled: the origin's, or the parent proxy's. `None` when it was gone at once.
    pub address: Option<SocketAddr>,
    /// The parent proxy on the way, as a URL without credentials.
    pub parent: Option<Arc<str>>,
}

/// The first hop: TCP, or TLS with a parent proxy.
pub(crate) type Hop = Either<TcpStream, Box<TlsStream<TcpStream>>>;

// === impl Link ===

impl Link {
    /// A connection whose first hop is `hop`, from which `early` was read already.
    pub(crate) fn new(hop: Hop, early: Bytes, parent: Option<Arc<str>>) -> Self {
        let tcp = match &hop {
            Hop::Left(tcp) => tcp,
            Hop::Right(tls) => tls.get_ref().0,
        };
        let reached = Reached { address: tcp.peer_addr().ok(), parent };
        Self { hop, early, reached, open: None }
    }

    /// Is counted as long as it is open.
    pub(crate) fn counted(&mut self, open: Open) {
        self.open = Some(open);
    }

    /// What it is used for, when it is counted.
    pub(crate) fn connection(&self) -> Option<&Connection> {
        self.open.as_ref().map(Open::connection)
    }

    /// What it really goes to.
    pub fn reached(&self) -> &Reached {
        &self.reached
    }

    /// Waits until something can be read from it: bytes, the end, or an error.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// When reading fails.
    pub async fn readable(&mut self) -> io::Result<()> {
        if !self.early.is_empty() {
            return Ok(());
        }
        // A socket may be ready with nothing in it for us: TLS has messages of its own.
        let mut ahead = BytesMut::zeroed(AHEAD);
        let length = poll_fn(|cx| {
            let mut buf = ReadBuf::new(&mut ahead);
            std::task::ready!(Pin::new(&mut self.hop).poll_read(cx, &mut buf))?;
            Poll::Ready(io::Result::Ok(buf.filled().len()))
        })
        .await?;
        ahead.truncate(length);
        self.early = ahead.freeze();
        Ok(())
    }
}

impl AsyncRead for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.early.is_empty() {
            return Pin::new(&mut self.hop).poll_read(cx, buf);
        }
        let length = self.early.len().min(buf.remaining());
        buf.put_slice(&self.early[..length]);
        self.early.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Link {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.hop).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.hop).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.hop).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.hop.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.hop).poll_write_vectored(cx, bufs)
    }
}
