//! `upstream` (darter): how origins are reached. Parent proxies, name servers, and what holds for single hosts.
//!
//! Nothing of it comes from the environment: this daemon is what a host's `HTTPS_PROXY` points at, and would ask itself.

use std::fs::File;
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use darter_certs::{ClientIdentity, Secret, Verification};
use darter_rules::Intercept;
use darter_upstream::{Credentials, Dns, HttpVersion, InvalidParent, Lookup, NoProxy, ParentAddress};
use regex::Regex;

use super::proxy::{regex, verification};
use super::section::Section;
use super::value::{self, Read};

/// The port of name servers (RFC 1035 section 4.2).
const DNS_PORT: u16 = 53;

/// The longest file with a user name and a password, in bytes.
const MAX_AUTH_BYTES: u64 = 4096;

/// How origins are reached.
#[derive(Debug, Clone)]
pub(crate) struct Upstream {
    /// The parent proxy for all that `no_proxy` and `hosts` leave to it.
    pub(crate) parent: Option<Through>,
    pub(crate) no_proxy: NoProxy,
    pub(crate) dns: Dns,
    /// Finds the entry of `hosts` for a host and port.
    pub(crate) matcher: Intercept,
    pub(crate) hosts: Vec<UpstreamHost>,
}

/// A parent proxy, and who we are to it.
#[derive(Debug, Clone)]
pub(crate) struct Through {
    pub(crate) address: ParentAddress,
    pub(crate) credentials: Option<Credentials>,
}

/// What holds for the hosts that one entry matches.
#[derive(Debug, Clone)]
pub(crate) struct UpstreamHost {
    /// How they are verified; `None`: the entry says nothing about it.
    pub(crate) verification: Option<Verification>,
    pub(crate) identity: Option<ClientIdentity>,
    pub(crate) way: Way,
    /// Who says where they are.
    pub(crate) lookup: Lookup,
    pub(crate) http: HttpVersion,
}

/// Which way an entry's hosts are reached.
#[derive(Debug, Clone)]
pub(crate) enum Way {
    /// As hosts without an entry.
    AsOthers,
    /// Past every parent.
    Straight,
    /// Through this parent, whatever `noProxy` says.
    Through(Through),
}

pub(super) fn upstream(section: &mut Section<'_>) -> Upstream {
    let mut no_proxy = NoProxy::default();
    // Each text adds to the list itself, which is how a text with several entries reports the wrong one.
    for item in section.values("noProxy", |text| NoProxy::default().add(text).map(|()| text.to_owned())) {
        no_proxy.add(&item.value).expect("it was added to an empty list before");
    }
    let Dns { ipv6, .. } = Dns::default();
    let dns =
        Dns { servers: dns_servers(section), ipv6: section.value("ipv6", value::boolean).unwrap_or(ipv6) };
    let parent = through(section, false).and_then(|way| match way {
        Way::Through(parent) => Some(parent),
        Way::AsOthers | Way::Straight => None,
    });
    let (patterns, hosts): (Vec<Regex>, Vec<UpstreamHost>) =
        section.sections("hosts").iter_mut().filter_map(host).unzip();
    let matcher = Intercept::new(&patterns).unwrap_or_else(|error| {
        section.error("hosts", error.to_string());
        Intercept::default()
    });
    Upstream { parent, no_proxy, dns, matcher, hosts }
}

fn host(section: &mut Section<'_>) -> Option<(Regex, UpstreamHost)> {
    let regex = regex(section);
    let says_verified = section.has("insecure");
    let verification = verification(section).or(says_verified.then(Verification::default));
    let identity = identity(section);
    let way = through(section, true).unwrap_or(Way::AsOthers);
    let lookup = lookup(section, &way);
    let http = section.value("http", http_version).unwrap_or_default();
    Some((regex?, UpstreamHost { verification, identity, way, lookup, http }))
}

/// `addresses` or `dnsServers`, of hosts that are reached this way.
fn lookup(section: &mut Section<'_>, way: &Way) -> Lookup {
    let addresses: Vec<_> =
        section.values("addresses", value::ip).into_iter().map(|item| item.value).collect();
    let servers = dns_servers(section);
    let (key, lookup) = match (addresses.is_empty(), servers.is_empty()) {
        (true, true) => return Lookup::AsOthers,
        (false, true) => ("addresses", Lookup::Given(addresses.into())),
        (true, false) => ("dnsServers", Lookup::Servers(servers.into())),
        (false, false) => {
            section.error(
                "dnsServers",
                "nobody is asked where `addresses` says where the host is; give one of them",
            );
            return Lookup::AsOthers;
        }
    };
    if matches!(way, Way::Through(_)) {
        section.error(key, format!("a parent proxy looks the host up itself; give {key} or a proxy"));
    }
    lookup
}

