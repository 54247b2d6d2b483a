//! The configuration as a whole.

use darter_certs::{PermittedNames, Verification};
use darter_p2p::Rate;
use proptest::prelude::*;
use std::collections::BTreeSet;

use super::yaml::{Data, Node};
use super::*;

/// Reads `source` with `reader` as if it were a whole file: its result, and the report's lines.
pub(super) fn top<T>(source: &str, reader: impl FnOnce(&mut Section<'_>) -> T) -> (T, String) {
    let findings = Findings::of(Path::new("f"));
    let root = yaml::parse(source, &findings).expect("the source is YAML");
    let result = reader(&mut Section::top(&root, &findings));
    (result, findings.into_report(Path::new("f")).to_string())
}

fn ok(source: &str) -> Config {
    let loaded = parse(Path::new("f"), source).map_err(|report| report.to_string()).unwrap();
    assert_eq!(loaded.report.to_string(), "");
    loaded.config
}

fn errors(source: &str) -> Vec<String> {
    parse(Path::new("f"), source).unwrap_err().error_lines().collect()
}

fn example() -> (PathBuf, String) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config.example.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    (file, text)
}

/// The example with its commented-out keys taken in: the part with effect, and the part without. Prose begins with
/// exactly one blank after the `#`.
fn example_in_full() -> (String, String) {
    let (_, text) = example();
    let lines = text.lines().map(|line| {
        let Some((indent, rest)) = line.split_once('#').filter(|(indent, _)| indent.trim().is_empty()) else {
            return line.to_owned();
        };
        let is_prose = rest.is_empty() || (rest.starts_with(' ') && !rest.starts_with("  "));
        if is_prose { String::new() } else { format!("{indent}{rest}") }
    });
    let full: Vec<String> = lines.collect();
    let heading = text.lines().position(|line| line == "# ---- Without effect ----").unwrap();
    (full[..heading].join("\n"), full[heading..].join("\n"))
}

#[test]
fn the_example_loads_without_a_word() {
    let (file, _) = example();
    let loaded = load(&file).map_err(|report| report.to_string()).unwrap();
    assert_eq!(loaded.report.to_string(), "");
}

#[test]
fn the_examples_defaults_are_the_programs() {
    let (_, text) = example();
    assert_eq!(format!("{:#?}", ok(&text)), format!("{:#?}", defaults()));
}

#[test]
fn the_examples_commented_keys_are_known_and_stand_where_they_belong() {
    let (with_effect, without_effect) = example_in_full();
    // The one file that it names and that is no certificate.
    let dir = tempfile::tempdir().unwrap();
    let login = dir.path().join("login");
    std::fs::write(&login, "name:password").unwrap();
    let config = ok(&with_effect.replace("/etc/darter/registry-account", login.to_str().unwrap()));
    assert_eq!(config.proxy.accounts.len(), 1);
    assert_eq!(config.schedulers, ["scheduler.example.org:8002", "_darter._tcp.example.org"]);
    assert_eq!(config.proxy.trust.hosts.len(), 2);
    let loaded = parse(Path::new("f"), &without_effect).map_err(|report| report.to_string()).unwrap();
    assert!(loaded.report.warnings.len() > 30, "{}", loaded.report);
    let unlike = |config: &Config| format!("{:#?}", config.proxy.rules);
    assert_eq!(unlike(&loaded.config), unlike(&defaults()));
}

#[test]
fn the_example_names_every_key_there_is() {
    let (with_effect, without_effect) = example_in_full();
    let mut missing = BTreeSet::new();
    let mut named = BTreeSet::new();
    for text in [&with_effect, &without_effect] {
        let findings = Findings::default();
        let root = yaml::parse(text, &findings).unwrap();
        keys(&root, "", &mut named);
        let mut top = Section::top(&root, &findings);
        config(&mut top);
        drop(top);
        missing.extend(findings.asked());
    }
    missing.retain(|key| !named.contains(key));
    assert_eq!(missing, BTreeSet::new());
}

