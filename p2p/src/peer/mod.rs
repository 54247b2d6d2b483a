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
