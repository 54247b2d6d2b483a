//! A Docker engine of the next Debian, where this machine's does not know `proxies` in daemon.json yet (Docker 23).
//!
//! Nothing of it is installed: its package is unpacked below `target/`, where the tests look for it. It comes from the
//! servers that the machine's own apt uses, by apt, with its signatures checked.

use crate::report::{Count, check};
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Debian 13. Its Docker runs with the libraries of Debian 12, which nobody promises of any later one.
const SUITE: &str = "trixie";
/// What is needed of it: the engine. Everything else is the machine's own.
const PACKAGE: &str = "docker.io";

/// Fetches it, if the machine's own is too old and it was not fetched before.
///
/// # Errors
/// When it cannot be had.
pub(crate) fn docker() -> Result<Count> {
    let folder = std::path::absolute(target().join("newer-docker"))?;
    let dockerd = folder.join("usr/sbin/dockerd");
    if knows_proxies("dockerd".as_ref()) || knows_proxies(&dockerd) {
        return Ok(Count::default());
    }
    fetch(&folder).context("this machine's dockerd is older than 23, and a newer one cannot be fetched")?;
    ensure!(knows_proxies(&dockerd), "{} does not run here, or is too old, too", dockerd.display());
    println!("{}", dockerd.display());
    Ok(Count::default())
}

fn knows_proxies(dockerd: &Path) -> bool {
    let help = Command::new(dockerd).arg("--help").output();
    help.is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains("--http-proxy"))
}

/// Unpacks the package into `folder`.
fn fetch(folder: &Path) -> Result<()> {
    let work = tempfile::tempdir()?;
    let at = |name: &str| work.path().join(name);
    for name in ["lists/partial", "archives/partial", "parts"] {
        std::fs::create_dir_all(at(name))?;
    }
    std::fs::write(at("status"), "")?;
    std::fs::write(at("sources.list"), format!("deb {} {SUITE} main\n", server()?))?;
    // Of its own in everything but the keys that it trusts.
    let apt = || {
        let mut command = Command::new("apt-get");
        command.current_dir(work.path()).args(["--quiet", "-o", "APT::Sandbox::User=root"]);
        for (key, name) in [
            ("Dir::Etc::sourcelist", "sources.list"),
            ("Dir::Etc::sourceparts", "parts"),
            ("Dir::State::lists", "lists"),
            ("Dir::State::status", "status"),
            ("Dir::Cache", "archives"),
        ] {
            command.arg("-o").arg(format!("{key}={}", at(name).display()));
        }
        command
    };
    check(apt().arg("update"))?;
    check(apt().args(["download", PACKAGE]))?;
    let mut files = std::fs::read_dir(work.path())?.flatten().map(|entry| entry.path());
    let package = files.find(|file| file.extension().is_some_and(|end| end == "deb"));
    std::fs::create_dir_all(folder)?;
    check(Command::new("dpkg-deb").arg("--extract").arg(package.context("no package came")?).arg(folder))?;
    Ok(())
}

/// The server from which the machine's apt has Debian itself.
fn server() -> Result<String> {
    let format = "$(CREATED_BY) $(ORIGIN) $(COMPONENT) $(CODENAME) $(REPO_URI)";
    let output = Command::new("apt-get").args(["indextargets", "--format", format]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let uri = text.lines().find_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
        // Updates and security have a suite of their own.
        ["Packages", "Debian", "main", suite, uri] if !suite.contains('-') => Some(uri.to_owned()),
        _ => None,
    });
    match uri {
        Some(uri) => Ok(uri),
        None => bail!("apt knows no server of Debian's"),
    }
}

/// Where cargo puts what it makes.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from)
}
