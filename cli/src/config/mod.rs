//! The daemon's configuration: a file with the key names of Dragonfly's `dfget.yaml`, and a few of our own beside them.
//!
//! [`load`] gives a checked [`Config`], in which nothing is optional that must be there, or a [`Report`] of everything
//! that is wrong, each with its place. A key that works in Dragonfly and changes nothing here is a warning with the
//! reason; a key that nobody knows is an error.
//!
//! - `yaml`: the text as a tree with places; `section`: how that tree is read; `value`: what single values look like.
//! - `proxy`, `accounts`, `clients`, `cluster`, `rules`, `upstream`, `download`, `rates`, `host`, `listen`, `entrances`, `log`,
//!   `tracing`, `directories`: one section each, with its defaults.
//! - `environment`: the same from the variables of docker-registry-proxy instead of a file.

mod access;
mod accounts;
mod clients;
mod cluster;
pub(crate) mod directories;
mod download;
mod entrances;
mod environment;
mod host;
mod listen;
mod log;
mod problem;
mod proxy;
mod rates;
mod rules;
mod section;
mod suggest;
mod tracing;
mod upstream;
pub(crate) mod value;
mod written;
mod yaml;

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) use access::load_access;
pub(crate) use cluster::Cluster;
pub(crate) use download::Download;
pub(crate) use entrances::{Entrance, Kind, Security};
pub(crate) use environment::Place;
pub(crate) use host::Host;
pub(crate) use listen::{Listen, Ports};
pub(crate) use log::Log;
pub(crate) use problem::Report;
pub(crate) use proxy::{Ca, Proxy, Signing, Trust};
pub(crate) use tracing::Tracing;
pub(crate) use upstream::{Through, Upstream, UpstreamHost, Way};
pub(crate) use written::{Written, general};

use darter_p2p::{Rates, StoreConfig, Uploads};

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

/// How much content is kept for how long: Dragonfly's numbers, to which its users' disks are sized.
const QUOTA: u64 = 50 << 30;
const QUOTA_PERCENT: u8 = 80;
const EXPIRE: Duration = Duration::from_secs(6 * 3600);

/// A mesh wants few; see [`Uploads::PLACES`].
const MAX_UPLOAD_SLOTS: u32 = 1024;

/// Looking through the catalog costs milliseconds, and what is to go may wait a minute.
const GC_INTERVAL: Duration = Duration::from_secs(60);

/// Looking at a few files costs microseconds, and a change of rules may wait some seconds.
const RELOAD_INTERVAL: Duration = Duration::from_secs(10);

/// A daemon's whole configuration, checked.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Log at debug level.
    pub(crate) verbose: bool,
    pub(crate) log: Log,
    pub(crate) tracing: Tracing,
    /// Where the CA and this host's identity are kept.
    pub(crate) work_home: PathBuf,
    /// Whether this daemon is asked first for a first copy.
    pub(crate) seed: bool,
    /// How long what is under way may take to finish when the process is asked to end.
    pub(crate) drain_timeout: Duration,
    /// `host:port` of each scheduler; empty: a cluster of one.
    pub(crate) schedulers: Vec<String>,
    /// Nothing is fetched from an origin without the word of one of them.
    pub(crate) only_with_scheduler: bool,
    /// How it speaks with them, and with other daemons.
    pub(crate) cluster: Cluster,
    pub(crate) host: Host,
    pub(crate) download: Download,
    /// How fast content moves between this host, other daemons and origins.
    pub(crate) rates: Rates,
    /// Pieces that are sent to other daemons at once.
    pub(crate) upload_slots: u32,
    pub(crate) pieces: Listen,
    pub(crate) health: Listen,
    pub(crate) store: StoreConfig,
    /// How often the store is looked through for what must go.
    pub(crate) gc_interval: Duration,
    pub(crate) proxy: Proxy,
    pub(crate) upstream: Upstream,
    /// How often the files are looked at for changes; `None`: only SIGHUP has them read again.
    pub(crate) reload_interval: Option<Duration>,
}

impl Config {
    /// Keeps everything in `work_home`.
    pub(crate) fn keep_in(&mut self, work_home: PathBuf) {
        self.store.dir = directories::content(&work_home);
        self.work_home = work_home;
    }
}

/// A file that could be used, and what is to be said about it.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) config: Config,
    /// Without errors.
    pub(crate) report: Report,
    /// What stands in the file, to say what is different in the next one.
    pub(crate) written: Written,
    /// The other files and folders that were read with it.
    pub(crate) sources: Vec<PathBuf>,
}

