//! Clients that come in by other ways than a plain proxy port, unmodified: turned to us by the packet filter, by SNI, through
//! a load balancer, over TLS, from another network namespace.
#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use darter_e2e::ca::Ca;
use darter_e2e::containerd::Containerd;
use darter_e2e::content::Content;
use darter_e2e::darter::{Daemon, binary, strip_colours};
use darter_e2e::net::{Host, Lab};
use darter_e2e::origin::{Origin, Page};
use darter_e2e::poll;
use darter_e2e::process::{Output, Process, run};
use darter_e2e::registry::{OPEN, Registry};
use darter_e2e::suite::{self, Scene};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// How long a command may take.
const LIMIT: Duration = Duration::from_secs(60);

/// How long a line of the log may take.
const LOG_LIMIT: Duration = Duration::from_secs(10);

/// The origin's names. The second is not opened up.
const ORIGIN: [&str; 2] = ["origin.example", "blind.example"];

struct Site {
    daemon: Daemon,
    node: Host,
    client: Host,
    balancer: Host,
    lonely: Host,
    origin_host: Host,
    plain: Origin,
    secure: Origin,
    registry: Registry,
    _lab: Lab,
}

fn main() -> ExitCode {
    suite::run(
        Site::start,
        &[
            (
                "an_unmodified_client_of_this_host_is_turned_to_us",
                an_unmodified_client_of_this_host_is_turned_to_us,
            ),
            ("a_client_behind_this_host_is_turned_to_us", a_client_behind_this_host_is_turned_to_us),
            ("containerd_pulls_without_knowing_of_us", containerd_pulls_without_knowing_of_us),
            ("a_server_that_speaks_first_is_reached", a_server_that_speaks_first_is_reached),
            ("what_we_send_ourselves_never_goes_round", what_we_send_ourselves_never_goes_round),
            ("rules_that_lead_nowhere_are_not_applied", rules_that_lead_nowhere_are_not_applied),
            ("haproxy_introduces_its_clients", haproxy_introduces_its_clients),
            ("the_name_in_the_greeting_is_enough", the_name_in_the_greeting_is_enough),
            ("curl_speaks_tls_with_the_proxy", curl_speaks_tls_with_the_proxy),
            ("we_listen_in_another_network_namespace", we_listen_in_another_network_namespace),
        ],
    )
}

impl Site {
    fn start() -> Result<Self> {
        let mut lab = Lab::new()?;
        let origin_host = lab.host(&ORIGIN)?;
        let origin_ca = Ca::new("origin test authority")?;
        origin_ca.write(&origin_host.folder().join("ca.crt"))?;
        let plain = Origin::start_on(origin_host.listen(80)?, None)?;
        let secure = Origin::start_on(origin_host.listen(443)?, Some(origin_ca.issue(&ORIGIN)?.server()?))?;
        let registry = Registry::start(&lab.host(&Registry::NAMES)?)?;
        let [node, client, balancer, lonely] =
            [lab.host(&["node"])?, lab.host(&["client"])?, lab.host(&["balancer"])?, lab.host(&["lonely"])?];
        let config = format!(
            "{base}  listeners:
  - {{ port: 65010, transparent: true }}
  - {{ port: 65011, security: {{ insecure: false }} }}
  - {{ port: 65012, proxyProtocol: {{ from: [{balancer}] }} }}
  - {{ port: 3128, listen: 127.0.0.1, namespace: '{namespace}' }}
  hijackHTTPS:
    sni: [{{ port: 443 }}]
    hosts:
    - {{ regx: '^origin[.]example:443$', certs: ['{origin_ca}'] }}
    - {{ regx: '^{OPEN}:443$', certs: ['{registry_ca}'] }}
",
            base = base(&node),
            balancer = balancer.address(),
            namespace = client.namespace().display(),
            origin_ca = origin_host.folder().join("ca.crt").display(),
            registry_ca = registry.ca_file().display(),
        );
        let daemon = Daemon::start_on(&node, node.folder(), &config)?;
        Ok(Self { daemon, node, client, balancer, lonely, origin_host, plain, secure, registry, _lab: lab })
    }

