//! A node: the proxy, the engine behind it, and the piece server, put together from a checked configuration. The two
//! commands that run one (`daemon` and `up`) differ only in where the configuration comes from.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use darter_certs::Leaves;
use darter_p2p::{Engine, EngineConfig, EngineError, HostConfig};
use darter_proxy::{Accounts, Limits, Listener, Mode, PortTls, Proxy, ProxyConfig, Settings, Shutdown};
use darter_upstream::Upstream;
use prometheus_client::registry::Registry;
use tokio::net::ToSocketAddrs;
use tokio_util::sync::CancellationToken;

use crate::ca::{self, Missing};
use crate::components::Components;
use crate::config::{Ca, Config, Entrance, Host, Kind, Security, directories};
use crate::control;
use crate::exit::{self, Failure};
use crate::identity;
use crate::listen::{self, Bound};
use crate::membership::{self, Entry, Place};
use crate::socket;
use crate::started::Started;
use crate::traces::Traces;
use crate::upstream::{self, upstream};

/// How long a name may take to resolve when this host looks for its own address.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);

/// A node's bound sockets.
pub(crate) struct Sockets {
    pub(crate) proxy: Bound,
    /// Beside the proxy port, in the order of the configuration.
    pub(crate) listeners: Vec<Bound>,
    pub(crate) pieces: Bound,
}

/// The keys or flags that decide where a node listens, for whoever finds a port taken.
pub(crate) struct Keys {
    pub(crate) proxy: &'static str,
    pub(crate) pieces: &'static str,
}

impl Sockets {
    /// Binds what `config` says.
    ///
    /// # Errors
    /// When an address is not to be had.
    pub(crate) async fn bind(config: &Config, keys: &Keys) -> exit::Result<Self> {
        let proxy = listen::bind("proxy", &config.proxy.port.listen, keys.proxy).await?;
        let pieces = listen::bind("pieces", &config.pieces, keys.pieces).await?;
        let mut listeners = Vec::new();
        for Entrance { kind, listen, key, .. } in &config.proxy.listeners {
            let component = match kind {
                Kind::Proxy(_) => "listener",
                Kind::Sni { .. } => "sni",
                Kind::Transparent => "transparent",
            };
            listeners.push(listen::bind(component, listen, key).await?);
        }
        Ok(Self { proxy, listeners, pieces })
    }
}

/// A running node, as far as it can be changed.
pub(crate) struct Node {
    proxy: Arc<Proxy>,
    upstream: Upstream,
    engine: Engine,
    leaves: Option<Leaves>,
    started: Started,
    /// Whether a CA of our own has been in force.
    had_own_ca: bool,
}

impl Node {
    /// Answers by `config` from now on, as far as that can change while it runs: see [`crate::reload`]. `origins_stay`: it says
    /// nothing new of how origins are reached and whom to trust, so that the connections to them can be used again.
    ///
    /// # Errors
    /// When the CA cannot be used. Then nothing has changed.
    pub(crate) fn apply(&mut self, config: &Config, origins_stay: bool) -> exit::Result {
        let config = &self.started.over(config);
        let ca = ca::authorities(config, if self.had_own_ca { Missing::Error } else { Missing::Made })?;
        let signing = &config.proxy.signing;
        self.had_own_ca |= ca.is_some() && signing.ca.is_none();
        // Leaves that are made stay, and so do the sessions that clients resume.
        let leaves = match (&ca, &self.leaves) {
            (Some(ca), Some(leaves)) => Some(leaves.with(ca.authorities.clone(), signing.options)),
            (Some(ca), None) => Some(ca::leaves(ca, signing)?),
            (None, _) => None,
        };
        if let Some(ca) = &ca
            && leaves.as_ref().map(Leaves::bundle_pem) != self.leaves.as_ref().map(Leaves::bundle_pem)
        {
            ca::tell(ca, signing);
        } else if let Some(ca) = &ca {
            ca::tell_names(ca, signing);
        }
        self.leaves = leaves;
        if !origins_stay {
            self.upstream.replace(upstream::settings(config));
        }
        self.engine.set_rates(config.rates);
        self.proxy.replace(settings(config, self.leaves.clone()));
        Ok(())
    }

    /// The folder of our own CA, which `darter ca rotate` changes.
    pub(crate) fn ca_folder(&self) -> PathBuf {
        directories::ca(self.started.work_home())
    }
}

