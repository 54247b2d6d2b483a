//! [`Node`]: a host of a cluster, with a daemon that its clients use.

use crate::darter::{Daemon, binary};
use crate::docker::SYSTEM_TRUST;
use crate::http;
use crate::net::{Host, Launch};
use anyhow::Result;
use std::path::PathBuf;
use std::process::Command;

/// A host with a daemon. Its scheduler is the host of that name.
pub struct Node {
    /// The host.
    pub host: Host,
    /// Its daemon.
    pub daemon: Daemon,
    /// The daemon's own authority: a file in a folder of its own.
    pub ca: PathBuf,
}

impl Node {
    /// Starts a daemon on `host`. `proxy` is what stands under `proxy:`, indented by two.
    pub fn start(host: Host, proxy: &str) -> Result<Self> {
        let command = host.command(binary());
        Self::start_by(host, proxy, command)
    }

    /// The same, by a command on `host` that ends with the binary.
    pub fn start_by(host: Host, proxy: &str, command: Command) -> Result<Self> {
        Self::start_with(host, proxy, command, "security: { insecure: true, insecureOnNetworks: true }")
    }

    /// The same of one that joins its cluster by a token of the scheduler.
    pub fn start_member(host: Host, proxy: &str, mut command: Command, token: &str) -> Result<Self> {
        command.env("DARTER_JOIN_TOKEN", token);
        Self::start_with(host, proxy, command, "")
    }

    fn start_with(host: Host, proxy: &str, command: Command, security: &str) -> Result<Self> {
        let folder = host.folder();
        // Who else fills this machine's disk is not what is tested.
        let config = format!(
            "host: {{ hostname: {name}, advertiseIP: {ip} }}
workHome: {folder}/work
dataDir: {folder}/content
storage: {{ diskGCThresholdPercent: 0 }}
scheduler:
  netAddrs: [{{ type: tcp, addr: 'scheduler:8002' }}]
{security}
proxy:
{proxy}",
            name = host.name(),
            ip = host.address(),
            folder = folder.display(),
        );
        let daemon = Daemon::start_by(&host, folder, &config, command)?;
        let ca = folder.join("darter-ca").join("ca.crt");
        std::fs::create_dir(folder.join("darter-ca"))?;
        let request =
            http::Request { method: "GET", target: "/ca.crt", host: "node", headers: &[], body: None };
        std::fs::write(&ca, http::send(Box::new(host.connect(host.port(65001))?), &request)?.text()?)?;
        Ok(Self { host, daemon, ca })
    }

    /// What clients are given as their proxy.
    pub fn proxy(&self) -> String {
        format!("http://{}", self.host.port(65001))
    }

    /// A client on this host, to whom the daemon's authority is one of the system's: what `trust-ca.sh` does.
    pub fn client(&self, program: &str) -> Command {
        let mounts = vec![(self.ca.clone(), PathBuf::from(SYSTEM_TRUST))];
        self.host.launch(program, &Launch { mounts, family: false })
    }
}
