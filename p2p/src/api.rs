//! What a caller asks of the engine, and what it gets.

use crate::Supplied;
use crate::reader::Reader;
use bytes::Bytes;
use darter_protocol::{ByteRange, Digest, Priority, TaskId};
use http::HeaderMap;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use url::Url;

/// Stands where content has its origin; what was imported has none.
const NOWHERE: &str = "imported:";

/// One caller's wish for some content.
#[derive(Clone)]
pub struct OpenRequest {
    /// The content's name.
    pub task: TaskId,
    /// What the whole content must hash to, where that is known.
    pub digest: Option<Digest>,
    /// Where it comes from: http or https. Another scheme is that of content without an origin ([`Engine::import`]), which
    /// comes from this host or from other daemons, or not at all.
    ///
    /// [`Engine::import`]: crate::Engine::import
    pub url: Url,
    /// The caller's own request headers for the origin (Authorization, Accept, User-Agent ...), end-to-end ones only.
    /// `Host`, `Range`, `If-*` and `Accept-Encoding` in it are not sent: the engine sets its own.
    pub headers: HeaderMap,
    /// Which part.
    pub want: Want,
    /// How urgent it is to whom it may concern: the scheduler of the task.
    pub priority: Priority,
}

impl OpenRequest {
    /// For all of some content that has no origin.
    pub fn imported(task: TaskId) -> Self {
        let url = Url::parse(NOWHERE).expect("it has a scheme");
        Self {
            task,
            digest: None,
            url,
            headers: HeaderMap::new(),
            want: Want::All,
            priority: Priority::default(),
        }
    }
}

/// Which part of the content a caller wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// All of it.
    All,
    /// These bytes, as far as the content reaches. The start must lie inside the content.
    Range(ByteRange),
    /// From this offset to the end.
    From(u64),
    /// The last bytes, at most so many. Not 0.
    Suffix(u64),
}

impl Want {
    /// The bytes that are wanted of content of `length` bytes; `None` for all of nothing.
    ///
    /// # Errors
    /// [`OpenError::NotSatisfiable`] when they lie outside the content.
    pub fn resolve(self, length: u64) -> Result<Option<ByteRange>, OpenError> {
        let range = match self {
            Self::All | Self::From(0) => return Ok(ByteRange::new(0, length)),
            // The last bytes of nothing are all of it (RFC 9110 section 14.1.2).
            Self::Suffix(_) if length == 0 => return Ok(None),
            Self::Range(range) => ByteRange::new(range.start(), range.end().min(length)),
            Self::From(start) => ByteRange::new(start, length),
            Self::Suffix(bytes) => ByteRange::new(length.saturating_sub(bytes), length),
        };
        range.map(Some).ok_or(OpenError::NotSatisfiable { length })
    }

    pub(crate) fn is_all(self) -> bool {
        matches!(self, Self::All)
    }
}

/// The answer to an [`OpenRequest`].
pub enum Opened {
    /// The content is known; its bytes come as they arrive.
    Content(Content),
    /// The origin's own answer to this caller, to be relayed as it is: a refusal, or a success that cannot be kept (of
    /// unknown length, for instance).
    Relay(http::Response<darter_upstream::Incoming>),
}

/// Content that is being served.
pub struct Content {
    /// What is known of the whole.
    pub info: ContentInfo,
    /// The bytes that follow; `None` when the content is empty.
    pub range: Option<ByteRange>,
    /// Where the bytes stood when this was opened.
    pub served: Served,
    /// The bytes of `range`.
    pub body: ContentBody,
}

/// What is known of some content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentInfo {
    /// Its whole length in bytes.
    pub length: u64,
    /// The origin's headers that belong to the content: Content-Type, ETag, Last-Modified, Docker-Content-Digest and the
    /// like. Never Content-Length, Content-Range, or anything about the connection or the caller.
    pub headers: HeaderMap,
}

/// Where an opened content's bytes stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// Complete on this host's disk.
    Disk,
    /// Still being fetched, from peers or the origin.
    Fetching,
}

