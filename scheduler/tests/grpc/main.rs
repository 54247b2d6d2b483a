//! The scheduler over real gRPC on loopback, as daemons speak to it.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "tests")]

mod calls;
mod citizen;
mod fields;
mod hostile;
mod joining;
mod lab;
mod members;
mod previous;
