//! HTTP/1.1 and HTTP/2 towards a client, on any connection.

use crate::Body;
use crate::access;
use crate::idle;
use crate::labels::Way;
use crate::pipeline::{self, Downstream};
use crate::scope::Scope;
use crate::worded::{Owed, Worded};
use futures_util::FutureExt as _;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper::server::conn::{http1, http2};
use hyper::service::{HttpService, Service, service_fn};
use hyper_util::rt::TokioTimer;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// A request's head that is larger is refused (431), in bytes. Registry tokens in Authorization reach tens of KiB.
const MAX_HEAD_BYTES: usize = 128 << 10;
/// More header lines are refused (431).
const MAX_HEADERS: usize = 200;
/// Requests at once on one connection of HTTP/2.
const MAX_STREAMS: u32 = 256;
/// How much a client may send on one stream of HTTP/2 before an origin takes it, in bytes: the memory of an upload.
const STREAM_WINDOW: u32 = 1 << 20;
/// The same for all streams of one connection.
const CONNECTION_WINDOW: u32 = 4 << 20;
/// A silent HTTP/2 client is pinged after this long, and dropped after as long again.
const PING: Duration = Duration::from_secs(30);

/// Which HTTP a connection carries. Known before: hyper would wait for its beginning without a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    Http1,
    Http2,
}

impl Version {
    /// What was agreed on in a TLS handshake, by ALPN.
    pub(crate) fn agreed(alpn: Option<&[u8]>) -> Self {
        if alpn == Some(b"h2") { Self::Http2 } else { Self::Http1 }
    }
}

/// Serves one connection until it ends; when the listener drains, until the requests on it have their answers.
pub(crate) async fn serve(
    io: impl Read + Write + Unpin + Send + 'static,
    version: Version,
    downstream: Downstream,
) {
    let Downstream { proxy, peer, side, scope, .. } = &downstream;
    let (proxy, peer, way, scope) = (proxy.clone(), *peer, Way::at(side), scope.clone());
    let limits = proxy.settings().limits;
    let patience = limits.body_idle_timeout;
    let owed = Owed::new();
    let ended = match version {
        Version::Http1 => {
            let worded = Worded::new(io, owed.clone());
            let service = answering(owed.clone(), service(downstream));
            let connection = http1(limits.header_timeout).serve_connection(worded, service).with_upgrades();
            let ended = until_ended(connection, http1::UpgradeableConnection::graceful_shutdown, &scope);
            idle::watch(patience, ended).await
        }
        Version::Http2 => {
            let streams = Streams { scope: scope.clone(), patience };
            let connection = http2(streams).serve_connection(io, service(downstream));
            Some(until_ended(connection, http2::Connection::graceful_shutdown, &scope).await)
        }
    };
    match ended {
        None | Some(Ok(())) => {}
        Some(Err(error)) if error.is_parse() => {
            access::malformed(owed.id(), peer, way, &proxy.metrics, &error)
        }
        Some(Err(error)) => tracing::debug!(%peer, %error, "a client's connection ended with an error"),
    }
}

/// Answers each request. Boxed, because a connection keeps room for what this returns also while it has no request.
fn service(
    downstream: Downstream,
) -> impl Service<Request<Incoming>, Response = Response<Body>, Error = Infallible, Future: Send> {
    service_fn(move |request: Request<Incoming>| {
        pipeline::request(request, downstream.clone()).map(Ok).boxed()
    })
}

/// Keeps account of which answers are owed.
fn answering<S>(
    owed: Owed,
    service: S,
) -> impl HttpService<Incoming, ResBody = Body, Error = Infallible, Future: Send>
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible, Future: Send>,
{
    service_fn(move |request: Request<Incoming>| {
        let (owed, method) = (owed.clone(), request.method().clone());
        owed.asked();
        service.call(request).map(move |answer| answer.map(|answer| owed.answered(&method, answer)))
    })
}

/// hyper's tasks, one per stream of HTTP/2: each belongs to the scope, and has a clock of its own.
#[derive(Clone)]
struct Streams {
    scope: Scope,
    patience: Duration,
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        let task = task.map(drop).boxed();
        self.scope.spawn(idle::watch(self.patience, task).map(drop));
    }
}

/// `drain` makes a connection end as soon as it has no request.
fn until_ended<C>(
    connection: C,
    drain: impl FnOnce(Pin<&mut C>),
    scope: &Scope,
) -> impl Future<Output = hyper::Result<()>>
where
    C: Future<Output = hyper::Result<()>>,
{
    // Boxed here, so that the futures around it do not hold it twice.
    let mut connection = Box::pin(connection);
    async move {
        tokio::select! {
            ended = connection.as_mut() => ended,
            () = scope.draining() => {
                drain(connection.as_mut());
                connection.await
            }
        }
    }
}

fn http1(header_timeout: Duration) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS);
    builder
}

fn http2(streams: Streams) -> http2::Builder<Streams> {
    let mut builder = http2::Builder::new(streams);
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    builder
}
