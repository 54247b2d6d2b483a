//! The daemon's configuration: a file with the key names of Dragonfly's `dfget.yaml`, and a few of our own beside them.
//!
//! [`load`] gives a checked [`Config`], in which nothing is optional that must be there, or a [`Report`] of everything
//! that is wrong, each with its place. A key that works in Dragonfly and changes nothing here is a warning with the
//! reason; a key that nobody knows is an error.
//!
//! - `yaml`: the text as a tree with places; `section`: how that tree is read; `value`: what single values look like.
//! - `proxy`, `download`, `host`, `listen`, `directories`: one section each, with its defaults.

mod directories;
mod download;
mod host;
mod listen;
mod problem;
mod proxy;
mod section;
mod suggest;
mod value;
mod yaml;

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

pub(crate) use directories::Directories;
pub(crate) use download::Origins;
pub(crate) use host::Host;
pub(crate) use listen::{Listen, Ports};
pub(crate) use problem::Report;
pub(crate) use proxy::Proxy;

use problem::Findings;
use section::Section;

/// The longest file that is read, in bytes: 10,000 rules of 100 bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Where the proxy, the piece server and the health server listen when nothing is configured: Dragonfly's numbers.
pub(crate) const PROXY_PORT: u16 = 65001;
pub(crate) const PIECE_PORT: u16 = 65002;
pub(crate) const HEALTH_PORT: u16 = 40901;

/// How long what is under way may take to finish when the process is asked to end. Kubernetes kills after 30 s.
pub(crate) const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// A daemon's whole configuration, checked.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Log at debug level.
    pub(crate) verbose: bool,
    pub(crate) directories: Directories,
    /// Whether this daemon is asked first for a first copy.
    pub(crate) seed: bool,
    /// How long what is under way may take to finish when the process is asked to end.
    pub(crate) drain_timeout: Duration,
    /// `host:port` of each scheduler; empty: a cluster of one.
    pub(crate) schedulers: Vec<String>,
    pub(crate) host: Host,
    pub(crate) origins: Origins,
    pub(crate) pieces: Listen,
    pub(crate) health: Listen,
    pub(crate) storage: Storage,
    pub(crate) proxy: Proxy,
}

/// How much content is kept for how long.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Storage {
    pub(crate) expire: Duration,
    pub(crate) quota: u64,
    pub(crate) quota_percent: u8,
}

/// A file that could be used, and what is to be said about it.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) config: Config,
    /// Without errors.
    pub(crate) report: Report,
}

/// Reads and checks `file`, together with the certificates that it names. Binds nothing and writes nothing.
///
/// # Errors
/// With everything that is wrong.
pub(crate) fn load(file: &Path) -> Result<Loaded, Report> {
    let text = read(file).map_err(|why| Report::unreadable(file, why))?;
    parse(file, &text)
}

/// What a file without any key gives.
pub(crate) fn defaults() -> Config {
    parse(Path::new(""), "").expect("a file without keys has nothing wrong").config
}

fn parse(file: &Path, text: &str) -> Result<Loaded, Report> {
    let findings = Findings::default();
    let config = yaml::parse(text, &findings).map(|root| config(&mut Section::top(&root, &findings)));
    let report = findings.into_report(file);
    match config {
        Some(config) if report.errors.is_empty() => Ok(Loaded { config, report }),
        _ => Err(report),
    }
}

fn read(file: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    File::open(file)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("cannot read the configuration: {error}"))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err("the configuration is longer than 1 MiB".to_owned());
    }
    String::from_utf8(bytes).map_err(|error| {
        let line =
            error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        format!("the configuration is not UTF-8 text: line {line} holds other bytes")
    })
}

fn config(top: &mut Section<'_>) -> Config {
    without_effect(top);
    Config {
        verbose: top.value("verbose", value::boolean).unwrap_or(false),
        directories: Directories::new(
            top.filled("workHome", value::path),
            top.filled("dataDir", value::path),
        ),
        seed: top.value("seed", value::boolean).unwrap_or(false),
        drain_timeout: top.value("drainTimeout", value::duration).unwrap_or(DRAIN_TIMEOUT),
        schedulers: schedulers(&mut top.section("scheduler")),
        host: host::host(&mut top.section("host")),
        origins: download::download(&mut top.section("download")),
        pieces: pieces(&mut top.section("upload")),
        health: health(&mut top.section("health")),
        storage: storage(&mut top.section("storage")),
        proxy: proxy::proxy(&mut top.section("proxy"), PROXY_PORT),
    }
}

