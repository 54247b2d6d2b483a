//! [`Daemon`], [`Scheduler`] and [`Up`]: the real binary, on a host of the lab or on loopback.

use crate::http;
use crate::net::Host;
use crate::process::Process;
use anyhow::{Context, Result, ensure};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

/// How long the binary may take to serve.
pub const START_LIMIT: Duration = Duration::from_secs(30);

/// What [`binary`] found.
static BINARY: OnceLock<PathBuf> = OnceLock::new();

/// The binary under test, once somebody has asked for it.
pub(crate) fn known_binary() -> Option<&'static Path> {
    BINARY.get().map(PathBuf::as_path)
}

/// The binary under test: `DARTER_BIN`, or the workspace's own, built now so that it is never an old one.
pub fn binary() -> &'static Path {
    BINARY.get_or_init(|| match std::env::var_os("DARTER_BIN") {
        Some(path) => path.into(),
        None => build().expect("the binary can be built"),
    })
}

fn build() -> Result<PathBuf> {
    let root = workspace();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root).args([
        "build",
        "--quiet",
        "--package",
        "darter",
        "--message-format=json-render-diagnostics",
    ]);
    let output = crate::process::run(&mut cargo, Duration::from_secs(1800))?;
    ensure!(output.status.success(), "the binary cannot be built:\n{}", output.stderr);
    let artefacts =
        output.stdout.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let executable = artefacts.filter_map(|line| line["executable"].as_str().map(PathBuf::from)).next_back();
    executable.context("cargo built no executable")
}

/// The workspace's root folder.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("e2e stands in the workspace")
}

/// Where a part of the binary listens: it says so itself, so that port 0 works.
pub fn listening(process: &Process, component: &str) -> Result<SocketAddr> {
    let what = format!("where its {component} listens");
    process.wait_line(&what, START_LIMIT, |line| {
        let plain = strip_colours(line);
        let (_, words) = plain.split_once("listening")?;
        let value =
            |key: &str| words.split_whitespace().find_map(|word| word.strip_prefix(key).map(str::to_owned));
        if value("component=")? != component {
            return None;
        }
        value("addr=")?.parse().ok()
    })
}

/// Without the terminal's colour sequences.
pub fn strip_colours(line: &str) -> String {
    let mut parts = line.split("\x1b[");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        plain.push_str(part.split_once('m').map_or(part, |(_, rest)| rest));
    }
    plain
}

/// The configuration of a daemon that keeps everything in `folder`, listens on free ports of loopback, and may fetch from
/// there. `proxy` is what further stands under `proxy:`, indented by two.
pub fn loopback_config(folder: &Path, proxy: &str) -> String {
    format!(
        "host: {{ hostname: loopback, advertiseIP: 127.0.0.1 }}
workHome: {folder}/work
dataDir: {folder}/content
download: {{ peerGRPC: {{ tcpListen: {{ listen: 127.0.0.1, port: 0 }} }} }}
upload: {{ tcpListen: {{ listen: 127.0.0.1, port: 0 }} }}
health: {{ tcpListen: {{ listen: 127.0.0.1, port: 0 }} }}
proxy:
  tcpListen: {{ listen: 127.0.0.1, port: 0 }}
  whiteList: [{{ host: 127.0.0.0/8 }}]
{proxy}",
        folder = folder.display()
    )
}

/// Reads all content in a daemon's folder that no daemon works in.
///
/// # Errors
/// When anything is wrong with it, but for what a crash leaves over.
pub fn check_store(folder: &Path) -> Result<()> {
    let mut command = Command::new(binary());
    crate::process::run(command.args(["store", "check"]).arg(folder), START_LIMIT)?.ok().map(drop)
}

/// A running daemon.
pub struct Daemon {
    /// Its process.
    pub process: Process,
    /// Its proxy port.
    pub proxy: SocketAddr,
    /// Its health port.
    pub health: SocketAddr,
}

impl Daemon {
    /// Starts a daemon on loopback with this configuration, and waits until it is healthy.
    pub fn start(name: &str, folder: &Path, config: &str) -> Result<Self> {
        Self::start_with(name, folder, config, Command::new(binary()), http::connect)
    }

