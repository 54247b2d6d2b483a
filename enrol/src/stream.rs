//! [`Secured`]: a connection with another member, which ends when that one is expelled.

use crate::cuts::Cut as Opened;
use crate::newcomers::Newcomer;
use crate::refused::Refused;
use crate::service::{Caller, Who};
use hyper_util::client::legacy::connect::{Connected, Connection};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;
use tokio_util::sync::CancellationToken;

/// TLS over TCP, with what it reads of the socket at once in a buffer: the TLS library asks for 4 KiB at a time.
pub(crate) type Tls = TlsStream<BufReader<TcpStream>>;

/// A connection.
pub struct Secured {
    io: Io,
    caller: Caller,
    cut: Option<Cut>,
    /// Somebody who joins stays one until he has gone.
    _newcomer: Option<Newcomer>,
}

/// Is done when the connection ends, and says why.
type Cut = Pin<Box<dyn Future<Output = Refused> + Send>>;

enum Io {
    Plain(TcpStream),
    Tls(Box<Tls>),
}

impl Secured {
    pub(crate) fn plain(stream: TcpStream, remote: SocketAddr) -> Self {
        Self {
            io: Io::Plain(stream),
            caller: Caller { remote, who: Who::Anybody },
            cut: None,
            _newcomer: None,
        }
    }

    pub(crate) fn tls(stream: Tls, caller: Caller, cut: Opened) -> Self {
        Self {
            io: Io::Tls(Box::new(stream)),
            caller,
            cut: Some(Box::pin(async move {
                cut.ended().await;
                Refused::Expelled
            })),
            _newcomer: None,
        }
    }

    /// For joining, by which nobody may keep a connection for long: it ends after `limit`. Where somebody has come to join, it counts
    /// as this newcomer for as long as it is open, and ends when that one has to make way.
    pub(crate) fn joining(
        stream: Tls,
        remote: SocketAddr,
        limit: Duration,
        newcomer: Option<Newcomer>,
    ) -> Self {
        let caller = Caller { remote, who: Who::Joining(Arc::default()) };
        let makes_way = newcomer.as_ref().map_or_else(CancellationToken::new, Newcomer::cut);
        let cut = async move {
            tokio::select! {
                () = tokio::time::sleep(limit) => Refused::NoCertificate,
                () = makes_way.cancelled() => Refused::TooMany,
            }
        };
        Self { io: Io::Tls(Box::new(stream)), caller, cut: Some(Box::pin(cut)), _newcomer: newcomer }
    }

    /// Who is at the other end.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The TCP connection, where nobody encrypts.
    ///
    /// # Errors
    /// This connection, where somebody does.
    pub fn into_plain(self) -> Result<TcpStream, Box<Self>> {
        match self.io {
            Io::Plain(stream) => Ok(stream),
            io @ Io::Tls(_) => Err(Box::new(Self { io, ..self })),
        }
    }

    /// An error, once the connection has to end.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(cut) = &mut self.cut else { return Ok(()) };
        let Poll::Ready(why) = cut.as_mut().poll(cx) else { return Ok(()) };
        // A future that has ended is not polled again; nothing is asked of a connection that has failed.
        self.cut = Some(Box::pin(std::future::ready(why.clone())));
        Err(io::Error::new(io::ErrorKind::ConnectionAborted, why))
    }
}

impl AsyncRead for Secured {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            // Said in words: whoever reads through HTTP gets no more.
            Io::Tls(stream) => Pin::new(stream).poll_read(cx, buf).map_err(|error| {
                let by_them = Some(Refused::of(&error)).filter(|it| matches!(it, Refused::ByThem(_)));
                by_them.map_or(error, |refused| io::Error::new(io::ErrorKind::ConnectionAborted, refused))
            }),
        }
    }
}

impl AsyncWrite for Secured {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Io::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Io::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Io::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Also one who is sent nothing more: the buffer may be full.
        self.check(cx)?;
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl Connection for Secured {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl tonic::transport::server::Connected for Secured {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issuer::tests::issuer;
    use crate::membership::{Expected, JOINING, Membership};
    use crate::newcomers::MOST;
    use crate::{Metrics, Role, tls};
    use darter_certs::sha256;
    use rustls_pki_types::ServerName;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsConnector;

    /// A scheduler, and somebody who has come to join it and says nothing more: both ends.
    async fn silent() -> (Membership, TlsStream<TcpStream>, Secured) {
        let (_folder, issuer) = issuer();
        let scheduler = Membership::of_issuer(&issuer, Role::Scheduler, "s", Metrics::default()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let come = async {
            let config = tls::client_of_joining(sha256(&issuer.signer())).unwrap();
            let stream = TcpStream::connect(address).await.unwrap();
            let name = ServerName::IpAddress(address.ip().into());
            TlsConnector::from(config).connect(name, stream).await.unwrap()
        };
        let take = async {
            let (stream, remote) = listener.accept().await.unwrap();
            scheduler.accept(stream, remote, &Expected::Asker).await.unwrap()
        };
        let (silent, taken) = tokio::join!(come, take);
        assert!(matches!(taken.caller().who, Who::Joining(_)));
        (scheduler, silent.into(), taken)
    }

    #[tokio::test]
    async fn who_comes_to_join_and_says_nothing_is_hung_up_on() {
        let (_scheduler, _silent, mut taken) = silent().await;
        // Nothing else waits for anything: the clock goes on to what is due next.
        tokio::time::pause();
        let since = tokio::time::Instant::now();
        let ended = tokio::time::timeout(10 * JOINING, taken.read(&mut [0])).await.expect("it ends");
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        assert!(since.elapsed() < 2 * JOINING, "of the clock that is paused");
    }

    #[tokio::test]
    async fn who_comes_to_join_and_says_nothing_makes_way_when_too_many_come() {
        let (scheduler, _silent, mut taken) = silent().await;
        tokio::time::pause();
        let since = tokio::time::Instant::now();
        let all = scheduler.newcomers().expect("it asks for certificates");
        let _more: Vec<_> = (0..MOST).map(|_| all.come([127, 0, 0, 1].into())).collect();
        let ended = taken.read(&mut [0]).await.unwrap_err();
        assert!(ended.to_string().contains("too many others have come since"), "{ended}");
        assert_eq!(since.elapsed(), Duration::ZERO, "not for its silence");
    }
}
