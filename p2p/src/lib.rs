//! The piece engine: content comes from this host's disk, from other daemons, or from its origin, and leaves as it
//! arrives.
//!
//! - [`Engine`]: opens content by task. Concurrent openings of one task share one download.
//! - `download`: the driver that does the IO for one running task; what it fetches next and from whom says [`Swarm`].
//! - `store`: the content on disk. `import`: what a user brings in himself; `copies` of it on other hosts.
//! - `origin`: fetching from where the content comes from; `origins` that want to be left alone. `past`: readers that the disk has
//!   failed go on there.
//! - `peer`: fetching from other daemons, and serving them; whom it serves next says [`Uploads`].
//! - `schedule`: the conversation with the scheduler.
//! - `unshareable`: what served who asked alone, a moment ago.
//! - `lists`: what the blocks of pieces hash to, remembered.
//! - `throttle`: how fast bytes move at most. `ahead`: what is fetched ahead of who reads on in small ranges.
//!
//! [`Swarm`]: darter_swarm::Swarm
//! [`Uploads`]: darter_swarm::Uploads
//!
//! How often a byte is copied from memory to memory, those of the system calls included, and hashed. Of TLS with an origin,
//! the copy out of its records comes on top.
//!
//! | way | copies | hashes |
//! |---|---|---|
//! | disk -> peer | page cache to socket, by sendfile(2): 1 | none |
//! | disk -> client, HTTP/1.1 without TLS | the same: 1 | none |
//! | disk -> client, otherwise | page cache to memory, memory to socket: 2 | none |
//! | a pack -> client or peer | the same: 2 | BLAKE3 once whenever it is opened from disk |
//! | origin -> memory -> client, up to 1 MiB | socket to memory, to where it waits, from there, to the client: 4; and after that to the page cache | BLAKE3 once; the digest's own once |
//! | origin -> disk -> client | socket to memory, memory to page cache, and 1 or 2 to the client: 3 or 4 | BLAKE3 once; the digest's own once, in passing |
//! | origin -> client, past a disk that failed on the way | socket to memory, memory to socket: 2 | the digest's own once; of what came before, what was not hashed in passing once more |
//! | peer -> disk -> client | the same: 3 or 4 | BLAKE3 once; the digest's own once, in passing when a piece comes in order, or read back: a copy more |
//!
//! A spare piece (asked of a second partner) is put together in memory before it is written: a copy more. What is
//! read to be sent is read into memory that was zeroed once and is used again; so is what sendfile would have to wait for, because it is
//! not in the page cache.
//!
//! A range goes the same ways, block by block (64 KiB): only the blocks that it touches are fetched, are kept, and make a piece
//! when all others have come, without being read back: their hashes merge. What all blocks of a piece hash to (32 bytes each) goes ahead
//! of its data, where it is of use: it costs no turn of its own, and no second look at the piece as long as the partner remembers it from
//! when it got the piece (`lists.rs`). By that a daemon passes on a piece that is itself still coming, each block as it is proven: what
//! goes through many hands is read from the page cache by each, and hashed once by each.
//!
//! This crate knows no HTTP grammar of a client: ranges are [`ByteRange`]s here, and what goes back is a [`Content`].

#![forbid(unsafe_code)]

mod ahead;
mod api;
mod config;
mod copies;
mod download;
mod engine;
/// The target of spans that are traces: nobody logs them, and they cost nothing unless traces are sent somewhere.
const TRACE: &str = "trace";

mod http_range;
mod import;
mod intake;
mod lists;
mod members;
mod metrics;
mod news;
mod origin;
mod origins;
mod past;
mod peer;
mod progress;
mod reader;
mod schedule;
mod sink;
mod stat;
mod store;
mod supplier;
mod throttle;
mod unshareable;
mod verify;

pub use api::{Content, ContentBody, ContentInfo, OpenError, OpenRequest, Opened, ReadError, Served, Want};
pub use config::{EngineConfig, HostConfig};
pub use copies::Copies;
pub use darter_protocol::{ByteRange, Digest, HostId, TaskId};
pub use darter_swarm::{Rate, Uploads};
pub use download::Backoff;
pub use engine::{Engine, EngineError};
pub use import::{ImportedFile, Told};
pub use members::{InvalidAddress, schedulers};
pub use origins::retry_after;
pub use stat::{ClusterStat, LocalStat, TaskStat};
pub use store::{Fault, Finding, Given, PinsUse, StoreConfig, StoreError, StoreReport, check as check_store};
pub use supplier::{Supplied, Supplier};
pub use throttle::Rates;

/// How an origin's 206 is judged, for those who try it with bytes of their own making.
#[doc(hidden)]
pub mod partial {
    pub use crate::origin::{Ask, place};
}
