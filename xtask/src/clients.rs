//! Makes sure that what the tests with real clients use is there.

use crate::report::{Count, check};
use crate::{base, newer};
use anyhow::{Context, Result, bail};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program that must be there, and the package of Debian and Ubuntu that has it.
const NEEDED: [(&str, &str); 38] = [
    ("dockerd", "docker.io"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("docker-registry", "docker-registry"),
    ("skopeo", "skopeo"),
    ("debootstrap", "debootstrap"),
    ("podman", "podman"),
    ("buildah", "buildah"),
    ("nginx", "nginx-light"),
    ("htpasswd", "apache2-utils"),
    ("squid", "squid"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("mkfs.ext4", "e2fsprogs"),
    ("curl", "curl"),
    ("wget", "wget"),
    ("git", "git"),
    ("/usr/lib/git-core/git-http-backend", "git"),
    ("fcgiwrap", "fcgiwrap"),
    ("apt-get", "apt"),
    ("dpkg-deb", "dpkg"),
    ("apt-ftparchive", "apt-utils"),
    ("gpg", "gpg"),
    ("gpg-agent", "gpg-agent"),
    ("dnf", "dnf"),
    ("createrepo_c", "createrepo-c"),
    ("rpmbuild", "rpm"),
    ("rpmsign", "rpm"),
    // By its path: an environment of Python's may have one of its own in PATH.
    ("/usr/bin/pip3", "python3-pip"),
    ("npm", "npm"),
    ("b2sum", "coreutils"),
    ("openssl", "openssl"),
    ("tshark", "tshark"),
    ("update-ca-certificates", "ca-certificates"),
    ("nft", "nftables"),
    ("haproxy", "haproxy"),
    ("shellcheck", "shellcheck"),
];

/// What services look at before they start when a package is installed (invoke-rc.d(8)).
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// By what a policy of ours is known when a run was interrupted and has left it behind.
const MARK: &str = "# Of a `cargo xtask test` that installs packages; without one, remove it.";

/// Installs what is missing, and fetches what is too old here.
///
/// # Errors
/// When something is missing and cannot be installed, or the tests could not use it: they need root.
pub(crate) fn prepare() -> Result<Count> {
    let missing: Vec<_> = NEEDED.iter().filter(|(program, _)| find(program).is_none()).collect();
    let hint = "the tests with real clients need it; leave them out with --without-clients";
    if !is_root() {
        bail!("not root: {hint}");
    }
    if missing.is_empty() {
        println!("all installed");
        return made();
    }
    let programs: Vec<_> = missing.iter().map(|(program, _)| *program).collect();
    if find("apt-get").is_none() {
        bail!("not here, and no apt-get to install it: {}: {hint}", programs.join(", "));
    }
    let mut packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    packages.dedup();
    install(&packages)?;
    match NEEDED.iter().find(|(program, _)| find(program).is_none()) {
        Some((program, package)) => bail!("{package} is installed, and still there is no {program}"),
        None => made(),
    }
}

/// What no package of this machine's has.
fn made() -> Result<Count> {
    newer::docker()?;
    base::system()
}

/// Installs packages; their services are not started.
fn install(packages: &[&str]) -> Result<()> {
    let _quiet = Policy::no_services(Path::new(POLICY))?;
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(["--quiet", "--yes"]);
        command
    };
    check(apt().arg("update"))?;
    check(apt().args(["install", "--no-install-recommends"]).args(packages))?;
    Ok(())
}

/// Keeps services from starting while it lives. A policy that is there already is somebody else's, and stays.
struct Policy {
    /// `None`: it is somebody else's.
    ours: Option<PathBuf>,
}

impl Policy {
    fn no_services(file: &Path) -> Result<Self> {
        if file.exists()
            && !std::fs::read(file).is_ok_and(|text| text.windows(MARK.len()).any(|it| it == MARK.as_bytes()))
        {
            return Ok(Self { ours: None });
        }
        // 101: the action is forbidden by policy.
        std::fs::write(file, format!("#!/bin/sh\n{MARK}\nexit 101\n"))
            .with_context(|| format!("cannot write {}", file.display()))?;
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755))?;
        Ok(Self { ours: Some(file.to_owned()) })
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if let Some(file) = &self.ours
            && let Err(error) = std::fs::remove_file(file)
        {
            println!("cannot remove {}: {error}", file.display());
        }
    }
}

/// Where a program is. Root's shells do not always have the folders of administrators in PATH.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output();
    output.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_an_interrupted_run_left_goes_and_somebody_elses_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("policy-rc.d");
        // Nothing is dropped when a signal ends the process.
        std::mem::forget(Policy::no_services(&file).unwrap());
        assert!(file.exists());
        drop(Policy::no_services(&file).unwrap());
        assert!(!file.exists());
        std::fs::write(&file, "#!/bin/sh\nexit 101\n").unwrap();
        drop(Policy::no_services(&file).unwrap());
        assert!(file.exists());
    }
}
