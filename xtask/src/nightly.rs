//! `cargo xtask nightly`: what takes too long for every change, and finds what nobody thought of.

use crate::report::{Count, Report, check, tests};
use crate::test::release_binary;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// What to run, and for how long
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How long each fuzzer runs
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    fuzz_time: u64,
    /// Only steps with this in their name
    #[arg(long, value_name = "WORD")]
    only: Option<String>,
    /// Add what reaches code that nothing in fuzz/corpus reaches, so that every run of the tests replays it
    #[arg(long)]
    keep: bool,
}

/// One fuzzer a file.
const FUZZERS: &str = "fuzz/fuzz_targets";
/// What is kept of what they found; part of every run of the tests.
const CORPUS: &str = "fuzz/corpus";
/// What they found on this machine.
const FOUND: &str = "fuzz/found";
/// Longer inputs find little that shorter ones do not, and a corpus of them is large.
const MAX_INPUT_BYTES: u32 = 4096;
/// One input that takes longer is a finding, in seconds.
const MAX_INPUT_SECONDS: u32 = 10;

/// How long a soak lasts that is not told.
const SOAK_MINUTES: &str = "20";

/// A step by its name.
type Step = (&'static str, fn() -> Result<Count>);

/// The long runs beside the fuzzers, in order; what takes hours goes last.
const LONG_RUNS: [Step; 7] = [
    ("a thousand peers in virtual time", mesh),
    ("ten thousand in three zones", zones),
    ("two hundred kills of a daemon", kills),
    ("a soak: mixed load, evictions and restarts", soak),
    ("sixteen daemons on links of 80 Mbit/s", herds),
    ("property tests with 40 times their cases", properties),
    ("crowds as large as is promised", crowds),
];

/// Runs all steps, also after one has failed.
pub(crate) fn run(options: &Options) -> ExitCode {
    let mut report = Report::default();
    let wanted = |name: &str| options.only.as_ref().is_none_or(|word| name.contains(word.as_str()));
    match fuzzers() {
        Ok(fuzzers) => {
            let steps = fuzzers.iter().map(|fuzzer| (fuzzer, format!("fuzz {fuzzer}")));
            let steps: Vec<_> = steps.filter(|(_, name)| wanted(name)).collect();
            if steps.is_empty() || report.step("cargo-fuzz is here", install) {
                for (fuzzer, name) in steps {
                    report.step(&name, || fuzz(fuzzer, options));
                }
            }
        }
        Err(error) => drop(report.step("the fuzzers", || Err(error))),
    }
    for (name, long_run) in LONG_RUNS.into_iter().filter(|(name, _)| wanted(name)) {
        report.step(name, long_run);
    }
    report.end()
}

/// By name, in order.
fn fuzzers() -> Result<Vec<String>> {
    let files = std::fs::read_dir(FUZZERS).with_context(|| format!("cannot read {FUZZERS}"))?;
    let paths: Vec<PathBuf> = files.map(|file| Ok(file?.path())).collect::<Result<_>>()?;
    let stem = |path: &PathBuf| Some(path.file_stem()?.to_str()?.to_owned());
    let mut names: Vec<String> = paths.iter().filter_map(stem).collect();
    names.sort();
    ensure!(!names.is_empty(), "no fuzzer in {FUZZERS}");
    Ok(names)
}

fn install() -> Result<Count> {
    let mut here = Command::new("cargo");
    here.args(["fuzz", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    if here.status().is_ok_and(|status| status.success()) {
        return Ok(Count::default());
    }
    check(Command::new("cargo").args(["install", "--locked", "cargo-fuzz"]))
}

/// Without a sanitizer, which only nightly compilers have: our own code is without `unsafe`, and a panic is found without.
fn fuzz(fuzzer: &str, options: &Options) -> Result<Count> {
    let corpus = Path::new(CORPUS).join(fuzzer);
    let found = Path::new(FOUND).join(fuzzer);
    std::fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
    let run = |first: &Path, second: &Path, flags: &[String]| {
        let mut command = Command::new("cargo");
        command.args(["fuzz", "run", "--fuzz-dir", "fuzz", "--sanitizer", "none", fuzzer]);
        command.arg(first).arg(second).arg("--").args(flags);
        check(command.arg(format!("-max_len={MAX_INPUT_BYTES}")))
    };
    let limits = [
        format!("-max_total_time={}", options.fuzz_time),
        format!("-timeout={MAX_INPUT_SECONDS}"),
        "-print_final_stats=1".to_owned(),
    ];
    // New inputs go into the first folder.
    let count = run(&found, &corpus, &limits)?;
    if options.keep {
        run(&corpus, &found, &["-merge=1".to_owned()])?;
    }
    Ok(count)
}

fn mesh() -> Result<Count> {
    let mut command = Command::new("cargo");
    command.args(["run", "--release", "--package", "darter-bench", "--", "mesh"]);
    check(command.args(["--peers", "10,100,1000", "--at-most", "1.25"]))
}

fn zones() -> Result<Count> {
    let mut command = Command::new("cargo");
    command.args(["test", "--release", "--package", "darter-sim", "--test", "zones"]);
    tests(command.env("DARTER_NIGHTLY", "1"))
}

/// In network namespaces, which takes root.
fn herds() -> Result<Count> {
    end_to_end("mesh")
}

/// `DARTER_SOAK_MINUTES` of it.
fn soak() -> Result<Count> {
    check(Command::new("cargo").args(["build", "--release"]))?;
    let mut command = Command::new("cargo");
    command.args(["test", "--package", "darter-e2e", "--test", "soak"]);
    let minutes = std::env::var("DARTER_SOAK_MINUTES").unwrap_or_else(|_| SOAK_MINUTES.to_owned());
    tests(command.env("DARTER_BIN", release_binary()).env("DARTER_SOAK_MINUTES", minutes))
}

/// With disks of their own, which takes root.
fn kills() -> Result<Count> {
    end_to_end("store")
}

/// The long form of a suite.
fn end_to_end(suite: &str) -> Result<Count> {
    check(Command::new("cargo").args(["build", "--release"]))?;
    let mut command = Command::new("cargo");
    command.args(["test", "--package", "darter-e2e", "--features", "clients", "--test", suite]);
    command.env("DARTER_BIN", release_binary()).env("DARTER_NIGHTLY", "1");
    tests(&mut command)
}

fn properties() -> Result<Count> {
    let mut command = Command::new("cargo");
    command.args(["test", "--release", "--workspace", "--no-fail-fast", "--exclude", "darter-e2e"]);
    tests(command.env("PROPTEST_CASES", "10240"))
}

/// The daemon of these tests is built without `--release`, but optimized.
fn crowds() -> Result<Count> {
    let mut command = Command::new("cargo");
    command.args(["test", "--package", "darter-e2e", "--test", "crowd"]);
    tests(command.env("DARTER_E2E_FULL", "1"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_fuzzer_has_a_corpus() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let files = std::fs::read_dir(root.join(super::FUZZERS)).unwrap();
        let names: Vec<_> = files.map(|file| file.unwrap().path().file_stem().unwrap().to_owned()).collect();
        assert!(!names.is_empty());
        for name in names {
            assert!(root.join(super::CORPUS).join(&name).is_dir(), "{name:?}");
        }
    }
}
