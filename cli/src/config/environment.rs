//! A configuration from the environment variables of docker-registry-proxy, so that an image of ours can stand where its
//! image stood: same variables, same defaults.
//!
//! What they say is written as the tree of a file and read like one, so that there is one schema and one set of checks.
//! Each variable is honoured here, or named in a warning with the reason; docs/migrating-from-docker-registry-proxy.md has
//! the list. Variables that are none of docker-registry-proxy's are not looked at.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use darter_proxy::{Account, Login};
use regex::Regex;
use serde_json::{Value, json};

use super::problem::{Problem, Report};
use super::value::{self, Read};
use super::{Loaded, parse};

/// Opened up whatever REGISTRIES says.
const ALWAYS: &str = "registry-1.docker.io auth.docker.io";

/// REGISTRIES when it is not set.
const REGISTRIES: &str = "k8s.gcr.io gcr.io quay.io";

/// CACHE_MAX_SIZE when it is not set, and what it keeps content for.
const CACHE_MAX_SIZE: u64 = 32 << 30;
const CACHE_INACTIVE: Duration = Duration::from_secs(60 * 24 * 3600);

/// What the variables do not say.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// Where clients reach the proxy.
    pub(crate) proxy: SocketAddr,
    /// `/healthy` and `/metrics`.
    pub(crate) health: SocketAddr,
    /// Where the CA (`ca/`) and this host's identity are kept.
    pub(crate) work_home: PathBuf,
    /// Where content is kept.
    pub(crate) data_dir: PathBuf,
}

