//! `darter up`: a scheduler and a seed with its proxy in one process, without a configuration.

use std::net::SocketAddr;

use darter_enrol::Issuer;
use darter_scheduler::Scheduler;

use crate::args;
use crate::components::{self, Components};
use crate::config::{self, Config, HEALTH_PORT, Listen, PIECE_PORT, PROXY_PORT, directories};
use crate::exit::{self, Failure};
use crate::health::{self, Health};
use crate::listen::local;
use crate::membership::{self, Entry};
use crate::node::{self, Keys, Parts, Sockets};
use crate::token::failed;
use crate::welcome::Welcome;
use crate::{ca, control, listen};

/// The scheduler's usual port, as in Dragonfly.
const SCHEDULER_PORT: u16 = 8002;

const KEYS: Keys = Keys { proxy: "--proxy-addr", pieces: "--piece-addr" };

/// Runs until a signal or a failure.
pub(crate) async fn run(args: args::Up) -> exit::Result {
    let at = |addr: Option<SocketAddr>, port| Listen::at(addr.unwrap_or(SocketAddr::new(args.listen, port)));
    let health = Health::default();
    let mut components = Components::new(health.clone())?;
    let mut config = config(&args)?;
    config.proxy.port.listen = at(args.proxy_addr, PROXY_PORT);
    config.pieces = at(args.piece_addr, PIECE_PORT);
    let probes = listen::bind("health", &at(args.health_addr, HEALTH_PORT), "--health-addr").await?;
    let daemons =
        listen::bind("scheduler", &at(args.scheduler_addr, SCHEDULER_PORT), "--scheduler-addr").await?;
    let sockets = Sockets::bind(&config, &KEYS).await?;
    config.schedulers = vec![local(daemons.addr).to_string()];

    let (metrics, mut registry) = health::start(probes.listener, health, &mut components);
    let _sweep = control::occupy(&config.work_home)?;
    let ca =
        ca::authorities(&config, ca::Missing::Made)?.ok_or_else(|| Failure::software("there is no CA"))?;
    let welcome = Welcome {
        proxy: local(sockets.proxy.addr),
        scheduler: local(daemons.addr),
        pieces: local(sockets.pieces.addr),
        health: local(probes.addr),
        data: &config.store.dir,
        ca: &ca.file,
        fingerprint: &ca.authorities.signer().fingerprint_sha256(),
        root: rustix::process::geteuid().is_root(),
    }
    .to_string();

    let issuer = Issuer::open_or_make(&directories::cluster(&config.work_home)).map_err(failed)?;
    let enrol = darter_enrol::Metrics::register(registry.sub_registry_with_prefix("darter"));
    let membership = membership::of_scheduler(&issuer, enrol.clone(), &mut components)?;
    let scheduler = Scheduler::new(membership, &mut registry);
    let shutdown = components.shutdown();
    components.serve("scheduler", darter_scheduler::run(daemons.listener, scheduler, shutdown));
    let entry = Entry::Beside(issuer);
    let parts = Parts { config: config.clone(), ca: Some(&ca), sockets, entry, enrol };
    let mut node = node::start(parts, &mut components, &mut registry).await?;
    let mut hangups = components::hangups()?;
    components.probe(async move {
        loop {
            // There is no file; but the CA may have been exchanged.
            let _ = hangups.recv().await;
            if let Err(failure) = node.apply(&config, true) {
                tracing::error!("what was changed is refused, and the old stays: {failure}");
            }
        }
    });
    metrics.publish(registry);
    exit::say(std::io::stdout(), &welcome);
    components.run(args.drain.drain_timeout).await
}

/// The configuration of a file without keys, but for what makes it a seed that sees into every host's TLS.
fn config(args: &args::Up) -> exit::Result<Config> {
    let mut config = config::defaults();
    if let Some(folder) = &args.data_dir {
        let folder = std::path::absolute(folder)
            .map_err(|error| Failure::own_files(format!("--data-dir {}: {error}", folder.display())))?;
        config.keep_in(folder);
    }
    config.seed = true;
    config.proxy.intercept_everything();
    Ok(config)
}
