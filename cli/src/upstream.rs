//! How origins are reached, as the configuration says: what may be dialled, and who is believed.

use std::sync::Arc;

use darter_certs::{Verification, client_config};
use darter_rules::{Host, Intercept, Target};
use darter_upstream::{Upstream, UpstreamConfig};
use rustls::ClientConfig;

use crate::config::{self, Config};

/// The protocols that we speak with origins, the preferred one first.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The way to origins. Must be called within a runtime.
pub(crate) fn upstream(config: &Config) -> Upstream {
    let destinations = config.proxy.rules.destinations.clone();
    let trust = Trust::new(config);
    Upstream::new(UpstreamConfig {
        permit: Arc::new(move |host, port, ip| {
            destinations.check_address(host, port, ip).map_err(|refused| refused.to_string())
        }),
        trust: Arc::new(move |host, port| trust.for_host(host, port)),
        timeouts: config.download.timeouts,
        pool: config.download.pool,
    })
}

/// Whom we believe, by host and port. The same answer for every way in: connections are pooled.
struct Trust {
    /// The registry behind `registryMirror`, when it has settings of its own.
    mirror: Option<(Target, Arc<ClientConfig>)>,
    /// `hijackHTTPS.hosts`, and the settings of each entry.
    intercept: Intercept,
    hosts: Vec<Arc<ClientConfig>>,
    others: Arc<ClientConfig>,
}

impl Trust {
    fn new(config: &Config) -> Self {
        let others = tls(&Verification::default());
        // What has no settings shares one configuration, and with it the TLS sessions that can be resumed.
        let of = |settings: &Option<Verification>| settings.as_ref().map_or_else(|| Arc::clone(&others), tls);
        let config::Trust { hosts, mirror } = &config.proxy.trust;
        let rules = &config.proxy.rules;
        Self {
            mirror: mirror.as_ref().map(|settings| (rules.mirror.url.clone(), tls(settings))),
            intercept: rules.intercept.clone(),
            hosts: hosts.iter().map(of).collect(),
            others: Arc::clone(&others),
        }
    }

    /// The mirror's own settings name exactly one host, so they come before an expression that happens to match it.
    fn for_host(&self, host: &str, port: u16) -> Arc<ClientConfig> {
        let Ok(host) = host.parse::<Host>() else { return Arc::clone(&self.others) };
        if let Some((mirror, tls)) = &self.mirror
            && *mirror.host() == host
            && mirror.port() == port
        {
            return Arc::clone(tls);
        }
        let entry = self.intercept.entry_for(&host, port).and_then(|entry| self.hosts.get(entry));
        Arc::clone(entry.unwrap_or(&self.others))
    }
}

fn tls(verification: &Verification) -> Arc<ClientConfig> {
    client_config(verification, &ALPN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use regex::Regex;

    fn trust(hosts: &[(&str, Option<Verification>)], mirror: Option<Verification>) -> Trust {
        let mut config = config::defaults();
        let expressions: Vec<Regex> = hosts.iter().map(|(regex, _)| Regex::new(regex).unwrap()).collect();
        config.proxy.rules.intercept = Intercept::new(&expressions).unwrap();
        config.proxy.rules.mirror.url = Target::parse("https://registry.example:5000").unwrap();
        let hosts = hosts.iter().map(|(_, settings)| settings.clone()).collect();
        config.proxy.trust = config::Trust { hosts, mirror };
        Trust::new(&config)
    }

    #[test]
    fn the_first_entry_that_matches_decides() {
        let trust = trust(&[("^a:443$", Some(Verification::Insecure)), ("^(a|b):", None)], None);
        assert!(Arc::ptr_eq(&trust.for_host("a", 443), &trust.hosts[0]));
        assert!(!Arc::ptr_eq(&trust.hosts[0], &trust.others));
        for (host, port) in [("a", 444), ("b", 443), ("c", 443), ("::1", 443)] {
            assert!(Arc::ptr_eq(&trust.for_host(host, port), &trust.others), "{host}:{port}");
        }
    }

    #[test]
    fn the_mirrors_settings_are_for_its_host_and_port_alone() {
        let trust = trust(&[(".*", None)], Some(Verification::Insecure));
        let mirror = &trust.mirror.as_ref().unwrap().1;
        assert!(Arc::ptr_eq(&trust.for_host("registry.example", 5000), mirror));
        assert!(Arc::ptr_eq(&trust.for_host("registry.example", 443), &trust.others));
        assert!(Arc::ptr_eq(&trust.for_host("other.example", 5000), &trust.others));
    }
}
