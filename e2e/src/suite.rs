//! [`run`]: tests that share one laboratory and run one after another.
//!
//! `#[test]` functions run in parallel and have no common end, at which namespaces and daemons could be taken down. A suite
//! is a program of its own (`harness = false`) that speaks to cargo as the built-in harness does: filters, `--list`, and the
//! closing line that is counted.

use anyhow::Result;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

/// What tests share.
pub trait Scene {
    /// What its programs wrote last, for people who look at a failure.
    fn logs(&self) -> String;
}

/// A test: its name, a sentence, and what it does.
pub type Test<S> = (&'static str, fn(&S) -> Result<()>);

/// Sets the scene, runs the tests that the command line asks for, and takes the scene down.
pub fn run<S: Scene>(set: impl FnOnce() -> Result<S>, tests: &[Test<S>]) -> ExitCode {
    let wish = Wish::from_args(std::env::args().skip(1));
    let wanted: Vec<_> = tests.iter().filter(|(name, _)| wish.wants(name)).collect();
    if wish.list {
        wanted.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", wanted.len());
    let began = Instant::now();
    let mut failed = Vec::new();
    if !wanted.is_empty() {
        match set() {
            Ok(scene) => {
                failed.extend(wanted.iter().filter(|test| !passes(&scene, test)).map(|(name, _)| *name));
                // A daemon that has written a secret says so when it ends.
                if catch_unwind(AssertUnwindSafe(|| drop(scene))).is_err() {
                    failed.push("the scene is taken down, and none of its secrets was written");
                }
            }
            Err(error) => {
                println!("the scene cannot be set: {error:#}");
                failed.extend(wanted.iter().map(|(name, _)| *name));
            }
        }
    }
    let left = crate::net::left_behind();
    if !left.is_empty() {
        println!("left behind: {left:?}");
        failed.push("nothing is left behind");
    }
    failed.iter().for_each(|name| println!("failed: {name}"));
    println!(
        "\ntest result: {}. {} passed; {} failed; 0 ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
        if failed.is_empty() { "ok" } else { "FAILED" },
        wanted.len().saturating_sub(failed.len()),
        failed.len(),
        tests.len() - wanted.len(),
        began.elapsed().as_secs_f64(),
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn passes<S: Scene>(scene: &S, (name, test): &Test<S>) -> bool {
    let began = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| test(scene)));
    let took = began.elapsed().as_secs_f64();
    match outcome {
        Ok(Ok(())) => {
            println!("test {name} ... ok ({took:.1} s)");
            return true;
        }
        Ok(Err(error)) => println!("test {name} ... FAILED ({took:.1} s)\n{error:#}"),
        // The panic's message stands on the standard error.
        Err(_) => println!("test {name} ... FAILED ({took:.1} s)"),
    }
    println!("{}", scene.logs());
    false
}

/// What the command line asks for.
#[derive(Default)]
struct Wish {
    list: bool,
    exact: bool,
    filters: Vec<String>,
    skips: Vec<String>,
}

impl Wish {
    fn from_args(mut args: impl Iterator<Item = String>) -> Self {
        let mut wish = Self::default();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--list" => wish.list = true,
                "--exact" => wish.exact = true,
                "--skip" => wish.skips.extend(args.next()),
                // These take a value in the built-in harness and mean nothing here.
                "--test-threads" | "--format" | "--color" => drop(args.next()),
                _ if arg.starts_with('-') => {}
                _ => wish.filters.push(arg),
            }
        }
        wish
    }

    fn wants(&self, name: &str) -> bool {
        let matches = |word: &String| if self.exact { name == word } else { name.contains(word.as_str()) };
        (self.filters.is_empty() || self.filters.iter().any(matches)) && !self.skips.iter().any(matches)
    }
}
