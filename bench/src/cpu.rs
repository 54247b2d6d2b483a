//! The CPU time of a process, from its own accounting.

use anyhow::{Context, Result};
use std::time::Duration;

/// Whoever serves, and can be asked what that cost.
pub(crate) trait Serves {
    fn pid(&self) -> u32;
}

/// User and system time of a process with all of its threads (proc(5), `/proc/PID/stat`).
pub(crate) fn spent(server: &dyn Serves) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.pid()))?;
    let after_name = stat.rsplit_once(')').context("/proc/PID/stat has no name")?.1;
    let ticks = |field: usize| -> Result<u64> {
        Ok(after_name.split_whitespace().nth(field).context("/proc/PID/stat is short")?.parse()?)
    };
    // Fields 14 and 15 of the line; two stand before the name's end.
    let ticks = ticks(11)? + ticks(12)?;
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}