/// All paths of a tree, list items as `[]`.
fn keys(node: &Node, path: &str, found: &mut BTreeSet<String>) {
    match &node.data {
        Data::Scalar { .. } => {}
        Data::List(items) => items.iter().for_each(|item| keys(item, &format!("{path}[]"), found)),
        Data::Map(entries) => {
            for entry in entries {
                let path = if path.is_empty() { entry.key.clone() } else { format!("{path}.{}", entry.key) };
                keys(&entry.value, &path, found);
                found.insert(path);
            }
        }
    }
}

/// Every key of Dragonfly's dfget.yaml of v2.0.8, with its shipped value where there is one.
const DRAGONFLY: &str = r#"
aliveTime: 0s
gcInterval: 1m0s
workHome: ''
logDir: ''
cacheDir: ''
pluginDir: ''
dataDir: ''
keepStorage: true
console: false
verbose: false
pprof-port: -1
jaeger: ""
scheduler:
  manager:
    enable: false
    netAddrs:
      - type: tcp
        addr: 192.0.2.7:65003
    refreshInterval: 10s
    seedPeer:
      enable: false
      type: super
      clusterID: 1
      keepAlive:
        interval: 5s
  scheduleTimeout: 30s
  disableAutoBackSource: false
  netAddrs:
    - type: tcp
      addr: 192.0.2.8:8002
host:
  advertiseIP: 0.0.0.0
  location: ''
  idc: ''
  hostname: ''
  securityDomain: ''
  netTopology: ''
download:
  concurrent:
    thresholdSize: 10M
    thresholdSpeed: 2M
    goroutineCount: 4
    initBackoff: 0.5
    maxBackoff: 3
    maxAttempts: 3
  calculateDigest: true
  totalRateLimit: 1024Mi
  perPeerRateLimit: 512Mi
  trafficShaperType: sampling
  pieceDownloadTimeout: 30s
  prefetch: false
  transportOption:
    dialTimeout: 2s
    keepAlive: 30s
    maxIdleConns: 100
    idleConnTimeout: 90s
    responseHeaderTimeout: 2s
    tlsHandshakeTimeout: 1s
    expectContinueTimeout: 2s
  downloadGRPC:
    security: {insecure: true, cacert: '', cert: '', key: '', tlsVerify: true, tlsConfig: null}
    unixListen:
      socket: /tmp/dfdaemon.sock
  peerGRPC:
    security: {insecure: true, cacert: '', cert: '', key: '', tlsVerify: true, tlsConfig: null}
    tcpListen:
      port: 65000
upload:
  rateLimit: 1024Mi
  security: {insecure: true, cacert: '', cert: '', key: '', tlsVerify: false, tlsConfig: null}
  tcpListen:
    port: 65002
objectStorage:
  enable: false
  filter: 'Expires&Signature&ns'
  maxReplicas: 3
  security: {insecure: true, cacert: '', cert: '', key: '', tlsVerify: true}
  tcpListen:
    port: 65004
storage:
  taskExpireTime: 6h
  strategy: io.d7y.storage.v2.simple
  diskGCThreshold: 50Gi
  diskGCThresholdPercent: 80
  multiplex: true
health:
  security: {insecure: true, cacert: '', cert: '', key: '', tlsVerify: false, tlsConfig: null}
  tcpListen:
    port: 40901
proxy:
  defaultFilter: 'Expires&Signature&ns'
  defaultTag: ''
  security: {insecure: true, cacert: '', cert: '', key: '', tlsVerify: false, tlsConfig: null}
  tcpListen:
    listen: 127.0.0.1
    port: {start: 65001, end: 65010}
    namespace: /run/dragonfly/net
  basicAuth:
    username: admin
    password: password
  registryMirror:
    dynamic: true
    url: https://index.docker.io
    insecure: true
    certs: []
    direct: false
    useProxies: true
  proxies:
    - regx: blobs/sha256.*
    - regx: some-registry/
      useHTTPS: true
    - regx: no-proxy-reg
      direct: true
    - regx: some-registry
      redirect: another-registry
    - regx: '^http://some-registry/(.*)'
      redirect: http://another-registry/$1
  hijackHTTPS:
    cert: ''
    key: ''
    hosts:
      - regx: mirror.example.com:443
        insecure: true
        certs: []
    sni:
      - port: 443
  maxConcurrency: 8
  maxIdleHTTP2: 9
  whiteList:
    - host: ""
      regx: ".*"
      ports: ["80", 443]
  dumpHTTPContent: false
