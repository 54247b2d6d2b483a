//! `proxy`: what clients may ask for, and what happens with it.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use darter_certs::{
    Authority, CaSet, ExtraRoots, LeafOptions, PermittedName, PermittedNames, Secret, Verification,
};
use darter_proxy::{Account, Ages, BasicAuth, Clients, Forwarded, Limits, Marks};
use darter_rules::{
    Destinations, HostPattern, Intercept, Mirror, Naming, QueryFilter, Rules, Target, WhiteListEntry,
};
use regex::Regex;
use rustls::pki_types::CertificateDer;

use super::accounts;
use super::clients;
use super::entrances::{self, Entrance, Kind, Security};
use super::rules;
use super::section::Section;
use super::value::{self, Read};

/// The registry that a mirror request means when it names none.
const DEFAULT_MIRROR: &str = "https://index.docker.io";

/// The proxy's own share of the configuration.
#[derive(Debug, Clone)]
pub(crate) struct Proxy {
    /// The proxy port.
    pub(crate) port: Entrance,
    /// More ways in.
    pub(crate) listeners: Vec<Entrance>,
    pub(crate) rules: Rules,
    pub(crate) signing: Signing,
    pub(crate) trust: Trust,
    /// Who may use the proxy by its address, and how much of it.
    pub(crate) clients: Clients,
    /// Who may use the proxy by a password; `None`: everybody.
    pub(crate) basic_auth: Option<BasicAuth>,
    /// Credentials that are lent to clients without any.
    pub(crate) accounts: Vec<Account>,
    /// Whether clients may push.
    pub(crate) allow_push: bool,
    pub(crate) trusted: Option<Regex>,
    /// How many requests may go through the peers at once; `None`: no limit.
    pub(crate) max_concurrency: Option<NonZeroUsize>,
    /// How long clients may take; the rest of it is said elsewhere.
    pub(crate) limits: Limits,
    /// What messages say of the proxy.
    pub(crate) marks: Marks,
}

/// Who signs for intercepted hosts, and how.
#[derive(Debug, Clone, Default)]
pub(crate) struct Signing {
    /// The operator's CA, `cert` and `key`; `None`: we make our own.
    pub(crate) ca: Option<Ca>,
    /// What our own is made for.
    pub(crate) permitted: PermittedNames,
    /// What clients are told to trust beside it.
    pub(crate) publish: Vec<CertificateDer<'static>>,
    pub(crate) options: LeafOptions,
}

/// A CA in files.
#[derive(Debug, Clone)]
pub(crate) struct Ca {
    pub(crate) authorities: CaSet,
    /// Where the certificate of the one that signs stands.
    pub(crate) file: PathBuf,
}

/// How upstream servers are verified; `None` where nothing is said: against the system's roots.
#[derive(Debug, Clone)]
pub(crate) struct Trust {
    /// For each entry of `hijackHTTPS.hosts`, by its number in [`Rules::intercept`].
    pub(crate) hosts: Vec<Option<Verification>>,
    /// For `registryMirror.url`.
    pub(crate) mirror: Option<Verification>,
}

impl Proxy {
    /// Opens up the TLS of every host, and verifies all of them against the system's roots.
    pub(crate) fn intercept_everything(&mut self) {
        let everything = Regex::new(".*").expect("a constant expression");
        self.rules.intercept = Intercept::new([&everything]).expect("one small expression");
        self.trust.hosts = vec![None];
    }

    /// Whether any host's TLS is opened up.
    pub(crate) fn intercepts(&self) -> bool {
        !self.trust.hosts.is_empty()
    }

    /// Whether there is a listener for redirected connections.
    pub(crate) fn has_transparent(&self) -> bool {
        self.listeners.iter().any(|it| matches!(it.kind, Kind::Transparent))
    }

    /// Whether the CA for intercepted hosts also signs for the proxy port.
    pub(crate) fn signs_for_port(&self) -> bool {
        let signs = |it: &Entrance| matches!(it.kind, Kind::Proxy(Some(Security::OwnCa { .. })));
        signs(&self.port) || self.listeners.iter().any(signs)
    }
}

