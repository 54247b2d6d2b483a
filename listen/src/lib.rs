//! How connections come in: the one accept loop that every server of this process shares.
//!
//! [`accept`] gives the next connection and survives what befalls others: a client that was gone before it was accepted,
//! and the moment in which the process has no file descriptor left. Depends on nothing of ours, so that the proxy, the
//! piece server, the scheduler and the health port can all stand on it.

#![forbid(unsafe_code)]

mod accept;

pub use accept::accept;
