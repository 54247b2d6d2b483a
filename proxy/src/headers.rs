//! Which headers go through the proxy, and which trailers.
//!
//! Hop-by-hop headers end here, in both directions (RFC 9110 section 7.6.1). Two of them are made anew where the connection
//! itself is asked to become something else ([`Switch`]). The wish for trailers goes on without being named by Connection,
//! which section 10.1.4 asks for in HTTP/1.1: which version the origin will speak is not known here, and gRPC needs the wish
//! in HTTP/2, from which everything that Connection names is taken away.

use darter_protocol::Priority;
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
    COOKIE, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH,
    IF_RANGE, IF_UNMODIFIED_SINCE, MAX_FORWARDS, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, RANGE, SET_COOKIE,
    TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Request, Response, Version};

/// What concerns one connection only, whether or not a Connection header names it (RFC 9110 section 7.6.1). `TE` is
/// treated apart. `HTTP2-Settings` belongs to `Upgrade: h2c` (RFC 7540 section 3.2.1).
const HOP_BY_HOP: [HeaderName; 6] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
    CONNECTION,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// What a server tells the proxy next to it about credentials (RFC 9110 section 11.7). What an origin says there is not
/// for our client, who would take it for ours.
const PROXYS_CREDENTIALS: [HeaderName; 2] =
    [PROXY_AUTHENTICATE, HeaderName::from_static("proxy-authentication-info")];

/// What means something else, or something to somebody else, when it comes after the body: framing, routing, credentials,
/// conditions, and what the body is (RFC 9110 section 6.5.1). Hop-by-hop fields are none either.
const NO_TRAILERS: [HeaderName; 21] = [
    AUTHORIZATION,
    CACHE_CONTROL,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_RANGE,
    CONTENT_TYPE,
    COOKIE,
    EXPECT,
    HOST,
    IF_MATCH,
    IF_MODIFIED_SINCE,
    IF_NONE_MATCH,
    IF_RANGE,
    IF_UNMODIFIED_SINCE,
    MAX_FORWARDS,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    RANGE,
    SET_COOKIE,
    TE,
    TRAILER,
];

/// Protocols that nobody switches to by way of us. Behind HTTP/2 or TLS on the same connection, requests would reach an
/// origin that no rule has judged.
const NO_SWITCH: [&str; 4] = ["h2", "h2c", "http", "tls"];

/// The headers that clients steer this proxy with. No origin is to see them.
const OURS: &str = "x-dragonfly-";

/// What stands in the names of headers whose values let somebody in.
const CREDENTIAL: [&str; 9] =
    ["auth", "cookie", "token", "key", "secret", "password", "credential", "otp", "signature"];

/// How urgent a request is: Dragonfly's levels. What is none of them says nothing.
pub(crate) fn priority(headers: &HeaderMap) -> Priority {
    let level =
        headers.get("x-dragonfly-priority").and_then(|level| level.to_str().ok()?.trim().parse().ok());
    level.and_then(Priority::level).unwrap_or_default()
}

/// Leaves in a request's headers what is meant for the origin.
pub(crate) fn keep_for_origin(headers: &mut HeaderMap) {
    keep_end_to_end(headers);
    headers.remove(PROXY_AUTHORIZATION);
    join_cookies(headers);
    let ours: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(OURS)).cloned().collect();
    remove_all(headers, ours);
}

/// Marks what says who asks, or lets him in from now on: nothing prints its value from then on, and HTTP/2 puts it into no table (RFC 7541 section 7.1.3).
pub(crate) fn hide_credentials(headers: &mut HeaderMap) {
    for (_, value) in headers.iter_mut().filter(|(name, _)| is_credential(name)) {
        value.set_sensitive(true);
    }
}

/// Whether it looks like somebody's key. Registries and servers of files have names of their own for it: Private-Token, Job-Token,
/// X-Api-Key, X-Registry-Auth. What a challenge says (WWW-Authenticate) is none.
fn is_credential(name: &HeaderName) -> bool {
    let name = name.as_str();
    CREDENTIAL.iter().any(|word| name.contains(word)) && !name.ends_with("-authenticate")
}

/// Counts a request down that traces its way by Max-Forwards (RFC 9110 section 7.6.2); tells whether it may go on.
pub(crate) fn count_down(method: &Method, headers: &mut HeaderMap) -> bool {
    if !matches!(*method, Method::OPTIONS | Method::TRACE) {
        return true;
    }
    let left = headers.get(MAX_FORWARDS).and_then(|left| left.to_str().ok()?.trim().parse::<u64>().ok());
    let Some(left) = left else { return true };
    headers.insert(MAX_FORWARDS, HeaderValue::from(left.saturating_sub(1)));
    left > 0
}

