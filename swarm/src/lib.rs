//! The heart of the piece engine: what a download fetches next and from whom, and whom a daemon serves next. Plain state,
//! no IO: events in by `handle_*` with the time at which they happened, actions out by `poll_*`, and no randomness that is
//! not handed in. The daemon's driver and the simulator (`sim/`) run the same code.
//!
//! - [`Swarm`]: one download. `pieces.rs`, the state of every piece and block; `origin.rs`, runs of blocks from the
//!   origin; `partner.rs`, who has what; `select.rs`, which piece to ask of whom; `watch.rs`, who is slow or silent.
//! - [`Uploads`]: the places that a daemon has for those who fetch from it, the line before them, and `fresh.rs`: a new
//!   piece is given before an old one again.
//! - [`Bucket`]: how many bytes may pass, and when, where a rate is limited.
//!
//! How the two talk to each other. A partner is asked for a piece; it sends it, or says that it has no place free and puts
//! the asker into its line. When a place is free it is kept for the first in the line, who is told to come, and only then
//! chooses what to ask for. So no piece waits in a line: who waits is a peer, and what it gets is what is rarest then.
//!
//! A partner may also be asked for what it is itself receiving ([`Swarm::handle_coming`]): it passes that on as it comes. It is
//! asked for it only when it has nothing else that is missing here, and being asked for it makes nobody a holder.

#![forbid(unsafe_code)]

mod action;
mod border;
mod bucket;
mod fresh;
mod origin;
mod partner;
mod pieces;
mod select;
mod state;
mod uploads;
mod watch;

#[cfg(test)]
mod tests;

pub use action::{Action, MayAsk, RunId};
pub use border::{Bridge, Side};
pub use bucket::{Bucket, Rate};
pub use state::{Limits, Swarm};
pub use uploads::{Invitation, UploadId, Uploads, Verdict};
