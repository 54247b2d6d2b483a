//! How a connection to an origin is made: resolve, permit, dial, verify, pool.
//!
//! - [`Upstream`]: sends one request to one origin and gives its answer as soon as the head is there; or dials a plain
//!   connection for a tunnel.
//! - [`UpstreamConfig`]: what may be dialled, who is trusted, how long to wait, how many connections are kept.
//! - [`UpstreamError`]: what went wrong, whose fault it is, whether to ask again, which status a client gets.
//!
//! Every address is put to the `permit` question after resolution and immediately before it is dialled, so that a name
//! that resolves differently the second time gets nowhere. Certificates are verified by the [`rustls::ClientConfig`] that
//! `trust` gives for the host. No redirect is followed, nothing is decoded, and the only thing that is ever sent twice is
//! a request without a body and with a safe method whose kept-alive connection turned out to be closed.

#![forbid(unsafe_code)]

mod body;
mod client;
mod config;
mod connector;
mod dial;
mod error;

pub use body::{Body, BoxError, empty_body};
pub use client::Upstream;
pub use config::{Permit, Pool, Timeouts, Trust, UpstreamConfig};
pub use error::{Attempt, Fault, Kind, Stage, UpstreamError, Verdict};
