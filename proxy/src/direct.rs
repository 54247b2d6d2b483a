//! The direct route: a request streams to its origin and the answer back, neither of them changed, kept or repeated.
//!
//! No byte is copied here but between the buffers of the two connections; what one side does not take, the other is not
//! asked for, so a body of any size costs the same memory.

use crate::headers;
use crate::metrics::Outcome;
use crate::pipeline::Answer;
use crate::refusal::Refusal;
use crate::{Body, BoxError, Proxy};
use bytes::Bytes;
use darter_rules::Target;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use std::error::Error as StdError;

/// Sends a request on to `target`, and gives what comes back.
///
/// # Errors
/// When no answer came.
pub(crate) async fn answer(
    proxy: &Proxy,
    target: &Target,
    request: Request<Incoming>,
    outcome: Outcome,
) -> Result<Answer, Refusal> {
    let (parts, body) = request.into_parts();
    let asked = (parts.method.clone(), parts.headers.clone());
    let request = outgoing(target, parts.method, parts.headers, body)?;
    let answer = proxy.upstream.send(request).await?;
    if answer.status().is_informational() {
        // A switch of protocols that nobody asked for: its Upgrade header did not go along.
        return Err(Refusal::bad_answer(target));
    }
    let answer = proxy.gate.watch(target, &asked.0, &asked.1, answer);
    Ok(Answer::Body(relay(answer), outcome, None))
}

fn outgoing(
    target: &Target,
    method: Method,
    mut headers: HeaderMap,
    body: impl http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
) -> Result<Request<Body>, Refusal> {
    headers::keep_for_origin(&mut headers);
    let mut request = Request::new(body.map_err(Into::into).boxed_unsync());
    *request.method_mut() = method;
    *request.uri_mut() = uri(target)?;
    *request.headers_mut() = headers;
    Ok(request)
}

fn uri(target: &Target) -> Result<Uri, Refusal> {
    target.url().parse().map_err(|_| Refusal::unsupported("the request's URL is malformed or too long"))
}

/// An origin's answer on its way to the client.
pub(crate) fn relay<B>(answer: Response<B>) -> Response<Body>
where
    B: http_body::Body<Data = Bytes, Error = hyper::Error> + Send + 'static,
{
    let (mut parts, body) = answer.into_parts();
    headers::keep_end_to_end(&mut parts.headers);
    if parts.status == StatusCode::NOT_MODIFIED {
        // It tells the length of what is not sent; hyper would drop it with a warning.
        parts.headers.remove(CONTENT_LENGTH);
    }
    let mut response = Response::new(body.map_err(|error| ended_early(&error)).boxed_unsync());
    *response.status_mut() = parts.status;
    *response.headers_mut() = parts.headers;
    // The origin's own words after the status, where they are not the usual ones.
    if let Some(reason) = parts.extensions.remove::<hyper::ext::ReasonPhrase>() {
        response.extensions_mut().insert(reason);
    }
    response
}

fn ended_early(error: &hyper::Error) -> BoxError {
    let cause = std::iter::successors(error.source(), |error| (**error).source()).last();
    let cause = cause.map_or_else(|| error.to_string(), ToString::to_string);
    format!("the origin's answer ended early: {cause}").into()
}
