//! [`Target`]: where a request goes, in one canonical form, so that rules, white list and identity all judge the same thing
//! that is later dialled.

use http::Uri;
use percent_encoding::percent_decode_str;
use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Plain HTTP or HTTPS: nothing else is forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// `http`, port 80.
    Http,
    /// `https`, port 443.
    Https,
}

/// A host in canonical form: a lower-case name without a final dot, or an address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// A DNS name of letters, digits, `-`, `_` and dots.
    Name(String),
    /// An address literal.
    Ip(IpAddr),
}

/// An absolute URL that a request may be sent to: scheme, host, port, path and query; never a fragment or user information.
///
/// The path and query are kept as the client wrote them, because that is what the origin gets (a signature may cover it);
/// [`Self::canonical`] is the form to compare. The URL is put together once: every request asks for it many times.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    scheme: Scheme,
    host: Host,
    port: u16,
    url: String,
    /// Where in `url` the path begins.
    path: usize,
}

/// A scheme and an authority are rarely longer, in bytes.
const USUAL_ORIGIN: usize = 64;

/// A URL that is no [`Target`]. The text never repeats the URL: its query may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTarget {
    /// Not a URL at all.
    #[error("the request's URL is malformed")]
    Malformed,
    /// It does not say where to go.
    #[error("the request's URL names no scheme and host")]
    Relative,
    /// Some scheme that is not forwarded.
    #[error("only http and https URLs are forwarded")]
    Scheme,
    /// `user:password@host`.
    #[error("the request's URL holds user information before the host; send an Authorization header instead")]
    UserInformation,
    /// A host that is neither a DNS name nor an address.
    #[error("the request's host is neither a DNS name nor an IP address")]
    Host,
    /// A port that is not a number from 1 to 65535.
    #[error("the request's port is not a number from 1 to 65535")]
    Port,
}

// === impl Scheme ===

impl Scheme {
    /// `http` or `https`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// 80 or 443.
    pub const fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl FromStr for Scheme {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        if text.eq_ignore_ascii_case("https") {
            Ok(Self::Https)
        } else if text.eq_ignore_ascii_case("http") {
            Ok(Self::Http)
        } else {
            Err(InvalidTarget::Scheme)
        }
    }
}

// === impl Host ===

impl FromStr for Host {
    type Err = InvalidTarget;

    /// Takes a name or an address; an IPv6 address with or without its brackets.
    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        if let Some(inner) = text.strip_prefix('[') {
            let address = inner.strip_suffix(']').and_then(|v6| v6.parse::<Ipv6Addr>().ok());
            return address.map(|v6| Self::Ip(v6.into())).ok_or(InvalidTarget::Host);
        }
        let text = text.strip_suffix('.').unwrap_or(text);
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Ip(address));
        }
        if is_dns_name(text) { Ok(Self::Name(text.to_ascii_lowercase())) } else { Err(InvalidTarget::Host) }
    }
}

/// Underscores are no host names by RFC 1123, but are in use. A last label that is a number is refused: resolvers take
/// `127.1`, `0x7f000001` and `2130706433` for 127.0.0.1, so such a "name" is an address that no rule would recognise.
fn is_dns_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    let last = text.rsplit('.').next().unwrap_or(text);
    text.len() <= 253 && text.split('.').all(label) && !is_number(last)
}

fn is_number(label: &str) -> bool {
    let hex = label.strip_prefix("0x").or_else(|| label.strip_prefix("0X"));
    match hex {
        Some(digits) => digits.bytes().all(|b| b.is_ascii_hexdigit()),
        None => label.bytes().all(|b| b.is_ascii_digit()),
    }
}

impl fmt::Display for Host {
    /// Without brackets: what a resolver or a certificate check takes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Ip(ip) => ip.fmt(f),
        }
    }
}

impl From<IpAddr> for Host {
    fn from(ip: IpAddr) -> Self {
        Self::Ip(ip)
    }
}

impl From<Ipv4Addr> for Host {
    fn from(ip: Ipv4Addr) -> Self {
        Self::Ip(ip.into())
    }
}