"#;

#[test]
fn a_file_of_dragonfly_loads_and_what_changes_nothing_is_named() {
    let loaded = parse(Path::new("f"), DRAGONFLY).map_err(|report| report.to_string()).unwrap();
    let warned: Vec<&str> = loaded.report.warnings.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(
        warned,
        [
            "console",
            "scheduler.manager.netAddrs[0].addr",
            "scheduler.manager.refreshInterval",
            "scheduler.manager.seedPeer.type",
            "scheduler.manager.seedPeer.clusterID",
            "scheduler.manager.seedPeer.keepAlive.interval",
            "scheduler.scheduleTimeout",
            "download.concurrent.thresholdSize",
            "download.concurrent.thresholdSpeed",
            "download.concurrent.goroutineCount",
            "download.trafficShaperType",
            "download.transportOption.expectContinueTimeout",
            "download.peerGRPC.tcpListen.port",
            "objectStorage.filter",
            "objectStorage.maxReplicas",
            "objectStorage.tcpListen.port",
            "storage.strategy",
            "proxy.basicAuth",
        ]
    );
    let (surprising, without_effect) = loaded.report.warnings.split_last().unwrap();
    assert!(without_effect.iter().all(|problem| problem.text.starts_with("has no effect: ")));
    assert!(
        surprising.text.starts_with("clients of proxy.hijackHTTPS.sni[0] know of no proxy"),
        "{surprising:?}"
    );
    let config = loaded.config;
    assert_eq!(config.schedulers, ["192.0.2.8:8002"]);
    assert_eq!(config.download.socket.as_deref(), Some(Path::new("/tmp/dfdaemon.sock")));
    assert_eq!(config.proxy.port.listen.ports, Ports { first: 65001, last: 65010 });
    assert_eq!(config.proxy.port.listen.namespace.as_deref(), Some(Path::new("/run/dragonfly/net")));
    let sni = &config.proxy.listeners[0];
    assert!(matches!(sni.kind, Kind::Sni { port: None }) && sni.listen.ports == Ports::one(443), "{sni:?}");
    assert_eq!(config.proxy.max_concurrency.unwrap().get(), 8);
    assert_eq!(config.proxy.limits.idle_http2.get(), 9);
    assert!(matches!(config.proxy.trust.hosts[0], Some(Verification::Insecure)));
    assert!(matches!(config.proxy.trust.mirror, Some(Verification::Insecure)));
    assert_eq!(config.store.quota, 50 << 30);
    let rate = |mib: u64| Rate::new(mib << 20);
    let rates = Rates { total: rate(1024), task: rate(512), upload: rate(1024), ..Rates::default() };
    assert_eq!(config.rates, rates);
    assert_eq!(config.download.timeouts.dial, Duration::from_secs(2));
}

#[test]
fn everything_that_is_wrong_is_reported_at_once() {
    assert_eq!(
        errors(
            "verbos: true\n\
             storage:\n  diskGCThreshold: 50Gx\n  taskExpireTime: 6\n\
             proxy:\n  tcpListen: {port: 70000}\n  proxies:\n  - regx: a\n  - regex: b\n  - regx: '('\n    redirect: $2\n  \
             hijackHTTPS:\n    cert: /ca.crt\n    hosts:\n    - regx: .*\n      certs: [/does/not/exist.crt]\n"
        ),
        [
            "f:1:1: verbos: unknown key; did you mean `verbose`?",
            "f:3:20: storage.diskGCThreshold: expected a size such as 50Gi, 200M or plain bytes, found `50Gx`",
            "f:4:19: storage.taskExpireTime: expected a length of time such as 30s, 6h or 1m0s, found `6`",
            "f:6:21: proxy.tcpListen.port: expected a port from 0 to 65535, found `70000`",
            "f:9:5: proxy.proxies[1].regx: needed: a regular expression",
            "f:9:5: proxy.proxies[1].regex: unknown key; did you mean `regx`?",
            "f:10:11: proxy.proxies[2].regx: not a regular expression: unclosed group",
            "f:13:11: proxy.hijackHTTPS.cert: needs key beside it: a CA is a certificate and its private key",
            "f:16:15: proxy.hijackHTTPS.hosts[0].certs[0]: /does/not/exist.crt: cannot read it: No such file or directory (os error 2)",
        ]
    );
}

