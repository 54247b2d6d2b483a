//! [`Refusal`]: an answer that the proxy itself gives instead of an origin's, and why. Every failure becomes a status here
//! and nowhere else.

use crate::Body;
use crate::idle::Quiet;
use crate::realms::Judge;
use crate::request_id::{RequestId, X_REQUEST_ID};
use darter_entitle::Pause;
use darter_p2p::OpenError;
use darter_rules::{DestinationRefused, InvalidTarget};
use darter_upstream::{Fault, UpstreamError};
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};

use hyper::ext::ReasonPhrase;
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// A reason phrase that is longer than this is cut, in bytes: some clients read a status line into a small buffer.
const MAX_REASON: usize = 400;

/// Why a request gets no origin's answer.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    status: StatusCode,
    /// The error type of the Proxy-Status header (RFC 9209 section 2.3).
    error: &'static str,
    /// One sentence for people. No query, no secret.
    sentence: String,
    /// What the status obliges us to send along.
    header: Option<(HeaderName, HeaderValue)>,
    /// Whether the connection ends here, because it is not certain where the next request begins.
    last: bool,
}

/// In which form a client can show an answer to people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Plain text, and the reason phrase.
    Text,
    /// The error format of registries (OCI distribution-spec, "Error Codes").
    Oci,
    /// The reason phrase: all that clients show of a refused CONNECT.
    Connect,
}

impl Shape {
    pub(crate) fn for_request<B>(request: &Request<B>) -> Self {
        let path = request.uri().path();
        if request.method() == Method::CONNECT {
            Self::Connect
        } else if path == "/v2" || path.starts_with("/v2/") || path.starts_with("/ns/") {
            Self::Oci
        } else {
            Self::Text
        }
    }
}

/// What [`UpstreamError`] calls a certificate that did not pass.
const CERTIFICATE: &str = "tls_certificate_error";

impl Refusal {
    /// The request is malformed or ambiguous.
    pub(crate) fn malformed(sentence: impl Into<String>) -> Self {
        Self { last: true, ..Self::new(StatusCode::BAD_REQUEST, "http_request_error", sentence) }
    }