/// `proxy` and `proxyAuthFile`; `direct` means something only where there are others to differ from.
fn through(section: &mut Section<'_>, may_be_direct: bool) -> Option<Way> {
    let way = section.filled("proxy", |text| match text {
        "direct" if may_be_direct => Ok(Way::Straight),
        _ => ParentAddress::parse(text)
            .map(|(address, credentials)| Way::Through(Through { address, credentials })),
    });
    let Some(file) = section.file("proxyAuthFile") else { return way };
    match way {
        Some(Way::Through(Through { address, credentials: None })) => {
            let credentials = credentials(&file, &address);
            let credentials = credentials
                .map_err(|why| section.error("proxyAuthFile", format!("{}: {why}", file.display())));
            Some(Way::Through(Through { address, credentials: credentials.ok() }))
        }
        Some(Way::Through(_)) => {
            section.error("proxyAuthFile", "`proxy` has a user name and a password already");
            way
        }
        None if section.has("proxy") => None,
        _ => {
            section.error("proxyAuthFile", "there is no `proxy` beside it to show it to");
            way
        }
    }
}

/// The file's first line, `user:password`. Never repeated in an error.
fn credentials(file: &Path, parent: &ParentAddress) -> Read<Credentials> {
    let mut text = String::new();
    File::open(file)
        .and_then(|file| file.take(MAX_AUTH_BYTES).read_to_string(&mut text))
        .map_err(|error| format!("cannot read it: {error}"))?;
    let text = Secret::from(text);
    let line = text.reveal().lines().next().unwrap_or_default();
    let credentials =
        Credentials::parse(line).map_err(|_| "its first line is no USER:PASSWORD".to_owned())?;
    parent.accepts(&credentials).map_err(|error: InvalidParent| error.to_string())?;
    Ok(credentials)
}

fn identity(section: &mut Section<'_>) -> Option<ClientIdentity> {
    let (cert, key) = section.pair(["clientCert", "clientKey"], "")?;
    let identity = ClientIdentity::read(&cert, &key).map_err(|error| {
        let at = if error.path == key { "clientKey" } else { "clientCert" };
        section.error(at, error.to_string());
    });
    identity.ok()
}

fn dns_servers(section: &mut Section<'_>) -> Vec<SocketAddr> {
    section.values("dnsServers", dns_server).into_iter().map(|item| item.value).collect()
}

fn dns_server(text: &str) -> Read<SocketAddr> {
    let address =
        text.parse::<SocketAddr>().or_else(|_| text.parse().map(|ip: IpAddr| (ip, DNS_PORT).into()));
    address.ok().filter(|address| address.port() != 0).ok_or_else(|| {
        format!("expected the IP address of a name server, perhaps with :PORT, found `{text}`")
    })
}