    /// What clients trust, a file.
    fn ca(&self) -> PathBuf {
        self.node.folder().join("work/ca/ca.crt")
    }

    /// Puts the rules in force on the node until what this gives is dropped.
    fn turn(&self, args: &[&str]) -> Result<Turned> {
        Turned::on(&self.node, args)
    }

    /// Content at the origin, the same over http and https.
    fn offer(&self, seed: u64) -> (String, Content) {
        let content = Content { seed, length: 3 * MIB + 17 };
        let path = self.plain.put_blob(content, None);
        self.secure.put_blob(content, None);
        (path, content)
    }

    /// Bytes of content that left the origin.
    fn sent(&self, path: &str) -> u64 {
        self.plain.sent(path) + self.secure.sent(path)
    }

    /// Waits for a line of the access log with all of these.
    fn wait_logged(&self, parts: &[&str]) -> Result<()> {
        let found = |line: &str| {
            let plain = strip_colours(line);
            parts.iter().all(|part| plain.contains(part)).then_some(())
        };
        self.daemon.process.wait_line(&format!("{parts:?}"), LOG_LIMIT, found)
    }
}

impl Scene for Site {
    fn logs(&self) -> String {
        self.daemon.process.log()
    }
}

/// A configuration whose `proxy:` section is still open.
fn base(host: &Host) -> String {
    format!(
        "host: {{ hostname: {name}, advertiseIP: {address} }}
workHome: {folder}/work
dataDir: {folder}/content
proxy:
  # Over http and https, from one copy.
  trustedRegistries: '^origin[.]example:(80|443)$'
",
        name = host.name(),
        address = host.address(),
        folder = host.folder().display(),
    )
}

/// Rules in force.
struct Turned(Host);

impl Turned {
    fn on(host: &Host, args: &[&str]) -> Result<Self> {
        // Twice is as good as once.
        for _ in 0..2 {
            setup(host, &[&["--apply"], args].concat())?.ok()?;
        }
        Ok(Self(host.clone()))
    }

    fn undo(self) -> Result<()> {
        setup(&self.0, &["--undo"])?.ok()?;
        let left = run(self.0.command("nft").args(["list", "ruleset"]), LIMIT)?.ok()?.stdout;
        ensure!(left.trim().is_empty(), "rules are left: {left}");
        Ok(())
    }
}

impl Drop for Turned {
    fn drop(&mut self) {
        // Undone already is as good.
        let _ = setup(&self.0, &["--undo"]);
    }
}

fn setup(host: &Host, args: &[&str]) -> Result<Output> {
    run(host.command(binary()).args(["setup", "transparent"]).args(args), LIMIT)
}

fn curl(host: &Host, args: &[&str]) -> Result<Output> {
    let quiet = ["--silent", "--show-error", "--fail-with-body", "--max-time", "50"];
    run(host.command("curl").args(quiet).args(args), LIMIT)
}

/// Downloads with curl, and checks what came.
fn download(host: &Host, content: Content, args: &[&str]) -> Result<()> {
    let to = host.new_folder("download")?.join("file");
    let to_text = to.display().to_string();
    curl(host, &[args, &["--output", &to_text]].concat())?.ok()?;
    let sum = run(Command::new("sha256sum").arg(&to), LIMIT)?.ok()?.stdout;
    let digest = content.digest();
    ensure!(
        digest.ends_with(sum.split(' ').next().unwrap_or_default()) && sum.len() > 64,
        "{sum} is not {digest}"
    );
    Ok(std::fs::remove_file(to)?)
}

// === turned by the packet filter ===

