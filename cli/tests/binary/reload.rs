//! A configuration that changes while the daemon runs.

use std::io::{Read, Write};

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

#[test]
fn a_ca_that_is_exchanged_is_served() {
    let more = "reload: {interval: 0s}\n";
    let mut daemon = Daemon::start(more);
    let (probes, proxy) = (daemon.running.listening("health"), daemon.running.listening("proxy"));
    health(probes, "200");
    assert!(get(proxy, "/ca.crt").starts_with("HTTP/1.1 404 "));
    let hosts = "hijackHTTPS: {hosts: [{regx: .*}]}, whiteList";
    rewrite(&daemon, more, ("whiteList", hosts));
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
