//! TLS with a host: the handshake, and what it comes to.

use crate::dial::Dialer;
use crate::error::{Kind, Stage};
use darter_certs::{ClientAuth, NoTls};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ProtocolVersion};
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long a server that asked who we are is given to say whether it takes the answer. It is one round trip away, and most
/// say something at once: a ticket, or an alert.
const VERDICT_LIMIT: Duration = Duration::from_secs(1);

impl Dialer {
    /// Does the TLS handshake over `stream` with whoever is to be `host`. `alpn` lists protocols, the preferred one first.
    ///
    /// In TLS 1.3 a server judges our certificate, or that we have none, after the handshake is done for us (RFC 8446 section
    /// 4.4.2.4). One that asked for it is heard out: later its refusal would look like a broken connection.
    pub(crate) async fn tls<S>(
        &self,
        stream: S,
        host: &str,
        config: &Arc<ClientConfig>,
        alpn: &[&[u8]],
    ) -> Result<TlsStream<S>, Kind>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| Kind::Tls {
            reason: "no certificate can be for this name: it is no valid host name".to_owned(),
        })?;
        let connector = TlsConnector::from(Arc::clone(config));
        let alpn = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        let handshake = noting(connector.with_alpn(alpn).connect(name, stream));
        let after = self.timeouts.tls_handshake;
        let (done, auth) = tokio::time::timeout(after, handshake)
            .await
            .map_err(|_| Kind::Timeout { stage: Stage::TlsHandshake, after })?;
        let mut stream = done.map_err(|error| failure(&error, auth))?;
        if auth != ClientAuth::NotAsked
            && stream.get_ref().1.protocol_version() == Some(ProtocolVersion::TLSv1_3)
            && let Ok(Err(error)) = tokio::time::timeout(VERDICT_LIMIT, verdict(&mut stream)).await
        {
            return Err(failure(&error, auth));
        }
        Ok(stream)
    }
}

/// What comes of a handshake, and what the server asked in it.
async fn noting<T>(handshake: impl Future<Output = T>) -> (T, ClientAuth) {
    let mut handshake = pin!(handshake);
    let mut auth = ClientAuth::NotAsked;
    let done = poll_fn(|cx| {
        let (poll, noted) = ClientAuth::during(|| handshake.as_mut().poll(cx));
        if noted != ClientAuth::NotAsked {
            auth = noted;
        }
        poll
    })
    .await;
    (done, auth)
}

/// Waits for what the server says first: an error when it refuses, or hangs up. What it says is kept for whoever reads.
async fn verdict<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut TlsStream<S>) -> io::Result<()> {
    poll_fn(|cx| {
        let (io, session) = stream.get_mut();
        loop {
            if session.tls13_tickets_received() > 0 {
                return Poll::Ready(Ok(()));
            }
            match ready!(blocking(session.read_tls(&mut Polled { io, cx })))? {
                0 => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                _ => {
                    let state = session.process_new_packets();
                    let state = state.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                    if state.plaintext_bytes_to_read() > 0 || state.peer_has_closed() {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    })
    .await
}

fn blocking<T>(result: io::Result<T>) -> Poll<io::Result<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        result => Poll::Ready(result),
    }
}

/// Why a handshake failed. Whoever asks for a certificate and then refuses or hangs up did not like the answer.
fn failure(error: &io::Error, auth: ClientAuth) -> Kind {
    let reason = darter_certs::describe_io(error);
    let closed = NoTls::of(error) == Some(NoTls::Closed);
    if closed || darter_certs::is_refusal(error) {
        match auth {
            ClientAuth::NotAsked => {}
            ClientAuth::Nothing => {
                let reason = "it demands a client certificate, and none is configured for it (upstream.hosts[].clientCert)";
                return Kind::Tls { reason: reason.to_owned() };
            }
            ClientAuth::Shown => {
                let reason = format!(
                    "it does not accept the client certificate that is configured for it (upstream.hosts[].clientCert): {reason}"
                );
                return Kind::Tls { reason };
            }
        }
    }
    match NoTls::of(error) {
        Some(how) => Kind::NoTls { reason, silent: how == NoTls::Closed },
        None => Kind::Tls { reason },
    }
}

/// Reads what is there, for a caller who takes "nothing yet" for an error.
pub(crate) struct Polled<'a, 'b, S> {
    pub(crate) io: &'a mut S,
    pub(crate) cx: &'a mut Context<'b>,
}

impl<S: AsyncRead + Unpin> io::Read for Polled<'_, '_, S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut buf = ReadBuf::new(buf);
        match Pin::new(&mut *self.io).poll_read(self.cx, &mut buf) {
            Poll::Ready(result) => result.map(|()| buf.filled().len()),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}
