//! The project's own chores: `cargo xtask test` is all that continuous integration runs for a change, `cargo xtask nightly`
//! what it runs once a day.
#![forbid(unsafe_code)]

mod base;
mod clients;
mod licences;
mod newer;
mod nightly;
mod report;
mod serve;
mod test;

use clap::Parser;
use std::path::Path;
use std::process::ExitCode;

/// The project's own chores
#[derive(Parser)]
enum Chore {
    /// Check everything that a change must not break; installs what the tests with real clients need (Debian, Ubuntu, root)
    Test(test::Options),
    /// Fuzz what reads bytes from strangers, and run what else takes long; installs cargo-fuzz
    Nightly(nightly::Options),
    /// Install what the tests with real clients need, and nothing else
    InstallClients,
}

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask stands in the workspace");
    if let Err(error) = std::env::set_current_dir(root) {
        eprintln!("cannot work in {}: {error}", root.display());
        return ExitCode::FAILURE;
    }
    match Chore::parse() {
        Chore::Test(options) => test::run(&options),
        Chore::Nightly(options) => nightly::run(&options),
        Chore::InstallClients => match clients::prepare() {
            Ok(_) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        },
    }
}
