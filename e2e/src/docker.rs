//! [`Dockerd`]: a real Docker engine of its own on a host.

use crate::darter::workspace;
use crate::net::{Host, Launch};
use crate::poll::until;
use crate::process::{Output, Process, run};
use anyhow::{Context, Result};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long the engine may take to start.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long one command may take: pulls and pushes of half a gigabyte on two cores.
const COMMAND_LIMIT: Duration = Duration::from_secs(240);

/// How an engine is set up.
#[derive(Default)]
pub struct Setup {
    /// HTTPS_PROXY and HTTP_PROXY in its environment.
    pub proxy: Option<String>,
    /// `proxies` in its daemon.json, which Docker knows from version 23 on: such an engine is what starts then.
    pub proxy_in_settings: Option<String>,
    /// `registry-mirrors` in its daemon.json.
    pub mirrors: Vec<String>,
    /// Authorities that it trusts: (registry, certificate file), as in /etc/docker/certs.d.
    pub certs: Vec<(&'static str, PathBuf)>,
    /// Authorities in its system's store: what /etc/ssl/certs/ca-certificates.crt holds for it.
    pub system_trust: Option<PathBuf>,
}

/// A running engine: its data, socket and settings are its own, and the machine's are untouched.
pub struct Dockerd {
    process: Process,
    folder: PathBuf,
}

impl Dockerd {
    /// Starts an engine on `host`.
    pub fn start(host: &Host, setup: &Setup) -> Result<Self> {
        let folder = host.new_folder("docker")?;
        let etc = folder.join("etc");
        for (registry, certificate) in &setup.certs {
            let certs = etc.join("certs.d").join(registry);
            std::fs::create_dir_all(&certs)?;
            std::fs::copy(certificate, certs.join("ca.crt"))?;
        }
        std::fs::create_dir_all(&etc)?;
        let mut settings = serde_json::json!({ "registry-mirrors": setup.mirrors });
        if let Some(proxy) = &setup.proxy_in_settings {
            settings["proxies"] = serde_json::json!({ "http-proxy": proxy, "https-proxy": proxy });
        }
        std::fs::write(etc.join("daemon.json"), settings.to_string())?;

        let mut mounts = vec![(etc, PathBuf::from("/etc/docker"))];
        mounts.extend(setup.system_trust.iter().map(|file| (file.clone(), SYSTEM_TRUST.into())));
        let program = if setup.proxy_in_settings.is_some() { newer()? } else { "dockerd".into() };
        let mut command = host.launch(program, &Launch { mounts, family: true });
        for (flag, name) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")] {
            command.arg(flag).arg(folder.join(name));
        }
        command.arg("--host").arg(socket(&folder));
        command.args([
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
            "--ip-forward=false",
            "--ip-masq=false",
        ]);
        if let Some(proxy) = &setup.proxy {
            command.env("HTTP_PROXY", proxy).env("HTTPS_PROXY", proxy);
        }
        let process = Process::start("dockerd", &mut command, &folder.join("log"))?;
        process
            .wait_line("that it listens", START_LIMIT, |line| line.contains("API listen on").then_some(()))?;
        Ok(Self { process, folder })
    }

    /// Runs the command-line client against this engine.
    pub fn docker(&self, args: &[&str]) -> Result<Output> {
        let mut command = Command::new(client());
        command
            .arg("--config")
            .arg(self.folder.join("client"))
            .arg("--host")
            .arg(socket(&self.folder))
            .args(args);
        command.env_remove("DOCKER_HOST");
        run(&mut command, COMMAND_LIMIT)
    }

    /// What the client shows to a registry from now on, `user:password`, whatever a `docker login` would say of it.
    pub fn show(&self, registry: &str, credentials: Option<&str>) -> Result<()> {
        let mut auths = serde_json::Map::new();
        if let Some(credentials) = credentials {
            let auth = BASE64_STANDARD.encode(credentials);
            auths.insert(registry.to_owned(), serde_json::json!({ "auth": auth }));
        }
        let folder = self.folder.join("client");
        std::fs::create_dir_all(&folder)?;
        let config = serde_json::json!({ "auths": auths }).to_string();
        Ok(std::fs::write(folder.join("config.json"), config)?)
    }

    /// Pulls.
    pub fn pull(&self, reference: &str) -> Result<()> {
        let output = self.docker(&["pull", "--quiet", reference])?.ok();
        output
            .with_context(|| format!("cannot pull {reference}: {}", tail(&self.process.log(), 12)))
            .map(drop)
    }

    /// What the engine says of one of its images.
    pub fn inspect(&self, reference: &str) -> Result<Value> {
        let text = self.docker(&["image", "inspect", reference])?.ok()?.stdout;
        let mut list: Vec<Value> = serde_json::from_str(&text)?;
        list.pop().context("no image")
    }

    /// Fails unless the engine's image is `image`: the same configuration, the same layers.
    pub fn check(&self, reference: &str, image: &crate::image::Image) -> Result<()> {
        let found = self.inspect(reference)?;
        anyhow::ensure!(found["Id"] == image.id.as_str(), "{reference} is {}, not {}", found["Id"], image.id);
        let layers = serde_json::json!(image.layers);
        anyhow::ensure!(
            found["RootFS"]["Layers"] == layers,
            "{reference} has layers {}",
            found["RootFS"]["Layers"]
        );
        Ok(())
    }

    /// What it wrote.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

/// An engine of version 23 or later: the machine's own, or what `cargo xtask install-clients` has fetched.
fn newer() -> Result<PathBuf> {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    let candidates = ["dockerd".into(), target.join("newer-docker/usr/sbin/dockerd")];
    let knows = |dockerd: &PathBuf| {
        let help = run(Command::new(dockerd).arg("--help"), START_LIMIT);
        help.is_ok_and(|help| help.stdout.contains("--http-proxy"))
    };
    candidates
        .into_iter()
        .find(knows)
        .context("no dockerd of version 23 or later: cargo xtask install-clients")
}

/// Where Debian's programs look for trusted authorities.
pub const SYSTEM_TRUST: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The client that belongs to the engine: a much newer one may refuse to talk to it.
fn client() -> &'static str {
    if Path::new("/usr/bin/docker").exists() { "/usr/bin/docker" } else { "docker" }
}

fn socket(folder: &Path) -> String {
    format!("unix://{}", folder.join("socket").display())
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Waits until `registry` of `engine` has no image any more; for tests that pull the same image twice.
pub fn forget(engine: &Dockerd, reference: &str) -> Result<()> {
    engine.docker(&["image", "rm", "--force", reference])?.ok()?;
    until("the image to be gone", START_LIMIT, || {
        engine
            .docker(&["image", "inspect", reference])
            .ok()
            .filter(|output| !output.status.success())
            .map(drop)
    })
}
