//! [`View`]: files that can be given away.

use crate::sys::make_read_only;
use rustix::fs::{Mode, OFlags, openat, readlink};
use rustix::mount::{OpenTreeFlags, open_tree};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// A folder and what is below it, as a mount of its own that nothing can be written through.
///
/// Whoever is given a file that is open for reading may open it once more, for writing, by its name in `/proc/self/fd`, if its
/// mode or his capabilities let him: root in a container, to whom the file's folder is not visible, is root there, too. A file
/// that was opened through a read-only mount is refused (EROFS), and so are links to it.
#[derive(Debug)]
pub struct View {
    root: PathBuf,
    tree: OwnedFd,
}

impl View {
    /// The view of a folder. What is mounted below it is not in it.
    ///
    /// # Errors
    /// `PermissionDenied` without CAP_SYS_ADMIN; `Unsupported` before Linux 5.12.
    pub fn of(folder: &Path) -> io::Result<Self> {
        let root = folder.canonicalize()?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(rustix::fs::CWD, &root, flags)?;
        make_read_only(tree.as_fd())?;
        Ok(Self { root, tree })
    }

    /// The same file, to be read and nothing else by whoever gets it.
    ///
    /// # Errors
    /// `NotFound` for one that is not in the view, or has lost its name; those of openat(2).
    pub fn open(&self, file: impl AsFd) -> io::Result<File> {
        let name = readlink(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()), Vec::new())?;
        let below = Path::new(OsStr::from_bytes(name.as_bytes())).strip_prefix(&self.root).ok();
        let below = below.ok_or(io::ErrorKind::NotFound)?;
        let found =
            openat(&self.tree, below, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?;
        let identity = |fd| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
        if identity(found.as_fd())? == identity(file.as_fd())? {
            Ok(found.into())
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Read as _;

    #[test]
    fn what_is_seen_can_be_read_and_by_nobody_opened_to_be_written() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        let path = dir.path().join("a/content");
        fs::write(&path, "content").unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let anew =
            |file: &File| File::options().write(true).open(format!("/proc/self/fd/{}", file.as_raw_fd()));
        anew(&file).unwrap();

        let mut seen = View::of(dir.path()).unwrap().open(&file).unwrap();
        let mut text = String::new();
        seen.read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
        assert_eq!(anew(&seen).unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
        let link = rustix::fs::linkat(
            rustix::fs::CWD,
            format!("/proc/self/fd/{}", seen.as_raw_fd()),
            rustix::fs::CWD,
            dir.path().join("link"),
            rustix::fs::AtFlags::SYMLINK_FOLLOW,
        );
        assert_eq!(link, Err(rustix::io::Errno::XDEV));
    }

    #[test]
    fn another_file_of_its_name_is_not_given_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let view = View::of(dir.path()).unwrap();
        let gone = |file: &File| view.open(file).unwrap_err().kind();
        let path = dir.path().join("content");
        let file = File::create(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(gone(&file), io::ErrorKind::NotFound);
        fs::write(dir.path().join("content (deleted)"), "other").unwrap();
        assert_eq!(gone(&file), io::ErrorKind::NotFound);
        assert_eq!(gone(&tempfile::tempfile().unwrap()), io::ErrorKind::NotFound);
    }
}
