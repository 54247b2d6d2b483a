//! [`Asked`]: what a request asks of the proxy, if it says so without ambiguity.
//!
//! hyper has parsed it by then: line ends, header syntax, Content-Length and chunked framing are right, and a request with
//! both framings has lost its Content-Length and ends its connection (RFC 9112 section 6.3). What is left to refuse is what
//! two parties could understand differently: who is asked.

use crate::own::Own;
use crate::refusal::Refusal;
use darter_rules::{Host, InvalidTarget, Scheme, split_authority};
use http::header::{
    ACCEPT_LANGUAGE, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, ORIGIN, REFERER, TRANSFER_ENCODING,
    USER_AGENT,
};
use http::{Method, Request, Uri, Version};
use std::net::SocketAddr;

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Something of the proxy's own.
    Own(Own),
    /// A tunnel.
    Tunnel {
        /// To which host.
        host: Host,
        /// To which port.
        port: u16,
    },
    /// Whatever the absolute URL names.
    Forward,
    /// A path at a registry.
    Mirror,
    /// A path at the host that the connection was made to.
    Inside,
    /// A path at this host, which the request names by its Host header, or by none.
    Redirected {
        /// Which.
        host: Host,
        /// At which port.
        port: u16,
    },
}

/// To whom the client has connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Side {
    /// To the proxy.
    Port,
    /// To this host, as it believes.
    Inside {
        /// Which.
        host: Host,
        /// At which port.
        port: u16,
    },
    /// To this address, for plain HTTP: the packet filter turned the connection to us.
    Redirected {
        /// Which.
        address: SocketAddr,
    },
}

impl Asked {
    /// What `request`, which came on `side`, asks for.
    ///
    /// # Errors
    /// When it says so in two ways that differ, or in none.
    pub(crate) fn by<B>(request: &Request<B>, side: &Side) -> Result<Self, Refusal> {
        check_framing(request.headers())?;
        let named = named_host(request)?;
        let uri = request.uri();
        match side {
            _ if request.method() == Method::CONNECT => tunnel(request, named, side),
            Side::Port | Side::Redirected { .. } if uri.scheme().is_some() => forward(uri, named),
            Side::Port if uri.path().starts_with('/') && uri.authority().is_none() => {
                mirror(uri, request.headers(), named.as_ref().map(|(host, _)| host))
            }
            Side::Redirected { address } if uri.path().starts_with('/') && uri.authority().is_none() => {
                Ok(redirected(named, *address))
            }
            Side::Inside { host, port } if uri.scheme().is_some() || uri.path().starts_with('/') => {
                inside(uri, named, (host, *port))
            }
            _ => Err(Refusal::malformed("the request's target is neither a URL nor a path")),
        }
    }
}

/// What a request asks for whose URL names this very proxy. In HTTP/2 every request has the whole URL, also when it is for the
/// server at the other end of the connection; in HTTP/1.1 that is how a client asks that uses this proxy for all of its URLs.
///
/// # Errors
/// As of [`Asked::by`].
pub(crate) fn by_whole_url<B>(request: &mut Request<B>, side: &Side) -> Result<Asked, Refusal> {
    let uri = request.uri();
    let own = Own::of(uri, request.headers()).map(Asked::Own);
    if own.is_some() || request.version() != Version::HTTP_2 || *side != Side::Port {
        return Ok(own.unwrap_or(Asked::Forward));
    }
    let (host, _) = authority(uri)?;
    let asked = mirror(uri, request.headers(), Some(&host))?;
    let path = uri.path_and_query().cloned();
    *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    Ok(asked)
}

/// A path that is asked of us: for a name of our own, or as of a registry.
fn mirror(uri: &Uri, headers: &HeaderMap, named: Option<&Host>) -> Result<Asked, Refusal> {
    if let Some(own) = Own::of(uri, headers) {
        return Ok(Asked::Own(own));
    }
    match named {
        Some(Host::Name(name)) if name != "localhost" && is_of_a_page(headers) => Err(Refusal::misdirected(
            "a browser gets the registry mirror by its address alone, or as localhost",
        )),
        _ => Ok(Asked::Mirror),
    }
}

