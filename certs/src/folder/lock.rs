//! Who may change the folder, and whose the files in it are.

use super::CaFolder;
use crate::pem::{FileError, FileProblem};
use rustix::fs::OFlags;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;

impl CaFolder {
    /// Keeps other processes out as long as the file is open. Creates the folder if it must.
    pub(super) fn lock(&self) -> Result<File, FileError> {
        let failed = |error| FileProblem::Write(error).at(&self.path);
        DirBuilder::new().recursive(true).mode(0o700).create(&self.path).map_err(failed)?;
        let path = self.path.join("ca.lock");
        open_lock(&self.path, &path)
            .and_then(|file| file.lock().map(|()| file))
            .map_err(|error| FileProblem::Write(error).at(&path))
    }
}

/// The folder is the daemon's, and who opens the file may be root: what stands in its place is not followed, not waited for,
/// and given away only if it was made here.
fn open_lock(folder: &Path, path: &Path) -> std::io::Result<File> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(made) => give_to_owner_of(folder, &made).map(|()| made),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let as_it_is = OFlags::NOFOLLOW | OFlags::NONBLOCK;
            OpenOptions::new().write(true).custom_flags(as_it_is.bits().cast_signed()).open(path)
        }
        Err(error) => Err(error),
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
    use std::os::unix::fs::{chown, symlink};

    #[test]
    fn what_root_writes_belongs_to_the_owner_of_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        // Only root can give a folder away; whoever else runs this test owns it.
        let somebody = if fs::metadata(dir.path()).unwrap().uid() == 0 { Some(65_534) } else { None };
        chown(dir.path(), somebody, somebody).unwrap();
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

    /// The folder is the daemon's, and it may be the one that wants what is root's.
    #[test]
    fn what_stands_in_the_locks_place_is_neither_followed_nor_given_away() {
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        at(dir.path());
        let (lock, theirs) = (dir.path().join("ca.lock"), elsewhere.path().join("shadow"));
        fs::write(&theirs, "secret").unwrap();
        let owner = fs::metadata(&theirs).unwrap().uid();
        let somebody = (owner == 0).then_some(65_534);
        chown(dir.path(), somebody, somebody).unwrap();
        let folder = CaFolder::at(dir.path());
        let announced = |link: &dyn Fn()| {
            fs::remove_file(&lock).unwrap();
            link();
            let announced = folder.announce(&PermittedNames::default(), None);
            assert_eq!(fs::metadata(&theirs).unwrap().uid(), owner);
            announced.map(drop).map_err(|error| error.to_string())
        };
        let error = announced(&|| symlink(&theirs, &lock).unwrap()).unwrap_err();
        assert!(error.contains("ca.lock: cannot write it: "), "{error}");
        let error =
            announced(&|| rustix::fs::mkfifoat(rustix::fs::CWD, &lock, 0o600.into()).unwrap()).unwrap_err();
        assert!(error.contains("ca.lock: cannot write it: "), "{error}");
        // Who may link to a file is the kernel's to say; but it stays its owner's.
        announced(&|| fs::hard_link(&theirs, &lock).unwrap()).unwrap();
    }

    /// A key of root's would come out of a rotation as the folder's owner's.
    #[test]
    fn what_stands_in_a_files_place_is_not_followed_in_a_folder_of_somebody_elses() {
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        at(dir.path());
        let folder = CaFolder::at(dir.path());
        folder.announce(&PermittedNames::default(), None).unwrap();
        for name in ["ca.key", "ca.crt", "next.pem"] {
            let (file, theirs) = (dir.path().join(name), elsewhere.path().join(name));
            fs::rename(&file, &theirs).unwrap();
            symlink(&theirs, &file).unwrap();
            // As secrets are mounted: the folder is the reader's own, or root's.
            folder.read().unwrap();
            if fs::metadata(dir.path()).unwrap().uid() == 0 {
                chown(dir.path(), Some(65_534), Some(65_534)).unwrap();
                let error = folder.read().unwrap_err().to_string();
                assert!(
                    error.contains(&format!("{name}: cannot read it: Too many levels of symbolic links")),
                    "{error}"
                );
                folder.activate().unwrap_err();
                chown(dir.path(), Some(0), Some(0)).unwrap();
            }
            fs::remove_file(&file).unwrap();
            fs::rename(&theirs, &file).unwrap();
        }
    }
}
