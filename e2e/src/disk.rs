//! [`Disk`]: a small file system of its own, that a test can fill, break and replace.
//!
//! It is mounted in a mount namespace that [`alone`] gives to the whole test program, so that nothing of it is left behind,
//! however the program ends. Takes root.

use crate::process::run;
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Set in the program that runs in a mount namespace of its own.
const ALONE: &str = "DARTER_E2E_ALONE";

/// How long `mount`, `umount` or `mkfs` may take.
const LIMIT: Duration = Duration::from_secs(60);

/// What a file grows by, in bytes.
const PAGE: usize = 4096;

/// What fills a disk that somebody else uses, too.
const FOREIGN: &str = "somebody-elses-file";

/// Goes on in a mount namespace of its own, as the same program with the same arguments.
///
/// # Errors
/// When there can be none: that takes root.
pub fn alone() -> Result<()> {
    if std::env::var_os(ALONE).is_some() {
        return Ok(());
    }
    let mut again = Command::new("unshare");
    again.args(["--mount", "--propagation", "private"]).arg(std::env::current_exe()?);
    Err(again.args(std::env::args_os().skip(1)).env(ALONE, "1").exec()).context("cannot start unshare")
}

/// Which file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// In memory.
    Tmpfs,
    /// On a block device made of a file; turns read-only when it finds an error.
    Ext4,
    /// The same, but it cannot keep space for a file that is still to be written.
    Ext3,
}

/// A mounted file system.
pub struct Disk {
    kind: Kind,
    bytes: u64,
    folder: PathBuf,
    /// Where the files stand that block devices are made of.
    images: tempfile::TempDir,
    mounts: u32,
}

impl Disk {
    /// Mounts an empty file system of `bytes` bytes at `folder`, which is made.
    pub fn mount(kind: Kind, bytes: u64, folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let mut disk =
            Self { kind, bytes, folder: folder.to_owned(), images: tempfile::tempdir()?, mounts: 0 };
        disk.mount_new()?;
        Ok(disk)
    }

    fn mount_new(&mut self) -> Result<()> {
        let size = self.bytes.to_string();
        let mut mount = Command::new("mount");
        match self.kind {
            Kind::Tmpfs => mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]),
            Kind::Ext4 | Kind::Ext3 => {
                let image = self.images.path().join(self.mounts.to_string());
                File::create(&image)?.set_len(self.bytes)?;
                let mut mkfs = Command::new(if self.kind == Kind::Ext4 { "mkfs.ext4" } else { "mkfs.ext3" });
                mkfs.args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"]).arg(&image);
                run(&mut mkfs, LIMIT)?.ok()?;
                mount.args(["-o", "loop,errors=remount-ro"]).arg(image)
            }
        };
        self.mounts += 1;
        run(mount.arg(&self.folder), LIMIT)?.ok().map(drop)
    }

    /// Writes another program's file until not a byte more fits.
    pub fn fill(&self) -> Result<()> {
        let path = self.folder.join(FOREIGN);
        let mut file = File::options().create(true).append(true).open(path)?;
        loop {
            for block in [1 << 20, PAGE] {
                while write(&mut file, block)? {}
            }
            // Others may have made room meanwhile: that is not filled byte by byte.
            for _ in 0..PAGE {
                if !write(&mut file, 1)? {
                    return Ok(());
                }
            }
        }
    }

    /// Removes the other program's file.
    pub fn free(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.folder.join(FOREIGN))?)
    }

    /// Makes the kernel find an error in the file system: it takes nothing from then on.
    pub fn turn_read_only(&self) -> Result<()> {
        ensure!(self.kind == Kind::Ext4, "only ext4 can be told to");
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        let here = self.folder.to_str().context("an odd folder")?;
        let device = mounts.lines().rev().find_map(|line| {
            let mut words = line.split(' ');
            words.next().filter(|_| words.next() == Some(here))
        });
        let device = device.and_then(|device| device.strip_prefix("/dev/")).context("it is not mounted")?;
        std::fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), "a test")?;
        let written = File::create(self.folder.join("probe"));
        ensure!(written.is_err_and(|error| error.kind() == ErrorKind::ReadOnlyFilesystem), "it still writes");
        Ok(())
    }

    /// Puts an empty file system in its place, as an operator does with a broken disk. Who has files of the old one open
    /// keeps them.
    pub fn replace(&mut self) -> Result<()> {
        run(Command::new("umount").arg("--lazy").arg(&self.folder), LIMIT)?.ok()?;
        self.mount_new()
    }
}

/// Whether so many bytes more fit.
fn write(file: &mut File, bytes: usize) -> Result<bool> {
    match file.write_all(&vec![0x5a; bytes]).and_then(|()| file.sync_data()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::StorageFull => Ok(false),
        Err(error) => Err(error).context("cannot fill the disk"),
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Otherwise it goes with the program.
        let _ = run(Command::new("umount").arg("--lazy").arg(&self.folder), LIMIT);
    }
}