    /// What came is no request's head, and the parser says `status`; `None` for one that it never says. The numbers are those
    /// in `serve`, and hyper's own for the URL.
    pub(crate) fn unread(status: StatusCode) -> Option<Self> {
        let sentence = match status {
            StatusCode::BAD_REQUEST => {
                "what came is not the head of a request: a line, a header or a length in it is malformed"
            }
            StatusCode::URI_TOO_LONG => "request URI too long: it may have at most 65,534 bytes",
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
                "request header fields too large: a head may have at most 128 KiB, in at most 200 lines"
            }
            _ => return None,
        };
        Some(Self { last: true, ..Self::new(status, "http_request_error", sentence) })
    }

    /// The request is well-formed, but asks for what is not done.
    pub(crate) fn unsupported(sentence: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "http_request_error", sentence)
    }

    /// The request is for another host than the one that the connection was made to.
    pub(crate) fn misdirected(sentence: impl Into<String>) -> Self {
        Self::new(StatusCode::MISDIRECTED_REQUEST, "http_request_error", sentence)
    }

    /// A name of the proxy's own that has nothing to give.
    pub(crate) fn not_found(sentence: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "http_request_denied", sentence)
    }

    /// A name of the proxy's own that knows only other methods.
    pub(crate) fn method(allowed: &'static str) -> Self {
        let refusal = Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "http_request_denied",
            format!("only {allowed} are understood here"),
        );
        Self { header: Some((header::ALLOW, HeaderValue::from_static(allowed))), ..refusal }
    }

    /// The client may read and not write.
    pub(crate) fn no_push() -> Self {
        let sentence = "pushing through this proxy is switched off (proxy.allowPush)";
        let refusal = Self::new(StatusCode::METHOD_NOT_ALLOWED, "http_request_denied", sentence);
        Self { header: Some((header::ALLOW, HeaderValue::from_static("GET, HEAD"))), ..refusal }
    }

    /// The origin's answer is none to what was asked, or one that two parties could understand differently.
    pub(crate) fn bad_answer(target: &darter_rules::Target, what: &str) -> Self {
        let sentence = format!("{} {what}", target.authority());
        Self::new(StatusCode::BAD_GATEWAY, "http_protocol_error", sentence)
    }

    /// The request went through this proxy before.
    pub(crate) fn comes_round() -> Self {
        Self::new(
            StatusCode::LOOP_DETECTED,
            "proxy_loop_detected",
            "this request went through this proxy before: where it is sent to sends it back",
        )
    }

    /// The client is not one that is served.
    pub(crate) fn stranger(from: IpAddr) -> Self {
        let sentence = format!("this proxy does not serve clients at {from} (proxy.clients)");
        Self { last: true, ..Self::new(StatusCode::FORBIDDEN, "http_request_denied", sentence) }
    }

    /// The client asks faster than it may.
    pub(crate) fn too_fast(wait: Duration) -> Self {
        let seconds = whole_seconds(wait);
        let sentence = format!(
            "this proxy takes no more requests from one client for now (proxy.perClient); try again in {seconds} s"
        );
        Self::new(StatusCode::TOO_MANY_REQUESTS, "http_request_denied", sentence).after(seconds)
    }

    /// Content is here, but whether this client may have it is not known, and its origin cannot be asked.
    pub(crate) fn unproven(error: &UpstreamError) -> Self {
        let refusal = Self::from(error);
        // Whoever only hangs up may be there again in a moment; what is forbidden, or is not who it says, is no better then.
        if !error.is_retryable() {
            return refusal;
        }
        let sentence = format!(
            "{}, so it cannot say whether this caller may have this; only callers whom it has let in lately are served meanwhile",
            refusal.sentence
        );
        Self { status: StatusCode::SERVICE_UNAVAILABLE, sentence, ..refusal }
    }

    /// The same while its origin has had enough of this caller's questions. Its own status, so that clients do what they do
    /// without a proxy.
    pub(crate) fn paused(target: &darter_rules::Target, pause: Pause) -> Self {
        let seconds = whole_seconds(pause.until.saturating_duration_since(Instant::now())).max(1);
        let sentence = format!(
            "{} answered {} when it was asked whether this caller may have this; it is asked again in {seconds} s",
            target.authority(),
            pause.status
        );
        let status = StatusCode::from_u16(pause.status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        Self::new(status, "http_request_denied", sentence).after(seconds)
    }

    /// So many others ask the same host who they are that this client's turn did not come.
    pub(crate) fn crowded(
        target: &darter_rules::Target,
        judge: Judge,
        (waited, at_once): (Duration, usize),
        again: Duration,
    ) -> Self {
        let question = match judge {
            Judge::Registry => "whether this caller may have this",
            Judge::TokenService => "for a token",
        };
        let (waited, seconds) = (whole_seconds(waited), whole_seconds(again));
        let sentence = format!(
            "{} is asked {at_once} such questions at once (proxy.maxAuthentications), and answers so slowly that it could not be asked \
             {question} within {waited} s; try again in {seconds} s",
            target.authority()
        );
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "connection_limit_reached", sentence).after(seconds)
    }

    /// A form did not come in time, or not in whole.
    pub(crate) fn no_form() -> Self {
        let sentence = "the request's body was not complete in time";
        Self { last: true, ..Self::new(StatusCode::REQUEST_TIMEOUT, "http_request_error", sentence) }
    }

    /// The client has to say who it is.
    pub(crate) fn unauthenticated() -> Self {
        let refusal = Self::new(
            StatusCode::PROXY_AUTHENTICATION_REQUIRED,
            "http_request_denied",
            "this proxy asks for a user name and a password (Proxy-Authorization), and these are not right or missing",
        );
        let challenge = HeaderValue::from_static("Basic realm=\"darter\", charset=\"UTF-8\"");
        Self { header: Some((header::PROXY_AUTHENTICATE, challenge)), ..refusal }
    }

    /// The request is for another version of the content.
    pub(crate) fn precondition_failed() -> Self {
        let sentence = "the content is not the one that the request's If-Match or If-Unmodified-Since names";
        Self::new(StatusCode::PRECONDITION_FAILED, "http_request_denied", sentence)
    }

    fn new(status: StatusCode, error: &'static str, sentence: impl Into<String>) -> Self {
        Self { status, error, sentence: sentence.into(), header: None, last: false }
    }

    /// The same, with when to come again.
    fn after(self, seconds: u64) -> Self {
        Self { header: Some((header::RETRY_AFTER, HeaderValue::from(seconds))), ..self }
    }

    /// Whether it is a failure of ours or of the origin's rather than a decision.
    pub(crate) fn is_failure(&self) -> bool {
        self.status.is_server_error()
    }

    /// Whether an origin's certificate did not pass.
    pub(crate) fn is_distrust(&self) -> bool {
        self.error == CERTIFICATE
    }

    /// The answer that a client gets.
    pub(crate) fn into_response(self, shape: Shape) -> Response<Body> {
        let (content_type, body) = match shape {
            Shape::Oci => ("application/json", self.oci()),
            Shape::Text | Shape::Connect => ("text/plain; charset=utf-8", format!("{}\n", self.sentence)),
        };
        let mut response = Response::new(crate::full(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(PROXY_STATUS, self.proxy_status());
        headers.extend(self.header.clone());
        if self.last {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        // Also where there is a body: wget, apt and dnf show nothing else of a plain answer.
        if shape != Shape::Oci
            && let Ok(reason) = ReasonPhrase::try_from(printable(&self.sentence))
        {
            response.extensions_mut().insert(reason);
        }
        response
    }

    /// The same for a client with which nobody speaks HTTP: the bytes of an answer behind which the connection closes.
    pub(crate) fn as_http1(&self, id: &RequestId) -> Vec<u8> {
        let (status, body) = (self.status, format!("{}\n", self.sentence));
        let mut answer = format!(
            "HTTP/1.1 {} {}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n{X_REQUEST_ID}: {id}\r\n{PROXY_STATUS}: ",
            status.as_u16(),
            status.canonical_reason().unwrap_or_default(),
            body.len()
        )
        .into_bytes();
        answer.extend_from_slice(self.proxy_status().as_bytes());
        answer.extend_from_slice(b"\r\nConnection: close\r\n\r\n");
        answer.extend_from_slice(body.as_bytes());
        answer
    }

    /// Docker shows `code` in lower case before `message`.
    fn oci(&self) -> String {
        let code = match self.status {
            StatusCode::UNAUTHORIZED | StatusCode::PROXY_AUTHENTICATION_REQUIRED => "UNAUTHORIZED",
            StatusCode::FORBIDDEN => "DENIED",
            StatusCode::TOO_MANY_REQUESTS => "TOOMANYREQUESTS",
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                "UNAVAILABLE"
            }
            status if status.is_client_error() => "UNSUPPORTED",
            _ => "UNKNOWN",
        };
        serde_json::json!({ "errors": [{ "code": code, "message": self.sentence }] }).to_string()
    }

    /// `darter; error=...; details="..."` (RFC 9209; strings as in RFC 8941 section 3.3.3).
    fn proxy_status(&self) -> HeaderValue {
        let details = printable(&self.sentence).replace('\\', "\\\\").replace('"', "\\\"");
        HeaderValue::try_from(format!("darter; error={}; details=\"{details}\"", self.error))
            .expect("printable ASCII makes a header value")
    }
}

impl Refusal {
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

pub(crate) const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// Retry-After has whole seconds (RFC 9110 section 10.2.3): rounded up, so that it is not too soon again.
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

/// One line of printable ASCII, not too long.
fn printable(text: &str) -> String {
    text.chars().take(MAX_REASON).map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '?' }).collect()
}

