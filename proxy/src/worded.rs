//! [`Worded`]: a connection on which a head that is no request's gets an answer with words.
//!
//! hyper answers such a head by itself, with a status and nothing else, and has no place where more could be said (1.12). But
//! its answer can be told by the moment: it is what is written while no request is owed one and all that was owed before
//! has left. Then our own is written in its place.
//!
//! In HTTP/2 there is nothing to put words into: a head that is too large is answered with 431 by h2 itself, a frame that ends its
//! stream before the request is anybody's to see (0.4), and what is no head resets its stream or ends the connection.
//!
//! The same moment, when a request was owed one before it, is where a connection may come to [rest](crate::rest).

use crate::idle::{self, Activity, Kind};
use crate::refusal::Refusal;
use crate::request_id::RequestId;
use crate::{Body, BoxError};
use bytes::{Buf as _, Bytes};
use http::{Method, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::rt::{Read, ReadBufCursor, Write};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

/// A connection that is served, and what is known of its answers.
pub(crate) struct Worded<I> {
    io: I,
    owed: Owed,
    /// Of our own answer, what is not written yet.
    rest: Bytes,
    /// While the client does not take what is written: hyper lets go of a body when it has the last of it in its own buffers,
    /// but the answer goes on, and with it the clock, until the client has it.
    stuck: Option<idle::Open>,
}

/// Whose turn it is to write on one connection. Clones are the same.
#[derive(Clone)]
pub(crate) struct Owed(Arc<State>);

struct State {
    /// Requests whose answers are not over.
    answers: AtomicUsize,
    /// Requests that have come.
    requests: AtomicUsize,
    /// Something was asked for since all that was written had left.
    unsent: AtomicBool,
    /// The connection outlives the HTTP that is spoken on it.
    kept: AtomicBool,
    id: RequestId,
}

/// An answer that is not over.
struct Open(Owed);

impl Owed {
    pub(crate) fn new() -> Self {
        Self(Arc::new(State {
            answers: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            unsent: AtomicBool::new(false),
            kept: AtomicBool::new(false),
            id: RequestId::new(),
        }))
    }

    /// What the request is called whose head is none.
    pub(crate) fn id(&self) -> &RequestId {
        &self.0.id
    }

    /// A request has come.
    pub(crate) fn asked(&self) {
        self.0.unsent.store(true, Ordering::Relaxed);
        self.0.answers.fetch_add(1, Ordering::Relaxed);
        self.0.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// How many requests have come.
    pub(crate) fn requests(&self) -> usize {
        self.0.requests.load(Ordering::Relaxed)
    }

    /// Whether the connection is to outlive the HTTP that is spoken on it.
    pub(crate) fn keep(&self, kept: bool) {
        self.0.kept.store(kept, Ordering::Relaxed);
    }

    /// It gets this answer. One behind which the connection is a tunnel is never over.
    pub(crate) fn answered(&self, method: &Method, answer: Response<Body>) -> Response<Body> {
        let status = answer.status();
        if status == StatusCode::SWITCHING_PROTOCOLS || (method == Method::CONNECT && status.is_success()) {
            return answer;
        }
        let open = Open(self.clone());
        answer.map(|body| {
            let body = body.map_err(move |error: BoxError| {
                let _held = &open;
                error
            });
            body.boxed_unsync()
        })
    }

    /// Whether every request has its answer, and all of it has left.
    pub(crate) fn nothing(&self) -> bool {
        self.0.answers.load(Ordering::Relaxed) == 0 && !self.0.unsent.load(Ordering::Relaxed)
    }

    fn sent(&self) {
        if self.0.answers.load(Ordering::Relaxed) == 0 && self.0.unsent.swap(false, Ordering::Relaxed) {
            Activity::current().moved();
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.0.answers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<I> Worded<I> {
    pub(crate) fn new(io: I, owed: Owed) -> Self {
        Self { io, owed, rest: Bytes::new(), stuck: None }
    }

    /// The connection itself.
    pub(crate) fn into_inner(self) -> I {
        self.io
    }

    /// Our answer in the place of `written`, if that is hyper's own.
    fn own(&self, written: &[u8]) -> Option<Bytes> {
        if !self.owed.nothing() {
            return None;
        }
        let status = written.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
        let refusal = Refusal::unread(StatusCode::from_bytes(status).ok()?)?;
        // It is whole, or it is not what we take it for.
        written.ends_with(b"\r\n\r\n").then(|| refusal.as_http1(self.owed.id()).into())
    }
}

impl<I: Write + Unpin> Worded<I> {
    /// What became of writing to the connection.
    fn noted<T>(&mut self, written: Poll<T>) -> Poll<T> {
        if written.is_ready() {
            self.stuck = None;
        } else if self.stuck.is_none() {
            self.stuck = Some(Activity::current().open(Kind::Answer));
        }
        written
    }

    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.rest.has_remaining() {
            let written = Pin::new(&mut self.io).poll_write(cx, &self.rest);
            let written = ready!(self.noted(written))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.rest.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: Read + Unpin> Read for Worded<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}

impl<I: Write + Unpin> Write for Worded<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_rest(cx))?;
        if let Some(own) = this.own(buf) {
            this.rest = own;
            return Poll::Ready(Ok(buf.len()));
        }
        let written = Pin::new(&mut this.io).poll_write(cx, buf);
        this.noted(written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_rest(cx))?;
        // With TLS, what is written waits here.
        let flushed = Pin::new(&mut this.io).poll_flush(cx);
        ready!(this.noted(flushed))?;
        this.owed.sent();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_rest(cx))?;
        if this.owed.0.kept.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.owed.nothing() {
            let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| buf);
            return self.poll_write(cx, first);
        }
        let this = self.get_mut();
        ready!(this.poll_rest(cx))?;
        let written = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.noted(written)
    }
}
