//! The `darter` binary.

mod config;

fn main() {}
