//! Starting, stopping, and what a person sees when something is wrong: one clear sentence each.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use darter_e2e::ca::{Ca, client_trusting};
use darter_e2e::content::Content;
use darter_e2e::darter::{Daemon, START_LIMIT, Up, binary, loopback_config};
use darter_e2e::http::{self, Answer, Request};
use darter_e2e::origin::{Origin, Page};
use darter_e2e::port::Silent;
use darter_e2e::process::{Output, run};
use rustix::process::Signal;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// How long it may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(20);

#[test]
fn up_serves_and_ends_well_when_asked_to() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut up = up(folder.path())?;
    let ca = http::get(up.proxy, "/ca.crt", &[])?;
    assert_eq!((ca.status, ca.header("content-type")), (200, Some("application/x-x509-ca-cert")));
    let ca = ca.text()?;
    assert!(ca.starts_with("-----BEGIN CERTIFICATE-----"), "{ca}");
    assert!(http::get(up.health, "/metrics", &[])?.text()?.contains("# EOF"));
    up.process.signal(Signal::TERM)?;
    assert_eq!(up.process.wait_exit(STOP_LIMIT)?.code(), Some(0), "{}", up.process.log());

    // The authority is kept: clients trust it once.
    let again = self::up(folder.path())?;
    assert_eq!(http::get(again.proxy, "/ca.crt", &[])?.text()?, ca);
    Ok(())
}

/// Nobody configured anything: a TLS client that trusts our authority gets whatever it asks for, opened on the way.
#[test]
fn up_refuses_destinations_that_only_this_machine_should_reach() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let origin = Origin::start(None)?;
    origin.put("/secret", Page::Fixed { status: 200, headers: Vec::new(), body: "secret".into() });
    let up = up(folder.path())?;
    let answer = http::get(up.proxy, &format!("http://{}/secret", origin.address()), &[])?;
    assert_eq!(answer.status, 403);
    let sentence = answer.text()?;
    assert!(sentence.contains("127.0.0.1") && sentence.contains("whiteList"), "{sentence}");
    let refused = http::tunnel(http::connect(up.proxy)?, "169.254.169.254:443")?;
    let refused = refused.err().context("a tunnel to the metadata service was opened")?;
    assert_eq!(refused.status, 403);
    assert!(
        refused.reason.contains("169.254.169.254"),
        "the reason phrase is all that Go clients show: {}",
        refused.reason
    );
    assert!(origin.asked("/secret").is_empty());
    Ok(())
}

#[test]
fn a_port_in_use_is_named_with_its_key() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let taken = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let _listener = TcpListener::bind(taken)?;
    let config = loopback_config(folder.path(), "").replacen(
        "proxy:\n  tcpListen: { listen: 127.0.0.1, port: 0 }",
        &format!("proxy:\n  tcpListen: {{ listen: 127.0.0.1, port: {} }}", taken.port()),
        1,
    );
    one_sentence(&daemon_fails(folder.path(), &config)?, 69, &[&taken.to_string(), "proxy.tcpListen"]);
    let scheduler =
        run(Command::new(binary()).args(["scheduler", "--listen", &taken.to_string()]), START_LIMIT)?;
    one_sentence(&scheduler, 69, &[&taken.to_string(), "--listen"]);
    Ok(())
}

#[test]
fn an_authority_that_cannot_be_read_is_named_with_its_key() -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("empty.crt"), "nothing\n")?;
    for file in ["missing.crt", "empty.crt"] {
        let file = folder.path().join(file).display().to_string();
        let proxy = format!("  hijackHTTPS: {{ hosts: [{{ regx: '.*', certs: ['{file}'] }}] }}\n");
        let output = daemon_fails(folder.path(), &loopback_config(folder.path(), &proxy))?;
        one_sentence(&output, 78, &[&file, "proxy.hijackHTTPS.hosts[0].certs"]);
    }
    Ok(())
}

#[test]
fn bad_configuration_is_reported_whole_with_places() -> Result<()> {
    let folder = tempfile::tempdir()?;
    one_sentence(&daemon_fails(folder.path(), "proxy:\n  tcpListen: [1, 2\n")?, 78, &["bad.yaml:"]);
    let file = folder.path().join("bad.yaml").display().to_string();
    let config =
        "proxy:\n  proxies:\n    - regx: '('\n    - regxx: a\nhealth: { tcpListen: { port: 99999 } }\n";
    let output = daemon_fails(folder.path(), config)?;
    assert_eq!(output.status.code(), Some(78));
    for place in [":3:", ":4:", ":5:"] {
        assert!(output.stderr.contains(&format!("{file}{place}")), "{}", output.stderr);
    }
    for key in ["proxy.proxies[0].regx", "proxy.proxies[1].regxx", "health.tcpListen.port"] {
        assert!(output.stderr.contains(key), "{}", output.stderr);
    }
    Ok(())
}

