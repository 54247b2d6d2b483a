//! How a connection to an origin is made: resolve, permit, dial, verify, pool.
//!
//! - [`Upstream`]: sends one request to one origin and gives its answer as soon as the head is there; or makes a
//!   connection for a tunnel. Its configuration can be replaced while it works.
//! - [`UpstreamConfig`]: what may be dialled, how names are resolved, how long to wait, how many connections are kept; and
//!   by [`Route`] how each host is reached: whom to trust, through which [`Parent`] proxy, where, in which HTTP version.
//! - [`UpstreamError`]: what went wrong, whose fault it is, whether to ask again, which status a client gets.
//!
//! Every address is put to the `permit` question after resolution and immediately before it is dialled, so that a name
//! that resolves differently the second time gets nowhere. Where a parent proxy resolves the name, the name alone is put
//! to it. Certificates are verified by the [`rustls::ClientConfig`] of the route. No redirect is followed, nothing is
//! decoded, and the only thing that is ever sent twice is a request without a body and with a safe method whose kept-alive
//! connection turned out to be closed. The environment is not read: `HTTPS_PROXY` is how clients find *us*.

#![forbid(unsafe_code)]

mod body;
mod client;
mod config;
mod connector;
mod dial;
mod error;
mod link;
mod metrics;
mod no_proxy;
mod parent;
mod ready;
mod resolve;
mod route;
mod tls;
mod turns;
mod uses;

pub use body::{Body, BoxError, Incoming, empty_body};
pub use client::{InTurn, Upstream};
pub use config::{Dns, Permit, Pool, Routes, Timeouts, UpstreamConfig};
pub use error::{Attempt, Fault, Kind, Stage, UpstreamError, Verdict};
pub use link::{Link, Reached};
pub use metrics::Counted;
pub use no_proxy::{InvalidNoProxy, NoProxy};
pub use parent::{Credentials, InvalidParent, Parent, ParentAddress};
pub use route::{HttpVersion, Lookup, Route};
