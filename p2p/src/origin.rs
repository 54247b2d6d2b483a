//! Fetching from where the content comes from: one request, its redirects, and what the answer means.
//!
//! An answer counts as content only when every byte of it can be put in its place: a 200 with a length, or a 206 that says
//! exactly what was asked for. Everything else is either the origin's own word to the caller, to be relayed, or an error.

use crate::ContentInfo;
use crate::http_range::{ContentRange, number, parse_content_range, range_header};
use crate::origins::Asking;
use darter_protocol::{ByteRange, PieceLayout};
use darter_upstream::{Incoming, Upstream, UpstreamError, empty_body};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use url::Url;

/// How much later than the last change an answer must have been given for the date of that change to tell versions apart: within a second
/// there may be two, and clocks differ (RFC 9110 section 8.8.2.2 wants one second at least).
const STRONG_AFTER: Duration = Duration::from_secs(60);

/// Redirects that are followed, as browsers and Go's client do in the main.
const MAX_REDIRECTS: usize = 5;

/// Headers of an answer that belong to the content, whoever asks, and what tells for how long it was good when (RFC 9111):
/// `Date` is when the origin said so. Content-Location is none of them: behind a redirect it may name a place that only the
/// signed URL opens.
const CONTENT_HEADERS: [HeaderName; 9] = [
    header::CONTENT_TYPE,
    header::CONTENT_DISPOSITION,
    header::CONTENT_LANGUAGE,
    header::CACHE_CONTROL,
    header::DATE,
    header::ETAG,
    header::EXPIRES,
    header::LAST_MODIFIED,
    header::VARY,
];
/// The same, by how their names begin.
const CONTENT_HEADER_PREFIXES: [&str; 3] = ["docker-", "x-checksum-", "x-linked-"];
/// Marks content that was imported and has no origin. Told by schedulers alone: what an origin calls so is not kept.
pub(crate) const IMPORTED: HeaderName = HeaderName::from_static("darter-imported");
/// A header longer than this is not kept.
const MAX_HEADER_BYTES: usize = 1024;
/// More headers than this are not kept.
const MAX_HEADERS: usize = 24;

/// Where some content can be had, and as whom.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) url: Url,
    /// The caller's end-to-end headers.
    pub(crate) headers: HeaderMap,
    /// The bytes will be checked against a digest, so that even an unprotected redirect can do no harm.
    pub(crate) verified: bool,
}

/// Which bytes are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// All of them.
    All,
    /// From this offset to the end.
    From(u64),
    /// These.
    Range(ByteRange),
}

/// A body that carries the bytes of content from `start` to `end`, if it keeps its promise.
pub(crate) struct Part {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) body: Incoming,
    /// The origin says that it gives no parts, or gave all of it where a part was asked for.
    pub(crate) no_ranges: bool,
    /// How long the request, and those that led to it, waited for their turns at their origins.
    pub(crate) queued: Duration,
}

/// What the origin answered.
pub(crate) enum Answer {
    /// Bytes of the content.
    Content { info: ContentInfo, part: Part },
    /// The range lies outside content of this length.
    Outside { length: u64 },
    /// The origin's own word, or a success that cannot be cut into pieces or is not for all. `led`: the URL that was asked for led to it, and
    /// may lead somewhere else when it is asked again. `elsewhere`: that is another origin. `lent`: there the operator's certificate
    /// was shown, by which a caller who is sent there himself does not get in.
    Other { response: Response<Incoming>, refused: bool, led: bool, elsewhere: bool, lent: bool },
}

impl Answer {
    /// What may be passed on to a client, who takes as long as he likes.
    fn other(response: Response<Incoming>, refused: bool) -> Self {
        let response = response.map(Incoming::out_of_turn);
        Self::Other { response, refused, led: false, elsewhere: false, lent: false }
    }
}

