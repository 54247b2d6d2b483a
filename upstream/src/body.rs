//! [`Body`]: what a request to an origin carries; [`Incoming`]: what its answer does.

use crate::turns::Turn;
use crate::uses::Exchange;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::oneshot;

/// Any error, for bodies that come from elsewhere.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a request to an origin: frames as they come, trailers included.
pub type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>;

/// The body of a request that has none.
pub fn empty_body() -> Body {
    http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body that tells when it has been taken to its end, or dropped: from then on an answer is due.
pub(crate) struct Watched {
    body: Body,
    done: Option<oneshot::Sender<()>>,
}

impl Watched {
    /// The body, and what resolves (to an error, which means nothing) when it is done.
    pub(crate) fn new(body: Body) -> (Self, oneshot::Receiver<()>) {
        let (done, is_done) = oneshot::channel();
        (Self { body, done: Some(done) }, is_done)
    }
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let frame = std::task::ready!(Pin::new(&mut this.body).poll_frame(cx));
        if frame.is_none() {
            this.done = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// === Incoming ===

/// The body of an origin's answer. Its connection counts as in use until its end, or until it is dropped.
#[derive(Debug)]
pub struct Incoming {
    body: hyper::body::Incoming,
    exchange: Option<Exchange>,
    /// Where it was asked for in turn.
    turn: Option<Turn>,
    waited: Duration,
}

impl Incoming {
    pub(crate) fn new(body: hyper::body::Incoming, exchange: Option<Exchange>) -> Self {
        let mut incoming = Self { body, exchange, turn: None, waited: Duration::ZERO };
        incoming.release_at_end();
        incoming
    }

    /// Its end is the end of `turn`, too.
    pub(crate) fn in_turn(mut self, turn: Turn) -> Self {
        self.waited = turn.waited;
        self.turn = Some(turn);
        self.release_at_end();
        self
    }

    /// From now on it does not count among those that its origin may have at once: how long it takes is somebody else's
    /// affair.
    #[must_use]
    pub fn out_of_turn(mut self) -> Self {
        self.turn = None;
        self
    }

    /// How long its request waited for its turn.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Whoever knows the length does not ask for the end.
    fn release_at_end(&mut self) {
        if self.body.is_end_stream() {
            self.release();
        }
    }

    fn release(&mut self) {
        self.exchange = None;
        self.turn = None;
    }
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let frame = std::task::ready!(Pin::new(&mut this.body).poll_frame(cx));
        match frame {
            Some(Ok(_)) => this.release_at_end(),
            _ => this.release(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
