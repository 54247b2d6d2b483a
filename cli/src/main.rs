//! The `darter` binary: parse, check, bind, run, drain.
//!
//! - `args`: the command line. `exit`: how the process ends.
//! - `config`: the daemon's file.
//! - `up`, `daemon`, `scheduler`, `check`: one command each. `node`: what `up` and `daemon` share.
//! - `listen`: sockets, bound before anything starts. `components`: what runs, and its end.
//! - `upstream`, `identity`: how origins are reached, and who this host is.
//! - `health`, `process_metrics`, `logging`, `welcome`: what an operator sees.

#![forbid(unsafe_code)]

mod args;
mod check;
mod components;
mod config;
mod daemon;
mod exit;
mod health;
mod identity;
mod listen;
mod logging;
mod node;
mod process_metrics;
mod scheduler;
mod up;
mod upstream;
mod welcome;

use std::process::ExitCode;

fn main() -> ExitCode {
    exit::report(args::Args::read().and_then(args::Args::run))
}
