//! `darter scheduler`: the scheduler alone.

use darter_scheduler::Scheduler;
use prometheus_client::registry::Registry;

use crate::args;
use crate::components::{self, Components};
use crate::config::Listen;
use crate::exit;
use crate::health::{self, Health, Metrics};
use crate::listen;
use crate::process_metrics;

/// Runs until a signal or a failure.
pub(crate) async fn run(args: args::Scheduler) -> exit::Result {
    // From here on a SIGHUP does not end the process: whoever reloads all of a node's services sends one here, too.
    let mut hangups = components::hangups()?;
    let health = Health::default();
    let mut components = Components::new(health.clone())?;
    let probes = listen::bind("health", &Listen::at(args.health_listen), "--health-listen").await?;
    let daemons = listen::bind("scheduler", &Listen::at(args.listen), "--listen").await?;

    let metrics = Metrics::default();
    components.probe(health::run(probes.listener, health, metrics.clone()));
    let mut registry = Registry::default();
    process_metrics::register(&mut registry);
    let scheduler = Scheduler::new(&mut registry);
    metrics.publish(registry);
    components.probe(async move {
        loop {
            let _ = hangups.recv().await;
            tracing::info!(
                "SIGHUP: a scheduler has no configuration file, so there is nothing to read again"
            );
        }
    });
    let shutdown = components.shutdown();
    components.serve("scheduler", darter_scheduler::run(daemons.listener, scheduler, shutdown));
    components.run(args.drain.drain_timeout).await
}
