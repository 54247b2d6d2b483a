//! What the `darter` binary does: parse, check, bind, run, drain. A library, so that others than the binary can ask it what
//! it thinks of a configuration: [`run`] is the binary, [`check_configuration`] that question.
//!
//! - `args`: the command line. `exit`: how the process ends.
//! - `config`: the daemon's file.
//! - `up`, `daemon`, `scheduler`, `check`, `ca`: one command each. `node`: what `up` and `daemon` share.
//! - `reload`: the configuration, read again; `started`: what of it stays. `transparent`: the packet filter's rules.
//! - `listen`: sockets, bound before anything starts. `components`: what runs, and its end.
//! - `membership`: who this process is in its cluster. `token`: who may join it, and who is expelled.
//! - `status`: what the schedulers know.
//! - `control`: the daemon's own socket. `explain`: what it tells about a request.
//! - `socket`: the socket for every user's commands. `get`, `cache`: what comes and goes by it.
//! - `upstream`, `identity`, `limits`: how origins are reached, who this host is, what the system allows.
//! - `health`, `process_metrics`, `logging`, `traces`, `welcome`: what an operator sees.

#![forbid(unsafe_code)]

mod args;
mod ca;
mod cache;
mod check;
mod components;
mod config;
mod control;
mod daemon;
mod exit;
mod explain;
mod get;
mod health;
mod identity;
mod limits;
mod listen;
mod logging;
mod membership;
mod node;
mod process_metrics;
mod reload;
mod scheduler;
mod socket;
mod started;
mod status;
mod store;
mod token;
mod traces;
mod transparent;
mod up;
mod upstream;
mod welcome;

use std::path::Path;
use std::process::ExitCode;

/// What the binary does, from its arguments to its exit code.
#[must_use]
pub fn run() -> ExitCode {
    exit::report(args::Args::read().and_then(args::Args::run))
}

/// What is to be said about the text of a configuration file, a line each, as `darter config check` says it: warnings only,
/// when it can be used.
///
/// # Errors
/// When it cannot be used: warnings and at least one error.
pub fn check_configuration(file: &Path, text: &str) -> Result<Vec<String>, Vec<String>> {
    let lines = |report: &config::Report| report.warning_lines().chain(report.error_lines()).collect();
    match config::parse(file, text) {
        Ok(loaded) => Ok(lines(&loaded.report)),
        Err(report) => Err(lines(&report)),
    }
}
