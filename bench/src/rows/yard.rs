//! [`Yard`]: a daemon and its origin on hosts of their own, in network namespaces. Takes root.

use crate::stage::Stage;
use anyhow::Result;
use darter_e2e::darter::Daemon;
use darter_e2e::http;
use darter_e2e::net::{Host, Lab};

/// Two hosts, and the network between them.
pub(super) struct Yard {
    _daemon: Daemon,
    pub(super) node: Host,
    pub(super) origin: Host,
    // Last: the others run in it.
    _lab: Lab,
}

/// Where a daemon's proxy listens, unless it is told otherwise.
pub(super) const PROXY: u16 = 65001;

impl Yard {
    /// With an origin that has these names.
    pub(super) fn set(stage: &Stage, names: &[&str]) -> Result<Self> {
        let mut lab = Lab::new()?;
        let (origin, node) = (lab.host(names)?, lab.host(&["node"])?);
        let config = format!(
            "log: {{ access: false }}
host: {{ hostname: node, advertiseIP: {ip} }}
workHome: {folder}/work
dataDir: {folder}/content
proxy:
  whiteList: [{{ host: 10.79.0.0/24 }}]
  proxies: [{{ regx: /direct/, direct: true }}]
  hijackHTTPS: {{ hosts: [{{ regx: '.*', certs: ['{ca}'] }}] }}\n",
            ip = node.address(),
            folder = node.folder().display(),
            ca = stage.folder().join("ca.crt").display(),
        );
        let daemon = Daemon::start_on(&node, node.folder(), &config)?;
        Ok(Self { _daemon: daemon, node, origin, _lab: lab })
    }

    /// What clients of the daemon must trust, PEM.
    pub(super) fn ca(&self) -> Result<String> {
        let stream = self.node.connect(self.node.port(PROXY))?;
        let request =
            http::Request { method: "GET", target: "/ca.crt", host: "node", headers: &[], body: None };
        http::send(Box::new(stream), &request)?.text()
    }
}
