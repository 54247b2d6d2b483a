//! From one daemon to another.

use crate::client::{Load, Measured};
use crate::servers::{Blob, Darter, Nginx};
use anyhow::{Result, ensure};
use darter_e2e::darter::Scheduler;
use std::path::Path;

/// Two new daemons, one of which holds the content: what it costs both until a client of the other has it.
pub(crate) fn measure(folder: &Path, nginx: &Nginx, run: u64, length: u64) -> Result<Measured> {
    let folder = folder.join(format!("peers-{run}"));
    std::fs::create_dir_all(&folder)?;
    let scheduler = Scheduler::start(&folder, 0)?;
    let holder = Darter::start("holder", &folder, nginx, Some(&scheduler))?;
    let taker = Darter::start("taker", &folder, nginx, Some(&scheduler))?;
    for daemon in [&holder, &taker] {
        while daemon.metric("darter_p2p_schedulers_up")? < 1.0 {}
    }
    let blob = Blob::write(nginx, 2000 + run, length)?;
    holder.warm(&blob)?;
    let load = Load { clients: 1, requests: 1, url: blob.path() };
    let measured = load.run(taker.address(), &[&holder, &taker])?;
    let from_peer = taker.metric("darter_p2p_content_bytes_total{from=\"peer\"}")?;
    ensure!(from_peer as u64 == blob.length(), "only {from_peer} bytes came from the peer");
    blob.remove()?;
    drop((holder, taker, scheduler));
    std::fs::remove_dir_all(folder)?;
    Ok(measured)
}
