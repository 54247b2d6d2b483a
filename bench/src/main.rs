//! The measurements: each beside nginx serving the same bytes, interleaved in one run, as MB/s and as CPU seconds of the
//! serving processes per GB (10^9 bytes). On a shared machine the CPU seconds are the steadier column.
//!
//! ```text
//! cargo build --release --package darter
//! DARTER_BIN=target/release/darter cargo run --release --package darter-bench
//! ```
//!
//! `darter-bench rules` measures decisions alone: how long one takes with 0, 100 and 10,000 rules, and what these cost in
//! memory.
//!
//! `darter-bench mesh` plays clusters of 10 to 5,000 daemons in virtual time, and prints how soon the last one is done.
//!
//! Needs nginx, except for `rules` and `mesh`. Everything stays on loopback, and everything that is written is removed at the end.
#![forbid(unsafe_code)]

mod client;
mod cpu;
mod mesh;
mod peer;
mod rules;
mod servers;
mod table;

use anyhow::Result;
use clap::Parser;
use client::Load;
use servers::{Blob, Darter, Nginx};
use table::Table;

/// Measure Darter beside nginx, on this machine
#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    only: Option<Only>,
    /// The size of the large content in MiB
    #[arg(long, default_value_t = 1024)]
    size: u64,
    /// How often everything is measured; the tables show medians
    #[arg(long, default_value_t = 5)]
    runs: u64,
    /// Small requests in one measurement
    #[arg(long, default_value_t = 40_000)]
    requests: u64,
}

/// One measurement alone.
#[derive(clap::Subcommand)]
enum Only {
    /// Decisions with many rules: latency and memory
    Rules {
        /// With so many rules, in this process; by default each number in a process of its own
        #[arg(long)]
        count: Option<usize>,
    },
    /// Thousands of peers in virtual time: how soon the last one is done
    Mesh(mesh::Options),
}

fn main() -> Result<()> {
    let options = Options::parse();
    match options.only {
        Some(Only::Rules { count }) => return rules::run(count),
        Some(Only::Mesh(options)) => return mesh::run(&options),
        None => {}
    }
    let folder = tempfile::tempdir()?;
    let nginx = Nginx::start(folder.path())?;
    let darter = Darter::start("darter", folder.path(), &nginx, None)?;
    let (mut large, mut small) = (Table::new("MB/s", "CPU s/GB"), Table::new("requests/s", "CPU us each"));

    let warm = Blob::write(&nginx, 1, options.size << 20)?;
    let tiny = Blob::write(&nginx, 2, 4096)?;
    darter.warm(&warm)?;
    darter.warm(&tiny)?;
    let mut first_bytes = Vec::new();
    for run in 0..options.runs {
        let cold = Blob::write(&nginx, 1000 + run, options.size << 20)?;
        for clients in [1, 16] {
            let load = Load { clients, requests: clients, url: warm.path() };
            large.add(&format!("warm, {clients} clients: nginx"), load.run(nginx.address, &[&nginx])?);
            large.add(&format!("warm, {clients} clients: darter"), load.run(darter.address(), &[&darter])?);
        }
        let load = Load { clients: 1, requests: 1, url: cold.path() };
        let measured = load.run(darter.address(), &[&darter])?;
        first_bytes.push(measured.first_byte);
        large.add("cold, verified by sha256 and BLAKE3: darter", measured);
        cold.remove()?;
        let load = Load { clients: 16, requests: options.requests, url: tiny.path() };
        small.add("4 KiB warm, 16 connections: nginx", load.run(nginx.address, &[&nginx])?);
        small.add("4 KiB warm, 16 connections: darter", load.run(darter.address(), &[&darter])?);
        large.add(
            "peer to peer, both ends together: darter",
            peer::measure(folder.path(), &nginx, run, options.size << 20)?,
        );
    }
    println!("{} MiB, medians of {}\n", options.size, options.runs);
    println!("{}", large.by_bytes());
    println!("{}", small.by_requests());
    first_bytes.sort_unstable();
    println!("first byte of cold content, median: {:?}", first_bytes[first_bytes.len() / 2]);
    println!("peak resident memory of the daemon: {} MB", darter.peak_memory()? / 1_000_000);
    Ok(())
}