/// Drops what proxies before this one, or a caller who pretends to be one, say of the way to the caller (RFC 7239).
pub(crate) fn drop_forwarded(headers: &mut HeaderMap) {
    let said: Vec<HeaderName> = headers.keys().filter(|name| is_of_the_way(name.as_str())).cloned().collect();
    remove_all(headers, said);
}

fn is_of_the_way(name: &str) -> bool {
    name == "forwarded" || name.starts_with("x-forwarded-")
}

/// Leaves in an answer's headers what is meant for the client.
pub(crate) fn keep_for_client(headers: &mut HeaderMap) {
    keep_end_to_end(headers);
    remove_all(headers, PROXYS_CREDENTIALS);
}

/// Leaves in a message's headers what goes from end to end. Repeated headers keep their number and order.
pub(crate) fn keep_end_to_end(headers: &mut HeaderMap) {
    // Trailers pass through here, so a wish for them does, too; no other transfer coding does.
    let wants_trailers = tokens(headers, &TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
        .filter_map(|token| token.parse().ok())
        // It says where the message ends; whoever gets it taken away smuggles.
        .filter(|name| name != CONTENT_LENGTH)
        .collect();
    remove_all(headers, named);
    remove_all(headers, HOP_BY_HOP);
    headers.remove(TE);
    if wants_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Leaves in trailers what may be one.
pub(crate) fn keep_in_trailers(trailers: &mut HeaderMap) {
    keep_end_to_end(trailers);
    remove_all(trailers, NO_TRAILERS);
}

// === Switch ===

/// What a connection is asked to become, or has become: `Upgrade` (RFC 9110 section 7.8), without what may not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Switch(HeaderValue);

impl Switch {
    /// What a client asks for.
    pub(crate) fn asked<B>(request: &Request<B>) -> Option<Self> {
        // HTTP/1.0 has none, and in HTTP/2 it is malformed.
        Self::of(request.headers()).filter(|_| request.version() == Version::HTTP_11)
    }

    /// What a server offers, or has done.
    pub(crate) fn answered<B>(answer: &Response<B>) -> Option<Self> {
        Self::of(answer.headers())
    }

    fn of(headers: &HeaderMap) -> Option<Self> {
        // Without it the header is somebody else's, which came too far.
        if !tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade")) {
            return None;
        }
        let protocols: Vec<&str> = tokens(headers, &UPGRADE).filter(|protocol| may_pass(protocol)).collect();
        HeaderValue::try_from(protocols.join(", ")).ok().filter(|_| !protocols.is_empty()).map(Self)
    }

    /// Whether this names only what `asked` named.
    pub(crate) fn is_among(&self, asked: &Self) -> bool {
        let asked: Vec<&str> = asked.protocols().collect();
        self.protocols().all(|mine| asked.iter().any(|protocol| protocol.eq_ignore_ascii_case(mine)))
    }

    fn protocols(&self) -> impl Iterator<Item = &str> {
        self.0.to_str().unwrap_or_default().split(',').map(str::trim)
    }

    /// Makes the two headers that say so anew.
    pub(crate) fn say(self, headers: &mut HeaderMap) {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, self.0);
    }
}

fn may_pass(protocol: &str) -> bool {
    let name = protocol.split('/').next().unwrap_or(protocol);
    !name.is_empty() && !NO_SWITCH.iter().any(|refused| refused.eq_ignore_ascii_case(name))
}

/// HTTP/2 clients send a cookie's parts as headers of their own; HTTP/1.1 knows one header only (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let parts: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if parts.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&parts.join(&b"; "[..]))
    {
        headers.insert(COOKIE, joined);
    }
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',').map(str::trim))
}

