//! [`Socket`]: a client's TCP connection, which acknowledges at once while a handshake goes on.
//!
//! GnuTLS, and with it apt and wget, sends the end of its handshake in two small pieces and leaves Nagle's algorithm on: the
//! second waits until the first is acknowledged. Where the two sides have spoken by turns before, as with a CONNECT, the
//! kernel puts that off for 40 ms, in the hope of an answer that could carry it; and the answer waits for the second piece.
//!
//! What the engine lends goes from the page cache into it: see `darter-sendfile`.

use crate::writes_to::writes_to;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

/// A client's TCP connection.
pub(crate) struct Socket {
    stream: darter_sendfile::Socket,
    prompt: Prompt,
}

/// Whether a socket acknowledges at once. Clones are of the same socket.
#[derive(Clone, Default)]
pub(crate) struct Prompt(Arc<AtomicBool>);

/// It does until this is dropped.
pub(crate) struct Prompted(Prompt);

impl Socket {
    pub(crate) fn new(stream: TcpStream, prompt: Prompt) -> Self {
        Self { stream: darter_sendfile::Socket::new(stream), prompt }
    }

    /// The connection itself.
    pub(crate) fn tcp(&self) -> &TcpStream {
        self.stream.tcp()
    }
}

impl Prompt {
    /// From now on.
    pub(crate) fn on(&self) -> Prompted {
        self.0.store(true, Ordering::Relaxed);
        Prompted(self.clone())
    }
}

impl Drop for Prompted {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Relaxed);
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_pending() && self.prompt.0.load(Ordering::Relaxed) {
            // All that has come is read, and is acknowledged now. Where that cannot be asked for, it is slower.
            let _ = self.tcp().set_quickack(true);
        }
        read
    }
}

writes_to!([] Socket => stream);

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_socket_acknowledges_at_once_when_it_is_told_to() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (mut client, prompt) = (client.unwrap(), Prompt::default());
        let mut socket = Socket::new(accepted.unwrap().0, prompt.clone());
        // By turns, until the kernel takes it for a conversation.
        for _ in 0..100 {
            client.write_u8(1).await.unwrap();
            socket.read_u8().await.unwrap();
            socket.write_u8(2).await.unwrap();
            client.read_u8().await.unwrap();
        }
        assert!(!socket.tcp().quickack().unwrap());
        assert!(futures_util::poll!(std::pin::pin!(socket.read_u8())).is_pending());
        assert!(!socket.tcp().quickack().unwrap());
        let prompted = prompt.on();
        assert!(futures_util::poll!(std::pin::pin!(socket.read_u8())).is_pending());
        assert!(socket.tcp().quickack().unwrap());
        // And no longer than that: the kernel may go on for a while.
        drop(prompted);
        socket.tcp().set_quickack(false).unwrap();
        assert!(futures_util::poll!(std::pin::pin!(socket.read_u8())).is_pending());
        assert!(!socket.tcp().quickack().unwrap());
    }
}
