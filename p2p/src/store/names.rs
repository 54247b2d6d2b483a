//! What stands where in the store's folder.

use darter_protocol::TaskId;
use std::io;
use std::path::{Path, PathBuf};

/// The catalog of the complete tasks.
pub(super) const CATALOG: &str = "catalog.redb";
/// The folder of the segments, with many small objects in each.
pub(super) const PACKS: &str = "packs";

/// Where a task's content stands in the store in `dir`, if it has a file of its own.
pub(super) fn content_path(dir: &Path, task: &TaskId) -> PathBuf {
    let name = task.to_string();
    dir.join("content").join(&name[..2]).join(name)
}

/// The journal of the task whose content is to stand there.
pub(super) fn journal_path(content: &Path) -> PathBuf {
    content.with_extension("partial")
}

/// Every file under `content/`, journals included.
pub(super) fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for folder in std::fs::read_dir(dir.join("content"))? {
        let folder = folder?.path();
        if folder.is_dir() {
            for file in std::fs::read_dir(folder)? {
                files.push(file?.path());
            }
        }
    }
    Ok(files)
}

/// Removes a file. One that is not there is as good as removed.
pub(super) fn remove_file(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes the names in a folder survive a power cut.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    std::fs::File::open(path)?.sync_all()
}
