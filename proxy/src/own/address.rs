//! [`Address`]: where a client has reached this proxy, in its own words.

use crate::refusal::Refusal;
use darter_rules::{Host, split_authority};
use http::Request;
use http::header::HOST;
use std::fmt;
use std::net::IpAddr;

/// `http://HOST:PORT`, as the client has called this proxy.
///
/// What it shows goes into a shell script and into HTML. Invariant: it consists of ASCII letters, digits and `:/.-_[]`, so
/// that it is one word between quotes, and no markup.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Address(String);

impl Address {
    /// By the URL or the Host header of a request.
    ///
    /// # Errors
    /// When neither names a host.
    pub(super) fn of<B>(request: &Request<B>, secure: bool) -> Result<Self, Refusal> {
        let named = || request.headers().get(HOST)?.to_str().ok();
        let called = request.uri().authority().map(http::uri::Authority::as_str).or_else(named);
        let called = called
            .ok_or_else(|| Refusal::malformed("the request does not say by which name it has come here"))?;
        let (host, port) = split_authority(called)?;
        let (scheme, usual) = if secure { ("https", 443) } else { ("http", 80) };
        // Said also where it is the usual one: to some clients a proxy without a port is at 1080.
        let port = port.unwrap_or(usual);
        let url = match host {
            Host::Ip(IpAddr::V6(v6)) => format!("{scheme}://[{v6}]:{port}"),
            host => format!("{scheme}://{host}:{port}"),
        };
        let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b":/.-_[]".contains(&byte);
        if url.bytes().all(harmless) {
            Ok(Self(url))
        } else {
            Err(Refusal::malformed("the name by which the request has come here is none of a host"))
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(uri: &str, host: &str, secure: bool) -> Option<String> {
        let request = Request::get(uri).header(HOST, host).body(()).unwrap();
        Some(Address::of(&request, secure).ok()?.to_string())
    }

    #[test]
    fn it_is_what_the_client_has_called() {
        for (host, secure, url) in [
            ("Proxy.example:65001", false, "http://proxy.example:65001"),
            ("proxy_1", false, "http://proxy_1:80"),
            ("proxy.example", true, "https://proxy.example:443"),
            ("192.0.2.1:3128", false, "http://192.0.2.1:3128"),
            ("[2001:DB8::1]:3128", false, "http://[2001:db8::1]:3128"),
        ] {
            assert_eq!(called("/setup", host, secure).as_deref(), Some(url));
        }
        let whole = called("http://proxy.example:65001/setup", "proxy.example:65001", false);
        assert_eq!(whole.as_deref(), Some("http://proxy.example:65001"));
    }

    #[test]
    fn what_a_shell_or_a_browser_would_take_for_more_is_refused() {
        for host in [
            "",
            "a b",
            "a'b",
            "a\"b",
            "$(id)",
            "`id`",
            "a;id",
            "a&b",
            "a|b",
            "a>b",
            "<b>",
            "a\\b",
            "a%27b",
            "a/b",
            "a#b",
            "user@a",
            "a:1'",
            "a:99999",
            "[::1]'",
            "[::1%25eth0]",
            "xn--\u{fc}",
        ] {
            assert_eq!(called("/setup", host, false), None, "{host}");
        }
    }
}
