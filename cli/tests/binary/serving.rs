//! The binary while it serves: what it binds, prints and keeps, and how it ends.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;

use rustix::process::Signal;

use crate::process::{Running, darter, get, health};

const SCHEDULER: [&str; 6] =
    ["scheduler", "--insecure", "--listen", "127.0.0.1:0", "--health-listen", "127.0.0.1:0"];

#[test]
fn a_scheduler_serves_and_ends_well_when_asked_to() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut scheduler = Running::start(&SCHEDULER);
        let probes = scheduler.listening("health");
        scheduler.listening("scheduler");
        let answer = health(probes, "200");
        assert!(answer.ends_with("\r\n\r\nok\n"), "{answer}");
        assert!(get(probes, "/metrics").contains("darter_scheduler_hosts 0"));
        scheduler.signal(signal);
        let (code, log) = scheduler.end();
        assert_eq!(code, 0, "{log}");
        assert!(log.trim_end().ends_with("stopped"), "{log}");
    }
}

#[test]
fn a_scheduler_lives_through_a_hangup() {
    let mut scheduler = Running::start(&SCHEDULER);
    let probes = scheduler.listening("health");
    scheduler.listening("scheduler");
    health(probes, "200");
    scheduler.signal(Signal::HUP);
    let line = scheduler.line_with("SIGHUP");
    assert!(line.contains("nothing to read again"), "{line}");
    health(probes, "200");
    scheduler.signal(Signal::TERM);
    let (code, log) = scheduler.end();
    assert_eq!(code, 0, "{log}");
}

#[test]
fn the_log_can_be_json() {
    let mut scheduler = Running::start(&[&["--log-format", "json"], &SCHEDULER[..]].concat());
    let line = scheduler.line_with("\"listening\"");
    assert!(line.starts_with('{') && line.contains("\"component\":\"health\""), "{line}");
}

/// `darter up` on free ports of loopback, keeping everything in `folder`.
pub(crate) fn up(folder: &Path) -> Running {
    let mut args = vec!["up", "--data-dir", folder.to_str().unwrap()];
    for flag in ["--proxy-addr", "--scheduler-addr", "--piece-addr", "--health-addr"] {
        args.extend([flag, "127.0.0.1:0"]);
    }
    Running::start(&args)
}

#[test]
fn up_prints_what_is_true_and_keeps_its_ca() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("a folder");
    let mut fingerprints = Vec::new();
    for _ in 0..2 {
        let mut up = up(&folder);
        let [probes, scheduler, proxy, pieces] =
            ["health", "scheduler", "proxy", "pieces"].map(|component| up.listening(component));
        let printed = up.printed_until("Stop it");
        for addr in [proxy, scheduler, pieces, probes] {
            assert!(printed.contains(&addr.to_string()), "{addr}: {printed}");
        }
        health(probes, "200");
        assert!(get(probes, "/metrics").contains("darter_proxy_connections"));
        let file = folder.join("ca/ca.crt");
        assert!(printed.contains(&file.display().to_string()), "{printed}");
        assert!(get(proxy, "/ca.crt").ends_with(&std::fs::read_to_string(&file).unwrap()));
        let fingerprint = printed.lines().find_map(|line| line.split_once("SHA-256 ")).unwrap().1.to_owned();
        assert_eq!(fingerprint.len(), 95);
        fingerprints.push(fingerprint);
        up.signal(Signal::TERM);
        let (code, log) = up.end();
        assert_eq!(code, 0, "{log}");
    }
    assert_eq!(fingerprints[0], fingerprints[1]);
    assert!(folder.join("data/catalog.redb").exists() && folder.join("node/node.crt").exists());
}

#[test]
fn what_another_process_uses_is_said_to_be_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = up(dir.path());
    first.printed_until("Stop it");
    let (code, log) = up(dir.path()).end();
    assert_eq!(code, 74, "{log}");
    let expected = format!("another daemon works in {}", dir.path().display());
    assert_eq!(log.lines().last().unwrap(), expected, "{log}");
}

#[test]
fn a_folder_that_cannot_be_made_is_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let folder = file.join("below");
    let (code, log) = up(&folder).end();
    assert_eq!(code, 74, "{log}");
    let expected = format!("cannot make the folder {}: ", folder.display());
    assert!(log.lines().last().unwrap().starts_with(&expected), "{log}");
}

/// A daemon with a configuration, and the folder that holds both.
pub(crate) struct Daemon {
    pub(crate) running: Running,
    pub(crate) dir: tempfile::TempDir,
}

/// On free ports of loopback, from where it may fetch, with `more` at the end of its configuration.
pub(crate) fn configuration(dir: &Path, more: &str) -> String {
    let file = dir.join("darter.yaml");
    let listen = "tcpListen: {listen: 127.0.0.1, port: 0}";
    let text = format!(
        "workHome: {}/work\nupload: {{{listen}}}\nhealth: {{{listen}}}\n\
         proxy: {{{listen}, whiteList: [{{host: 127.0.0.0/8}}]}}\n{more}",
        dir.display()
    );
    std::fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

impl Daemon {
    pub(crate) fn start(more: &str) -> Self {
        Self::start_with(more, ("", ""))
    }

    /// With `to` for `from` in its configuration.
    pub(crate) fn start_with(more: &str, (from, to): (&str, &str)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = configuration(dir.path(), more);
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replacen(from, to, 1)).unwrap();
        let running = Running::start(&["daemon", "--config", &file]);
        Self { running, dir }
    }
}

/// A tunnel through `proxy` that stays open: both its ends.
pub(crate) fn tunnel(proxy: SocketAddr) -> (TcpStream, TcpStream) {
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = origin.local_addr().unwrap();
    let mut client = TcpStream::connect(proxy).unwrap();
    write!(client, "CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n").unwrap();
    let mut head = [0; 12];
    client.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    (client, origin.accept().unwrap().0)
}