// === every failure's status ===

impl From<UpstreamError> for Refusal {
    fn from(error: UpstreamError) -> Self {
        Self::from(&error)
    }
}

/// The verdict is made where the error is made.
impl From<&UpstreamError> for Refusal {
    fn from(error: &UpstreamError) -> Self {
        let verdict = error.verdict();
        let refusal = Self::new(verdict.status, verdict.proxy_status, error.to_string());
        // A request body that failed leaves bytes on the connection that belong to nothing.
        Self { last: verdict.fault == Fault::Caller, ..refusal }
    }
}

/// Before there was an answer.
impl From<Quiet> for Refusal {
    fn from(quiet: Quiet) -> Self {
        let (status, error) = if quiet.is_client() {
            (StatusCode::REQUEST_TIMEOUT, "http_request_error")
        } else {
            (StatusCode::GATEWAY_TIMEOUT, "connection_write_timeout")
        };
        // Nobody knows when the rest of the request would come.
        Self { last: true, ..Self::new(status, error, quiet.to_string()) }
    }
}

impl From<OpenError> for Refusal {
    fn from(error: OpenError) -> Self {
        let sentence = error.to_string();
        match error {
            OpenError::Upstream(error) => Self::from(&*error),
            OpenError::NotSatisfiable { length } => Self {
                header: Some((header::CONTENT_RANGE, crate::range::unsatisfied_range(length))),
                ..Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "http_request_error", sentence)
            },
            OpenError::Origin(_) => Self::new(StatusCode::BAD_GATEWAY, "http_protocol_error", sentence),
            // Usually streamed past the engine instead; this is for where that is not possible.
            OpenError::Store(_) => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "proxy_internal_error", sentence)
            }
            OpenError::NotShareable => Self::new(StatusCode::BAD_GATEWAY, "proxy_internal_error", sentence),
            OpenError::Refused { for_good: true, .. } => {
                Self::new(StatusCode::FORBIDDEN, "http_request_denied", sentence)
            }
            OpenError::Refused { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "destination_unavailable", sentence)
            }
            OpenError::Unavailable(_) => {
                Self::new(StatusCode::BAD_GATEWAY, "destination_unavailable", sentence)
            }
        }
    }
}

