//! The proxy on loopback, between real clients and origins, well-behaved and otherwise.
#![expect(clippy::unwrap_used, reason = "tests")]

mod accounts;
mod answers;
mod bodies;
mod clients;
mod connect;
mod counts;
mod downgrade;
mod drop_in;
mod entitle;
mod forward;
mod grpc;
mod hygiene;
mod intercept;
mod lab;
mod lifecycle;
mod marks;
mod mirror;
mod own;
mod p2p;
mod ranges;
mod realms;
mod refusals;
mod settings;
mod smuggling;
mod streaming;
mod strict;
mod unshared;
mod upgrade;
mod ways_in;
