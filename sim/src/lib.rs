//! The harness: a whole cluster in virtual time, deterministic by its seed.
//!
//! What runs is what runs in production: each daemon is a [`Swarm`](darter_swarm::Swarm) and its
//! [`Uploads`](darter_swarm::Uploads), and between them stands the scheduler's own [`Cluster`](darter_scheduler::Cluster).
//! Made up are the network (`net.rs`), the clock, and of each daemon what does the IO (`node.rs`): it does with
//! messages what the driver in `p2p` does with sockets. Content is one hash a piece; whoever is corrupt sends others.

#![forbid(unsafe_code)]

mod clock;
mod fate;
mod hashes;
mod net;
mod node;
mod outcome;
mod scenario;
mod talk;
mod tree;
mod world;

pub use outcome::Outcome;
pub use scenario::{Loss, Scenario, Shape};

/// Plays a scenario to its end.
pub fn play(scenario: &Scenario) -> Outcome {
    world::World::new(scenario).play()
}
