//! A configuration that changes while the daemon runs.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use darter_certs::{CaFolder, PermittedNames, Verification, client_config};
use rustix::process::Signal;

use crate::process::{darter, get, health};
use crate::serving::{Daemon, configuration, tunnel};

/// Only signals count, so that each test knows what made it read again.
const BY_SIGNAL: &str = "reload: {interval: 0s}\n";

/// Puts `more` at the end of the file, as [`configuration`] wrote it, and `from` for `to` in all of it.
fn rewrite(daemon: &Daemon, more: &str, (from, to): (&str, &str)) {
    let file = configuration(daemon.dir.path(), more);
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(&file, text.replace(from, to)).unwrap();
}

#[test]
fn a_signal_has_the_file_read_again_and_connections_stay() {
    let mut daemon = Daemon::start(BY_SIGNAL);
    let (probes, proxy) = (daemon.running.listening("health"), daemon.running.listening("proxy"));
    health(probes, "200");
    let (mut client, mut origin) = tunnel(proxy);

    let auth = "whiteList: [{host: 127.0.0.0/8}], basicAuth: {username: u, password: hunter2}";
    rewrite(&daemon, BY_SIGNAL, ("whiteList: [{host: 127.0.0.0/8}]", auth));
    daemon.running.signal(Signal::HUP);
    let line = daemon.running.line_with("the configuration was read again");
    assert!(line.contains("SIGHUP"), "{line}");
    assert!(line.contains("proxy.basicAuth.password, proxy.basicAuth.username"), "{line}");
    assert!(!line.contains("hunter2"), "{line}");

    let answer = get(proxy, "/v2/");
    assert!(answer.starts_with("HTTP/1.1 407 "), "{answer}");
    client.write_all(b"still here").unwrap();
    let mut echo = [0; 10];
    origin.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"still here");
    let metrics = get(probes, "/metrics");
    assert!(metrics.contains("darter_config_reloads_total{result=\"taken\"} 1"), "{metrics}");
}

#[test]
fn a_bad_file_is_refused_whole_and_the_old_one_stays() {
    let mut daemon = Daemon::start(BY_SIGNAL);
    let (probes, proxy) = (daemon.running.listening("health"), daemon.running.listening("proxy"));
    health(probes, "200");
    let both =
        "whiteList: [{host: 127.0.0.0/8}], basicAuth: {username: u, password: p}, maxConcurrency: lots";
    rewrite(&daemon, BY_SIGNAL, ("whiteList: [{host: 127.0.0.0/8}]", both));
    daemon.running.signal(Signal::HUP);
    let line = daemon.running.line_with("the configuration is refused, and the old one stays");
    assert!(line.contains("ERROR") && line.contains("darter.yaml:4:"), "{line}");
    assert!(line.contains("proxy.maxConcurrency"), "{line}");
    assert!(!get(proxy, "/v2/").starts_with("HTTP/1.1 407 "));
    let metrics = get(probes, "/metrics");
    assert!(metrics.contains("darter_config_reloads_total{result=\"refused\"} 1"), "{metrics}");
    assert!(metrics.contains("darter_config_last_reload_successful 0"), "{metrics}");
}

#[test]
fn what_comes_into_force_at_the_next_start_is_named() {
    let mut daemon = Daemon::start(BY_SIGNAL);
    health(daemon.running.listening("health"), "200");
    rewrite(&daemon, "reload: {interval: 0s}\nseed: true\n", ("workHome", "workHome"));
    daemon.running.signal(Signal::HUP);
    let line = daemon.running.line_with("these changes come into force at the next start");
    assert!(line.contains("WARN") && line.contains("keys=seed"), "{line}");
}

#[test]
fn a_file_that_changes_is_read_without_a_signal() {
    const OFTEN: &str = "reload: {interval: 20ms}\n";
    let mut daemon = Daemon::start(OFTEN);
    health(daemon.running.listening("health"), "200");
    rewrite(&daemon, OFTEN, ("127.0.0.0/8", "127.0.0.0/9"));
    let line = daemon.running.line_with("the configuration was read again");
    assert!(line.contains("a file has changed") && line.contains("proxy.whiteList[0].host"), "{line}");
    // Without its file it goes on as it was.
    std::fs::remove_file(daemon.dir.path().join("darter.yaml")).unwrap();
    let line = daemon.running.line_with("is refused, and the old one stays");
    assert!(line.contains("cannot read the configuration"), "{line}");
}

/// Interception of every host, in front of the white list.
const INTERCEPTED: &str = "hijackHTTPS: {hosts: [{regx: .*}]}, whiteList";