fn remove_all(headers: &mut HeaderMap, names: impl IntoIterator<Item = HeaderName>) {
    for name in names {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn what_says_who_asks_is_not_printed() {
        let names = [
            "authorization",
            "cookie",
            "cookie",
            "proxy-authorization",
            "set-cookie",
            "x-auth-token",
            "private-token",
            "job-token",
            "x-api-key",
            "x-amz-security-token",
            "x-registry-auth",
            "npm-otp",
        ];
        let mut given = HeaderMap::new();
        for name in names {
            given.append(HeaderName::from_static(name), HeaderValue::from_static("hunter2"));
        }
        given.insert("accept", HeaderValue::from_static("text/plain"));
        given.insert("www-authenticate", HeaderValue::from_static("Bearer realm=\"https://a.example/\""));
        hide_credentials(&mut given);
        let shown = format!("{given:?}");
        assert!(!shown.contains("hunter2") && shown.contains("text/plain"), "{shown}");
        assert!(shown.contains("https://a.example/"), "a challenge is for everybody: {shown}");
    }

    #[test]
    fn only_what_goes_from_end_to_end_is_left() {
        let mut given = headers(&[
            ("connection", "close, X-Hop , content-length"),
            ("connection", "x-other"),
            ("x-hop", "1"),
            ("x-other", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic eA=="),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("te", "gzip"),
            ("x-dragonfly-registry", "https://a.example"),
            ("content-length", "5"),
            ("authorization", "Bearer t"),
            ("accept", "a/b"),
            ("accept", "c/d"),
        ]);
        keep_for_origin(&mut given);
        let expected =
            [("content-length", "5"), ("authorization", "Bearer t"), ("accept", "a/b"), ("accept", "c/d")];
        assert_eq!(given, headers(&expected));
    }

    #[test]
    fn the_parts_of_a_cookie_are_put_together() {
        let mut given = headers(&[("cookie", "a=1"), ("cookie", "b=2; c=3")]);
        keep_for_origin(&mut given);
        assert_eq!(given, headers(&[("cookie", "a=1; b=2; c=3")]));
    }

    #[test]
    fn a_wish_for_trailers_passes() {
        let mut given = headers(&[("connection", "te"), ("te", "deflate;q=0.5, Trailers")]);
        keep_end_to_end(&mut given);
        assert_eq!(given, headers(&[("te", "trailers")]));
    }

    fn switch(list: &[(&'static str, &'static str)]) -> Option<String> {
        let switch = Switch::of(&headers(list))?;
        let mut said = HeaderMap::new();
        switch.say(&mut said);
        assert_eq!(said[CONNECTION], "upgrade");
        Some(said[UPGRADE].to_str().unwrap().to_owned())
    }

    #[test]
    fn a_switch_of_protocols_is_asked_for_in_two_headers() {
        let both = |upgrade| switch(&[("connection", "keep-alive, Upgrade"), ("upgrade", upgrade)]);
        assert_eq!(both("websocket"), Some("websocket".to_owned()));
        assert_eq!(both("SPDY/3.1, tcp"), Some("SPDY/3.1, tcp".to_owned()));
        assert_eq!(switch(&[("upgrade", "websocket")]), None);
        assert_eq!(switch(&[("connection", "upgrade")]), None);
        assert_eq!(switch(&[("connection", "close"), ("upgrade", "websocket")]), None);
    }

    #[test]
    fn nobody_switches_to_what_would_carry_requests_past_the_rules() {
        let both = |upgrade| switch(&[("connection", "upgrade, http2-settings"), ("upgrade", upgrade)]);
        for refused in ["h2c", "H2C", "h2", "HTTP/2.0", "TLS/1.0", "h2c, HTTP/1.1", "", ",", "/1"] {
            assert_eq!(both(refused), None, "{refused}");
        }
        assert_eq!(both("h2c, websocket"), Some("websocket".to_owned()));
    }

    #[test]
    fn only_http1_switches() {
        let asked = |version| {
            let request = Request::builder().version(version);
            let request = request.header("connection", "upgrade").header("upgrade", "websocket");
            Switch::asked(&request.body(()).unwrap())
        };
        assert!(asked(Version::HTTP_11).is_some());
        assert_eq!((asked(Version::HTTP_10), asked(Version::HTTP_2)), (None, None));
    }

    #[test]
    fn what_was_switched_to_was_asked_for() {
        let switch = |text| Switch(HeaderValue::from_static(text));
        assert!(switch("WebSocket").is_among(&switch("tcp, websocket")));
        assert!(!switch("tcp").is_among(&switch("websocket")));
        assert!(!switch("websocket, tcp").is_among(&switch("websocket")));
    }

    #[test]
    fn trailers_cannot_change_what_a_message_is() {
        let mut given = headers(&[
            ("content-length", "5"),
            ("transfer-encoding", "chunked"),
            ("host", "b.example"),
            ("authorization", "Bearer t"),
            ("set-cookie", "a=1"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("trailer", "x-sum"),
            ("grpc-status", "0"),
            ("x-sum", "42"),
            ("x-sum", "43"),
        ]);
        keep_in_trailers(&mut given);
        assert_eq!(given, headers(&[("grpc-status", "0"), ("x-sum", "42"), ("x-sum", "43")]));
    }

    #[test]
    fn an_origin_asks_nobody_for_the_proxys_password() {
        let mut given =
            headers(&[("proxy-authenticate", "Basic"), ("www-authenticate", "Basic"), ("via", "1.1 a")]);
        keep_for_client(&mut given);
        assert_eq!(given, headers(&[("www-authenticate", "Basic"), ("via", "1.1 a")]));
    }
}
