//! What the first bytes of a connection are, without losing them.

use crate::writes_to::writes_to;
use bytes::{Buf, Bytes, BytesMut};
use std::future::{Future, poll_fn};
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The first byte of a TLS record with a handshake message (RFC 8446 section 5.1).
const TLS_HANDSHAKE: u8 = 0x16;

/// A ClientHello is a handshake message of type 1 (RFC 8446 section 4).
const CLIENT_HELLO: u8 = 1;

/// How every HTTP/2 connection begins (RFC 9113 section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The longest method that is registered (UPDATEREDIRECTREF), in bytes, and a little more.
const LONGEST_METHOD: usize = 24;

/// How long a client may be silent inside a tunnel before the server is asked whether it speaks first, as SSH, SMTP and
/// FTP do. A TLS client speaks at once, so this costs only those a moment.
const PATIENCE: Duration = Duration::from_millis(200);

/// At most this much is read at once, in bytes: the usual request or ClientHello.
const READ: usize = 4096;

/// Whether a connection that begins with `prefix` begins with a TLS ClientHello; `None` while that is open.
pub(crate) fn is_client_hello(prefix: &[u8]) -> Option<bool> {
    // Record: type, version (3.x), length of 2 bytes; handshake: type.
    let expected: [fn(u8) -> bool; 6] =
        [|b| b == TLS_HANDSHAKE, |b| b == 3, |b| b <= 4, |_| true, |_| true, |b| b == CLIENT_HELLO];
    if prefix.iter().zip(expected).any(|(byte, expected)| !expected(*byte)) {
        return Some(false);
    }
    (prefix.len() >= expected.len()).then_some(true)
}

/// What a client speaks where it believes to be at its origin already: in a tunnel, or on a redirected connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// TLS, with a ClientHello.
    Tls,
    /// HTTP/1.1 or older.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Anything else.
    Other,
}

impl Protocol {
    /// What begins with `prefix`, where only TLS matters; `None` while that is open.
    pub(crate) fn tls_or_other(prefix: &[u8]) -> Option<Self> {
        is_client_hello(prefix).map(|is_tls| if is_tls { Self::Tls } else { Self::Other })
    }

    /// What begins with `prefix`; `None` while that is open.
    pub(crate) fn of(prefix: &[u8]) -> Option<Self> {
        match is_client_hello(prefix) {
            Some(true) => Some(Self::Tls),
            None => None,
            Some(false) if prefix.starts_with(HTTP2_PREFACE) => Some(Self::Http2),
            Some(false) if HTTP2_PREFACE.starts_with(prefix) => None,
            Some(false) => is_http1(prefix).map(|is_http1| if is_http1 { Self::Http1 } else { Self::Other }),
        }
    }
}

/// Whether a connection that begins with `prefix` begins with a request to an origin (RFC 9112 section 3); `None` while
/// that is open. A CONNECT is none: it is meant for whatever proxy stands there. Commands of other protocols begin with a
/// word in capitals, too (SMTP, Redis, IRC), but no path follows.
fn is_http1(prefix: &[u8]) -> Option<bool> {
    let method = prefix.iter().take_while(|byte| byte.is_ascii_uppercase() || **byte == b'-').count();
    let Some((space, target)) = prefix.get(method..).and_then(<[u8]>::split_first) else {
        return (method > LONGEST_METHOD).then_some(false);
    };
    if method == 0 || method > LONGEST_METHOD || *space != b' ' {
        return Some(false);
    }
    let forms = [&b"/"[..], b"http://", b"https://", b"* HTTP/"];
    if forms.iter().any(|form| target.starts_with(form)) {
        return Some(true);
    }
    (!forms.iter().any(|form| form.starts_with(target))).then_some(false)
}

/// Who spoke first in a tunnel, or on a redirected connection.
#[derive(Debug)]
pub(crate) enum Spoke<S> {
    /// The client, with these bytes.
    Client(Protocol, Bytes),
    /// The server, on this connection, from which nothing has been read.
    Server(S),
    /// Nobody: the client closed its side.
    Nobody,
}

/// What a client speaks on a connection to the proxy port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaks {
    /// TLS.
    Tls,
    /// HTTP/2 with prior knowledge (RFC 9113 section 3.3).
    Http2,
    /// Anything else: HTTP/1.1, or what its parser refuses.
    Http1,
    /// Nothing: it closed the connection.
    Nothing,
}

impl Speaks {
    /// What begins with `prefix`; `None` while that is open.
    fn of(prefix: &[u8]) -> Option<Self> {
        match prefix.first()? {
            // No method begins with this byte, so it alone is enough.
            &TLS_HANDSHAKE => Some(Self::Tls),
            _ if prefix.starts_with(HTTP2_PREFACE) => Some(Self::Http2),
            _ if HTTP2_PREFACE.starts_with(prefix) => None,
            _ => Some(Self::Http1),
        }
    }
}