fn settings(config: &Config, leaves: Option<Leaves>) -> Settings {
    Settings {
        rules: config.proxy.rules.clone(),
        leaves,
        clients: config.proxy.clients.clone(),
        basic_auth: config.proxy.basic_auth.clone(),
        accounts: Accounts::new(config.proxy.accounts.clone()),
        trusted: config.proxy.trusted.clone(),
        allow_push: config.proxy.allow_push,
        limits: Limits { p2p_requests: config.proxy.max_concurrency, ..config.proxy.limits },
        marks: config.proxy.marks,
        port_tls: entrances(config).filter_map(security).map(|it| port_tls(it, &config.host)).collect(),
    }
}

/// All ways into the proxy, the proxy port first.
fn entrances(config: &Config) -> impl Iterator<Item = &Entrance> {
    std::iter::once(&config.proxy.port).chain(&config.proxy.listeners)
}

/// How TLS is spoken there, where it is.
fn security(entrance: &Entrance) -> Option<&Security> {
    if let Kind::Proxy(security) = &entrance.kind { security.as_ref() } else { None }
}

/// What a node is made of.
pub(crate) struct Parts<'a> {
    pub(crate) config: Config,
    pub(crate) ca: Option<&'a Ca>,
    pub(crate) sockets: Sockets,
    /// How it comes into its cluster, and what counts that.
    pub(crate) entry: Entry,
    pub(crate) enrol: darter_enrol::Metrics,
}

/// Starts a node as parts of `components`; its metrics stand under `darter_`.
///
/// # Errors
/// When something of our own on disk cannot be used.
pub(crate) async fn start(
    parts: Parts<'_>,
    components: &mut Components,
    registry: &mut Registry,
) -> exit::Result<Node> {
    let Parts { config, ca, sockets, entry, enrol } = parts;
    let registry = registry.sub_registry_with_prefix("darter");
    let upstream = upstream(&config);
    upstream.register(registry);
    let place = membership::of_node(&config, entry, &upstream, enrol, components).await?;
    let engine = engine(&config, place, &upstream, sockets.pieces, registry).await?;
    let leaves = ca.map(|ca| ca::leaves(ca, &config.proxy.signing)).transpose()?;
    let listeners = listeners(&config, sockets.proxy, sockets.listeners);
    let settings = settings(&config, leaves.clone());
    let adopt = Some(Traces::adopt());
    let proxy = ProxyConfig { settings, upstream: upstream.clone(), engine: engine.clone(), adopt };
    let proxy = Arc::new(Proxy::new(proxy, registry));
    let had_own_ca = ca.is_some() && config.proxy.signing.ca.is_none();
    let node = Node {
        proxy: proxy.clone(),
        upstream,
        engine: engine.clone(),
        leaves,
        started: Started::with(&config),
        had_own_ca,
    };
    components.probe(control::run(control::bind(&config.work_home)?, Arc::clone(&proxy)));
    let shutdown = Shutdown { drain: components.shutdown(), cut: components.cut() };
    let drained = [CancellationToken::new(), CancellationToken::new()];
    let [proxy_drains, commands_drain] = drained.clone().map(CancellationToken::drop_guard);
    let commands = socket::bind(socket::of_daemon(&config))?;
    let (served, until) = ((Arc::clone(&proxy), engine.clone()), shutdown.drain.clone());
    let store = config.store.dir.clone();
    components.serve("commands", async move {
        let _drains = commands_drain;
        socket::run(commands, served, &store, until).await
    });
    let drain = shutdown.drain.clone();
    components.serve("proxy", async move {
        let _drains = proxy_drains;
        let serve = |listener| darter_proxy::run(listener, Arc::clone(&proxy), shutdown.clone());
        futures_util::future::join_all(listeners.into_iter().map(serve)).await;
        Ok::<_, Infallible>(())
    });
    // The engine goes last: what the others still send comes from there.
    components.serve("pieces", async move {
        drain.cancelled().await;
        engine.drain();
        futures_util::future::join_all(drained.iter().map(CancellationToken::cancelled)).await;
        engine.stop().await;
        Ok::<_, Infallible>(())
    });
    Ok(node)
}

/// The bound sockets with what comes by each.
fn listeners(config: &Config, proxy: Bound, others: Vec<Bound>) -> Vec<Listener> {
    let sockets = std::iter::once(proxy).chain(others);
    // As `settings` counts them.
    let mut numbers = 0..;
    let mut mode = |entrance: &Entrance| Mode {
        entrance: match &entrance.kind {
            Kind::Proxy(_) => {
                darter_proxy::Entrance::Proxy { tls: security(entrance).and_then(|_| numbers.next()) }
            }
            Kind::Sni { port } => darter_proxy::Entrance::Sni { port: *port },
            Kind::Transparent => darter_proxy::Entrance::Transparent,
        },
        balancers: entrance.balancers.clone(),
    };
    let pairs = sockets.zip(entrances(config));
    pairs.map(|(bound, entrance)| Listener { socket: bound.listener, mode: mode(entrance) }).collect()
}

