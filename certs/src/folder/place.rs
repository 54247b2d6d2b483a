//! [`Place`]: a file of the folder.

use super::lock::give_to_owner_of;
use crate::ca::Authority;
use crate::date;
use crate::pem::{FileError, FileProblem, certificates_in, private_key_in, read_opened};
use rustix::fs::OFlags;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use time::OffsetDateTime;

/// What stands in front of a successor's date, in the text before its PEM.
pub(super) const DATE: &str = "Signs from: ";

/// A file's place, and where it is prepared.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) prepared: PathBuf,
    mode: u32,
}

impl Place {
    pub(super) fn new(folder: &Path, name: &str, mode: u32) -> Self {
        Self { path: folder.join(name), prepared: folder.join(format!(".{name}.new")), mode }
    }

    pub(super) fn exists(&self) -> Result<bool, FileError> {
        self.path.try_exists().map_err(|error| FileProblem::Read(error).at(&self.path))
    }

    pub(super) fn missing_beside(&self, other: &Self) -> FileError {
        FileProblem::HalfOfAPair { other: other.path.clone() }.at(&self.path)
    }

    /// A certificate and its key from one file.
    pub(super) fn read_pair(&self) -> Result<Authority, FileError> {
        Authority::of(self.read_certificates()?, &self.read_private_key()?)
            .map_err(|wrong| wrong.at(&self.path, &self.path))
    }

    pub(super) fn read_certificates(&self) -> Result<Vec<CertificateDer<'static>>, FileError> {
        certificates_in(&self.read()?).map_err(|problem| problem.at(&self.path))
    }

    pub(super) fn read_private_key(&self) -> Result<PrivateKeyDer<'static>, FileError> {
        private_key_in(&self.read()?).map_err(|problem| problem.at(&self.path))
    }

    /// Whoever owns the folder says what its names stand for. When that is the daemon's user and root reads, to rotate, a link
    /// in a file's place could lead to another's key, which would be written where that user can read it. So there a link is not
    /// followed, and nothing is waited for. In a folder of root's or of the reader's own, links are the operator's: that is how
    /// secrets are mounted.
    fn read(&self) -> Result<Vec<u8>, FileError> {
        read_opened(&self.path, self.open())
    }

    fn open(&self) -> std::io::Result<File> {
        let folder = self.path.parent().map(fs::metadata).transpose()?;
        let owner = folder.map_or(0, |folder| folder.uid());
        let mut options = OpenOptions::new();
        options.read(true);
        if owner == 0 || owner == rustix::process::geteuid().as_raw() {
            return options.open(&self.path);
        }
        let as_it_is = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        options.custom_flags(as_it_is.bits().cast_signed()).open(&self.path)
    }

    /// The date in front of the PEM, if there is one.
    pub(super) fn read_date(&self) -> Result<Option<OffsetDateTime>, FileError> {
        let text = String::from_utf8_lossy(&self.read()?).into_owned();
        let Some(date) = text.lines().find_map(|line| line.strip_prefix(DATE)) else { return Ok(None) };
        // A date that is not understood must not mean "never", nor "now".
        date::parse_rfc3339(date)
            .map(Some)
            .ok_or_else(|| FileProblem::MalformedDate(date.to_owned()).at(&self.path))
    }

    /// Whole or not at all.
    pub(super) fn write(&self, content: &str) -> Result<(), FileError> {
        self.prepare(content)?;
        self.put_in_place()
    }

    pub(super) fn prepare(&self, content: &str) -> Result<(), FileError> {
        let write = || {
            // Left by a crash; whoever can write it now is not the one who made it with our mode.
            match fs::remove_file(&self.prepared) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file =
                OpenOptions::new().create_new(true).write(true).mode(self.mode).open(&self.prepared)?;
            // Before there is something in it.
            if let Some(folder) = self.path.parent() {
                give_to_owner_of(folder, &file)?;
            }
            file.write_all(content.as_bytes())?;
            file.sync_all()
        };
        write().map_err(|error| FileProblem::Write(error).at(&self.prepared))
    }

    pub(super) fn put_in_place(&self) -> Result<(), FileError> {
        fs::rename(&self.prepared, &self.path).map_err(|error| FileProblem::Write(error).at(&self.path))
    }

    pub(super) fn remove(&self) -> Result<(), FileError> {
        fs::remove_file(&self.path).map_err(|error| FileProblem::Write(error).at(&self.path))
    }
}
