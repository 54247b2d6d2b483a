//! What can be measured.

mod bulk;
mod cache;
mod crowd;
mod herd;
mod memory;
mod new_host;
mod peer;
mod small;
mod tls;
mod yard;

use crate::report::Report;
use crate::stage::Stage;
use anyhow::Result;

/// Measures once; the number of the run is its own.
pub(crate) type Round<'a> = Box<dyn FnMut(&mut Report, u64) -> Result<()> + 'a>;

/// Its name, and what prepares it.
type Measurement = (&'static str, for<'a> fn(&'a Stage) -> Result<Round<'a>>);

/// All of them, in the order in which they are measured.
pub(crate) const MEASUREMENTS: [Measurement; 20] = [
    ("warm-1", |stage| bulk::warm(stage, 1)),
    ("warm-16", |stage| bulk::warm(stage, 16)),
    ("warm-tls-1", |stage| bulk::warm_tls(stage, 1)),
    ("warm-tls-8", |stage| bulk::warm_tls(stage, 8)),
    ("cold-plain", bulk::cold),
    ("cold-tls", bulk::cold_tls),
    ("cold-unnamed", bulk::cold_unnamed),
    ("direct", bulk::direct),
    ("direct-tls", bulk::direct_tls),
    ("peer", peer::rounds),
    ("cache", cache::rounds),
    ("small-warm", small::warm),
    ("small-new", small::new),
    ("small-direct", small::direct),
    ("first-byte", small::first_byte),
    ("handshake", tls::handshakes),
    ("new-host", new_host::rounds),
    ("memory", memory::rounds),
    ("herd", herd::rounds),
    ("crowd", crowd::rounds),
];
