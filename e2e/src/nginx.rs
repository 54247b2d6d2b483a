//! [`Nginx`]: a real nginx on a host, whose access log says what was asked and how many bytes of each answer left.

use crate::ca::Identity;
use crate::net::{Host, Launch};
use crate::poll::until;
use crate::process::Process;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a server may take to start.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long requests that are under way may take to end.
const QUIET_LIMIT: Duration = Duration::from_secs(60);
/// nginx's own state, on loopback.
const STATUS_PORT: u16 = 8081;

/// A running nginx.
pub struct Nginx {
    host: Host,
    log: PathBuf,
    _process: Process,
}

/// One line of the access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// GET, HEAD ...
    pub method: String,
    /// The name that was asked for.
    pub host: String,
    /// With its query.
    pub path: String,
    /// 200, 401 ...
    pub status: u16,
    /// Bytes of the body that were sent.
    pub bytes: u64,
    /// Who asked.
    pub client: String,
    /// When the answer was done, in seconds since 1970.
    pub time: String,
    /// The Range that was asked for, or `-`.
    pub range: String,
}

impl Nginx {
    /// Starts it on `host`, with its files in `folder`. `servers` is what further stands within `http { }`; they may
    /// `listen 443 ssl http2` and show `identity` then.
    pub fn start(host: &Host, folder: &Path, identity: &Identity, servers: &str) -> Result<Self> {
        std::fs::write(folder.join("tls.crt"), &identity.certificate)?;
        std::fs::write(folder.join("tls.key"), &identity.key)?;
        let log = folder.join("access.log");
        let config = format!(
            "user root; daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr warn;
             events {{ worker_connections 1024; }}
             http {{
               log_format hits '$request_method $host $request_uri $status $body_bytes_sent $remote_addr $msec $http_range';
               access_log {log} hits;
               client_body_temp_path {folder}/tmp-body; proxy_temp_path {folder}/tmp-proxy;
               fastcgi_temp_path {folder}/tmp-1; uwsgi_temp_path {folder}/tmp-2; scgi_temp_path {folder}/tmp-3;
               ssl_certificate {folder}/tls.crt; ssl_certificate_key {folder}/tls.key;
               client_max_body_size 0;
               {servers}
               server {{ listen 127.0.0.1:{STATUS_PORT}; access_log off; location / {{ stub_status; }} }}
             }}\n",
            folder = folder.display(),
            log = log.display(),
        );
        let file = folder.join("nginx.conf");
        std::fs::write(&file, config)?;
        let mut command = host.launch("nginx", &Launch { family: true, ..Launch::default() });
        command.arg("-c").arg(file).arg("-e").arg("stderr");
        let process = Process::start("nginx", &mut command, &folder.join("nginx.log"))?;
        wait_port(host, STATUS_PORT).with_context(|| process.log())?;
        Ok(Self { host: host.clone(), log, _process: process })
    }

    /// All requests that have ended, once none is under way any more.
    pub fn log(&self) -> Result<Vec<Hit>> {
        until("the server to be quiet", QUIET_LIMIT, || self.is_quiet().ok().filter(|quiet| *quiet))?;
        let log = std::fs::read_to_string(&self.log)?;
        log.lines().map(|line| parse(line).with_context(|| format!("an odd log line: {line}"))).collect()
    }

    /// Whether no request but the one that asks is under way.
    fn is_quiet(&self) -> Result<bool> {
        let stream = self.host.connect(([127, 0, 0, 1], STATUS_PORT).into())?;
        let host = &format!("127.0.0.1:{STATUS_PORT}");
        let request = crate::http::Request { method: "GET", target: "/", host, headers: &[], body: None };
        let state = crate::http::send(Box::new(stream), &request)?.text()?;
        Ok(state.contains("Reading: 0 Writing: 1 "))
    }
}

/// Waits until something listens on a host's loopback.
pub(crate) fn wait_port(host: &Host, port: u16) -> Result<()> {
    let address = ([127, 0, 0, 1], port).into();
    until(&format!("port {port} of {}", host.name()), START_LIMIT, || host.connect(address).ok().map(drop))
}

/// The password file of some users, each `user:password`, as nginx and registries read it.
pub(crate) fn password_file(users: &[impl AsRef<str>], file: &Path) -> Result<()> {
    let line = |user: &str| -> Result<String> {
        let (user, password) = user.split_once(':').context("no user:password")?;
        let mut command = std::process::Command::new("htpasswd");
        let line = crate::process::run(command.args(["-nbB", user, password]), START_LIMIT)?.ok()?;
        Ok(format!("{}\n", line.stdout.trim()))
    };
    let lines = users.iter().map(|user| line(user.as_ref())).collect::<Result<String>>()?;
    Ok(std::fs::write(file, lines)?)
}

fn parse(line: &str) -> Option<Hit> {
    let mut words = line.split(' ');
    let mut next = || words.next().map(str::to_owned);
    let (method, host, path) = (next()?, next()?, next()?);
    let (status, bytes) = (next()?.parse().ok()?, next()?.parse().ok()?);
    Some(Hit { method, host, path, status, bytes, client: next()?, time: next()?, range: next()? })
}
