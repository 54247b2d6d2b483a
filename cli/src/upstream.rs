//! How origins are reached, as the configuration says: what may be dialled, which way, and who is believed.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use darter_certs::{ClientIdentity, Verification, client_config_as};
use darter_rules::{Host, Intercept, Mirror};
use darter_upstream::{HttpVersion, Lookup, NoProxy, Parent, Route, Upstream, UpstreamConfig};
use rustls::ClientConfig;

use crate::config::{self, Config, Through, UpstreamHost, Way};
use crate::transparent;

/// The way to origins. Must be called within a runtime.
pub(crate) fn upstream(config: &Config) -> Upstream {
    let settings = settings(config);
    let routes = Arc::clone(&settings.routes);
    // Reading the platform's certificates takes tens of milliseconds, once: not at the cost of the first client, who may speak
    // no TLS at all. Of no host, so that it is what holds for most.
    tokio::task::spawn_blocking(move || drop(routes("", 443)));
    Upstream::new(settings)
}

/// What [`Upstream`] goes by; for [`Upstream::replace`] when the configuration changes.
pub(crate) fn settings(config: &Config) -> UpstreamConfig {
    let destinations = config.proxy.rules.destinations.clone();
    let routing = Routing::new(config);
    let pieces = config.pieces.ports;
    UpstreamConfig {
        permit: Arc::new(move |host, port, ip| {
            // A node gives its pieces to whoever asks there. All nodes of a cluster use the same port, as a rule.
            if pieces.contains(port) {
                return Err(format!(
                    "destination port {port} is where daemons give each other what they hold"
                ));
            }
            let verdict = match ip {
                Some(ip) => destinations.check_address(host, port, ip),
                None => destinations.check_unresolved(host, port),
            };
            verdict.map_err(|refused| refused.to_string())?;
            ip.map_or(Ok(()), |ip| darter_proxy::check_not_own(ip, port))
        }),
        routes: Arc::new(move |host, port| routing.route(host, port)),
        dns: config.upstream.dns.clone(),
        timeouts: config.download.timeouts,
        pool: config.download.pool,
        mark: config.proxy.has_transparent().then(transparent::mark).flatten(),
    }
}

/// How each host is reached. The same answer for every way in: connections are pooled.
struct Routing {
    trust: Trust,
    /// Finds the entry of `upstream.hosts`.
    matcher: Intercept,
    entries: Vec<Entry>,
    /// For hosts without a way of their own, unless `no_proxy` covers them.
    parent: Option<Arc<Parent>>,
    no_proxy: NoProxy,
}

/// An entry of `upstream.hosts`.
struct Entry {
    way: EntryWay,
    lookup: Lookup,
    http: HttpVersion,
}

enum EntryWay {
    AsOthers,
    Straight,
    Through(Arc<Parent>),
}

impl Routing {
    fn new(config: &Config) -> Self {
        let config::Upstream { parent, no_proxy, matcher, hosts, .. } = &config.upstream;
        let mut routing = Self {
            trust: Trust::new(config),
            matcher: matcher.clone(),
            entries: Vec::new(),
            parent: None,
            no_proxy: no_proxy.clone(),
        };
        routing.parent = parent.as_ref().map(|through| routing.parent(through, hosts));
        routing.entries = hosts.iter().map(|host| routing.entry(host, hosts)).collect();
        routing
    }

    fn entry(&self, host: &UpstreamHost, hosts: &[UpstreamHost]) -> Entry {
        let way = match &host.way {
            Way::AsOthers => EntryWay::AsOthers,
            Way::Straight => EntryWay::Straight,
            Way::Through(through) => EntryWay::Through(self.parent(through, hosts)),
        };
        Entry { way, lookup: host.lookup.clone(), http: host.http }
    }

    /// A parent is a host, too: what is said about that host's certificate and who says where it is holds for it.
    fn parent(&self, through: &Through, hosts: &[UpstreamHost]) -> Arc<Parent> {
        let Through { address, credentials } = through.clone();
        let host = address.host().parse::<Host>().ok();
        let entry = self.entry_for(host.as_ref(), address.port());
        let lookup = entry.and_then(|entry| hosts.get(entry)).map(|host| host.lookup.clone());
        let tls = self.trust.tls(host.as_ref(), address.port(), entry);
        Arc::new(Parent { address, credentials, tls, lookup: lookup.unwrap_or_default() })
    }

    fn entry_for(&self, host: Option<&Host>, port: u16) -> Option<usize> {
        self.matcher.entry_for(host?, port)
    }

    fn route(&self, name: &str, port: u16) -> Route {
        let host = name.parse::<Host>().ok();
        let number = self.entry_for(host.as_ref(), port);
        let tls = self.trust.tls(host.as_ref(), port, number);
        let of_others = || self.parent.clone().filter(|_| !self.no_proxy.covers(name, port));
        let Some(entry) = number.and_then(|number| self.entries.get(number)) else {
            return Route { parent: of_others(), ..Route::straight(tls) };
        };
        let parent = match &entry.way {
            EntryWay::Through(parent) => Some(Arc::clone(parent)),
            EntryWay::Straight => None,
            EntryWay::AsOthers if entry.lookup == Lookup::AsOthers => of_others(),
            // Whoever says where a host is, or who knows it, means us to go there.
            EntryWay::AsOthers => None,
        };
        Route { tls, http: entry.http, parent, lookup: entry.lookup.clone() }
    }
}

