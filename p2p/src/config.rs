//! [`EngineConfig`]: how the engine works, and who its host is.

use crate::download::Backoff;
use crate::store::StoreConfig;
use crate::throttle::Rates;
use darter_enrol::Membership;
use darter_protocol::HostId;
use std::net::IpAddr;
use std::time::Duration;

/// How the engine works.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Where content is kept.
    pub store: StoreConfig,
    /// Who this host is.
    pub host: HostConfig,
    /// Addresses of the schedulers: `HOST:PORT`, where a name stands for all its addresses, or the name of a service (SRV) like
    /// `_darter._tcp.example.org`. Empty: this daemon is its own cluster.
    pub schedulers: Vec<String>,
    /// Without the word of a scheduler nothing is fetched from an origin (`scheduler.disableAutoBackSource`).
    pub only_with_scheduler: bool,
    /// How failures of an origin are retried.
    pub backoff: Backoff,
    /// How long a stream of content may be silent (`download.pieceDownloadTimeout`).
    pub idle_timeout: Duration,
    /// A request for a range also fetches the rest (`download.prefetch`).
    pub prefetch: bool,
    /// How fast bytes move at most, until [`Engine::set_rates`](crate::Engine::set_rates) says otherwise.
    pub rates: Rates,
    /// How often the store is looked through (`gcInterval`).
    pub gc_interval: Duration,
    /// What this host is in its cluster: how it speaks with schedulers and other daemons.
    pub membership: Membership,
}

/// A host, as others are told of it.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// Its name in the cluster, stable over restarts.
    pub id: HostId,
    /// Its name for people.
    pub hostname: String,
    /// The address that other daemons dial.
    pub ip: IpAddr,
    /// The data centre it stands in; may be empty.
    pub idc: String,
    /// Where it stands, widest first, separated by `|`; may be empty.
    pub location: String,
    /// Seeds are asked first for a first copy.
    pub seed: bool,
    /// Pieces that are sent to other daemons at once ([`Uploads::PLACES`](darter_swarm::Uploads::PLACES)).
    pub upload_slots: u32,
}