pub(super) fn proxy(section: &mut Section<'_>, default_port: u16) -> Proxy {
    let not_yet = "it is not in this version";
    section.unused("defaultApplication", value::text, not_yet);
    section.unused("defaultPriority", value::count, not_yet);
    section.no_effect(
        "extraRegistryMirrors",
        "one port serves all registries: a request names its own with ?ns= or X-Dragonfly-Registry",
    );
    section.always("dumpHTTPContent", false, value::boolean, "content is never written to a log");
    let (mirror, mirror_trust) = mirror(&mut section.section("registryMirror"));
    let hijack = hijack(&mut section.section("hijackHTTPS"));
    let listeners: Vec<_> = entrances::listeners(section).into_iter().chain(hijack.sni).collect();
    let basic_auth = basic_auth(&mut section.section("basicAuth"));
    if basic_auth.is_some() {
        entrances::check_against_password(section, &listeners);
    }
    Proxy {
        port: entrances::port(section, default_port),
        listeners,
        rules: Rules {
            mirror,
            proxies: rules::proxies(section),
            intercept: hijack.intercept,
            destinations: Destinations::new(section.sections("whiteList").iter_mut().map(allowed).collect()),
            naming: naming(section),
        },
        signing: hijack.signing,
        trust: Trust { hosts: hijack.trust, mirror: mirror_trust },
        clients: clients::clients(section),
        basic_auth,
        accounts: accounts::accounts(section),
        allow_push: section.value("allowPush", value::boolean).unwrap_or(true),
        trusted: section.filled("trustedRegistries", |text| value::regex(&format!("^(?:{text})$"))),
        max_concurrency: section.value("maxConcurrency", value::count).and_then(NonZeroUsize::new),
        limits: limits(section),
        marks: Marks {
            via: section.value("via", value::boolean).unwrap_or_default(),
            forwarded: section.filled("forwarded", forwarded).unwrap_or_default(),
            docker_registry_proxy: section.filled("statusHeaders", status_headers).is_some(),
        },
    }
}

fn limits(section: &mut Section<'_>) -> Limits {
    let positive = |text: &str| {
        let count = NonZeroUsize::new(value::count(text)?);
        count.ok_or_else(|| "expected a whole number, not 0: a client could ask for nothing".to_owned())
    };
    let idle_http2 = section.value("maxIdleHTTP2", positive);
    let authentications = section.value("maxAuthentications", value::count);
    let proofs = proofs(&mut section.section("entitlement"));
    let negative_ttl = section.value("negativeTTL", value::duration);
    let limits = timeouts(&mut section.section("timeouts"));
    Limits {
        proofs,
        idle_http2: idle_http2.unwrap_or(limits.idle_http2),
        authentications: authentications.map_or(limits.authentications, NonZeroUsize::new),
        negative_ttl: negative_ttl.unwrap_or(limits.negative_ttl),
        ..limits
    }
}

fn proofs(section: &mut Section<'_>) -> Ages {
    let default = Ages::default();
    let reader = section.value("fresh", value::duration).unwrap_or(default.reader);
    Ages {
        reader,
        // Five minutes where `fresh` is one, and nothing where nothing is believed.
        public: default.public.min(reader * 5),
        grace: section.value("grace", value::duration).unwrap_or(default.grace),
    }
}

fn timeouts(section: &mut Section<'_>) -> Limits {
    let default = Limits::default();
    // Whoever trusts all clients may let bodies and tunnels stand still for ever.
    let or_never = |text: &str| {
        let time = value::duration(text)?;
        Ok::<_, String>(if time.is_zero() { Duration::MAX } else { time })
    };
    Limits {
        header_timeout: section.value("header", value::some_time).unwrap_or(default.header_timeout),
        handshake_timeout: section.value("handshake", value::some_time).unwrap_or(default.handshake_timeout),
        body_idle_timeout: section.value("bodyIdle", or_never).unwrap_or(default.body_idle_timeout),
        tunnel_idle_timeout: section.value("tunnelIdle", or_never).unwrap_or(default.tunnel_idle_timeout),
        ..default
    }
}

fn status_headers(text: &str) -> Read<()> {
    match text {
        "docker-registry-proxy" => Ok(()),
        _ => Err(format!("expected docker-registry-proxy or nothing, found `{text}`")),
    }
}

fn forwarded(text: &str) -> Read<Forwarded> {
    match text.to_ascii_lowercase().as_str() {
        "forwarded" => Ok(Forwarded::Standard),
        "x-forwarded-for" => Ok(Forwarded::X),
        _ => Err(format!("expected Forwarded, X-Forwarded-For or nothing, found `{text}`")),
    }
}

fn naming(section: &mut Section<'_>) -> Naming {
    let Naming { filter, tag } = Naming::default();
    let list = |text: &str| Ok::<_, String>(QueryFilter::parse(text));
    Naming {
        filter: section.value("defaultFilter", list).unwrap_or(filter),
        tag: section.value("defaultTag", value::text).unwrap_or(tag),
    }
}

fn basic_auth(section: &mut Section<'_>) -> Option<BasicAuth> {
    let (username, password) = (section.filled("username", user), section.filled("password", value::text));
    match (username, password.map(Secret::from)) {
        (Some(username), Some(password)) => return Some(BasicAuth::new(&username, password.reveal())),
        (Some(_), None) if !section.has("password") => {
            section.error("password", "a username without a password protects nothing");
        }
        (None, Some(_)) if !section.has("username") => {
            section.error("username", "a password without a username can never be given");
        }
        _ => {}
    }
    None
}

fn user(text: &str) -> Read<String> {
    // RFC 7617 section 2: a colon ends the name.
    if text.contains(':') { Err("a username cannot hold a colon".to_owned()) } else { Ok(text.to_owned()) }
}