/// Where a configuration comes from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// This file.
    File(PathBuf),
    /// docker-registry-proxy's environment variables.
    Environment(Place),
}

impl Source {
    /// Reads and checks it. Binds nothing and writes nothing.
    ///
    /// # Errors
    /// With everything that is wrong.
    pub(crate) fn load(&self) -> Result<Loaded, Report> {
        match self {
            Self::File(file) => load(file),
            Self::Environment(place) => environment::load(place, &|name| std::env::var(name).ok()),
        }
    }

    /// The file, where it is one.
    pub(crate) fn file(&self) -> Option<&Path> {
        match self {
            Self::File(file) => Some(file),
            Self::Environment(_) => None,
        }
    }
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

/// As [`load`], of a text that is called `file`.
pub(crate) fn parse(file: &Path, text: &str) -> Result<Loaded, Report> {
    let findings = Findings::of(file);
    let read = yaml::parse(text, &findings)
        .map(|root| (config(&mut Section::top(&root, &findings)), Written::of(&root)));
    let sources = findings.sources();
    let report = findings.into_report(file);
    match read {
        Some((config, written)) if report.errors.is_empty() => {
            Ok(Loaded { config, report, written, sources })
        }
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
    let work_home = top.filled("workHome", value::path).unwrap_or_else(directories::work_home);
    let data = top.filled("dataDir", value::path).unwrap_or_else(|| directories::content(&work_home));
    let mut scheduler = top.section("scheduler");
    let service = top.filled("service-name", value::text);
    let seed_of_manager = manager(&mut scheduler.section("manager"));
    let (mut download, mut upload) = (top.section("download"), top.section("upload"));
    let pieces = cluster::pieces(&mut upload, PIECE_PORT);
    Config {
        cluster: cluster::cluster(&mut top.section("security"), &pieces),
        verbose: top.value("verbose", value::boolean).unwrap_or(false),
        log: log::log(&mut top.section("log")),
        tracing: tracing::tracing(&mut top.section("tracing"), service),
        seed: top.value("seed", value::boolean).or(seed_of_manager).unwrap_or(false),
        drain_timeout: top.value("drainTimeout", value::duration).unwrap_or(DRAIN_TIMEOUT),
        only_with_scheduler: scheduler.value("disableAutoBackSource", value::boolean).unwrap_or(false),
        schedulers: schedulers(&mut scheduler),
        host: host::host(&mut top.section("host")),
        rates: rates::rates(&mut download, &mut upload),
        download: download::download(&mut download),
        upload_slots: upload.value("slots", upload_slots).unwrap_or(Uploads::PLACES),
        pieces,
        health: health(&mut top.section("health")),
        store: store(&mut top.section("storage"), data),
        gc_interval: top.value("gcInterval", value::some_time).unwrap_or(GC_INTERVAL),
        work_home,
        proxy: proxy::proxy(&mut top.section("proxy"), PROXY_PORT),
        upstream: upstream::upstream(&mut top.section("upstream")),
        reload_interval: reload_interval(&mut top.section("reload")),
    }
}

/// Zero, as in Dragonfly: only a signal.
fn reload_interval(section: &mut Section<'_>) -> Option<Duration> {
    let interval = section.value("interval", value::duration).unwrap_or(RELOAD_INTERVAL);
    (!interval.is_zero()).then_some(interval)
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
    top.unused("logDir", value::text, stderr);
    for key in ["logMaxSize", "logMaxAge", "logMaxBackups"] {
        top.unused(key, value::count, stderr);
    }
    top.unused("cacheDir", value::text, "there is no second cache folder; dataDir holds all content");
    top.unused("pluginDir", value::text, "there are no plug-ins");
    for key in ["dataDirMode", "workHomeMode", "cacheDirMode"] {
        top.unused(key, value::text, "folders are made for this user alone");
    }
    top.always("pprof-port", -1.0, value::number, "there is no profiler port");
    top.unused("jaeger", value::text, "traces are sent by OTLP, which Jaeger takes too: see tracing");
    top.unused("metrics", value::text, "metrics are served on the health port, at /metrics");
    top.section("announcer").unused(
        "schedulerInterval",
        value::duration,
        "a daemon is known by its open connection",
    );
    top.section("network").unused(
        "enableIPv6",
        value::boolean,
        "IPv6 is used where `listen` names an IPv6 address",
    );
    object_storage(&mut top.section("objectStorage"));
}

fn object_storage(section: &mut Section<'_>) {
    let reason = "the object gateway is not in this version";
    section.always("enable", false, value::boolean, reason);
    section.unused("filter", value::text, reason);
    section.unused("maxReplicas", value::count, reason);
    listen::unused(section, reason);
}

/// Whether the manager would have been told that this is a seed.
fn manager(section: &mut Section<'_>) -> Option<bool> {
    let reason = "there is no manager in this version; list the schedulers in scheduler.netAddrs";
    section.always("enable", false, value::boolean, reason);
    for mut item in section.sections("netAddrs") {
        net_addr(&mut item, "a manager");
        item.no_effect("addr", reason);
    }
    section.unused("refreshInterval", value::duration, reason);
    let mut seed = section.section("seedPeer");
    seed.unused("type", value::text, "all seeds are equal");
    seed.unused("clusterID", value::count, reason);
    seed.section("keepAlive").unused("interval", value::duration, reason);
    seed.value("enable", value::boolean)
}

fn schedulers(section: &mut Section<'_>) -> Vec<String> {
    section.unused(
        "scheduleTimeout",
        value::duration,
        "a scheduler that does not answer at once delays nothing",
    );
    section.sections("netAddrs").iter_mut().filter_map(scheduler).collect()
}

/// `HOST:PORT`, or with `type: srv` the name of a service, whose targets are the schedulers.
fn scheduler(item: &mut Section<'_>) -> Option<String> {
    let kind = item.value("type", |text| match text {
        "tcp" => Ok(false),
        "srv" => Ok(true),
        _ => Err(format!("expected tcp or srv, found `{text}`")),
    });
    if kind != Some(true) {
        return host_port(item, "a scheduler");
    }
    let service = item.filled("addr", |text| {
        let fits = text.starts_with('_') && text.contains("._tcp.") && !text.contains(':');
        if fits {
            Ok(text.to_owned())
        } else {
            Err(format!("expected the name of a service like _darter._tcp.example.org, found `{text}`"))
        }
    });
    if !item.has("addr") {
        item.error("addr", "needed: the name of a service like _darter._tcp.example.org".to_owned());
    }
    service
}

/// `type` and `addr`: `host:port` of something that is dialled.
fn net_addr(item: &mut Section<'_>, of: &str) -> Option<String> {
    item.value("type", |text| match text {
        "tcp" => Ok(()),
        _ => Err(format!("expected tcp, found `{text}`")),
    });
    host_port(item, of)
}

fn host_port(item: &mut Section<'_>, of: &str) -> Option<String> {
    let addr = item.filled("addr", value::host_port);
    if !item.has("addr") {
        item.error("addr", format!("needed: HOST:PORT of {of}"));
    }
    addr.map(|(host, port)| format!("{host}:{port}"))
}

/// Each may hold some 100 KiB of buffers and a file open.
fn upload_slots(text: &str) -> value::Read<u32> {
    let slots = text.parse().ok().filter(|slots| (1..=MAX_UPLOAD_SLOTS).contains(slots));
    slots.ok_or_else(|| format!("expected a whole number from 1 to {MAX_UPLOAD_SLOTS}, found `{text}`"))
}

fn health(section: &mut Section<'_>) -> Listen {
    listen::no_tls(section, "the health server speaks plain HTTP");
    section.always("path", "/healthy".to_owned(), value::text, "the path is /healthy");
    listen::tcp_listen(section, HEALTH_PORT)
}

fn store(section: &mut Section<'_>, dir: PathBuf) -> StoreConfig {
    section.unused("strategy", value::text, "there is one way of storing, and it needs no choice");
    section.always("multiplex", true, value::boolean, "one copy always serves every reader of a task");
    section.unused("dataPath", value::text, "dataDir names the folder of the content");
    StoreConfig {
        dir,
        quota: section.value("diskGCThreshold", value::size).unwrap_or(QUOTA),
        quota_percent: section.value("diskGCThresholdPercent", whole_percent).unwrap_or(QUOTA_PERCENT),
        expire: section.value("taskExpireTime", value::some_time).unwrap_or(EXPIRE),
    }
}

/// A percentage of which 0 means "no such limit", as in Dragonfly; at least 1 otherwise.
fn whole_percent(text: &str) -> value::Read<u8> {
    let percent = value::percent(text)?;
    Ok(if percent == 0.0 { 100 } else { percent.ceil() as u8 })
}

#[cfg(test)]
mod tests;