/// `host`, `host:` or `host:port`, as in an authority.
///
/// # Errors
/// When the host or the port is malformed, or user information stands before it.
pub fn split_authority(authority: &str) -> Result<(Host, Option<u16>), InvalidTarget> {
    if authority.contains('@') {
        return Err(InvalidTarget::UserInformation);
    }
    // A colon inside brackets belongs to the address.
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    // Without brackets an IPv6 address cannot be told from a port.
    if host.contains(':') && !host.starts_with('[') {
        return Err(InvalidTarget::Host);
    }
    Ok((host.parse()?, port.map(parse_port).transpose()?.flatten()))
}

/// An empty port means the scheme's own (RFC 3986 section 3.2.3).
fn parse_port(text: &str) -> Result<Option<u16>, InvalidTarget> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse() {
        // `parse` takes a leading plus.
        Ok(port) if port != 0 && text.bytes().all(|b| b.is_ascii_digit()) => Ok(Some(port)),
        _ => Err(InvalidTarget::Port),
    }
}

// === impl Target ===

impl Target {
    /// The target of an absolute URL.
    ///
    /// # Errors
    /// When it is not absolute, not http or https, or malformed.
    pub fn parse(url: &str) -> Result<Self, InvalidTarget> {
        Self::from_uri(&url.parse().map_err(|_| InvalidTarget::Malformed)?)
    }

    /// The target of a request in absolute form (RFC 9112 section 3.2.2), or of an HTTP/2 request with its authority.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn from_uri(uri: &Uri) -> Result<Self, InvalidTarget> {
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(InvalidTarget::Relative);
        };
        let scheme: Scheme = scheme.parse()?;
        let (host, port) = split_authority(authority.as_str())?;
        Ok(Self::new(scheme, host, port.unwrap_or(scheme.default_port()), path_and_query(uri)))
    }

    /// The target `scheme://host:port`, with the path and query of `uri` (whose authority, if any, does not count).
    pub fn on(scheme: Scheme, host: Host, port: u16, uri: &Uri) -> Self {
        Self::new(scheme, host, port, path_and_query(uri))
    }

    fn new(scheme: Scheme, host: Host, port: u16, path_and_query: &str) -> Self {
        let mut url = String::with_capacity(USUAL_ORIGIN + path_and_query.len());
        url.push_str(scheme.as_str());
        url.push_str("://");
        match &host {
            Host::Name(name) => url.push_str(name),
            Host::Ip(IpAddr::V6(v6)) => push(&mut url, format_args!("[{v6}]")),
            Host::Ip(IpAddr::V4(v4)) => push(&mut url, format_args!("{v4}")),
        }
        if port != scheme.default_port() {
            push(&mut url, format_args!(":{port}"));
        }
        let path = url.len();
        // `OPTIONS *` and an empty path have no slash of their own.
        if !path_and_query.starts_with('/') {
            url.push('/');
        }
        url.push_str(path_and_query);
        Self { scheme, host, port, url, path }
    }

    /// How it is spoken to.
    pub const fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Where it is.
    pub const fn host(&self) -> &Host {
        &self.host
    }

    /// The port; the scheme's own if the URL named none.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// As it stands in a `Host` header: brackets around IPv6, no port where it is the scheme's own.
    pub fn authority(&self) -> &str {
        &self.url[self.scheme.as_str().len() + "://".len()..self.path]
    }

    /// `scheme://authority`.
    pub fn origin(&self) -> &str {
        &self.url[..self.path]
    }

    /// The path, as the client wrote it. Always begins with `/`.
    pub fn path(&self) -> &str {
        &self.without_query()[self.path..]
    }

    /// What follows the first `?`, as the client wrote it.
    pub fn query(&self) -> Option<&str> {
        self.path_and_query().split_once('?').map(|(_, query)| query)
    }

    /// Path and query together: the request target in origin form.
    pub fn path_and_query(&self) -> &str {
        &self.url[self.path..]
    }

    /// The whole URL to send the request to. **May hold a signature or a token in its query: not for logs.**
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The URL up to its query: for logs and messages.
    pub fn without_query(&self) -> &str {
        self.url.split_once('?').map_or(&*self.url, |(before, _)| before)
    }

    /// The URL in the form in which equal ones are equal text (RFC 3986 section 6.2.2): unreserved characters are not
    /// percent-encoded, everything else outside printable ASCII is, and hexadecimal digits are in upper case. Rules are
    /// matched against it. **May hold a signature or a token in its query: not for logs.**
    pub fn canonical(&self) -> Cow<'_, str> {
        // Nothing in a scheme or an authority would be encoded in another way.
        canonical_encoding(&self.url)
    }

    /// The same path and query elsewhere.
    #[must_use]
    pub fn at(self, host: Host, port: u16) -> Self {
        Self::new(self.scheme, host, port, self.path_and_query())
    }

    /// The same over TLS: port 80 becomes 443, a port of its own stays.
    #[must_use]
    pub fn over_tls(self) -> Self {
        let port = if self.port == self.scheme.default_port() { 443 } else { self.port };
        Self::new(Scheme::Https, self.host.clone(), port, self.path_and_query())
    }

    /// The same place, with another path and query.
    #[must_use]
    pub fn with_path_and_query(self, path_and_query: &str) -> Self {
        Self::new(self.scheme, self.host, self.port, path_and_query)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let query = if self.query().is_some() { "?[redacted]" } else { "" };
        write!(f, "{}{query}", self.without_query())
    }
}