/// Why there is no answer that can be used.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum OriginError {
    #[error(transparent)]
    Upstream(#[from] Arc<UpstreamError>),
    /// The origin, or a redirect, does what HTTP does not allow.
    #[error("{host} {what}")]
    Invalid { host: String, what: &'static str },
    /// The origin answers a range request with a part that has no certain place in the content: of unknown length, coded,
    /// or another one than was asked for.
    #[error("{host} {what}")]
    Part { host: String, what: &'static str },
}

/// Asks for content. Redirects are followed here, so that no client ever holds a signed URL; credentials go only to the
/// host that they were meant for.
///
/// `validator` goes with a range, so that it is of that version.
pub(crate) async fn fetch(
    asking: &Asking<'_>,
    source: &Source,
    (ask, validator): (Ask, Option<&HeaderValue>),
) -> Result<Answer, OriginError> {
    let mut queued = Duration::ZERO;
    let mut url = source.url.clone();
    if !matches!(url.scheme(), "http" | "https") {
        // Imported content: see `OpenRequest::url`.
        return Err(OriginError::Invalid {
            host: "no daemon that answers".to_owned(),
            what: "has all of it",
        });
    }
    for hop in 0..=MAX_REDIRECTS {
        let request = request(source, &url, ask, validator)?;
        let response = asking.send(&url, request).await?;
        queued += response.body().waited();
        let (led, elsewhere) = (hop > 0, url.origin() != source.url.origin());
        match redirect(&response, &url, source.verified)? {
            Some(next) => url = next,
            // The content's name says which certificate the host is shown that was asked, and not who is shown one after it:
            // others, who show none or another, would be given this by that name. The caller gets it as it came: sent there himself, he
            // would come without a certificate.
            None if response.status().is_success()
                && shows_another_certificate(asking.upstream, &source.url, &url) =>
            {
                let mut response = response.map(Incoming::out_of_turn);
                *response.headers_mut() = relayed_headers(response.headers());
                return Ok(Answer::Other {
                    response,
                    refused: false,
                    led: true,
                    elsewhere: false,
                    lent: true,
                });
            }
            // What has a digest is the same for all.
            None if response.status().is_success()
                && !source.verified
                && !is_for_all(&source.headers, response.headers()) =>
            {
                let response = response.map(Incoming::out_of_turn);
                return Ok(Answer::Other { response, refused: false, led, elsewhere, lent: false });
            }
            None => {
                return Ok(match classify(response, ask, &url)? {
                    Answer::Other { response, refused, lent, .. } => {
                        Answer::Other { response, refused, led, elsewhere, lent }
                    }
                    Answer::Content { info, part } => Answer::Content { info, part: Part { queued, ..part } },
                    outside @ Answer::Outside { .. } => outside,
                });
            }
        }
    }
    Err(invalid(&source.url, "redirects too many times"))
}

/// Whether `last` is shown a client certificate of the operator's that `first` is not.
fn shows_another_certificate(upstream: &Upstream, first: &Url, last: &Url) -> bool {
    let shown = |url: &Url| {
        let (host, port) = (url.host_str()?, url.port_or_known_default()?);
        if url.scheme() == "https" { upstream.certificate(host, port) } else { None }
    };
    first.origin() != last.origin() && shown(last).is_some_and(|last| shown(first) != Some(last))
}

fn request(
    source: &Source,
    url: &Url,
    ask: Ask,
    validator: Option<&HeaderValue>,
) -> Result<Request<darter_upstream::Body>, OriginError> {
    let mut request = Request::builder()
        .method(Method::GET)
        .uri(url.as_str())
        .body(empty_body())
        .map_err(|_| invalid(url, "names a URL that cannot be asked for"))?;
    let headers = request.headers_mut();
    *headers = source.headers.clone();
    for name in
        [header::HOST, header::IF_MATCH, header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE, header::IF_RANGE]
    {
        headers.remove(name);
    }
    for name in [header::IF_UNMODIFIED_SINCE, header::CONTENT_LENGTH, header::RANGE] {
        headers.remove(name);
    }
    if url.origin() != source.url.origin() {
        // Registries and file servers have names of their own for a key: only what certainly is none goes elsewhere.
        *headers = [header::ACCEPT, header::ACCEPT_LANGUAGE, header::USER_AGENT]
            .into_iter()
            .filter_map(|name| Some((name.clone(), headers.get(name)?.clone())))
            .collect();
    }
    // What is stored is the content itself, never a coding of it.
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let range = match ask {
        Ask::All => None,
        Ask::From(start) => Some(range_header(start, None)),
        Ask::Range(range) => Some(range_header(range.start(), Some(range.end()))),
    };
    if let Some(range) = range {
        headers.insert(header::RANGE, range);
        // A changed content must come whole (and be noticed), never as a part of another version.
        if let Some(validator) = validator {
            headers.insert(header::IF_RANGE, validator.clone());
        }
    }
    Ok(request)
}

/// Where an answer points, if it is a redirect.
fn redirect(response: &Response<Incoming>, url: &Url, verified: bool) -> Result<Option<Url>, OriginError> {
    let moved = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    let Some(location) = response.headers().get(header::LOCATION).filter(|_| moved) else { return Ok(None) };
    let next = location.to_str().ok().and_then(|location| url.join(location).ok());
    match next {
        Some(next) if !matches!(next.scheme(), "http" | "https") => {
            Err(invalid(url, "redirects to no http or https URL"))
        }
        Some(next) if url.scheme() == "https" && next.scheme() == "http" && !verified => {
            Err(invalid(url, "redirects from https to http"))
        }
        Some(next) => Ok(Some(next)),
        None => Err(invalid(url, "redirects to something that is no URL")),
    }
}

/// Whether an answer to a request with these headers is for everybody who may have it (RFC 9111 sections 3 and 4.1): it
/// says nothing else, and does not depend on anything in the request by which one caller differs from another. A cookie that
/// comes with it does not matter, since it is not kept (section 7.3): networks in front of package repositories set one on
/// every answer.
fn is_for_all(asked: &HeaderMap, answer: &HeaderMap) -> bool {
    let items = |name: HeaderName| answer.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    let items = |name| items(name).flat_map(|value| value.split(',')).map(str::trim);
    let says = |directive: &str, known: &str| {
        directive.split('=').next().unwrap_or_default().trim().eq_ignore_ascii_case(known)
    };
    let kept_from_others = items(header::CACHE_CONTROL).any(|it| says(it, "private") || says(it, "no-store"));
    !kept_from_others && items(header::VARY).all(|name| is_without(asked, name))
}

/// Whether a request is like most as far as this header goes: it has none, or one that makes no difference to files. The
/// coding is what we ask for, and nothing with a credential is shared.
fn is_without(asked: &HeaderMap, name: &str) -> bool {
    let Ok(name) = name.parse::<HeaderName>() else { return false };
    let indifferent = [header::ACCEPT_ENCODING, header::USER_AGENT, header::RANGE].contains(&name);
    let anything = |value: &HeaderValue| name == header::ACCEPT && value == "*/*";
    name != "*" && (indifferent || asked.get(&name).is_none_or(anything))
}

fn classify(response: Response<Incoming>, ask: Ask, url: &Url) -> Result<Answer, OriginError> {
    match (response.status(), ask) {
        (StatusCode::OK, _) => {
            match content_length(response.headers()).filter(|_| !is_coded(response.headers())) {
                Some(length) => {
                    let no_ranges = ask != Ask::All
                        || response.headers().get(header::ACCEPT_RANGES).is_some_and(|units| units == "none");
                    Ok(content(response, length, (0, length), no_ranges))
                }
                None => Ok(Answer::other(response, false)),
            }
        }
        (StatusCode::PARTIAL_CONTENT, Ask::From(_) | Ask::Range(_)) => {
            let (range, total) = place(ask, response.headers()).map_err(|what| another_part(url, what))?;
            Ok(content(response, total, (range.start(), range.end()), false))
        }
        (StatusCode::RANGE_NOT_SATISFIABLE, Ask::From(_) | Ask::Range(_)) => {
            match content_range(response.headers()) {
                Some(ContentRange::Outside { total }) => Ok(Answer::Outside { length: total }),
                _ => Ok(Answer::other(response, true)),
            }
        }
        (status, _) if status.is_success() => Ok(Answer::other(response, false)),
        _ => Ok(Answer::other(response, true)),
    }
}

/// Where in the content the body of a 206 with these headers belongs, and how long the whole is: only where that is certain,
/// and what was asked for.
///
/// # Errors
/// What the origin does instead, as a clause without its name.
pub fn place(ask: Ask, headers: &HeaderMap) -> Result<(ByteRange, u64), &'static str> {
    let Some(ContentRange::Part { range, total }) = content_range(headers).filter(|_| !is_coded(headers))
    else {
        return Err("answers a range request with a 206 that does not say which part it is");
    };
    let asked = match ask {
        Ask::Range(asked) => ByteRange::new(0, total).and_then(|all| asked.intersect(all)),
        Ask::From(start) => ByteRange::new(start, total),
        Ask::All => None,
    };
    let fits = PieceLayout::new(total).is_some()
        && asked == Some(range)
        && content_length(headers).is_none_or(|length| length == range.len());
    if fits {
        Ok((range, total))
    } else {
        Err("answers a range request with another part than was asked for")
    }
}

fn content_range(headers: &HeaderMap) -> Option<ContentRange> {
    headers.get(header::CONTENT_RANGE).and_then(parse_content_range)
}

fn is_coded(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity")
}

/// The one Content-Length of an answer, if content may be that long.
fn content_length(headers: &HeaderMap) -> Option<u64> {
    let mut values = headers.get_all(header::CONTENT_LENGTH).iter();
    let length = number(values.next()?.to_str().ok()?)?;
    (values.next().is_none() && PieceLayout::new(length).is_some()).then_some(length)
}

/// By what a range of the content with these headers is known to be of the same version (RFC 9110 section 13.1.5): a strong entity tag, or
/// a date of which its origin has said it that much later, where there is no tag at all. `None`: by what the answer says alone.
pub(crate) fn validator(known: &HeaderMap) -> Option<&HeaderValue> {
    if let Some(etag) = known.get(header::ETAG) {
        return (!etag.as_bytes().starts_with(b"W/")).then_some(etag);
    }
    let date = |name| httpdate::parse_http_date(known.get(name)?.to_str().ok()?).ok();
    let age = date(header::DATE)?.duration_since(date(header::LAST_MODIFIED)?).ok()?;
    (age >= STRONG_AFTER).then(|| known.get(header::LAST_MODIFIED)).flatten()
}

/// Whether an answer can be of the version that is known (RFC 9110 section 8.8): it has the first validator that this one has. A part that
/// was asked for by a date is of that version, also where it does not repeat the date (section 15.3.7). Where none is known, the
/// length must do.
pub(crate) fn same_version(known: &HeaderMap, answer: &HeaderMap) -> bool {
    let same = |name| known.get(&name).map(|value| answer.get(&name).map(|other| other == value));
    match (same(header::ETAG), same(header::LAST_MODIFIED)) {
        (Some(same), _) => same == Some(true),
        (None, Some(same)) => same.unwrap_or_else(|| validator(known).is_some()),
        (None, None) => true,
    }
}

fn content(response: Response<Incoming>, length: u64, (start, end): (u64, u64), no_ranges: bool) -> Answer {
    let (parts, body) = response.into_parts();
    let mut info = ContentInfo { length, headers: content_headers(&parts.headers) };
    // Whoever gets a message without a date dates it (RFC 9110 section 6.6.1).
    if let Ok(now) = HeaderValue::try_from(httpdate::fmt_http_date(SystemTime::now())) {
        info.headers.entry(header::DATE).or_insert(now);
    }
    Answer::Content { info, part: Part { start, end, body, no_ranges, queued: Duration::ZERO } }
}

/// What of a host's answer is about the bytes, for whoever is sent them as they come and asked another host.
fn relayed_headers(all: &HeaderMap) -> HeaderMap {
    let mut kept = content_headers(all);
    for name in
        [header::CONTENT_LENGTH, header::CONTENT_RANGE, header::CONTENT_ENCODING, header::TRANSFER_ENCODING]
    {
        kept.extend(all.get(&name).map(|value| (name, value.clone())));
    }
    kept
}

/// The headers that belong to the content itself.
fn content_headers(all: &HeaderMap) -> HeaderMap {
    all.iter()
        .filter(|(name, _)| is_content_header(name))
        .filter(|(_, value)| value.len() <= MAX_HEADER_BYTES && value.to_str().is_ok())
        .take(MAX_HEADERS)
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

fn is_content_header(name: &HeaderName) -> bool {
    CONTENT_HEADERS.contains(name)
        || CONTENT_HEADER_PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix))
}

