//! [`Parent`]: another proxy on the way to an origin, and how a tunnel through it is opened.
//!
//! What a parent needs to know of the destination is its name and port: it resolves the name itself. Its credentials go
//! to it alone, never further.

use crate::dial::Dialer;
use crate::error::{Authority, Kind, Stage, io_reason};
use crate::link::{Hop, Link};
use crate::route::Lookup;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use darter_certs::Secret;
use http::uri::Authority as UriAuthority;
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::client::conn::http1;
use hyper::ext::ReasonPhrase;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use tokio_socks::tcp::Socks5Stream;

/// What is spoken over TLS with a parent.
const ALPN: [&[u8]; 1] = [b"http/1.1"];

/// A head of a parent's answer that is larger than this is refused, in bytes.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// How much of a parent's own words is repeated, in characters. Another Darter says a whole sentence.
const MAX_REASON: usize = 300;

/// The longest user name and password of SOCKS (RFC 1929 section 2), in bytes.
const MAX_SOCKS_CREDENTIAL: usize = 255;

/// Another proxy, to which an operator sends us.
#[derive(Debug, Clone)]
pub struct Parent {
    /// Where it is, and what it speaks.
    pub address: ParentAddress,
    /// Who we are to it.
    pub credentials: Option<Credentials>,
    /// Whom to trust as this parent, where TLS is spoken with it.
    pub tls: Arc<ClientConfig>,
    /// Who says where its host is.
    pub lookup: Lookup,
}

/// Where a parent proxy is, and what it speaks. Displays as a URL without credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentAddress {
    protocol: Protocol,
    host: String,
    port: u16,
}

/// What is spoken with a parent proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    /// HTTP, CONNECT for all but `http` URLs.
    Http,
    /// The same over TLS.
    Https,
    /// SOCKS version 5 (RFC 1928); the parent resolves names.
    Socks5,
}

/// A text that is no parent's address, or credentials that cannot be used there. Never repeats the text, which may hold a
/// password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidParent {
    /// Not `http://`, `https://` or `socks5://` and an authority.
    #[error(
        "expected http://HOST:PORT, https://HOST:PORT or socks5://HOST:PORT, with USER:PASSWORD@ before the host if need be"
    )]
    Address,
    /// The user name or password cannot be read.
    #[error(
        "the user name and the password before the @ need a colon between them, and %XX for characters that mean something in a URL"
    )]
    Credentials,
    /// They are empty, or too long for SOCKS.
    #[error("a user name and a password for socks5 have 1 to 255 bytes")]
    SocksCredentials,
}

// === impl ParentAddress ===

impl ParentAddress {
    /// Reads a URL: `http`, `https` or `socks5` (`socks5h` is the same), host, port (80, 443 and 1080 when there is none),
    /// and credentials before an `@`, percent-encoded.
    ///
    /// # Errors
    /// When it is something else.
    pub fn parse(url: &str) -> Result<(Self, Option<Credentials>), InvalidParent> {
        let (scheme, rest) = url.split_once("://").ok_or(InvalidParent::Address)?;
        let (protocol, default_port) = match scheme.to_ascii_lowercase().as_str() {
            "http" => (Protocol::Http, 80),
            "https" => (Protocol::Https, 443),
            "socks5" | "socks5h" => (Protocol::Socks5, 1080),
            _ => return Err(InvalidParent::Address),
        };
        let authority: UriAuthority =
            rest.strip_suffix('/').unwrap_or(rest).parse().map_err(|_| InvalidParent::Address)?;
        let userinfo = authority.as_str().rsplit_once('@').map(|(userinfo, _)| userinfo);
        let port = match authority.as_str().rsplit_once('@').map_or(authority.as_str(), |(_, at)| at) {
            // "host:" and "host:99999" are no ports, and mean no default one either.
            at if at.len() > authority.host().len() => {
                authority.port_u16().filter(|port| *port != 0).ok_or(InvalidParent::Address)?
            }
            _ => default_port,
        };
        let host = crate::connector::bare(authority.host()).to_ascii_lowercase();
        if host.is_empty() || host.contains('%') {
            return Err(InvalidParent::Address);
        }
        let address = Self { protocol, host, port };
        let credentials = userinfo.map(Credentials::from_userinfo).transpose()?;
        if let Some(credentials) = &credentials {
            address.accepts(credentials)?;
        }
        Ok((address, credentials))
    }

