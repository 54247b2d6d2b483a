//! Serving other daemons.

use super::have::Said;
use super::turns::{Calls, Place, Turns};
use super::{ACROSS_HEADER, Asking, HOST_HEADER, RELAYS_HEADER, UNCALLED_HEADER, proof};
use crate::http_range::{content_range_header, number, parse_range};
use crate::lists::Lists;
use crate::metrics::Metrics;
use crate::progress::{Listening, Progress, Reach, RelayId, State};
use crate::store::{TaskFile, encode_hashes};
use crate::throttle::{Throttles, Way};
use bytes::Bytes;
use darter_enrol::{Expected, Member, Membership};
use darter_protocol::{BlockHash, ByteRange, HostId, PieceHash, PieceIndex, PieceSet, TaskId, hash};
use darter_sendfile::Socket;
use futures_util::stream;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a connection may take to send a request's head, and how long it may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(90);

/// How long a connection may take to finish its answer when this daemon stops: a piece at 1 MB/s.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(4);

/// Parts of a piece up to so many bytes are given without a turn, so many at once: a reader of a few blocks would wait for its
/// turn for longer than sending them takes. 16 MiB are three more pieces at once.
const SMALL_BYTES: u64 = 256 << 10;
const SMALL_AT_ONCE: usize = 64;
/// Pieces that are read at once for the hashes of their blocks: that is work for the processor, of which others want some.
const LISTS_AT_ONCE: usize = 2;

/// What is passed on while it comes, and of which no block has come for so long, ends: whoever asked for it may get it elsewhere sooner,
/// and the place is for others. Sooner than a partner is given up by whom it is silent to, so that a place is never lost for longer
/// through a chain of those who wait for the same.
const STALLED: Duration = Duration::from_secs(2);

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

/// How much is handed to the connection at once, and how much of that it may keep, in bytes. What it has been handed counts as sent:
/// a place is to be free when little of a piece is still here, and no sooner.
const FRAME_BYTES: u64 = 128 << 10;

/// How much the kernel takes of a connection beyond what is on the wire, in bytes (`TCP_NOTSENT_LOWAT`). It would take megabytes,
/// and a whole piece would count as sent that has not begun to leave: more pieces than there are places would share the line,
/// and each would be passed on later (sixteen daemons, 80 Mbit/s each: the last was done at 1.36 times one copy, not 1.42).
const UNSENT_BYTES: u32 = 128 << 10;

/// How long a connection may take to send what the kernel has of it, or wait for its peer to take more, before the kernel ends it
/// (`TCP_USER_TIMEOUT`): one that stands still would stay for ever. Its place is free long before. A receiver that throttles itself
/// to 16 KiB a second opens its window only when much of what it holds was read, once in 90 seconds and more (Linux 6.18, after a fast
/// start), and is to be waited for.
const TAKEN_WITHIN: Duration = Duration::from_secs(600);

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// The piece server's state.
pub(crate) struct Server<F> {
    /// What there is of a task.
    pub(crate) find: F,
    /// Whose turn it is.
    pub(crate) turns: Turns,
    pub(crate) quick: Quick,
    pub(crate) lists: Arc<Lists>,
    pub(crate) throttles: Arc<Throttles>,
    pub(crate) metrics: Metrics,
    /// Who is believed who he is.
    pub(crate) membership: Membership,
    pub(crate) shutdown: CancellationToken,
}

/// What is served without a turn.
pub(crate) struct Quick {
    /// For parts of pieces.
    small: Arc<Semaphore>,
    /// For the hashes of blocks.
    lists: Arc<Semaphore>,
}

impl Default for Quick {
    fn default() -> Self {
        Self {
            small: Arc::new(Semaphore::new(SMALL_AT_ONCE)),
            lists: Arc::new(Semaphore::new(LISTS_AT_ONCE)),
        }
    }
}