#[test]
fn rules_that_cannot_work_are_refused() {
    for (source, problem) in [
        ("proxies: [{regx: 'a(b)', redirect: 'https://x/$2'}]", "proxies[0].redirect: it refers to $2"),
        ("proxies: [{regx: a, redirect: 'ftp://x'}]", "proxies[0].redirect: expected a host"),
        (
            "whiteList: [{host: 'a:80'}]",
            "whiteList[0].host: expected a host name, an IP address, or a network",
        ),
        ("whiteList: [{ports: [0]}]", "whiteList[0].ports[0]: expected a port from 1 to 65535, found `0`"),
        ("registryMirror: {url: 'ftp://x'}", "registryMirror.url: expected the address of a registry"),
        (
            "registryMirror: {url: 'https://u:p@x'}",
            "registryMirror.url: a registry's address holds no user name",
        ),
        ("registryMirror: {url: 'https://x/?a=b'}", "registryMirror.url: a registry's address has no query"),
        ("basicAuth: {username: a}", "basicAuth.password: a username without a password protects nothing"),
        ("basicAuth: {password: a}", "basicAuth.username: a password without a username can never be given"),
        ("basicAuth: {username: 'a:b', password: c}", "basicAuth.username: a username cannot hold a colon"),
        ("security: {insecure: false, cert: /a.crt}", "security.cert: needs key beside it"),
        ("security: {insecure: false, key: /a.key}", "security.key: needs cert beside it"),
        (
            "security: {insecure: false, cert: /a.crt, key: /a.key}",
            "security.cert: cannot read it: No such file or directory",
        ),
        (
            "security: {insecure: false, tlsVerify: true, cacert: /ca.crt}",
            "security.cert: needed where clients must show certificates",
        ),
        ("security: {insecure: false, tlsVerify: true}", "security.tlsVerify: needs cacert beside it"),
        ("security: {insecure: false, names: ['a b']}", "security.names[0]: expected a host name"),
        ("security: {tlsVerify: true, cacert: /ca.crt}", "security.tlsVerify: needs `insecure: false`"),
        ("security: {insecure: true, tlsVerify: true}", "security.tlsVerify: needs `insecure: false`"),
        ("whiteList: [{host: 10.0.0.0/8}, {}]", "whiteList[1]: it allows every host; say `regx: .*`"),
        ("whiteList: [~]", "whiteList[0]: it allows every host; say `regx: .*`"),
        ("whiteList: [{host: '', ports: []}]", "whiteList[0]: it allows every host; say `regx: .*`"),
        ("listeners: [{listen: 127.0.0.1}]", "listeners[0].port: needed: a port, or a range"),
        (
            "listeners: [{port: 1, transparent: true, security: {insecure: false}}]",
            "listeners[0].security: a transparent listener has no TLS of its own",
        ),
        ("proxyProtocol: {from: [10.0.0.0/33]}", "proxyProtocol.from[0]: expected a network"),
        (
            "hijackHTTPS: {sni: [{upstreamPort: 0}]}",
            "hijackHTTPS.sni[0].upstreamPort: expected a port from 1",
        ),
    ] {
        let found = errors(&format!("proxy: {{{source}}}"));
        assert_eq!(found.len(), 1, "{source}: {found:?}");
        assert!(found[0].contains(&format!("proxy.{problem}")), "{source}: {found:?}");
    }
}

#[test]
fn every_file_that_is_wrong_is_named() {
    let found = errors("proxy: {registryMirror: {certs: [/x1, /x2]}}");
    assert_eq!(found.len(), 2, "{found:?}");
    for (found, expected) in found.iter().zip(["certs[0]: /x1: cannot", "certs[1]: /x2: cannot"]) {
        assert!(found.contains(expected), "{found}");
    }
}

/// A certificate, signed by itself, as PEM.
fn certificate(change: impl FnOnce(&mut rcgen::CertificateParams)) -> String {
    let mut params = rcgen::CertificateParams::new(["server.example".to_owned()]).unwrap();
    change(&mut params);
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
}

