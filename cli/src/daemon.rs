//! `darter daemon`: a node with a configuration.

use crate::args;
use crate::components::{self, Components};
use crate::config::{Loaded, Place, Source, directories};
use crate::exit::{self, Failure};
use crate::health::{self, Health};
use crate::logging;
use crate::membership::Entry;
use crate::node::{self, Keys, Parts, Sockets};
use crate::reload::{self, Reload};
use crate::traces::Traces;
use crate::{ca, control, limits, listen};

const KEYS: Keys = Keys { proxy: "proxy.tcpListen", pieces: "upload.tcpListen" };

/// Where the configuration comes from.
fn source(args: args::Daemon) -> Source {
    let args::Environment { proxy_addr, health_addr, work_home, data_dir, .. } = args.environment;
    let work_home = work_home.unwrap_or_else(directories::work_home);
    match args.config {
        Some(file) => Source::File(file),
        None => Source::Environment(Place {
            proxy: proxy_addr,
            health: health_addr,
            data_dir: data_dir.unwrap_or_else(|| directories::content(&work_home)),
            work_home,
        }),
    }
}

/// Runs until a signal or a failure.
pub(crate) async fn run(args: args::Daemon, wish: args::Logging) -> exit::Result {
    let join = args.join.clone();
    let source = source(args);
    let Loaded { config, report, written, sources } = source.load().map_err(|report| {
        // What is wrong is what matters now; `config check` also tells what has no effect.
        Failure::configuration(report.error_lines().collect::<Vec<_>>().join("\n"))
    })?;
    // It says how the log looks, so nothing is logged before.
    let traces = Traces::start(&config.tracing)?;
    let log = logging::start(wish, config.log, traces.as_ref());
    log.verbose(config.verbose);
    limits::raise_open_files();
    // From here on a SIGHUP does not end the process.
    let hangups = components::hangups()?;
    let health = Health::default();
    let mut components = Components::new(health.clone())?;
    let probes = listen::bind("health", &config.health, "health.tcpListen").await?;
    let sockets = Sockets::bind(&config, &KEYS).await?;
    for line in report.warning_lines() {
        tracing::warn!("{line}");
    }

    let (metrics, mut registry) = health::start(probes.listener, health, &mut components);
    let _sweep = control::occupy(&config.work_home)?;
    let drain_timeout = config.drain_timeout;
    let ca = ca::authorities(&config, ca::Missing::Made)?;
    if let Some(ca) = &ca {
        ca::tell(ca, &config.proxy.signing);
    }
    let narrowed = config.proxy.basic_auth.is_some() || !config.proxy.clients.allowed.is_empty();
    if sockets.proxy.addr.ip().is_unspecified() && !narrowed {
        tracing::info!(
            "whoever reaches this host can use its proxy; proxy.tcpListen.listen, proxy.clients and proxy.basicAuth narrow that"
        );
    }
    let interval = config.reload_interval;
    let enrol = darter_enrol::Metrics::register(registry.sub_registry_with_prefix("darter"));
    let entry = Entry::Configured { join };
    let parts = Parts { config, ca: ca.as_ref(), sockets, entry, enrol };
    let node = node::start(parts, &mut components, &mut registry).await?;
    let mut sources = sources;
    sources.push(node.ca_folder());
    let reloads = reload::Metrics::register(registry.sub_registry_with_prefix("darter"));
    let reload =
        Reload { source, node, log, hangups, written, sources, interval, metrics: reloads, refused: None };
    components.probe(reload.run());
    metrics.publish(registry);
    let ended = components.run(drain_timeout).await;
    // A second signal is for an end at once.
    if let (Some(traces), Ok(())) = (traces, &ended) {
        traces.stop().await;
    }
    ended
}
