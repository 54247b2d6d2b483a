//! Many clients of one cache that want the same at the same time, on a link that they share.

use super::Round;
use super::yard::{PROXY, Yard};
use crate::client::{Load, Measured};
use crate::goals;
use crate::report::{Report, Who};
use crate::servers::{Nginx, Setting};
use crate::stage::Stage;
use crate::way::Way;
use anyhow::{Context, Result};
use darter_e2e::content::Content;
use darter_e2e::origin::Origin;

const CLIENTS: usize = 16;
const BITS_PER_SECOND: u64 = 1_000_000_000;
/// At most: what the link takes two seconds for.
const BYTES: u64 = 256 << 20;

const ORIGIN_PORT: u16 = 8000;
const NGINX_PORT: u16 = 8080;

/// The clients stand beside the cache; between it and the origin is the link. The wire is what one client that asks the
/// origin itself takes in the same run.
pub(crate) fn rounds(stage: &Stage) -> Result<Round<'_>> {
    Ok(Box::new(move |report, run| {
        let yard = Yard::set(stage, &["origin.example"])?;
        let home = yard.origin.port(ORIGIN_PORT);
        let origin = Origin::start_on(yard.origin.listen(ORIGIN_PORT)?, None)?;
        yard.origin.limit(BITS_PER_SECOND)?;
        let (node, address) = (&yard.node, yard.node.port(NGINX_PORT));
        let folder = node.new_folder("nginx")?;
        let servers = format!(
            "proxy_cache_path {}/kept keys_zone=kept:10m use_temp_path=off; proxy_http_version 1.1;
             server {{ listen {address}; location / {{
               proxy_cache kept; proxy_cache_valid 200 1h; proxy_cache_lock on; proxy_pass http://{home}; }} }}",
            folder.display()
        );
        let setting = Setting { folder: &folder, ca: &stage.ca, servers: &servers };
        let _nginx =
            Nginx::start_by(node.command("nginx"), address, &setting, |to| node.connect(to).is_ok())?;
        let bytes = BYTES.min(stage.size.bytes);
        let read = |seed, clients, way: Way| -> Result<(Measured, f64)> {
            let path = origin.put_blob(Content::new(4000 + 3 * run + seed, bytes), None);
            let load = Load { clients, requests: clients, paths: &[&path], way: &way.from(node) };
            Ok((load.run(&[])?, origin.sent(&path) as f64 / bytes as f64))
        };
        let (wire, _) = read(0, 1, Way::to(home)).context("straight")?;
        let mut add = |who, (measured, copies): (Measured, f64)| {
            add(report, who, &measured, &wire);
            report.add(goals::HERD_COPIES, who, copies);
        };
        add(Who::Nginx, read(1, CLIENTS, Way::to(address)).context("nginx")?);
        add(Who::Darter, read(2, CLIENTS, Way::through(node.port(PROXY), home)).context("darter")?);
        Ok(())
    }))
}

fn add(report: &mut Report, who: Who, herd: &Measured, wire: &Measured) {
    report.add(goals::HERD_LAST, who, herd.wall.as_secs_f64() / wire.wall.as_secs_f64());
    let latest = herd.first.last().copied().unwrap_or_default();
    report.add(goals::HERD_FIRST, who, latest.as_secs_f64() * 1e3);
}
