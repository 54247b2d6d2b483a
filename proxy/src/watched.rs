//! [`Watched`]: an origin's answer on its way to a client, of which a manifest is read in passing.
//!
//! What is learned is learned at the end of the body and before the client has all of it, so that the next request finds it.
//! The body is parsed and hashed here, by whoever passes it on; what everybody waits for, the facts, is held for the
//! insertions alone.

use crate::entitle::Gate;
use aws_lc_rs::digest;
use bytes::{Bytes, BytesMut};
use darter_entitle::{Caller, MAX_MANIFEST_BYTES, Part, Place, members};
use darter_protocol::Digest;
use darter_upstream::Incoming;
use http_body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::sync::OwnedSemaphorePermit;

/// An origin's body, and what is read of it.
pub(crate) struct Watched {
    body: Incoming,
    watching: Option<Watching>,
}

/// What a manifest will prove, if the body is one.
pub(crate) struct Proof {
    pub(crate) place: Place,
    pub(crate) caller: Caller,
    /// When the caller's credential ends.
    pub(crate) ends: Option<Instant>,
    /// The digest by which it was asked for.
    pub(crate) digest: Option<String>,
    /// What the registry says that it is.
    pub(crate) content_type: Option<String>,
}

/// A manifest that passes by.
struct Watching {
    gate: Arc<Gate>,
    proof: Proof,
    seen: BytesMut,
    /// For the memory that `seen` takes.
    _reading: OwnedSemaphorePermit,
}

impl Watched {
    pub(crate) fn new(body: Incoming, gate: Arc<Gate>, proof: Proof, reading: OwnedSemaphorePermit) -> Self {
        let watching = Watching { gate, proof, seen: BytesMut::new(), _reading: reading };
        Self { body, watching: Some(watching) }
    }

    pub(crate) fn unwatched(body: Incoming) -> Self {
        Self { body, watching: None }
    }

    /// Takes what passes.
    fn see(&mut self, data: &Bytes) {
        let Some(watching) = &mut self.watching else { return };
        if watching.seen.len() + data.len() > MAX_MANIFEST_BYTES {
            self.watching = None;
            return;
        }
        watching.seen.extend_from_slice(data);
        // In HTTP/2 the end may come later, by itself; who has as much as was promised does not wait for it.
        if self.body.is_end_stream() || self.body.size_hint().exact() == Some(0) {
            self.learn();
        }
    }

    fn learn(&mut self) {
        let Some(Watching { gate, proof, seen, .. }) = self.watching.take() else { return };
        let Some(contained) = proof.borne_out(&seen) else { return };
        gate.learn(&proof.place, contained, proof.caller, proof.ends);
    }
}

impl Proof {
    /// What is in the place, if the body is what was asked for: has the digest, or is a manifest at all.
    fn borne_out(&self, body: &[u8]) -> Option<Vec<Part>> {
        let members = members(self.content_type.as_deref(), body);
        let own = match &self.digest {
            Some(digest) => is_of(digest, body).then(|| digest.clone())?,
            None => {
                members.as_ref()?;
                sha256(body)?
            }
        };
        Some(members.into_iter().flatten().chain([Part::Manifest(own)]).collect())
    }
}

fn is_of(named: &str, body: &[u8]) -> bool {
    let Ok(named) = named.parse::<Digest>() else { return false };
    let algorithm = match named {
        Digest::Sha256(_) => &digest::SHA256,
        Digest::Sha512(_) => &digest::SHA512,
    };
    digest::digest(algorithm, body).as_ref() == named.as_bytes()
}

fn sha256(body: &[u8]) -> Option<String> {
    let digest = digest::digest(&digest::SHA256, body);
    Some(Digest::Sha256(digest.as_ref().try_into().ok()?).to_string())
}

impl Body for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    this.see(data);
                }
            }
            Poll::Ready(None) => this.learn(),
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        polled
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

    fn proven(digest: Option<&str>, body: &str) -> Option<usize> {
        let place = Place { registry: String::new(), repository: String::new() };
        let digest = digest.map(str::to_owned);
        let proof = Proof { place, caller: Caller::Anonymous, ends: None, digest, content_type: None };
        proof.borne_out(body.as_bytes()).map(|digests| digests.len())
    }

    #[test]
    fn a_manifest_proves_itself_and_what_it_names() {
        let manifest = r#"{"schemaVersion":2,"layers":[{"digest":"sha256:a"}]}"#;
        let digest = sha256(manifest.as_bytes()).unwrap();
        assert_eq!(proven(None, manifest), Some(2));
        assert_eq!(proven(Some(&digest), manifest), Some(2));
        // Whatever it is, it is what was asked for.
        assert_eq!(proven(Some(&sha256(b"x").unwrap()), "x"), Some(1));
        assert_eq!(proven(Some(&digest), "<html>"), None);
        assert_eq!(proven(Some("sha256:short"), manifest), None);
        assert_eq!(proven(None, "<html>"), None);
    }
}
