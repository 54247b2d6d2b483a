//! A daemon that is configured by docker-registry-proxy's environment variables.

use rustix::process::Signal;

use crate::process::{Running, get, health};

/// On free ports of loopback, keeping everything in `folder`.
fn start(folder: &std::path::Path, variables: &[(&str, &str)]) -> Running {
    let (work, cache) = (folder.join("work"), folder.join("cache"));
    let places = ["--work-home", work.to_str().unwrap(), "--data-dir", cache.to_str().unwrap()];
    let ports = ["--proxy-addr", "127.0.0.1:0", "--health-addr", "127.0.0.1:0"];
    Running::start_with(&[&["daemon", "--from-environment"], &places[..], &ports[..]].concat(), variables)
}

#[test]
fn it_serves_with_a_ca_of_its_own_and_says_what_has_no_effect() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon =
        start(dir.path(), &[("REGISTRIES", "registry.example"), ("PROXY_REQUEST_BUFFERING", "true")]);
    let (probes, proxy) = (daemon.listening("health"), daemon.listening("proxy"));
    daemon.line_with("environment: warning: PROXY_REQUEST_BUFFERING: has no effect");
    health(probes, "200");
    let ca = std::fs::read_to_string(dir.path().join("work/ca/ca.crt")).unwrap();
    assert!(get(proxy, "/ca.crt").ends_with(&ca));
    let script = get(proxy, "/setup/systemd");
    assert!(script.ends_with("\nmain --proxy 'http://x:80' --use docker --restart \"$@\"\n"), "{script}");
    assert!(dir.path().join("cache/catalog.redb").exists());
    daemon.signal(Signal::HUP);
    daemon.line_with("the configuration was read again");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end().0, 0);
}

#[test]
fn what_is_wrong_is_said_by_the_variables_name_and_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let (code, log) = start(dir.path(), &[("ALLOW_PUSH", "perhaps"), ("CACHE_MAX_SIZE", "much")]).end();
    assert_eq!(code, 78, "{log}");
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(
        lines,
        [
            "environment: CACHE_MAX_SIZE: expected a size such as 50Gi, 200M or plain bytes, found `much`",
            "environment: ALLOW_PUSH: expected true or false, found `perhaps`",
        ]
    );
}
