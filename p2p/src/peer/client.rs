//! Asking other daemons.

use super::MAX_HAVE_BYTES;
use crate::http_range::{ContentRange, parse_content_range, range_header};
use crate::store::decode_hashes;
use bytes::{Buf, Bytes, BytesMut};
use darter_protocol::scheduler::FailureReason;
use darter_protocol::{ByteRange, PieceHash, PieceLayout, PieceSet, TaskId};
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::net::SocketAddr;
use std::time::Duration;

/// How long dialling another daemon may take: it is near, or it is not there.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long another daemon may take to begin its answer: it answers from its page cache or says no.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it may take to say what it has: its download may itself be waiting for the first word of a slow origin, which
/// is waited for half as long.
const HAVE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an unused connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Why another daemon did not give what it was asked for.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum PeerError {
    #[error("cannot be reached")]
    Unreachable,
    #[error("did not answer in time")]
    Timeout,
    #[error("does not hold it")]
    NotHeld,
    #[error("sent something else")]
    Corrupt,
}

impl PeerError {
    /// What the scheduler is told.
    pub(crate) fn reason(&self) -> FailureReason {
        match self {
            Self::Unreachable => FailureReason::Unreachable,
            Self::Timeout => FailureReason::Timeout,
            Self::NotHeld => FailureReason::NotHeld,
            Self::Corrupt => FailureReason::Corrupt,
        }
    }
}

/// The client side of the piece protocol.
#[derive(Clone)]
pub(crate) struct Peers(Client<HttpConnector, Empty<Bytes>>);

impl Peers {
    pub(crate) fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(DIAL_TIMEOUT));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .build(connector);
        Self(client)
    }

    /// The bytes of `range`, as they come.
    pub(crate) async fn data(
        &self,
        peer: SocketAddr,
        task: &TaskId,
        range: ByteRange,
    ) -> Result<Incoming, PeerError> {
        let mut request = request(peer, task, "data");
        request.headers_mut().insert(header::RANGE, range_header(range.start(), Some(range.end())));
        let response = self.send(request, HEAD_TIMEOUT).await?;
        let part = response.headers().get(header::CONTENT_RANGE).and_then(parse_content_range);
        match part {
            Some(ContentRange::Part { range: sent, .. }) if sent == range => Ok(response.into_body()),
            _ => Err(PeerError::Corrupt),
        }
    }

    /// The hashes of all pieces. Whether they are the right ones is for the caller to check.
    pub(crate) async fn hashes(
        &self,
        peer: SocketAddr,
        task: &TaskId,
        layout: &PieceLayout,
    ) -> Result<Vec<PieceHash>, PeerError> {
        let response = self.send(request(peer, task, "hashes"), HEAD_TIMEOUT).await?;
        let body = Limited::new(response.into_body(), layout.pieces() as usize * 32);
        let body =
            tokio::time::timeout(HEAD_TIMEOUT, body.collect()).await.map_err(|_| PeerError::Timeout)?;
        let bytes = body.map_err(|_| PeerError::Corrupt)?.to_bytes();
        decode_hashes(layout, &bytes).ok_or(PeerError::Corrupt)
    }

    /// Which pieces the other daemon has, now and as they come.
    pub(crate) async fn have(
        &self,
        peer: SocketAddr,
        task: &TaskId,
        pieces: u32,
    ) -> Result<HaveMaps, PeerError> {
        let body = self.send(request(peer, task, "have"), HAVE_TIMEOUT).await?.into_body();
        Ok(HaveMaps { body, buffer: BytesMut::new(), pieces })
    }

    async fn send(
        &self,
        request: Request<Empty<Bytes>>,
        within: Duration,
    ) -> Result<Response<Incoming>, PeerError> {
        let answer = tokio::time::timeout(within, self.0.request(request)).await;
        let response = answer.map_err(|_| PeerError::Timeout)?.map_err(|_| PeerError::Unreachable)?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            StatusCode::NOT_FOUND => Err(PeerError::NotHeld),
            _ => Err(PeerError::Unreachable),
        }
    }
}

fn request(peer: SocketAddr, task: &TaskId, what: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("http://{peer}/tasks/{task}/{what}"))
        .body(Empty::new())
        .expect("an address and hexadecimal digits make a URL")
}

/// The have-maps of another daemon, one after the other.
pub(crate) struct HaveMaps {
    body: Incoming,
    buffer: BytesMut,
    pieces: u32,
}

impl HaveMaps {
    /// The next have-map; `None` when the other daemon will not get any more of the task.
    ///
    /// # Cancel safety
    /// What was received stays received.
    pub(crate) async fn next(&mut self) -> Result<Option<PieceSet>, PeerError> {
        loop {
            if let Some(map) = self.parse()? {
                return Ok(Some(map));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(_)) => return Err(PeerError::Unreachable),
                Some(Ok(frame)) => self.buffer.extend_from_slice(frame.data_ref().ok_or(PeerError::Corrupt)?),
            }
        }
    }

    /// The newest complete have-map in the buffer.
    fn parse(&mut self) -> Result<Option<PieceSet>, PeerError> {
        let mut newest = None;
        while let Some((length, rest)) = self.buffer.split_first_chunk() {
            let length = usize::from(u16::from_le_bytes(*length));
            if length > MAX_HAVE_BYTES {
                return Err(PeerError::Corrupt);
            }
            let Some(map) = rest.get(..length) else { break };
            newest = Some(PieceSet::from_bytes(self.pieces, map).ok_or(PeerError::Corrupt)?);
            self.buffer.advance(2 + length);
        }
        Ok(newest)
    }
}