// === Trust ===

/// Whom we believe, and what we show of ourselves, by host and port.
struct Trust {
    /// The registry behind `registryMirror`, when it has settings of its own.
    mirror: Option<(Mirror, Verification)>,
    /// Of each entry of `upstream.hosts`.
    hosts: Vec<(Option<Verification>, Option<ClientIdentity>)>,
    /// `hijackHTTPS.hosts`, and the settings of each entry.
    intercept: Intercept,
    intercepted: Vec<Option<Verification>>,
    /// What was made so far. What has the same settings shares one configuration, and with it the TLS sessions that can
    /// be resumed.
    made: RwLock<Made>,
}

/// By where it is said how the host is verified, and whose client certificate is shown.
type Made = HashMap<(Source, Option<usize>), Arc<ClientConfig>>;

/// Where it is said how a host is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Source {
    /// Nowhere.
    Default,
    Mirror,
    /// This entry of `upstream.hosts`.
    Host(usize),
    /// This entry of `hijackHTTPS.hosts`.
    Intercept(usize),
}

impl Trust {
    fn new(config: &Config) -> Self {
        let config::Trust { hosts, mirror } = &config.proxy.trust;
        let rules = &config.proxy.rules;
        let own = config.upstream.hosts.iter();
        Self {
            mirror: mirror.as_ref().map(|settings| (rules.mirror.clone(), settings.clone())),
            hosts: own.map(|host| (host.verification.clone(), host.identity.clone())).collect(),
            intercept: rules.intercept.clone(),
            intercepted: hosts.clone(),
            made: RwLock::default(),
        }
    }