fn an_unmodified_client_of_this_host_is_turned_to_us(site: &Site) -> Result<()> {
    let (path, content) = site.offer(1);
    let ca = site.ca().display().to_string();
    let turned = site.turn(&[])?;
    for url in [format!("http://origin.example{path}"), format!("https://origin.example{path}")] {
        for version in ["--http1.1", "--http2"] {
            download(&site.node, content, &[version, "--cacert", &ca, &url])?;
        }
    }
    ensure!(site.sent(&path) == content.length, "{} bytes left the origin", site.sent(&path));
    // By the name that it was asked for, not by the address.
    site.wait_logged(&["way=transparent", "authority=\"origin.example\"", &path, "outcome=hit"])?;

    // What is not opened up is seen as it is, and our own names are the origin's.
    let origin_ca = site.origin_host.folder().join("ca.crt").display().to_string();
    download(&site.node, content, &["--cacert", &origin_ca, &format!("https://blind.example{path}")])?;
    site.plain.put("/healthy", Page::Fixed { status: 200, headers: Vec::new(), body: "the origin's".into() });
    ensure!(curl(&site.node, &["http://origin.example/healthy"])?.ok()?.stdout == "the origin's");

    turned.undo()?;
    let straight =
        curl(&site.node, &["--cacert", &ca, &format!("https://origin.example{path}")])?.failed()?;
    ensure!(straight.stderr.contains("SSL certificate problem"), "{}", straight.stderr);
    Ok(())
}

