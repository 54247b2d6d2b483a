//! Serving other daemons.

use crate::http_range::{content_range_header, parse_range};
use crate::metrics::Metrics;
use crate::progress::{Progress, State};
use crate::store::{TaskFile, encode_hashes};
use bytes::Bytes;
use darter_protocol::{ByteRange, PieceHash, PieceIndex, PieceSet, TaskId};
use futures_util::stream;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a connection may take to send a request's head, and how long it may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(90);

/// How long a connection may take to finish its answer when this daemon stops: a piece at 1 MB/s.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(4);

/// What this daemon can give of a task.
pub(crate) enum Served {
    Complete {
        file: Arc<TaskFile>,
        hashes: Arc<[PieceHash]>,
    },
    Running {
        file: Arc<TaskFile>,
        progress: watch::Receiver<Progress>,
    },
    /// Stopped before it was complete.
    Partial {
        file: Arc<TaskFile>,
        have: PieceSet,
    },
}

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// The piece server's state.
pub(crate) struct Server<F> {
    find: F,
    slots: Arc<Semaphore>,
    metrics: Metrics,
}

/// Serves other daemons until `shutdown`. `find` says what there is of a task; `upload_slots` bodies of content are sent
/// at once, further requests wait their turn.
pub(crate) async fn run<F, Fut>(
    listener: TcpListener,
    find: F,
    upload_slots: u32,
    metrics: Metrics,
    shutdown: CancellationToken,
) where
    F: Fn(TaskId) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Option<Served>> + Send,
{
    let server = Arc::new(Server { find, slots: Arc::new(Semaphore::new(upload_slots as usize)), metrics });
    let connections = TaskTracker::new();
    loop {
        let stream = tokio::select! {
            () = shutdown.cancelled() => break,
            (stream, _) = darter_listen::accept(&listener) => stream,
        };
        let (server, shutdown) = (Arc::clone(&server), shutdown.clone());
        connections.spawn(async move {
            let service = service_fn(|request| async { Ok::<_, Infallible>(server.answer(request).await) });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            let mut connection = std::pin::pin!(connection);
            let result = tokio::select! {
                result = connection.as_mut() => result,
                () = shutdown.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    // Whoever does not take the rest by then gets it from somebody else.
                    tokio::time::timeout(DRAIN_TIMEOUT, connection).await.unwrap_or(Ok(()))
                }
            };
            if let Err(error) = result {
                tracing::trace!(%error, "a daemon's connection ended");
            }
        });
    }
    connections.close();
    connections.wait().await;
}

impl<F, Fut> Server<F>
where
    F: Fn(TaskId) -> Fut,
    Fut: Future<Output = Option<Served>>,
{
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let mut path = request.uri().path().trim_matches('/').split('/');
        let (task, what) = match (path.next(), path.next(), path.next(), path.next()) {
            (Some("tasks"), Some(task), what, None) if request.method() == Method::GET => {
                (task.parse::<TaskId>(), what.unwrap_or_default())
            }
            _ => return status(StatusCode::NOT_FOUND),
        };
        let Ok(task) = task else { return status(StatusCode::NOT_FOUND) };
        let Some(served) = (self.find)(task).await else { return status(StatusCode::NOT_FOUND) };
        match what {
            "" => describe(&served),
            "data" => match request.headers().get(header::RANGE).and_then(parse_range) {
                Some(range) => self.data(&served, range),
                None => status(StatusCode::BAD_REQUEST),
            },
            "hashes" => match served {
                Served::Complete { hashes, .. } => bytes("application/octet-stream", encode_hashes(&hashes)),
                Served::Running { .. } | Served::Partial { .. } => status(StatusCode::NOT_FOUND),
            },
            "have" => have(served),
            _ => status(StatusCode::NOT_FOUND),
        }
    }

    fn data(&self, served: &Served, range: ByteRange) -> Response<Body> {
        let file = served.file();
        let layout = file.layout();
        let there = layout.whole().is_some_and(|whole| whole.intersect(range) == Some(range))
            && layout.covering(range).all(|piece| served.has(PieceIndex::new(piece)));
        if !there {
            return status(StatusCode::NOT_FOUND);
        }
        let sending = Sending {
            file: Arc::clone(file),
            rest: Some(range),
            metrics: self.metrics.clone(),
            slots: Arc::clone(&self.slots),
            slot: None,
        };
        let frames = stream::try_unfold(sending, Sending::next);
        let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        response.headers_mut().insert(header::CONTENT_RANGE, content_range_header(range, layout.length()));
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(range.len()));
        response
    }
}

