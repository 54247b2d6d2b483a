//! The way to origins, over real sockets on loopback.
#![expect(clippy::unwrap_used, reason = "tests")]

mod counts;
mod dns;
mod lab;
mod name_server;
mod origins;
mod parent;
mod parents;
mod reload;
mod routes;
