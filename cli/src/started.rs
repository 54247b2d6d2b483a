//! [`Started`]: what a node was started with and keeps to its end, whatever its file says meanwhile.
//!
//! Sockets are open, and folders in use. A file that names others is taken over as if it still said what it said then, in
//! everything that depends on them: otherwise half of a change would come into force. Certificates of ports are no part of
//! that: they are renewed.

use std::path::{Path, PathBuf};

use crate::config::{Config, Entrance, Host, Kind, Listen};

/// See the head of this file.
pub(crate) struct Started {
    work_home: PathBuf,
    host: Host,
    /// Where this node gives pieces away, and no client of the proxy gets.
    pieces: Listen,
    port: Entrance,
    listeners: Vec<Entrance>,
}

impl Started {
    /// What a node that starts with `config` keeps.
    pub(crate) fn with(config: &Config) -> Self {
        Self {
            work_home: config.work_home.clone(),
            host: config.host.clone(),
            pieces: config.pieces.clone(),
            port: config.proxy.port.clone(),
            listeners: config.proxy.listeners.clone(),
        }
    }

    /// Where the CA and this host's identity are kept.
    pub(crate) fn work_home(&self) -> &Path {
        &self.work_home
    }

    /// `config` as far as it can come into force.
    pub(crate) fn over(&self, config: &Config) -> Config {
        let mut config = config.clone();
        let written: Vec<Entrance> =
            std::iter::once(&config.proxy.port).chain(&config.proxy.listeners).cloned().collect();
        config.proxy.port = renewed(&self.port, &written);
        config.proxy.listeners = self.listeners.iter().map(|it| renewed(it, &written)).collect();
        config.work_home.clone_from(&self.work_home);
        config.host = self.host.clone();
        config.pieces = self.pieces.clone();
        config
    }
}

/// An entrance with the certificate that is now written for the same place. TLS itself neither comes nor goes.
fn renewed(started: &Entrance, written: &[Entrance]) -> Entrance {
    let same_place = written.iter().filter(|it| it.listen == started.listen);
    // Several may ask for any port that is free.
    let same = same_place.max_by_key(|it| it.key == started.key);
    let kind = match (&started.kind, same.map(|it| &it.kind)) {
        (Kind::Proxy(Some(_)), Some(Kind::Proxy(Some(security)))) => Kind::Proxy(Some(security.clone())),
        _ => started.kind.clone(),
    };
    Entrance { kind, ..started.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn config(source: &str) -> Config {
        config::parse(Path::new("f"), source).unwrap().config
    }

    fn kinds(config: &Config) -> Vec<String> {
        let entrances = std::iter::once(&config.proxy.port).chain(&config.proxy.listeners);
        entrances.map(|it| format!("{:?}", it.kind)).collect()
    }

    #[test]
    fn what_waits_does_not_come_into_force_by_half() {
        let first = config(
            "workHome: /a\nhost: {advertiseIP: 192.0.2.1}\n\
             upload: {tcpListen: {port: 7000}}\n\
             proxy: {security: {insecure: false}, listeners: [{port: 7, transparent: true}]}",
        );
        let second = config("workHome: /b\nhost: {advertiseIP: 192.0.2.2}\nproxy: {defaultTag: x}");
        let now = Started::with(&first).over(&second);
        assert_eq!(
            (now.work_home.as_path(), now.host.advertise_ip),
            (Path::new("/a"), first.host.advertise_ip)
        );
        assert!(
            now.proxy.has_transparent(),
            "its packets are still turned here, and ours must be told from them"
        );
        assert!(now.proxy.signs_for_port());
        assert!(now.pieces.ports.contains(7000));
        assert_eq!(now.proxy.rules.naming.tag, "x");
    }

    #[test]
    fn each_listener_keeps_its_kind_and_takes_the_certificate_of_its_place() {
        let named = |port, name| format!("{{port: {port}, security: {{insecure: false, names: [{name}]}}}}");
        let written =
            |listeners: [String; 2]| config(&format!("proxy: {{listeners: [{}]}}", listeners.join(", ")));
        let started = Started::with(&written([named(1, "a.example"), named(2, "b.example")]));
        for (listeners, expected) in [
            ([named(2, "d.example"), named(1, "c.example")], ["c.example", "d.example"]),
            ([named(3, "c.example"), named(2, "d.example")], ["a.example", "d.example"]),
            (["{port: 1}".to_owned(), "{port: 2, transparent: true}".to_owned()], ["a.example", "b.example"]),
        ] {
            let kinds = kinds(&started.over(&written(listeners)));
            assert!(
                kinds[0] == "Proxy(None)"
                    && kinds[1..].iter().zip(expected).all(|(kind, name)| kind.contains(name)),
                "{kinds:?}"
            );
        }
        // Of two that listen on any port, each has its own.
        let any = written([named(0, "a.example"), named(0, "b.example")]);
        assert_eq!(kinds(&Started::with(&any).over(&any)), kinds(&any));
    }
}
