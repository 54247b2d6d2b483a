//! [`Guard`]: that a store's folder is ours alone. The catalog has a lock of its own, which goes with it when it is closed after a
//! failure; whoever repairs a store must not do so beside a daemon that will open it again.

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The folder is ours until this is dropped.
#[derive(Debug)]
pub(super) struct Guard {
    inode: (u64, u64),
    _folder: File,
}

impl Guard {
    /// Takes the folder.
    ///
    /// # Errors
    /// `ResourceBusy` when another process has it.
    pub(super) fn take(folder: &Path) -> io::Result<Self> {
        let folder = File::open(folder)?;
        let meta = folder.metadata()?;
        match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                Err(io::Error::new(io::ErrorKind::ResourceBusy, "another process uses it"))
            }
            // A file system without such locks has the catalog's.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOLCK | Errno::INVAL) => {
                Ok(Self { inode: (meta.dev(), meta.ino()), _folder: folder })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whether this is what is called so now: another disk may have been mounted there.
    pub(super) fn is_of(&self, folder: &Path) -> bool {
        std::fs::metadata(folder).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.inode)
    }
}