    /// As [`Self::start`], with at most so many open files.
    pub fn start_with_files(name: &str, folder: &Path, config: &str, files: u32) -> Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -n {files} && exec \"$0\" \"$@\"")]).arg(binary());
        Self::start_with(name, folder, config, command, http::connect)
    }

    /// Starts a daemon on `host` with this configuration, and waits until it is healthy.
    pub fn start_on(host: &Host, folder: &Path, config: &str) -> Result<Self> {
        Self::start_by(host, folder, config, host.command(binary()))
    }

    /// As [`Self::start_on`], by a command on `host` that ends with the binary: one that takes rights away before.
    pub fn start_by(host: &Host, folder: &Path, config: &str, command: Command) -> Result<Self> {
        Self::start_with(host.name(), folder, config, command, |to| {
            host.connect(SocketAddr::new(host.address().into(), to.port()))
        })
    }

    fn start_with(
        name: &str,
        folder: &Path,
        config: &str,
        mut command: Command,
        connect: impl Fn(SocketAddr) -> Result<std::net::TcpStream>,
    ) -> Result<Self> {
        let file = folder.join(format!("{name}.yaml"));
        std::fs::write(&file, config)?;
        // RUST_LOG, where there is one, is passed on; otherwise `log` in the configuration counts.
        command.arg("daemon").arg("--config").arg(file);
        let process = Process::start(name, &mut command, &folder.join(format!("{name}.log")))?;
        let (proxy, health) = (listening(&process, "proxy")?, listening(&process, "health")?);
        wait_healthy(&process, health, connect)?;
        Ok(Self { process, proxy, health })
    }

    /// What clients must trust, PEM: from the proxy port, as people get it. Loopback only.
    pub fn ca(&self) -> Result<String> {
        let answer = http::get(self.proxy, "/ca.crt", &[])?;
        ensure!(answer.status == 200, "/ca.crt: {}", answer.status);
        answer.text()
    }

    /// A client's TLS session with `name:port` through an intercepted tunnel. Loopback only.
    pub fn intercepted(&self, name: &str, port: u16) -> Result<Box<dyn http::Stream>> {
        let stream = http::tunnel(http::connect(self.proxy)?, &format!("{name}:{port}"))?;
        let stream =
            stream.map_err(|answer| anyhow::anyhow!("refused: {} {}", answer.status, answer.reason))?;
        http::tls(stream, name, crate::ca::client_trusting(&self.ca()?)?)
    }

    /// The value of a sample on the metrics page whose line begins with `name`; the sum if there are several. Loopback only.
    pub fn metric(&self, name: &str) -> Result<f64> {
        metric(self.health, name)
    }
}

/// A running scheduler.
pub struct Scheduler {
    /// Its process.
    pub process: Process,
    /// Where daemons find it.
    pub address: SocketAddr,
    /// Its health port.
    pub health: SocketAddr,
    /// Where its CA stands, if it has one.
    data: Option<PathBuf>,
}

impl Scheduler {
    /// Starts a scheduler on loopback, on `port`.
    pub fn start(folder: &Path, port: u16) -> Result<Self> {
        Self::start_with(Command::new(binary()), folder, &format!("127.0.0.1:{port}"), "127.0.0.1:0", None)
    }

    /// Starts one on loopback that has a CA, in `folder`, and takes members of its cluster only.
    pub fn start_secured(folder: &Path) -> Result<Self> {
        Self::start_with(Command::new(binary()), folder, "127.0.0.1:0", "127.0.0.1:0", Some(folder))
    }

    /// A join token for one daemon; none, if nobody is asked for one.
    pub fn token(&self) -> Result<Option<String>> {
        let Some(data) = &self.data else { return Ok(None) };
        let mut command = Command::new(binary());
        command.args(["token", "create", "--data-dir"]).arg(data);
        let token = crate::process::run(&mut command, START_LIMIT)?.ok()?.stdout.trim().to_owned();
        crate::secret::note_token(&token);
        Ok(Some(token))
    }

