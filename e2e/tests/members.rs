//! A cluster whose hosts prove to each other who they are, on hosts of their own.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use darter_e2e::content::{Content, digest_of};
use darter_e2e::darter::{Daemon, START_LIMIT, binary, sum_of};
use darter_e2e::http;
use darter_e2e::net::{Host, Lab};
use darter_e2e::origin::Origin;
use darter_e2e::poll::until;
use darter_e2e::process::{Output, Process, run};
use darter_e2e::suite::{self, Scene};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{SystemTime, UNIX_EPOCH};

const MIB: u64 = 1 << 20;

/// How long certificates hold here: they are renewed after two thirds of it.
const LIFETIME: &str = "12s";

/// Writes every frame that passes its host's network to a file in the format of pcap (a header of the file, of link type Ethernet,
/// and one of each frame), until it is killed.
const CAPTURE: &str = "
import socket, struct, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
s.bind(('eth0', 3))
s.setsockopt(socket.SOL_SOCKET, 33, 1 << 27)
f = open(sys.argv[1], 'wb', buffering=0)
f.write(struct.pack('<IHHiIII', 0xa1b2c3d4, 2, 4, 0, 0, 1 << 18, 1))
print('capturing', flush=True)
while True:
    frame = s.recv(1 << 17)
    f.write(struct.pack('<IIII', 0, 0, len(frame), len(frame)) + frame)
";

struct Cluster {
    scheduler: Host,
    running: Process,
    home: Host,
    origin: Origin,
    first: Node,
    second: Node,
    stranger: Host,
    /// What it shows of itself when it is no member of this cluster.
    elsewhere: Elsewhere,
    _lab: Lab,
}

/// A cluster of another CA, with one node.
struct Elsewhere {
    host: Host,
    _scheduler: Process,
    _node: Daemon,
}

struct Node {
    host: Host,
    daemon: Daemon,
}

fn main() -> ExitCode {
    suite::run(
        Cluster::start,
        &[
            (
                "what_moves_between_nodes_cannot_be_read_on_the_way",
                what_moves_between_nodes_cannot_be_read_on_the_way,
            ),
            (
                "a_host_without_a_certificate_is_answered_by_no_port",
                a_host_without_a_certificate_is_answered_by_no_port,
            ),
            ("who_cannot_join_is_told_why_and_what_to_do", who_cannot_join_is_told_why_and_what_to_do),
            (
                "certificates_are_renewed_while_a_download_goes_on",
                certificates_are_renewed_while_a_download_goes_on,
            ),
            // The last: it takes one away.
            ("an_expelled_node_gets_nothing_from_anybody", an_expelled_node_gets_nothing_from_anybody),
        ],
    )
}

impl Scene for Cluster {
    fn logs(&self) -> String {
        [&self.running, &self.first.daemon.process, &self.second.daemon.process]
            .map(|process| process.log())
            .join("\n")
    }
}

impl Cluster {
    fn start() -> Result<Self> {
        let mut lab = Lab::new()?;
        let scheduler = lab.host(&["scheduler"])?;
        let running = start_scheduler(&scheduler)?;
        let home = lab.host(&["origin.example"])?;
        let origin = Origin::start_on(home.listen(8000)?, None)?;
        let token = token(&scheduler, &["--uses", "2"])?;
        let mut node = |name: &str| {
            let host = lab.host(&[name])?;
            let daemon = joining(&host, &token)?;
            let joined = |line: &str| line.contains("joined the scheduler").then_some(());
            daemon.process.wait_line("it to join the scheduler", START_LIMIT, joined)?;
            anyhow::Ok(Node { host, daemon })
        };
        let (first, second) = (node("first")?, node("second")?);
        let stranger = lab.host(&["stranger"])?;
        let elsewhere = Elsewhere::start(lab.host(&["elsewhere"])?)?;
        Ok(Self { scheduler, running, home, origin, first, second, stranger, elsewhere, _lab: lab })
    }

    fn darter(&self, args: &[&str]) -> Result<Output> {
        darter(&self.scheduler, args)
    }

    /// Offers content, and gives its URL and path.
    fn offer(&self, content: Content, rate: Option<u64>) -> (String, String) {
        let path = self.origin.put_blob(content, rate);
        (format!("http://origin.example:8000{path}"), path)
    }
}

