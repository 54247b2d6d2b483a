//! Small files that are whole or not there, and that several processes change.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown,
};
use std::path::{Path, PathBuf};

/// The folder may be another user's than the one who writes: a link in a file's place is not followed.
const NOFOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();

/// A file or folder that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct FileError {
    /// Which.
    pub path: PathBuf,
    why: String,
}

impl FileError {
    pub(crate) fn new(path: &Path, why: impl ToString) -> Self {
        Self { path: path.to_owned(), why: why.to_string() }
    }
}

/// Makes the folder, for this user alone.
pub(crate) fn make_folder(folder: &Path) -> Result<(), FileError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| FileError::new(folder, format!("cannot make the folder: {error}")))
}

/// Keeps other processes out until it is dropped; the folder is there.
pub(crate) fn lock(folder: &Path, name: &str) -> Result<File, FileError> {
    let path = folder.join(name);
    let open = || {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(NOFOLLOW)
            .open(&path)?;
        give_to_owner_of(folder, &file)?;
        file.lock().map(|()| file)
    };
    open().map_err(|error| FileError::new(&path, format!("cannot be locked: {error}")))
}

/// The file's text; `None` when there is none.
pub(crate) fn read(path: &Path) -> Result<Option<String>, FileError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::new(path, format!("cannot be read: {error}"))),
    }
}

/// Puts `text` in the file's place, for its owner alone: whole, or not at all.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), FileError> {
    let beside = path.with_extension("new");
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(NOFOLLOW)
            .open(&beside)?;
        if let Some(folder) = path.parent() {
            give_to_owner_of(folder, &file)?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().map_err(|error| FileError::new(path, format!("cannot be written: {error}")))
}

/// Closes a file with a key to all but its owner, and says so once when it was open to others.
///
/// # Errors
/// When others may read it and we cannot change that: a key that others have is nobody's proof.
pub(crate) fn close_to_others(path: &Path) -> Result<(), FileError> {
    let close = || {
        let file = OpenOptions::new().read(true).custom_flags(NOFOLLOW).open(path)?;
        let mode = file.metadata()?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            file.set_permissions(Permissions::from_mode(0o600))?;
            tracing::warn!(
                path = %path.display(),
                mode = format!("{mode:04o}"),
                "this key was open to other users, and is its owner's alone from now on (0600): if somebody may have read it, expel this node and let it join anew (docs/cluster.md)"
            );
        }
        Ok(())
    };
    close().map_err(|error: io::Error| {
        FileError::new(
            path,
            format!("cannot be kept from other users, as a key must be (chmod 600): {error}"),
        )
    })
}

/// An operator's command may run as root, and the service that reads the file as another user, who owns the folder.
fn give_to_owner_of(folder: &Path, file: &File) -> io::Result<()> {
    let (owner, ours) = (fs::metadata(folder)?, file.metadata()?);
    if (owner.uid(), owner.gid()) == (ours.uid(), ours.gid()) || ours.uid() != 0 {
        return Ok(());
    }
    fchown(file, Some(owner.uid()), Some(owner.gid()))
}
