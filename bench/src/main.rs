//! The measurements: each beside nginx in the same part where it can play it, interleaved in one run, and beside what we want
//! to reach. README.md says how to read them.
//!
//! ```text
//! cargo build --release --package darter
//! DARTER_BIN=target/release/darter cargo run --release --package darter-bench
//! ```
//!
//! `darter-bench rules` measures decisions alone: how long one takes with 0, 100 and 10,000 rules, and what these cost in
//! memory.
//!
//! `darter-bench scheduler` measures one scheduler with thousands of daemons that speak real gRPC.
//!
//! `darter-bench mesh` plays clusters of 10 to 5,000 daemons in virtual time, and prints how soon the last one is done.
#![forbid(unsafe_code)]

mod client;
mod cpu;
mod goals;
mod mesh;
mod report;
mod rows;
mod rules;
mod scheduler;
mod servers;
mod stage;
mod way;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use report::Report;
use rows::MEASUREMENTS;
use stage::Stage;

/// Measure Darter beside nginx, on this machine
#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    alone: Option<Alone>,
    /// Only the measurements whose name begins with this; `list` names them
    #[arg(long)]
    only: Option<String>,
    /// The size of the large content in MiB
    #[arg(long, default_value_t = 1024)]
    size: u64,
    /// How often everything is measured; the table shows medians
    #[arg(long, default_value_t = 5)]
    runs: u64,
    /// Small requests in one measurement
    #[arg(long, default_value_t = 40_000)]
    requests: usize,
}

/// What needs no server.
#[derive(clap::Subcommand)]
enum Alone {
    /// Decisions with many rules: latency and memory
    Rules {
        /// With so many rules, in this process; by default each number in a process of its own
        #[arg(long)]
        count: Option<usize>,
    },
    /// Thousands of peers in virtual time: how soon the last one is done
    Mesh(mesh::Options),
    /// One scheduler and thousands of daemons that speak with it
    Scheduler(scheduler::Options),
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Size {
    /// Of the large content.
    bytes: u64,
    /// Small ones.
    requests: usize,
}

fn main() -> Result<()> {
    let options = Options::parse();
    match options.alone {
        Some(Alone::Rules { count }) => rules::run(count),
        Some(Alone::Mesh(options)) => mesh::run(&options),
        Some(Alone::Scheduler(options)) => scheduler::run(&options),
        None => measure(&options),
    }
}

fn measure(options: &Options) -> Result<()> {
    let only = options.only.as_deref().unwrap_or_default();
    if only == "list" {
        MEASUREMENTS.iter().for_each(|(name, ..)| println!("{name}"));
        return Ok(());
    }
    let wanted: Vec<_> = MEASUREMENTS.iter().filter(|(name, _)| name.starts_with(only)).collect();
    ensure!(!wanted.is_empty(), "there is no such measurement; --only list names them");
    ensure!(
        options.size > 0 && options.runs > 0 && options.requests >= 1000,
        "that is too little to measure"
    );
    let stage = Stage::set(Size { bytes: options.size << 20, requests: options.requests })?;
    let mut rounds = Vec::new();
    for (name, prepare) in wanted {
        rounds.push((name, prepare(&stage).with_context(|| format!("preparing {name}"))?));
    }
    let mut report = Report::default();
    for run in 0..options.runs {
        for (name, round) in &mut rounds {
            eprintln!("run {} of {}: {name}", run + 1, options.runs);
            round(&mut report, run).with_context(|| (*name).to_owned())?;
        }
    }
    println!("{} MiB, medians of {}\n\n{}", options.size, options.runs, report.show());
    Ok(())
}
