//! [`Activity`]: when bytes of a message last moved, and who is waited for.
//!
//! A body may take hours, as long as it moves: a limit on its whole duration would cut large images on slow lines. What
//! does not move for long holds memory, a connection to a client and one to an origin for nobody. So there is one clock per
//! connection of HTTP/1.1 and per stream of HTTP/2 ([`watch`]), which every body that passes on it winds up: one timer,
//! however many frames pass. It runs while a body is open only; how long a head may take is limited elsewhere, as a whole.
//!
//! It has to be a clock of its own: the side that does not take what it is sent is not asked for more, so that no body is
//! polled in which a timer could be noticed.

use crate::BoxError;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// How much later than whoever can still answer with a sentence [`watch`] ends what does not move.
const GRACE: Duration = Duration::from_secs(1);

/// As good as never.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

tokio::task_local! {
    static CURRENT: Activity;
}

/// Who did nothing for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quiet {
    /// The client did not go on with its request's body.
    ClientSending,
    /// The client did not take more of the answer.
    ClientReading,
    /// The origin did not go on with its answer's body.
    OriginSending,
    /// The origin did not take more of the request.
    OriginReading,
    /// Nobody said anything in a tunnel.
    Both,
}

/// What moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A request's body.
    Request,
    /// An answer's body.
    Answer,
    /// A tunnel.
    Tunnel,
}

/// The clock of one connection of HTTP/1.1, of one stream of HTTP/2, or of one tunnel. Clones are the same.
#[derive(Clone)]
pub(crate) struct Activity(Arc<State>);

struct State {
    begun: Instant,
    /// When something last moved, in milliseconds after `begun`.
    moved: AtomicU64,
    /// By [`Kind`].
    flows: [Flow; 3],
    /// Who was waited for when it was given up.
    verdict: OnceLock<Quiet>,
}

#[derive(Default)]
struct Flow {
    open: AtomicUsize,
    /// Whether its source had nothing when it was last asked.
    starved: AtomicBool,
}

/// Runs what serves one connection of HTTP/1.1 or one stream of HTTP/2, and gives it up when a body on it does not move for
/// `patience`.
pub(crate) async fn watch<F: Future>(patience: Duration, task: F) -> Option<F::Output> {
    let activity = Activity::new();
    let serving = CURRENT.scope(activity.clone(), task);
    let given_up = async {
        let quiet = activity.quiet_for(patience.saturating_add(GRACE)).await;
        // Before everything on it is dropped, and lines are written.
        let _ = activity.0.verdict.set(quiet);
    };
    tokio::select! {
        output = serving => Some(output),
        () = given_up => None,
    }
}

// === impl Activity ===

impl Activity {
    pub(crate) fn new() -> Self {
        Self(Arc::new(State {
            begun: Instant::now(),
            moved: AtomicU64::new(0),
            flows: Default::default(),
            verdict: OnceLock::new(),
        }))
    }

    /// That of the connection or stream which this task serves.
    pub(crate) fn current() -> Self {
        CURRENT.try_with(Self::clone).unwrap_or_else(|_| Self::new())
    }

    /// Something moved.
    pub(crate) fn moved(&self) {
        let now = u64::try_from(self.0.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.moved.store(now, Ordering::Relaxed);
    }

    /// Counts as moving or not moving until what is given is dropped.
    pub(crate) fn open(&self, kind: Kind) -> Open {
        self.moved();
        self.flow(kind).open.fetch_add(1, Ordering::Relaxed);
        Open { activity: self.clone(), kind }
    }

    /// `body`, which winds this up as it moves.
    pub(crate) fn body<B>(&self, kind: Kind, body: B) -> Moving<B> {
        Moving { open: self.open(kind), body }
    }

    /// Resolves when something is open and has not moved for `patience`.
    pub(crate) async fn quiet_for(&self, patience: Duration) -> Quiet {
        loop {
            let from = if self.is_open() { self.last_moved() } else { Instant::now() };
            let until = from.checked_add(patience).unwrap_or_else(|| from + FAR);
            sleep_until(until).await;
            if self.is_open() && self.last_moved().elapsed() >= patience {
                return self.waits_for();
            }
        }
    }

    fn verdict(&self) -> Option<Quiet> {
        self.0.verdict.get().copied()
    }

    /// When something last moved, or ended.
    pub(crate) fn last_moved(&self) -> Instant {
        self.0.begun + Duration::from_millis(self.0.moved.load(Ordering::Relaxed))
    }

    /// Whether anything is to move.
    pub(crate) fn is_open(&self) -> bool {
        self.0.flows.iter().any(Flow::is_open)
    }

    fn waits_for(&self) -> Quiet {
        let (answer, request) = (self.flow(Kind::Answer), self.flow(Kind::Request));
        match (answer.is_open(), request.is_open()) {
            (true, _) if answer.is_starved() => Quiet::OriginSending,
            (true, _) => Quiet::ClientReading,
            (false, true) if request.is_starved() => Quiet::ClientSending,
            (false, true) => Quiet::OriginReading,
            (false, false) => Quiet::Both,
        }
    }

    fn flow(&self, kind: Kind) -> &Flow {
        let [request, answer, tunnel] = &self.0.flows;
        match kind {
            Kind::Request => request,
            Kind::Answer => answer,
            Kind::Tunnel => tunnel,
        }
    }
}

impl Flow {
    fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed) > 0
    }

    fn is_starved(&self) -> bool {
        self.starved.load(Ordering::Relaxed)
    }
}

