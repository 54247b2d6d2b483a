//! curl: both schemes, both versions of HTTP, resumed downloads, and what it shows when something is wrong.

use crate::{Depot, FILE_SIZE, TLS_PORT, check_file, fails_with, works};
use anyhow::{Context as _, Result, ensure};
use darter_e2e::ca::Ca;
use darter_e2e::content::Content;
use darter_e2e::darter::{Daemon, loopback_config};
use darter_e2e::node::Node;
use darter_e2e::origin::{Origin, Page};
use darter_e2e::site::{CREDENTIALS, FILES};
use std::path::Path;
use std::process::Command;

/// With the daemon's CA by curl's own option.
fn curl(node: &Node) -> Command {
    let mut command = node.host.command("curl");
    command.args(["--silent", "--show-error", "--proxy", &node.proxy(), "--cacert"]).arg(&node.ca);
    command
}

pub(crate) fn over_http(depot: &Depot) -> Result<()> {
    downloads(depot, "http", "1.1", Content::new(101, FILE_SIZE), |node| {
        let mut command = curl(node);
        // What is not opened up needs no CA.
        command.args(["--cacert", "/dev/null"]);
        command
    })
}

pub(crate) fn over_https_with_http_1(depot: &Depot) -> Result<()> {
    downloads(depot, "https", "1.1", Content::new(102, FILE_SIZE), |node| {
        let mut command = curl(node);
        command.arg("--http1.1");
        command
    })
}

/// The system's store this time, and the proxy from the environment.
pub(crate) fn over_https_with_http_2(depot: &Depot) -> Result<()> {
    downloads(depot, "https", "2", Content::new(103, FILE_SIZE), |node| {
        let mut command = node.client("curl");
        command.args(["--silent", "--show-error", "--http2"]).env("HTTPS_PROXY", node.proxy());
        command
    })
}

/// TLS to the proxy, whose certificate its own CA signed, and TLS to the origin within.
pub(crate) fn through_an_https_proxy(depot: &Depot) -> Result<()> {
    let client = |node: &Node| {
        let proxy = format!("https://{}", node.host.port(TLS_PORT));
        let mut command = node.host.command("curl");
        command.args(["--silent", "--show-error", "--proxy", &proxy, "--proxy-cacert"]).arg(&node.ca);
        command.arg("--cacert").arg(&node.ca);
        command
    };
    downloads(depot, "https", "2", Content::new(106, FILE_SIZE), client)?;
    downloads(depot, "http", "1.1", Content::new(107, FILE_SIZE), client)
}

/// OpenSSL holds more of a certificate against a CA's constraints than others do.
pub(crate) fn believes_a_ca_that_is_for_some_addresses(_depot: &Depot) -> Result<()> {
    let site = tempfile::tempdir()?;
    let ca = Ca::new("origin test authority")?;
    let trust = site.path().join("origin.crt");
    ca.write(&trust)?;
    let origin = Origin::start(Some(ca.issue(&["127.0.0.1"])?.server()?))?;
    origin.put("/page", Page::Fixed { status: 200, headers: Vec::new(), body: "there".into() });
    for permitted in ["127.0.0.0/8", "example.org, 127.0.0.0/8"] {
        let folder = tempfile::tempdir()?;
        let hosts = format!("[{{ regx: '.*', certs: ['{}'] }}]", trust.display());
        let proxy = format!("  hijackHTTPS: {{ nameConstraints: [{permitted}], hosts: {hosts} }}\n");
        let daemon = Daemon::start("constrained", folder.path(), &loopback_config(folder.path(), &proxy))?;
        let ours = folder.path().join("ca.crt");
        std::fs::write(&ours, daemon.ca()?)?;
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--fail", "--cacert"]).arg(&ours);
        command.args([
            "--proxy",
            &format!("http://{}", daemon.proxy),
            &format!("https://{}/page", origin.address()),
        ]);
        ensure!(works(&mut command).context(permitted)?.stdout == "there", "another page came");
    }
    Ok(())
}

