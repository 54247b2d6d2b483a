//! Hosts that nobody has asked for before.

use super::Round;
use super::yard::{PROXY, Yard};
use crate::client::{at, get};
use crate::goals;
use crate::report::Who;
use crate::servers::{BELOW, Kind, Nginx, Setting};
use crate::stage::Stage;
use crate::way::Way;
use anyhow::Result;
use darter_e2e::ca::client_trusting;
use std::time::Instant;

/// In one run.
const HOSTS: usize = 100;

/// Where they listen.
const PORT: u16 = 8443;

/// From CONNECT to the first bytes: the name is looked up, its server is connected to and verified, a leaf is signed, the
/// client's handshake is done, and a file of 4 KiB passes. The connection to the daemon is there already.
pub(crate) fn rounds(stage: &Stage) -> Result<Round<'_>> {
    let blob = stage.blob(Kind::Direct, 6, 4096)?;
    Ok(Box::new(move |report, _| {
        let names: Vec<String> = (0..HOSTS).map(|number| format!("host{number}.{BELOW}")).collect();
        let yard = Yard::set(stage, &names.iter().map(String::as_str).collect::<Vec<_>>())?;
        let address = yard.origin.port(PORT);
        let servers = format!("server {{ listen {address} ssl; root {}; }}", stage.origin.root().display());
        let folder = yard.origin.folder();
        let setting = Setting { folder, ca: &stage.ca, servers: &servers };
        let _nginx = Nginx::start_by(yard.origin.command("nginx"), address, &setting, |to| {
            yard.origin.connect(to).is_ok()
        })?;
        let (tls, mut buffer, mut times) = (client_trusting(&yard.ca()?)?, vec![0; 64 << 10], Vec::new());
        for name in &names {
            let way = Way::through(yard.node.port(PROXY), format!("{name}:{PORT}"));
            let way = way.with_tls(tls.clone()).from(&yard.node);
            let stream = way.dial()?;
            let start = Instant::now();
            get(&mut way.over(stream)?, &way, blob.path(), "", &mut buffer)?;
            times.push(start.elapsed());
        }
        times.sort_unstable();
        report.add(goals::NEW_HOST, Who::Darter, at(&times, 0.5).as_secs_f64() * 1e3);
        Ok(())
    }))
}
