//! [`probe`]: what an origin says of some content to a caller, without the content.

use crate::headers;
use darter_rules::Target;
use darter_upstream::{Incoming, Upstream, UpstreamError, empty_body};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use url::Url;

/// Redirects that are followed to see whether the content is there.
const MAX_REDIRECTS: usize = 5;
/// What another origin than the one that was asked for gets to see.
const ELSEWHERE: [HeaderName; 5] =
    [header::ACCEPT, header::ACCEPT_ENCODING, header::ACCEPT_LANGUAGE, header::RANGE, header::USER_AGENT];

/// What an origin said.
pub(crate) struct Said {
    pub(crate) status: StatusCode,
    /// How long the content is, where that was said.
    pub(crate) length: Option<u64>,
    pub(crate) headers: HeaderMap,
    /// It was said at the end of a redirect.
    redirected: bool,
}

/// Asks the origin, with the caller's own request.
///
/// HEAD costs no byte, and registries do not count it. Where it is refused, or a redirect's signature is for GET alone, the
/// first byte is asked for.
///
/// # Errors
/// When the origin cannot be asked.
pub(crate) async fn probe(
    upstream: &Upstream,
    target: &Target,
    headers: &HeaderMap,
    method: Method,
) -> Result<Said, UpstreamError> {
    let Ok(first) = target.url().parse::<Url>() else { return Ok(Said::nothing(StatusCode::BAD_REQUEST)) };
    let said = follow(upstream, &first, headers, &method).await?;
    let other_method = match said.status {
        StatusCode::BAD_REQUEST | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => true,
        StatusCode::FORBIDDEN => said.redirected,
        _ => false,
    };
    if method == Method::HEAD && other_method {
        return follow(upstream, &first, headers, &Method::GET).await;
    }
    Ok(said)
}

/// Asks, and follows redirects. A redirect says nothing yet: it leads to where the content lies, or to https, or to a page
/// for signing in; only what answers at its end counts.
async fn follow(
    upstream: &Upstream,
    first: &Url,
    headers: &HeaderMap,
    method: &Method,
) -> Result<Said, UpstreamError> {
    let mut url = first.clone();
    for redirects in 0..=MAX_REDIRECTS {
        let mut request = Request::new(empty_body());
        let Ok(uri) = url.as_str().parse() else { break };
        *request.method_mut() = method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = question_headers(headers, method);
        if url.origin() != first.origin() {
            // As the engine does: only what certainly is nobody's key goes elsewhere.
            let keeps = |name: &HeaderName| ELSEWHERE.contains(name);
            let kept = request.headers().iter().filter(|(name, _)| keeps(name));
            *request.headers_mut() = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
        }
        let answer = upstream.send(request).await?;
        let location = answer.headers().get(header::LOCATION).and_then(|to| url.join(to.to_str().ok()?).ok());
        match location
            .filter(|to| answer.status().is_redirection() && matches!(to.scheme(), "http" | "https"))
        {
            Some(next) => url = next,
            None => {
                let length = length_of(&answer);
                let parts = answer.into_parts().0;
                return Ok(Said {
                    status: parts.status,
                    length,
                    headers: parts.headers,
                    redirected: redirects > 0,
                });
            }
        }
    }
    Ok(Said::nothing(StatusCode::NOT_FOUND))
}

impl Said {
    fn nothing(status: StatusCode) -> Self {
        Self { status, length: None, headers: HeaderMap::new(), redirected: true }
    }
}

/// The caller's own headers, without conditions; a GET is for one byte.
fn question_headers(headers: &HeaderMap, method: &Method) -> HeaderMap {
    let mut asked = headers.clone();
    headers::keep_for_origin(&mut asked);
    // An origin may go by them to another site of its own than the one whose content it is.
    headers::drop_forwarded(&mut asked);
    asked.remove(header::RANGE);
    let conditions: Vec<HeaderName> =
        asked.keys().filter(|name| name.as_str().starts_with("if-")).cloned().collect();
    for name in conditions {
        asked.remove(name);
    }
    if method == Method::GET {
        asked.insert(header::RANGE, HeaderValue::from_static("bytes=0-0"));
    }
    asked.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    asked
}

/// How long the content is, by an answer to a request for its first byte.
fn length_of(answer: &Response<Incoming>) -> Option<u64> {
    let name = if answer.status() == StatusCode::PARTIAL_CONTENT {
        header::CONTENT_RANGE
    } else {
        header::CONTENT_LENGTH
    };
    let value = answer.headers().get(name)?.to_str().ok()?;
    value.rsplit('/').next()?.parse().ok()
}