    /// The configuration for a host that `entry` of `upstream.hosts` matches.
    fn tls(&self, host: Option<&Host>, port: u16, entry: Option<usize>) -> Arc<ClientConfig> {
        let source = host.map_or(Source::Default, |host| self.source(host, port, entry));
        let shown = entry.filter(|entry| self.identity(Some(*entry)).is_some());
        let key = (source, shown);
        // Nothing panics while it is held.
        if let Some(made) = self.made.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Arc::clone(made);
        }
        let mut made = self.made.write().unwrap_or_else(PoisonError::into_inner);
        let make = || client_config_as(&self.verification(source), self.identity(shown), &[]);
        Arc::clone(made.entry(key).or_insert_with(make))
    }

    /// The mirror's own settings name exactly one registry, so they come before an expression that happens to match it. An entry
    /// that says nothing leaves it to the next.
    fn source(&self, host: &Host, port: u16, entry: Option<usize>) -> Source {
        if let Some((mirror, _)) = &self.mirror
            && mirror.is_at(host, port)
        {
            return Source::Mirror;
        }
        if let Some(entry) = entry
            && matches!(self.hosts.get(entry), Some((Some(_), _)))
        {
            return Source::Host(entry);
        }
        match self.intercept.entry_for(host, port) {
            Some(entry) if matches!(self.intercepted.get(entry), Some(Some(_))) => Source::Intercept(entry),
            _ => Source::Default,
        }
    }

    fn verification(&self, source: Source) -> Verification {
        let said = match source {
            Source::Default => None,
            Source::Mirror => self.mirror.as_ref().map(|(_, settings)| settings),
            Source::Host(entry) => self.hosts.get(entry).and_then(|(settings, _)| settings.as_ref()),
            Source::Intercept(entry) => self.intercepted.get(entry).and_then(Option::as_ref),
        };
        said.cloned().unwrap_or_default()
    }

    fn identity(&self, entry: Option<usize>) -> Option<&ClientIdentity> {
        self.hosts.get(entry?).and_then(|(_, identity)| identity.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn routing(source: &str) -> Routing {
        Routing::new(&config::parse(Path::new("f"), source).unwrap().config)
    }

    /// Where it is said how this host is verified.
    fn source(routing: &Routing, host: &str, port: u16) -> Source {
        let host = host.parse().unwrap();
        routing.trust.source(&host, port, routing.entry_for(Some(&host), port))
    }

    #[test]
    fn no_request_goes_where_daemons_talk_to_each_other() {
        let source =
            "upload: {tcpListen: {port: {start: 7000, end: 7002}}}\nproxy: {whiteList: [{regx: .*}]}\n";
        let settings = settings(&config::parse(Path::new("f"), source).unwrap().config);
        let ip = |port| (settings.permit)("10.0.0.6", port, Some([10, 0, 0, 6].into()));
        let name = |port| (settings.permit)("node.example", port, None);
        for port in 7000..=7002 {
            assert!(ip(port).is_err() && name(port).is_err(), "{port}");
        }
        for port in [6999, 7003, 443] {
            assert!(ip(port).is_ok() && name(port).is_ok(), "{port}");
        }
    }

    fn parent(routing: &Routing, host: &str, port: u16) -> String {
        let parent = routing.route(host, port).parent;
        parent.map_or("straight".to_owned(), |parent| parent.address.to_string())
    }

    const TRUST: &str = "
proxy:
  registryMirror: {url: 'https://registry.example:5000', insecure: true}
  hijackHTTPS: {hosts: [{regx: '^a:443$', insecure: true}, {regx: '^(a|b|c):'}, {regx: .*, insecure: true}]}
upstream:
  hosts: [{regx: '^c:', insecure: true}, {regx: '^a:', http: 1.1}, {regx: '^registry', insecure: false}]
";

    #[test]
    fn the_first_that_says_something_about_a_host_decides_how_it_is_verified() {
        let routing = routing(TRUST);
        for (host, port, expected) in [
            // Named exactly by the mirror; elsewhere by the first list with an entry that matches and says something.
            ("registry.example", 5000, Source::Mirror),
            ("registry.example", 443, Source::Host(2)),
            ("c", 1, Source::Host(0)),
            ("a", 443, Source::Intercept(0)),
            // The first entry that matches counts, also when it says nothing.
            ("b", 443, Source::Default),
            ("a", 444, Source::Default),
            ("other", 443, Source::Intercept(2)),
        ] {
            assert_eq!(source(&routing, host, port), expected, "{host}:{port}");
        }
        assert_eq!(routing.route("a", 444).http, HttpVersion::Http1);
    }

    #[test]
    fn the_mirrors_trust_holds_where_its_registry_is_served() {
        for (url, host, port, expected) in [
            ("https://index.docker.io", "registry-1.docker.io", 443, Source::Mirror),
            ("https://docker.io", "registry-1.docker.io", 443, Source::Mirror),
            ("https://registry-1.docker.io", "docker.io", 443, Source::Mirror),
            ("https://index.docker.io", "registry-1.docker.io", 5000, Source::Default),
            ("https://index.docker.io:5000", "index.docker.io", 5000, Source::Mirror),
            ("https://index.docker.io:5000", "registry-1.docker.io", 5000, Source::Default),
        ] {
            let routing = routing(&format!("proxy: {{registryMirror: {{url: '{url}', insecure: true}}}}"));
            assert_eq!(source(&routing, host, port), expected, "{url}: {host}:{port}");
        }
    }

    #[test]
    fn equal_trust_shares_one_configuration() {
        let routing = routing(TRUST);
        let tls = |host: &str, port| routing.route(host, port).tls;
        assert!(Arc::ptr_eq(&tls("b", 443), &tls("a", 444)));
        assert!(Arc::ptr_eq(&tls("a", 443), &tls("a", 443)));
        assert!(!Arc::ptr_eq(&tls("a", 443), &tls("a", 444)));
        assert!(!Arc::ptr_eq(&tls("registry.example", 5000), &tls("registry.example", 443)));
    }

    #[test]
    fn a_hosts_own_way_comes_before_the_list_and_that_before_the_parent_of_all() {
        let routing = routing(
            "
upstream:
  proxy: http://user:secret@proxy.corp:3128
  noProxy: [.inside.example, 10.0.0.0/8]
  hosts:
  - {regx: '^straight\\.example:', proxy: direct}
  - {regx: '^special\\.inside\\.example:443$', proxy: 'socks5://inner.corp:1080'}
  - {regx: '^placed\\.example:', addresses: [192.0.2.7]}
  - {regx: '^inner\\.corp:1080$', addresses: [192.0.2.8], insecure: true}
  - {regx: '^versioned\\.example:', http: 2}
  - {regx: '^inside\\.example:', dnsServers: [192.0.2.53]}
",
        );
        for (host, port, expected) in [
            ("registry.example", 443, "http://proxy.corp:3128"),
            ("a.inside.example", 443, "straight"),
            ("10.1.2.3", 443, "straight"),
            ("127.0.0.1", 443, "straight"),
            ("straight.example", 443, "straight"),
            ("special.inside.example", 443, "socks5://inner.corp:1080"),
            ("special.inside.example", 80, "straight"),
            ("placed.example", 443, "straight"),
            ("inside.example", 443, "straight"),
            ("versioned.example", 443, "http://proxy.corp:3128"),
            // Names that no rule can be about.
            ("a b", 443, "http://proxy.corp:3128"),
        ] {
            assert_eq!(parent(&routing, host, port), expected, "{host}:{port}");
        }
        let inner = routing.route("special.inside.example", 443).parent.unwrap();
        assert_eq!(inner.lookup, Lookup::Given(["192.0.2.8".parse().unwrap()].into()));
        assert!(Arc::ptr_eq(&inner.tls, &routing.route("inner.corp", 1080).tls));
        let lookup = |host: &str| routing.route(host, 443).lookup;
        assert_eq!(lookup("placed.example"), Lookup::Given(["192.0.2.7".parse().unwrap()].into()));
        assert_eq!(lookup("inside.example"), Lookup::Servers(["192.0.2.53:53".parse().unwrap()].into()));
        assert_eq!(lookup("registry.example"), Lookup::AsOthers);
    }
}
