//! HTTP/1.1 and HTTP/2 towards a client, on any connection.

use crate::Body;
use crate::access;
use crate::idle;
use crate::labels::Way;
use crate::line::Line;
use crate::pipeline::{self, Downstream};
use crate::rest::{self, Spell};
use crate::scope::Scope;
use crate::sniff::{self, Rewound};
use crate::worded::{Owed, Worded};
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{HttpService, Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::timeout;

/// A request's head that is larger is refused (431), in bytes; one of up to twice as much may get through, because hyper
/// looks at what it has before it reads once more. Registry tokens in Authorization reach tens of KiB.
const MAX_HEAD_BYTES: usize = 128 << 10;
/// More header lines are refused (431).
const MAX_HEADERS: usize = 200;
/// Requests at once on one connection of HTTP/2.
const MAX_STREAMS: u32 = 256;
/// How much a client may send on one stream of HTTP/2 before an origin takes it, in bytes: the memory of an upload.
const STREAM_WINDOW: u32 = 1 << 20;
/// The same for all streams of one connection.
const CONNECTION_WINDOW: u32 = 4 << 20;
/// How much of an answer is taken from its source on one stream of HTTP/2 before the client takes it, in bytes.
const SEND_BUFFER: usize = 64 << 10;
/// A silent HTTP/2 client is pinged after this long, and dropped after as long again.
const PING: Duration = Duration::from_secs(30);
/// How long a client of HTTP/2 whose last stream has ended may take to read what is left of it (64 KiB at most are still in
/// our hands) and to hear that its connection ends.
const FAREWELL: Duration = Duration::from_secs(10);

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

/// Serves one connection until it ends; when the listener drains, until the requests on it have their answers. Boxed for each
/// version: the one is not to have room for the other.
pub(crate) fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    version: Version,
    downstream: Downstream,
) -> BoxFuture<'static, ()> {
    let (proxy, peer, way) = (downstream.proxy.clone(), downstream.peer, Way::at(&downstream.side));
    let owed = Owed::new();
    let id = owed.clone();
    let report = move |ended: hyper::Result<()>| match ended {
        Ok(()) => {}
        Err(error) if error.is_timeout() && version == Version::Http1 => {
            access::unfinished(id.id(), peer, way, &proxy.metrics);
        }
        Err(error) if error.is_parse() => access::malformed(id.id(), peer, way, &proxy.metrics, &error),
        Err(error) => tracing::debug!(%peer, %error, "a client's connection ended with an error"),
    };
    match version {
        Version::Http1 => in_spells(stream, owed, downstream).map(report).boxed(),
        Version::Http2 => in_streams(stream, downstream).map(report).boxed(),
    }
}

/// HTTP/1.1: see [`rest`].
async fn in_spells(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    owed: Owed,
    downstream: Downstream,
) -> hyper::Result<()> {
    let mut stream = Rewound::new(Bytes::new(), stream);
    loop {
        let limits = downstream.proxy.settings().limits;
        // Boxed, so that it leaves nothing behind.
        let spell = idle::watch(limits.body_idle_timeout, spell(stream, &owed, &downstream)).boxed();
        let Some(ended) = spell.await else { return Ok(()) };
        let rest::Ended::AtRest(rested, since) = ended? else { return Ok(()) };
        stream = rested;
        let Downstream { proxy, scope, .. } = &downstream;
        let resting = &proxy.metrics.resting;
        if !rest::goes_on(&mut stream, since, limits.header_timeout, scope, resting).await {
            return Ok(());
        }
    }
}

async fn spell<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: Rewound<S>,
    owed: &Owed,
    downstream: &Downstream,
) -> hyper::Result<rest::Ended<S>> {
    let worded = Worded::new(TokioIo::new(stream), owed.clone());
    let service = answering(owed.clone(), service(downstream.clone()));
    let header_timeout = downstream.proxy.settings().limits.header_timeout;
    let connection = http1(header_timeout).serve_connection(worded, service).with_upgrades();
    rest::run(connection, Spell::begin(owed.clone()), &downstream.scope).await
}

async fn in_streams(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    downstream: Downstream,
) -> hyper::Result<()> {
    let (scope, proxy) = (downstream.scope.clone(), downstream.proxy.clone());
    let limits = downstream.proxy.settings().limits;
    let mut stream = Rewound::new(Bytes::new(), stream);
    // Until its preface has come, hyper has no clock for a connection, and does not notice that it should end.
    let preface = timeout(limits.header_timeout, sniff::speaks(&mut stream));
    let Some(Ok(Ok((_, prefix)))) = scope.unless_draining(preface.boxed()).await else { return Ok(()) };
    stream.unread(prefix);
    let (open, asking) = watch::channel(0);
    let streams = Streams { scope: scope.clone(), patience: limits.body_idle_timeout, open };
    let service = service(downstream);
    // Boxed, so that the futures around it do not hold it twice.
    let mut connection = Box::pin(http2(streams).serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = scope.draining() => {}
        left = nothing_asked(asking.clone(), limits.header_timeout, &proxy.idle) => proxy.metrics.left(left),
    }
    connection.as_mut().graceful_shutdown();
    // When all leave at once, none makes room for another.
    let line = if scope.is_draining() { Line::new(usize::MAX) } else { proxy.leaving.clone() };
    // A client that says nothing need not hear of the end: hyper waits until it has. In this order, so that it has been said.
    tokio::select! {
        biased;
        ended = connection => ended,
        _ = nothing_asked(asking, FAREWELL, &line) => Ok(()),
    }
}

/// Why nothing was waited for any longer on a connection of HTTP/2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// Nothing was asked for too long: a client that answers pings would otherwise keep its place for ever.
    Idle,
    /// Too many others were idle, too.
    Crowded,
}

/// Resolves when no stream has been open for `patience`, or for longer than on as many others as `line` takes.
async fn nothing_asked(mut open: watch::Receiver<usize>, patience: Duration, line: &Line) -> Left {
    // There is an end of the channel only with the connection's.
    while open.wait_for(|open| *open == 0).await.is_ok() {
        let mut place = line.join();
        tokio::select! {
            asked = timeout(patience, open.changed()) => if asked.is_err() { return Left::Idle },
            () = place.crowded_out() => return Left::Crowded,
        }
    }
    std::future::pending().await
}

/// Answers each request. Boxed, because a connection keeps room for what this returns also while it has no request.
fn service(
    downstream: Downstream,
) -> impl Service<Request<Incoming>, Response = Response<Body>, Error = Infallible, Future: Send> + Unpin {
    service_fn(move |request: Request<Incoming>| {
        pipeline::request(request, downstream.clone()).map(Ok).boxed()
    })
}

/// Keeps account of which answers are owed.
fn answering<S>(
    owed: Owed,
    service: S,
) -> impl HttpService<Incoming, ResBody = Body, Error = Infallible, Future: Send> + Unpin
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible, Future: Send> + Unpin,
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
    /// How many there are.
    open: watch::Sender<usize>,
}

/// A stream that is open until this is dropped.
struct OpenStream(watch::Sender<usize>);

impl OpenStream {
    fn new(open: &watch::Sender<usize>) -> Self {
        open.send_modify(|open| *open += 1);
        Self(open.clone())
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        let open = OpenStream::new(&self.open);
        let task = task.map(move |_| drop(open)).boxed();
        self.scope.spawn(idle::watch(self.patience, task).map(drop));
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
        .max_send_buf_size(SEND_BUFFER)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    builder
}
