//! The appliance: every way in which a client's traffic comes in, and its answer.
//!
//! - [`run`]: serves a [`Listener`] until it is told to drain.
//! - [`Proxy`], [`ProxyConfig`]: what it answers with. [`Settings`], [`Limits`], [`Clients`], [`BasicAuth`]: what of it may
//!   change.
//! - [`Fetch`]: a URL that a command of this host asks for, without a connection.
//! - `pipeline`: a request's way through, step by step, on one screen.
//!
//! The ways in on a proxy port, plain or over TLS: requests in absolute form (forward proxy), CONNECT (a blind tunnel, or
//! opened up where the rules say so), requests in origin form (registry mirror, or a name of our own). A client speaks
//! HTTP/1.1 or HTTP/2; in HTTP/2, where every request has a whole URL, one that names this proxy is the mirror's. Clients that
//! know of no proxy come by listeners of their own: for TLS with SNI, and for whatever the packet filter redirects. Load
//! balancers introduce their clients by the PROXY protocol.
//!
//! The proxy judges, routes and streams. What content is made of, it does not know: it asks the engine for a range.

#![forbid(unsafe_code)]

/// The target of spans that are traces: nobody logs them, and they cost nothing unless traces are sent somewhere.
const TRACE: &str = "trace";

mod access;
mod accounts;
mod admit;
mod auth;
mod carry;
mod clients;
mod condition;
mod connected;
mod direct;
mod entitle;
mod expect;
mod explain;
mod genuine;
mod headers;
mod here;
mod idle;
mod intercept;
mod labels;
mod line;
mod listen;
mod metrics;
mod missing;
mod multipart;
mod named;
mod own;
mod p2p;
mod pipeline;
mod place;
mod port_tls;
mod probe;
mod proxy;
mod range;
mod realms;
mod recorded;
mod redirected;
mod refusal;
mod request;
mod request_id;
mod rest;
mod scope;
mod serve;
mod shown;
mod slots;
mod sniff;
mod socket;
mod sockets;
mod status_headers;
mod tasks;
mod together;
mod trail;
mod tunnel;
mod version;
mod via;
mod visitors;
mod watched;
mod worded;
mod writes_to;

pub use accounts::{Account, Accounts, Login};
pub use auth::BasicAuth;
pub use clients::{Clients, PerClient, Rate};
pub use darter_entitle::Ages;
pub use darter_rules::Step;
pub use explain::Inquiry;
pub use listen::{Entrance, Listener, Mode, run};
pub use named::{Fetch, Refused};
pub use port_tls::PortTls;
pub use proxy::{Adopt, Limits, Proxy, ProxyConfig, Settings};
pub use scope::Shutdown;
pub use sockets::{check_not_own, reserve};
pub use via::{Forwarded, Marks};

use darter_upstream::{Body, BoxError};

/// What reads ranges and If-Range, for those who try it with bytes of their own making.
#[doc(hidden)]
pub mod ranges {
    pub use crate::condition::Validators;
    pub use crate::range::{Asked, MAX_RANGES, Plan};
}

/// A body that is there already.
fn full(bytes: impl Into<bytes::Bytes>) -> Body {
    use http_body_util::BodyExt as _;
    http_body_util::Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}
