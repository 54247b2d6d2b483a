//! The proxy's ways in: `proxy.tcpListen`, `proxy.listeners`, `proxy.hijackHTTPS.sni`, and what stands beside them.

use std::path::PathBuf;
use std::sync::Arc;

use darter_certs::{FileError, LeafName, server_config};
use ipnet::IpNet;
use rustls::ServerConfig;

use super::listen::{self, Listen};
use super::section::Section;
use super::value::{self, Read};

/// Where a listener for SNI listens when its entry does not say.
const SNI_PORT: u16 = 443;

/// What is spoken on a proxy port with TLS.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// A way in.
#[derive(Debug, Clone)]
pub(crate) struct Entrance {
    /// The key that says so, for whoever finds its port taken.
    pub(crate) key: String,
    pub(crate) listen: Listen,
    pub(crate) kind: Kind,
    /// Load balancers, which introduce their clients by the PROXY protocol.
    pub(crate) balancers: Vec<IpNet>,
}

/// What clients take a way in for.
#[derive(Debug, Clone)]
pub(crate) enum Kind {
    /// A proxy or a registry; plain, or over TLS.
    Proxy(Option<Security>),
    /// Any host, over TLS with SNI.
    Sni {
        /// The port there; `None`: the one that the client connected to.
        port: Option<u16>,
    },
    /// The host that the client connected to before the packet filter turned it here.
    Transparent,
}

/// How TLS is spoken on a proxy port.
#[derive(Debug, Clone)]
pub(crate) enum Security {
    /// With the operator's certificate.
    Certificate(Arc<ServerConfig>),
    /// With leaves of the CA for intercepted hosts, for this host's names and these.
    OwnCa { names: Vec<LeafName> },
}

impl Entrance {
    /// Whether its clients cannot send a password, because they know of no proxy.
    fn is_unwitting(&self) -> bool {
        !matches!(self.kind, Kind::Proxy(_))
    }
}

/// The proxy port itself.
pub(super) fn port(section: &mut Section<'_>, default_port: u16) -> Entrance {
    Entrance {
        key: section.path_of("tcpListen"),
        listen: listen::tcp_listen(section, default_port),
        kind: Kind::Proxy(security(&mut section.section("security"))),
        balancers: balancers(section),
    }
}

/// `listeners`: more of them.
pub(super) fn listeners(section: &mut Section<'_>) -> Vec<Entrance> {
    section.sections("listeners").iter_mut().map(listener).collect()
}

fn listener(item: &mut Section<'_>) -> Entrance {
    if !item.has("port") {
        item.error("port", "needed: a port, or a range of ports: {start: 3128, end: 3130}");
    }
    let transparent = item.value("transparent", value::boolean).unwrap_or(false);
    let security = security(&mut item.section("security"));
    if transparent && security.is_some() {
        item.error(
            "security",
            "a transparent listener has no TLS of its own: what comes there is meant for others",
        );
    }
    Entrance {
        key: item.path().to_owned(),
        listen: listen::place(item, 0),
        kind: if transparent { Kind::Transparent } else { Kind::Proxy(security) },
        balancers: balancers(item),
    }
}

/// `sni` of `hijackHTTPS`.
pub(super) fn sni(section: &mut Section<'_>) -> Vec<Entrance> {
    let read = |item: &mut Section<'_>| Entrance {
        key: item.path().to_owned(),
        listen: listen::place(item, SNI_PORT),
        kind: Kind::Sni { port: item.value("upstreamPort", value::remote_port) },
        balancers: balancers(item),
    };
    section.sections("sni").iter_mut().map(read).collect()
}

/// Whoever reaches a listener whose clients know of no proxy gets past the password. That is what such a listener is for,
/// and has to be said where both are asked for.
pub(super) fn check_against_password(section: &Section<'_>, entrances: &[Entrance]) {
    for entrance in entrances.iter().filter(|it| it.is_unwitting() && !it.listen.ip.is_loopback()) {
        section.warning(
            "basicAuth",
            format!(
                "clients of {} know of no proxy and send no password, so whoever reaches it needs none; on 127.0.0.1 it \
                 serves this host alone",
                entrance.key
            ),
        );
    }
}

fn balancers(section: &mut Section<'_>) -> Vec<IpNet> {
    section
        .section("proxyProtocol")
        .values("from", value::network)
        .into_iter()
        .map(|item| item.value)
        .collect()
}

fn security(section: &mut Section<'_>) -> Option<Security> {
    let plain = section.value("insecure", value::boolean).unwrap_or(true);
    section.no_effect("tlsConfig", "cert, key, cacert and tlsVerify say all there is to say");
    if plain {
        let reason = "insecure is true, so that there is no TLS here";
        for key in ["cert", "key", "cacert", "caCert"] {
            section.unused(key, value::path, reason);
        }
        section.values("names", leaf_name);
        section.no_effect("names", reason);
        if section.value("tlsVerify", value::boolean) == Some(true) {
            section.error(
                "tlsVerify",
                "needs `insecure: false` beside it: without TLS no client shows a certificate",
            );
        }
        return None;
    }
    let pair = section.pair(["cert", "key"], "");
    let names = section.values("names", leaf_name).into_iter().map(|item| item.value).collect();
    let clients = clients(section);
    match pair {
        Some((cert, key)) => {
            section.no_effect("names", "the names stand in the certificate");
            certificate(section, cert, key, clients).map(Security::Certificate)
        }
        None if !section.has("cert") && !section.has("key") => {
            if clients.is_some() {
                section.error(
                    "cert",
                    "needed where clients must show certificates: the server's own, and its key",
                );
            }
            Some(Security::OwnCa { names })
        }
        None => None,
    }
}

/// The CAs whose certificates clients must show, where they must.
fn clients(section: &mut Section<'_>) -> Option<PathBuf> {
    let asked = section.value("tlsVerify", value::boolean).unwrap_or(false);
    // mapstructure, which reads this file in Dragonfly, takes either spelling.
    let spelling = if section.has("caCert") { "caCert" } else { "cacert" };
    if !asked {
        section.unused("cacert", value::path, "clients show no certificates unless tlsVerify is true");
        section.unused("caCert", value::path, "clients show no certificates unless tlsVerify is true");
        return None;
    }
    let [lower, upper] = ["cacert", "caCert"].map(|key| section.file(key));
    if !section.has(spelling) {
        section.error("tlsVerify", "needs cacert beside it: the CAs that sign for clients");
    }
    lower.or(upper)
}

fn certificate(
    section: &Section<'_>,
    cert: PathBuf,
    key: PathBuf,
    clients: Option<PathBuf>,
) -> Option<Arc<ServerConfig>> {
    let loaded = server_config(&cert, &key, clients.as_deref(), &ALPN);
    let report = |error: FileError| {
        let at = match error.path {
            path if path == key => "key",
            path if path == cert => "cert",
            _ if section.has("caCert") => "caCert",
            _ => "cacert",
        };
        // The path has been moved out of the error.
        section.error(at, error.problem.to_string());
    };
    loaded.map_err(report).ok()
}

fn leaf_name(text: &str) -> Read<LeafName> {
    text.parse().map_err(|_| format!("expected a host name or an IP address, found `{text}`"))
}