impl Node {
    fn get(&self, url: &str) -> Result<String> {
        let stream = self.host.connect(self.host.port(65001))?;
        http::prepare(&stream)?;
        let host = "origin.example:8000";
        let request = http::Request { method: "GET", target: url, host, headers: &[], body: None };
        let answer = http::send(Box::new(stream), &request)?;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.reason);
        digest_of(answer)
    }

    fn metric(&self, name: &str) -> Result<f64> {
        let stream = self.host.connect(self.host.port(40901))?;
        let request =
            http::Request { method: "GET", target: "/metrics", host: "node", headers: &[], body: None };
        sum_of(&http::send(Box::new(stream), &request)?.text()?, name)
    }
}

impl Elsewhere {
    fn start(host: Host) -> Result<Self> {
        let scheduler = start_scheduler(&host)?;
        let token = token(&host, &[])?;
        let mut command = host.command(binary());
        command.env("DARTER_JOIN_TOKEN", token);
        let config = config(&host).replace("'scheduler:8002'", "'elsewhere:8002'");
        let node = Daemon::start_by(&host, host.folder(), &config, command)?;
        let joined = |line: &str| line.contains("joined the scheduler").then_some(());
        node.process.wait_line("it to join its scheduler", START_LIMIT, joined)?;
        Ok(Self { host, _scheduler: scheduler, _node: node })
    }
}

fn start_scheduler(host: &Host) -> Result<Process> {
    let mut command = host.command(binary());
    command.arg("scheduler").arg("--data-dir").arg(host.folder());
    command.args(["--certificate-lifetime", LIFETIME]).env("RUST_LOG", "info");
    let running = Process::start("scheduler", &mut command, &host.folder().join("scheduler.log"))?;
    let listens = |line: &str| line.contains("component=scheduler").then_some(());
    running.wait_line("it to listen", START_LIMIT, listens)?;
    Ok(running)
}

fn config(host: &Host) -> String {
    format!(
        "host: {{ hostname: {name}, advertiseIP: {ip} }}
workHome: {folder}/work
dataDir: {folder}/content
scheduler:
  netAddrs: [{{ type: tcp, addr: 'scheduler:8002' }}]
proxy:
  whiteList: [{{ host: 10.79.0.0/24 }}]
",
        name = host.name(),
        ip = host.address(),
        folder = host.folder().display(),
    )
}

fn joining(host: &Host, token: &str) -> Result<Daemon> {
    let mut command = host.command(binary());
    command.env("DARTER_JOIN_TOKEN", token);
    Daemon::start_by(host, host.folder(), &config(host), command)
}

/// A command of the scheduler's host.
fn darter(scheduler: &Host, args: &[&str]) -> Result<Output> {
    let mut command = scheduler.command(binary());
    run(command.args(args).arg("--data-dir").arg(scheduler.folder()), START_LIMIT)
}

fn token(scheduler: &Host, terms: &[&str]) -> Result<String> {
    let made = darter(scheduler, &[&["token", "create"], terms].concat())?.ok()?;
    Ok(made.stdout.trim().to_owned())
}

/// All that passes a host's interface while `what` happens, and the file that holds it. It is read some time after it passed: until it
/// `is_all`.
fn captured(
    host: &Host,
    is_all: impl Fn(&[u8]) -> bool,
    what: impl FnOnce() -> Result<()>,
) -> Result<(Vec<u8>, PathBuf)> {
    let file = host.new_folder("capture")?.join("frames");
    let mut command = host.command("python3");
    command.args(["-c", CAPTURE]).arg(&file);
    let capture = Process::start("capture", &mut command, &host.folder().join("capture.log"))?;
    capture.wait_line("it to capture", START_LIMIT, |line| line.contains("capturing").then_some(()))?;
    what()?;
    let frames = || std::fs::read(&file).ok().filter(|frames| is_all(frames));
    let frames = until("all that was captured", START_LIMIT, frames)?;
    capture.kill()?;
    Ok((frames, file))
}