/// Reads the variables by `get`.
///
/// # Errors
/// With everything that is wrong.
pub(crate) fn load(place: &Place, get: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Report> {
    let file = Path::new("environment");
    let mut variables = Variables { get, errors: Vec::new(), warnings: Vec::new() };
    let tree = tree(place, &mut variables);
    let accounts = accounts(&mut variables);
    let without_effect = without_effect(&mut variables);
    variables.warnings.extend(without_effect);
    // JSON is YAML.
    let parsed = parse(file, &tree.to_string());
    let Variables { mut errors, warnings, .. } = variables;
    if let Err(report) = &parsed {
        // Its places are those of a text that nobody has seen.
        errors.extend(report.errors.iter().cloned().map(|problem| Problem { at: None, ..problem }));
    }
    match parsed {
        Ok(mut loaded) if errors.is_empty() => {
            loaded.config.proxy.accounts = accounts;
            loaded.config.work_home.clone_from(&place.work_home);
            loaded.config.store.dir.clone_from(&place.data_dir);
            loaded.report.warnings = warnings;
            Ok(loaded)
        }
        _ => Err(Report { file: file.to_owned(), errors, warnings }),
    }
}

/// The tree of a file that says the same.
fn tree(place: &Place, variables: &mut Variables<'_>) -> Value {
    let verify = variables.value("VERIFY_SSL", value::boolean).unwrap_or(true);
    if !verify {
        variables.warning(
            "VERIFY_SSL",
            "registries are not verified: whoever is on the way can change what is pulled",
        );
    }
    let names = variables.text("REGISTRIES").unwrap_or_else(|| REGISTRIES.to_owned());
    let hosts: Vec<Value> = ALWAYS
        .split(' ')
        .chain(names.split_whitespace())
        .filter_map(|name| {
            let regx = host(name).map_err(|why| variables.error("REGISTRIES", why)).ok()?;
            Some(json!({ "regx": regx, "insecure": !verify }))
        })
        .collect();
    let size = variables.value("CACHE_MAX_SIZE", value::size).unwrap_or(CACHE_MAX_SIZE);
    let debug = ["DEBUG", "DEBUG_HUB", "DEBUG_NGINX"].map(|name| variables.flag(name)).contains(&true);
    let mut longest = |names: &[&'static str]| {
        let times = names.iter().filter_map(|name| variables.value(name, time)).max();
        times.map(|time| format!("{}ms", time.as_millis()))
    };
    let connect = longest(&["PROXY_CONNECT_TIMEOUT", "PROXY_CONNECT_CONNECT_TIMEOUT"]);
    let header = longest(&["CLIENT_HEADER_TIMEOUT", "KEEPALIVE_TIMEOUT"]);
    let body = longest(&["SEND_TIMEOUT", "CLIENT_BODY_TIMEOUT", "PROXY_READ_TIMEOUT", "PROXY_SEND_TIMEOUT"]);
    let tunnel = longest(&["PROXY_CONNECT_READ_TIMEOUT", "PROXY_CONNECT_SEND_TIMEOUT"]);
    let answer = longest(&["PROXY_READ_TIMEOUT"]);
    json!({
        "verbose": debug,
        "storage": {
            "diskGCThreshold": size,
            "taskExpireTime": format!("{}s", CACHE_INACTIVE.as_secs()),
        },
        "download": { "transportOption": { "dialTimeout": connect, "responseHeaderTimeout": answer } },
        "upstream": { "ipv6": !variables.flag("DISABLE_IPV6") },
        // Nobody else asks a node without a scheduler for pieces.
        "upload": { "tcpListen": { "listen": "127.0.0.1", "port": 0 } },
        "health": { "tcpListen": { "listen": place.health.ip(), "port": place.health.port() } },
        "proxy": {
            "tcpListen": { "listen": place.proxy.ip(), "port": place.proxy.port() },
            "allowPush": variables.flag("ALLOW_PUSH"),
            "statusHeaders": "docker-registry-proxy",
            "timeouts": { "header": header, "bodyIdle": body, "tunnelIdle": tunnel },
            "hijackHTTPS": {
                "hosts": hosts,
                "cert": variables.text("CA_CRT_FILE"),
                "key": variables.text("CA_KEY_FILE"),
            },
        },
    })
}

/// A registry as REGISTRIES and AUTH_REGISTRIES name it: a name, perhaps with a port; `*.NAME` and `.NAME` as in nginx's maps.
/// As an expression for `host:port`.
fn host(name: &str) -> Read<String> {
    let (bare, port) = name.rsplit_once(':').unwrap_or((name, "443"));
    let (before, rest) = match (bare.strip_prefix("*."), bare.strip_prefix('.')) {
        (Some(rest), _) => (r"[^:]+\.", rest),
        (None, Some(rest)) => (r"([^:]+\.)?", rest),
        (None, None) => ("", bare),
    };
    value::host_port(&format!("{rest}:{port}")).map_err(|_| {
        format!("expected names of registries, perhaps with :PORT, with blanks between them, found `{name}`")
    })?;
    Ok(format!("(?i)^{before}{}:{port}$", regex::escape(rest)))
}

// === AUTH_REGISTRIES ===

fn accounts(variables: &mut Variables<'_>) -> Vec<Account> {
    let Some(text) = variables.text("AUTH_REGISTRIES") else { return Vec::new() };
    let between = variables.text("AUTH_REGISTRIES_DELIMITER").unwrap_or_else(|| " ".to_owned());
    let within = variables.text("AUTH_REGISTRY_DELIMITER").unwrap_or_else(|| ":".to_owned());
    let entries = text.split(&between).map(str::trim).filter(|entry| !entry.is_empty()).enumerate();
    entries
        .filter_map(|(index, entry)| {
            let account = account(entry, &within);
            // Of which entry: never what it says.
            let said = |why| variables.error("AUTH_REGISTRIES", format!("entry {}: {why}", index + 1));
            account.map_err(said).ok()
        })
        .collect()
}

/// `HOST:USER:PASSWORD`; a password may hold what stands between them.
fn account(entry: &str, within: &str) -> Read<Account> {
    let mut parts = entry.splitn(3, within);
    let (Some(name), Some(user), Some(password)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(format!("expected HOST{within}USER{within}PASSWORD"));
    };
    // Docker Hub is asked for by the name of its token service there; here that is the registry's own business.
    let hosts = match name {
        "auth.docker.io" | "docker.io" | "index.docker.io" => {
            r"^(registry-1|index)\.docker\.io:443$".to_owned()
        }
        // The sentence of a wrong name would show what stands there, which may be a password in the wrong place.
        name => host(name).map_err(|_| "its first part is no name of a registry".to_owned())?,
    };
    Ok(Account {
        hosts: Regex::new(&hosts).map_err(|error| error.to_string())?,
        repositories: Regex::new("").map_err(|error| error.to_string())?,
        login: Login::new(user, password)?,
        insecure: false,
    })
}

// === without effect ===

/// What is set and changes nothing, or not what it says.
fn without_effect(variables: &mut Variables<'_>) -> Vec<Problem> {
    let mut found = Vec::new();
    if variables.flag("ENABLE_MANIFEST_CACHE") {
        let names: Vec<&str> =
            MANIFEST_CACHE.into_iter().filter(|name| variables.text(name).is_some()).collect();
        let tiers = if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
        found.push(Problem::of(
            "ENABLE_MANIFEST_CACHE",
            format!("has no effect{tiers}: what a tag means is asked of its registry each time, so that nobody gets an old image"),
        ));
    }
    for (name, reason) in [
        ("CA_SRL_FILE", "serial numbers of certificates are drawn at random"),
        ("DO_DEBUG_BUILD", "there is one kind of image"),
    ] {
        if variables.text(name).is_some() {
            found.push(Problem::of(name, format!("has no effect: {reason}")));
        }
    }
    if variables.value("PROXY_REQUEST_BUFFERING", value::boolean) == Some(true) {
        found
            .push(Problem::of("PROXY_REQUEST_BUFFERING", "has no effect: what is pushed is always streamed"));
    }
    for (name, port) in [("DEBUG", 8081), ("DEBUG_HUB", 8082)] {
        if variables.flag(name) {
            let text = format!(
                "there is no web page at port {port}: the log says more now, and `darter explain URL` why"
            );
            found.push(Problem::of(name, text));
        }
    }
    found
}

const MANIFEST_CACHE: [&str; 5] = [
    "MANIFEST_CACHE_PRIMARY_REGEX",
    "MANIFEST_CACHE_PRIMARY_TIME",
    "MANIFEST_CACHE_SECONDARY_REGEX",
    "MANIFEST_CACHE_SECONDARY_TIME",
    "MANIFEST_CACHE_DEFAULT_TIME",
];

// === Variables ===

/// The variables, and what is wrong with them.
struct Variables<'a> {
    get: &'a dyn Fn(&str) -> Option<String>,
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Variables<'_> {
    /// What is set; empty is as good as not at all.
    fn text(&self, name: &str) -> Option<String> {
        (self.get)(name).filter(|text| !text.is_empty())
    }

    fn value<T>(&mut self, name: &str, read: impl FnOnce(&str) -> Read<T>) -> Option<T> {
        let text = self.text(name)?;
        read(text.trim()).map_err(|why| self.error(name, why)).ok()
    }

    /// `true`, or else not.
    fn flag(&mut self, name: &str) -> bool {
        self.value(name, value::boolean).unwrap_or(false)
    }

    /// The same thing is said once, however often it is read.
    fn error(&mut self, name: &str, text: impl Into<String>) {
        let problem = Problem::of(name, text);
        if !self.errors.contains(&problem) {
            self.errors.push(problem);
        }
    }

    fn warning(&mut self, name: &str, text: &str) {
        self.warnings.push(Problem::of(name, text));
    }
}