/// Serves other daemons until the server's `shutdown`.
pub(crate) async fn run<F, Fut>(listener: TcpListener, server: Server<F>)
where
    F: Fn(TaskId) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Option<Served>> + Send + 'static,
{
    let shutdown = server.shutdown.clone();
    let server = Arc::new(server);
    let connections = TaskTracker::new();
    loop {
        let stream = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = darter_listen::accept(&listener) => accepted,
        };
        let socket = socket2::SockRef::from(&stream.0);
        // Where they cannot be set, places become free too soon, and connections too late: no reason not to serve.
        let _ = socket.set_tcp_notsent_lowat(UNSENT_BYTES);
        let _ = socket.set_tcp_user_timeout(Some(TAKEN_WITHIN));
        connections.spawn(connection(stream, Arc::clone(&server)));
    }
    connections.close();
    connections.wait().await;
}

/// Serves a connection, once it is known whose it is.
async fn connection<F, Fut>((stream, remote): (TcpStream, SocketAddr), server: Arc<Server<F>>)
where
    F: Fn(TaskId) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Option<Served>> + Send + 'static,
{
    let accepted = server.membership.accept(stream, remote, &Expected::Daemon);
    let accepted = tokio::select! {
        accepted = accepted => accepted,
        () = server.shutdown.cancelled() => return,
    };
    // Who is refused was told so by TLS, and counted.
    let Ok(stream) = accepted else { return };
    match stream.into_plain() {
        Ok(stream) => server.serve(Socket::new(stream), None).await,
        Err(stream) => {
            let member = stream.caller().member().cloned();
            server.serve(*stream, member).await;
        }
    }
}