/// What tshark makes of a capture when it takes what goes to and from this port for this protocol: a field of each frame that fits.
fn dissected(
    capture: &Path,
    (port, protocol): (u16, &str),
    filter: &str,
    field: &str,
) -> Result<Vec<String>> {
    let mut command = Command::new("tshark");
    command.arg("-n").arg("-r").arg(capture).args(["-d", &format!("tcp.port=={port},{protocol}")]);
    command.args(["-Y", &format!("tcp.port=={port} && {filter}"), "-T", "fields", "-e", field]);
    let said = run(&mut command, START_LIMIT)?.ok()?.stdout;
    Ok(said.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

fn contains(frames: &[u8], words: &[u8]) -> bool {
    frames.windows(words.len()).any(|window| window == words)
}

fn what_moves_between_nodes_cannot_be_read_on_the_way(cluster: &Cluster) -> Result<()> {
    let content = Content::new(1, 6 * MIB);
    let (url, path) = cluster.offer(content, None);
    let get = |node: &Node| {
        ensure!(node.get(&url)? == content.digest(), "something else");
        Ok(())
    };
    let mut last = [0; 32];
    content.reader(content.length - 32).read_exact(&mut last)?;
    // The origin speaks plain HTTP: there the same capture finds them.
    let (plain, plain_file) =
        captured(&cluster.home, |frames| contains(frames, &last), || get(&cluster.first))?;
    let (hidden, hidden_file) = captured(
        &cluster.second.host,
        |frames| frames.len() as u64 >= content.length,
        || get(&cluster.second),
    )?;
    ensure!(cluster.origin.sent(&path) == content.length, "the second did not have it from the first");
    for offset in [0, 1000, 4 * MIB + 17, content.length - 100] {
        let mut words = [0; 32];
        content.reader(offset).read_exact(&mut words)?;
        ensure!(contains(&plain, &words), "the capture does not see what is there to be seen, at {offset}");
        ensure!(!contains(&hidden, &words), "bytes at {offset} can be read");
    }
    ensure!(!contains(&hidden, b"/tasks/"), "what is asked for can be read");
    // The same by somebody else's eyes.
    let read = dissected(&plain_file, (8000, "http"), "http.request", "http.request.uri")?;
    ensure!(read.contains(&path), "tshark does not see what is there to be seen: {read:?}");
    let read = dissected(&hidden_file, (65002, "http"), "(http.request || http.response)", "frame.number")?;
    ensure!(read.is_empty(), "tshark reads HTTP between nodes: {read:?}");
    let version = "tls.handshake.extensions.supported_version";
    let spoken = dissected(&hidden_file, (65002, "tls"), "tls.handshake.type == 2", version)?;
    ensure!(!spoken.is_empty() && spoken.iter().all(|it| it == "0x0304"), "no TLS 1.3: {spoken:?}");
    let sealed = dissected(&hidden_file, (65002, "tls"), "tls.record.opaque_type == 23", "frame.number")?;
    ensure!(sealed.len() > 10, "{} frames of TLS are not {} bytes", sealed.len(), content.length);
    Ok(())
}

/// The ports that are there, and those of them that answer anybody: docs/security.md says why.
fn ports(cluster: &Cluster) -> [(&Host, &'static [u16], &'static [u16]); 2] {
    [
        (&cluster.first.host, &[40901, 65001, 65002], &[65001, 40901]),
        (&cluster.scheduler, &[8000, 8002], &[8000]),
    ]
}

fn a_host_without_a_certificate_is_answered_by_no_port(cluster: &Cluster) -> Result<()> {
    let self_made = self_made(&cluster.stranger)?;
    let of_another = Identity::of(&cluster.elsewhere.host);
    for (host, all, open) in ports(cluster) {
        ensure!(listening(host)? == all, "{} listens on {:?}", host.name(), listening(host)?);
        for port in all.iter().filter(|port| !open.contains(port)) {
            for said in [
                &b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"[..],
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
            ] {
                let answer = answer_of(&cluster.stranger, host, *port, said)?;
                // At most the alert that TLS was expected: 7 bytes, of type 21.
                ensure!(
                    answer.len() <= 7 && answer.first().is_none_or(|kind| *kind == 21),
                    "port {port} of {}: {answer:?}",
                    host.name()
                );
            }
            for (shown, alert) in [
                (None, CERTIFICATE_REQUIRED),
                (Some(&self_made), UNKNOWN_CA),
                (Some(&of_another), UNKNOWN_CA),
            ] {
                is_refused(&cluster.stranger, (host, *port), shown, alert)?;
            }
            let member = Identity::of(&cluster.second.host);
            let said = shakes_hands(&cluster.stranger, (host, *port), Some(&member))?;
            ensure!(
                !said.stdout.is_empty(),
                "port {port} of {} takes no member: what is refused here is not shown: {}",
                host.name(),
                said.stderr
            );
        }
    }
    Ok(())
}

/// A certificate and its key, PEM.
struct Identity {
    certificate: PathBuf,
    key: PathBuf,
}

impl Identity {
    /// That of a node.
    fn of(host: &Host) -> Self {
        let folder = host.folder().join("work/node");
        Self { certificate: folder.join("node.crt"), key: folder.join("node.key") }
    }

    /// A copy of it as it is now.
    fn kept(host: &Host) -> Result<Self> {
        let (now, folder) = (Self::of(host), host.new_folder("kept")?);
        let kept = Self { certificate: folder.join("a.crt"), key: folder.join("a.key") };
        std::fs::copy(now.certificate, &kept.certificate)?;
        std::fs::copy(now.key, &kept.key)?;
        Ok(kept)
    }
}

/// Whoever makes a certificate for himself can write into it what he likes.
fn self_made(host: &Host) -> Result<Identity> {
    let folder = host.new_folder("self-made")?;
    let (certificate, key) = (folder.join("a.crt"), folder.join("a.key"));
    let mut command = host.command("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
    command.args(["-subj", "/CN=Darter member", "-addext", "subjectAltName=URI:darter://operator/a"]);
    command.arg("-out").arg(&certificate).arg("-keyout").arg(&key);
    run(&mut command, START_LIMIT)?.ok()?;
    Ok(Identity { certificate, key })
}

/// What a port says before it hangs up.
fn answer_of(from: &Host, to: &Host, port: u16, said: &[u8]) -> Result<Vec<u8>> {
    let mut stream = from.connect(to.port(port))?;
    stream.set_read_timeout(Some(START_LIMIT))?;
    stream.write_all(said)?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Err(error.into()),
        _ => Ok(answer),
    }
}

/// Alerts of TLS (RFC 8446 section 6.2), as openssl names them.
const CERTIFICATE_REQUIRED: &str = "SSL alert number 116";
const UNKNOWN_CA: &str = "SSL alert number 48";
const CERTIFICATE_REVOKED: &str = "SSL alert number 44";

/// Fails unless somebody who shows this is refused there, and for this reason.
fn is_refused(from: &Host, (to, port): (&Host, u16), shown: Option<&Identity>, alert: &str) -> Result<()> {
    let said = shakes_hands(from, (to, port), shown)?;
    let place = || format!("port {port} of {}", to.name());
    ensure!(said.stdout.is_empty(), "{} answers: {}", place(), said.stdout);
    ensure!(said.stderr.contains(alert), "{}: expected {alert}, and not: {}", place(), said.stderr);
    Ok(())
}

/// What somebody who believes everything is told through TLS, and of it. A server of HTTP/2 speaks first.
fn shakes_hands(from: &Host, (to, port): (&Host, u16), shown: Option<&Identity>) -> Result<Output> {
    let ask = "(printf 'GET / HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n'; sleep 1) \\
        | openssl s_client -quiet -verify_quiet -connect \"$@\"";
    let mut command = from.command("sh");
    command.args(["-c", ask, "sh", &to.port(port).to_string()]);
    if let Some(Identity { certificate, key }) = shown {
        command.arg("-cert").arg(certificate).arg("-key").arg(key);
    }
    run(&mut command, START_LIMIT)
}

/// The TCP ports on which something listens.
fn listening(host: &Host) -> Result<Vec<u16>> {
    let mut ports = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = run(host.command("cat").arg(table), START_LIMIT)?.ok()?.stdout;
        let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let listens = lines.filter(|words| words.get(3) == Some(&"0A"));
        let port = |words: Vec<&str>| u16::from_str_radix(words.get(1)?.rsplit(':').next()?, 16).ok();
        ports.extend(listens.filter_map(port));
    }
    ports.sort_unstable();
    Ok(ports)
}

fn who_cannot_join_is_told_why_and_what_to_do(cluster: &Cluster) -> Result<()> {
    let used_up = token(&cluster.scheduler, &[])?;
    let folder = cluster.stranger.new_folder("used")?;
    let file = folder.join("darter.yaml");
    std::fs::write(&file, config(&cluster.stranger).replace("/work", "/work-used"))?;
    let start = |token: Option<&str>| {
        let mut command = cluster.stranger.command(binary());
        command.arg("daemon").arg("--config").arg(&file);
        if let Some(token) = token {
            command.args(["--join", token]);
        }
        command
    };
    let log = folder.join("log");
    let daemon = Process::start("stranger", &mut start(Some(&used_up)), &log)?;
    daemon
        .wait_line("it to join", START_LIMIT, |line| line.contains("joined the scheduler").then_some(()))?;
    daemon.kill()?;
    std::fs::remove_dir_all(cluster.stranger.folder().join("work-used"))?;
    let expired = token(&cluster.scheduler, &["--ttl", "1s"])?;
    let id = expired.split('.').nth(1).context("a token has an id")?;
    until("a token to expire", START_LIMIT, || {
        let listed = cluster.darter(&["token", "list"]).ok()?.stdout;
        listed.lines().any(|line| line.contains(id) && line.contains("expired")).then_some(())
    })?;
    let revoked = token(&cluster.scheduler, &[])?;
    let id = revoked.split('.').nth(1).context("a token has an id")?;
    cluster.darter(&["token", "revoke", id])?.ok()?;
    for (token, code, says) in [
        (Some(used_up.as_str()), 77, "the join token is used up: make another"),
        (Some(&expired), 77, "the join token has expired: make another"),
        (Some(&revoked), 77, "does not know the join token"),
        (Some("darter1.x"), 78, "this is no join token"),
        (None, 78, "run `darter token create` on a scheduler's host"),
    ] {
        let ended = run(&mut start(token), START_LIMIT)?.failed()?;
        ensure!(ended.status.code() == Some(code), "{says}: {:?}\n{}", ended.status, ended.stderr);
        let last = ended.stderr.trim_end().lines().next_back().unwrap_or_default();
        ensure!(last.contains(says), "expected: {says}\nfound: {last}");
    }
    Ok(())
}

fn certificates_are_renewed_while_a_download_goes_on(cluster: &Cluster) -> Result<()> {
    // For two lives of a certificate.
    let content = Content::new(2, 24 * MIB);
    let (url, path) = cluster.offer(content, Some(MIB));
    let nodes = [&cluster.first, &cluster.second];
    let before = nodes.map(|node| node.metric("darter_enrol_certificate_end_time_seconds"));
    std::thread::scope(|scope| {
        let downloads = nodes.map(|node| scope.spawn(|| node.get(&url)));
        downloads.into_iter().try_for_each(|download| {
            ensure!(download.join().expect("no panic")? == content.digest(), "something else");
            Ok(())
        })
    })?;
    ensure!(cluster.origin.sent(&path) == content.length, "{} bytes", cluster.origin.sent(&path));
    for (node, before) in nodes.into_iter().zip(before) {
        let (before, after) = (before?, node.metric("darter_enrol_certificate_end_time_seconds")?);
        ensure!(after >= before + 12.0, "from {before} to {after}: it was not renewed twice");
    }
    Ok(())
}

fn an_expelled_node_gets_nothing_from_anybody(cluster: &Cluster) -> Result<()> {
    let content = Content::new(3, 6 * MIB);
    let (url, path) = cluster.offer(content, None);
    ensure!(cluster.first.get(&url)? == content.digest(), "something else");
    // One that has most of its time before it: it is to be refused for nothing else.
    let ends = || cluster.second.metric("darter_enrol_certificate_end_time_seconds").ok();
    let since_1970 = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let fresh = || ends().filter(|ends| ends - since_1970() > 9.0);
    until("a certificate that is new", START_LIMIT, fresh)?;
    let said = cluster.darter(&["expel", "second"])?.ok()?;
    ensure!(said.stdout.contains("is expelled"), "{}", said.stdout);
    // Taken away at once, before its time ends.
    let expelled = Identity::kept(&cluster.second.host)?;
    let knows = || cluster.first.metric("darter_enrol_expelled_hosts").ok().filter(|hosts| *hosts == 1.0);
    until("the first to know", START_LIMIT, knows)?;
    for (host, all, open) in ports(cluster) {
        for port in all.iter().filter(|port| !open.contains(port)) {
            is_refused(&cluster.stranger, (host, *port), Some(&expelled), CERTIFICATE_REVOKED)?;
        }
    }
    until("the second to be without a scheduler", START_LIMIT, || {
        cluster.second.metric("darter_p2p_schedulers_up").ok().filter(|up| *up == 0.0)
    })?;
    ensure!(cluster.second.get(&url)? == content.digest(), "it still serves its clients");
    ensure!(cluster.origin.sent(&path) == 2 * content.length, "it had it from the first");
    let told = |line: &str| line.contains("this node was expelled").then_some(());
    cluster.second.daemon.process.wait_line("it to hear why", START_LIMIT, told)?;
    let status = cluster.darter(&["status", "--scheduler", "scheduler:8002"])?.ok()?.stdout;
    ensure!(status.contains("first-") && !status.contains("second-"), "{status}");
    Ok(())
}
