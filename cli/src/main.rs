//! The `darter` binary: parse, check, bind, run, drain.
//!
//! - `args`: the command line. `exit`: how the process ends.
//! - `config`: the daemon's file.
//! - `up`, `daemon`, `scheduler`, `check`: one command each.
//! - `listen`: sockets, bound before anything starts. `components`: what runs, and its end.
//! - `health`, `logging`: what an operator sees.

#![forbid(unsafe_code)]

mod args;
mod check;
mod components;
mod config;
mod exit;
mod health;
mod listen;
mod logging;
mod process_metrics;
mod scheduler;

use std::process::ExitCode;

fn main() -> ExitCode {
    exit::report(args::Args::read().and_then(args::Args::run))
}
