//! [`Containerd`]: a real containerd of its own on a host, and `ctr` to drive it.

use crate::net::{Host, Launch};
use crate::process::{Output, Process, run};
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::time::Duration;

/// How long it may take to start.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long one command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(240);

/// A running containerd.
pub struct Containerd {
    _process: Process,
    host: Host,
    folder: PathBuf,
}

impl Containerd {
    /// Starts containerd on `host`.
    pub fn start(host: &Host) -> Result<Self> {
        let folder = host.new_folder("containerd")?;
        // The CRI plugin wants a network of its own, and nobody here asks it anything.
        let config = format!(
            "version = 2\nroot = '{folder}/root'\nstate = '{folder}/state'\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n\
             [grpc]\naddress = '{folder}/socket'\n[plugins.'io.containerd.internal.v1.opt']\npath = '{folder}/opt'\n",
            folder = folder.display()
        );
        let file = folder.join("config.toml");
        std::fs::write(&file, config)?;
        let mut command = host.launch("containerd", &Launch { family: true, ..Launch::default() });
        command.arg("--config").arg(file);
        let process = Process::start("containerd", &mut command, &folder.join("log"))?;
        process.wait_line("that it serves", START_LIMIT, |line| {
            line.contains("successfully booted").then_some(())
        })?;
        Ok(Self { _process: process, host: host.clone(), folder })
    }

    /// Writes the `hosts.toml` of a registry.
    pub fn set_hosts(&self, registry: &str, toml: &str) -> Result<()> {
        let folder = self.folder.join("certs.d").join(registry);
        std::fs::create_dir_all(&folder)?;
        Ok(std::fs::write(folder.join("hosts.toml"), toml)?)
    }

    /// Pulls, with the registries' `hosts.toml`. `ctr` itself talks to the registry, so that it runs on the host.
    pub fn pull(&self, reference: &str) -> Result<Output> {
        self.pull_as(reference, None)
    }

    /// The same as somebody: `user:password`.
    pub fn pull_as(&self, reference: &str, credentials: Option<&str>) -> Result<Output> {
        let mut command = self.ctr();
        command.args(["images", "pull", "--hosts-dir"]).arg(self.folder.join("certs.d"));
        command.args(credentials.iter().flat_map(|credentials| ["--user", credentials]));
        run(command.arg(reference), COMMAND_LIMIT)
    }

    /// The digest of an image's manifest.
    pub fn manifest(&self, reference: &str) -> Result<String> {
        let output = run(self.ctr().args(["images", "list"]), COMMAND_LIMIT)?.ok()?;
        let line = output.stdout.lines().find(|line| line.split_whitespace().next() == Some(reference));
        let digest = line.and_then(|line| line.split_whitespace().find(|word| word.starts_with("sha256:")));
        digest.map(str::to_owned).with_context(|| format!("no {reference} in:\n{}", output.stdout))
    }

    fn ctr(&self) -> std::process::Command {
        let mut command = self.host.command("ctr");
        command.arg("--address").arg(self.folder.join("socket"));
        command
    }
}
