//! [`Home`]: where a host keeps its key, its certificate, and what it knows of its cluster.
//!
//! | file | what |
//! |---|---|
//! | `node.key` | made at the first start; the host's id is made of it |
//! | `node.crt` | the certificate, renewed again and again |
//! | `authorities.crt` | the cluster's CAs |
//! | `expelled.pem` | who was expelled, so that he is refused after a restart, too |

use crate::expulsion::ExpulsionFile;
use crate::file::{self, FileError};
use crate::member;
use darter_certs::{MemberKey, MemberRoots, certificate_pem, read_certificates};
use darter_protocol::HostId;
use rustls_pki_types::CertificateDer;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A host's folder.
#[derive(Debug, Clone)]
pub struct Home {
    folder: PathBuf,
    key: Arc<MemberKey>,
}

/// What a host was given.
pub(crate) struct Papers {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) roots: MemberRoots,
}

impl Home {
    /// The one in this folder; a key is made if there is none. Blocks for the disk.
    ///
    /// # Errors
    /// When the folder or the key cannot be used.
    pub fn open_or_make(folder: &Path) -> Result<Self, FileError> {
        file::make_folder(folder)?;
        let path = folder.join("node.key");
        if file::read(&path)?.is_none() {
            let key = MemberKey::generate().map_err(|error| FileError::new(&path, error))?;
            file::write(&path, key.pem().reveal())?;
        }
        Self::open(folder)
    }

    /// The same; no key is made.
    ///
    /// # Errors
    /// When there is none, or it cannot be used.
    pub fn open(folder: &Path) -> Result<Self, FileError> {
        let path = folder.join("node.key");
        if path.exists() {
            file::close_to_others(&path)?;
        }
        let key = MemberKey::read(&path).map_err(|error| FileError::new(&path, error.problem))?;
        Ok(Self { folder: folder.to_owned(), key: Arc::new(key) })
    }

    /// The id that this host has, or will have when it joins, while people call it `name`.
    pub fn id(&self, name: &str) -> Option<HostId> {
        member::id_of(name, &self.key.public_key())
    }

    pub(crate) fn key(&self) -> &MemberKey {
        &self.key
    }

    /// What it was given last; `None` before it has joined.
    pub(crate) fn papers(&self) -> Result<Option<Papers>, FileError> {
        let (certificate, authorities) = (self.folder.join("node.crt"), self.folder.join("authorities.crt"));
        // The certificate is written last: with it, all is there.
        if file::read(&certificate)?.is_none() {
            return Ok(None);
        }
        let read = |path: &Path| read_certificates(path).map_err(|error| FileError::new(path, error.problem));
        let roots = MemberRoots::new(read(&authorities)?);
        let roots = roots.map_err(|why| FileError::new(&authorities, why))?;
        let certificate = read(&certificate)?.into_iter().next();
        Ok(certificate.map(|certificate| Papers { certificate, roots }))
    }

    pub(crate) fn keep(&self, papers: &Papers) -> Result<(), FileError> {
        file::write(&self.folder.join("authorities.crt"), &papers.roots.pem())?;
        file::write(&self.folder.join("node.crt"), &certificate_pem(&papers.certificate))
    }

    pub(crate) fn expelled_file(&self) -> ExpulsionFile {
        ExpulsionFile::at(self.folder.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_key_that_others_may_read_is_closed_to_them() {
        let folder = tempfile::tempdir().unwrap();
        let id = Home::open_or_make(folder.path()).unwrap().id("n");
        let path = folder.path().join("node.key");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(), 0o600);
        for open in [0o644, 0o640, 0o606] {
            fs::set_permissions(&path, Permissions::from_mode(open)).unwrap();
            assert_eq!(Home::open(folder.path()).unwrap().id("n"), id);
            assert_eq!(mode(), 0o600, "from {open:o}");
        }
    }

    #[test]
    fn a_link_in_the_keys_place_is_refused() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        Home::open_or_make(other.path()).unwrap();
        std::os::unix::fs::symlink(other.path().join("node.key"), folder.path().join("node.key")).unwrap();
        let why = Home::open(folder.path()).unwrap_err().to_string();
        assert!(why.contains("cannot be kept from other users"), "{why}");
    }
}
