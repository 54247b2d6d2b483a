//! The CPU time of a process, from its own accounting.

use anyhow::{Context, Result};
use std::collections::HashMap;
use std::time::Duration;

/// Whoever serves, and can be asked what that cost.
pub(crate) trait Serves {
    fn pid(&self) -> u32;
}

/// What the threads of some processes have spent since they were looked at.
///
/// Clock ticks (`/proc/PID/stat`) are a hundredth of a second, and a gigabyte from the page cache costs seven of them. So the
/// nanoseconds of each thread are added up (`schedstat`, user and system time). A thread that ends takes its own with it:
/// those of tokio's blocking pool do after ten idle seconds, with nothing of the last ten.
pub(crate) struct Spending<'a> {
    servers: &'a [&'a dyn Serves],
    before: HashMap<u32, u64>,
}

impl<'a> Spending<'a> {
    /// Begins to count.
    pub(crate) fn of(servers: &'a [&'a dyn Serves]) -> Result<Self> {
        Ok(Self { servers, before: by_thread(servers)? })
    }

    /// User and system time since then.
    pub(crate) fn so_far(&self) -> Result<Duration> {
        let now = by_thread(self.servers)?;
        let since = |(thread, spent): (&u32, &u64)| spent - self.before.get(thread).copied().unwrap_or(0);
        Ok(Duration::from_nanos(now.iter().map(since).sum()))
    }
}

/// Nanoseconds by thread.
fn by_thread(servers: &[&dyn Serves]) -> Result<HashMap<u32, u64>> {
    let mut spent = HashMap::new();
    for server in servers {
        let tasks = format!("/proc/{}/task", server.pid());
        for task in std::fs::read_dir(&tasks).with_context(|| format!("{tasks}: has it died?"))? {
            let task = task?;
            // Gone since the folder was read.
            let Ok(line) = std::fs::read_to_string(task.path().join("schedstat")) else { continue };
            let nanoseconds = line.split_whitespace().next().context("an empty schedstat")?.parse()?;
            let name = task.file_name();
            spent.insert(name.to_str().context("an odd thread id")?.parse()?, nanoseconds);
        }
    }
    Ok(spent)
}