/// A body of content on its way to another daemon. It waits for an upload slot before its first byte, and not with the head
/// of the answer: a daemon that is busy must not be taken for one that is gone.
struct Sending {
    file: Arc<TaskFile>,
    rest: Option<ByteRange>,
    metrics: Metrics,
    slots: Arc<Semaphore>,
    slot: Option<OwnedSemaphorePermit>,
}

impl Sending {
    async fn next(mut self) -> io::Result<Option<(Frame<Bytes>, Self)>> {
        let Some(rest) = self.rest else { return Ok(None) };
        if self.slot.is_none() {
            let slot = Arc::clone(&self.slots).acquire_owned().await;
            self.slot = Some(slot.map_err(io::Error::other)?);
        }
        let bytes = self.file.read(rest).await?;
        self.metrics.uploaded_bytes.inc_by(bytes.len() as u64);
        self.rest = ByteRange::new(rest.start() + bytes.len() as u64, rest.end());
        Ok(Some((Frame::data(bytes), self)))
    }
}

// === impl Served ===

impl Served {
    fn file(&self) -> &Arc<TaskFile> {
        match self {
            Self::Complete { file, .. } | Self::Running { file, .. } | Self::Partial { file, .. } => file,
        }
    }

    fn has(&self, piece: PieceIndex) -> bool {
        match self {
            Self::Complete { .. } => true,
            Self::Running { progress, .. } => progress.borrow().have().contains(piece),
            Self::Partial { have, .. } => have.contains(piece),
        }
    }

    fn have_map(&self) -> PieceSet {
        match self {
            Self::Complete { file, .. } => PieceSet::full(file.layout().pieces()),
            Self::Running { progress, .. } => progress.borrow().have().clone(),
            Self::Partial { have, .. } => have.clone(),
        }
    }
}

fn describe(served: &Served) -> Response<Body> {
    let layout = served.file().layout();
    let known = serde_json::json!({
        "length": layout.length(),
        "pieceSize": layout.piece_size(),
        "pieces": layout.pieces(),
        "have": served.have_map().len(),
        "running": matches!(served, Served::Running { .. }),
    });
    bytes("application/json", format!("{known}\n").into_bytes())
}

/// The have-map now, and again whenever it grows; ends when the task's download ends.
fn have(served: Served) -> Response<Body> {
    let first = frame(&served.have_map());
    let progress = match served {
        Served::Running { progress, .. } => Some(progress),
        Served::Complete { .. } | Served::Partial { .. } => None,
    };
    let later = stream::unfold(progress, |progress| async {
        let mut progress = progress?;
        let before = progress.borrow_and_update().have().len();
        loop {
            progress.changed().await.ok()?;
            let now = progress.borrow_and_update();
            if matches!(now.state, State::Failed(_)) {
                return None;
            }
            if now.have().len() > before {
                let map = frame(now.have());
                drop(now);
                return Some((map, Some(progress)));
            }
        }
    });
    let frames = stream::StreamExt::chain(stream::once(std::future::ready(first)), later);
    let frames = stream::StreamExt::map(frames, |bytes| Ok(Frame::data(bytes)));
    Response::new(StreamBody::new(frames).boxed_unsync())
}

fn frame(have: &PieceSet) -> Bytes {
    let map = have.to_bytes();
    [&(map.len() as u16).to_le_bytes(), map.as_slice()].concat().into()
}

fn bytes(content_type: &'static str, bytes: Vec<u8>) -> Response<Body> {
    let mut response =
        Response::new(Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn status(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response
}
