//! Resident memory.

use super::Round;
use crate::client::{Load, get};
use crate::goals;
use crate::report::Who;
use crate::servers::Kind;
use crate::stage::Stage;
use anyhow::Result;
use darter_e2e::darter::START_LIMIT;
use darter_e2e::poll::until;

/// Connections that are kept open.
const CONNECTIONS: u32 = 1000;
/// Clients that read at once.
const READERS: usize = 16;

/// A daemon that does nothing, one with idle connections, and one under load.
pub(crate) fn rounds(stage: &Stage) -> Result<Round<'_>> {
    // Each connection is two files at this end, when the clients are on the same machine.
    drop(darter_e2e::crowd::alone());
    let tiny = stage.tiny()?;
    Ok(Box::new(move |report, run| {
        let darter = stage.fresh("idle")?;
        let (idle, _) = darter.memory()?;
        report.add(goals::IDLE, Who::Darter, idle as f64 / 1e6);
        let (way, mut buffer) = (darter.tls()?, vec![0; 64 << 10]);
        let mut open = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut stream = way.connect()?;
            get(&mut stream, &way, tiny.path(), "", &mut buffer)?;
            open.push(stream);
        }
        until("all connections to be at rest", START_LIMIT, || {
            let resting = darter.metric("darter_proxy_resting_connections").ok()?;
            (resting >= f64::from(CONNECTIONS)).then_some(())
        })?;
        let (crowded, _) = darter.memory()?;
        report.add(goals::CROWDED, Who::Darter, crowded as f64 / 1e6);
        let each = crowded.saturating_sub(idle) as f64 / 1e3 / f64::from(CONNECTIONS);
        report.add(goals::PER_TLS, Who::Darter, each);
        drop((open, darter));

        let darter = stage.fresh("loaded")?;
        let blob = stage.blob(Kind::Named, 3000 + run, stage.size.bytes)?;
        let way = darter.plain();
        Load { clients: READERS, requests: READERS, paths: &[blob.path()], way: &way }.run(&[])?;
        report.add(goals::PEAK, Who::Darter, darter.memory()?.1 as f64 / 1e6);
        Ok(())
    }))
}
