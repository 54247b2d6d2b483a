//! [`Registry`]: two real registries behind one TLS front on one host: one open to all, one with a password.
//!
//! The front is nginx, whose access log says how many bytes of each blob left.

use crate::ca::Ca;
use crate::image::{Access, Image};
use crate::net::{Host, Launch};
use crate::poll::until;
use crate::process::{Process, run};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The registry that is open to all.
pub const OPEN: &str = "registry.example";
/// The registry that asks for [`CREDENTIALS`].
pub const PRIVATE: &str = "private.example";
/// [`OPEN`] again, under the name by which engines know Docker's own registry.
pub const HUB: &str = "registry-1.docker.io";
/// What [`PRIVATE`] asks for.
pub const CREDENTIALS: &str = "somebody:correct-horse";

/// How long a server may take to start.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long requests that are under way may take to end.
const QUIET_LIMIT: Duration = Duration::from_secs(60);
/// nginx's own state, on loopback.
const STATUS_PORT: u16 = 8081;

/// A running pair of registries.
pub struct Registry {
    host: Host,
    folder: PathBuf,
    ca: Ca,
    // The front goes first.
    _front: Process,
    _open: Process,
    _private: Process,
}

/// One line of the front's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// GET, HEAD ...
    pub method: String,
    /// One of [`Registry::NAMES`].
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

impl Registry {
    /// The names that the registry's host must have.
    pub const NAMES: [&str; 3] = [OPEN, PRIVATE, HUB];

    /// Starts both registries and their front on `host`.
    pub fn start(host: &Host) -> Result<Self> {
        let folder = host.new_folder("registry")?;
        let ca = Ca::new("registry test authority")?;
        let trust = folder.join("trust");
        std::fs::create_dir(&trust)?;
        ca.write(&trust.join("ca.crt"))?;
        let identity = ca.issue(&Self::NAMES)?;
        std::fs::write(folder.join("tls.crt"), &identity.certificate)?;
        std::fs::write(folder.join("tls.key"), &identity.key)?;
        let (user, password) = CREDENTIALS.split_once(':').expect("it has a colon");
        let users =
            run(std::process::Command::new("htpasswd").args(["-nbB", user, password]), START_LIMIT)?.ok()?;
        std::fs::write(folder.join("users"), users.stdout.trim())?;

        let open = start_registry(host, &folder, "open", 5001, "")?;
        let auth = format!("auth: {{htpasswd: {{realm: private, path: {}/users}}}}\n", folder.display());
        let private = start_registry(host, &folder, "private", 5002, &auth)?;
        let front = start_front(host, &folder)?;
        Ok(Self { host: host.clone(), folder, ca, _front: front, _open: open, _private: private })
    }

    /// The authority that signed its certificate: a file.
    pub fn ca_file(&self) -> PathBuf {
        self.trust().join("ca.crt")
    }

    /// A folder that holds only [`Self::ca_file`], as container tools want it.
    pub fn trust(&self) -> PathBuf {
        self.folder.join("trust")
    }

    /// The authority that signed its certificate.
    pub fn ca(&self) -> &Ca {
        &self.ca
    }

    /// The host that it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Builds an image and pushes it, straight. References of [`PRIVATE`] are pushed with its password.
    pub fn publish(&self, reference: &str, seed: u64, layers: u64, layer_size: u64) -> Result<Image> {
        let image = Image::build(&self.host.new_folder("image")?, seed, layers, layer_size)?;
        let credentials = reference.starts_with(PRIVATE).then_some(CREDENTIALS);
        image.push(&self.host, &Access { reference, certificates: &self.trust(), credentials })?;
        Ok(image)
    }

    /// All requests that have ended, once none is under way any more.
    pub fn log(&self) -> Result<Vec<Hit>> {
        until("the registry to be quiet", QUIET_LIMIT, || self.is_quiet().ok().filter(|quiet| *quiet))?;
        let log = std::fs::read_to_string(self.folder.join("access.log"))?;
        log.lines().map(|line| parse(line).with_context(|| format!("an odd log line: {line}"))).collect()
    }