fn a_client_behind_this_host_is_turned_to_us(site: &Site) -> Result<()> {
    let (path, content) = site.offer(2);
    let (origin, node) = (format!("{}/32", site.origin_host.address()), site.node.address().to_string());
    run(site.node.command("sh").args(["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]), LIMIT)?.ok()?;
    run(site.client.command("ip").args(["route", "add", &origin, "via", &node]), LIMIT)?.ok()?;
    let turned = site.turn(&[])?;
    let url = format!("https://origin.example{path}");
    let downloaded = download(&site.client, content, &["--cacert", &site.ca().display().to_string(), &url]);
    run(site.client.command("ip").args(["route", "delete", &origin]), LIMIT)?.ok()?;
    downloaded?;
    // The client is seen under its own address.
    site.wait_logged(&[
        &format!("client={}:", site.client.address()),
        "way=transparent",
        "outcome=intercepted",
    ])?;
    turned.undo()
}

fn containerd_pulls_without_knowing_of_us(site: &Site) -> Result<()> {
    let reference = &format!("{OPEN}/team/unwitting:1");
    let image = site.registry.publish(reference, 7, 3, 8 * MIB)?;
    let turned = site.turn(&[])?;
    for _ in 0..2 {
        let engine = Containerd::start(&site.node)?;
        // It trusts our CA, and that is all.
        engine.set_hosts(OPEN, &format!("[host.'https://{OPEN}']\nca = '{}'\n", site.ca().display()))?;
        engine.pull(reference)?.ok()?;
        ensure!(engine.manifest(reference)? == image.manifest, "another image came");
        site.registry.check_copies(&image, 1)?;
    }
    turned.undo()
}

fn a_server_that_speaks_first_is_reached(site: &Site) -> Result<()> {
    let listener = site.origin_host.listen(2525)?;
    let address = site.origin_host.port(2525);
    let server = std::thread::spawn(move || -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.write_all(b"220 ready\r\n")?;
        let mut line = [0; 6];
        stream.read_exact(&mut line)?;
        Ok(stream.write_all(&line)?)
    });
    let turned = site.turn(&["--port", "80,443,2525"])?;
    let mut stream = site.node.connect(address)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut greeting = [0; 11];
    stream.read_exact(&mut greeting)?;
    stream.write_all(b"QUIT\r\n")?;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest)?;
    ensure!(&greeting == b"220 ready\r\n" && rest == b"QUIT\r\n", "{greeting:?} {rest:?}");
    server.join().expect("the server does not panic")?;
    // The tunnel ends when both sides have.
    drop(stream);
    site.wait_logged(&["way=transparent", &address.to_string(), "outcome=tunnel"])?;
    turned.undo()
}

fn what_we_send_ourselves_never_goes_round(site: &Site) -> Result<()> {
    // Without CAP_NET_ADMIN and CAP_NET_RAW nothing can be marked, and nobody told the rules whose connections to leave out.
    let config = format!("{}  listeners: [{{ port: 65010, transparent: true }}]\n", base(&site.lonely));
    let mut command = site.lonely.command("setpriv");
    command.args(["--bounding-set", "-net_admin,-net_raw", "--"]).arg(binary());
    let daemon = Daemon::start_by(&site.lonely, site.lonely.folder(), &config, command)?;
    let warned = |line: &str| line.contains("give `darter setup transparent` the user").then_some(());
    daemon.process.wait_line("that it cannot mark", LOG_LIMIT, warned)?;
    site.plain.put("/round", Page::Fixed { status: 200, headers: Vec::new(), body: "there".into() });

    let turned = Turned::on(&site.lonely, &[])?;
    let answer =
        curl(&site.lonely, &["--write-out", "%{http_code}", "http://origin.example/round"])?.failed()?;
    ensure!(answer.stdout.ends_with("502"), "{}{}", answer.stdout, answer.stderr);
    let told = |line: &str| line.contains("our own connection to").then_some(());
    daemon.process.wait_line("that it came round", LOG_LIMIT, told)?;
    ensure!(site.plain.asked("/round").is_empty(), "it reached the origin all the same");
    turned.undo()?;

    // As another user the daemon is known by that.
    let turned = Turned::on(&site.lonely, &["--uid", "root"])?;
    let as_other =
        ["--reuid=65534", "--clear-groups", "curl", "--silent", "--fail", "http://origin.example/round"];
    let answer = run(site.lonely.command("setpriv").args(as_other), LIMIT)?.ok()?;
    ensure!(answer.stdout == "there", "{}", answer.stdout);
    let passed = |line: &str| {
        let plain = strip_colours(line);
        (plain.contains("way=transparent") && plain.contains("/round") && plain.contains("status=200"))
            .then_some(())
    };
    daemon.process.wait_line("that it passed", LOG_LIMIT, passed)?;
    turned.undo()
}

fn rules_that_lead_nowhere_are_not_applied(site: &Site) -> Result<()> {
    let refused = setup(&site.client, &["--apply"])?.failed()?;
    ensure!(refused.stderr.contains("nobody listens at 127.0.0.1:65010"), "{}", refused.stderr);
    let rules = run(site.client.command("nft").args(["list", "ruleset"]), LIMIT)?.ok()?.stdout;
    ensure!(rules.trim().is_empty(), "{rules}");
    // To undo what was never done is no error.
    setup(&site.client, &["--undo"])?.ok()?;
    // What is printed is what nft takes.
    let printed =
        setup(&site.client, &["--print", "--uid", "root", "--except", "10.0.0.0/8", "--ipv6"])?.ok()?.stdout;
    let file = site.client.folder().join("rules.nft");
    std::fs::write(&file, printed)?;
    run(site.client.command("nft").args(["--check", "--file"]).arg(&file), LIMIT)?.ok().map(drop)
}

// === the others ===

fn haproxy_introduces_its_clients(site: &Site) -> Result<()> {
    let file = site.balancer.folder().join("haproxy.cfg");
    let node = site.node.address();
    std::fs::write(
        &file,
        format!(
            "global
  maxconn 100
defaults
  mode tcp
  timeout connect 5s
  timeout client 60s
  timeout server 60s
listen v1
  bind 0.0.0.0:3001
  server node {node}:65012 send-proxy check inter 200
listen v2
  bind 0.0.0.0:3002
  server node {node}:65012 send-proxy-v2 check inter 200
"
        ),
    )?;
    let log = site.balancer.folder().join("haproxy.log");
    let _haproxy =
        Process::start("haproxy", site.balancer.command("haproxy").arg("-db").arg("-f").arg(&file), &log)?;
    for port in [3001, 3002] {
        poll::until("haproxy", LIMIT, || site.client.connect(site.balancer.port(port)).ok())?;
        let path = format!("/by-{port}");
        site.plain.put(&path, Page::Fixed { status: 200, headers: Vec::new(), body: "there".into() });
        let proxy = format!("http://balancer:{port}");
        let answer =
            curl(&site.client, &["--proxy", &proxy, &format!("http://origin.example{path}")])?.ok()?;
        ensure!(answer.stdout == "there", "{}", answer.stdout);
        site.wait_logged(&[&format!("client={}:", site.client.address()), &path])?;
    }
    // Nobody else is believed, or served as if it had been.
    let mut stream = site.client.connect(site.node.port(65012))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET /healthy HTTP/1.1\r\nHost: x\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    Ok(())
}

fn the_name_in_the_greeting_is_enough(site: &Site) -> Result<()> {
    let (path, content) = site.offer(3);
    let (ours, theirs) = (site.ca(), site.origin_host.folder().join("ca.crt"));
    for (name, ca) in [(ORIGIN[0], ours), (ORIGIN[1], theirs)] {
        let resolve = format!("{name}:443:{}", site.node.address());
        let ca = ca.display().to_string();
        download(
            &site.client,
            content,
            &["--resolve", &resolve, "--cacert", &ca, &format!("https://{name}{path}")],
        )?;
    }
    site.wait_logged(&["way=sni", "origin.example:443", "outcome=intercepted"])?;
    site.wait_logged(&["way=sni", "blind.example:443", "outcome=tunnel"])?;
    // Without a name there is no host to go to, and curl can say so.
    let address = format!("https://{}/", site.node.address());
    let refused = curl(&site.client, &["--insecure", &address])?.failed()?;
    ensure!(refused.stderr.contains("unrecognized name"), "{}", refused.stderr);
    Ok(())
}

fn curl_speaks_tls_with_the_proxy(site: &Site) -> Result<()> {
    let (path, content) = site.offer(4);
    let ca = site.ca().display().to_string();
    // Over HTTP/1.1: curl of Debian 12 has no --proxy-http2 yet.
    for url in [format!("http://origin.example{path}"), format!("https://origin.example{path}")] {
        let proxy = ["--proxy", "https://node:65011", "--proxy-cacert", &ca, "--cacert", &ca];
        download(&site.client, content, &[&proxy[..], &[url.as_str()]].concat())?;
    }
    ensure!(site.sent(&path) == content.length, "{} bytes left the origin", site.sent(&path));
    // By another name the certificate is not its own, and curl says whose it is not.
    let other = ["--resolve", &format!("other.example:65011:{}", site.node.address()), "--proxy-cacert", &ca];
    let url = ["--proxy", "https://other.example:65011", "http://origin.example/"];
    let refused = curl(&site.client, &[&other[..], &url[..]].concat())?.failed()?;
    ensure!(refused.stderr.contains("no alternative certificate subject name matches"), "{}", refused.stderr);
    // Who speaks plain HTTP is told.
    let refused =
        curl(&site.client, &["--proxy", "http://node:65011", "http://origin.example/"])?.failed()?;
    ensure!(refused.stdout.contains("the proxy's URL must begin with https://"), "{}", refused.stdout);
    Ok(())
}

fn we_listen_in_another_network_namespace(site: &Site) -> Result<()> {
    site.plain.put("/namespace", Page::Fixed { status: 200, headers: Vec::new(), body: "there".into() });
    let url = "http://origin.example/namespace";
    let answer = curl(&site.client, &["--proxy", "http://127.0.0.1:3128", url])?.ok()?;
    ensure!(answer.stdout == "there", "{}", answer.stdout);
    // It is there and nowhere else; and what it fetches goes out from the daemon's own.
    curl(&site.node, &["--proxy", "http://127.0.0.1:3128", url])?.failed()?;
    let asked = site.plain.asked("/namespace");
    ensure!(asked.len() == 1, "{asked:?}");
    Ok(())
}