fn downloads(
    depot: &Depot,
    scheme: &str,
    version: &str,
    content: Content,
    client: impl Fn(&Node) -> Command,
) -> Result<()> {
    let file = depot.big_file(&format!("curl-{}", content.seed), content)?;
    let url = format!("{scheme}://{FILES}/{file}");
    depot.three_times(FILES, &[file], |node, folder| {
        let to = folder.join("file");
        let mut command = client(node);
        command.args(["--fail", "--write-out", "%{http_version} %{response_code}", "--output"]).arg(&to);
        let said = works(command.arg(&url))?.stdout;
        ensure!(said == format!("{version} 200"), "{said}");
        check_file(&to, content)?;
        let head = works(client(node).args(["--head", &url]))?.stdout.to_ascii_lowercase();
        ensure!(head.contains(&format!("content-length: {FILE_SIZE}\r\n")), "{head}");
        Ok(())
    })
}

pub(crate) fn goes_on_where_it_stopped(depot: &Depot) -> Result<()> {
    let content = Content::new(104, FILE_SIZE);
    let file = depot.big_file("curl-resumed", content)?;
    let url = format!("https://{FILES}/{file}");
    depot.three_times(FILES, &[file], |node, folder| {
        let to = folder.join("file");
        works(curl(node).args(["--fail", "--output"]).arg(&to).arg(&url))?;
        cut(&to, 5_000_001)?;
        works(curl(node).args(["--fail", "--continue-at", "-", "--output"]).arg(&to).arg(&url))?;
        check_file(&to, content)
    })
}

/// Leaves only the beginning of a file, as an interrupted download does.
pub(crate) fn cut(file: &Path, length: u64) -> Result<()> {
    Ok(std::fs::File::options().write(true).open(file)?.set_len(length)?)
}

pub(crate) fn shows_what_is_wrong(depot: &Depot) -> Result<()> {
    let node = &depot.nodes[0];
    let file = depot.big_file("curl-wrong", Content::new(105, 100))?;
    let url = format!("https://{FILES}/{file}");

    let mut no_ca = node.host.command("curl");
    no_ca.args(["--silent", "--show-error", "--proxy", &node.proxy(), &url]);
    fails_with(&mut no_ca, &["curl: (60) SSL certificate problem"])?;

    // What a refusal says, it says three times: as the answer of CONNECT, in its body, and in the body of plain HTTP.
    fails_with(curl(node).args(["--verbose", "https://localhost:9/"]), &["403", "localhost:9", "loopback"])?;
    let plain = works(curl(node).args(["--include", "http://localhost:9/"]))?.stdout;
    ensure!(plain.starts_with("HTTP/1.1 403 ") && plain.contains("loopback"), "{plain}");

    let down = works(curl(node).args(["--include", &format!("http://{FILES}:9/")]))?.stdout;
    ensure!(down.starts_with(&format!("HTTP/1.1 502 cannot connect to {FILES}:9")), "{down}");
    let down = format!("https://{FILES}:9/");
    fails_with(curl(node).args(["--verbose", &down]), &["502 cannot connect", "connection refused"])?;
    let unknown = works(curl(node).args(["--include", "http://nowhere.example/"]))?.stdout;
    ensure!(unknown.starts_with("HTTP/1.1 502 cannot resolve the name nowhere.example"), "{unknown}");

    let private = depot.site.www(FILES).join("private");
    std::fs::create_dir_all(&private)?;
    std::fs::write(private.join("file"), "secret")?;
    let url = format!("https://{FILES}/private/file");
    for (credentials, status) in [("somebody:wrong", "401"), (CREDENTIALS, "200")] {
        let args = ["--output", "/dev/null", "--write-out", "%{http_code}", "--user", credentials, &url];
        let said = works(curl(node).args(args))?.stdout;
        ensure!(said == status, "{said}");
    }
    Ok(())
}