impl<F, Fut> Server<F>
where
    F: Fn(TaskId) -> Fut,
    Fut: Future<Output = Option<Served>>,
{
    /// Serves `stream`; at its other end is `member`, where anybody was asked.
    async fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin, member: Option<Member>) {
        let member = member.as_ref();
        let service =
            service_fn(|request| async move { Ok::<_, Infallible>(self.answer(request, member).await) });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(FRAME_BYTES as usize)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = self.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                // Whoever does not take the rest by then gets it from somebody else.
                tokio::time::timeout(DRAIN_TIMEOUT, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = result {
            tracing::trace!(%error, "a daemon's connection ended");
        }
    }

    async fn answer(&self, request: Request<Incoming>, member: Option<&Member>) -> Response<Body> {
        let mut path = request.uri().path().trim_matches('/').split('/');
        let (task, what) = match (path.next(), path.next(), path.next()) {
            (Some("tasks"), Some(task), what) => (task.parse::<TaskId>(), what.unwrap_or_default()),
            _ => return status(StatusCode::NOT_FOUND),
        };
        let (which, rest) = (path.next(), path.next());
        if rest.is_some() || which.is_some() != (what == "blocks") {
            return status(StatusCode::NOT_FOUND);
        }
        let Ok(task) = task else { return status(StatusCode::NOT_FOUND) };
        let asker = match (host_of(&request), member) {
            // Nobody takes another's place in a line, or gives it away.
            (said, Some(member)) if said.as_ref().is_some_and(|said| *said != member.id) => {
                return status(StatusCode::FORBIDDEN);
            }
            (_, Some(member)) => Some(member.id.clone()),
            (said, None) => said,
        };
        match (request.method(), what, &asker) {
            (&Method::GET, _, _) => {}
            (&Method::DELETE, "turn", Some(asker)) => {
                self.turns.pass(&task, asker);
                return status(StatusCode::NO_CONTENT);
            }
            _ => return status(StatusCode::NOT_FOUND),
        }
        let Some(served) = (self.find)(task).await else { return status(StatusCode::NOT_FOUND) };
        match what {
            "" => describe(&served),
            "data" => match request.headers().get(header::RANGE).and_then(parse_range) {
                Some(range) => {
                    let says = |header| request.headers().contains_key(header);
                    let asking = Asking { called: !says(UNCALLED_HEADER), across: says(ACROSS_HEADER) };
                    let proof = match request.headers().get(proof::WANTED_HEADER) {
                        None => Proof::Unwanted,
                        Some(value) if value == proof::IF_KNOWN => Proof::IfKnown,
                        Some(_) => Proof::Wanted,
                    };
                    let to = Asker { host: asker.as_ref(), asking, proof, encrypted: member.is_some() };
                    self.data(task, to, &served, range).await
                }
                None => status(StatusCode::BAD_REQUEST),
            },
            "hashes" => match served {
                Served::Complete { hashes, .. } => bytes("application/octet-stream", encode_hashes(&hashes)),
                Served::Running { .. } | Served::Partial { .. } => status(StatusCode::NOT_FOUND),
            },
            "blocks" => self.blocks(&served, which).await,
            "have" => {
                let relays = request.headers().contains_key(RELAYS_HEADER);
                self.have(task, asker, served, relays)
            }
            _ => status(StatusCode::NOT_FOUND),
        }
    }

    /// The hashes of the blocks of a piece.
    async fn blocks(&self, served: &Served, piece: Option<&str>) -> Response<Body> {
        let file = served.file();
        let piece = piece.and_then(number).and_then(|piece| file.layout().piece(u32::try_from(piece).ok()?));
        let Some(piece) = piece.filter(|piece| served.has(*piece)) else {
            return status(StatusCode::NOT_FOUND);
        };
        match self.blocks_of(served, piece).await {
            Some(hashes) => {
                let hashes = hashes.iter().flat_map(BlockHash::as_bytes).copied().collect();
                bytes("application/octet-stream", hashes)
            }
            None => status(StatusCode::NOT_FOUND),
        }
    }

    /// What the blocks of a piece that is here hash to: as it was kept, or else read for it.
    async fn blocks_of(&self, served: &Served, piece: PieceIndex) -> Option<Arc<[BlockHash]>> {
        if let Some(kept) = self.known_blocks_of(served, piece) {
            return Some(kept);
        }
        let (file, hash, lists) = (Arc::clone(served.file()), served.hash(piece), Arc::clone(&self.lists));
        let reading = Arc::clone(&self.quick.lists).acquire_owned().await.ok()?;
        let hashed = tokio::task::spawn_blocking(move || {
            // Also of one who has hung up meanwhile: he asks again, or another does.
            let _reading = reading;
            let list: Arc<[BlockHash]> = file.hash_blocks(file.layout().blocks_of(piece))?.into();
            // A disk that has rotted proves nothing.
            if let Some(hash) = hash.filter(|hash| hash::piece(file.layout(), &list) == *hash) {
                lists.insert(hash, Arc::clone(&list));
            }
            Ok(list)
        });
        let hashed = hashed.await;
        hashed
            .map_err(io::Error::other)
            .and_then(|hashed| hashed)
            .inspect_err(|error: &io::Error| tracing::warn!(%error, "cannot read a piece for another daemon"))
            .ok()
    }

    /// The same, if it was kept.
    fn known_blocks_of(&self, served: &Served, piece: PieceIndex) -> Option<Arc<[BlockHash]>> {
        let count = served.file().layout().blocks_of(piece).len();
        served.hash(piece).and_then(|hash| self.lists.get(&hash, count))
    }

    async fn data(
        &self,
        task: TaskId,
        asker: Asker<'_>,
        served: &Served,
        range: ByteRange,
    ) -> Response<Body> {
        let file = served.file();
        let layout = file.layout();
        if layout.whole().is_none_or(|whole| whole.intersect(range) != Some(range)) {
            return status(StatusCode::NOT_FOUND);
        }
        let Some(piece) = layout.piece_at(range.start()) else { return status(StatusCode::NOT_FOUND) };
        let in_piece = layout.range(piece).intersect(range) == Some(range);
        // In this order: what stops coming because it is here would be missed otherwise.
        let relay = if in_piece { served.relay(piece) } else { None };
        let here = layout.covering(range).all(|piece| served.has(PieceIndex::new(piece)));
        let relay = relay.filter(|_| !here);
        if !here && relay.is_none() {
            return status(StatusCode::NOT_FOUND);
        }
        let part = in_piece && layout.range(piece) != range;
        let small = part && range.len() <= SMALL_BYTES;
        let permit = small.then(|| Arc::clone(&self.quick.small).try_acquire_owned().ok()).flatten();
        let place = match permit {
            Some(permit) => Taken::Small { _permit: permit },
            None => match self.turns.ask(task, (asker.host, asker.asking), (piece, range.len())) {
                Some(place) => Taken::Place { place, part },
                None => return busy(),
            },
        };
        let (relayed, known) = relay.unzip();
        let proof = match (known, asker.proof) {
            (_, Proof::Unwanted) => None,
            (None, _) if !in_piece => None,
            (None, Proof::IfKnown) => self.known_blocks_of(served, piece),
            (None, Proof::Wanted) => {
                // What this host reads for that is not the peer's delay.
                place.place().into_iter().for_each(Place::taken);
                let blocks = self.blocks_of(served, piece).await;
                place.place().into_iter().for_each(Place::handed);
                blocks
            }
            (known, _) => known,
        };
        let sending = Sending {
            file: Arc::clone(file),
            rest: Some(range),
            lent: Bytes::new(),
            relayed,
            way: self.throttles.to(asker.host),
            lends: !asker.encrypted,
            metrics: self.metrics.clone(),
            place,
        };
        let frames = stream::try_unfold(sending, Sending::next);
        let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        response.headers_mut().insert(header::CONTENT_RANGE, content_range_header(range, layout.length()));
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(range.len()));
        if let Some(hashes) = proof {
            response.headers_mut().insert(proof::PROOF_HEADER, proof::header(&hashes));
        }
        response
    }
}

