//! `cargo xtask test`: the steps, in order.

use crate::report::{Report, check, tests};
use crate::{clients, licences, serve};
use std::path::Path;
use std::process::{Command, ExitCode};

/// What to test
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Leave out the tests with real container engines and registries, which need root, and Debian or Ubuntu
    #[arg(long)]
    without_clients: bool,
}

/// The end-to-end tests: they need the binary, and are counted apart.
const E2E: &str = "darter-e2e";

/// Runs all steps, also after one has failed.
pub(crate) fn run(options: &Options) -> ExitCode {
    let mut report = Report::default();
    let clients =
        !options.without_clients && report.step("what the tests with real clients need", clients::prepare);

    report.step("format", || check(&mut cargo(&["fmt", "--all", "--check"])));
    report.step("lints", || {
        let features = ["--features", "darter-e2e/clients"];
        check(
            cargo(&["clippy", "--workspace", "--all-targets"]).args(features).args(["--", "-D", "warnings"]),
        )
    });
    report.step("licences", licences::check);
    report.step("unit tests", || {
        tests(&mut cargo(&["test", "--workspace", "--no-fail-fast", "--exclude", E2E]))
    });
    // What the end-to-end tests run is what people run.
    let built = report.step("the binary", || check(&mut cargo(&["build", "--release"])));
    if built {
        report.step("end-to-end tests", || {
            let mut command = cargo(&["test", "--no-fail-fast", "--package", E2E]);
            command.env("DARTER_BIN", release_binary());
            tests(if clients { command.args(["--features", "clients"]) } else { &mut command })
        });
    }
    report.step("`cargo run --release -- up` serves", serve::check);
    if !clients {
        report.skip("tests with real clients");
    }
    if !clients && options.without_clients {
        println!("\nNot checked: real container engines and registries (--without-clients).");
    }
    report.end()
}

fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(args);
    command
}

/// Where cargo puts the binary.
pub(crate) fn release_binary() -> std::path::PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let absolute = std::path::absolute(Path::new(&target).join("release/darter"));
    absolute.expect("the working directory is known")
}