/// A daemon that intercepts every host, what it hands out as its CA, and where it serves.
fn intercepting(more: &str) -> (Daemon, String, SocketAddr) {
    let mut daemon = Daemon::start_with(more, ("whiteList", INTERCEPTED));
    let (probes, proxy) = (daemon.running.listening("health"), daemon.running.listening("proxy"));
    health(probes, "200");
    let served = ca_of(proxy);
    (daemon, served, proxy)
}

/// The certificates that it hands out.
fn ca_of(proxy: SocketAddr) -> String {
    let answer = get(proxy, "/ca.crt");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

#[test]
fn a_ca_that_interception_needs_is_made_while_it_runs() {
    let mut daemon = Daemon::start(BY_SIGNAL);
    let (probes, proxy) = (daemon.running.listening("health"), daemon.running.listening("proxy"));
    health(probes, "200");
    assert!(get(proxy, "/ca.crt").starts_with("HTTP/1.1 404 "));
    rewrite(&daemon, BY_SIGNAL, ("whiteList", INTERCEPTED));
    daemon.running.signal(Signal::HUP);
    let line = daemon.running.line_with("the CA that clients must trust");
    daemon.running.line_with("the configuration was read again");
    let served = get(proxy, "/ca.crt");
    let file = daemon.dir.path().join("work/ca/ca.crt");
    assert!(served.ends_with(&std::fs::read_to_string(file).unwrap()), "{line}: {served}");
}

#[test]
fn who_may_use_the_proxy_is_taken_over_and_explained() {
    let mut daemon = Daemon::start(BY_SIGNAL);
    let (probes, proxy) = (daemon.running.listening("health"), daemon.running.listening("proxy"));
    health(probes, "200");
    assert!(get(proxy, "/healthy").starts_with("HTTP/1.1 200 "));
    let others = "whiteList: [{host: 127.0.0.0/8}], clients: [192.0.2.0/24], perClient: {connections: 5, requestsPerSecond: 9}";
    rewrite(&daemon, BY_SIGNAL, ("whiteList: [{host: 127.0.0.0/8}]", others));
    daemon.running.signal(Signal::HUP);
    let line = daemon.running.line_with("the configuration was read again");
    let keys = "changed=proxy.clients[0], proxy.perClient.connections, proxy.perClient.requestsPerSecond";
    assert!(line.contains(keys), "{line}");
    let answer = get(proxy, "/healthy");
    assert!(answer.starts_with("HTTP/1.1 403 this proxy does not serve clients at 127.0.0.1"), "{answer}");

    let file = daemon.dir.path().join("darter.yaml");
    for (client, says) in [
        (
            "192.0.2.7",
            "client  192.0.2.7 may use the proxy: proxy.clients[0] has it; 0 connections are open of at most 5; at most 9 requests per second, 9 at once",
        ),
        ("10.0.0.7", "client  10.0.0.7 may not use the proxy: no entry of proxy.clients has it"),
    ] {
        let ended =
            darter(&["explain", "--config", file.to_str().unwrap(), "--client", client, "http://a.example/"]);
        let told = ended.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        let says = says.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(told.starts_with(&says), "{}", ended.stdout);
    }
}

#[test]
fn a_ca_that_is_exchanged_signs_at_once() {
    let (mut daemon, before, proxy) = intercepting(BY_SIGNAL);
    let ca = |step: &[&str]| {
        let work = daemon.dir.path().join("work");
        let ended = darter(&[&["ca", "rotate"], step, &["--data-dir", work.to_str().unwrap()]].concat());
        assert_eq!(ended.code, 0, "{}", ended.stderr);
    };
    ca(&[]);
    ca(&["--activate"]);
    assert_eq!(ca_of(proxy), before, "nobody has said that it is to be read again");
    daemon.running.signal(Signal::HUP);
    daemon.running.line_with("the configuration was read again");
    let after = ca_of(proxy);
    let current = std::fs::read_to_string(daemon.dir.path().join("work/ca/ca.crt")).unwrap();
    assert!(after.contains(&current) && !before.contains(&current), "{after}");
    assert_eq!(after.matches("BEGIN CERTIFICATE").count(), 2, "{after}");
}

#[test]
fn another_folder_waits_for_the_next_start() {
    let (mut daemon, before, proxy) = intercepting(BY_SIGNAL);
    let file = daemon.dir.path().join("darter.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("/work\n", "/other\n", 1)).unwrap();
    daemon.running.signal(Signal::HUP);
    let line = daemon.running.line_with("these changes come into force at the next start");
    assert!(line.contains("keys=workHome"), "{line}");
    assert_eq!(ca_of(proxy), before);
    assert!(!daemon.dir.path().join("other").exists());
}

#[test]
fn no_ca_is_made_where_one_has_been() {
    let (mut daemon, before, proxy) = intercepting(BY_SIGNAL);
    let (folder, away) = (daemon.dir.path().join("work/ca"), daemon.dir.path().join("away"));
    std::fs::rename(&folder, &away).unwrap();
    daemon.running.signal(Signal::HUP);
    let line = daemon.running.line_with("the configuration is refused, and the old one stays");
    assert!(line.contains("ca/ca.crt: cannot read it"), "{line}");
    assert_eq!(ca_of(proxy), before);
    assert!(!folder.exists());
    std::fs::rename(&away, &folder).unwrap();
    daemon.running.signal(Signal::HUP);
    daemon.running.line_with("the configuration was read again");
    assert_eq!(ca_of(proxy), before);
}

#[test]
fn a_file_that_was_missing_is_looked_for_again() {
    const OFTEN: &str = "reload: {interval: 20ms}\n";
    let (mut daemon, _, proxy) = intercepting(OFTEN);
    let folder = daemon.dir.path().join("others");
    CaFolder::at(&folder).load_or_generate(&PermittedNames::default()).unwrap();
    let (there, wanted) = (folder.join("ca.crt"), daemon.dir.path().join("new.pem"));
    let publish =
        format!("hijackHTTPS: {{hosts: [{{regx: .*}}], publish: [{}]}}, whiteList", wanted.display());
    rewrite(&daemon, OFTEN, ("whiteList", &publish));
    let line = daemon.running.line_with("is refused, and the old one stays");
    assert!(line.contains("new.pem: cannot read it"), "{line}");
    // The file that is named comes a while after the one that names it.
    std::fs::copy(&there, &wanted).unwrap();
    let line = daemon.running.line_with("the configuration was read again");
    assert!(line.contains("proxy.hijackHTTPS.publish[0]"), "{line}");
    assert_eq!(ca_of(proxy).matches("BEGIN CERTIFICATE").count(), 2);
    // And it is watched from then on.
    let successor = CaFolder::at(&folder).announce(&PermittedNames::default(), None).unwrap();
    std::fs::write(&wanted, successor.bundle_pem()).unwrap();
    daemon.running.line_with("the configuration was read again");
    assert_eq!(ca_of(proxy).matches("BEGIN CERTIFICATE").count(), 3);
}

// === TLS on the proxy port ===

/// The certificate that is shown on a port, in DER form.
fn shown(port: SocketAddr) -> Vec<u8> {
    let config = client_config(&Verification::Insecure, &[]);
    let name = "proxy.example".try_into().unwrap();
    let mut tls = rustls::ClientConnection::new(config, name).unwrap();
    let mut stream = TcpStream::connect(port).unwrap();
    while tls.is_handshaking() {
        tls.complete_io(&mut stream).unwrap();
    }
    tls.peer_certificates().unwrap()[0].to_vec()
}

/// A certificate and its key in these two files; the certificate in DER form.
fn identity(folder: &Path) -> Vec<u8> {
    let made = CaFolder::at(folder).load_or_generate(&PermittedNames::default()).unwrap();
    made.signer().certificate_der().to_vec()
}

#[test]
fn a_renewed_certificate_of_the_proxy_port_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let (used, renewed) = (dir.path().join("used"), dir.path().join("renewed"));
    let (first, second) = (identity(&used), identity(&renewed));
    let path = |name: &str| used.join(name).display().to_string();
    let security =
        format!("security: {{insecure: false, cert: {}, key: {}}}", path("ca.crt"), path("ca.key"));
    let mut daemon = Daemon::start_with(BY_SIGNAL, ("whiteList", &format!("{security}, whiteList")));
    let (probes, proxy) = (daemon.running.listening("health"), daemon.running.listening("proxy"));
    health(probes, "200");
    assert_eq!(shown(proxy), first);
    for name in ["ca.crt", "ca.key"] {
        std::fs::copy(renewed.join(name), used.join(name)).unwrap();
    }
    daemon.running.signal(Signal::HUP);
    daemon.running.line_with("the configuration was read again");
    assert_eq!(shown(proxy), second);
}

#[test]
fn a_port_keeps_its_tls_until_the_next_start() {
    let mut daemon = Daemon::start_with(BY_SIGNAL, ("whiteList", "security: {insecure: false}, whiteList"));
    let (probes, proxy) = (daemon.running.listening("health"), daemon.running.listening("proxy"));
    health(probes, "200");
    let before = shown(proxy);
    rewrite(&daemon, BY_SIGNAL, ("whiteList", "security: {insecure: true}, whiteList"));
    daemon.running.signal(Signal::HUP);
    let line = daemon.running.line_with("these changes come into force at the next start");
    assert!(line.contains("keys=proxy.security.insecure"), "{line}");
    assert_eq!(shown(proxy), before);
}

// === connections to origins ===

/// An origin that keeps its connections, and how many have been made to it.
pub(crate) fn origin() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, accepted) = (listener.local_addr().unwrap(), Arc::<AtomicUsize>::default());
    let count = accepted.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            count.fetch_add(1, Ordering::Relaxed);
            std::thread::spawn(move || {
                for line in BufReader::new(&stream).lines().map_while(Result::ok) {
                    // A head ends with an empty line.
                    if line.is_empty() {
                        let _ = (&stream).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                    }
                }
            });
        }
    });
    (address, accepted)
}