/// Content headers that came from a scheduler: the same ones are taken as from an origin.
pub(crate) fn content_headers_from(headers: impl IntoIterator<Item = (String, Vec<u8>)>) -> HeaderMap {
    let parsed = headers
        .into_iter()
        .filter_map(|(name, value)| {
            Some((HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?))
        })
        .take(MAX_HEADERS)
        .collect();
    let mut headers = content_headers(&parsed);
    if let Some(imported) = parsed.get(IMPORTED) {
        headers.insert(IMPORTED, imported.clone());
    }
    headers
}

fn invalid(url: &Url, what: &'static str) -> OriginError {
    OriginError::Invalid { host: url.host_str().unwrap_or_default().to_owned(), what }
}

fn another_part(url: &Url, what: &'static str) -> OriginError {
    OriginError::Part { host: url.host_str().unwrap_or_default().to_owned(), what }
}

#[cfg(test)]
mod tests {
    use super::*;
    use darter_upstream::{Dns, Pool, Route, Timeouts, UpstreamConfig};
    use rustls::client::ResolvesClientCert;
    use rustls::sign::{CertifiedKey, Signer, SigningKey};
    use rustls::{SignatureAlgorithm, SignatureScheme};

    /// A certificate that is named and never used.
    #[derive(Debug)]
    struct Named(&'static [u8]);

    impl ResolvesClientCert for Named {
        fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
            let key = vec![self.0.to_vec().into()];
            Some(Arc::new(CertifiedKey::new(key, Arc::new(NoKey))))
        }

        fn has_certs(&self) -> bool {
            true
        }
    }

