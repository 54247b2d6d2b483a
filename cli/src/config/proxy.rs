//! `proxy`: what clients may ask for, and what happens with it.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use darter_certs::{ExtraRoots, Verification};
use http::Uri;
use ipnet::IpNet;
use regex::Regex;

use super::listen::{self, Listen};
use super::section::Section;
use super::value::{self, Read};

/// Query parameters that are left out of a task's name when nothing is configured: they sign a URL, or name the registry,
/// and change while the content stays the same.
const DEFAULT_FILTER: &str = "Expires&Signature&ns";

/// The registry that a mirror request means when it names none.
const DEFAULT_MIRROR: &str = "https://index.docker.io";

/// The proxy's own share of the configuration.
#[derive(Debug, Clone)]
pub(crate) struct Proxy {
    pub(crate) listen: Listen,
    /// Query parameters that are left out of a task's name.
    pub(crate) filter: Vec<String>,
    /// The tag of tasks whose request names none.
    pub(crate) tag: String,
    /// Who may use the proxy; `None`: everybody.
    pub(crate) basic_auth: Option<BasicAuth>,
    pub(crate) mirror: Mirror,
    pub(crate) rules: Vec<Rule>,
    pub(crate) hijack: Hijack,
    pub(crate) white_list: Vec<Allowed>,
    /// How many requests may go through the peers at once; `None`: no limit.
    pub(crate) max_concurrency: Option<NonZeroUsize>,
}

/// The one user of a protected proxy.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct BasicAuth {
    pub(crate) username: String,
    pub(crate) password: String,
}

impl fmt::Debug for BasicAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BasicAuth")
            .field("username", &self.username)
            .field("password", &"[redacted]")
            .finish()
    }
}

/// `registryMirror`.
#[derive(Debug, Clone)]
pub(crate) struct Mirror {
    /// Scheme and authority only.
    pub(crate) url: Uri,
    /// A request may name its registry itself.
    pub(crate) dynamic: bool,
    /// Nothing goes through the peers.
    pub(crate) direct: bool,
    /// `rules` decide what goes through the peers, not the shape of the URL.
    pub(crate) use_proxies: bool,
    /// How the registry behind `url` is verified.
    pub(crate) verification: Verification,
}

/// One of `proxies`.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) regex: Regex,
    pub(crate) use_https: bool,
    pub(crate) direct: bool,
    /// A host, or a replacement for the whole URL; empty: none.
    pub(crate) redirect: String,
}

/// `hijackHTTPS`.
#[derive(Debug, Clone)]
pub(crate) struct Hijack {
    /// The files of the CA's certificate and key; `None`: we make our own.
    pub(crate) ca: Option<(PathBuf, PathBuf)>,
    pub(crate) hosts: Vec<HijackHost>,
}

/// One of `hijackHTTPS.hosts`.
#[derive(Debug, Clone)]
pub(crate) struct HijackHost {
    /// Matched against `host:port`.
    pub(crate) regex: Regex,
    pub(crate) verification: Verification,
}

