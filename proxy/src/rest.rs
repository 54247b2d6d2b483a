//! A client's connection of HTTP/1.1 between two requests.
//!
//! hyper keeps 16 KiB of buffers for a connection, whether or not anything is said on it, and clients keep many: a daemon's
//! pool, a build farm. So HTTP is spoken in spells. When nothing has been asked for a moment the spell ends, all that it
//! needed is given back, and the socket alone waits; when the client goes on, a new spell begins with what it has said.
//!
//! Nobody outside can tell. A spell ends only when hyper itself says that the connection is idle; what it has read of a
//! next request is put back; and how long a client may be silent counts from its last answer, as it does inside hyper.
//!
//! What is left of a connection then, in bytes, from a heap profile of 5,000 that had one answer each. With what the allocator
//! adds, 4.1 KB of plain HTTP and 10.4 KB of intercepted TLS are resident for each; `e2e/tests/hard.rs` holds us to it.
//!
//! ```text
//!                                                               plain   intercepted
//! a TLS record that is read: rustls's buffer, never smaller                   4,096
//! the TLS session                                                             1,264
//! its ciphers, one for each direction                                         1,280
//! its state, what is left of its handshake, its queues                        1,150
//! the future that serves it, and waits in `goes_on`             1,032           888
//! the future that led there                                       536            56
//! its task                                                        384           384
//! its socket: what tokio knows of it, what stands around it       256           424
//! its place among the connections, the names of its requests      216           310
//! ```
//!
//! So a future that may come to wait here holds no session, only a box of one, and hands on what comes next instead of
//! awaiting it ([`Next`](crate::pipeline::Next)): together the two took 9 KB of 19. HTTP/2 has no rest,
//! and costs 46 KB: of those only so many are kept ([`Line`](crate::line::Line)).

use crate::BoxError;
use crate::idle::Activity;
use crate::scope::Scope;
use crate::sniff::{self, Rewound};
use crate::worded::{Owed, Worded};
use darter_upstream::Counted;
use hyper::body::Incoming;
use hyper::server::conn::http1::UpgradeableConnection;
use hyper::service::HttpService;
use hyper_util::rt::TokioIo;
use prometheus_client::metrics::gauge::Gauge;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// How long after its last answer a connection comes to rest. A client that asks for one thing after the other is faster,
/// and one that is slower does not notice the few microseconds that a new spell takes. Short, because memory that a crowd
/// took all at once is not given back to the system.
const REST_AFTER: Duration = Duration::from_millis(100);

/// How often at least a connection is looked at on which something is under way.
const LOOK: Duration = Duration::from_secs(2);

/// What is seen of one spell from outside of hyper.
pub(crate) struct Spell {
    owed: Owed,
    activity: Activity,
    /// Requests that had come before it. Until one more has, it does not end: the time of a head that is never complete would
    /// begin anew over and over.
    before: usize,
}

/// What hyper reads and writes in a spell.
pub(crate) type Held<S> = Worded<TokioIo<Rewound<S>>>;

/// How a spell ended.
pub(crate) enum Ended<S> {
    /// With its connection, or with an upgrade.
    Over,
    /// The connection is at rest; the last answer ended then.
    AtRest(Rewound<S>, Instant),
}

/// Runs one spell until its connection is over or at rest, or what is under way has ended after the scope began to drain.
///
/// # Errors
/// hyper's, which are the end of the connection.
pub(crate) async fn run<S, A>(
    connection: UpgradeableConnection<Held<S>, A>,
    spell: Spell,
    scope: &Scope,
) -> hyper::Result<Ended<S>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: HttpService<Incoming, ResBody = crate::Body, Error: Into<BoxError>> + Unpin,
{
    // Boxed here, so that the futures around it do not hold it twice.
    let mut connection = Box::new(connection);
    let since = tokio::select! {
        ended = &mut *connection => return ended.map(|()| Ended::Over),
        () = scope.draining() => {
            Pin::new(&mut *connection).graceful_shutdown();
            return connection.await.map(|()| Ended::Over);
        }
        since = spell.at_rest() => since,
    };
    // This ends an idle connection without a byte read or written, and any other one with the answer that it is at.
    spell.owed.keep(true);
    Pin::new(&mut *connection).graceful_shutdown();
    match futures_util::poll!(&mut *connection) {
        Poll::Ready(ended) => ended?,
        Poll::Pending => {
            spell.owed.keep(false);
            return connection.await.map(|()| Ended::Over);
        }
    }
    let Some(parts) = connection.into_parts() else { return Ok(Ended::Over) };
    spell.owed.keep(false);
    let mut stream = parts.io.into_inner().into_inner();
    stream.unread(parts.read_buf);
    Ok(Ended::AtRest(stream, since))
}

/// Waits until a client goes on. `false`: it does not, before `patience` has passed since its last answer or the scope
/// drains, and its connection is closed.
pub(crate) async fn goes_on<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut Rewound<S>,
    since: Instant,
    patience: Duration,
    scope: &Scope,
    resting: &Gauge,
) -> bool {
    if stream.has_unread() {
        return true;
    }
    let _resting = Counted::one_of(resting);
    let more = {
        // Pinned here, so that what waits for it does not hold it again.
        let more = pin!(timeout(patience.saturating_sub(since.elapsed()), sniff::read(stream)));
        scope.unless_draining(more).await
    };
    match more {
        Some(Ok(Ok(bytes))) if !bytes.is_empty() => {
            stream.unread(bytes);
            true
        }
        _ => {
            // Whether or not it hears of it, it is over.
            let _ = stream.shutdown().await;
            false
        }
    }
}

// === impl Spell ===

impl Spell {
    /// One that begins on a connection whose answers are `owed`. The clock is that of the task which runs it.
    pub(crate) fn begin(owed: Owed) -> Self {
        Self { before: owed.requests(), owed, activity: Activity::current() }
    }

    /// Resolves when nothing has been under way for [`REST_AFTER`], and gives the moment of the last answer's end. Looks now
    /// and then, ever more seldom while it takes long: thousands of requests may wait for an origin.
    async fn at_rest(&self) -> Instant {
        let mut pause = REST_AFTER;
        loop {
            if self.is_idle() {
                let since = self.activity.last_moved();
                if since.elapsed() >= REST_AFTER {
                    return since;
                }
                sleep_until(since + REST_AFTER).await;
                pause = REST_AFTER;
            } else {
                sleep(pause).await;
                pause = (2 * pause).min(LOOK);
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.owed.requests() != self.before && self.owed.nothing() && !self.activity.is_open()
    }
}
