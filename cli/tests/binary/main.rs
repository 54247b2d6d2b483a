//! The real binary, as a person or a service manager meets it.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "tests")]

mod ca;
mod command_line;
mod environment;
mod explain;
mod metrics;
#[path = "../../../upstream/tests/upstream/name_server.rs"]
#[expect(dead_code, reason = "some of it is for the tests beside it alone")]
mod name_server;
mod names;
mod process;
mod reload;
mod serving;
mod status;
mod store;
mod token;
mod traces;
