//! The piece engine: content comes from this host's disk, from other daemons, or from its origin, and leaves as it
//! arrives.
//!
//! - [`Engine`]: opens content by task. Concurrent openings of one task share one download.
//! - `download`: the driver that does the IO for one running task; what it fetches next and from whom says [`Swarm`].
//! - `store`: the content on disk.
//! - `origin`: fetching from where the content comes from.
//! - `peer`: fetching from other daemons, and serving them; whom it serves next says [`Uploads`].
//! - `schedule`: the conversation with the scheduler.
//! - `throttle`: how fast bytes move at most.
//!
//! [`Swarm`]: darter_swarm::Swarm
//! [`Uploads`]: darter_swarm::Uploads
//!
//! This crate knows no HTTP grammar of a client: ranges are [`ByteRange`]s here, and what goes back is a [`Content`].

#![forbid(unsafe_code)]

mod api;
mod download;
mod engine;
/// The target of spans that are traces: nobody logs them, and they cost nothing unless traces are sent somewhere.
const TRACE: &str = "trace";

mod http_range;
mod intake;
mod metrics;
mod origin;
mod peer;
mod progress;
mod reader;
mod schedule;
mod sink;
mod stat;
mod store;
mod supplier;
mod throttle;
mod verify;

pub use api::{Content, ContentBody, ContentInfo, OpenError, OpenRequest, Opened, ReadError, Served, Want};
pub use darter_protocol::{ByteRange, Digest, HostId, TaskId};
pub use darter_swarm::{Rate, Uploads};
pub use download::Backoff;
pub use engine::{Engine, EngineConfig, EngineError, HostConfig};
pub use schedule::InvalidAddress;
pub use stat::{ClusterStat, LocalStat, TaskStat};
pub use store::{StoreConfig, StoreError};
pub use supplier::{Supplied, Supplier};
pub use throttle::Rates;

/// How an origin's 206 is judged, for those who try it with bytes of their own making.
#[doc(hidden)]
pub mod partial {
    pub use crate::origin::{Ask, place};
}