impl From<darter_rules::Refusal> for Refusal {
    fn from(refusal: darter_rules::Refusal) -> Self {
        use darter_rules::Refusal as R;
        let sentence = refusal.to_string();
        match refusal {
            R::Target(refused) => refused.into(),
            R::Registry(_) => Self::unsupported(sentence),
            R::Destination(refused) => refused.into(),
            // The operator's mistake, not the client's.
            R::Redirect { .. } => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "proxy_configuration_error", sentence)
            }
        }
    }
}

impl From<InvalidTarget> for Refusal {
    fn from(invalid: InvalidTarget) -> Self {
        Self::unsupported(invalid.to_string())
    }
}

impl From<DestinationRefused> for Refusal {
    fn from(refused: DestinationRefused) -> Self {
        Self::new(StatusCode::FORBIDDEN, "destination_ip_prohibited", refused.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;

    fn text(response: Response<Body>) -> String {
        let body = futures_util::FutureExt::now_or_never(response.into_body().collect());
        String::from_utf8(body.unwrap().unwrap().to_bytes().to_vec()).unwrap()
    }

    #[test]
    fn a_refusal_says_why_in_its_reason_phrase_too() {
        let response = Refusal::unsupported("what \"now\"\r\nX: 1 \u{e9}?").into_response(Shape::Connect);
        let reason = response.extensions().get::<ReasonPhrase>().unwrap();
        assert_eq!(reason.as_bytes(), b"what \"now\"??X: 1 ??");
        assert_eq!(
            response.headers()[PROXY_STATUS],
            "darter; error=http_request_error; details=\"what \\\"now\\\"??X: 1 ??\""
        );
        let other = Refusal::unsupported("no").into_response(Shape::Text);
        assert_eq!(other.extensions().get::<ReasonPhrase>().unwrap().as_bytes(), b"no");
        assert_eq!(text(other), "no\n");
        let registry = Refusal::unsupported("no").into_response(Shape::Oci);
        assert!(registry.extensions().get::<ReasonPhrase>().is_none());
    }

    #[test]
    fn a_registry_client_gets_the_error_format_of_registries() {
        let response = Refusal::unauthenticated().into_response(Shape::Oci);
        assert_eq!(response.status(), StatusCode::PROXY_AUTHENTICATION_REQUIRED);
        assert!(response.headers().contains_key(header::PROXY_AUTHENTICATE));
        let body: serde_json::Value = serde_json::from_str(&text(response)).unwrap();
        assert_eq!(body["errors"][0]["code"], "UNAUTHORIZED");
    }

    #[test]
    fn a_range_outside_says_how_long_the_content_is() {
        let response = Refusal::from(OpenError::NotSatisfiable { length: 7 }).into_response(Shape::Text);
        assert_eq!(response.status(), StatusCode::RANGE_NOT_SATISFIABLE);
        assert_eq!(response.headers()[header::CONTENT_RANGE], "bytes */7");
    }
}
