//! [`accept`]: the next connection, whatever happens to others.

use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// How long to wait when the process or the machine has no file descriptor or memory left: until then connections that
/// end give some back. The connections wait in the listener's backlog meanwhile.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// A silent client is probed after this long, and as often (the kernel gives up after nine probes without an answer).
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// Waits for the next connection. Failures of a single connection are passed over; when descriptors or memory run out it
/// tries again a little later. So it never fails.
///
/// # Cancel safety
/// Dropping the future loses no connection.
pub async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let mut told = false;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                if let Err(error) = prepare(&stream) {
                    tracing::debug!(%peer, %error, "cannot set socket options towards a client");
                }
                return (stream, peer);
            }
            Err(error) if concerns_one_connection(&error) => {
                tracing::debug!(%error, "a connection ended before it was accepted");
            }
            Err(error) => {
                if !told {
                    tracing::warn!(%error, "cannot accept connections at the moment");
                    told = true;
                }
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
            }
        }
    }
}

/// A connection works without these options, so a failure to set one is no failure to accept.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    // Answers are often one small write after another; Nagle's algorithm would hold each back for 40 ms.
    stream.set_nodelay(true)?;
    // A tunnel has no other way to learn that its client's machine is gone.
    let probes = TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE);
    SockRef::from(stream).set_tcp_keepalive(&probes)
}

/// accept(2), "Error handling": network errors of the new connection are reported by accept itself.
fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, Interrupted, NetworkDown,
        NetworkUnreachable, TimedOut,
    };
    matches!(
        error.kind(),
        ConnectionAborted
            | ConnectionRefused
            | ConnectionReset
            | HostUnreachable
            | Interrupted
            | NetworkDown
            | NetworkUnreachable
            | TimedOut
    )
}
