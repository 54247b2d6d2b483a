//! Where a server listens: `tcpListen` and the `security` beside it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::section::Section;
use super::value;

/// An address and the ports that may be taken on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listen {
    pub(crate) ip: IpAddr,
    pub(crate) ports: Ports,
    /// The network namespace, as a file; `None`: the one in which this process runs.
    pub(crate) namespace: Option<PathBuf>,
}

/// One port, or a range of which the first free one is taken. `first <= last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ports {
    pub(crate) first: u16,
    pub(crate) last: u16,
}

impl Listen {
    /// Exactly there.
    pub(crate) const fn at(addr: SocketAddr) -> Self {
        Self { ip: addr.ip(), ports: Ports::one(addr.port()), namespace: None }
    }
}

impl Ports {
    pub(crate) const fn one(port: u16) -> Self {
        Self { first: port, last: port }
    }

    pub(crate) fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

/// Reads `tcpListen` of `section`.
pub(super) fn tcp_listen(section: &mut Section<'_>, default_port: u16) -> Listen {
    place(&mut section.section("tcpListen"), default_port)
}

/// Reads `listen`, `port` and `namespace`. All addresses are the default, as in Dragonfly: the port serves other hosts, or
/// containers on this one, which do not come by way of loopback.
pub(super) fn place(tcp: &mut Section<'_>, default_port: u16) -> Listen {
    Listen {
        ip: tcp.filled("listen", value::ip).unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
        ports: ports(tcp).unwrap_or(Ports::one(default_port)),
        namespace: tcp.filled("namespace", value::path),
    }
}

fn ports(tcp: &mut Section<'_>) -> Option<Ports> {
    if !tcp.is_mapping("port") {
        return tcp.value("port", value::port).map(Ports::one);
    }
    let mut range = tcp.section("port");
    let (first, last) = (range.value("start", value::port), range.value("end", value::port));
    let Some(first) = first else {
        if !range.has("start") {
            range.error("end", "a range needs a start");
        }
        return None;
    };
    let last = last.unwrap_or(first);
    if last < first {
        range.error("end", format!("a range ends at its start ({first}) or above"));
        return None;
    }
    Some(Ports { first, last })
}

/// Reads `security` of a server that this version serves in the clear only. A file that asks for TLS is refused: to
/// serve without it would be a weaker mode than what was asked for.
pub(super) fn no_tls(section: &mut Section<'_>, reason: &str) {
    let mut security = section.section("security");
    if security.value("insecure", value::boolean) == Some(false) {
        security.error(
            "insecure",
            format!("TLS is not available here in this version, so only true can stand: {reason}"),
        );
    }
    let reason = &format!("it belongs to TLS, which is not available here in this version: {reason}");
    // mapstructure, which reads this file in Dragonfly, takes either spelling.
    for key in ["cacert", "caCert", "cert", "key", "tlsConfig"] {
        security.no_effect(key, reason);
    }
    security.value("tlsVerify", value::boolean);
}

/// Reads a server that this version does not have: what stands there is checked, and changes nothing.
pub(super) fn unused(section: &mut Section<'_>, reason: &str) {
    let mut security = section.section("security");
    for key in ["insecure", "tlsVerify"] {
        security.value(key, value::boolean);
    }
    for key in ["cacert", "caCert", "cert", "key", "tlsConfig"] {
        security.no_effect(key, reason);
    }
    unused_tcp(&mut section.section("tcpListen"), reason);
    section.section("unixListen").unused("socket", value::text, reason);
}

/// Reads a `tcpListen` that this version does not have.
pub(super) fn unused_tcp(tcp: &mut Section<'_>, reason: &str) {
    tcp.unused("listen", value::ip, reason);
    tcp.unused("namespace", value::text, reason);
    if ports(tcp).is_some() {
        tcp.no_effect("port", reason);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::top;
    use super::*;

    fn listen(source: &str) -> (Listen, String) {
        top(source, |top| tcp_listen(top, 65001))
    }

    #[test]
    fn a_port_or_a_range_of_ports() {
        let any = IpAddr::from([0, 0, 0, 0]);
        let ok = |source| {
            let (listen, report) = listen(source);
            assert_eq!(report, "");
            listen
        };
        assert_eq!(ok(""), Listen { ip: any, ports: Ports::one(65001), namespace: None });
        assert_eq!(
            ok("tcpListen: {listen: '', port: 0}"),
            Listen { ip: any, ports: Ports::one(0), namespace: None }
        );
        assert_eq!(ok("tcpListen: {listen: '::1'}").ip, IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]));
        assert_eq!(ok("tcpListen: {port: {start: 5, end: 9}}").ports, Ports { first: 5, last: 9 });
        assert_eq!(ok("tcpListen: {port: {start: 5}}").ports, Ports::one(5));
        let there = ok("tcpListen: {namespace: /run/netns/clients}").namespace;
        assert_eq!(there, Some("/run/netns/clients".into()));
    }

    #[test]
    fn wrong_ports_and_addresses_are_reported() {
        for (source, problem) in [
            (
                "tcpListen: {port: 99999}",
                "f:1:19: tcpListen.port: expected a port from 0 to 65535, found `99999`",
            ),
            ("tcpListen: {listen: all}", "f:1:21: tcpListen.listen: expected an IP address, found `all`"),
            ("tcpListen: {port: {end: 5}}", "f:1:25: tcpListen.port.end: a range needs a start"),
            (
                "tcpListen: {port: {start: 5, end: 4}}",
                "f:1:35: tcpListen.port.end: a range ends at its start (5) or above",
            ),
        ] {
            assert_eq!(listen(source).1, problem);
        }
    }

    #[test]
    fn tls_that_is_asked_for_is_never_left_out_silently() {
        let ((), report) = top(
            "security: {insecure: true, cacert: '', cert: '', key: '', tlsVerify: true, tlsConfig: null}",
            |top| {
                no_tls(top, "it is plain");
            },
        );
        assert_eq!(report, "");
        let ((), report) = top("security: {insecure: false, cert: a.crt}", |top| no_tls(top, "it is plain"));
        assert_eq!(
            report,
            "f:1:29: warning: security.cert: has no effect: it belongs to TLS, which is not available here in this version: it is plain\n\
             f:1:22: security.insecure: TLS is not available here in this version, so only true can stand: it is plain"
        );
    }
}