#[test]
fn a_daemons_other_ports_are_not_reached_through_its_proxy() {
    let mut daemon = Daemon::start("");
    let health = daemon.running.listening("health");
    let proxy = daemon.running.listening("proxy");
    let pieces = daemon.running.listening("pieces");
    for to in [health, pieces] {
        for request in [format!("GET http://{to}/metrics"), format!("CONNECT {to}")] {
            let mut client = TcpStream::connect(proxy).unwrap();
            write!(client, "{request} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 403 "), "{request}: {answer}");
        }
    }
}

#[test]
fn a_daemon_that_drains_says_so_and_waits_for_what_is_under_way() {
    let Daemon { mut running, dir: _dir } = Daemon::start("");
    let (probes, proxy) = (running.listening("health"), running.listening("proxy"));
    health(probes, "200");
    let open = tunnel(proxy);
    running.signal(Signal::TERM);
    let answer = health(probes, "503");
    assert!(answer.ends_with("draining\n"), "{answer}");
    drop(open);
    let (code, log) = running.end();
    assert_eq!(code, 0, "{log}");
    assert!(!log.contains("cut off"), "{log}");
}

#[test]
fn what_is_still_under_way_after_the_limit_is_cut_off() {
    let Daemon { mut running, dir: _dir } = Daemon::start("drainTimeout: 50ms\n");
    let (probes, proxy) = (running.listening("health"), running.listening("proxy"));
    health(probes, "200");
    let (mut client, mut origin) = tunnel(proxy);
    client.write_all(b"hello").unwrap();
    origin.read_exact(&mut [0; 5]).unwrap();
    running.signal(Signal::TERM);
    let (code, log) = running.end();
    assert_eq!(code, 0, "{log}");
    assert!(log.contains("cut off"), "{log}");
    let line = log.lines().find(|line| line.contains("outcome=tunnel")).expect("the tunnel's line");
    assert!(line.contains("sent=0 received=5") && line.contains("cut_by=shutdown"), "{line}");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let Daemon { mut running, dir: _dir } = Daemon::start("drainTimeout: 1h\n");
    let (probes, proxy) = (running.listening("health"), running.listening("proxy"));
    health(probes, "200");
    let _open = tunnel(proxy);
    running.signal(Signal::TERM);
    health(probes, "503");
    running.signal(Signal::TERM);
    let (code, log) = running.end();
    assert_eq!(code, 143, "{log}");
    assert!(log.contains("stopped at once by a second signal"), "{log}");
}

#[test]
fn a_daemon_says_what_has_no_effect_and_goes_on() {
    let Daemon { mut running, dir: _dir } = Daemon::start("jaeger: http://127.0.0.1:1\n");
    let line = running.line_with("jaeger");
    assert!(
        line.contains("WARN") && line.contains("darter.yaml:5:1: warning: jaeger: has no effect: "),
        "{line}"
    );
}

#[test]
fn a_folder_serves_one_daemon_and_keeps_no_socket_of_an_ended_one() {
    let mut first = Daemon::start("");
    health(first.running.listening("health"), "200");
    let other = format!("dataDir: {}\n", first.dir.path().join("content").display());
    let file = configuration(first.dir.path(), &other);
    let second = darter(&["--log-level", "error", "daemon", "--config", &file]);
    assert_eq!(second.code, 74);
    let expected = format!("another daemon works in {}\n", first.dir.path().join("work").display());
    assert_eq!(second.stderr, expected);

    let socket = first.dir.path().join("work/darter.sock");
    assert!(socket.exists());
    first.running.signal(Signal::TERM);
    assert_eq!(first.running.end().0, 0);
    assert!(!socket.exists());
}

#[test]
fn a_daemon_without_hosts_to_intercept_has_no_ca() {
    let Daemon { mut running, dir } = Daemon::start("");
    let (probes, proxy) = (running.listening("health"), running.listening("proxy"));
    health(probes, "200");
    let answer = get(proxy, "/ca.crt");
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    assert!(!dir.path().join("work/ca").exists());
}

#[test]
fn verbose_is_debug() {
    let Daemon { mut running, dir: _dir } = Daemon::start("verbose: true\n");
    health(running.listening("health"), "200");
    running.signal(Signal::TERM);
    let (_, log) = running.end();
    assert!(log.contains("DEBUG"), "{log}");
}

#[test]
fn a_wrong_configuration_binds_nothing_and_is_said_whole() {
    let dir = tempfile::tempdir().unwrap();
    let file = configuration(dir.path(), "jaeger: x\nstorage: {diskGCThreshold: lots}\nhosts: {}\n");
    let ended = darter(&["daemon", "--config", &file]);
    assert_eq!(ended.code, 78);
    let lines: Vec<&str> = ended.stderr.lines().collect();
    assert_eq!(
        lines,
        [
            format!(
                "{file}:6:28: storage.diskGCThreshold: expected a size such as 50Gi, 200M or plain bytes, found `lots`"
            ),
            format!("{file}:7:1: hosts: unknown key; did you mean `host`?"),
        ]
    );
    assert!(!dir.path().join("work").exists());
}

#[test]
fn a_port_in_use_is_one_sentence_with_its_key() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = configuration(dir.path(), "");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("port: 0", &format!("port: {}", taken.port()), 1)).unwrap();
    let ended = darter(&["--log-level", "error", "daemon", "--config", &file]);
    assert_eq!(ended.code, 69);
    let why = "another program listens there already";
    assert_eq!(ended.stderr, format!("cannot listen on {taken} (pieces, set by upload.tcpListen): {why}\n"));
    assert!(!dir.path().join("work").exists());
}
