//! Which headers go through the proxy.

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHORIZATION, TE,
    TRANSFER_ENCODING, UPGRADE,
};

/// What concerns one connection only, whether or not a Connection header names it (RFC 9110 section 7.6.1). `TE` is
/// treated apart.
const HOP_BY_HOP: [HeaderName; 6] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
    CONNECTION,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// The headers that clients steer this proxy with. No origin is to see them.
const OURS: &str = "x-dragonfly-";

/// Leaves in a request's headers what is meant for the origin.
pub(crate) fn keep_for_origin(headers: &mut HeaderMap) {
    keep_end_to_end(headers);
    headers.remove(PROXY_AUTHORIZATION);
    join_cookies(headers);
    let ours: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(OURS)).cloned().collect();
    remove_all(headers, ours);
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
}
