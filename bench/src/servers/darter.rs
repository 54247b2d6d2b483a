//! [`Darter`]: a daemon whose clients and origins are on loopback.

use crate::client::Load;
use crate::cpu::Serves;
use crate::servers::{Blob, Nginx};
use crate::way::Way;
use anyhow::Result;
use darter_e2e::ca::client_trusting;
use darter_e2e::darter::{Daemon, START_LIMIT, Scheduler, loopback_config};
use darter_e2e::poll::until;
use std::path::{Path, PathBuf};

/// A daemon through which clients reach an [`origin`](super::origin). Its folder goes when it is dropped.
pub(crate) struct Darter {
    daemon: Daemon,
    origin: (String, String),
    _folder: Folder,
}

/// Removed when it is dropped: each cold run writes gigabytes.
struct Folder(PathBuf);

impl Darter {
    /// Starts one of this name, which no other has.
    pub(crate) fn start(
        name: &str,
        folder: &Path,
        origin: &Nginx,
        scheduler: Option<&Scheduler>,
    ) -> Result<Self> {
        let mut ca = folder.to_owned();
        ca.push("ca.crt");
        let folder = Folder(folder.join(name));
        std::fs::create_dir_all(&folder.0)?;
        // What a log of every request costs is not what is measured: nginx writes none.
        // Nor is how full others have made this disk.
        let mut config = String::from("log: { access: false }\nstorage: { diskGCThresholdPercent: 100 }\n");
        config += &loopback_config(
            &folder.0,
            &format!(
                "  proxies: [{{ regx: /direct/, direct: true }}, {{ regx: /files/ }}]
  hijackHTTPS: {{ hosts: [{{ regx: '.*', certs: ['{}'] }}] }}\n",
                ca.display()
            ),
        );
        if let Some(scheduler) = scheduler {
            config +=
                &format!("scheduler: {{ netAddrs: [{{ type: tcp, addr: \"{}\" }}] }}\n", scheduler.address);
            config += &match scheduler.token()? {
                Some(token) => {
                    let file = folder.0.join("token");
                    std::fs::write(&file, token)?;
                    format!("security: {{ joinTokenFile: {} }}\n", file.display())
                }
                None => "security: { insecure: true }\n".to_owned(),
            };
        }
        config = config.replace("hostname: loopback", &format!("hostname: {name}"));
        let daemon = Daemon::start(name, &folder.0, &config)?;
        Ok(Self { daemon, origin: (origin.plain.to_string(), origin.tls.to_string()), _folder: folder })
    }

    /// To the origin through this daemon.
    pub(crate) fn plain(&self) -> Way {
        self.to(&self.origin.0)
    }

    /// To another origin through this daemon.
    pub(crate) fn to(&self, origin: impl ToString) -> Way {
        Way::through(self.daemon.proxy, origin)
    }

    /// The same by CONNECT, and TLS with a leaf of this daemon.
    pub(crate) fn tls(&self) -> Result<Way> {
        let trusting = client_trusting(&self.daemon.ca()?)?;
        Ok(Way::through(self.daemon.proxy, &self.origin.1).with_tls(trusting))
    }

    pub(crate) fn metric(&self, name: &str) -> Result<f64> {
        self.daemon.metric(name)
    }

    /// Fetches a blob until it comes from this daemon's own disk.
    pub(crate) fn warm(&self, blob: &Blob) -> Result<()> {
        let completed = self.metric("darter_p2p_completed_total")?;
        Load { clients: 1, requests: 1, paths: &[blob.path()], way: &self.plain() }.run(&[])?;
        until("the daemon to keep a blob", START_LIMIT, || {
            self.metric("darter_p2p_completed_total").ok().filter(|now| *now > completed)
        })
        .map(drop)
    }

    /// Bytes of memory: now, and at most so far.
    pub(crate) fn memory(&self) -> Result<(u64, u64)> {
        Ok((self.daemon.process.resident_memory()?, self.daemon.process.peak_memory()?))
    }
}

impl Serves for Darter {
    fn pid(&self) -> u32 {
        self.daemon.process.id()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left goes at the end in any case.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
