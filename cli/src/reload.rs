//! Reading the configuration again while the daemon runs: on SIGHUP, and when a file of it has changed.
//!
//! A configuration that has something wrong is refused whole and the old one stays; it is tried again until it is right.
//! What is taken over is swapped at once for all that comes after; connections and what is under way stay. Sockets, folders
//! and the engine are made at the start: a change of theirs is named in a warning and waits for the next start
//! ([`crate::started`]).
//!
//! Files are looked at (size, time, inode) instead of watched: that also sees what is swapped behind a symbolic link, as
//! Kubernetes does with ConfigMaps and Secrets, and what another host changes on a network file system.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::signal::unix::Signal;
use tokio::time::sleep;

use crate::config::{self, Loaded, Source, Written};
use crate::exit::Failure;
use crate::logging::Log;
use crate::node::Node;

use Idle::{Close, Stay};

/// A file that is being written is taken when it has stayed the same for so long, and in any case after a few such times.
const SETTLE: Duration = Duration::from_millis(500);
const MAX_SETTLES: usize = 10;

/// Why it is read again, in the log.
const SIGNAL: &str = "SIGHUP";

/// As many changed keys are named; of more, the number.
const MAX_NAMED: usize = 12;

/// The keys that are taken over, by the beginning of their paths, with `[]` for an item of a list. Everything else waits for
/// the next start: so a key that nobody thought of is named in a warning, and not silently left out.
const TAKEN_OVER: &[(&str, Idle)] = &[
    ("verbose", Stay),
    ("download.originRateLimit", Stay),
    ("download.perPartnerRateLimit", Stay),
    ("download.perPeerRateLimit", Stay),
    ("download.prefetchRateLimit", Stay),
    ("download.totalRateLimit", Stay),
    ("download.transportOption", Close),
    ("proxy.accounts", Stay),
    ("proxy.allowPush", Stay),
    ("proxy.basicAuth", Stay),
    ("proxy.builtinRules", Stay),
    ("proxy.clients", Stay),
    ("proxy.defaultFilter", Stay),
    ("proxy.defaultTag", Stay),
    ("proxy.forwarded", Close),
    ("proxy.hijackHTTPS.cert", Stay),
    ("proxy.hijackHTTPS.hosts", Close),
    ("proxy.hijackHTTPS.key", Stay),
    // It counts when a CA is made; one that was made for other names is named in a warning.
    ("proxy.hijackHTTPS.nameConstraints", Close),
    ("proxy.hijackHTTPS.publish", Close),
    ("proxy.hijackHTTPS.wildcard", Close),
    ("proxy.listeners[].security.caCert", Close),
    ("proxy.listeners[].security.cacert", Close),
    ("proxy.listeners[].security.cert", Close),
    ("proxy.listeners[].security.key", Close),
    ("proxy.listeners[].security.names", Close),
    ("proxy.listeners[].security.tlsVerify", Close),
    ("proxy.maxAuthentications", Stay),
    ("proxy.maxConcurrency", Stay),
    ("proxy.maxIdleHTTP2", Stay),
    ("proxy.negativeTTL", Stay),
    ("proxy.perClient", Stay),
    ("proxy.proxies", Stay),
    ("proxy.registryMirror", Close),
    ("proxy.rulesDir", Close),
    ("proxy.security.caCert", Close),
    ("proxy.security.cacert", Close),
    ("proxy.security.cert", Close),
    ("proxy.security.key", Close),
    ("proxy.security.names", Close),
    ("proxy.security.tlsVerify", Close),
    ("proxy.statusHeaders", Stay),
    ("proxy.timeouts", Close),
    ("proxy.trustedRegistries", Stay),
    ("proxy.via", Close),
    ("proxy.whiteList", Close),
    ("upload.perPartnerRateLimit", Stay),
    ("upload.rateLimit", Stay),
    ("upstream", Close),
];

/// What becomes of idle connections to origins when a key changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Idle {
    /// They know nothing of it.
    Stay,
    /// It may change where an origin is or who is believed. So may every key that is not taken over.
    Close,
}