fn push(text: &mut String, more: fmt::Arguments<'_>) {
    fmt::Write::write_fmt(text, more).expect("a String takes everything");
}

fn path_and_query(uri: &Uri) -> &str {
    uri.path_and_query().map_or("/", |it| it.as_str())
}

/// RFC 3986 section 6.2.2, on a path, a query, or both.
pub(crate) fn canonical_encoding(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|b| b.is_ascii_graphic() && b != b'%') {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    // How much has just been written of an escape that is none, `%` or `%6`: a decoded digit would make it one.
    let mut begun = 0;
    while let Some(&byte) = bytes.get(at) {
        let encoded = bytes.get(at + 1..at + 3).filter(|_| byte == b'%').and_then(decode_pair);
        match encoded {
            Some(octet) if is_unreserved(octet) && !(begun > 0 && octet.is_ascii_hexdigit()) => {
                out.push(char::from(octet));
            }
            Some(octet) => push_encoded(&mut out, octet),
            None if byte.is_ascii_graphic() => out.push(char::from(byte)),
            None => push_encoded(&mut out, byte),
        }
        begun = match (encoded, byte) {
            (None, b'%') => 1,
            (None, byte) if begun == 1 && byte.is_ascii_hexdigit() => 2,
            _ => 0,
        };
        at += if encoded.is_some() { 3 } else { 1 };
    }
    Cow::Owned(out)
}

fn decode_pair(pair: &[u8]) -> Option<u8> {
    let digit = |b: u8| char::from(b).to_digit(16);
    let [high, low] = pair else { return None };
    u8::try_from(digit(*high)? << 4 | digit(*low)?).ok()
}

fn push_encoded(out: &mut String, octet: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    out.push(char::from(DIGITS[usize::from(octet >> 4)]));
    out.push(char::from(DIGITS[usize::from(octet & 15)]));
}

fn is_unreserved(octet: u8) -> bool {
    octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'.' | b'_' | b'~')
}

