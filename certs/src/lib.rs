//! Certificates: whom we believe, and how we are believed.
//!
//! - [`Verification`] and [`client_config`]: how an upstream server is checked.
//! - [`describe`]: a failed handshake in words.
//! - [`read_certificates`], [`read_private_key`]: PEM files, with errors that name the file.
//!
//! Nothing here opens a connection.

#![forbid(unsafe_code)]

mod date;
mod describe;
mod pem;
mod trust;

pub use describe::{describe, describe_downstream, describe_io};
pub use pem::{FileError, FileProblem, read_certificates, read_private_key};
pub use trust::{ExtraRoots, Verification, client_config};
