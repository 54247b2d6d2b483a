//! [`Scenario`]: what is played.

use darter_swarm::{Limits, Uploads};
use std::time::Duration;

/// How daemons find each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// As the scheduler names them: partners exchange in both directions.
    Mesh,
    /// Each has up to four parents among those that came before it, and takes pieces in order: what schedulers of trees do.
    Tree,
}

/// How a host is lost, for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Its process ends, and its kernel says so to whoever asks.
    Killed,
    /// Nobody reaches it any more, and it reaches nobody.
    CutOff,
}

/// A cluster, what it downloads, and what befalls it.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Daemons beside the one that is asked first to go to the origin.
    pub peers: usize,
    /// Pieces of 1 MiB.
    pub pieces: u32,
    /// Bytes per second, of every daemon, in each direction.
    pub rate: u64,
    /// Of these, one in so many has only a quarter of it; 0: none.
    pub slow_every: usize,
    /// Of the origin, for all together.
    pub origin_rate: u64,
    /// What a host sends of a stream at once, in bytes, and passes on of what it is receiving itself. The smaller, the longer it
    /// takes to play.
    pub block: u64,
    /// Whether daemons pass on the pieces that they are receiving.
    pub relays: bool,
    /// From any host to any other.
    pub latency: Duration,
    /// By how much more who has no place hears it: that is an answer, and to come is said over another connection.
    pub busy_later: Duration,
    /// Over this time the daemons begin, one after the other.
    pub arrivals: Duration,
    /// The part of the blocks and messages that is lost and sent again after 200 ms.
    pub loss: f64,
    /// The part of the peers that die at some moment of the time of one copy.
    pub crashing: f64,
    /// The part of the peers that nobody reaches from some such moment on, for ten seconds.
    pub cut_off: f64,
    /// The part of the peers that send wrong bytes.
    pub corrupting: f64,
    /// Whether everywhere a client reads the content in order as it comes.
    pub readers: bool,
    /// How daemons find each other.
    pub shape: Shape,
    /// Uploads at once of every daemon.
    pub places: u32,
    /// What each daemon may have under way.
    pub limits: Limits,
    /// Zones in which the daemons stand, in turn; 0: nobody says where he is. The origin and the scheduler stand in the first.
    pub zones: usize,
    /// From when and for how long nothing passes the border of the last zone.
    pub zone_cut: Option<(Duration, Duration)>,
    /// When all schedulers are lost, with what they know. Another one is there at once.
    pub scheduler_lost: Option<Duration>,
    /// When whoever holds the lease then is lost, and how.
    pub holder_lost: Option<(Duration, Loss)>,
    /// Of all chance.
    pub seed: u64,
}

impl Default for Scenario {
    /// A hundred daemons and an origin at 250 Mbit/s, 256 MiB, and nothing that goes wrong.
    fn default() -> Self {
        Self {
            peers: 100,
            pieces: 256,
            rate: 31_250_000,
            slow_every: 0,
            origin_rate: 31_250_000,
            block: 512 << 10,
            relays: true,
            latency: Duration::from_millis(1),
            busy_later: Duration::ZERO,
            arrivals: Duration::ZERO,
            loss: 0.0,
            crashing: 0.0,
            cut_off: 0.0,
            corrupting: 0.0,
            readers: true,
            shape: Shape::Mesh,
            places: Uploads::PLACES,
            limits: Limits::default(),
            zones: 0,
            zone_cut: None,
            scheduler_lost: None,
            holder_lost: None,
            seed: 1,
        }
    }
}