impl Problem {
    /// About a variable, which has no place.
    fn of(name: &str, text: impl Into<String>) -> Self {
        Self { file: None, at: None, key: name.to_owned(), text: text.into() }
    }
}

/// A length of time as nginx writes it: `60s`, `1h 30m`, `60d`, `500ms`; without a unit seconds.
fn time(text: &str) -> Read<Duration> {
    let wrong = || format!("expected a length of time such as 60s, 10m or 60d, found `{text}`");
    let mut total = Duration::ZERO;
    let mut rest = text.trim();
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit() || c == ' ').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let number = number.parse::<u64>().map_err(|_| wrong())?;
        let milliseconds: u64 = match unit {
            "ms" => 1,
            "" | "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 7 * 86_400_000,
            "M" => 30 * 86_400_000,
            "y" => 365 * 86_400_000,
            _ => return Err(wrong()),
        };
        let part = number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(wrong)?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = tail.trim_start();
    }
    if total.is_zero() { Err(wrong()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Loaded, Report> {
        let place = Place {
            proxy: ([0, 0, 0, 0], 3128).into(),
            health: ([0, 0, 0, 0], 40901).into(),
            work_home: "/w".into(),
            data_dir: "/d".into(),
        };
        let get =
            |name: &str| variables.iter().find(|(it, _)| *it == name).map(|(_, text)| (*text).to_owned());
        load(&place, &get)
    }

    fn opened(loaded: &Loaded, host: &str, port: u16) -> bool {
        loaded.config.proxy.rules.intercept.entry_for(&host.parse().unwrap(), port).is_some()
    }

    fn warnings(loaded: &Loaded) -> String {
        loaded.report.warning_lines().collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn nothing_set_means_what_it_means_there() {
        let loaded = read(&[("REGISTRIES", ""), ("PATH", "/bin")]).unwrap();
        assert_eq!(warnings(&loaded), "");
        let config = &loaded.config;
        assert_eq!(
            (config.work_home.as_path(), config.store.dir.as_path()),
            (Path::new("/w"), Path::new("/d"))
        );
        assert_eq!((config.store.quota, config.store.expire), (32 << 30, Duration::from_secs(5_184_000)));
        assert!(!config.proxy.allow_push && config.upstream.dns.ipv6 && config.proxy.accounts.is_empty());
        for host in ["registry-1.docker.io", "auth.docker.io", "quay.io", "gcr.io", "k8s.gcr.io"] {
            assert!(opened(&loaded, host, 443), "{host}");
        }
        assert!(!opened(&loaded, "example.org", 443) && !opened(&loaded, "quay.io", 8443));
        assert!(config.proxy.trust.hosts.iter().all(Option::is_none));
    }

    #[test]
    fn registries_are_names_with_ports_and_wildcards() {
        let loaded = read(&[("REGISTRIES", "a.example b.example:5000\n *.c.example .d.example")]).unwrap();
        for (host, port, open) in [
            ("a.example", 443, true),
            ("aXexample", 443, false),
            ("b.example", 5000, true),
            ("b.example", 443, false),
            ("x.c.example", 443, true),
            ("c.example", 443, false),
            ("d.example", 443, true),
            ("x.y.d.example", 443, true),
            ("xd.example", 443, false),
            ("quay.io", 443, false),
            ("registry-1.docker.io", 443, true),
        ] {
            assert_eq!(opened(&loaded, host, port), open, "{host}:{port}");
        }
    }

    #[test]
    fn credentials_are_lent_to_the_registries_that_are_named() {
        let json = r#"{"a": "b:c", "d": 1}"#;
        let entries = format!("gcr.io|_json_key|{json};auth.docker.io|me|pa ss:word");
        let loaded = read(&[
            ("AUTH_REGISTRIES", entries.as_str()),
            ("AUTH_REGISTRIES_DELIMITER", ";"),
            ("AUTH_REGISTRY_DELIMITER", "|"),
        ])
        .unwrap();
        let [gcr, hub] = loaded.config.proxy.accounts.as_slice() else {
            panic!("{:?}", loaded.config.proxy.accounts)
        };
        assert!(gcr.hosts.is_match("gcr.io:443") && !gcr.hosts.is_match("xgcr.io:443"));
        assert!(
            hub.hosts.is_match("registry-1.docker.io:443") && hub.repositories.is_match("library/alpine")
        );
        let loaded = read(&[("AUTH_REGISTRIES", "a.example:u:p:q  b.example:5000:p")]).unwrap();
        assert_eq!(loaded.config.proxy.accounts.len(), 2);
    }

    #[test]
    fn the_rest_is_honoured_too() {
        let loaded = read(&[
            ("ALLOW_PUSH", "true"),
            ("DISABLE_IPV6", "true"),
            ("VERIFY_SSL", "false"),
            ("CACHE_MAX_SIZE", "500m"),
            ("KEEPALIVE_TIMEOUT", "300s"),
            ("PROXY_READ_TIMEOUT", "15m"),
            ("SEND_TIMEOUT", "60"),
            ("PROXY_CONNECT_TIMEOUT", "7s"),
            ("PROXY_CONNECT_READ_TIMEOUT", "1h 30m"),
        ])
        .unwrap();
        let proxy = &loaded.config.proxy;
        assert!(proxy.allow_push && !loaded.config.upstream.dns.ipv6);
        assert!(proxy.trust.hosts.iter().all(|it| matches!(it, Some(darter_certs::Verification::Insecure))));
        assert_eq!(loaded.config.store.quota, 500 << 20);
        let seconds =
            [proxy.limits.header_timeout, proxy.limits.body_idle_timeout, proxy.limits.tunnel_idle_timeout]
                .map(|it| it.as_secs());
        assert_eq!(seconds, [300, 900, 5400]);
        assert!(
            warnings(&loaded).starts_with("environment: warning: VERIFY_SSL: registries are not verified")
        );
    }

    #[test]
    fn what_is_without_effect_is_said() {
        let loaded = read(&[
            ("ENABLE_MANIFEST_CACHE", "true"),
            ("MANIFEST_CACHE_DEFAULT_TIME", "1h"),
            ("PROXY_REQUEST_BUFFERING", "true"),
            ("DEBUG", "true"),
            ("DEBUG_HUB", "false"),
            ("CA_SRL_FILE", "/ca/ca.srl"),
        ])
        .unwrap();
        assert!(loaded.config.verbose);
        let said = warnings(&loaded);
        for (name, words) in [
            ("ENABLE_MANIFEST_CACHE", "(MANIFEST_CACHE_DEFAULT_TIME)"),
            ("PROXY_REQUEST_BUFFERING", "always streamed"),
            ("DEBUG", "port 8081"),
            ("CA_SRL_FILE", "at random"),
        ] {
            let line = said.lines().find(|line| line.contains(&format!("warning: {name}: ")));
            assert!(line.is_some_and(|line| line.contains(words)), "{name}: {said}");
        }
        assert_eq!(said.lines().count(), 4, "{said}");
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once_and_no_secret() {
        let report = read(&[
            ("REGISTRIES", "https://a.example b.example"),
            ("AUTH_REGISTRIES", "a.example:hunter2 hunter/2:a:b"),
            ("CACHE_MAX_SIZE", "much"),
            ("ALLOW_PUSH", "yes"),
            ("SEND_TIMEOUT", "1 fortnight"),
            ("CA_CRT_FILE", "/nowhere/ca.crt"),
        ])
        .unwrap_err()
        .to_string();
        for words in [
            "environment: REGISTRIES: expected names of registries",
            "environment: AUTH_REGISTRIES: entry 1: expected HOST:USER:PASSWORD",
            "environment: AUTH_REGISTRIES: entry 2: its first part is no name of a registry",
            "environment: CACHE_MAX_SIZE: expected a size",
            "environment: ALLOW_PUSH: expected true or false, found `yes`",
            "environment: SEND_TIMEOUT: expected a length of time",
            "environment: proxy.hijackHTTPS.cert: needs key beside it",
        ] {
            assert!(report.contains(words), "{words}: {report}");
        }
        assert!(!report.contains("hunter"), "{report}");
        assert_eq!(report.lines().count(), 7, "{report}");
    }

    #[test]
    fn times_are_nginxs() {
        for (text, seconds) in
            [("60s", 60), ("60", 60), ("10m", 600), ("60d", 5_184_000), ("1h30m", 5400), ("1w", 604_800)]
        {
            assert_eq!(time(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "0", "s", "1x", "-1s", "1.5h", "99999999999999999999", "9999999999999y"] {
            assert!(time(text).is_err(), "{text}");
        }
    }
}
