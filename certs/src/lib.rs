//! Certificates: how we are believed, and whom we believe.
//!
//! - [`Authority`]: the CA that signs for intercepted hosts, from files or made here, for every name or for some
//!   ([`PermittedNames`]).
//! - [`CaFolder`]: where a node keeps its own, and one takes another's place; [`CaSet`]: what it found there.
//! - [`Leaves`]: leaf certificates, as ready TLS configurations.
//! - [`Verification`] and [`client_config`]: how an upstream server is checked.
//! - [`Judged`]: a verifier that judges by words of somebody else's.
//! - [`ClientIdentity`]: what we show to one that asks who we are; [`ClientAuth`]: whether it did.
//! - [`MemberKey`], [`Order`], [`Named`], [`MemberRoots`]: certificates of a cluster's members.
//! - [`Secret`]: a password, token or key, for all who have one.
//! - [`server_config`]: a listener of our own, with the operator's certificate.
//! - [`describe`] and its siblings: a failed handshake in words.
//! - [`read_certificates`], [`read_private_key`]: PEM files, with errors that name the file.
//!
//! Nothing here opens a connection.

#![forbid(unsafe_code)]

mod asked;
mod ca;
mod client;
mod constraints;
mod date;
mod describe;
mod folder;
mod judged;
mod leaf;
mod member;
mod pem;
mod secret;
mod server;
mod set;
mod sign;
mod ticket;
mod trust;

pub use asked::ClientAuth;
pub use ca::{Authority, AuthorityError, SigningError, ended_on, read_ca_certificates};
pub use client::ClientIdentity;
pub use constraints::{InvalidPermittedName, PermittedName, PermittedNames};
pub use date::date_text;
pub use describe::{NoTls, describe, describe_downstream, describe_io, is_refusal};
pub use folder::{CaFolder, RotationError};
pub use judged::Judged;
pub use leaf::{InvalidLeafName, Leaf, LeafError, LeafName, LeafOptions, Leaves};
pub use member::{MemberKey, MemberRoots, Named, Order, certificate_pem, crypto_provider, sha256};
pub use pem::{FileError, FileProblem, read_certificates, read_private_key};
pub use secret::Secret;
pub use server::server_config;
pub use set::{CaRole, CaSet, CaView};
pub use trust::{ExtraRoots, Verification, client_config, client_config_as};
