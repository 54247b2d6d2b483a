//! The laboratory of the end-to-end tests: hosts in network namespaces, real registries, container engines and origins,
//! and the real `darter` binary.
//!
//! Two kinds of tests use it. Those in `tests/` that need nothing but the binary talk over loopback and run everywhere.
//! Those behind the feature `clients` need root and the packages that `cargo xtask test` installs; they share one
//! [`net::Lab`] each, which leaves nothing behind. No test skips itself: what is missing fails.
#![forbid(unsafe_code)]

pub mod ca;
pub mod containerd;
pub mod content;
pub mod crowd;
pub mod darter;
pub mod disk;
pub mod docker;
pub mod fuse;
pub mod http;
pub mod http2;
pub mod image;
pub mod net;
pub mod nginx;
pub mod node;
pub mod origin;
pub mod podman;
pub mod poll;
pub mod port;
pub mod process;
pub mod registry;
pub mod scan;
pub mod secret;
pub mod site;
pub mod suite;
pub mod tokens;