    #[derive(Debug)]
    struct NoKey;

    impl SigningKey for NoKey {
        fn choose_scheme(&self, _: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
            None
        }

        fn algorithm(&self) -> SignatureAlgorithm {
            SignatureAlgorithm::ECDSA
        }
    }

    /// One that shows `a.example` and `b.example` certificates of their own, and others none.
    fn upstream() -> Upstream {
        let tls = |host: &str| {
            let config =
                rustls::ClientConfig::builder().with_root_certificates(rustls::RootCertStore::empty());
            Route::straight(Arc::new(match host {
                "a.example" => config.with_client_cert_resolver(Arc::new(Named(b"a"))),
                "b.example" => config.with_client_cert_resolver(Arc::new(Named(b"b"))),
                _ => config.with_no_client_auth(),
            }))
        };
        Upstream::new(UpstreamConfig {
            permit: Arc::new(|_, _, _| Ok(())),
            routes: Arc::new(move |host, _| tls(host)),
            dns: Dns::default(),
            timeouts: Timeouts::default(),
            pool: Pool::default(),
            mark: None,
        })
    }

    #[tokio::test]
    async fn what_a_certificate_opens_to_which_a_redirect_led_is_for_nobody_else() {
        // rustls takes the one provider that there is, once it is told to.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let upstream = upstream();
        let shows = |first: &str, last: &str| {
            shows_another_certificate(&upstream, &first.parse().unwrap(), &last.parse().unwrap())
        };
        for first in
            ["http://files.example/x", "https://files.example/x", "http://a.example/x", "https://b.example/x"]
        {
            assert!(shows(first, "https://a.example/x"), "{first}");
            assert!(!shows(first, "https://files.example/y"), "{first}");
            assert!(!shows(first, "http://a.example/y"), "{first}");
        }
        assert!(!shows("https://a.example/x", "https://a.example:444/y"), "its name says so");
        assert!(!shows("https://a.example/x", "https://a.example/y"));
    }