/// Splits a query into its `name=value` parts; a part's name is decoded, so that `%6Es` is found as `ns`.
pub(crate) fn query_parts(query: &str) -> impl Iterator<Item = (Cow<'_, str>, &str)> {
    query.split('&').map(|part| {
        let name = part.split_once('=').map_or(part, |(name, _)| name);
        (percent_decode_str(name).decode_utf8_lossy(), part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(url: &str) -> String {
        Target::parse(url).unwrap().canonical().into_owned()
    }

    #[test]
    fn equal_urls_are_equal_text() {
        for (url, expected) in [
            ("HTTP://Example.ORG", "http://example.org/"),
            ("http://example.org.:80/", "http://example.org/"),
            ("https://example.org:443/a", "https://example.org/a"),
            ("https://example.org:/a", "https://example.org/a"),
            ("https://example.org:80/a", "https://example.org:80/a"),
            ("https://example.org/%7euser/%2b%2F?q=%41#fragment", "https://example.org/~user/%2B%2F?q=A"),
            ("https://example.org/100%/%zz%4", "https://example.org/100%/%zz%4"),
            // What is no escape does not become one.
            ("https://example.org/%6%32%%36%62%%7a", "https://example.org/%6%32%%36b%z"),
            ("http://[2001:DB8:0::1]:8080/", "http://[2001:db8::1]:8080/"),
            ("http://10.0.0.7", "http://10.0.0.7/"),
            ("http://example.org?a=b", "http://example.org/?a=b"),
        ] {
            assert_eq!(canonical(url), expected, "{url}");
        }
    }

    #[test]
    fn the_origin_gets_what_the_client_wrote() {
        let target = Target::parse("https://example.org/%7Ea?sig=%41%2b#x").unwrap();
        assert_eq!(target.path_and_query(), "/%7Ea?sig=%41%2b");
        assert_eq!(target.url(), "https://example.org/%7Ea?sig=%41%2b");
        assert_eq!((target.path(), target.query()), ("/%7Ea", Some("sig=%41%2b")));
    }

    #[test]
    fn what_is_no_target_says_why() {
        for (url, error) in [
            ("/v2/", InvalidTarget::Relative),
            ("example.org:443", InvalidTarget::Relative),
            ("ftp://example.org/", InvalidTarget::Scheme),
            ("http://user:secret@example.org/", InvalidTarget::UserInformation),
            ("http://example.org:0/", InvalidTarget::Port),
            ("http://exa..mple.org/", InvalidTarget::Host),
            ("http://[::1%25eth0]/", InvalidTarget::Host),
            ("http://a b/", InvalidTarget::Malformed),
            ("", InvalidTarget::Malformed),
        ] {
            assert_eq!(Target::parse(url), Err(error), "{url}");
        }
    }

    #[test]
    fn numbers_that_resolvers_take_for_addresses_are_no_names() {
        for host in [
            "127.1",
            "0x7f000001",
            "0x7f.0.0.1",
            "2130706433",
            "0177.0.0.1",
            "1.2.3.4.5",
            "host.0x",
            "::1:80",
        ] {
            assert!(split_authority(host).is_err(), "{host}");
        }
        for host in ["1password.example", "a_b.example", "4chan", "xn--bcher-kva.example", "1.2.3.x4"] {
            assert!(host.parse::<Host>().is_ok(), "{host}");
        }
    }

    #[test]
    fn an_authority_splits_into_host_and_port() {
        let v6: Host = "::1".parse().unwrap();
        for (text, expected) in [
            ("example.org:443", Ok(("example.org".parse().unwrap(), Some(443)))),
            ("[::1]:443", Ok((v6.clone(), Some(443)))),
            ("[::1]", Ok((v6, None))),
            ("example.org:", Ok(("example.org".parse().unwrap(), None))),
            ("example.org:+80", Err(InvalidTarget::Port)),
            ("example.org:65536", Err(InvalidTarget::Port)),
            (":80", Err(InvalidTarget::Host)),
            ("[::1", Err(InvalidTarget::Host)),
        ] {
            assert_eq!(split_authority(text), expected, "{text}");
        }
    }

    #[test]
    fn tls_moves_the_default_port_only() {
        let tls = |url| Target::parse(url).unwrap().over_tls().url().to_owned();
        assert_eq!(tls("http://example.org/a"), "https://example.org/a");
        assert_eq!(tls("http://example.org:5000/a"), "https://example.org:5000/a");
        assert_eq!(tls("https://example.org:80/a"), "https://example.org:80/a");
    }

    #[test]
    fn debug_output_hides_the_query() {
        let target = Target::parse("https://example.org/a?X-Amz-Signature=secret").unwrap();
        assert_eq!(format!("{target:?}"), "https://example.org/a?[redacted]");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,60}") {
            let _ = Target::parse(&text);
            let _ = split_authority(&text);
            let _ = canonical_encoding(&text);
        }

        #[test]
        fn the_canonical_form_is_its_own(path in "[!-~]{0,40}") {
            if let Ok(target) = Target::parse(&format!("http://example.org/{path}")) {
                let once = target.canonical();
                prop_assert!(once.bytes().all(|b| b.is_ascii_graphic()));
                prop_assert_eq!(canonical(&once), once);
            }
        }
    }
}
