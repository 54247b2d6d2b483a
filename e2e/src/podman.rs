//! [`Podman`]: podman, buildah and skopeo on a host, with a store and settings of their own.

use crate::docker::SYSTEM_TRUST;
use crate::image::Image;
use crate::net::{Host, Launch};
use crate::process::{Output, run};
use anyhow::{Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Where the tools see their own folder: podman takes no long path for what runs.
const HERE: &str = "/mnt";

/// How long one command may take.
const LIMIT: Duration = Duration::from_secs(120);

/// How the tools are set up.
#[derive(Default)]
pub struct Setup {
    /// HTTPS_PROXY and HTTP_PROXY in their environment.
    pub proxy: Option<String>,
    /// Their registries.conf.
    pub registries: String,
    /// Authorities in their system's store: what /etc/ssl/certs/ca-certificates.crt holds for them.
    pub system_trust: Option<PathBuf>,
    /// Authorities that they trust for one registry: (registry, certificate file), as in /etc/containers/certs.d.
    pub certs: Vec<(&'static str, PathBuf)>,
    /// Of a layer in zstd:chunked only the parts that the store does not have are fetched.
    pub partial: bool,
}

/// The tools, and the store that podman and buildah share.
pub struct Podman {
    host: Host,
    setup: Setup,
    folder: PathBuf,
}

impl Podman {
    /// Sets the tools up on `host`, with an empty store.
    pub fn new(host: &Host, setup: Setup) -> Result<Self> {
        let folder = host.new_folder("podman")?;
        for (registry, certificate) in &setup.certs {
            let certs = folder.join("containers/certs.d").join(registry);
            std::fs::create_dir_all(&certs)?;
            std::fs::copy(certificate, certs.join("ca.crt"))?;
        }
        std::fs::create_dir_all(folder.join("containers"))?;
        std::fs::create_dir(folder.join("shm"))?;
        let policy = r#"{ "default": [{ "type": "insecureAcceptAnything" }] }"#;
        std::fs::write(folder.join("containers/policy.json"), policy)?;
        std::fs::write(folder.join("containers/registries.conf"), &setup.registries)?;
        let storage = format!(
            "[storage]\ndriver = '{}'\ngraphroot = '{HERE}/root'\nrunroot = '{HERE}/run'\n\
             [storage.options]\npull_options = {{ enable_partial_images = '{}' }}\n",
            driver(&setup),
            setup.partial
        );
        std::fs::write(folder.join("containers/storage.conf"), storage)?;
        std::fs::write(folder.join("auth.json"), "{}")?;
        Ok(Self { host: host.clone(), setup, folder })
    }

    /// Runs one of the three.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<Output> {
        let mut mounts = vec![(self.folder.clone(), PathBuf::from(HERE))];
        mounts.push((self.folder.join("containers"), "/etc/containers".into()));
        // podman keeps its locks there, for the whole machine.
        mounts.push((self.folder.join("shm"), "/dev/shm".into()));
        mounts.extend(self.setup.system_trust.iter().map(|file| (file.clone(), SYSTEM_TRUST.into())));
        let mut command = self.host.launch(program, &Launch { mounts, family: false });
        if program != "skopeo" {
            for (flag, name) in [("--root", "root"), ("--runroot", "run")] {
                command.arg(flag).arg(Path::new(HERE).join(name));
            }
            command.args(["--storage-driver", driver(&self.setup)]);
        }
        if program == "podman" {
            command.args(["--cgroup-manager", "cgroupfs", "--events-backend", "none", "--tmpdir"]);
            command.arg(Path::new(HERE).join("tmp"));
        }
        self.finish(command.args(args))
    }

    /// Where the layers lie.
    pub fn store(&self) -> PathBuf {
        self.folder.join("root").join(driver(&self.setup))
    }

    /// Fails unless the store's image is `image`.
    pub fn check(&self, reference: &str, image: &Image) -> Result<()> {
        let listed = self.run("buildah", &["images", "--no-trunc", "--quiet", reference])?.ok()?.stdout;
        ensure!(listed.trim() == image.id, "{reference} is {}, not {}", listed.trim(), image.id);
        Ok(())
    }

    fn finish(&self, command: &mut Command) -> Result<Output> {
        command.env("HOME", HERE).env("REGISTRY_AUTH_FILE", Path::new(HERE).join("auth.json"));
        if let Some(proxy) = &self.setup.proxy {
            command.env("HTTP_PROXY", proxy).env("HTTPS_PROXY", proxy);
        }
        run(command, LIMIT)
    }
}

/// A layer can be put together from parts only where layers lie one over the other.
fn driver(setup: &Setup) -> &'static str {
    if setup.partial { "overlay" } else { "vfs" }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // A store is large; the lab's folder goes at the end in any case.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
