//! Asking other daemons.

use super::dial::Dial;
use super::have::{MAX_LINE_BYTES, Said};
use super::{ACROSS_HEADER, Asking, At, HOST_HEADER, RELAYS_HEADER, UNCALLED_HEADER, proof};
use crate::http_range::{ContentRange, parse_content_range, range_header};
use crate::store::decode_hashes;
use bytes::{Buf, Bytes, BytesMut};
use darter_enrol::Membership;
use darter_protocol::scheduler::FailureReason;
use darter_protocol::{BlockHash, ByteRange, HostId, PieceHash, PieceIndex, PieceLayout, TaskId};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::time::Duration;

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
    #[error("has no place free and will say when it has")]
    Busy,
}

impl PeerError {
    /// What the scheduler is told.
    pub(crate) fn reason(&self) -> FailureReason {
        match self {
            Self::Unreachable => FailureReason::Unreachable,
            Self::Timeout => FailureReason::Timeout,
            Self::NotHeld => FailureReason::NotHeld,
            Self::Corrupt => FailureReason::Corrupt,
            // Nobody is reported for it.
            Self::Busy => FailureReason::Unspecified,
        }
    }
}

/// What is wanted of a peer's data.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish {
    pub(crate) range: ByteRange,
    pub(crate) asking: Asking,
    /// So many blocks are in the piece that `range` lies in: what they hash to is wanted, too.
    pub(crate) proof: Option<usize>,
    /// But not if the piece would have to be read for it before its first byte is sent: half a second for 32 MiB of a disk.
    pub(crate) if_known: bool,
}

/// Data, as it comes.
#[derive(Debug)]
pub(crate) struct Data {
    pub(crate) body: Incoming,
    /// What all blocks of the piece hash to, where it was wanted and is known there. Whether it is right is for the caller to
    /// check.
    pub(crate) proof: Option<Vec<BlockHash>>,
}

/// The client side of the piece protocol.
#[derive(Clone)]
pub(crate) struct Peers {
    client: Client<Dial, Empty<Bytes>>,
    /// Who this daemon is.
    host: HeaderValue,
}