/// The bytes of some opened content, as an HTTP body of a known size. Ends with an error, short, when the content turns
/// out to be wrong or cannot be had any more: it is never completed with wrong bytes.
pub struct ContentBody {
    /// Until the first byte is asked for.
    unread: Option<Box<Reader>>,
    /// From then on.
    frames: UnsyncBoxBody<Bytes, ReadError>,
    rest: u64,
    supplied: Arc<Supplied>,
}

impl ContentBody {
    pub(crate) fn new(reader: Reader) -> Self {
        let rest = reader.rest.map_or(0, ByteRange::len);
        let frames = Empty::new().map_err(|never| match never {}).boxed_unsync();
        Self { unread: Some(Box::new(reader)), frames, rest, supplied: Arc::default() }
    }

    /// Its bytes go as they are to a [`Socket`](darter_sendfile::Socket), and to nobody who reads them: they may be lent
    /// without having been read. Said before the first is asked for.
    #[must_use]
    pub fn lend(mut self) -> Self {
        if let Some(reader) = &mut self.unread {
            reader.lends = true;
        }
        self
    }

    /// Where the bytes that have left it came from. What is given goes on counting when the body is gone.
    pub fn supplied(&self) -> &Arc<Supplied> {
        &self.supplied
    }
}

impl http_body::Body for ContentBody {
    type Data = Bytes;
    type Error = ReadError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, ReadError>>> {
        let this = self.get_mut();
        if let Some(reader) = this.unread.take() {
            this.frames = reader.into_frames(Arc::clone(&this.supplied));
        }
        let polled = Pin::new(&mut this.frames).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            let length = frame.data_ref().map_or(0, |data| data.len() as u64);
            this.rest = this.rest.saturating_sub(length);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.rest == 0
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.rest)
    }
}

/// Why content could not be opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// The content has `length` bytes, and what was wanted lies outside: HTTP's 416.
    #[error("the content has {length} bytes; the range lies outside")]
    NotSatisfiable {
        /// The content's length in bytes.
        length: u64,
    },
    /// The origin could not be asked.
    #[error(transparent)]
    Upstream(#[from] Arc<darter_upstream::UpstreamError>),
    /// The origin does what HTTP does not allow; which host and what is in the text.
    #[error("{0}")]
    Origin(String),
    /// This host cannot keep the content (disk full, read-only, broken). The caller may still stream it past the engine.
    #[error("cannot store the content: {0}")]
    Store(Arc<std::io::Error>),
    /// The content cannot be cut into pieces. The caller may still stream it past the engine.
    #[error("the origin's answer cannot be shared in pieces")]
    NotShareable,
    /// The content could be had from nobody: what was tried is in the text.
    #[error("{0}")]
    Unavailable(String),
    /// The operator does not want it to be fetched. The caller must not fetch it past the engine either.
    #[error("{reason}")]
    Refused {
        /// Whoever has it, this caller may not. Otherwise it may later, when somebody has it.
        for_good: bool,
        /// A sentence for people.
        reason: String,
    },
}

/// Why a body that was under way ends short.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The bytes do not match the digest or hash that they were asked for by.
    #[error("the content does not match {expected}")]
    Mismatch {
        /// The digest that was expected.
        expected: String,
    },
    /// The rest could be had from nobody: what was tried is in the text.
    #[error("{0}")]
    Unavailable(String),
    /// The local copy cannot be read or written.
    #[error("local storage: {0}")]
    Store(Arc<std::io::Error>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_lies_inside_the_content() {
        let range = |start, end| ByteRange::new(start, end).unwrap();
        for (want, length, expected) in [
            (Want::All, 10, Ok(Some(range(0, 10)))),
            (Want::All, 0, Ok(None)),
            (Want::From(0), 0, Ok(None)),
            (Want::From(9), 10, Ok(Some(range(9, 10)))),
            (Want::From(10), 10, Err(())),
            (Want::Range(range(5, 99)), 10, Ok(Some(range(5, 10)))),
            (Want::Range(range(0, 1)), 0, Err(())),
            (Want::Range(range(10, 11)), 10, Err(())),
            (Want::Suffix(3), 10, Ok(Some(range(7, 10)))),
            (Want::Suffix(99), 10, Ok(Some(range(0, 10)))),
            (Want::Suffix(3), 0, Ok(None)),
        ] {
            assert_eq!(want.resolve(length).map_err(drop), expected, "{want:?} of {length}");
        }
    }
}
