//! `darter scheduler`: the scheduler alone.

use std::io;
use std::path::Path;

use darter_enrol::{Issuer, Metrics};
use darter_scheduler::{Access, Scheduler};

use crate::args;
use crate::components::{self, Components};
use crate::config::{self, Listen};
use crate::exit::{self, Failure};
use crate::health::{self, Health};
use crate::listen;
use crate::membership;
use crate::token::failed;

/// Runs until a signal or a failure.
pub(crate) async fn run(args: args::Scheduler) -> exit::Result {
    // From here on a SIGHUP does not end the process: whoever reloads all of a node's services sends one here, too.
    let mut hangups = components::hangups()?;
    let access = args.config.as_deref().map(load).transpose()?;
    let args::Scheduler { listen, insecure, insecure_on_networks, .. } = args;
    membership::check_insecure(listen, insecure, insecure_on_networks)?;
    let health = Health::default();
    let mut components = Components::new(health.clone())?;
    let probes = listen::bind("health", &Listen::at(args.health_listen), "--health-listen").await?;
    let daemons = listen::bind("scheduler", &Listen::at(args.listen), "--listen").await?;

    let (metrics, mut registry) = health::start(probes.listener, health, &mut components);
    let enrol = Metrics::register(registry.sub_registry_with_prefix("darter"));
    let membership = if insecure {
        membership::insecure(enrol, "--insecure", &mut components)
    } else {
        let issuer = Issuer::open_or_make(&args.cluster.folder()).map_err(failed)?;
        membership::of_scheduler(&issuer.lasting(args.certificate_lifetime), enrol, &mut components)?
    };
    let scheduler = Scheduler::new(membership, &mut registry);
    metrics.publish(registry);
    access.into_iter().for_each(|access| scheduler.set_access(access));
    let rules = scheduler.clone();
    components.probe(async move {
        loop {
            let _ = hangups.recv().await;
            match args.config.as_deref().map(load) {
                None => tracing::info!("SIGHUP: there is no --config, so there is nothing to read again"),
                Some(Ok(access)) => {
                    rules.set_access(access);
                    tracing::info!("SIGHUP: the rules about origins are read again");
                }
                Some(Err(failure)) => {
                    tracing::error!("what was changed is refused, and the old stays: {failure}")
                }
            }
        }
    });
    let shutdown = components.shutdown();
    components.serve("scheduler", darter_scheduler::run(daemons.listener, scheduler, shutdown));
    components.run(args.drain.drain_timeout).await
}

/// Reads the operator's rules.
fn load(file: &Path) -> exit::Result<Access> {
    let (access, report) =
        config::load_access(file).map_err(|report| Failure::configuration(report.to_string()))?;
    for line in report.warning_lines() {
        exit::say(io::stderr(), &line);
    }
    Ok(access)
}
