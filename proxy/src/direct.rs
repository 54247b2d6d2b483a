//! The direct route: a request streams to its origin and the answer back, neither of them changed, kept or repeated.
//!
//! No byte is copied here but between the buffers of the two connections; what one side does not take, the other is not
//! asked for, so a body of any size costs the same memory. How long each message is, is said anew from how it was
//! understood: a request or an answer that could be understood in two ways is refused, or goes on in one.
//!
//! A request may ask its connection to become something else (WebSocket, SPDY, tcp): when the origin agrees, both
//! connections become a tunnel. RFC 8441 (WebSocket inside a stream of HTTP/2) is not spoken; clients fall back to HTTP/1.1.

use crate::accounts::Login;
use crate::entitle::Asker;
use crate::expect;
use crate::headers::{self, Switch};
use crate::idle::{Activity, Kind};
use crate::labels::Outcome;
use crate::pipeline::Answer;
use crate::refusal::Refusal;
use crate::trail::Trail;
use crate::tunnel::Tunnel;
use crate::via::Came;
use crate::{Body, BoxError, Proxy, TRACE};
use bytes::Bytes;
use darter_rules::Target;
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use hyper::upgrade::OnUpgrade;
use std::error::Error as StdError;
use std::sync::Arc;
use tokio::time::Instant;
use tracing::Instrument as _;

/// Sends a request on to `target`, and gives what comes back.
///
/// # Errors
/// When no answer came, or none that can be understood in one way only.
pub(crate) async fn answer<B>(
    proxy: &Proxy,
    target: &Target,
    mut request: Request<B>,
    outcome: Outcome,
) -> Result<Answer, Refusal>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
{
    let trail = Trail::of(&request);
    let method = request.method().clone();
    if !headers::count_down(&method, request.headers_mut()) {
        return last_hop(&method);
    }
    // With a body in the way nobody knows where the other protocol begins.
    let switch = Switch::asked(&request).filter(|_| request.body().is_end_stream());
    let switch = switch.map(|asked| (asked, hyper::upgrade::on(&mut request)));
    let (parts, body) = request.into_parts();
    let headers = parts.headers.clone();
    let version = parts.version;
    let settings = proxy.settings();
    let came = parts.extensions.get::<Came>().copied();
    let account = parts.extensions.get::<Login>().cloned();
    let activity = Activity::current();
    let sending = activity.body(Kind::Request, body);
    let mut request = outgoing(target, parts, sending, switch.as_ref().map(|it| &it.0), &trail)?;
    if let Some(came) = came {
        settings.marks.forwarded.say(request.headers_mut(), came);
        if settings.marks.via {
            proxy.pseudonym.say(request.headers_mut(), came.version);
        }
    }
    let (request, expecting) = expect::hold(request, version);
    let asked = Instant::now();
    let span = tracing::info_span!(target: TRACE, "origin", otel.kind = "client", server.address = %target.authority());
    let answer = tokio::select! {
        answer = proxy.upstream.send(request).instrument(span) => answer?,
        quiet = activity.quiet_for(settings.limits.body_idle_timeout) => return Err(quiet.into()),
    };
    trail.answered(asked, &answer);
    if !method.is_safe() {
        proxy.missing.written(target);
    }
    if answer.status().is_informational() {
        return switched(answer, switch, target, proxy);
    }
    let answered = answer.version();
    let asker = Asker { headers: &headers, account: account.as_ref() };
    let answer = proxy.gate.watch(target, &method, asker, answer);
    let mut answer = relay(answer, &method, target)?;
    if settings.marks.via {
        proxy.pseudonym.say(answer.headers_mut(), answered);
    }
    let answer = match expecting {
        Some(expecting) => expecting.answered(answer),
        None => answer,
    };
    Ok(Answer::Body(answer, outcome, None))
}

/// A request that was to come as far as this. What it held is not sent back, as TRACE asks for: credentials may stand in it.
fn last_hop(method: &Method) -> Result<Answer, Refusal> {
    if method == Method::TRACE {
        return Err(Refusal::method("OPTIONS"));
    }
    let mut response = Response::new(crate::full(""));
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(Answer::Body(response, Outcome::Own, None))
}