/// Keeps a node as its file says.
pub(crate) struct Reload {
    pub(crate) source: Source,
    pub(crate) node: Node,
    pub(crate) log: Log,
    /// SIGHUP.
    pub(crate) hangups: Signal,
    /// What the node was started with.
    pub(crate) written: Written,
    pub(crate) sources: Vec<PathBuf>,
    /// How often the files are looked at; `None`: only SIGHUP counts.
    pub(crate) interval: Option<Duration>,
    pub(crate) metrics: Metrics,
    /// Why what stands in the file now is not in force; `None`: it is.
    pub(crate) refused: Option<String>,
}

impl Reload {
    /// Runs for as long as it is polled.
    pub(crate) async fn run(mut self) -> Infallible {
        let mut looked = look(self.source.file(), &self.sources);
        // Whether another file than the configuration's own has changed since a configuration was taken.
        let mut others = false;
        loop {
            let is_different = || look(self.source.file(), &self.sources) != looked;
            let because = tokio::select! {
                Some(()) = self.hangups.recv() => SIGNAL,
                // What was refused may become right by a file that it names and that nobody could read, or by itself.
                () = changed(self.interval, || self.refused.is_some() || is_different()) => {
                    "a file has changed"
                }
            };
            let before = std::mem::replace(&mut looked, self.settled().await);
            // What the file itself says is compared key by key.
            others |= differing(&before, &looked).any(|path| Some(path.as_path()) != self.source.file());
            self.reload(because, others).await;
            others &= self.refused.is_some();
        }
    }

    /// `others`: whether another file than the configuration's own has changed since the last time.
    async fn reload(&mut self, because: &str, others: bool) {
        let source = self.source.clone();
        let loaded = tokio::task::spawn_blocking(move || source.load()).await;
        let taken = match loaded {
            Ok(Ok(loaded)) => self.take(loaded, because, others).map_err(|failure| failure.to_string()),
            Ok(Err(report)) => Err(report.error_lines().collect::<Vec<_>>().join("; ")),
            Err(error) => Err(error.to_string()),
        };
        let refused = taken.err();
        // What is refused again and again in the same way is said once.
        if refused.is_none() || refused != self.refused || because == SIGNAL {
            self.metrics.loaded(refused.is_none());
            if let Some(why) = &refused {
                tracing::error!(because, "the configuration is refused, and the old one stays: {why}");
            }
        }
        self.refused = refused;
    }

    fn take(&mut self, loaded: Loaded, because: &str, others: bool) -> Result<(), Failure> {
        let Loaded { config, report, written, mut sources } = loaded;
        sources.push(self.node.ca_folder());
        let differences = self.written.differences(&written);
        let origins_stay = !others && differences.iter().all(|key| taken_over(key) == Some(Stay));
        self.node.apply(&config, origins_stay)?;
        self.log.verbose(config.verbose);
        for line in report.warning_lines() {
            tracing::warn!("{line}");
        }
        let (taken, waiting): (Vec<&str>, Vec<&str>) =
            differences.into_iter().partition(|key| taken_over(key).is_some());
        tracing::info!(because, changed = %Named(&taken), "the configuration was read again");
        if !waiting.is_empty() {
            tracing::warn!(keys = %Named(&waiting), "these changes come into force at the next start");
        }
        (self.written, self.sources) = (written, sources);
        Ok(())
    }

    /// How the files are, once they stay so.
    async fn settled(&self) -> Stamps {
        let look = || look(self.source.file(), &self.sources);
        let mut now = look();
        for _ in 0..MAX_SETTLES {
            sleep(SETTLE).await;
            let before = std::mem::replace(&mut now, look());
            if before == now {
                break;
            }
        }
        now
    }
}

/// How the files of a configuration are.
fn look(file: Option<&Path>, sources: &[PathBuf]) -> Stamps {
    let files = file.into_iter().chain(sources.iter().map(PathBuf::as_path));
    files.flat_map(Stamp::all).collect()
}

/// The files that are not as they were.
fn differing<'a>(before: &'a Stamps, now: &'a Stamps) -> impl Iterator<Item = &'a PathBuf> {
    let gone = before.keys().filter(|path| !now.contains_key(*path));
    gone.chain(now.iter().filter(|(path, stamp)| before.get(*path) != Some(*stamp)).map(|(path, _)| path))
}

