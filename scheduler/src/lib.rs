//! The scheduler: who has what, who asks whom, and who may go to the origin.
//!
//! - `cluster.rs`: the whole state, as events in and packets out. It does no IO and knows no clock.
//! - `task.rs`, `report.rs`, `belief.rs`, `packet.rs`, `mesh.rs`, `lease.rs`, `progress.rs`: one task. Its peers; what they say, what of it is
//!   believed, and what they are told; who is named to whom; whose turn it is, and for how long.
//! - `zone.rs`, `bridge.rs`: its zones, and who brings what into them.
//! - `access.rs`: what the operator lets the cluster fetch from origins. `budgets.rs`: who uses how much of an origin, and who
//!   waits; `share.rs`: a task's part in that.
//! - `copies.rs`: whom it tells to fetch what, so that there are more copies.
//! - `policy.rs`: whom a peer gets as partners, as a pure function.
//! - `conduct.rs`: how a host serves others, and who is quarantined for it.
//! - `message.rs`: what a daemon's message must look like before the state sees it.
//! - `speakers.rs`: which connection speaks for which host.
//! - `shared.rs`, `talk.rs`, `service.rs`, `server.rs`: its mutex and clock, its streams, its calls, its listener.
//!   `metrics.rs`: its numbers. `view.rs`, `explain.rs`: what it shows to people.
//!
//! All state is soft and in memory: after a restart the daemons connect again and announce what they hold. The scheduler
//! sees ids, lengths, hashes, counts and the names of origins' hosts, and no URL and no credential.

#![forbid(unsafe_code)]

mod access;
mod bag;
mod belief;
mod bridge;
mod budgets;
mod cluster;
mod conduct;
mod copies;
mod explain;
mod hashes;
mod host;
mod lease;
mod mesh;
pub mod message;
mod metrics;
mod packet;
mod peer;
mod policy;
mod progress;
mod refusal;
mod report;
mod server;
mod service;
mod share;
mod shared;
mod speakers;
mod stream;
mod talk;
mod task;
mod view;
mod world;
mod zone;

#[cfg(test)]
mod check;
#[cfg(test)]
mod tests;

pub use access::{Access, Block, Blocked, Budget, HostPattern};
pub use cluster::{Cluster, Sources, Taken};
pub use conduct::Why;
pub use copies::Copied;
pub use refusal::Refusal;
pub use server::{RunError, Scheduler, run};
pub use stream::StreamId;
pub use world::Counts;
