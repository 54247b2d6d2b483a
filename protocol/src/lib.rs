//! What nodes say to each other, and the arithmetic that both sides must agree on.
//!
//! - [`TaskId`], [`HostId`], [`Digest`]: names. Each has one constructor that checks, so that holding one is the proof.
//! - [`ByteRange`]: a half-open, never empty range of bytes.
//! - [`PieceLayout`], [`PieceIndex`], [`PieceSet`]: how content is cut into pieces and these into blocks, and sets of pieces; [`BlockSet`]:
//!   sets of blocks.
//! - [`hash`]: the BLAKE3 tree that gives every block and every piece its hash and the whole its root.
//! - [`Priority`], [`UrlPrefix`]: what a daemon says of a download besides its task.
//! - [`Ring`]: which of several schedulers a task belongs to.
//! - [`scheduler`]: the messages and the gRPC service, generated from `proto/scheduler.proto`.
//! - [`enrolment`]: how a host comes to its certificate, from `proto/enrolment.proto`.
//! - [`daemon`]: the same of the daemon's socket for the command line, from `proto/daemon.proto`.
//!
//! Nothing here does IO or reads a clock.

mod block_set;
mod codec;
mod digest;
pub mod hash;
mod id;
mod layout;
mod origin;
mod piece_set;
mod priority;
mod range;
mod ring;

pub use block_set::BlockSet;
pub use digest::{Algorithm, Digest, InvalidDigest};
pub use hash::{BlockHash, PieceHash, Root};
pub use id::{HostId, InvalidId, TaskId};
pub use layout::{PieceIndex, PieceLayout};
pub use origin::{InvalidPrefix, UrlPrefix};
pub use piece_set::PieceSet;
pub use priority::Priority;
pub use range::ByteRange;
pub use ring::Ring;

/// Messages, client and server of the scheduler's gRPC service.
pub mod scheduler {
    pub use super::generated::scheduler::*;

    /// The number of this protocol, which both sides say when they meet. It grows when one side must know what the other can
    /// do; for fields that may be ignored it does not. Whoever says a smaller one, or none, is served all the same. 2: a
    /// daemon fetches what it is told to on its life line. 3: a daemon that holds a lease reports each second, whether anything
    /// comes from the origin or not. 4: twice each second.
    pub const PROTOCOL: u32 = 4;

    /// The answer to a registration, as the first packet of the conversation that it begins.
    impl From<RegisterPeerTaskResponse> for PeerPacket {
        fn from(answer: RegisterPeerTaskResponse) -> Self {
            Self {
                content: answer.content,
                partners: answer.partners,
                hashes: answer.hashes,
                lease: answer.lease,
                share: answer.share,
                refused: answer.refused,
                ..Self::default()
            }
        }
    }

    /// The .proto file as a `FileDescriptorSet`, for gRPC's reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

    /// The largest message that either side accepts, in bytes. The largest honest one is a register reply with the
    /// hashes of a task of 4,096 pieces: 160 KiB. An inventory is sent in batches below this.
    pub const MAX_MESSAGE_BYTES: usize = 4 << 20;
}

pub use generated::{daemon, enrolment};

#[expect(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated; the documentation is in the .proto files, and what is public here is so above"
)]
mod generated {
    pub mod scheduler {
        tonic::include_proto!("darter.scheduler.v1");
    }

    /// Messages, client and server of the daemon's gRPC service on its Unix socket.
    pub mod daemon {
        tonic::include_proto!("darter.daemon.v1");
    }

    /// Messages, client and server of the gRPC service that gives hosts their certificates.
    pub mod enrolment {
        tonic::include_proto!("darter.enrolment.v1");
    }
}

impl std::fmt::Debug for enrolment::EnrolRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("EnrolRequest");
        shown.field("token_id", &self.token_id).field("secret", &"[redacted]").field("name", &self.name);
        shown.finish_non_exhaustive()
    }
}

impl std::fmt::Debug for daemon::Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Header").field("name", &self.name).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for daemon::DownloadRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // What stands behind a question mark may be a signature, and before an @ a password.
        let plain = self.url.split('?').next().filter(|url| !url.contains('@'));
        let mut shown = f.debug_struct("DownloadRequest");
        shown.field("url", &plain.unwrap_or("[redacted]")).field("headers", &self.headers);
        shown.field("digest", &self.digest).finish()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_download_that_is_asked_for_prints_neither_headers_nor_signatures() {
        let header = super::daemon::Header { name: "x-own".to_owned(), value: b"hunter2".as_slice().into() };
        for (url, shown) in [
            ("https://a.example/f?sig=hunter2", "https://a.example/f"),
            ("https://me:hunter2@a.example/f", "[redacted]"),
        ] {
            let (url, headers) = (url.to_owned(), vec![header.clone()]);
            let request = super::daemon::DownloadRequest { url, headers, ..Default::default() };
            let printed = format!("{request:?}");
            assert!(printed.contains(shown) && printed.contains("x-own"), "{printed}");
            // Bytes print as text, or as numbers.
            assert!(!printed.contains("hunter2") && !printed.contains("104, 117"), "{printed}");
        }
    }

    #[test]
    fn a_request_to_join_prints_no_secret() {
        let request = super::enrolment::EnrolRequest {
            token_id: "3fa90c17".to_owned(),
            secret: "hunter2".to_owned(),
            ..Default::default()
        };
        let printed = format!("{request:?}");
        assert!(printed.contains("3fa90c17") && !printed.contains("hunter2"), "{printed}");
    }
}