/// Whether a change of `key` is taken over, and what it means for idle connections to origins.
fn taken_over(key: &str) -> Option<Idle> {
    let key = config::general(key);
    TAKEN_OVER.iter().find(|(known, _)| is_under(&key, known)).map(|(_, idle)| *idle)
}

/// Whether `key` is `known` or stands in it.
fn is_under(key: &str, known: &str) -> bool {
    key.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// Resolves when `is_different` says so; asks it at every interval.
async fn changed(every: Option<Duration>, is_different: impl Fn() -> bool) {
    let Some(every) = every else { return std::future::pending().await };
    loop {
        sleep(every).await;
        if is_different() {
            return;
        }
    }
}

// === Stamp ===

/// How each file is: what differs shows that it was written. `None`: it cannot be seen.
type Stamps = BTreeMap<PathBuf, Option<Stamp>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// Of what `path` leads to; of a folder also of what is in it.
    fn all(path: &Path) -> Vec<(PathBuf, Option<Self>)> {
        let mut stamps = vec![(path.to_owned(), Self::of(path))];
        if let Ok(entries) = std::fs::read_dir(path) {
            stamps.extend(entries.flatten().map(|entry| (entry.path(), Self::of(&entry.path()))));
        }
        stamps
    }

    fn of(path: &Path) -> Option<Self> {
        let is = std::fs::metadata(path).ok()?;
        Some(Self {
            device: is.dev(),
            inode: is.ino(),
            size: is.size(),
            modified: (is.mtime(), is.mtime_nsec()),
            changed: (is.ctime(), is.ctime_nsec()),
        })
    }
}

// === Named ===

/// Keys in a line of the log.
struct Named<'a>(&'a [&'a str]);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (named, more) = self.0.split_at(self.0.len().min(MAX_NAMED));
        f.write_str(if named.is_empty() { "nothing" } else { "" })?;
        f.write_str(&named.join(", "))?;
        if more.is_empty() { Ok(()) } else { write!(f, " and {} more", more.len()) }
    }
}

// === Metrics ===

/// What an operator graphs of it. Clones are the same metrics.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    reloads: Family<ReloadLabels, Counter>,
    last_successful: Gauge,
    last_success: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabels {
    result: ReloadResult,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum ReloadResult {
    Taken,
    Refused,
}

impl EncodeLabelValue for ReloadResult {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Taken => "taken",
            Self::Refused => "refused",
        })
    }
}