/// Reads as much as it takes to tell what a client speaks, and gives what was read.
///
/// # Errors
/// When reading fails.
pub(crate) async fn speaks(client: &mut (impl AsyncRead + Unpin)) -> io::Result<(Speaks, Bytes)> {
    let mut prefix = BytesMut::new();
    loop {
        let closed = read_more(client, &mut prefix).await? == 0;
        let speaks = match Speaks::of(&prefix) {
            Some(speaks) => speaks,
            None if !closed => continue,
            None if prefix.is_empty() => Speaks::Nothing,
            None => Speaks::Http1,
        };
        return Ok((speaks, prefix.freeze()));
    }
}

/// Waits for the first bytes of either side. `what` tells what the client's are, as soon as that is certain. `server` connects to the server and resolves when something can be read
/// from it; it is polled only when the client is silent for a moment, and its failure leaves the client to speak.
///
/// # Errors
/// When reading from the client fails.
pub(crate) async fn first_to_speak<C, S, E>(
    client: &mut C,
    what: impl Fn(&[u8]) -> Option<Protocol>,
    server: impl Future<Output = Result<S, E>>,
) -> io::Result<Spoke<S>>
where
    C: AsyncRead + Unpin,
{
    let mut prefix = BytesMut::new();
    let server = async {
        tokio::time::sleep(PATIENCE).await;
        server.await
    };
    tokio::pin!(server);
    let mut server_may_speak = true;
    loop {
        tokio::select! {
            read = read_more(client, &mut prefix) => {
                let closed = read? == 0;
                match what(&prefix) {
                    Some(what) => return Ok(Spoke::Client(what, prefix.freeze())),
                    None if !closed => server_may_speak &= prefix.is_empty(),
                    None if prefix.is_empty() => return Ok(Spoke::Nobody),
                    None => return Ok(Spoke::Client(Protocol::Other, prefix.freeze())),
                }
            }
            spoke = &mut server, if server_may_speak => match spoke {
                Ok(server) => return Ok(Spoke::Server(server)),
                Err(_) => server_may_speak = false,
            },
        }
    }
}

/// What a client says next; empty when it has closed its side.
///
/// # Errors
/// When reading fails.
///
/// # Cancel safety
/// Dropping the future loses nothing.
pub(crate) async fn read(client: &mut (impl AsyncRead + Unpin)) -> io::Result<Bytes> {
    let mut bytes = BytesMut::new();
    read_more(client, &mut bytes).await?;
    Ok(bytes.freeze())
}

/// Appends what can be read to `prefix`: how many bytes. Thousands of clients may be silent, so waiting takes no memory: what
/// is read into lives for the read alone.
///
/// # Errors
/// When reading fails.
///
/// # Cancel safety
/// Dropping the future loses nothing.
async fn read_more(client: &mut (impl AsyncRead + Unpin), prefix: &mut BytesMut) -> io::Result<usize> {
    poll_fn(|cx| {
        let mut space = [const { MaybeUninit::uninit() }; READ];
        let mut read = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut *client).poll_read(cx, &mut read))?;
        prefix.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    })
    .await
}

/// A stream in front of which bytes that were read already stand again.
pub(crate) struct Rewound<S> {
    prefix: Bytes,
    stream: S,
}

impl<S> Rewound<S> {
    pub(crate) fn new(prefix: Bytes, stream: S) -> Self {
        Self { prefix, stream }
    }

    /// The stream itself.
    pub(crate) fn get_ref(&self) -> &S {
        &self.stream
    }

    /// Whether bytes that were read stand in front.
    pub(crate) fn has_unread(&self) -> bool {
        !self.prefix.is_empty()
    }

