//! A system as small as debootstrap makes it, of this machine's own release: what the tests of the container images build on,
//! in the place of the image that `docker/Dockerfile` names. Of the same release, so that what was built here runs in it.
//!
//! It has the packages that the Dockerfile installs, so that the tests need no network.

use crate::report::{Count, check};
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::Command;

/// Makes it, if it was not made before.
///
/// # Errors
/// When it cannot be made: its packages are fetched.
pub(crate) fn system() -> Result<Count> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let archive = std::path::absolute(target.join("base-system.tar"))?;
    if archive.exists() {
        return Ok(Count::default());
    }
    let release = std::fs::read_to_string("/etc/os-release").context("which system this is")?;
    let release = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let release = release.context("/etc/os-release has no VERSION_CODENAME")?.trim_matches('"');
    let work = tempfile::tempdir()?;
    let (root, unfinished) = (work.path().join("root"), archive.with_extension("unfinished"));
    let packages = ["--variant=minbase", "--include=ca-certificates", release];
    check(Command::new("debootstrap").args(packages).arg(&root))?;
    let left_out = ["--exclude=./dev/*", "--exclude=./var/cache/apt/archives/*.deb"];
    std::fs::create_dir_all(archive.parent().context("it has a parent")?)?;
    let mut tar = Command::new("tar");
    check(
        tar.arg("--create")
            .args(left_out)
            .arg("--file")
            .arg(&unfinished)
            .arg("--directory")
            .arg(&root)
            .arg("."),
    )?;
    std::fs::rename(unfinished, &archive)?;
    println!("{}", archive.display());
    Ok(Count::default())
}
