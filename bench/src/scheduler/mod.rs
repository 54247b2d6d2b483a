//! `darter-bench scheduler`: one scheduler in a process of its own, and thousands of daemons that speak real gRPC with it from
//! this one, each over a connection of its own. What they download is made up; what they say is what daemons say.

mod crowd;
mod hosts;
mod policy;
mod restart;
mod served;

use crate::cpu::{Serves, Spending};
use anyhow::{Context, Result, ensure};
use hosts::Host;
use served::Served;
use std::time::{Duration, Instant};

/// Small contents, each held by one host.
const CONTENTS: usize = 1_000;

/// What to play
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Daemons that are connected
    #[arg(long, default_value_t = 10_000)]
    hosts: usize,
    /// Contents that all of them want at once
    #[arg(long, default_value_t = 20)]
    layers: usize,
    /// Seconds of each measurement over time
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Of the daemons, those that join the crowd [default: all]
    #[arg(long)]
    crowd: Option<usize>,
    /// Be the scheduler: for the measurement itself
    #[arg(long, hide = true)]
    serve: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if options.serve {
        return runtime.block_on(served::serve());
    }
    ensure!(
        options.hosts >= 100 && options.layers > 0 && options.seconds > 0,
        "that is too little to measure"
    );
    println!("| what | unit | |\n|---|---|---|");
    policy::measure(options.hosts)?;
    runtime.block_on(restart::measure())?;
    runtime.block_on(play(options))
}

fn row(what: &str, unit: &str, value: impl std::fmt::Display) {
    println!("| {what} | {unit} | {value} |");
}

/// The value below which so many of a hundred are, of sorted ones.
fn percentile(sorted: &[Duration], of_hundred: usize) -> Duration {
    sorted
        .get((sorted.len() * of_hundred / 100).min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or_default()
}

async fn play(options: &Options) -> Result<()> {
    let scheduler = Served::start()?;
    let empty = scheduler.resident_kib()?;
    let began = Instant::now();
    let hosts = hosts::connect(&scheduler.address, options.hosts).await.context("connecting the daemons")?;
    row("hosts connected", "hosts/s", (hosts.len() as f64 / began.elapsed().as_secs_f64()).round());
    idle(options, &scheduler, empty, hosts.len()).await?;
    small(options, &scheduler, &hosts).await?;
    let crowd = &hosts[..options.crowd.unwrap_or(hosts.len()).min(hosts.len())];
    let servers: [&dyn Serves; 1] = [&scheduler];
    let spending = Spending::of(&servers)?;
    let began = Instant::now();
    let mut waited = crowd::flash(crowd, options.layers).await?;
    let all = began.elapsed();
    waited.sort_unstable();
    let what = format!("crowd of {} hosts x {} layers", crowd.len(), options.layers);
    row(
        &format!("{what}: until a host has partners in a layer, p50"),
        "ms",
        percentile(&waited, 50).as_millis(),
    );
    row(&format!("{what}: p99"), "ms", percentile(&waited, 99).as_millis());
    row(&format!("{what}: the longest"), "ms", waited.last().copied().unwrap_or_default().as_millis());
    row(&format!("{what}: until all have partners in all"), "s", format!("{:.2}", all.as_secs_f64()));
    row(&format!("{what}: CPU of the scheduler"), "s", format!("{:.2}", spending.so_far()?.as_secs_f64()));
    row(&format!("{what}: resident at its end"), "MiB", scheduler.resident_kib()? / 1024);
    Ok(())
}

async fn idle(options: &Options, scheduler: &Served, empty: u64, hosts: usize) -> Result<()> {
    let servers: [&dyn Serves; 1] = [scheduler];
    let spending = Spending::of(&servers)?;
    tokio::time::sleep(Duration::from_secs(options.seconds)).await;
    let resident = scheduler.resident_kib()?;
    row(&format!("{hosts} idle hosts: resident"), "MiB", resident / 1024);
    row("each", "KiB", format!("{:.1}", (resident - empty) as f64 / hosts as f64));
    let part = spending.so_far()?.as_secs_f64() / options.seconds as f64;
    row(&format!("{hosts} idle hosts: CPU"), "% of a core", format!("{:.2}", part * 100.0));
    Ok(())
}

/// Callers at one time.
const AT_ONCE: usize = 64;

/// A thousand small contents, each held by somebody, are asked for by hosts in turn; beside it a call that decides nothing,
/// which is what gRPC alone costs.
async fn small(options: &Options, scheduler: &Served, hosts: &[Host]) -> Result<()> {
    // Who holds one keeps it: others ask.
    let asking = &hosts[CONTENTS..];
    for (n, host) in hosts.iter().take(CONTENTS).enumerate() {
        host.announce([n]).await?;
    }
    calls(options, scheduler, "a call that decides nothing", async |number| {
        let began = Instant::now();
        asking[number % asking.len()].ask_health().await?;
        Ok(began.elapsed())
    })
    .await?;
    calls(options, scheduler, "a small content registered (and reported)", async |number| {
        let (host, content) = (&asking[number % asking.len()], number.wrapping_mul(7919) % CONTENTS);
        let began = Instant::now();
        let told = host.register(content).await?;
        let took = began.elapsed();
        ensure!(told.content.is_some() && told.lease.is_none(), "somebody has it, and it was not said");
        host.done(content).await?;
        Ok(took)
    })
    .await
}

/// For the time of one measurement, [`AT_ONCE`] callers call one after the other; each call has a number of its own, and says
/// how long its answer took.
async fn calls(
    options: &Options,
    scheduler: &Served,
    what: &str,
    call: impl AsyncFn(usize) -> Result<Duration>,
) -> Result<()> {
    let servers: [&dyn Serves; 1] = [scheduler];
    let (spending, began) = (Spending::of(&servers)?, Instant::now());
    let until = began + Duration::from_secs(options.seconds);
    let call = &call;
    let callers = (0..AT_ONCE).map(|caller| async move {
        let mut took = Vec::new();
        while Instant::now() < until {
            took.push(call(took.len() * AT_ONCE + caller).await?);
        }
        anyhow::Ok(took)
    });
    let took: Vec<Vec<Duration>> =
        futures_util::future::join_all(callers).await.into_iter().collect::<Result<_>>()?;
    let elapsed = began.elapsed().as_secs_f64();
    let mut took: Vec<Duration> = took.into_iter().flatten().collect();
    took.sort_unstable();
    row(&format!("{what}, {AT_ONCE} at once"), "1/s", (took.len() as f64 / elapsed).round());
    row(&format!("{what}: p50"), "us", percentile(&took, 50).as_micros());
    row(&format!("{what}: p99"), "us", percentile(&took, 99).as_micros());
    let each = spending.so_far()?.as_secs_f64() * 1e6 / took.len() as f64;
    row(&format!("{what}: the scheduler's CPU"), "us", format!("{each:.0}"));
    Ok(())
}