#[test]
fn an_upstream_that_is_down_is_a_sentence_in_every_way() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (silent, other) = (Silent::take()?, Silent::take()?);
    let down = silent.address;
    let proxy = format!(
        "  registryMirror: {{ url: 'http://{down}' }}\n  hijackHTTPS: {{ hosts: [{{ regx: '^127\\.0\\.0\\.1:{}$' }}] }}\n",
        down.port()
    );
    let daemon = Daemon::start("daemon", folder.path(), &loopback_config(folder.path(), &proxy))?;
    let blob = format!("/v2/a/blobs/{}", Content::new(31, 1).digest());
    // Of a blob, others might have had it from here: it is the registry's word that is missing.
    for (path, status) in [("/file", 502), (&blob, 503)] {
        sentence(
            http::get(daemon.proxy, &format!("http://{down}{path}"), &[])?,
            status,
            &[&down.to_string(), "refused"],
        )?;
        sentence(http::get(daemon.proxy, path, &[])?, status, &[&down.to_string(), "refused"])?;
    }
    // Intercepted or not.
    for port in [down.port(), other.address.port()] {
        let refused = http::tunnel(http::connect(daemon.proxy)?, &format!("127.0.0.1:{port}"))?;
        let refused = refused.err().context("a tunnel to nobody was opened")?;
        assert_eq!(refused.status, 502);
        assert!(
            refused.reason.contains("refused") && refused.reason.contains(&port.to_string()),
            "{}",
            refused.reason
        );
    }
    Ok(())
}

#[test]
fn an_upstream_certificate_that_is_not_trusted_is_a_sentence() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let ca = Ca::new("somebody")?;
    let (unknown, misnamed) =
        (Ca::new("somebody else")?.issue(&["127.0.0.1"])?, ca.issue(&["other.example"])?);
    ca.write(&folder.path().join("ca.crt"))?;
    let trusted = folder.path().join("ca.crt").display().to_string();
    for (identity, words) in [(unknown, "not trusted"), (misnamed, "other.example")] {
        let origin = Origin::start(Some(identity.server()?))?;
        let (address, port) = (origin.address().to_string(), origin.address().port());
        let hosts = format!(
            "  hijackHTTPS: {{ hosts: [{{ regx: '^127\\.0\\.0\\.1:{port}$', certs: ['{trusted}'] }}] }}\n"
        );
        let daemon = Daemon::start("daemon", folder.path(), &loopback_config(folder.path(), &hosts))?;
        let refused = http::tunnel(http::connect(daemon.proxy)?, &address)?;
        let refused = refused.err().context("an impostor was let through")?;
        assert_eq!(refused.status, 502);
        assert!(refused.reason.contains(&address) && refused.reason.contains(words), "{}", refused.reason);
    }
    Ok(())
}

/// A host that is not to be opened is passed through as it is: the client sees the origin's own certificate.
#[test]
fn a_host_that_is_not_intercepted_is_tunnelled_blindly() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let ca = Ca::new("origin")?;
    let origin = Origin::start(Some(ca.issue(&["127.0.0.1"])?.server()?))?;
    origin.put("/page", Page::Fixed { status: 200, headers: Vec::new(), body: "there".into() });
    let daemon = Daemon::start("daemon", folder.path(), &loopback_config(folder.path(), ""))?;
    let host = &origin.address().to_string();
    let tunnel = http::tunnel(http::connect(daemon.proxy)?, host)?;
    let tunnel = tunnel.map_err(|answer| anyhow::anyhow!("refused: {}", answer.reason))?;
    let stream = http::tls(tunnel, "127.0.0.1", client_trusting(ca.pem())?)?;
    let request = Request { method: "GET", target: "/page", host, headers: &[], body: None };
    assert_eq!(http::send(stream, &request)?.text()?, "there");
    Ok(())
}

fn up(folder: &Path) -> Result<Up> {
    let ports = ["--proxy-addr", "--scheduler-addr", "--piece-addr", "--health-addr"];
    let args: Vec<&str> = ports.into_iter().flat_map(|flag| [flag, "127.0.0.1:0"]).collect();
    Up::start(folder, &args)
}

fn daemon_fails(folder: &Path, config: &str) -> Result<Output> {
    let file = folder.join("bad.yaml");
    std::fs::write(&file, config)?;
    run(Command::new(binary()).arg("daemon").arg("--config").arg(file), START_LIMIT)
}

/// Fails unless the program ended with `code` and one line that has all the words.
fn one_sentence(output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.status.code(), Some(code), "{}", output.stderr);
    let said: Vec<&str> = output.stderr.lines().filter(|line| !line.contains("listening")).collect();
    assert_eq!(said.len(), 1, "{}", output.stderr);
    words.iter().for_each(|word| assert!(said[0].contains(word), "no {word} in: {}", said[0]));
}

/// Fails unless the answer is one line with all the words.
fn sentence(answer: Answer, status: u16, words: &[&str]) -> Result<()> {
    assert_eq!(answer.status, status);
    let text = answer.text()?;
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    words.iter().for_each(|word| assert!(text.contains(word), "no {word} in: {text}"));
    Ok(())
}