/// Keys at the top that work in Dragonfly and change nothing here.
fn without_effect(top: &mut Section<'_>) {
    top.always("aliveTime", Duration::ZERO, value::duration, "the daemon runs until it is stopped");
    top.always(
        "keepStorage",
        true,
        value::boolean,
        "content is always kept over a restart; remove dataDir to drop it",
    );
    let stderr = "the log goes to standard error, where systemd and container runtimes pick it up";
    top.always("console", true, value::boolean, stderr);
    for key in ["logDir", "logMaxSize", "logMaxAge", "logMaxBackups"] {
        top.no_effect(key, stderr);
    }
    top.unused("cacheDir", value::text, "there is no second cache folder; dataDir holds all content");
    top.unused("pluginDir", value::text, "there are no plug-ins");
    for key in ["dataDirMode", "workHomeMode", "cacheDirMode"] {
        top.no_effect(key, "folders are made for this user alone");
    }
    top.always("pprof-port", -1.0, value::number, "there is no profiler port");
    top.no_effect("jaeger", "traces are not sent anywhere in this version");
    top.no_effect("tracing", "traces are not sent anywhere in this version");
    top.no_effect("service-name", "traces are not sent anywhere in this version");
    top.no_effect("metrics", "metrics are served on the health port, at /metrics");
    top.no_effect("objectStorage", "the object gateway is not in this version");
    top.no_effect("reload", "a changed configuration is read at the next start in this version");
    top.no_effect("announcer", "a daemon is known to its scheduler by its open connection");
    top.no_effect("network", "IPv6 is used where `listen` names an IPv6 address");
    global_security(&mut top.section("security"));
}

fn global_security(section: &mut Section<'_>) {
    if section.value("autoIssueCert", value::boolean) == Some(true) {
        section.error(
            "autoIssueCert",
            "TLS between daemons and schedulers is not in this version, so only false can stand",
        );
    }
    // Dragonfly ignores the others unless autoIssueCert is true.
    for key in ["caCert", "cacert", "tlsVerify", "tlsPolicy", "certSpec"] {
        section.no_effect(key, "TLS between daemons and schedulers is not in this version");
    }
}

fn schedulers(section: &mut Section<'_>) -> Vec<String> {
    section.no_effect(
        "manager",
        "there is no manager in this version; list the schedulers in scheduler.netAddrs",
    );
    addresses(section)
}

fn addresses(section: &mut Section<'_>) -> Vec<String> {
    let mut found = Vec::new();
    for mut item in section.sections("netAddrs") {
        item.value("type", |text| match text {
            "tcp" => Ok(()),
            _ => Err(format!("expected tcp, found `{text}`")),
        });
        match item.filled("addr", value::host_port) {
            Some((host, port)) => found.push(format!("{host}:{port}")),
            None if item.has("addr") => {}
            None => item.error("addr", "needed: HOST:PORT of a scheduler"),
        }
    }
    found
}

fn pieces(section: &mut Section<'_>) -> Listen {
    section.unused("rateLimit", value::size, "limits of bandwidth are not in this version");
    listen::no_tls(section, "the piece server speaks plain HTTP");
    listen::tcp_listen(section, PIECE_PORT)
}

fn health(section: &mut Section<'_>) -> Listen {
    listen::no_tls(section, "the health server speaks plain HTTP");
    section.always("path", "/healthy".to_owned(), value::text, "the path is /healthy");
    listen::tcp_listen(section, HEALTH_PORT)
}

fn storage(section: &mut Section<'_>) -> Storage {
    section.unused("strategy", value::text, "there is one way of storing, and it needs no choice");
    section.always("multiplex", true, value::boolean, "one copy always serves every reader of a task");
    section.unused("dataPath", value::text, "dataDir names the folder of the content");
    Storage {
        // A week's images fit most nodes; Dragonfly's 6 h are for a cache that forgets at every restart.
        expire: section.value("taskExpireTime", value::some_time).unwrap_or(Duration::from_secs(6 * 3600)),
        quota: section.value("diskGCThreshold", value::size).unwrap_or(50 << 30),
        quota_percent: section.value("diskGCThresholdPercent", whole_percent).unwrap_or(80),
    }
}

/// A percentage of which 0 means "no such limit", as in Dragonfly; at least 1 otherwise.
fn whole_percent(text: &str) -> value::Read<u8> {
    let percent = value::percent(text)?;
    Ok(if percent == 0.0 { 100 } else { percent.ceil() as u8 })
}

#[cfg(test)]
mod tests;