    /// Starts a scheduler on `host`, on the usual ports.
    pub fn start_on(host: &Host) -> Result<Self> {
        Self::start_with(host.command(binary()), host.folder(), "0.0.0.0:8002", "0.0.0.0:40901", None)
    }

    /// The same, by a command on `host` that ends with the binary, of one that has a CA, in the host's folder, and takes members
    /// of its cluster only.
    pub fn start_secured_by(host: &Host, command: Command) -> Result<Self> {
        Self::start_with(command, host.folder(), "0.0.0.0:8002", "0.0.0.0:40901", Some(host.folder()))
    }

    fn start_with(
        mut command: Command,
        folder: &Path,
        listen: &str,
        health: &str,
        data: Option<&Path>,
    ) -> Result<Self> {
        command.args(["scheduler", "--listen", listen, "--health-listen", health]);
        match data {
            Some(data) => command.arg("--data-dir").arg(data),
            None => command.args(["--insecure", "--insecure-on-networks"]),
        };
        if !command.get_envs().any(|(name, _)| name == "RUST_LOG") {
            command.env("RUST_LOG", std::env::var_os("RUST_LOG").unwrap_or_else(|| "info".into()));
        }
        let process = Process::start("scheduler", &mut command, &folder.join("scheduler.log"))?;
        let (address, health) = (listening(&process, "scheduler")?, listening(&process, "health")?);
        Ok(Self { process, address, health, data: data.map(Path::to_owned) })
    }

    /// As [`Daemon::metric`].
    pub fn metric(&self, name: &str) -> Result<f64> {
        metric(self.health, name)
    }
}

/// `darter up`, with what it printed.
pub struct Up {
    /// Its process.
    pub process: Process,
    /// Its proxy port.
    pub proxy: SocketAddr,
    /// Its health port.
    pub health: SocketAddr,
}

impl Up {
    /// Starts it with these further arguments on loopback.
    pub fn start(folder: &Path, args: &[&str]) -> Result<Self> {
        Self::start_with(Command::new(binary()), folder, args, http::connect)
    }

    /// Starts it with these further arguments on `host`, where upstreams are trusted that `trust` (a file) signed.
    pub fn start_on(host: &Host, trust: &Path, args: &[&str]) -> Result<Self> {
        let mut command = host.command(binary());
        command.env("SSL_CERT_FILE", trust);
        Self::start_with(command, host.folder(), args, |to| host.connect(to))
    }

    fn start_with(
        mut command: Command,
        folder: &Path,
        args: &[&str],
        connect: impl Fn(SocketAddr) -> Result<std::net::TcpStream>,
    ) -> Result<Self> {
        command.arg("up").arg("--data-dir").arg(folder.join("data")).args(args);
        let process = Process::start("up", &mut command, &folder.join("up.log"))?;
        let (proxy, health) = (listening(&process, "proxy")?, listening(&process, "health")?);
        wait_healthy(&process, health, connect)?;
        Ok(Self { process, proxy, health })
    }
}

fn metric(health: SocketAddr, name: &str) -> Result<f64> {
    sum_of(&http::get(health, "/metrics", &[])?.text()?, name)
}

/// The sum of the samples on a page of metrics whose lines begin with `name`.
///
/// # Errors
/// When there is none: zero would be what a test of nothing expects.
pub fn sum_of(page: &str, name: &str) -> Result<f64> {
    let lines = page.lines().filter(|line| line.starts_with(name));
    let samples: Vec<f64> = lines.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
    ensure!(!samples.is_empty(), "there is no metric {name}");
    Ok(samples.iter().sum())
}

fn wait_healthy(
    process: &Process,
    health: SocketAddr,
    connect: impl Fn(SocketAddr) -> Result<std::net::TcpStream>,
) -> Result<()> {
    let host = &health.to_string();
    let request = http::Request { method: "GET", target: "/healthy", host, headers: &[], body: None };
    let ask = || http::send(Box::new(connect(health).ok()?), &request).ok();
    let waited =
        crate::poll::until("it to be healthy", START_LIMIT, || ask().filter(|answer| answer.status == 200));
    let answer = waited.with_context(|| process.log())?;
    ensure!(answer.text()?.trim() == "ok", "/healthy says something else than ok");
    Ok(())
}