/// Whether a request seems to come from a page in a browser. A page's host can be made to lead here after the page was loaded
/// (DNS rebinding); to the browser the mirror is then that host, so that the page may read what this proxy may. Container
/// engines and package managers show none of this, and reach a mirror by whatever name leads to it: host.docker.internal, a
/// service's name. A language alone is no mark, since NuGet has one, and npm once wrote into Referer what it was doing.
fn is_of_a_page(headers: &HeaderMap) -> bool {
    let begins = |name: HeaderName, with: &str| {
        headers.get(name).is_some_and(|value| value.as_bytes().starts_with(with.as_bytes()))
    };
    let browser = begins(USER_AGENT, "Mozilla/") && headers.contains_key(ACCEPT_LANGUAGE);
    browser
        || begins(REFERER, "http")
        || headers.contains_key(ORIGIN)
        || headers.contains_key("sec-fetch-site")
}

/// Whether no other request may follow on the connection of this one. Who stands in front of the proxy port and gathers the
/// requests of several clients may see the end of chunks elsewhere: hyper takes LF alone for it where trailers begin, and
/// passes over what follows. With one answer to the connection, nobody can get another's.
pub(crate) fn is_last<B>(request: &Request<B>, side: &Side) -> bool {
    !matches!(side, Side::Inside { .. }) && request.headers().contains_key(TRANSFER_ENCODING)
}

/// `host` and, where there is one, `port`.
type Named = (Host, Option<u16>);

fn tunnel<B>(request: &Request<B>, named: Option<Named>, side: &Side) -> Result<Asked, Refusal> {
    if *side != Side::Port {
        return Err(Refusal::unsupported("there is no tunnel inside an intercepted connection"));
    }
    if let Some(length) = request.headers().get(CONTENT_LENGTH)
        && length != "0"
    {
        return Err(Refusal::malformed("a CONNECT has no body"));
    }
    if request.headers().contains_key(TRANSFER_ENCODING) {
        return Err(Refusal::malformed("a CONNECT has no body"));
    }
    // Authority form, and nothing behind it (RFC 9112 section 3.2.3).
    if request.uri().scheme().is_some() || request.uri().path_and_query().is_some() {
        return Err(Refusal::malformed("the target of a CONNECT is a host and a port alone"));
    }
    let authority =
        request.uri().authority().ok_or_else(|| Refusal::malformed("the CONNECT names no host"))?;
    let (host, port) = split_authority(authority.as_str())?;
    let port = port.ok_or_else(|| Refusal::malformed("the CONNECT names no port"))?;
    // Some clients leave the port out of its Host header.
    if let Some((other, other_port)) = named
        && (other != host || other_port.is_some_and(|other| other != port))
    {
        return Err(contradiction());
    }
    Ok(Asked::Tunnel { host, port })
}

fn forward(uri: &Uri, named: Option<Named>) -> Result<Asked, Refusal> {
    check_path(uri)?;
    // RFC 9112 section 3.2.2 lets a proxy pass over the Host header; but whoever sends two different ones hopes that
    // somebody on the way looks at the other.
    if let Some(named) = named
        && !same(&named, &authority(uri)?, scheme(uri)?)
    {
        return Err(contradiction());
    }
    Ok(Asked::Forward)
}

/// The Host header names the host. Without one the address is all there is. A Host without a port stands for the port that
/// the client connected to, as it does for the origin there.
fn redirected(named: Option<Named>, address: SocketAddr) -> Asked {
    let (host, port) = named.unwrap_or_else(|| (address.ip().into(), None));
    Asked::Redirected { host, port: port.unwrap_or(address.port()) }
}

fn inside(uri: &Uri, named: Option<Named>, connected: (&Host, u16)) -> Result<Asked, Refusal> {
    check_path(uri)?;
    let absolute = uri.authority().map(|_| authority(uri)).transpose()?;
    if let (Some(named), Some(absolute)) = (&named, &absolute)
        && !same(named, absolute, Scheme::Https)
    {
        return Err(contradiction());
    }
    if uri.scheme().is_some() && scheme(uri)? != Scheme::Https {
        return Err(Refusal::misdirected("an http URL was asked for inside an https connection"));
    }
    let connected = (connected.0.clone(), Some(connected.1));
    match absolute.or(named) {
        Some(asked) if !same(&asked, &connected, Scheme::Https) => Err(Refusal::misdirected(format!(
            "this connection was made to {}, and the request is for {}",
            connected.0, asked.0
        ))),
        _ => Ok(Asked::Inside),
    }
}

/// `*` is asked of a whole server, and would go on as `/*`.
fn check_path(uri: &Uri) -> Result<(), Refusal> {
    if uri.path().starts_with('/') {
        Ok(())
    } else {
        Err(Refusal::malformed("the request's target is neither a URL nor a path"))
    }
}