/// Something that counts as moving or not.
pub(crate) struct Open {
    activity: Activity,
    kind: Kind,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.activity.moved();
        self.activity.flow(self.kind).open.fetch_sub(1, Ordering::Relaxed);
    }
}

// === Quiet ===

impl Quiet {
    /// Whether the client is the one.
    pub(crate) fn is_client(self) -> bool {
        matches!(self, Self::ClientSending | Self::ClientReading)
    }
}

impl fmt::Display for Quiet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClientSending => "the client did not go on with its request's body for too long",
            Self::ClientReading => "the client did not take more of the answer for too long",
            Self::OriginSending => "the origin did not go on with its answer for too long",
            Self::OriginReading => "the origin did not take more of the request for too long",
            Self::Both => "nothing passed through the tunnel for too long",
        })
    }
}

// === Moving ===

/// A body that winds up the clock.
pub(crate) struct Moving<B> {
    body: B,
    open: Open,
}

impl<B> Moving<B> {
    /// Who was waited for when it was given up.
    pub(crate) fn verdict(&self) -> Option<Quiet> {
        self.open.activity.verdict()
    }
}

impl<B> http_body::Body for Moving<B>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        let activity = &this.open.activity;
        activity.flow(this.open.kind).starved.store(frame.is_pending(), Ordering::Relaxed);
        if frame.is_ready() {
            activity.moved();
        }
        frame.map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt as _, StreamBody};
    use tokio::sync::mpsc;
    use tokio::time::sleep;

    const PATIENCE: Duration = Duration::from_secs(60);

    type Parts = mpsc::Receiver<Bytes>;

    fn body(mut parts: Parts) -> impl http_body::Body<Data = Bytes, Error = BoxError> + Unpin {
        StreamBody::new(futures_util::stream::poll_fn(move |cx| {
            parts.poll_recv(cx).map(|part| part.map(|part| Ok(Frame::data(part))))
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_may_take_long_as_long_as_it_moves() {
        let activity = Activity::new();
        let (send, parts) = mpsc::channel(1);
        let mut body = activity.body(Kind::Answer, body(parts));
        let moving = async {
            for _ in 0..10 {
                sleep(PATIENCE - Duration::from_secs(1)).await;
                send.send(Bytes::from_static(b"x")).await.unwrap();
                body.frame().await.unwrap().unwrap();
            }
        };
        tokio::select! {
            () = moving => {}
            quiet = activity.quiet_for(PATIENCE) => panic!("{quiet}"),
        }
        let before = Instant::now();
        assert_eq!(activity.quiet_for(PATIENCE).await, Quiet::ClientReading);
        assert_eq!(before.elapsed(), PATIENCE);
        drop(body);
    }

    #[tokio::test(start_paused = true)]
    async fn the_clock_runs_from_the_last_byte_and_names_who_is_waited_for() {
        for (kind, starved, fed) in [
            (Kind::Answer, Quiet::OriginSending, Quiet::ClientReading),
            (Kind::Request, Quiet::ClientSending, Quiet::OriginReading),
        ] {
            let activity = Activity::new();
            let (send, parts) = mpsc::channel(1);
            let mut body = activity.body(kind, body(parts));
            sleep(PATIENCE / 2).await;
            send.send(Bytes::from_static(b"x")).await.unwrap();
            body.frame().await.unwrap().unwrap();
            let before = Instant::now();
            let quiet = tokio::select! {
                _ = body.frame() => panic!("there is no more"),
                quiet = activity.quiet_for(PATIENCE) => quiet,
            };
            assert_eq!((quiet, before.elapsed()), (starved, PATIENCE));

            let activity = Activity::new();
            let _open = activity.open(kind);
            assert_eq!(activity.quiet_for(PATIENCE).await, fed);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_open_is_never_quiet() {
        let activity = Activity::new();
        drop(activity.open(Kind::Answer));
        let waited = tokio::time::timeout(PATIENCE * 10, activity.quiet_for(PATIENCE)).await;
        assert!(waited.is_err());
        // What opens later has its whole time.
        let waiting = tokio::time::timeout(PATIENCE * 2, activity.quiet_for(PATIENCE));
        let open = async {
            sleep(PATIENCE / 2).await;
            let open = activity.open(Kind::Tunnel);
            let since = Instant::now();
            std::future::pending::<()>().await;
            drop((open, since));
        };
        tokio::select! {
            quiet = waiting => assert_eq!(quiet.unwrap(), Quiet::Both),
            () = open => {}
        }
    }

    /// Notes the verdict at the moment when it is dropped.
    struct Witness(Moving<crate::Body>, Arc<OnceLock<Quiet>>);

    impl Drop for Witness {
        fn drop(&mut self) {
            self.1.set(self.0.verdict().unwrap()).unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_watched_is_given_up_with_a_verdict() {
        let seen = Arc::<OnceLock<Quiet>>::default();
        let noted = seen.clone();
        let stuck = async move {
            let _witness = Witness(Activity::current().body(Kind::Answer, crate::full("x")), noted);
            std::future::pending::<()>().await;
        };
        let before = Instant::now();
        assert_eq!(watch(PATIENCE, stuck).await, None);
        assert_eq!(seen.get(), Some(&Quiet::ClientReading));
        assert_eq!(before.elapsed(), PATIENCE + GRACE);
        assert_eq!(watch(PATIENCE, sleep(PATIENCE * 5)).await, Some(()));
        // Without a limit.
        let long = watch(Duration::MAX, async {
            let _open = Activity::current().open(Kind::Answer);
            sleep(PATIENCE * 1000).await;
        });
        assert_eq!(long.await, Some(()));
    }
}