#[test]
fn what_is_published_is_a_ca() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("new.pem");
    let source = format!("proxy: {{hijackHTTPS: {{publish: [{}]}}}}", file.display());
    for (text, problem) in [
        ("", "it holds no certificate"),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "certificate 1 in it is not a usable X.509",
        ),
        (&certificate(|_| {}), "its certificate is not a CA certificate"),
    ] {
        std::fs::write(&file, text).unwrap();
        let found = errors(&source);
        assert!(found.len() == 1 && found[0].contains(problem), "{found:?}");
    }
    let ended = certificate(|it| {
        it.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        it.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    std::fs::write(&file, ended).unwrap();
    let loaded = parse(Path::new("f"), &source).map_err(|report| report.to_string()).unwrap();
    let report = loaded.report.to_string();
    assert!(
        report.contains("warning: proxy.hijackHTTPS.publish[0]: ") && report.contains("ended on 20"),
        "{report}"
    );
}

#[test]
fn names_are_for_our_own_ca_alone() {
    let dir = tempfile::tempdir().unwrap();
    darter_certs::CaFolder::at(dir.path()).load_or_generate(&PermittedNames::default()).unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let pair = format!("insecure: false, cert: {}, key: {}", path("ca.crt"), path("ca.key"));
    for security in ["insecure: true", &pair] {
        let source = format!("proxy: {{security: {{{security}, names: [a.example]}}}}");
        let loaded = parse(Path::new("f"), &source).map_err(|report| report.to_string()).unwrap();
        let report = loaded.report.to_string();
        assert!(report.contains("warning: proxy.security.names: has no effect: "), "{security}: {report}");
    }
}

#[test]
fn what_is_wrong_with_an_empty_item_is_said_where_it_stands() {
    let source = "proxy:\n  accounts:\n  - {}\n  proxies:\n  -\n  - {}\n";
    let places: Vec<String> =
        errors(source).iter().filter_map(|it| Some(it.split_once(": ")?.0.to_owned())).collect();
    assert!(
        places.len() >= 3
            && places
                .iter()
                .all(|at| at.starts_with("f:3:5") || at.starts_with("f:5:") || at.starts_with("f:6:5")),
        "{places:?}"
    );
}

#[test]
fn a_secret_never_shows() {
    let source = "proxy: {basicAuth: {username: u, password: hunter2}}";
    assert!(!format!("{:?}", ok(source)).contains("hunter2"));
    let report = errors(
        "proxy: {basicAuth: {username: u, password: [hunter2]}, registryMirror: {url: 'https://u:hunter2@x'}}",
    );
    assert!(!report.join("\n").contains("hunter2"), "{report:?}");
}

#[test]
fn schedulers_are_hosts_with_ports_or_services() {
    assert_eq!(
        ok("scheduler: {netAddrs: [{addr: 'a:1'}, {type: tcp, addr: '[::1]:2'}, {type: srv, addr: _d._tcp.a}]}")
            .schedulers,
        ["a:1", "[::1]:2", "_d._tcp.a"]
    );
    assert_eq!(
        errors("scheduler: {netAddrs: [{type: srv, addr: 'a:1'}, {type: srv}]}"),
        [
            "f:1:42: scheduler.netAddrs[0].addr: expected the name of a service like _darter._tcp.example.org, found `a:1`",
            "f:1:51: scheduler.netAddrs[1].addr: needed: the name of a service like _darter._tcp.example.org",
        ]
    );
    assert_eq!(
        errors("scheduler: {netAddrs: [{addr: a}, {type: udp, addr: 'a:1'}, {type: tcp}]}"),
        [
            "f:1:31: scheduler.netAddrs[0].addr: expected HOST:PORT, found `a`",
            "f:1:42: scheduler.netAddrs[1].type: expected tcp or srv, found `udp`",
            "f:1:62: scheduler.netAddrs[2].addr: needed: HOST:PORT of a scheduler",
        ]
    );
}

#[test]
fn a_seed_is_one_by_either_key() {
    assert!(ok("seed: true").seed);
    assert!(ok("scheduler: {manager: {seedPeer: {enable: true}}}").seed);
    assert!(!ok("seed: false\nscheduler: {manager: {seedPeer: {enable: true}}}").seed);
}

#[test]
fn a_percentage_of_0_is_no_limit() {
    assert_eq!(ok("storage: {diskGCThresholdPercent: 0}").store.quota_percent, 100);
    assert_eq!(ok("storage: {diskGCThresholdPercent: 0.6}").store.quota_percent, 1);
    assert_eq!(ok("storage: {diskGCThresholdPercent: 80%}").store.quota_percent, 80);
}

#[test]
fn an_origin_is_tried_at_least_once() {
    assert_eq!(
        ok("download: {concurrent: {maxAttempts: 1, initBackoff: 0.25}}").download.backoff.attempts,
        1
    );
    let found = errors("download: {concurrent: {maxAttempts: 0}}");
    assert_eq!(found, ["f:1:38: download.concurrent.maxAttempts: expected a whole number from 1, found `0`"]);
}

#[test]
fn paths_are_meant_from_the_working_directory() {
    let here = std::env::current_dir().unwrap();
    let config = ok("workHome: work\ndataDir: ''");
    assert_eq!(config.work_home, here.join("work"));
    assert_eq!(config.store.dir, here.join("work/data"));
    assert_eq!(ok("workHome: /w\ndataDir: /d").store.dir, Path::new("/d"));
}

#[test]
fn what_is_kept_elsewhere_is_kept_there_whole() {
    let mut config = defaults();
    config.keep_in("/w".into());
    assert_eq!(
        (config.work_home.as_path(), config.store.dir.as_path()),
        (Path::new("/w"), Path::new("/w/data"))
    );
}

#[test]
fn a_file_that_cannot_be_read_is_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let problem = |name: &str, content: Option<&[u8]>| {
        let file = dir.path().join(name);
        if let Some(content) = content {
            std::fs::write(&file, content).unwrap();
        }
        let report = load(&file).unwrap_err().to_string();
        report.strip_prefix(&format!("{}: ", file.display())).expect(&report).to_owned()
    };
    assert_eq!(
        problem("none", None),
        "cannot read the configuration: No such file or directory (os error 2)"
    );
    assert_eq!(problem(".", None), "cannot read the configuration: Is a directory (os error 21)");
    assert_eq!(
        problem("latin1", Some(b"# a\nhost: {idc: \xe4}\n")),
        "the configuration is not UTF-8 text: line 2 holds other bytes"
    );
    let long = vec![b'#'; MAX_FILE_BYTES as usize + 1];
    assert_eq!(problem("long", Some(&long)), "the configuration is longer than 1 MiB");
}