impl<F> Server<F> {
    /// What is here, as lines that go on until the asker goes away or this daemon stops.
    fn have(&self, task: TaskId, asker: Option<HostId>, served: Served, relays: bool) -> Response<Body> {
        let calls = asker.map(|asker| self.turns.listen(task, asker));
        let told = served.have_map();
        let first = Said::Have(told.clone());
        let progress = match served {
            Served::Running { progress, .. } => Some(progress),
            Served::Complete { .. } | Served::Partial { .. } => None,
        };
        let listening = progress.as_ref().filter(|_| relays).map(|progress| progress.borrow().listen());
        let (news, shutdown) = (VecDeque::new(), self.shutdown.clone());
        let telling = Telling { progress, told, relayed: BTreeMap::new(), listening, news, calls, shutdown };
        let later = stream::unfold(telling, |mut telling| async {
            let said = telling.next().await?;
            Some((line(&said), telling))
        });
        let frames = stream::StreamExt::chain(stream::once(std::future::ready(line(&first))), later);
        let frames = stream::StreamExt::map(frames, Ok);
        let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        response
    }
}

/// To whom content goes.
#[derive(Clone, Copy)]
struct Asker<'a> {
    host: Option<&'a HostId>,
    asking: Asking,
    proof: Proof,
    encrypted: bool,
}

/// Whether he wants to know what the blocks hash to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Proof {
    Unwanted,
    /// If that takes no look at the disk.
    IfKnown,
    Wanted,
}

/// What a body takes while it is sent.
enum Taken {
    /// A place; with `part`, for less than a piece, by which nobody has got the piece.
    Place {
        place: Place,
        part: bool,
    },
    Small {
        _permit: OwnedSemaphorePermit,
    },
}

impl Taken {
    fn sent(&mut self) {
        if let Self::Place { place, part: false } = self {
            place.sent();
        }
    }

    fn place(&self) -> Option<&Place> {
        match self {
            Self::Place { place, .. } => Some(place),
            Self::Small { .. } => None,
        }
    }
}

/// A body of content on its way to another daemon.
struct Sending {
    file: Arc<TaskFile>,
    rest: Option<ByteRange>,
    /// The first of `rest`, as far as it was lent.
    lent: Bytes,
    /// Of a piece that is itself coming, and not here yet.
    relayed: Option<Relayed>,
    /// Whether it may be lent: what is encrypted is read.
    lends: bool,
    way: Way,
    metrics: Metrics,
    place: Taken,
}