    /// Whether these credentials can be said in its protocol.
    ///
    /// # Errors
    /// When they cannot.
    pub fn accepts(&self, credentials: &Credentials) -> Result<(), InvalidParent> {
        let fits = |text: &str| (1..=MAX_SOCKS_CREDENTIAL).contains(&text.len());
        match self.protocol {
            Protocol::Socks5 if !(fits(&credentials.user) && fits(credentials.password.reveal())) => {
                Err(InvalidParent::SocksCredentials)
            }
            _ => Ok(()),
        }
    }

    /// A name in lower case, or an IP literal without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether it takes requests for `http` URLs as they are.
    pub(crate) fn forwards_http(&self) -> bool {
        matches!(self.protocol, Protocol::Http | Protocol::Https)
    }
}

impl fmt::Display for ParentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.protocol {
            Protocol::Http => "http",
            Protocol::Https => "https",
            Protocol::Socks5 => "socks5",
        };
        write!(f, "{scheme}://{}", Authority(&self.host, self.port))
    }
}

// === Credentials ===

/// A user name and a password. Neither is ever printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    user: String,
    password: Secret,
}

impl Credentials {
    /// `user:password` as they are, without any encoding: what stands in a file.
    ///
    /// # Errors
    /// When there is no colon, or nothing before it.
    pub fn parse(text: &str) -> Result<Self, InvalidParent> {
        match text.split_once(':') {
            Some((user, password)) if !user.is_empty() => {
                Ok(Self { user: user.to_owned(), password: password.into() })
            }
            _ => Err(InvalidParent::Credentials),
        }
    }

    /// What stands before the `@` of a URL.
    fn from_userinfo(userinfo: &str) -> Result<Self, InvalidParent> {
        let decode = |text: &str| {
            let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
            decoded.map(|text| text.into_owned()).map_err(|_| InvalidParent::Credentials)
        };
        let (user, password) = userinfo.split_once(':').ok_or(InvalidParent::Credentials)?;
        let (user, password) = (decode(user)?, decode(password)?);
        // RFC 7617 section 2: a colon ends the name.
        if user.is_empty() || user.contains(':') {
            return Err(InvalidParent::Credentials);
        }
        Ok(Self { user, password: password.into() })
    }

    /// The value of a Proxy-Authorization header (RFC 7617).
    pub(crate) fn basic(&self) -> HeaderValue {
        let both = Secret::from(format!("{}:{}", self.user, self.password.reveal()));
        let encoded = Secret::from(STANDARD.encode(both.reveal()));
        let value = Secret::from(format!("Basic {}", encoded.reveal()));
        let mut value = HeaderValue::try_from(value.reveal()).expect("base64 makes a header value");
        value.set_sensitive(true);
        value
    }
}

// === impl Parent ===

impl Parent {
    /// A connection to the parent itself.
    ///
    /// # Errors
    /// When there is none; the error names the parent.
    pub(crate) async fn connect(&self, dialer: &Dialer) -> Result<Hop, Kind> {
        let ParentAddress { protocol, host, port } = &self.address;
        let connect = async {
            let tcp = dialer.parent(host, *port, &self.lookup).await?;
            Ok(match protocol {
                Protocol::Http | Protocol::Socks5 => Hop::Left(tcp),
                Protocol::Https => Hop::Right(Box::new(dialer.tls(tcp, host, &self.tls, &ALPN).await?)),
            })
        };
        connect.await.map_err(|kind| self.unreachable(kind))
    }