    #[test]
    fn versions_differ_by_the_strongest_validator_that_both_have() {
        let headers = |etag: &str, modified: &str| {
            let named = [(header::ETAG, etag), (header::LAST_MODIFIED, modified)];
            let given = named.into_iter().filter(|(_, value)| !value.is_empty());
            given.map(|(name, value)| (name, value.parse().unwrap())).collect::<HeaderMap>()
        };
        assert!(same_version(&headers("\"1\"", "then"), &headers("\"1\"", "now")));
        assert!(!same_version(&headers("\"1\"", "then"), &headers("\"2\"", "then")));
        assert!(!same_version(&headers("\"1\"", "then"), &headers("", "now")));
        assert!(
            !same_version(&headers("\"1\"", ""), &headers("", "now")),
            "a part has the tag that all of it has"
        );
        assert!(same_version(&headers("", ""), &headers("\"1\"", "now")));
        assert!(!same_version(&headers("", "then"), &headers("", "")), "then was a moment ago");
    }

    #[test]
    fn a_range_is_asked_for_by_a_strong_validator() {
        const THEN: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
        let headers = |etag: Option<&'static str>, modified: Option<&'static str>, date: &'static str| {
            let named = [(header::ETAG, etag), (header::LAST_MODIFIED, modified), (header::DATE, Some(date))];
            let given =
                named.into_iter().filter_map(|(name, value)| Some((name, HeaderValue::from_static(value?))));
            given.collect::<HeaderMap>()
        };
        let by = |known: &HeaderMap| validator(known).map(|value| value.to_str().unwrap().to_owned());
        let later = "Sun, 06 Nov 1994 08:50:37 GMT";
        assert_eq!(by(&headers(Some("\"1\""), Some(THEN), later)).as_deref(), Some("\"1\""));
        assert_eq!(by(&headers(Some("W/\"1\""), Some(THEN), later)), None);
        assert_eq!(by(&headers(None, Some(THEN), later)).as_deref(), Some(THEN));
        for date in ["Sun, 06 Nov 1994 08:50:36 GMT", "Sun, 06 Nov 1994 08:48:37 GMT", "yesterday"] {
            assert_eq!(by(&headers(None, Some(THEN), date)), None, "{date}");
        }
        assert_eq!(by(&headers(None, None, later)), None);
        // A part need not repeat the date by which it was asked for.
        assert!(same_version(&headers(None, Some(THEN), later), &headers(None, None, later)));
        assert!(!same_version(&headers(None, Some(THEN), later), &headers(None, Some(later), later)));
    }
}