fn ask(proxy: SocketAddr, origin: SocketAddr) {
    let mut stream = TcpStream::connect(proxy).unwrap();
    write!(stream, "GET http://{origin}/ HTTP/1.1\r\nHost: {origin}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[test]
fn connections_to_origins_stay_unless_something_about_origins_has_changed() {
    let mut daemon = Daemon::start(BY_SIGNAL);
    let (probes, proxy) = (daemon.running.listening("health"), daemon.running.listening("proxy"));
    health(probes, "200");
    let (origin, accepted) = origin();
    let list = "whiteList: [{host: 127.0.0.0/8}]";
    let mut asked = |to: &str| {
        rewrite(&daemon, BY_SIGNAL, (list, to));
        daemon.running.signal(Signal::HUP);
        daemon.running.line_with("the configuration was read again");
        ask(proxy, origin);
        accepted.load(Ordering::Relaxed)
    };
    let other = format!("{list}, defaultTag: other");
    assert_eq!(asked(list), 1);
    assert_eq!(asked(list), 1);
    assert_eq!(asked(&other), 1);
    assert_eq!(asked("whiteList: [{host: 127.0.0.0/9}], defaultTag: other"), 2);
    assert_eq!(asked(&other), 3);
}

/// An origin with one answer of `body` for everybody; gives its address and how often it was asked.
fn origin_of(body: Vec<u8>) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            while stream.read_line(&mut line).is_ok_and(|read| read > 2) {
                line.clear();
            }
            count.fetch_add(1, Ordering::SeqCst);
            let head = format!("HTTP/1.1 200 OK\r\netag: \"a\"\r\ncontent-length: {}\r\n\r\n", body.len());
            let stream = stream.get_mut();
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
        }
    });
    (address, asked)
}