fn check_framing(headers: &HeaderMap) -> Result<(), Refusal> {
    // HTTP/1.1 has lost all but one by now; HTTP/2 looks at the first only.
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    if let Some(first) = lengths.next()
        && (lengths.any(|other| other != first) || !first.as_bytes().iter().all(u8::is_ascii_digit))
    {
        return Err(Refusal::malformed("the request says in two ways how long its body is"));
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(only), None) if only.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        // Others are undone by nobody here, and the header does not go on: the body would change its meaning.
        _ => Err(Refusal::malformed("no transfer coding but chunked is understood")),
    }
}

/// What the Host header names. HTTP/1.1 must have exactly one (RFC 9112 section 3.2).
fn named_host<B>(request: &Request<B>) -> Result<Option<Named>, Refusal> {
    let mut values = request.headers().get_all(HOST).iter();
    match (values.next(), values.next()) {
        (Some(only), None) => {
            let text = only.to_str().map_err(|_| Refusal::from(InvalidTarget::Host))?;
            Ok(Some(split_authority(text)?))
        }
        (None, _) if request.version() == Version::HTTP_11 => {
            Err(Refusal::malformed("the request has no Host header"))
        }
        (None, _) => Ok(None),
        (Some(_), Some(_)) => Err(Refusal::malformed("the request has more than one Host header")),
    }
}

fn authority(uri: &Uri) -> Result<Named, InvalidTarget> {
    split_authority(uri.authority().ok_or(InvalidTarget::Relative)?.as_str())
}

fn scheme(uri: &Uri) -> Result<Scheme, InvalidTarget> {
    uri.scheme_str().ok_or(InvalidTarget::Relative)?.parse()
}

fn same(one: &Named, other: &Named, scheme: Scheme) -> bool {
    let port = |named: &Named| named.1.unwrap_or(scheme.default_port());
    one.0 == other.0 && port(one) == port(other)
}