fn http_version(text: &str) -> Read<HttpVersion> {
    match text {
        "auto" => Ok(HttpVersion::Auto),
        "1.1" => Ok(HttpVersion::Http1),
        "2" => Ok(HttpVersion::Http2),
        _ => Err(format!("expected auto, 1.1 or 2, found `{text}`")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::top;
    use super::*;

    fn read(source: &str) -> (Upstream, String) {
        top(source, upstream)
    }

    #[test]
    fn without_a_word_everything_is_reached_straight() {
        let (upstream, report) = read("");
        assert_eq!(report, "");
        assert!(upstream.parent.is_none() && upstream.hosts.is_empty());
        assert_eq!(upstream.dns, Dns::default());
    }

    #[test]
    fn all_of_it() {
        let (upstream, report) = read(
            "proxy: http://user:secret@proxy.corp:3128
noProxy: [.corp, '10.0.0.0/8,a.example']
dnsServers: [10.0.0.53, '10.0.0.54:5353', 'fd00::53', '[fd00::53]:54']
ipv6: false
hosts:
- {regx: ^a, proxy: direct, http: 1.1}
- {regx: ^b, proxy: 'socks5://inner:1080', http: 2, insecure: true}
- {regx: ^c, addresses: [10.0.0.1, 'fd00::1'], insecure: false, http: auto}
- {regx: ^d, dnsServers: [10.0.0.55, '[fd00::55]:5353']}
",
        );
        assert_eq!(report, "");
        assert_eq!(upstream.parent.as_ref().unwrap().address.to_string(), "http://proxy.corp:3128");
        assert!(!format!("{upstream:?}").contains("secret"));
        assert!(upstream.no_proxy.covers("x.corp", 1) && upstream.no_proxy.covers("a.example", 1));
        let servers: Vec<_> = upstream.dns.servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.0.0.53:53", "10.0.0.54:5353", "[fd00::53]:53", "[fd00::53]:54"]);
        assert!(!upstream.dns.ipv6);
        let [a, b, c, d] = upstream.hosts.as_slice() else { panic!("{:?}", upstream.hosts) };
        assert!(matches!(a.way, Way::Straight) && a.verification.is_none());
        assert_eq!((a.http, b.http, c.http), (HttpVersion::Http1, HttpVersion::Http2, HttpVersion::Auto));
        assert!(matches!(b.verification, Some(Verification::Insecure)) && matches!(b.way, Way::Through(_)));
        assert!(matches!(c.verification, Some(Verification::Verified { .. })));
        assert!(matches!(&c.lookup, Lookup::Given(addresses) if addresses.len() == 2), "{c:?}");
        let own = ["10.0.0.55:53", "[fd00::55]:5353"].map(|text| text.parse().unwrap());
        assert_eq!(d.lookup, Lookup::Servers(own.into()));
        assert_eq!(a.lookup, Lookup::AsOthers);
    }

    #[test]
    fn what_is_wrong_is_named_without_the_password() {
        let (_, report) = read(
            "proxy: proxy.corp:secret
proxyAuthFile: ''
noProxy: [a b]
dnsServers: [dns.example]
hosts:
- {regx: ^a, proxy: 'ftp://u:secret@h', http: 3}
- {regx: ^b, addresses: [10.0.0.1], proxy: 'http://h:1'}
- {regx: ^c, clientCert: /no/such}
- {regx: ^d, dnsServers: [ns.example]}
- {regx: ^e, dnsServers: [10.0.0.53], proxy: 'socks5://h:1'}
- {regx: ^f, dnsServers: [10.0.0.53], addresses: [10.0.0.1]}
",
        );
        assert!(!report.contains("secret"), "{report}");
        for line in [
            "f:1:8: proxy: expected http://HOST:PORT",
            "f:3:11: noProxy[0]: expected a name",
            "f:4:14: dnsServers[0]: expected the IP address",
            "hosts[0].proxy: expected http://HOST:PORT",
            "hosts[0].http: expected auto, 1.1 or 2",
            "hosts[1].addresses: a parent proxy looks the host up itself",
            "hosts[2].clientCert: needs clientKey beside it",
            "f:9:27: hosts[3].dnsServers[0]: expected the IP address of a name server, perhaps with :PORT, found `ns.example`",
            "hosts[4].dnsServers: a parent proxy looks the host up itself; give dnsServers or a proxy",
            "hosts[5].dnsServers: nobody is asked where `addresses` says where the host is; give one of them",
        ] {
            assert!(report.contains(line), "{line}\n{report}");
        }
        assert_eq!(report.lines().count(), 10, "{report}");
    }

    #[test]
    fn a_password_comes_from_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("auth");
        let source = |proxy: &str| format!("proxy: {proxy}\nproxyAuthFile: {}\n", file.display());
        std::fs::write(&file, "user:se:cr@et\nmore\n").unwrap();
        let (upstream, report) = read(&source("http://proxy.corp:3128"));
        assert_eq!(report, "");
        let expected = Credentials::parse("user:se:cr@et").unwrap();
        assert_eq!(upstream.parent.unwrap().credentials, Some(expected));

        let (_, twice) = read(&source("http://a:b@proxy.corp:3128"));
        assert!(twice.contains("`proxy` has a user name and a password already"), "{twice}");
        let (_, alone) = read(&format!("proxyAuthFile: {}\n", file.display()));
        assert!(alone.contains("there is no `proxy` beside it"), "{alone}");
        std::fs::write(&file, "secret\n").unwrap();
        let (_, wrong) = read(&source("http://proxy.corp:3128"));
        assert!(wrong.contains("auth: its first line is no USER:PASSWORD"), "{wrong}");
        assert!(!wrong.contains("secret"), "{wrong}");
    }
}
