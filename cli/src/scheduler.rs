//! `darter scheduler`: the scheduler alone.

use std::sync::Arc;

use darter_scheduler::Scheduler;
use prometheus_client::registry::Registry;

use crate::args;
use crate::components::Components;
use crate::config::Listen;
use crate::exit;
use crate::health::{self, Health};
use crate::listen;
use crate::process_metrics;

/// Runs until a signal or a failure.
pub(crate) async fn run(args: args::Scheduler) -> exit::Result {
    let mut registry = Registry::default();
    process_metrics::register(&mut registry);
    let health = Health::default();
    let mut components = Components::new(health.clone())?;

    let probes = listen::bind("health", Listen::at(args.health_listen), "--health-listen").await?;
    let daemons = listen::bind("scheduler", Listen::at(args.listen), "--listen").await?;

    let scheduler = Scheduler::new(&mut registry);
    let shutdown = components.shutdown();
    components.serve("scheduler", darter_scheduler::run(daemons.listener, scheduler, shutdown));
    components.probe(health::run(probes.listener, health, Arc::new(registry)));
    components.run(args.drain.drain_timeout).await
}
