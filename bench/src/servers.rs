//! What is measured: a daemon of ours, and nginx.

use crate::client::Load;
use crate::cpu::Serves;
use anyhow::{Context, Result};
use darter_e2e::content::Content;
use darter_e2e::darter::{Daemon, START_LIMIT, Scheduler, loopback_config};
use darter_e2e::http;
use darter_e2e::process::Process;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// nginx as one process, serving files by sendfile.
pub(crate) struct Nginx {
    process: Process,
    pub(crate) address: SocketAddr,
    root: PathBuf,
}

/// A daemon that mirrors nginx as if that were a registry.
pub(crate) struct Darter(Daemon);

/// A file that nginx serves under a blob's path.
pub(crate) struct Blob {
    path: String,
    file: PathBuf,
    length: u64,
}

impl Nginx {
    pub(crate) fn start(folder: &Path) -> Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let root = folder.join("nginx");
        std::fs::create_dir_all(root.join("v2/bench/blobs"))?;
        let config = folder.join("nginx.conf");
        let text = format!(
            "daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
             events {{ worker_connections 1024; }}
             http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000;
               client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
               uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
               server {{ listen {address}; root {root}; }} }}",
            folder = folder.display(),
            root = root.display()
        );
        std::fs::write(&config, text)?;
        let mut command = Command::new("nginx");
        command.arg("-c").arg(&config);
        let process = Process::start("nginx", &mut command, &folder.join("nginx.out"))?;
        let limit = Instant::now() + START_LIMIT;
        while http::connect(address).is_err() {
            anyhow::ensure!(Instant::now() < limit, "nginx does not serve: {}", process.log());
            std::thread::yield_now();
        }
        Ok(Self { process, address, root })
    }
}

impl Darter {
    pub(crate) fn start(
        name: &str,
        folder: &Path,
        nginx: &Nginx,
        scheduler: Option<&Scheduler>,
    ) -> Result<Self> {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder)?;
        let mut config =
            loopback_config(&folder, &format!("  registryMirror: {{ url: \"http://{}\" }}\n", nginx.address));
        if let Some(scheduler) = scheduler {
            config +=
                &format!("scheduler: {{ netAddrs: [{{ type: tcp, addr: \"{}\" }}] }}\n", scheduler.address);
        }
        config = config.replace("hostname: loopback", &format!("hostname: {name}"));
        // What a log of every request costs is not what is measured.
        Ok(Self(Daemon::start(name, &folder, &config)?))
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.proxy
    }

    pub(crate) fn metric(&self, name: &str) -> Result<f64> {
        self.0.metric(name)
    }

    /// Fetches a blob until it comes from this daemon's own disk.
    pub(crate) fn warm(&self, blob: &Blob) -> Result<()> {
        let completed = self.metric("darter_p2p_completed_total")?;
        Load { clients: 1, requests: 1, url: blob.path() }.run(self.address(), &[])?;
        let limit = Instant::now() + START_LIMIT;
        while self.metric("darter_p2p_completed_total")? == completed {
            anyhow::ensure!(Instant::now() < limit, "the daemon does not keep {}", blob.path);
        }
        Ok(())
    }

    pub(crate) fn peak_memory(&self) -> Result<u64> {
        self.0.process.peak_memory()
    }
}

impl Blob {
    pub(crate) fn write(nginx: &Nginx, seed: u64, length: u64) -> Result<Self> {
        let content = Content::new(seed, length);
        let path = format!("/v2/bench/blobs/{}", content.digest());
        let file = nginx.root.join(&path[1..]);
        std::io::copy(&mut content.reader(0), &mut std::fs::File::create(&file)?)
            .context("writing a blob")?;
        Ok(Self { path, file, length })
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    pub(crate) fn remove(self) -> Result<()> {
        Ok(std::fs::remove_file(self.file)?)
    }
}

impl Serves for Nginx {
    fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Serves for Darter {
    fn pid(&self) -> u32 {
        self.0.process.id()
    }
}