/// One of `whiteList`. What is `None` or empty matches everything.
#[derive(Debug, Clone)]
pub(crate) struct Allowed {
    pub(crate) host: AllowedHost,
    pub(crate) regex: Option<Regex>,
    pub(crate) ports: Vec<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AllowedHost {
    Any,
    /// In lower case.
    Name(String),
    Network(IpNet),
}

pub(super) fn proxy(section: &mut Section<'_>, default_port: u16) -> Proxy {
    listen::no_tls(section, "the proxy port takes plain HTTP requests and CONNECT");
    let not_yet = "it is not in this version";
    section.unused("defaultApplication", value::text, not_yet);
    section.unused("defaultPriority", value::count, not_yet);
    section.no_effect(
        "extraRegistryMirrors",
        "one port serves all registries: a request names its own with ?ns= or X-Dragonfly-Registry",
    );
    section.always("dumpHTTPContent", false, value::boolean, "content is never written to a log");
    Proxy {
        listen: listen::tcp_listen(section, default_port),
        filter: section
            .value("defaultFilter", filter)
            .unwrap_or_else(|| filter(DEFAULT_FILTER).unwrap_or_default()),
        tag: section.value("defaultTag", value::text).unwrap_or_default(),
        basic_auth: basic_auth(&mut section.section("basicAuth")),
        mirror: mirror(&mut section.section("registryMirror")),
        rules: section.sections("proxies").iter_mut().filter_map(rule).collect(),
        hijack: hijack(&mut section.section("hijackHTTPS")),
        white_list: section.sections("whiteList").iter_mut().map(allowed).collect(),
        max_concurrency: section.value("maxConcurrency", value::count).and_then(NonZeroUsize::new),
    }
}

fn filter(text: &str) -> Read<Vec<String>> {
    Ok(text.split('&').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

fn basic_auth(section: &mut Section<'_>) -> Option<BasicAuth> {
    let (username, password) = (section.filled("username", user), section.filled("password", value::text));
    match (username, password) {
        (Some(username), Some(password)) => Some(BasicAuth { username, password }),
        (None, None) => None,
        (Some(_), None) => {
            section.error("password", "a username without a password protects nothing");
            None
        }
        (None, Some(_)) => {
            if !section.has("username") {
                section.error("username", "a password without a username can never be given");
            }
            None
        }
    }
}

fn user(text: &str) -> Read<String> {
    // RFC 7617 section 2: a colon ends the name.
    if text.contains(':') { Err("a username cannot hold a colon".to_owned()) } else { Ok(text.to_owned()) }
}

fn mirror(section: &mut Section<'_>) -> Mirror {
    Mirror {
        url: section.filled("url", registry).unwrap_or_else(|| Uri::from_static(DEFAULT_MIRROR)),
        dynamic: section.value("dynamic", value::boolean).unwrap_or(true),
        direct: section.value("direct", value::boolean).unwrap_or(false),
        use_proxies: section.value("useProxies", value::boolean).unwrap_or(false),
        verification: verification(section),
    }
}

fn registry(text: &str) -> Read<Uri> {
    // The text is not repeated: it might hold a password.
    let wrong = || "expected the address of a registry such as https://registry.example".to_owned();
    let uri: Uri = text.parse().map_err(|_| wrong())?;
    let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
    let has_host = uri.authority().is_some_and(|authority| !authority.host().is_empty());
    if !is_http || !has_host {
        return Err(wrong());
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("a registry's address holds no user name; clients send their own credentials".to_owned());
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err("a registry's address ends with its host and port, without a path".to_owned());
    }
    Ok(uri)
}

fn rule(section: &mut Section<'_>) -> Option<Rule> {
    let rule = Rule {
        regex: regex(section)?,
        use_https: section.value("useHTTPS", value::boolean).unwrap_or(false),
        direct: section.value("direct", value::boolean).unwrap_or(false),
        redirect: section.value("redirect", value::text).unwrap_or_default(),
    };
    Some(rule)
}

fn hijack(section: &mut Section<'_>) -> Hijack {
    section.no_effect("sni", "listeners that find the host in the TLS greeting are not in this version");
    let (cert, key) = (section.filled("cert", value::path), section.filled("key", value::path));
    let ca = match (cert, key) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        (given, _) => {
            let (there, missing) = if given.is_some() { ("cert", "key") } else { ("key", "cert") };
            section.error(
                there,
                format!("needs {missing} beside it: a CA is a certificate and its private key"),
            );
            None
        }
    };
    Hijack { ca, hosts: section.sections("hosts").iter_mut().filter_map(hijack_host).collect() }
}

fn hijack_host(section: &mut Section<'_>) -> Option<HijackHost> {
    let (regex, verification) = (regex(section), verification(section));
    Some(HijackHost { regex: regex?, verification })
}

/// The `regx` that an item cannot be without.
fn regex(section: &mut Section<'_>) -> Option<Regex> {
    let regex = section.filled("regx", value::regex);
    if !section.has("regx") {
        section.error("regx", "needed: a regular expression");
    }
    regex
}

/// Reads `insecure` and `certs`: how upstream servers are verified.
fn verification(section: &mut Section<'_>) -> Verification {
    let files = section.values("certs", value::path);
    let paths: Vec<_> = files.iter().map(|file| &file.value).collect();
    let extra_roots = ExtraRoots::read(&paths).unwrap_or_else(|error| {
        let file = files.iter().find(|file| file.value == error.path);
        if let Some(file) = file {
            section.findings().error(file.at, &file.key, error.to_string());
        }
        ExtraRoots::default()
    });
    match section.value("insecure", value::boolean) {
        Some(true) => Verification::Insecure,
        _ => Verification::Verified { extra_roots },
    }
}

fn allowed(section: &mut Section<'_>) -> Allowed {
    Allowed {
        host: section.filled("host", allowed_host).unwrap_or(AllowedHost::Any),
        regex: section.filled("regx", value::regex),
        ports: section.values("ports", value::remote_port).into_iter().map(|item| item.value).collect(),
    }
}

fn allowed_host(text: &str) -> Read<AllowedHost> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if let Some(network) = value::network(bare) {
        return Ok(AllowedHost::Network(network));
    }
    if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) {
        return Err(format!(
            "expected a host name, an IP address or a range such as 10.0.0.0/8, without a port, found `{text}`"
        ));
    }
    Ok(AllowedHost::Name(text.to_ascii_lowercase()))
}