#[test]
fn a_list_or_a_word_is_no_configuration() {
    assert_eq!(errors("- a\n"), ["f:1:1: expected a mapping (key: value), found a list"]);
    assert_eq!(errors("hello"), ["f:1:1: expected a mapping (key: value), found a single value"]);
}

/// A file with one mistake of any kind somewhere: a stretch of it replaced by something else.
fn damaged() -> impl Strategy<Value = String> {
    let text: Vec<char> = DRAGONFLY.chars().collect();
    let length = text.len();
    (0..length, 0..40_usize, "[-a-z0-9:{}\\[\\],&*!|>'\"#%@`\\\\?<~ \t\n\u{0}\u{85}\u{feff}é]{0,20}")
        .prop_map(move |(at, cut, put)| {
            let end = (at + cut).min(length);
            text[..at].iter().copied().chain(put.chars()).chain(text[end..].iter().copied()).collect()
        })
}

proptest! {
    #[test]
    fn no_file_panics(text in any::<String>()) {
        let _ = parse(Path::new("f"), &text);
    }

    #[test]
    fn no_damage_to_a_file_panics_and_every_problem_has_a_place(text in damaged()) {
        if let Err(report) = parse(Path::new("f"), &text) {
            prop_assert!(!report.errors.is_empty());
            prop_assert!(report.errors.iter().all(|problem| problem.at.is_some()), "{}", report);
            prop_assert!(report.error_lines().all(|line| !line.contains('\n')), "{}", report);
        }
    }
}
