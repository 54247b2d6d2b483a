//! What must hold for whatever bytes a stranger sends: one function a parser, which panics where it does not.
//!
//! The fuzzers (`fuzz/fuzz_targets`) call them with bytes of their own making; `tests/corpus.rs` calls them with all that
//! the fuzzers found worth keeping (`fuzz/corpus`), in every run of the tests.
#![forbid(unsafe_code)]

mod config;
mod connection;
mod range;
mod url;

pub use config::config;
pub use connection::{client_hello, proxy_protocol};
pub use range::{content_range, range};
pub use url::{mirror, target};

/// What must hold for some bytes; panics where it does not.
pub type Property = fn(&[u8]);

/// All of them, by the names of their fuzzers.
pub const ALL: [(&str, Property); 7] = [
    ("client-hello", client_hello),
    ("config", config),
    ("content-range", content_range),
    ("mirror", mirror),
    ("proxy-protocol", proxy_protocol),
    ("range", range),
    ("target", target),
];
