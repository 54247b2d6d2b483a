//! [`Nginx`]: as an origin, and as what stands before one.

use crate::cpu::Serves;
use crate::way::Way;
use anyhow::{Result, ensure};
use darter_e2e::ca::{Ca, Identity};
use darter_e2e::darter::START_LIMIT;
use darter_e2e::process::Process;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// A name that the certificates of [`origin`] are for, beside 127.0.0.1: nginx verifies no addresses.
const NAME: &str = "origin.bench";

/// And for all names below this.
pub(crate) const BELOW: &str = "hosts.bench";

/// nginx as one process, with and without TLS.
pub(crate) struct Nginx {
    process: Process,
    pub(crate) plain: SocketAddr,
    pub(crate) tls: SocketAddr,
    folder: PathBuf,
}

/// How one is set up.
pub(crate) struct Setting<'a> {
    /// For all that it writes.
    pub(crate) folder: &'a Path,
    /// Who signs its certificate.
    pub(crate) ca: &'a Ca,
    /// What stands within `http {}` beside what all have.
    pub(crate) servers: &'a str,
}

/// One that serves files by sendfile.
pub(crate) fn origin(folder: &Path, ca: &Ca) -> Result<Nginx> {
    let root = folder.join("origin/root");
    std::fs::create_dir_all(&root)?;
    let (plain, tls) = (free()?, free()?);
    let servers =
        format!("server {{ listen {plain}; listen {tls} ssl; root {root}; }}", root = root.display());
    let folder = folder.join("origin");
    let setting = Setting { folder: &folder, ca, servers: &servers };
    start(Command::new("nginx"), (plain, tls), &setting, connects)
}

/// One that keeps what it fetched from an origin at `plain` and `tls`, and passes through what lies below `/direct/`.
pub(crate) fn caching(
    folder: &Path,
    ca: &Ca,
    (plain_origin, tls_origin): (SocketAddr, SocketAddr),
) -> Result<Nginx> {
    let folder = folder.join("caching");
    std::fs::create_dir_all(&folder)?;
    let (plain, tls) = (free()?, free()?);
    let here = folder.display();
    ca.write(&folder.join("ca.crt"))?;
    let to = |scheme: &str| {
        format!(
            "location / {{ proxy_cache kept; proxy_cache_valid 200 1h; proxy_cache_lock on; proxy_pass {scheme}://{scheme}; }}
             location /direct/ {{ proxy_max_temp_file_size 0; proxy_pass {scheme}://{scheme}; }}"
        )
    };
    let servers = format!(
        "proxy_cache_path {here}/kept keys_zone=kept:10m levels=1:2 use_temp_path=off;
         proxy_http_version 1.1; proxy_set_header Connection ''; proxy_buffers 16 64k; proxy_buffer_size 64k;
         proxy_busy_buffers_size 256k;
         proxy_ssl_verify on; proxy_ssl_trusted_certificate {here}/ca.crt; proxy_ssl_name {NAME}; proxy_ssl_protocols TLSv1.3;
         upstream http {{ server {plain_origin}; keepalive 64; keepalive_requests 1000000000; }}
         upstream https {{ server {tls_origin}; keepalive 64; keepalive_requests 1000000000; }}
         server {{ listen {plain}; {} }}
         server {{ listen {tls} ssl; {} }}",
        to("http"),
        to("https"),
    );
    let setting = Setting { folder: &folder, ca, servers: &servers };
    start(Command::new("nginx"), (plain, tls), &setting, connects)
}

impl Nginx {
    /// One on another host, at `plain`.
    pub(crate) fn start_by(
        command: Command,
        plain: SocketAddr,
        setting: &Setting<'_>,
        connects: impl Fn(SocketAddr) -> bool,
    ) -> Result<Self> {
        start(command, (plain, plain), setting, connects)
    }

    /// To its port without TLS.
    pub(crate) fn way(&self) -> Way {
        Way::to(self.plain)
    }

    /// Where the files of an [`origin`] lie.
    pub(crate) fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    /// What [`caching`] has kept.
    pub(crate) fn forget(&self) -> Result<()> {
        // Only the files: it finds out by itself, and fetches anew.
        let kept = self.folder.join("kept");
        for entry in std::fs::read_dir(&kept)? {
            std::fs::remove_dir_all(entry?.path())?;
        }
        Ok(())
    }
}

impl Serves for Nginx {
    fn pid(&self) -> u32 {
        self.process.id()
    }
}

fn start(
    mut command: Command,
    (plain, tls): (SocketAddr, SocketAddr),
    &Setting { folder, ca, servers }: &Setting<'_>,
    connects: impl Fn(SocketAddr) -> bool,
) -> Result<Nginx> {
    std::fs::create_dir_all(folder)?;
    let Identity { certificate, key } = ca.issue(&["127.0.0.1", NAME, &format!("*.{BELOW}")])?;
    std::fs::write(folder.join("tls.crt"), certificate)?;
    std::fs::write(folder.join("tls.key"), key)?;
    let here = folder.display();
    let text = format!(
        "daemon off; master_process off; pid {here}/nginx.pid; error_log {here}/nginx.log;
         worker_rlimit_nofile 8192;
         events {{ worker_connections 4096; }}
         http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000;
           ssl_certificate {here}/tls.crt; ssl_certificate_key {here}/tls.key; ssl_protocols TLSv1.3;
           client_body_temp_path {here}/t1; proxy_temp_path {here}/t2; fastcgi_temp_path {here}/t3;
           uwsgi_temp_path {here}/t4; scgi_temp_path {here}/t5;
           {servers} }}"
    );
    std::fs::write(folder.join("nginx.conf"), text)?;
    command.arg("-c").arg(folder.join("nginx.conf")).arg("-e").arg(folder.join("nginx.log"));
    let process = Process::start("nginx", &mut command, &folder.join("nginx.out"))?;
    let limit = Instant::now() + START_LIMIT;
    while !connects(plain) {
        ensure!(Instant::now() < limit, "nginx does not serve: {}", process.log());
        std::thread::yield_now();
    }
    Ok(Nginx { process, plain, tls, folder: folder.to_owned() })
}

fn connects(to: SocketAddr) -> bool {
    TcpStream::connect(to).is_ok()
}

fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
