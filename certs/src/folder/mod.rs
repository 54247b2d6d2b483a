//! [`CaFolder`]: where a node keeps its own CA, and how one takes another's place there.
//!
//! | file | what |
//! |---|---|
//! | `ca.crt`, `ca.key` | the CA that signs |
//! | `next.pem` | its successor, certificate and key: published, and not signing yet |
//! | `old.pem` | its predecessor, certificate and key: published, and not signing any more |
//!
//! A rotation is announced (there is a `next.pem`), then activated (it became `ca`, and what was `ca` is `old.pem`), then
//! finished (there is no `old.pem`); each step is taken when an operator says so. A successor may carry a date instead,
//! from which on it signs without being moved.
//!
//! `ca.crt` says who signs. Its key stands in `ca.key`, or, between two steps of an exchange, still in `old.pem` or
//! `next.pem`: whoever reads looks there, too. So the one rename that puts a new `ca.crt` in its place is the whole
//! change; a crash before it changes nothing, a crash after it leaves a file that says the same twice, which counts for
//! nothing and is removed by the next command. Every file is written beside its place, synced, and renamed.

mod exchange;
mod first;
mod lock;
mod place;
mod rotation;
#[cfg(test)]
mod tests;

pub use rotation::RotationError;

use crate::ca::{Authority, AuthorityError, Unfit, warn_if_readable_by_others};
use crate::constraints::PermittedNames;
use crate::pem::{FileError, FileProblem};
use crate::set::{CaSet, Successor};
use place::Place;
use rustls_pki_types::CertificateDer;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use time::OffsetDateTime;

/// The folder of a CA of our own.
#[derive(Debug, Clone)]
pub struct CaFolder {
    path: PathBuf,
    certificate: Place,
    key: Place,
    next: Place,
    old: Place,
}

/// What the files say.
struct Found {
    current: Arc<Authority>,
    successor: Option<Successor>,
    old: Option<CertificateDer<'static>>,
}

impl CaFolder {
    /// This folder; nothing is looked at yet.
    pub fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            certificate: Place::new(path, "ca.crt", 0o644),
            key: Place::new(path, "ca.key", 0o600),
            next: Place::new(path, "next.pem", 0o600),
            old: Place::new(path, "old.pem", 0o600),
        }
    }

    /// Where the certificate of the CA stands, for people.
    pub fn certificate(&self) -> &Path {
        &self.certificate.path
    }

    /// Where an announced successor stands, for people who copy it to other nodes.
    pub fn successor(&self) -> &Path {
        &self.next.path
    }

    /// What is in the folder; a CA for these names is made first if none is. The folder is created for its owner alone.
    /// Several processes may call this at once: one makes the CA, all get it. Blocks for the disk.
    ///
    /// # Errors
    /// As [`Self::load`]; also when only one of two files is there, or they cannot be written.
    pub fn load_or_generate(&self, permitted: &PermittedNames) -> Result<CaSet, AuthorityError> {
        // Both are there only when both are whole, so most starts write nothing: the folder may be read-only.
        if !(self.certificate.exists()? && self.key.exists()?) {
            self.make_pair(permitted)?;
        }
        // What was just made is read back, too: what serves now is what will serve after a restart.
        Ok(self.load()?)
    }

    /// What is in the folder, to sign with it: the CA that signs, and the others that clients are to trust. Blocks for the
    /// disk.
    ///
    /// # Errors
    /// When a file that counts cannot be used, or it is not the time of the CA that signs. The error names the file; nothing
    /// is repaired.
    pub fn load(&self) -> Result<CaSet, FileError> {
        self.load_at(OffsetDateTime::now_utc())
    }

    /// As [`Self::load`], to look at, whatever the time: a CA that has ended can still be shown and replaced.
    ///
    /// # Errors
    /// When a file that counts cannot be used.
    pub fn read(&self) -> Result<CaSet, FileError> {
        let Found { current, successor, old } = self.find()?;
        Ok(CaSet::new(current, successor, old.into_iter().collect()))
    }

    fn load_at(&self, now: OffsetDateTime) -> Result<CaSet, FileError> {
        let set = self.read()?;
        let signer = set.signer_at(now);
        signer.check_time(now).map_err(|problem| {
            let at = if Arc::ptr_eq(signer, set.current()) { &self.certificate } else { &self.next };
            problem.at(&at.path)
        })?;
        warn_if_readable_by_others(&self.key.path);
        Ok(set)
    }

    fn find(&self) -> Result<Found, FileError> {
        let current = Arc::new(self.current()?);
        let certificate = current.certificate_der();
        let successor = match self.next.exists()? {
            true => Some(self.next.read_pair()?).filter(|next| next.certificate_der() != certificate),
            false => None,
        };
        let successor = match successor {
            Some(authority) => {
                Some(Successor { authority: Arc::new(authority), from: self.next.read_date()? })
            }
            None => None,
        };
        let old = match self.old.exists()? {
            // The first stands for it.
            true => self.old.read_certificates()?.into_iter().next().filter(|old| old != certificate),
            false => None,
        };
        Ok(Found { current, successor, old })
    }

    /// Read before the others: see the head of this file.
    fn current(&self) -> Result<Authority, FileError> {
        let certificates = self.certificate.read_certificates()?;
        let from = |place: &Place| {
            let key = place.read_private_key()?;
            Ok::<_, FileError>(Authority::of(certificates.clone(), &key))
        };
        let mut first = from(&self.key)?;
        for place in [&self.old, &self.next] {
            if matches!(first, Err(Unfit::EachOther)) && place.exists()? {
                first = from(place)?;
            }
        }
        first.map_err(|wrong| wrong.at(&self.certificate.path, &self.key.path))
    }

    fn key_fits(&self, authority: &Authority) -> Result<bool, FileError> {
        let key = self.key.read_private_key()?;
        Ok(Authority::of(vec![authority.certificate_der().clone()], &key).is_ok())
    }

    /// Makes new names last over a power cut.
    fn sync(&self) -> Result<(), FileError> {
        File::open(&self.path)
            .and_then(|folder| folder.sync_all())
            .map_err(|error| FileProblem::Write(error).at(&self.path))
    }
}