impl Sending {
    async fn next(mut self) -> io::Result<Option<(Frame<Bytes>, Self)>> {
        let Some(rest) = self.rest else {
            self.place.sent();
            return Ok(None);
        };
        self.place.place().inspect(|place| place.taken());
        let there = if self.lent.is_empty() { self.there(rest).await? } else { rest };
        let taken = self.way.take(rest.len()).await;
        let next = ByteRange::new(rest.start(), rest.start() + taken.bytes()).unwrap_or(rest);
        if self.lent.is_empty() {
            self.lent = if self.lends { self.file.lend(there).await } else { self.file.read(there).await }?;
        }
        let length = next.len().min(FRAME_BYTES).min(self.lent.len() as u64);
        let bytes = self.lent.split_to(length as usize);
        taken.used(bytes.len() as u64);
        self.metrics.uploaded_bytes.inc_by(bytes.len() as u64);
        if self.relayed.is_some() {
            self.metrics.relayed_bytes.inc_by(bytes.len() as u64);
        }
        self.rest = ByteRange::new(rest.start() + bytes.len() as u64, rest.end());
        if self.rest.is_none() {
            // With a known length, nobody asks for what follows the last frame.
            self.place.sent();
        }
        self.place.place().inspect(|place| place.handed());
        Ok(Some((Frame::data(bytes), self)))
    }

    /// What of `rest` is here, from its start on; waits for some of what is still to come.
    async fn there(&mut self, rest: ByteRange) -> io::Result<ByteRange> {
        let Some(relayed) = &mut self.relayed else { return Ok(rest) };
        let layout = self.file.layout();
        let end = match relayed.beyond(layout.block_at(rest.start()).unwrap_or_default()).await? {
            Some(block) => layout.start_of(block).min(rest.end()),
            None => {
                self.relayed = None;
                rest.end()
            }
        };
        Ok(ByteRange::new(rest.start(), end).unwrap_or(rest))
    }
}

/// A piece that is itself coming: one fetch of it.
struct Relayed {
    progress: watch::Receiver<Progress>,
    piece: PieceIndex,
    id: RelayId,
}

impl Relayed {
    /// Waits until `block` is there; gives the block up to which all are, and `None` when that is all of the piece.
    ///
    /// # Errors
    /// When it does not come that way any more, or not for too long.
    async fn beyond(&mut self, block: u32) -> io::Result<Option<u32>> {
        let (piece, id) = (self.piece, self.id);
        let mut reach = Reach::Over;
        let come = self.progress.wait_for(|progress| {
            reach = progress.relayed(piece, id);
            !matches!(reach, Reach::To(end) if end <= block)
        });
        match tokio::time::timeout(STALLED, come).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return Err(cut("the download has ended")),
            Err(_) => return Err(cut("it comes no more")),
        }
        match reach {
            Reach::Whole => Ok(None),
            Reach::To(end) => Ok(Some(end)),
            Reach::Over => Err(cut("its fetch has failed")),
        }
    }
}

