//! [`Served`]: the scheduler, in a process of its own: this program again, with `--serve`.

use crate::cpu::Serves;
use anyhow::{Context, Result};
use prometheus_client::registry::Registry;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub(super) struct Served {
    child: Child,
    pub(super) address: String,
}

/// Serves until the process is killed; says where on standard output.
pub(super) async fn serve() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let insecure = darter_enrol::Membership::insecure(darter_enrol::Metrics::default());
    let scheduler = darter_scheduler::Scheduler::new(insecure, &mut Registry::default());
    Ok(darter_scheduler::run(listener, scheduler, CancellationToken::new()).await?)
}

impl Served {
    pub(super) fn start() -> Result<Self> {
        let own = std::env::current_exe()?;
        let mut child = Command::new(own).args(["scheduler", "--serve"]).stdout(Stdio::piped()).spawn()?;
        let mut address = String::new();
        let stdout = child.stdout.take().context("its output is a pipe")?;
        BufReader::new(stdout).read_line(&mut address)?;
        Ok(Self { child, address: format!("http://{}", address.trim()) })
    }

    /// Resident memory.
    pub(super) fn resident_kib(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }
}

impl Serves for Served {
    fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