    /// Puts bytes that were read back to the front.
    pub(crate) fn unread(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            // An empty rest would keep in memory all that it is the rest of: 8 KiB of hyper's.
        } else if self.prefix.is_empty() {
            self.prefix = bytes;
        } else {
            self.prefix = [bytes, self.prefix.split_off(0)].concat().into();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let length = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix[..length]);
        self.prefix.advance(length);
        if self.prefix.is_empty() {
            // An empty rest would keep all of it in memory.
            self.prefix = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

writes_to!([S: AsyncWrite + Unpin] Rewound<S> => stream);

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, ready};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    const HELLO: &[u8] = &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];

    #[test]
    fn a_client_hello_is_known_by_its_first_six_bytes() {
        for length in 0..HELLO.len() {
            let expected = (length >= 6).then_some(true);
            assert_eq!(is_client_hello(&HELLO[..length]), expected, "{length}");
        }
        for other in [&b"G"[..], b"SSH-2.0", &[0x16, 4], &[0x16, 3, 9], &[0x16, 3, 1, 0, 2, 2], &[0x80]] {
            assert_eq!(is_client_hello(other), Some(false), "{other:?}");
        }
    }

    #[test]
    fn http2_is_known_by_its_whole_preface() {
        for length in 0..HTTP2_PREFACE.len() {
            assert_eq!(Speaks::of(&HTTP2_PREFACE[..length]), None, "{length}");
        }
        assert_eq!(Speaks::of(&[HTTP2_PREFACE, b"more"].concat()), Some(Speaks::Http2));
        assert_eq!(Speaks::of(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\n"), Some(Speaks::Http1));
        for method in ["GET", "POST", "PATCH", "PROPFIND", "PUT"] {
            assert_eq!(Speaks::of(method.as_bytes()), Some(Speaks::Http1), "{method}");
        }
        assert_eq!(Speaks::of(HELLO), Some(Speaks::Tls));
    }

    #[test]
    fn a_request_is_known_by_its_method_and_target() {
        for request in [
            &b"GET /"[..],
            b"M-SEARCH / HTTP/1.1",
            b"UPDATEREDIRECTREF /a",
            b"GET http://a.example/",
            b"GET https://a.example/",
            b"OPTIONS * HTTP/1.1",
            b"PUT /x",
            b"PRI * HTTP/1.1",
        ] {
            assert_eq!(Protocol::of(request), Some(Protocol::Http1), "{request:?}");
        }
        for (length, byte) in HTTP2_PREFACE.iter().enumerate() {
            assert_eq!(Protocol::of(&HTTP2_PREFACE[..length]), None, "{byte}");
        }
        assert_eq!(Protocol::of(HTTP2_PREFACE), Some(Protocol::Http2));
        assert_eq!(Protocol::of(HELLO), Some(Protocol::Tls));
        for open in [&b""[..], b"G", b"GET", b"GET ", b"GET h", b"GET https:/", b"OPTIONS * HTT"] {
            assert_eq!(Protocol::of(open), None, "{open:?}");
        }
        for other in [
            &b"SSH-2.0-x y"[..],
            b"EHLO host",
            b"EHLO http.example",
            b"NICK x",
            b"QUIT\r\n",
            b"get /",
            b" GET /",
            b"CONNECT a.example:443 HTTP/1.1",
            b"AAAAAAAAAAAAAAAAAAAAAAAAA",
            b"\x16\x02",
            b"\0",
        ] {
            assert_eq!(Protocol::of(other), Some(Protocol::Other), "{other:?}");
        }
    }

    #[tokio::test]
    async fn what_a_client_said_is_kept_however_it_came() {
        for (said, speaks) in [
            (&b""[..], Speaks::Nothing),
            (b"PRI", Speaks::Http1),
            (b"PUT / HTTP/1.1", Speaks::Http1),
            (HTTP2_PREFACE, Speaks::Http2),
        ] {
            let (mut here, mut there) = tokio::io::duplex(1);
            let writer = async {
                there.write_all(said).await.unwrap();
                drop(there);
            };
            let reader = async {
                let (found, prefix) = super::speaks(&mut here).await.unwrap();
                let mut all = Vec::new();
                Rewound::new(prefix, here).read_to_end(&mut all).await.unwrap();
                assert_eq!((found, &*all), (speaks, said));
            };
            tokio::join!(writer, reader);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_hello_in_single_bytes_is_put_together_and_replayed() {
        let (mut here, mut there) = tokio::io::duplex(1);
        let writer = async {
            there.write_all(HELLO).await.unwrap();
            drop(there);
        };
        let reader = async {
            let spoke = first_to_speak(&mut here, Protocol::of, pending::<Result<(), ()>>()).await.unwrap();
            let Spoke::Client(Protocol::Tls, prefix) = spoke else { panic!("{spoke:?}") };
            let mut all = Vec::new();
            Rewound::new(prefix, here).read_to_end(&mut all).await.unwrap();
            assert_eq!(all, HELLO);
        };
        tokio::join!(writer, reader);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_may_speak_first() {
        let (mut here, _there) = tokio::io::duplex(1);
        let spoke = first_to_speak(&mut here, Protocol::of, ready(Ok::<_, ()>(7))).await.unwrap();
        assert!(matches!(spoke, Spoke::Server(7)), "{spoke:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_speaks_late_is_still_heard_when_the_server_cannot_be_reached() {
        let (mut here, mut there) = tokio::io::duplex(16);
        let writer = async {
            tokio::time::sleep(PATIENCE * 10).await;
            there.write_all(b"HELO").await.unwrap();
        };
        let (spoke, ()) =
            tokio::join!(first_to_speak(&mut here, Protocol::tls_or_other, ready(Err::<(), _>(()))), writer);
        let spoke = spoke.unwrap();
        assert!(matches!(&spoke, Spoke::Client(Protocol::Other, bytes) if bytes == "HELO"), "{spoke:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_closes_leaves_nobody_to_speak() {
        let (mut here, there) = tokio::io::duplex(1);
        drop(there);
        let spoke = first_to_speak(&mut here, Protocol::of, pending::<Result<(), ()>>()).await.unwrap();
        assert!(matches!(spoke, Spoke::Nobody), "{spoke:?}");
    }
}