fn cut(why: &str) -> io::Error {
    io::Error::other(format!("a piece that is passed on: {why}"))
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

    /// What the piece hashes to, if that is at hand.
    fn hash(&self, piece: PieceIndex) -> Option<PieceHash> {
        match self {
            Self::Complete { hashes, .. } => hashes.get(piece.as_usize()).copied(),
            Self::Running { progress, .. } => progress.borrow().hash(piece).copied(),
            Self::Partial { .. } => None,
        }
    }

    /// The fetch by which the piece comes, if it may be passed on, and what its blocks hash to.
    fn relay(&self, piece: PieceIndex) -> Option<(Relayed, Arc<[BlockHash]>)> {
        let Self::Running { progress, .. } = self else { return None };
        let (id, list) = progress.borrow().relay(piece)?;
        Some((Relayed { progress: progress.clone(), piece, id }, list))
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

/// What a follower is told: what is here, what comes, and when it is its turn.
struct Telling {
    progress: Option<watch::Receiver<Progress>>,
    told: PieceSet,
    /// The fetches that it was told of whose pieces are coming. It is told of none unless it listens.
    relayed: BTreeMap<PieceIndex, RelayId>,
    listening: Option<Listening>,
    news: VecDeque<Said>,
    calls: Option<Calls>,
    shutdown: CancellationToken,
}

impl Telling {
    /// The next thing to say. `None`: this daemon stops, or what it was bringing turned out to be wrong.
    async fn next(&mut self) -> Option<Said> {
        loop {
            if let Some(news) = self.news.pop_front() {
                return Some(news);
            }
            tokio::select! {
                changed = changed(&mut self.progress) => match changed {
                    Ok(()) => self.look()?,
                    // It has ended: what is here stays here, and may be asked for.
                    Err(_) => self.progress = None,
                },
                best = called(&mut self.calls) => return Some(Said::Come(best)),
                () = self.shutdown.cancelled() => return None,
            }
        }
    }

    /// Looks for what came since, and what began to come; `None` when the download has failed.
    fn look(&mut self) -> Option<()> {
        let Some(progress) = &mut self.progress else { return Some(()) };
        let progress = progress.borrow_and_update();
        if matches!(progress.state, State::Failed(_)) {
            return None;
        }
        let mut news = PieceSet::empty(self.told.pieces());
        if progress.have().len() > self.told.len() {
            news.extend(progress.have().iter().filter(|piece| !self.told.contains(*piece)));
            self.told.extend(news.iter());
        }
        self.news.extend(Some(news).filter(|news| !news.is_empty()).map(Said::Have));
        if self.listening.is_some() {
            let mut coming = PieceSet::empty(self.told.pieces());
            let relays: BTreeMap<_, _> = progress.relays().collect();
            coming.extend(
                relays
                    .iter()
                    .filter(|(piece, id)| self.relayed.get(piece) != Some(id))
                    .map(|(piece, _)| *piece),
            );
            self.relayed = relays;
            self.news.extend(Some(coming).filter(|coming| !coming.is_empty()).map(Said::Coming));
        }
        Some(())
    }
}

async fn changed(progress: &mut Option<watch::Receiver<Progress>>) -> Result<(), watch::error::RecvError> {
    match progress {
        Some(progress) => progress.changed().await,
        None => std::future::pending().await,
    }
}

/// One whose calls somebody else hears by now is called no more.
async fn called(calls: &mut Option<Calls>) -> Option<PieceIndex> {
    match calls {
        Some(calls) => match calls.next().await {
            Some(best) => best,
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

fn line(said: &Said) -> Frame<Bytes> {
    Frame::data(said.to_line().into())
}

/// Who asks, if it says so.
fn host_of(request: &Request<Incoming>) -> Option<HostId> {
    request.headers().get(HOST_HEADER)?.to_str().ok()?.parse().ok()
}

/// For people: other daemons look at the status alone.
fn busy() -> Response<Body> {
    let text = "all places are taken; /have says when it is your turn\n";
    let mut response = bytes("text/plain", text.into());
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
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

#[cfg(test)]
mod tests {
    use super::*;
    use darter_protocol::{BlockSet, PieceLayout};

    #[tokio::test(start_paused = true)]
    async fn what_comes_no_more_is_not_waited_for_for_long() {
        let layout = PieceLayout::new(PieceLayout::MIN_PIECE_SIZE).unwrap();
        let (sender, progress) =
            watch::channel(Progress::new(layout, PieceSet::empty(1), BlockSet::default()));
        let (piece, list) = (PieceIndex::new(0), Arc::from([BlockHash::from([0; 32]); 16]));
        let mut id = None;
        sender.send_modify(|progress| id = Some(progress.begin_relay(piece, list)));
        let mut relayed = Relayed { progress, piece, id: id.unwrap() };
        sender.send_modify(|progress| progress.grow_relay(piece, relayed.id, 2));
        assert_eq!(relayed.beyond(1).await.unwrap(), Some(2));
        let began = tokio::time::Instant::now();
        relayed.beyond(2).await.unwrap_err();
        assert_eq!(began.elapsed(), STALLED);
    }
}
