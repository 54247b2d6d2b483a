//! Who belongs to the cluster, and how hosts prove it to each other.
//!
//! A cluster has a CA of its own, which its schedulers hold. A host joins with a token, and gets a certificate for a few
//! days that says who it is; from then on it renews that by itself. Daemons and schedulers speak TLS 1.3 with each other,
//! and both sides show their certificates. Who was expelled is refused by all, whatever his certificate says.
//!
//! - `member.rs`: [`Member`], what a certificate says of whom it is for. `refused.rs`: why somebody is none.
//! - `token.rs`: [`Token`], as it is handed over. `tokens.rs`: [`Tokens`], those that are good, hashed, in a file.
//! - `expulsion.rs`: [`Expulsions`], statements that the CA signed; whoever has one can pass it on, and nobody make one.
//! - `issuer.rs`: [`Issuer`], who makes certificates. `home.rs`: where a host keeps its own.
//! - `membership.rs`: [`Membership`], what a process is in the cluster, now. `tls.rs`: its TLS. `stream.rs`: [`Secured`], a
//!   connection that ends when who is at its other end is expelled.
//! - `newcomers.rs`: how many may be there at once who have not shown yet who they are.
//! - `service.rs`: [`Enrolment`], the gRPC service. `enrol.rs`: joining and renewing, from the other side.
//! - `metrics.rs`: what an operator graphs.
//!
//! Invariant: without a certificate, a cluster's CA, or the word that all of this is not wanted
//! ([`Membership::insecure`]), nobody is served and nobody is called.

#![forbid(unsafe_code)]

mod cuts;
mod enrol;
mod expulsion;
mod file;
mod home;
mod issuer;
mod member;
mod membership;
mod metrics;
mod newcomers;
mod refused;
mod service;
mod stream;
mod tls;
mod token;
mod tokens;

pub use enrol::{EnrolError, channel, enrol, joining, keep_renewed};
pub use expulsion::Expulsions;
pub use file::FileError;
pub use home::Home;
pub use issuer::{Issuer, IssuerError};
pub use member::{Member, Role};
pub use membership::{Expected, Membership};
pub use metrics::Metrics;
pub use refused::{Refused, explain, reason};
pub use service::{Caller, Enrolment, EnrolmentService, Who};
pub use stream::Secured;
pub use token::{InvalidToken, Token};
pub use tokens::{Kept, Terms, TokenRefused, Tokens};

/// How long a certificate holds when nobody says otherwise.
pub const LIFETIME: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 3600);