fn mirror(section: &mut Section<'_>) -> (Mirror, Option<Verification>) {
    let default = || Target::parse(DEFAULT_MIRROR).expect("a constant URL");
    let mirror = Mirror {
        url: section.filled("url", registry).unwrap_or_else(default),
        dynamic: section.value("dynamic", value::boolean).unwrap_or(true),
        direct: section.value("direct", value::boolean).unwrap_or(false),
        use_proxies: section.value("useProxies", value::boolean).unwrap_or(false),
    };
    (mirror, verification(section))
}

/// The text is not repeated in the errors: it might hold a password.
fn registry(text: &str) -> Read<Target> {
    let authority =
        text.split_once("://").map_or(text, |(_, rest)| rest).split('/').next().unwrap_or_default();
    if authority.contains('@') {
        return Err("a registry's address holds no user name; clients send their own credentials".to_owned());
    }
    if text.contains(['?', '#']) {
        return Err("a registry's address has no query and no fragment".to_owned());
    }
    Target::parse(text)
        .map_err(|_| "expected the address of a registry such as https://registry.example".to_owned())
}

struct Hijack {
    sni: Vec<Entrance>,
    intercept: Intercept,
    trust: Vec<Option<Verification>>,
    signing: Signing,
}

fn hijack(section: &mut Section<'_>) -> Hijack {
    let hosts: Vec<_> = section.sections("hosts").iter_mut().filter_map(hijack_host).collect();
    let intercept = Intercept::new(hosts.iter().map(|(regex, _)| regex)).unwrap_or_else(|error| {
        section.error("hosts", error.to_string());
        Intercept::default()
    });
    let trust = hosts.into_iter().map(|(_, trust)| trust).collect();
    Hijack { sni: entrances::sni(section), intercept, trust, signing: signing(section) }
}

fn hijack_host(section: &mut Section<'_>) -> Option<(Regex, Option<Verification>)> {
    let (regex, verification) = (regex(section), verification(section));
    Some((regex?, verification))
}

fn signing(section: &mut Section<'_>) -> Signing {
    let permitted = section.values("nameConstraints", str::parse::<PermittedName>);
    if section.has("cert") {
        section.no_effect("nameConstraints", "what a CA may sign for stands in its certificate");
    }
    Signing {
        ca: ca(section),
        permitted: PermittedNames::new(permitted.into_iter().map(|name| name.value)),
        publish: publish(section),
        options: LeafOptions { wildcard: section.value("wildcard", value::boolean).unwrap_or(false) },
    }
}

fn publish(section: &mut Section<'_>) -> Vec<CertificateDer<'static>> {
    let mut all = Vec::new();
    for file in section.files("publish") {
        match darter_certs::read_ca_certificates(&file.value) {
            Ok(certificates) => {
                for date in certificates.iter().filter_map(darter_certs::ended_on) {
                    let text = format!(
                        "{}: a CA in it ended on {date}, and is not handed out",
                        file.value.display()
                    );
                    section.findings().warning(file.at, &file.key, text);
                }
                all.extend(certificates);
            }
            Err(error) => section.findings().error(file.at, &file.key, error.to_string()),
        }
    }
    all
}

fn ca(section: &mut Section<'_>) -> Option<Ca> {
    let (cert, key) = section.pair(["cert", "key"], ": a CA is a certificate and its private key")?;
    let loaded = Authority::load(&cert, &key).map_err(|error| {
        let at = if error.path == key { "key" } else { "cert" };
        section.error(at, error.to_string());
    });
    loaded.ok().map(|authority| Ca { authorities: Arc::new(authority).into(), file: cert })
}

/// The `regx` that an item cannot be without.
pub(super) fn regex(section: &mut Section<'_>) -> Option<Regex> {
    let regex = section.filled("regx", value::regex);
    if !section.has("regx") {
        section.error("regx", "needed: a regular expression");
    }
    regex
}

/// Reads `insecure` and `certs`: how upstream servers are verified.
pub(super) fn verification(section: &mut Section<'_>) -> Option<Verification> {
    let files = section.files("certs");
    let mut extra_roots = ExtraRoots::default();
    for file in &files {
        if let Err(error) = extra_roots.add(&file.value) {
            section.findings().error(file.at, &file.key, error.to_string());
        }
    }
    if section.value("insecure", value::boolean) == Some(true) {
        return Some(Verification::Insecure);
    }
    (!files.is_empty()).then_some(Verification::Verified { extra_roots })
}

fn allowed(section: &mut Section<'_>) -> WhiteListEntry {
    // What was left of an entry whose lines are commented out must not open the list.
    if !["host", "regx", "ports"].iter().any(|key| section.has(key)) {
        let text = "it allows every host; say `regx: .*` if that is meant";
        section.findings().error(section.start(), section.path(), text);
    }
    let host = |text: &str| {
        text.parse::<HostPattern>().map_err(|error| format!("{error}, without a port; found `{text}`"))
    };
    WhiteListEntry {
        host: section.filled("host", host),
        regex: section.filled("regx", value::regex),
        ports: section.values("ports", value::remote_port).into_iter().map(|item| item.value).collect(),
    }
}
