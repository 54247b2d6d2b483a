//! [`Registry`]: real registries behind one front on one host, with and without TLS: one open to all, one with a password, and
//! one that wants tokens, where there is a service that gives them.
//!
//! The front is nginx, whose access log says how many bytes of each blob left.

use crate::ca::Ca;
use crate::image::{Access, Blob, Image};
use crate::net::Host;
use crate::nginx::{Hit, Nginx, password_file, wait_port};
use crate::process::{Process, run};
use crate::secret::note_password;
use crate::tokens::{SERVICE, TokenService};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The registry that is open to all.
pub const OPEN: &str = "registry.example";
/// The registry that asks for [`CREDENTIALS`].
pub const PRIVATE: &str = "private.example";
/// [`OPEN`] again, under the name by which engines know Docker's own registry.
pub const HUB: &str = "registry-1.docker.io";
/// What [`PRIVATE`] asks for.
pub const CREDENTIALS: &str = "somebody:correct-horse";
/// How many others [`PRIVATE`] knows: see [`second`] and [`Registry::revoke_seconds`].
pub const SECONDS: usize = 16;

/// How long a question to a registry may take.
const LIMIT: Duration = Duration::from_secs(60);

/// One of [`SECONDS`]: `user:password`.
pub fn second(number: usize) -> String {
    format!("second-{number}:battery-staple-{number}")
}

/// What stands before the registries, or what it has said until it was stopped.
enum Front {
    Running(Nginx),
    Stopped(Vec<Hit>),
}

/// A running pair of registries.
pub struct Registry {
    host: Host,
    folder: PathBuf,
    ca: Ca,
    // The front goes first.
    front: Mutex<Front>,
    _all: Vec<Process>,
}

impl Registry {
    /// The names that the registry's host must have.
    pub const NAMES: [&str; 4] = [OPEN, PRIVATE, HUB, SERVICE];

    /// Starts the first two registries and their front on `host`.
    pub fn start(host: &Host) -> Result<Self> {
        Self::start_with(host, Ca::new("registry test authority")?, None)
    }

    /// Starts all three on `host`; `ca` signs for them.
    pub fn start_with(host: &Host, ca: Ca, tokens: Option<&TokenService>) -> Result<Self> {
        let folder = host.new_folder("registry")?;
        let trust = folder.join("trust");
        std::fs::create_dir(&trust)?;
        ca.write(&trust.join("ca.crt"))?;
        let identity = ca.issue(&Self::NAMES)?;
        let users: Vec<String> =
            std::iter::once(CREDENTIALS.to_owned()).chain((0..SECONDS).map(second)).collect();
        users.iter().for_each(|it| note_password(it));
        password_file(&users, &folder.join("users"))?;

        let open = start_registry(host, &folder, "open", 5001, "")?;
        let auth = format!("auth: {{htpasswd: {{realm: private, path: {}/users}}}}\n", folder.display());
        let private = start_registry(host, &folder, "private", 5002, &auth)?;
        let (mut all, mut servers) = (vec![open, private], server(&format!("{OPEN} {HUB}"), 5001));
        servers.push_str(&server(PRIVATE, 5002));
        if let Some(tokens) = tokens {
            all.push(start_registry(host, &folder, "tokens", 5003, &tokens.settings(&folder)?)?);
            servers.push_str(&server(SERVICE, 5003));
        }
        let front = Mutex::new(Front::Running(Nginx::start(host, &folder, &identity, &servers)?));
        Ok(Self { host: host.clone(), folder, ca, front, _all: all })
    }

    /// Forgets [`SECONDS`]. [`PRIVATE`] reads its users anew when the file has changed.
    pub fn revoke_seconds(&self) -> Result<()> {
        password_file(&[CREDENTIALS], &self.folder.join("users"))
    }

    /// Nobody answers there any more.
    pub fn stop(&self) -> Result<()> {
        let mut front = self.front.lock().unwrap_or_else(PoisonError::into_inner);
        if let Front::Running(nginx) = &*front {
            *front = Front::Stopped(nginx.log()?);
        }
        Ok(())
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

    /// Builds an image and pushes it, straight. References of [`PRIVATE`] and of the one that wants tokens are pushed with the
    /// password.
    pub fn publish(&self, reference: &str, seed: u64, layers: u64, layer_size: u64) -> Result<Image> {
        let image = Image::build(&self.host.new_folder("image")?, seed, layers, layer_size)?;
        let closed = [PRIVATE, SERVICE].iter().any(|name| reference.starts_with(name));
        let credentials = closed.then_some(CREDENTIALS);
        image.push(&self.host, &Access { reference, certificates: &self.trust(), credentials })?;
        Ok(image)
    }

    /// All requests that have ended, once none is under way any more.
    pub fn log(&self) -> Result<Vec<Hit>> {
        match &*self.front.lock().unwrap_or_else(PoisonError::into_inner) {
            Front::Running(nginx) => nginx.log(),
            Front::Stopped(log) => Ok(log.clone()),
        }
    }

    /// Configuration and layers of what was pushed to [`OPEN`] under a name.
    pub fn blobs(&self, reference: &str) -> Result<Vec<Blob>> {
        let mut command = self.host.command("skopeo");
        command.args(["inspect", "--raw", "--cert-dir"]).arg(self.trust());
        let text = run(command.arg(format!("docker://{reference}")), LIMIT)?.ok()?.stdout;
        let manifest: serde_json::Value = serde_json::from_str(&text)?;
        let layers = manifest["layers"].as_array().context("no layers")?;
        let blob = |descriptor: &serde_json::Value| {
            let digest = descriptor["digest"].as_str().context("no digest")?.to_owned();
            Ok(Blob { digest, size: descriptor["size"].as_u64().context("no size")? })
        };
        std::iter::once(&manifest["config"]).chain(layers).map(blob).collect()
    }

    /// Bytes of each of the image's blobs that have left so far.
    pub fn blob_bytes(&self, image: &Image) -> Result<BTreeMap<String, u64>> {
        self.bytes_of(&image.blobs)
    }

    /// Bytes of each of these blobs that have left so far.
    pub fn bytes_of(&self, blobs: &[Blob]) -> Result<BTreeMap<String, u64>> {
        let mut bytes: BTreeMap<String, u64> = blobs.iter().map(|blob| (blob.digest.clone(), 0)).collect();
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
        self.check_copies_of(&image.blobs, copies)
    }

    /// The same for these blobs.
    pub fn check_copies_of(&self, blobs: &[Blob], copies: u64) -> Result<()> {
        let sent = self.bytes_of(blobs)?;
        let Some(blob) = blobs.iter().find(|blob| sent[&blob.digest] != copies * blob.size) else {
            return Ok(());
        };
        let hits = self.log()?.into_iter().filter(|hit| hit.path.contains(&blob.digest));
        let hits: Vec<String> = hits.map(|hit| format!("{hit:?}")).collect();
        bail!("{} bytes of {blob:?} left the registry:\n{}", sent[&blob.digest], hits.join("\n"))
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

/// What of the front leads to the registry on `port`.
fn server(names: &str, port: u16) -> String {
    format!(
        "server {{ listen 80; listen 443 ssl http2; server_name {names};
           proxy_buffering off; proxy_request_buffering off; proxy_http_version 1.1;
           location / {{ proxy_pass http://127.0.0.1:{port};
             proxy_set_header Host $http_host; proxy_set_header X-Forwarded-Proto $scheme; }} }}\n"
    )
}
