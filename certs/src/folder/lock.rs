//! Who may change the folder, and whose the files in it are.

use super::CaFolder;
use crate::pem::{FileError, FileProblem};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;

impl CaFolder {
    /// Keeps other processes out as long as the file is open. Creates the folder if it must.
    pub(super) fn lock(&self) -> Result<File, FileError> {
        let failed = |error| FileProblem::Write(error).at(&self.path);
        DirBuilder::new().recursive(true).mode(0o700).create(&self.path).map_err(failed)?;
        let path = self.path.join("ca.lock");
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .and_then(|file| {
                give_to_owner_of(&self.path, &file)?;
                file.lock().map(|()| file)
            })
            .map_err(|error| FileProblem::Write(error).at(&path))
    }
}

/// An operator rotates as root, and the daemon, which owns the folder, must be able to read what comes of it.
pub(super) fn give_to_owner_of(folder: &Path, file: &File) -> std::io::Result<()> {
    let (owner, ours) = (fs::metadata(folder)?, file.metadata()?);
    if (owner.uid(), owner.gid()) == (ours.uid(), ours.gid()) || ours.uid() != 0 {
        return Ok(());
    }
    fchown(file, Some(owner.uid()), Some(owner.gid()))
}

#[cfg(test)]
mod tests {
    use super::super::tests::at;
    use super::*;
    use crate::constraints::PermittedNames;

    #[test]
    fn what_root_writes_belongs_to_the_owner_of_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        // Only root can give a folder away; whoever else runs this test owns it.
        let somebody = if fs::metadata(dir.path()).unwrap().uid() == 0 { Some(65_534) } else { None };
        std::os::unix::fs::chown(dir.path(), somebody, somebody).unwrap();
        let owner = fs::metadata(dir.path()).unwrap().uid();
        at(dir.path());
        let folder = CaFolder::at(dir.path());
        folder.announce(&PermittedNames::default(), None).unwrap();
        folder.activate().unwrap();
        for entry in fs::read_dir(dir.path()).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().uid(), owner, "{:?}", entry.file_name());
        }
    }
}