    /// Bytes of each of the image's blobs that have left so far.
    pub fn blob_bytes(&self, image: &Image) -> Result<BTreeMap<String, u64>> {
        let mut bytes: BTreeMap<String, u64> =
            image.blobs.iter().map(|blob| (blob.digest.clone(), 0)).collect();
        for hit in self.log()?.iter().filter(|hit| hit.method == "GET") {
            let digest = hit.path.split('?').next().and_then(|path| path.rsplit_once("/blobs/"));
            if let Some(count) = digest.and_then(|(_, digest)| bytes.get_mut(digest)) {
                *count += hit.bytes;
            }
        }
        Ok(bytes)
    }

    /// Fails unless exactly so many copies of every blob of the image left so far: with what was asked for.
    pub fn check_copies(&self, image: &Image, copies: u64) -> Result<()> {
        let sent = self.blob_bytes(image)?;
        let Some(blob) = image.blobs.iter().find(|blob| sent[&blob.digest] != copies * blob.size) else {
            return Ok(());
        };
        let hits = self.log()?.into_iter().filter(|hit| hit.path.contains(&blob.digest));
        let hits: Vec<String> = hits.map(|hit| format!("{hit:?}")).collect();
        bail!("{} bytes of {blob:?} left the registry:\n{}", sent[&blob.digest], hits.join("\n"))
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

fn start_registry(host: &Host, folder: &Path, name: &str, port: u16, auth: &str) -> Result<Process> {
    let config = format!(
        "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\n\
         storage: {{filesystem: {{rootdirectory: {folder}/{name}}}}}\n\
         http: {{addr: 127.0.0.1:{port}, secret: test}}\n{auth}",
        folder = folder.display(),
    );
    let file = folder.join(format!("{name}.yaml"));
    std::fs::write(&file, config)?;
    let mut command = host.command("docker-registry");
    command.arg("serve").arg(file).env("OTEL_TRACES_EXPORTER", "none");
    let process = Process::start(name, &mut command, &folder.join(format!("{name}.log")))?;
    wait_port(host, port).with_context(|| process.log())?;
    Ok(process)
}

fn start_front(host: &Host, folder: &Path) -> Result<Process> {
    let server = |name: &str, port: u16| {
        format!(
            "server {{ listen 443 ssl http2; server_name {name}; location / {{ proxy_pass http://127.0.0.1:{port};
               proxy_set_header Host $http_host; proxy_set_header X-Forwarded-Proto https; }} }}\n"
        )
    };
    let config = format!(
        "user root; daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr warn;
         events {{ worker_connections 1024; }}
         http {{
           log_format hits '$request_method $host $request_uri $status $body_bytes_sent $remote_addr $msec $http_range';
           access_log {folder}/access.log hits;
           client_body_temp_path {folder}/tmp-body; proxy_temp_path {folder}/tmp-proxy;
           fastcgi_temp_path {folder}/tmp-1; uwsgi_temp_path {folder}/tmp-2; scgi_temp_path {folder}/tmp-3;
           ssl_certificate {folder}/tls.crt; ssl_certificate_key {folder}/tls.key;
           client_max_body_size 0; proxy_buffering off; proxy_request_buffering off; proxy_http_version 1.1;
           {open} {private}
           server {{ listen 127.0.0.1:{STATUS_PORT}; access_log off; location / {{ stub_status; }} }}
         }}\n",
        folder = folder.display(),
        open = server(&format!("{OPEN} {HUB}"), 5001),
        private = server(PRIVATE, 5002),
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, config)?;
    let mut command = host.launch("nginx", &Launch { family: true, ..Launch::default() });
    command.arg("-c").arg(file).arg("-e").arg("stderr");
    let process = Process::start("nginx", &mut command, &folder.join("nginx.log"))?;
    wait_port(host, STATUS_PORT).with_context(|| process.log())?;
    Ok(process)
}

/// Waits until something listens on a host's loopback.
fn wait_port(host: &Host, port: u16) -> Result<()> {
    let address = ([127, 0, 0, 1], port).into();
    until(&format!("port {port} of {}", host.name()), START_LIMIT, || host.connect(address).ok().map(drop))
}

fn parse(line: &str) -> Option<Hit> {
    let mut words = line.split(' ');
    let mut next = || words.next().map(str::to_owned);
    let (method, host, path) = (next()?, next()?, next()?);
    let (status, bytes) = (next()?.parse().ok()?, next()?.parse().ok()?);
    Some(Hit { method, host, path, status, bytes, client: next()?, time: next()?, range: next()? })
}