fn port_tls(security: &Security, host: &Host) -> PortTls {
    match security {
        Security::Certificate(config) => PortTls::Certificate(Arc::clone(config)),
        Security::OwnCa { names } => {
            let hostname = host.hostname.clone().unwrap_or_else(identity::hostname);
            let address = host.advertise_ip.map(|ip| ip.to_string());
            // A host name that no certificate can be for is not one that a client calls.
            let own = std::iter::once(hostname).chain(address).filter_map(|name| name.parse().ok());
            PortTls::OwnCa { names: names.iter().cloned().chain(own).collect() }
        }
    }
}

async fn engine(
    config: &Config,
    place: Place,
    upstream: &Upstream,
    pieces: Bound,
    registry: &mut Registry,
) -> exit::Result<Engine> {
    identity::make_folder(&config.store.dir)?;
    let Host { hostname, idc, location, .. } = config.host.clone();
    let hostname = hostname.unwrap_or_else(identity::hostname);
    let host = HostConfig {
        id: place.id,
        ip: advertised(config, pieces.addr, &hostname).await,
        hostname,
        idc,
        location,
        seed: config.seed,
        upload_slots: config.upload_slots,
    };
    let config = EngineConfig {
        store: config.store.clone(),
        host,
        schedulers: config.schedulers.clone(),
        only_with_scheduler: config.only_with_scheduler,
        backoff: config.download.backoff,
        idle_timeout: config.download.idle_timeout,
        prefetch: config.download.prefetch,
        rates: config.rates,
        gc_interval: config.gc_interval,
        membership: place.membership,
    };
    Engine::start(config, upstream.clone(), pieces.listener, registry).map_err(|error| match error {
        EngineError::Store(_) => Failure::own_files(error.to_string()),
        EngineError::Scheduler(_) | EngineError::Socket(_) => Failure::software(error.to_string()),
    })
}

/// The address at which other daemons reach the piece server: as configured, else the one that it listens on, else what
/// this host finds out about itself.
async fn advertised(config: &Config, pieces: SocketAddr, hostname: &str) -> IpAddr {
    if let Some(ip) = config.host.advertise_ip {
        return ip;
    }
    if !pieces.ip().is_unspecified() {
        return pieces.ip();
    }
    let Some(scheduler) = config.schedulers.first() else {
        // Nobody else will ask.
        return Ipv4Addr::LOCALHOST.into();
    };
    let towards_scheduler = resolve(scheduler).await.next().and_then(identity::own_address_towards);
    let towards_others = identity::own_address_towards(identity::FAR_AWAY);
    let by_name = resolve((hostname, 0)).await.map(|found| found.ip());
    let candidates: Vec<IpAddr> =
        towards_scheduler.into_iter().chain(towards_others).chain(by_name).collect();
    reachable(&candidates).unwrap_or_else(|| {
        tracing::warn!("this host has no address that others could reach; set host.advertiseIP");
        Ipv4Addr::LOCALHOST.into()
    })
}

/// The first address that others can reach. A loopback address only when there is no other: a scheduler on this host is
/// reached by it, and still sends other hosts here.
fn reachable(candidates: &[IpAddr]) -> Option<IpAddr> {
    candidates.iter().find(|ip| !ip.is_loopback()).or(candidates.first()).copied()
}

async fn resolve(name: impl ToSocketAddrs) -> impl Iterator<Item = SocketAddr> {
    let found = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host(name)).await;
    found.ok().and_then(Result::ok).into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[tokio::test]
    async fn what_the_operator_says_about_the_address_comes_first() {
        let any = SocketAddr::from(([0, 0, 0, 0], 65002));
        let mut config = config::defaults();
        assert_eq!(advertised(&config, any, "node").await, IpAddr::from(Ipv4Addr::LOCALHOST));
        let bound = SocketAddr::from(([192, 0, 2, 7], 65002));
        assert_eq!(advertised(&config, bound, "node").await, bound.ip());
        config.host.advertise_ip = Some([192, 0, 2, 9].into());
        assert_eq!(advertised(&config, bound, "node").await, IpAddr::from([192, 0, 2, 9]));
    }

    #[test]
    fn an_address_that_others_reach_is_better_than_loopback() {
        let (local, first, second) = ([127, 0, 0, 1].into(), [10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        assert_eq!(reachable(&[local, first, second]), Some(first));
        assert_eq!(reachable(&[first, local]), Some(first));
        assert_eq!(reachable(&[local]), Some(local));
        assert_eq!(reachable(&[]), None);
    }
}
