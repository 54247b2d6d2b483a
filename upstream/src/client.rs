//! [`Upstream`]: requests to origins over pooled connections.

use crate::body::{Body, Watched, empty_body};
use crate::config::UpstreamConfig;
use crate::connector::{Connector, Target, bare};
use crate::dial::dial;
use crate::error::{Kind, Stage, UpstreamError, io_reason};
use http::{Request, Response, Version, header};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

/// An HTTP/2 connection that answers no ping within this time is dead: requests on it fail instead of hanging.
const PING_TIMEOUT: Duration = Duration::from_secs(15);

/// A head of an answer that is larger than this is refused, in bytes.
const MAX_HEAD_BYTES: usize = 256 << 10;

/// More header lines than this in an answer are refused.
const MAX_HEADERS: usize = 256;

/// The way to origins. Clones share the pool.
#[derive(Clone)]
pub struct Upstream {
    client: Client<Connector, Watched>,
    config: Arc<UpstreamConfig>,
}

impl Upstream {
    /// An empty pool. Must be used within a tokio runtime.
    pub fn new(config: UpstreamConfig) -> Self {
        let config = Arc::new(config);
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(config.pool.idle_timeout)
            .pool_max_idle_per_host(config.pool.max_idle_per_host)
            .http1_max_buf_size(MAX_HEAD_BYTES)
            .http1_max_headers(MAX_HEADERS)
            .http2_keep_alive_interval(config.timeouts.keep_alive)
            .http2_keep_alive_timeout(PING_TIMEOUT)
            .http2_max_header_list_size(MAX_HEAD_BYTES as u32)
            .build(Connector(config.clone()));
        Self { client, config }
    }

    /// Sends a request to the origin that its absolute URI names, and gives the answer when its head is there; the body
    /// streams. The Host header is made from the URI; whatever stands in the request's is not sent. Follows no redirect.
    ///
    /// # Errors
    /// When no head of an answer came. Statuses of any kind are answers.
    ///
    /// # Cancel safety
    /// Dropping the future gives the request up.
    pub async fn send(&self, mut request: Request<Body>) -> Result<Response<Incoming>, UpstreamError> {
        let target = Target::of(request.uri())?;
        // The client decides by ALPN; a version in the request would only be refused or ignored.
        *request.version_mut() = Version::HTTP_11;
        request.headers_mut().remove(header::HOST);

        // A kept-alive connection may be closed by the origin at the moment when it is used again. What has no body and
        // changes nothing is then asked once more (RFC 9110 section 9.2.2).
        let again = (request.method().is_safe() && request.body().is_end_stream()).then(|| copy(&request));
        match (self.send_once(request, &target).await, again) {
            (Err(UpstreamError { kind: Kind::Closed { .. }, .. }), Some(again)) => {
                self.send_once(again, &target).await
            }
            (answer, _) => answer,
        }
    }

    async fn send_once(
        &self,
        request: Request<Body>,
        target: &Target,
    ) -> Result<Response<Incoming>, UpstreamError> {
        let (parts, body) = request.into_parts();
        let (body, sent) = Watched::new(body);
        let after = self.config.timeouts.response_header;
        let silence = async {
            // An error means that the body was dropped, which is as good as sent.
            let _ = sent.await;
            tokio::time::sleep(after).await;
        };
        tokio::select! {
            answer = self.client.request(Request::from_parts(parts, body)) => answer.map_err(|error| classify(&error, target)),
            () = silence => Err(target.error(Kind::Timeout { stage: Stage::ResponseHeader, after })),
        }
    }

    /// A plain TCP connection, for a tunnel. `host` is a name or an IP literal, with or without brackets.
    ///
    /// # Errors
    /// When nothing permitted could be connected to.
    ///
    /// # Cancel safety
    /// Dropping the future gives the attempt up.
    pub async fn dial(&self, host: &str, port: u16) -> Result<TcpStream, UpstreamError> {
        let host = bare(host).to_ascii_lowercase();
        dial(&host, port, &self.config.permit, &self.config.timeouts).await.map_err(|kind| UpstreamError {
            host,
            port,
            kind,
        })
    }
}

fn copy(request: &Request<Body>) -> Request<Body> {
    let mut copy = Request::new(empty_body());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// The connector's own error where it was the connector; otherwise what hyper says about the exchange.
fn classify(error: &legacy::Error, target: &Target) -> UpstreamError {
    if let Some(error) = find::<UpstreamError>(error) {
        return error.clone();
    }
    target.error(match find::<hyper::Error>(error) {
        Some(error) if error.is_user() => Kind::RequestBody { reason: innermost(error) },
        Some(error) if error.is_parse() => Kind::Protocol { reason: innermost(error) },
        Some(error) => match find::<std::io::Error>(error) {
            Some(error) => Kind::Closed { reason: io_reason(error) },
            None => Kind::Closed { reason: innermost(error) },
        },
        None => Kind::Closed { reason: innermost(error) },
    })
}

fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| (**error).source())
}

fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    chain(error).find_map(|error| error.downcast_ref())
}

fn innermost(error: &(dyn StdError + 'static)) -> String {
    chain(error).last().unwrap_or(error).to_string()
}
