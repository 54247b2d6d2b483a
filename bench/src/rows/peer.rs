//! From one daemon to another.

use super::Round;
use super::bulk::{add, touch};
use crate::client::{Load, Measured};
use crate::goals;
use crate::report::Who;
use crate::servers::{Darter, Kind};
use crate::stage::Stage;
use anyhow::{Result, ensure};
use darter_e2e::darter::{START_LIMIT, Scheduler};
use darter_e2e::poll::until;

pub(crate) fn rounds(stage: &Stage) -> Result<Round<'_>> {
    Ok(Box::new(move |report, run| {
        add(report, goals::PEER, Who::Darter, &measure(stage, Kind::Unnamed, false, run)?);
        add(report, goals::PEER_TLS, Who::Darter, &measure(stage, Kind::Unnamed, true, run)?);
        add(report, goals::PEER_NAMED, Who::Darter, &measure(stage, Kind::Named, false, run)?);
        Ok(())
    }))
}

/// Two new daemons, one of which holds the content: what it costs both until a client of the other has it. With `secured`, they
/// speak mutual TLS.
fn measure(stage: &Stage, kind: Kind, secured: bool, run: u64) -> Result<Measured> {
    let folder = stage.folder().join("peers");
    std::fs::create_dir_all(&folder)?;
    std::fs::copy(stage.folder().join("ca.crt"), folder.join("ca.crt"))?;
    let scheduler = if secured { Scheduler::start_secured(&folder)? } else { Scheduler::start(&folder, 0)? };
    let holder = Darter::start("holder", &folder, &stage.origin, Some(&scheduler))?;
    let taker = Darter::start("taker", &folder, &stage.origin, Some(&scheduler))?;
    for daemon in [&holder, &taker] {
        until("a daemon to join", START_LIMIT, || {
            daemon.metric("darter_p2p_schedulers_up").ok().filter(|up| *up >= 1.0)
        })?;
    }
    let blob = stage.blob(kind, 2000 + run + if secured { 500 } else { 0 }, stage.size.bytes)?;
    holder.warm(&blob)?;
    touch(stage)?;
    let load = Load { clients: 1, requests: 1, paths: &[blob.path()], way: &taker.plain() };
    let measured = load.run(&[&holder, &taker])?;
    let from_peer = taker.metric("darter_p2p_content_bytes_total{from=\"peer\"}")?;
    ensure!(from_peer as u64 == blob.length(), "only {from_peer} bytes came from the peer");
    Ok(measured)
}
