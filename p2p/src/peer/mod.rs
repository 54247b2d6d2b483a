//! Between daemons: plain HTTP/1.1 with ranges over kept-alive connections, so that `curl` can look at it.
//!
//! ```text
//! GET /tasks/ID          what is known of the task (JSON, for people)
//! GET /tasks/ID/data     Range: bytes=a-b, pieces that are complete here; 206, or 404 when they are not
//! GET /tasks/ID/hashes   the hashes of all pieces, 32 bytes each; 404 before the task is complete
//! GET /tasks/ID/have     which pieces are here: a have-map now and after every change, each preceded by its length
//! ```
//!
//! A have-map is pushed as pieces arrive and coalesced when the connection is slow; its end says that this daemon will
//! not get any more of the task.

mod client;
mod server;

pub(crate) use client::{PeerError, Peers};
pub(crate) use server::{Served, run};

/// The longest have-map in bytes: one bit per piece.
const MAX_HAVE_BYTES: usize = (darter_protocol::PieceLayout::MAX_PIECES / 8) as usize;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::store::TaskFile;
    use darter_protocol::{ByteRange, PieceLayout, PieceSet, TaskId};
    use http_body_util::BodyExt;
    use std::sync::Arc;
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;
    use tokio_util::sync::CancellationToken;

    const LENGTH: u64 = 5_000_000;

    /// A piece server that holds the first piece of every task.
    async fn server(upload_slots: u32) -> (std::net::SocketAddr, JoinSet<()>, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let file = TaskFile::create(&dir.path().join("f"), PieceLayout::new(LENGTH).unwrap()).unwrap();
        let file = Arc::new(file);
        let find = move |_| {
            let have = PieceSet::from_bytes(2, &[1]).unwrap();
            std::future::ready(Some(Served::Partial { file: Arc::clone(&file), have }))
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let server = run(listener, find, upload_slots, Metrics::default(), stop);
        (address, JoinSet::from_iter([server]), dir)
    }

    #[tokio::test]
    async fn only_what_is_there_is_given() {
        let (address, _server, _dir) = server(1).await;
        let (peers, task) = (Peers::new(), TaskId::from([1; 32]));
        let first = ByteRange::new(0, PieceLayout::MIN_PIECE_SIZE).unwrap();
        let body = peers.data(address, &task, first).await.unwrap();
        assert_eq!(body.collect().await.unwrap().to_bytes().len() as u64, first.len());
        for (start, end) in [(0, LENGTH), (first.end(), LENGTH), (0, u64::MAX), (LENGTH, LENGTH + 1)] {
            let range = ByteRange::new(start, end).unwrap();
            assert!(matches!(peers.data(address, &task, range).await, Err(PeerError::NotHeld)), "{range}");
        }
    }

    #[tokio::test]
    async fn a_daemon_without_a_free_slot_is_not_taken_for_one_that_is_gone() {
        let (address, _server, _dir) = server(0).await;
        let task = TaskId::from([1; 32]);
        let range = ByteRange::new(0, 1).unwrap();
        assert!(Peers::new().data(address, &task, range).await.is_ok());
    }
}