impl Metrics {
    /// Registered under `config_`, for a configuration that was just loaded.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let config = registry.sub_registry_with_prefix("config");
        config.register("reloads", "Times the configuration was read again", metrics.reloads.clone());
        let last = metrics.last_successful.clone();
        config.register("last_reload_successful", "1 when what stands in the file is in force", last);
        let (help, last) = ("When the configuration in force was read", metrics.last_success.clone());
        config.register_with_unit("last_reload_success_timestamp", help, Unit::Seconds, last);
        metrics.in_force();
        metrics
    }

    fn loaded(&self, taken: bool) {
        let result = if taken { ReloadResult::Taken } else { ReloadResult::Refused };
        self.reloads.get_or_create(&ReloadLabels { result }).inc();
        if taken {
            self.in_force();
        } else {
            self.last_successful.set(0);
        }
    }

    fn in_force(&self) {
        self.last_successful.set(1);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_success.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_under_itself_and_what_holds_it() {
        for (key, known, under) in [
            ("proxy.proxies", "proxy.proxies", true),
            ("proxy.proxies[2].regx", "proxy.proxies", true),
            ("proxy.hijackHTTPS.hosts[0].certs[1]", "proxy.hijackHTTPS.hosts", true),
            ("proxy.proxiesX", "proxy.proxies", false),
            ("proxy", "proxy.proxies", false),
        ] {
            assert_eq!(is_under(key, known), under, "{key} {known}");
        }
    }

    /// Changes of single keys, against a file without any.
    const CHANGES: &[&str] = &[
        "verbose: true",
        "seed: true",
        "workHome: /other",
        "dataDir: /other",
        "drainTimeout: 1s",
        "gcInterval: 1h",
        "reload: {interval: 1h}",
        "host: {advertiseIP: 192.0.2.7}",
        "scheduler: {netAddrs: [{type: tcp, addr: 'a:1'}]}",
        "storage: {taskExpireTime: 1h}",
        "upload: {tcpListen: {port: 7}}",
        "health: {tcpListen: {port: 7}}",
        "download: {prefetch: true}",
        "download: {totalRateLimit: 1M}",
        "download: {perPeerRateLimit: 1M}",
        "download: {perPartnerRateLimit: 1M}",
        "download: {originRateLimit: 1M}",
        "download: {prefetchRateLimit: 1M}",
        "upload: {rateLimit: 1M}",
        "upload: {perPartnerRateLimit: 1M}",
        "upload: {slots: 7}",
        "download: {pieceDownloadTimeout: 1s}",
        "download: {concurrent: {maxAttempts: 9}}",
        "download: {transportOption: {dialTimeout: 1s}}",
        "download: {transportOption: {maxIdleConns: 1}}",
        "download: {transportOption: {maxConnsPerHost: 1}}",
        "upstream: {ipv6: false}",
        "upstream: {hosts: [{regx: a, insecure: true}]}",
        "upstream: {hosts: [{regx: a, dnsServers: [192.0.2.53]}]}",
        "proxy: {defaultFilter: a}",
        "proxy: {defaultTag: a}",
        "proxy: {maxAuthentications: 7}",
        "proxy: {negativeTTL: 7s}",
        "proxy: {maxConcurrency: 7}",
        "proxy: {maxIdleHTTP2: 7}",
        "proxy: {basicAuth: {username: a, password: b}}",
        "proxy: {accounts: [{regx: a, repositories: b, credentials: FILE}]}",
        "proxy: {builtinRules: false}",
        "proxy: {proxies: [{regx: a}]}",
        "proxy: {whiteList: [{host: a}]}",
        "proxy: {registryMirror: {insecure: true}}",
        "proxy: {registryMirror: {url: 'https://a'}}",
        "proxy: {timeouts: {header: 1s}}",
        "proxy: {timeouts: {tunnelIdle: 1s}}",
        "proxy: {via: true}",
        "proxy: {statusHeaders: docker-registry-proxy}",
        "proxy: {rulesDir: RULES}",
        "proxy: {hijackHTTPS: {cert: CA, key: KEY}}",
        "proxy: {clients: [10.0.0.0/8]}",
        "proxy: {perClient: {connections: 5}}",
        "proxy: {allowPush: false}",
        "proxy: {trustedRegistries: a}",
        "proxy: {forwarded: forwarded}",
        "proxy: {hijackHTTPS: {hosts: [{regx: a}]}}",
        "proxy: {hijackHTTPS: {publish: [CA]}}",
        "proxy: {hijackHTTPS: {wildcard: true}}",
        "proxy: {hijackHTTPS: {nameConstraints: [a.example]}}",
        "proxy: {hijackHTTPS: {sni: [{port: 7}]}}",
        "proxy: {tcpListen: {port: 7}}",
        "proxy: {proxyProtocol: {from: [10.0.0.0/8]}}",
        "proxy: {security: {insecure: false}}",
    ];

    /// Changes of how TLS is spoken on a port: before and after.
    const TLS: &[[&str; 2]] = &[
        ["insecure: false", "insecure: true"],
        ["insecure: false", "insecure: false, names: [a.example]"],
        ["insecure: false", "insecure: false, cert: CA, key: KEY"],
        [
            "insecure: false, cert: CA, key: KEY",
            "insecure: false, cert: CA, key: KEY, tlsVerify: true, cacert: CA",
        ],
        [
            "insecure: false, cert: CA, key: KEY",
            "insecure: false, cert: CA, key: KEY, tlsVerify: true, caCert: CA",
        ],
    ];

    /// Configurations before and after a change, for all keys that are taken over and some that are not. Needs files in `dir`.
    fn changes(dir: &Path) -> Vec<[String; 2]> {
        let [file, rules, ca] = ["file", "rules", "ca"].map(|name| dir.join(name));
        std::fs::write(&file, "name:password").unwrap();
        std::fs::create_dir(&rules).unwrap();
        std::fs::write(rules.join("a.yaml"), "- {regx: a}\n").unwrap();
        darter_certs::CaFolder::at(&ca).load_or_generate(&darter_certs::PermittedNames::default()).unwrap();
        let files = [("FILE", file), ("RULES", rules), ("CA", ca.join("ca.crt")), ("KEY", ca.join("ca.key"))];
        let filled = |text: String| {
            files.iter().fold(text, |text, (word, path)| text.replace(word, &path.display().to_string()))
        };
        let plain = CHANGES.iter().map(|change| ["", change].map(str::to_owned));
        let tls = TLS.iter().flat_map(|sides| {
            [
                sides.map(|side| format!("proxy: {{security: {{{side}}}}}")),
                sides.map(|side| format!("proxy: {{listeners: [{{port: 7, security: {{{side}}}}}]}}")),
            ]
        });
        plain.chain(tls).map(|sides| sides.map(filled)).collect()
    }

    /// What [`Node::apply`] takes from `source` when the node was started with `base`.
    fn applied(base: &str, source: &str) -> config::Config {
        let parsed = |source| config::parse(Path::new("f"), source).unwrap().config;
        crate::started::Started::with(&parsed(base)).over(&parsed(source))
    }

    fn in_force(config: &config::Config) -> String {
        let config::Config { verbose, download, rates, upstream, proxy, .. } = config;
        format!("{verbose} {:?} {:?} {rates:?} {upstream:?} {proxy:?}", download.timeouts, download.pool)
    }

    /// What [`crate::upstream::settings`] reads of it.
    fn about_origins(config: &config::Config) -> String {
        let config::Config { download, upstream, proxy, pieces, .. } = config;
        let config::Proxy { rules, trust, .. } = proxy;
        let (list, mirror, intercept) = (&rules.destinations, &rules.mirror, &rules.intercept);
        let marked = proxy.has_transparent();
        format!(
            "{upstream:?} {:?} {:?} {trust:?} {list:?} {mirror:?} {intercept:?} {pieces:?} {marked}",
            download.timeouts, download.pool
        )
    }

    #[test]
    fn what_is_said_to_be_in_force_is_what_comes_into_force() {
        let dir = tempfile::tempdir().unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for [base, changed] in changes(dir.path()) {
            let written = |source: &str| config::parse(Path::new("f"), source).unwrap().written;
            let (before, now) = (written(&base), written(&changed));
            let keys = before.differences(&now);
            let [was, is] = [applied(&base, &base), applied(&base, &changed)];
            let said = keys.iter().any(|key| taken_over(key).is_some());
            assert_eq!(said, in_force(&was) != in_force(&is), "{changed}");
            if keys.iter().all(|key| taken_over(key) == Some(Stay)) {
                assert_eq!(about_origins(&was), about_origins(&is), "{changed}");
            }
            let rows =
                |key: &&str| TAKEN_OVER.iter().position(|(known, _)| is_under(&config::general(key), known));
            seen.extend(keys.iter().filter_map(rows));
        }
        let unseen: Vec<_> =
            (0..TAKEN_OVER.len()).filter(|row| !seen.contains(row)).map(|row| TAKEN_OVER[row]).collect();
        assert!(unseen.is_empty(), "no change is tried of {unseen:?}");
    }

    #[test]
    fn a_stamp_shows_what_is_written_replaced_or_put_into_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("a"), folder.path().join("link"));
        assert_eq!(Stamp::of(&file), None);
        std::fs::write(&file, "1").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let (first, through) = (Stamp::of(&file), Stamp::of(&link));
        assert_eq!(first, through);
        std::fs::write(folder.path().join("b"), "1").unwrap();
        std::fs::rename(folder.path().join("b"), &file).unwrap();
        assert_ne!(Stamp::of(&file), first);
        assert_ne!(Stamp::of(&link), through);
        let before = Stamp::all(folder.path());
        std::fs::write(folder.path().join("c"), "1").unwrap();
        assert_ne!(Stamp::all(folder.path()), before);
    }

    #[test]
    fn many_keys_are_counted() {
        assert_eq!(Named(&[]).to_string(), "nothing");
        assert_eq!(Named(&["a", "b"]).to_string(), "a, b");
        assert!(Named(&["k"; 20]).to_string().ends_with("k, k and 8 more"));
    }
}