    /// A tunnel through the parent to this host and port.
    ///
    /// # Errors
    /// When the parent cannot be reached, or refuses; the error names the parent.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection to the parent.
    pub(crate) async fn tunnel(&self, host: &str, port: u16, dialer: &Dialer) -> Result<Link, Kind> {
        let hop = self.connect(dialer).await?;
        let after = dialer.timeouts.response_header;
        let opened = async {
            match self.address.protocol {
                Protocol::Http | Protocol::Https => self.connect_method(hop, host, port).await,
                Protocol::Socks5 => self.socks(hop, host, port).await,
            }
        };
        tokio::time::timeout(after, opened)
            .await
            .unwrap_or_else(|_| Err(self.unreachable(Kind::Timeout { stage: Stage::Tunnel, after })))
    }

    /// RFC 9110 section 9.3.6. hyper gives back what it read after the head: a server that speaks first may have begun.
    async fn connect_method(&self, hop: Hop, host: &str, port: u16) -> Result<Link, Kind> {
        let broken = |error: hyper::Error| {
            let reason = crate::client::innermost(&error);
            let kind = if error.is_parse() { Kind::Protocol { reason } } else { Kind::Closed { reason } };
            self.unreachable(kind)
        };
        let authority = Authority(host, port).to_string();
        let mut request = Request::connect(&authority)
            .header(header::HOST, &authority)
            .body(http_body_util::Empty::<Bytes>::new())
            .map_err(|_| Kind::InvalidUrl { reason: "its host cannot be said in a CONNECT request" })?;
        if let Some(credentials) = &self.credentials {
            request.headers_mut().insert(header::PROXY_AUTHORIZATION, credentials.basic());
        }
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD_BYTES)
            .handshake(TokioIo::new(hop))
            .await
            .map_err(broken)?;
        let mut answer = pin!(sender.send_request(request));
        let mut connection = pin!(connection.without_shutdown());
        // With a 2xx the connection's work ends; whichever of the two is noticed first, both are there then.
        let (response, parts) = tokio::select! {
            response = &mut answer => (response.map_err(broken)?, None),
            parts = &mut connection => (answer.await.map_err(broken)?, Some(parts)),
        };
        if !response.status().is_success() {
            return Err(self.refused_with(&response));
        }
        let parts = match parts {
            Some(parts) => parts,
            None => connection.await,
        };
        let parts = parts.map_err(broken)?;
        Ok(self.link(parts.io.into_inner(), parts.read_buf))
    }

    async fn socks(&self, hop: Hop, host: &str, port: u16) -> Result<Link, Kind> {
        let opened = match &self.credentials {
            Some(Credentials { user, password }) => {
                Socks5Stream::connect_with_password_and_socket(hop, (host, port), user, password.reveal())
                    .await
            }
            None => Socks5Stream::connect_with_socket(hop, (host, port)).await,
        };
        let hop = opened.map_err(|error| self.socks_error(&error))?.into_inner();
        Ok(self.link(hop, Bytes::new()))
    }

    /// A connection that goes through the parent.
    pub(crate) fn link(&self, hop: Hop, early: Bytes) -> Link {
        Link::new(hop, early, Some(self.address.to_string().into()))
    }

    fn socks_error(&self, error: &tokio_socks::Error) -> Kind {
        use tokio_socks::Error;
        let (status, reason) = match error {
            Error::Io(error) => return self.unreachable(Kind::Closed { reason: io_reason(error) }),
            Error::NoAcceptableAuthMethods | Error::AuthorizationRequired | Error::PasswordAuthFailure(_) => {
                (StatusCode::PROXY_AUTHENTICATION_REQUIRED, "it asks who we are")
            }
            Error::ConnectionNotAllowedByRuleset => (StatusCode::FORBIDDEN, "its rules do not allow it"),
            Error::GeneralSocksServerFailure => (StatusCode::BAD_GATEWAY, "it failed to"),
            Error::NetworkUnreachable => (StatusCode::BAD_GATEWAY, "network unreachable"),
            Error::HostUnreachable => (StatusCode::BAD_GATEWAY, "host unreachable"),
            Error::ConnectionRefused => (StatusCode::BAD_GATEWAY, "connection refused"),
            Error::TtlExpired => (StatusCode::GATEWAY_TIMEOUT, "the time to live expired on the way"),
            Error::CommandNotSupported | Error::AddressTypeNotSupported => {
                (StatusCode::NOT_IMPLEMENTED, "it does not know how to")
            }
            other => return self.unreachable(Kind::Protocol { reason: other.to_string() }),
        };
        self.refused(status, reason.to_owned())
    }

    /// What an answer that is no success says, in the parent's own words as far as they can be repeated.
    pub(crate) fn refused_with(&self, response: &Response<impl Sized>) -> Kind {
        let status = response.status();
        let phrase = response.extensions().get::<ReasonPhrase>();
        let words = match phrase {
            Some(phrase) => String::from_utf8_lossy(phrase.as_bytes()).into_owned(),
            None => status.canonical_reason().unwrap_or_default().to_owned(),
        };
        let words: String = words
            .chars()
            .take(MAX_REASON)
            .map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '?' })
            .collect();
        self.refused(status, format!("{} {words}", status.as_u16()).trim_end().to_owned())
    }

    fn refused(&self, status: StatusCode, reason: String) -> Kind {
        Kind::ParentRefused { parent: self.address.to_string(), status, reason }
    }

    fn unreachable(&self, kind: Kind) -> Kind {
        Kind::Parent { parent: self.address.clone(), kind: Box::new(kind) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> (ParentAddress, Option<Credentials>) {
        ParentAddress::parse(url).unwrap()
    }

    #[test]
    fn a_parents_address_is_a_url() {
        for (url, shown) in [
            ("http://proxy.corp:3128", "http://proxy.corp:3128"),
            ("HTTP://Proxy.Corp:3128/", "http://proxy.corp:3128"),
            ("http://proxy.corp", "http://proxy.corp:80"),
            ("https://proxy.corp", "https://proxy.corp:443"),
            ("https://proxy.corp:80", "https://proxy.corp:80"),
            ("socks5://10.0.0.1", "socks5://10.0.0.1:1080"),
            ("socks5h://[fd00::1]:99", "socks5://[fd00::1]:99"),
            ("http://user:secret@proxy.corp:3128", "http://proxy.corp:3128"),
        ] {
            assert_eq!(parse(url).0.to_string(), shown, "{url}");
        }
    }

    #[test]
    fn what_is_no_parents_address_is_refused_without_repeating_it() {
        for url in [
            "",
            "proxy.corp:3128",
            "ftp://proxy.corp:3128",
            "socks4://proxy.corp",
            "http://",
            "http://proxy.corp:3128/path",
            "http://proxy.corp:0",
            "http://proxy.corp:99999",
            "http://proxy.corp:",
            "http://:3128",
            "http://secret@proxy.corp:3128",
            "http://:secret@proxy.corp:3128",
            "http://a%3Ab:secret@proxy.corp:3128",
            "http://user:secret%ff@proxy.corp:3128",
            "socks5://user:@proxy.corp",
        ] {
            let error = ParentAddress::parse(url).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
        let long = format!("socks5://user:{}@proxy.corp", "s".repeat(256));
        assert_eq!(ParentAddress::parse(&long).unwrap_err(), InvalidParent::SocksCredentials);
    }

    #[test]
    fn credentials_are_decoded_and_never_shown() {
        let (_, credentials) = parse("http://us%40er:p%3Aa%2Fss@proxy.corp:3128");
        let credentials = credentials.unwrap();
        assert_eq!(credentials, Credentials::parse("us@er:p:a/ss").unwrap());
        let basic = credentials.basic();
        assert_eq!(basic, "Basic dXNAZXI6cDphL3Nz");
        assert!(basic.is_sensitive());
        assert!(!format!("{credentials:?}").contains("a/ss"), "{credentials:?}");
        for wrong in ["", "user", ":password"] {
            assert!(Credentials::parse(wrong).is_err(), "{wrong}");
        }
    }
}