impl Peers {
    pub(crate) fn new(host: &HostId, membership: &Membership) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .build(Dial::new(membership));
        let host = HeaderValue::from_str(host.as_str()).expect("a host's id has only visible characters");
        Self { client, host }
    }

    /// The bytes of a range, as they come.
    pub(crate) async fn data(&self, peer: At<'_>, task: &TaskId, wish: Wish) -> Result<Data, PeerError> {
        let Wish { range, asking, proof, if_known } = wish;
        let mut request = request(peer, task, "data");
        let headers = request.headers_mut();
        let says_nothing = || HeaderValue::from_static("1");
        for (header, stands) in [(UNCALLED_HEADER, !asking.called), (ACROSS_HEADER, asking.across)] {
            if stands {
                headers.insert(header, says_nothing());
            }
        }
        if proof.is_some() {
            headers.insert(proof::WANTED_HEADER, if if_known { proof::IF_KNOWN } else { says_nothing() });
        }
        headers.insert(header::RANGE, range_header(range.start(), Some(range.end())));
        let response = self.send(request, HEAD_TIMEOUT).await?;
        let part = response.headers().get(header::CONTENT_RANGE).and_then(parse_content_range);
        if !matches!(part, Some(ContentRange::Part { range: sent, .. }) if sent == range) {
            return Err(PeerError::Corrupt);
        }
        let said = proof.zip(response.headers().get(proof::PROOF_HEADER));
        let proof = match said.map(|(count, said)| proof::parse(said, count)) {
            Some(None) => return Err(PeerError::Corrupt),
            known => known.flatten(),
        };
        Ok(Data { body: response.into_body(), proof })
    }

    /// The hashes of all pieces. Whether they are the right ones is for the caller to check.
    pub(crate) async fn hashes(
        &self,
        peer: At<'_>,
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

    /// What all blocks of a piece hash to. Whether it is right is for the caller to check.
    pub(crate) async fn blocks(
        &self,
        peer: At<'_>,
        task: &TaskId,
        layout: &PieceLayout,
        piece: PieceIndex,
    ) -> Result<Vec<BlockHash>, PeerError> {
        let response = self.send(request(peer, task, &format!("blocks/{piece}")), HEAD_TIMEOUT).await?;
        let count = layout.blocks_of(piece).len();
        let body = Limited::new(response.into_body(), count * 32);
        let body =
            tokio::time::timeout(HEAD_TIMEOUT, body.collect()).await.map_err(|_| PeerError::Timeout)?;
        let bytes = body.map_err(|_| PeerError::Corrupt)?.to_bytes();
        let (hashes, rest) = bytes.as_chunks::<32>();
        if hashes.len() == count && rest.is_empty() {
            Ok(hashes.iter().map(|hash| BlockHash::from(*hash)).collect())
        } else {
            Err(PeerError::Corrupt)
        }
    }

    /// What the other daemon says: which pieces it has, now and as they come, and when it is this one's turn.
    pub(crate) async fn have(&self, peer: At<'_>, task: &TaskId, pieces: u32) -> Result<Followed, PeerError> {
        let mut request = request(peer, task, "have");
        request.headers_mut().insert(RELAYS_HEADER, HeaderValue::from_static("1"));
        let body = self.send(request, HAVE_TIMEOUT).await?.into_body();
        Ok(Followed { body, buffer: BytesMut::new(), pieces })
    }

    /// Tells that the place is not needed. Whether it is heard matters little: the place is kept for a moment only.
    pub(crate) async fn pass(&self, peer: At<'_>, task: &TaskId) {
        let mut request = request(peer, task, "turn");
        *request.method_mut() = Method::DELETE;
        let _ = self.send(request, HEAD_TIMEOUT).await;
    }

    async fn send(
        &self,
        mut request: Request<Empty<Bytes>>,
        within: Duration,
    ) -> Result<Response<Incoming>, PeerError> {
        request.headers_mut().insert(HOST_HEADER, self.host.clone());
        let answer = tokio::time::timeout(within, self.client.request(request)).await;
        let response = answer.map_err(|_| PeerError::Timeout)?.map_err(|_| PeerError::Unreachable)?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::NO_CONTENT => Ok(response),
            StatusCode::SERVICE_UNAVAILABLE => {
                // Read to its end, so that the connection is there for the next request.
                let _ =
                    tokio::time::timeout(within, Limited::new(response.into_body(), 1024).collect()).await;
                Err(PeerError::Busy)
            }
            StatusCode::NOT_FOUND => Err(PeerError::NotHeld),
            _ => Err(PeerError::Unreachable),
        }
    }
}

fn request(peer: At<'_>, task: &TaskId, what: &str) -> Request<Empty<Bytes>> {
    let At { host, address } = peer;
    // By the host as user, connections are kept by host and dialled to it: see `dial.rs`. It is not sent.
    Request::get(format!("http://{host}@{address}/tasks/{task}/{what}"))
        .body(Empty::new())
        .expect("an id, an address and hexadecimal digits make a URL")
}

/// What another daemon says of a task, one line after the other.
pub(crate) struct Followed {
    body: Incoming,
    buffer: BytesMut,
    pieces: u32,
}

impl Followed {
    /// The next thing that it says; `None` when it has no more to say.
    ///
    /// # Cancel safety
    /// What was received stays received.
    pub(crate) async fn next(&mut self) -> Result<Option<Said>, PeerError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let said = Said::parse(&self.buffer[..end], self.pieces);
                self.buffer.advance(end + 1);
                return said.map(Some).ok_or(PeerError::Corrupt);
            }
            if self.buffer.len() > MAX_LINE_BYTES {
                return Err(PeerError::Corrupt);
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(_)) => return Err(PeerError::Unreachable),
                Some(Ok(frame)) => self.buffer.extend_from_slice(frame.data_ref().ok_or(PeerError::Corrupt)?),
            }
        }
    }
}