/// The origin has agreed to another protocol.
fn switched(
    answer: Response<darter_upstream::Incoming>,
    asked: Option<(Switch, OnUpgrade)>,
    target: &Target,
    proxy: &Proxy,
) -> Result<Answer, Refusal> {
    let agreed = Switch::answered(&answer).filter(|_| answer.status() == StatusCode::SWITCHING_PROTOCOLS);
    let (Some((asked, client)), Some(agreed)) = (asked, agreed) else {
        return Err(Refusal::bad_answer(target, "switched to another protocol without being asked"));
    };
    if !agreed.is_among(&asked) {
        return Err(Refusal::bad_answer(target, "switched to another protocol than it was asked for"));
    }
    let mut response = Response::new(crate::full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = answer.headers().clone();
    headers::keep_for_client(response.headers_mut());
    agreed.say(response.headers_mut());
    Ok(Answer::Tunnel(response, Tunnel::switched(client, hyper::upgrade::on(answer), proxy)))
}

fn outgoing(
    target: &Target,
    parts: Parts,
    body: impl http_body::Body<Data = Bytes, Error = BoxError> + Send + 'static,
    switch: Option<&Switch>,
    trail: &Arc<Trail>,
) -> Result<Request<Body>, Refusal> {
    let Parts { method, mut headers, .. } = parts;
    headers::keep_for_origin(&mut headers);
    say_length(&mut headers, &body);
    if let Some(switch) = switch {
        switch.clone().say(&mut headers);
    }
    let trail = Arc::clone(trail);
    let body = body.map_frame(move |frame| {
        trail.receive(frame.data_ref().map_or(0, Bytes::len));
        end_to_end(frame)
    });
    let mut request = Request::new(body.boxed_unsync());
    *request.method_mut() = method;
    *request.uri_mut() = uri(target)?;
    *request.headers_mut() = headers;
    Ok(request)
}

/// Says how long a request's body is, as it was understood. hyper would leave out a GET's that has no length.
fn say_length(headers: &mut HeaderMap, body: &impl http_body::Body) {
    match (headers.remove(CONTENT_LENGTH), body.size_hint().exact()) {
        // A request that says nothing has no body, and goes on saying nothing.
        (None, Some(0)) => {}
        (_, Some(length)) => {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        (_, None) => {
            headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
    }
}

fn uri(target: &Target) -> Result<Uri, Refusal> {
    target.url().parse().map_err(|_| Refusal::unsupported("the request's URL is malformed or too long"))
}

fn end_to_end(frame: http_body::Frame<Bytes>) -> http_body::Frame<Bytes> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            headers::keep_in_trailers(&mut trailers);
            http_body::Frame::trailers(trailers)
        }
        Err(frame) => frame,
    }
}

/// An origin's answer on its way to the client who asked with `method`.
///
/// # Errors
/// When it could be understood in two ways.
pub(crate) fn relay<B>(
    answer: Response<B>,
    method: &Method,
    target: &Target,
) -> Result<Response<Body>, Refusal>
where
    B: http_body::Body<Data = Bytes, Error = hyper::Error> + Send + 'static,
{
    check(&answer, target)?;
    let offered = Switch::answered(&answer).filter(|_| answer.status() == StatusCode::UPGRADE_REQUIRED);
    let (mut parts, body) = answer.into_parts();
    headers::keep_for_client(&mut parts.headers);
    headers::hide_credentials(&mut parts.headers);
    let length = said_length(&parts.headers, parts.status, method, &body);
    parts.headers.remove(CONTENT_LENGTH);
    parts.headers.extend(length.map(|length| (CONTENT_LENGTH, HeaderValue::from(length))));
    if let Some(offered) = offered {
        offered.say(&mut parts.headers);
    }
    let body = body.map_frame(end_to_end).map_err(|error| ended_early(&error));
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = parts.status;
    *response.headers_mut() = parts.headers;
    // The origin's own words after the status, where they are not the usual ones.
    if let Some(reason) = parts.extensions.remove::<hyper::ext::ReasonPhrase>() {
        response.extensions_mut().insert(reason);
    }
    Ok(response)
}

/// Refuses what others may take for something else than hyper does (RFC 9112 section 6.3), and what is not for an origin to
/// say.
fn check<B>(answer: &Response<B>, target: &Target) -> Result<(), Refusal> {
    let bad = |what| Err(Refusal::bad_answer(target, what));
    let mut codings = answer.headers().get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => {}
        (Some(_), _) if answer.headers().contains_key(CONTENT_LENGTH) => {
            return bad("sent an answer with both a Content-Length and a Transfer-Encoding");
        }
        (Some(only), None) if only.as_bytes().eq_ignore_ascii_case(b"chunked") => {}
        // Others are undone by nobody here, and the header does not go on: the body would change its meaning.
        (Some(_), _) => return bad("sent an answer with another transfer coding than chunked"),
    }
    if answer.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
        // Our client would take it for ours, and send us another host's password.
        return bad("answered as if it were a proxy (407)");
    }
    Ok(())
}

/// The Content-Length that an answer goes on with.
fn said_length(
    headers: &HeaderMap,
    status: StatusCode,
    method: &Method,
    body: &impl http_body::Body,
) -> Option<u64> {
    let said = headers.get(CONTENT_LENGTH)?;
    match status {
        // A 304 tells the length of what is not sent; hyper would drop it with a warning. A 204 has none (RFC 9110
        // section 8.6).
        StatusCode::NOT_MODIFIED | StatusCode::NO_CONTENT => None,
        _ if method == Method::HEAD => {
            let said = said.to_str().ok().filter(|said| said.bytes().all(|byte| byte.is_ascii_digit()));
            said?.parse().ok()
        }
        _ => body.size_hint().exact(),
    }
}

fn ended_early(error: &hyper::Error) -> BoxError {
    let cause = std::iter::successors(error.source(), |error| (**error).source()).last();
    let cause = cause.map_or_else(|| error.to_string(), ToString::to_string);
    format!("the origin's answer ended early: {cause}").into()
}