#[test]
fn a_limit_that_is_lifted_lets_go_what_is_under_way() {
    let slow = "proxy: {proxies: [{regx: large}], tcpListen";
    let mut daemon = Daemon::start_with(
        "reload: {interval: 0s}\ndownload: {totalRateLimit: 1Ki, originRateLimit: 1Ki}\n",
        ("proxy: {tcpListen", slow),
    );
    let (probes, proxy) = (daemon.running.listening("health"), daemon.running.listening("proxy"));
    health(probes, "200");
    let body: Vec<u8> = (0..1 << 20).map(|n: u32| (n / 7) as u8).collect();
    let (origin, asked) = origin_of(body.clone());
    let mut client = TcpStream::connect(proxy).unwrap();
    write!(client, "GET http://{origin}/large HTTP/1.1\r\nHost: {origin}\r\nConnection: close\r\n\r\n")
        .unwrap();
    // At this rate it would take a quarter of an hour.
    let mut first = [0; 1024];
    client.read_exact(&mut first).unwrap();

    rewrite(&daemon, BY_SIGNAL, ("proxy: {tcpListen", slow));
    daemon.running.signal(Signal::HUP);
    let line = daemon.running.line_with("the configuration was read again");
    assert!(line.contains("changed=download.originRateLimit, download.totalRateLimit"), "{line}");
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    let answer = [&first[..], &rest].concat();
    let head = answer.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n") && answer[head..] == body);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    let metrics = get(probes, "/metrics");
    assert!(metrics.contains("darter_p2p_limit_waits_seconds_total{limit=\"origin\"}"), "{metrics}");
}
