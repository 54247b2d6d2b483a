//! [`Route`]: how one host and port is reached. What the operator says about it, and nothing that was found out.

use crate::config::Dns;
use crate::parent::Parent;
use rustls::ClientConfig;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// How one host and port is reached.
#[derive(Debug, Clone)]
pub struct Route {
    /// Whom to trust, and what to show of ourselves, when `https` is spoken. Its ALPN list does not count: `http` decides.
    /// Share it between routes of equal trust: it keeps the TLS sessions that can be resumed.
    pub tls: Arc<ClientConfig>,
    /// Which version of HTTP is spoken.
    pub http: HttpVersion,
    /// The parent proxy on the way; `None`: straight.
    pub parent: Option<Arc<Parent>>,
    /// Who says where the host is. Of no account where there is a parent, which finds out itself.
    pub lookup: Lookup,
}

/// Who says where a host is. The permit judges the addresses whoever it was, and the name stays what it is in SNI and Host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Lookup {
    /// Whoever says it of all hosts ([`crate::Dns`]).
    #[default]
    AsOthers,
    /// These servers, never none, which are asked like [`Dns::servers`](crate::Dns::servers).
    Servers(Arc<[SocketAddr]>),
    /// The operator: at these addresses, never none, in the order in which they are tried.
    Given(Arc<[IpAddr]>),
}

/// Which version of HTTP is spoken with an origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HttpVersion {
    /// Over TLS what both sides like best (ALPN), otherwise HTTP/1.1.
    #[default]
    Auto,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2; without TLS with prior knowledge (RFC 9113 section 3.3).
    Http2,
}

impl Route {
    /// Straight to where the name resolves to, in whatever version of HTTP the origin prefers.
    pub fn straight(tls: Arc<ClientConfig>) -> Self {
        Self { tls, http: HttpVersion::Auto, parent: None, lookup: Lookup::default() }
    }

    /// The parent to which requests for `http` URLs are sent as they are (absolute form, RFC 9112 section 3.2.2), instead
    /// of through a tunnel. HTTP/2 with prior knowledge needs the tunnel: the parent might not speak it.
    pub(crate) fn forwarder(&self, tls: bool) -> Option<&Arc<Parent>> {
        let forwards = !tls && self.http != HttpVersion::Http2;
        self.parent.as_ref().filter(|parent| forwards && parent.address.forwards_http())
    }

    /// The way to `host`, and who says where it is, in words for people. Nobody is asked.
    pub(crate) fn described(&self, host: &str, dns: &Dns) -> String {
        if let Some(parent) = &self.parent {
            let through = format!("through the parent proxy {}, which looks it up itself", parent.address);
            return match (&parent.lookup, parent.address.host()) {
                (Lookup::Given(_), _) => format!("{through}; the parent is {}", parent.lookup.described(dns)),
                (_, host) if host.parse::<IpAddr>().is_ok() => through,
                (lookup, _) => {
                    format!("{through}; the parent's own name is asked of {}", lookup.described(dns))
                }
            };
        }
        match &self.lookup {
            Lookup::Given(_) => format!("straight to {}", self.lookup.described(dns)),
            _ if host.parse::<IpAddr>().is_ok() => format!("straight to {host}"),
            lookup => format!("straight; its name is asked of {}", lookup.described(dns)),
        }
    }
}

impl Lookup {
    /// What says where a host is, in words for people.
    fn described(&self, dns: &Dns) -> String {
        match self {
            Self::Given(addresses) => {
                format!("where upstream.hosts[].addresses says that it is: {}", list(addresses))
            }
            Self::Servers(servers) => format!("upstream.hosts[].dnsServers: {}", list(servers)),
            Self::AsOthers if dns.servers.is_empty() => "this host's own resolver".to_owned(),
            Self::AsOthers => format!("upstream.dnsServers: {}", list(&dns.servers)),
        }
    }
}

fn list(addresses: &[impl ToString]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