fn contradiction() -> Refusal {
    Refusal::malformed("the request names one host in its target and another in its Host header")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;

    fn request(method: &str, target: &str, headers: &[(&str, &str)]) -> Request<()> {
        let builder = Request::builder().method(method).uri(target);
        headers.iter().fold(builder, |it, (name, value)| it.header(*name, *value)).body(()).unwrap()
    }

    fn status(request: &Request<()>, side: &Side) -> Option<StatusCode> {
        let refusal = Asked::by(request, side).err()?;
        Some(refusal.into_response(crate::refusal::Shape::Text).status())
    }

    fn inside() -> Side {
        Side::Inside { host: "a.example".parse().unwrap(), port: 443 }
    }

    #[test]
    fn each_form_of_a_target_asks_for_its_own() {
        let asked = |method, target, host| {
            Asked::by(&request(method, target, &[("host", host)]), &Side::Port).unwrap()
        };
        assert_eq!(asked("GET", "http://a.example/x", "a.example"), Asked::Forward);
        assert_eq!(asked("GET", "http://A.example:80/x", "a.EXAMPLE"), Asked::Forward);
        assert_eq!(asked("GET", "https://a.example/x", "a.example:443"), Asked::Forward);
        assert_eq!(asked("GET", "/v2/", "proxy.example:65001"), Asked::Mirror);
        assert_eq!(asked("GET", "/healthy", "proxy.example:65001"), Asked::Own(Own::Healthy));
        let tunnel = || Asked::Tunnel { host: "a.example".parse().unwrap(), port: 443 };
        assert_eq!(asked("CONNECT", "a.example:443", "a.example:443"), tunnel());
        assert_eq!(asked("CONNECT", "a.example:443", "a.example"), tunnel());
        for (target, host) in
            [("/x", "a.example"), ("/healthy", "A.example:443"), ("https://a.example/x", "a.example")]
        {
            let asked = Asked::by(&request("GET", target, &[("host", host)]), &inside()).unwrap();
            assert_eq!(asked, Asked::Inside, "{target}");
        }
    }

    #[test]
    fn what_names_two_hosts_is_refused() {
        for (method, target, host) in [
            ("GET", "http://a.example/", "b.example"),
            ("GET", "http://a.example/", "a.example:81"),
            ("GET", "http://a.example/", "a.example:443"),
            ("GET", "https://a.example/", "a.example:80"),
            ("CONNECT", "a.example:443", "b.example:443"),
            ("CONNECT", "a.example:443", "a.example:444"),
        ] {
            let request = request(method, target, &[("host", host)]);
            assert_eq!(status(&request, &Side::Port), Some(StatusCode::BAD_REQUEST), "{target} {host}");
        }
        let request = request("GET", "https://a.example/", &[("host", "b.example")]);
        assert_eq!(status(&request, &inside()), Some(StatusCode::BAD_REQUEST));
    }

    #[test]
    fn a_redirected_request_is_for_the_host_that_it_names() {
        let side = Side::Redirected { address: "192.0.2.1:8080".parse().unwrap() };
        let asked = |target, headers: &[(&str, &str)]| Asked::by(&request("GET", target, headers), &side);
        let at = |host: &str, port| Asked::Redirected { host: host.parse().unwrap(), port };
        assert_eq!(asked("/x", &[("host", "A.example:8080")]).unwrap(), at("a.example", 8080));
        assert_eq!(asked("/x", &[("host", "a.example")]).unwrap(), at("a.example", 8080));
        assert_eq!(asked("/x", &[("host", "a.example:80")]).unwrap(), at("a.example", 80));
        assert_eq!(asked("http://a.example/x", &[("host", "a.example")]).unwrap(), Asked::Forward);
        // Names of our own are names of the origin there.
        assert_eq!(asked("/healthy", &[("host", "a.example")]).unwrap(), at("a.example", 8080));
        let mut old = request("GET", "/x", &[]);
        *old.version_mut() = Version::HTTP_10;
        assert_eq!(Asked::by(&old, &side).unwrap(), at("192.0.2.1", 8080));
        assert_eq!(status(&request("GET", "/x", &[]), &side), Some(StatusCode::BAD_REQUEST));
        let connect = request("CONNECT", "a.example:443", &[("host", "a.example:443")]);
        assert_eq!(status(&connect, &side), Some(StatusCode::BAD_REQUEST));
    }

    #[test]
    fn what_is_meant_for_another_host_is_misdirected() {
        for (target, host) in [
            ("/", "b.example"),
            ("/", "a.example:444"),
            ("https://b.example/", "b.example"),
            ("http://a.example/", "a.example"),
        ] {
            let request = request("GET", target, &[("host", host)]);
            assert_eq!(status(&request, &inside()), Some(StatusCode::MISDIRECTED_REQUEST), "{target} {host}");
        }
    }

    #[test]
    fn malformed_requests_are_refused() {
        for (method, target, headers) in [
            ("GET", "/", &[][..]),
            ("GET", "http://a.example/", &[]),
            ("GET", "/", &[("host", "a.example"), ("host", "a.example")]),
            ("GET", "/", &[("host", "a.example, b.example")]),
            ("GET", "/", &[("host", "user@a.example")]),
            ("GET", "/", &[("host", "")]),
            ("GET", "/", &[("host", "a.example:x")]),
            ("OPTIONS", "*", &[("host", "a.example")]),
            ("GET", "a.example:443", &[("host", "a.example")]),
            ("CONNECT", "a.example", &[("host", "a.example")]),
            ("CONNECT", "/x", &[("host", "a.example")]),
            ("CONNECT", "http://a.example:443", &[("host", "a.example:443")]),
            ("CONNECT", "http://a.example:443/x", &[("host", "a.example:443")]),
            (
                "POST",
                "http://a.example/",
                &[("host", "a.example"), ("content-length", "1"), ("content-length", "2")],
            ),
            ("POST", "http://a.example/", &[("host", "a.example"), ("content-length", "+1")]),
            ("CONNECT", "a.example:443", &[("host", "a.example"), ("content-length", "1")]),
            ("CONNECT", "a.example:443", &[("host", "a.example"), ("transfer-encoding", "chunked")]),
            ("POST", "/", &[("host", "a.example"), ("transfer-encoding", "gzip, chunked")]),
            (
                "POST",
                "/",
                &[("host", "a.example"), ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
            ),
        ] {
            let request = request(method, target, headers);
            assert_eq!(
                status(&request, &Side::Port),
                Some(StatusCode::BAD_REQUEST),
                "{method} {target} {headers:?}"
            );
        }
        let request = request("CONNECT", "a.example:443", &[("host", "a.example:443")]);
        assert_eq!(status(&request, &inside()), Some(StatusCode::BAD_REQUEST));
    }
}
