//! A scheduler that has just started, and the daemons that come back to it with all that they hold.

use super::hosts::Host;
use super::row;
use super::served::Served;
use crate::cpu::{Serves, Spending};
use anyhow::{Result, ensure};
use futures_util::StreamExt as _;
use std::time::Instant;

const HOSTS: usize = 1_000;
/// Of each host.
const TASKS: usize = 1_000;
/// That hold one and the same task.
const HOLDERS: usize = 10;
/// Daemons on their way in at a time: the backlog of a listener is bounded.
const AT_ONCE: usize = 128;

/// From the first connection until the last announcement is answered. Daemons wait for up to a second before they come
/// back, at random; these do not, which is harder.
pub(super) async fn measure() -> Result<()> {
    let scheduler = Served::start()?;
    let servers: [&dyn Serves; 1] = [&scheduler];
    let (spending, began) = (Spending::of(&servers)?, Instant::now());
    let address = &scheduler.address;
    let back = futures_util::stream::iter((0..HOSTS).map(|n| async move {
        let host = Host::connect(address, n).await?;
        // The hosts of one group hold the same.
        host.announce((0..TASKS).map(|task| n / HOLDERS * TASKS + task)).await?;
        Ok(host)
    }));
    let hosts: Vec<Result<Host>> = back.buffer_unordered(AT_ONCE).collect().await;
    let hosts: Vec<Host> = hosts.into_iter().collect::<Result<_>>()?;
    let took = began.elapsed();
    let last = hosts[0].register((HOSTS / HOLDERS - 1) * TASKS).await?;
    ensure!(last.content.is_some() && last.lease.is_none(), "what a host holds was not said to another");
    let what = format!("restart: {HOSTS} hosts back with {TASKS} tasks each");
    row(&what, "s", format!("{:.2}", took.as_secs_f64()));
    row("restart: CPU of the scheduler", "s", format!("{:.2}", spending.so_far()?.as_secs_f64()));
    row("restart: resident", "MiB", scheduler.resident_kib()? / 1024);
    Ok(())
}
