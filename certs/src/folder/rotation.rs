//! The steps of a rotation, each taken when an operator says so.

use super::exchange::pair_text;
use super::place::Place;
use super::{CaFolder, Found};
use crate::ca::{Authority, AuthorityError, SigningError};
use crate::constraints::PermittedNames;
use crate::date;
use crate::pem::FileError;
use crate::set::{CaSet, Successor};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;
use time::OffsetDateTime;

/// Why a rotation went no further.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// A file or the making of the CA is the problem.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// A successor waits already.
    #[error("a successor is announced already, in {}; activate it, or take it back", .0.display())]
    Announced(PathBuf),
    /// The rotation before this one is not over.
    #[error("the rotation before is not finished: clients are still told of {}; finish it first", .0.display())]
    Unfinished(PathBuf),
    /// The CA that signs would end before its successor begins.
    #[error(
        "the CA that signs ends on {0}, before the successor would sign: let it sign earlier, or activate it when every \
         client trusts it"
    )]
    TooLate(String),
    /// There is no successor.
    #[error("no successor is announced")]
    NotAnnounced,
    /// The successor does not sign yet.
    #[error("the successor does not sign yet: activate it first, or wait for its date")]
    NotActivated,
    /// There is no rotation.
    #[error("no rotation is under way")]
    NotUnderWay,
}

impl From<FileError> for RotationError {
    fn from(error: FileError) -> Self {
        Self::Authority(error.into())
    }
}

impl From<SigningError> for RotationError {
    fn from(error: SigningError) -> Self {
        Self::Authority(error.into())
    }
}

impl CaFolder {
    /// Makes a successor for these names, published from now on, which signs from a date or when it is activated.
    ///
    /// # Errors
    /// When a rotation is under way, the date is too late, or a file cannot be read or written.
    pub fn announce(
        &self,
        permitted: &PermittedNames,
        from: Option<SystemTime>,
    ) -> Result<CaSet, RotationError> {
        let _lock = self.lock()?;
        let Found { current, successor, old } = self.tidy()?;
        if successor.is_some() {
            return Err(RotationError::Announced(self.next.path.clone()));
        }
        if old.is_some() {
            return Err(RotationError::Unfinished(self.old.path.clone()));
        }
        let from = from.map(OffsetDateTime::from);
        if from.is_some_and(|from| from > current.end()) {
            return Err(RotationError::TooLate(date::text(current.end())));
        }
        let authority = Arc::new(Authority::generate_for(permitted)?);
        self.next.write(pair_text(&Successor { authority, from }).reveal())?;
        Ok(self.read()?)
    }

    /// Lets the successor sign. What signed before stays published.
    ///
    /// # Errors
    /// When none is announced, it is not its time, or a file cannot be read or written.
    pub fn activate(&self) -> Result<CaSet, RotationError> {
        let _lock = self.lock()?;
        let found = self.tidy()?;
        let successor = found.successor.as_ref().ok_or(RotationError::NotAnnounced)?;
        check_time_of(&successor.authority, &self.next)?;
        self.exchange(&found.current, &successor.authority, &self.old)?;
        self.next.remove()?;
        Ok(self.read()?)
    }

    /// Publishes what signed before no more, and forgets it with its key.
    ///
    /// # Errors
    /// When the successor does not sign yet, no rotation is under way, or a file cannot be read or written.
    pub fn finish(&self) -> Result<CaSet, RotationError> {
        let _lock = self.lock()?;
        let found = self.tidy()?;
        match &found.successor {
            Some(Successor { authority, from: Some(from) }) if *from <= OffsetDateTime::now_utc() => {
                self.exchange(&found.current, authority, &self.old)?;
                self.next.remove()?;
            }
            Some(_) => return Err(RotationError::NotActivated),
            None if found.old.is_none() => return Err(RotationError::NotUnderWay),
            None => {}
        }
        self.old.remove()?;
        Ok(self.read()?)
    }

    /// Goes one step back: what signed before signs again, and its successor is announced; or, if it never signed, is
    /// forgotten.
    ///
    /// # Errors
    /// When no rotation is under way, what signed before has ended, or a file cannot be read or written.
    pub fn back(&self) -> Result<CaSet, RotationError> {
        let _lock = self.lock()?;
        let found = self.tidy()?;
        match &found.successor {
            Some(Successor { authority, from: Some(from) }) if *from <= OffsetDateTime::now_utc() => {
                check_time_of(&found.current, &self.certificate)?;
                self.next
                    .write(pair_text(&Successor { authority: authority.clone(), from: None }).reveal())?;
            }
            Some(_) => self.next.remove()?,
            None if found.old.is_none() => return Err(RotationError::NotUnderWay),
            None => {
                let before = self.old.read_pair()?;
                check_time_of(&before, &self.old)?;
                self.exchange(&found.current, &before, &self.next)?;
                self.old.remove()?;
            }
        }
        self.sync()?;
        Ok(self.read()?)
    }
}

/// Before anything changes: what is to sign from now on must be able to.
fn check_time_of(authority: &Authority, from: &Place) -> Result<(), FileError> {
    authority.check_time(OffsetDateTime::now_utc()).map_err(|problem| problem.at(&from.path))
}

#[cfg(test)]
mod tests {
    use super::super::place::DATE;
    use super::super::tests::{CRT, KEY, announced, at, expired, files, load_in, mode, of_the_past, state};
    use super::*;
    use std::fs;

    fn everything() -> PermittedNames {
        PermittedNames::default()
    }

    #[test]
    fn a_rotation_goes_from_one_ca_over_two_to_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = announced(dir.path());
        let folder = CaFolder::at(dir.path());
        assert_eq!(state(dir.path()), (old.clone(), 2));
        assert_eq!(mode(&dir.path().join("next.pem")), 0o600);
        assert!(matches!(folder.announce(&everything(), None), Err(RotationError::Announced(_))));
        assert!(matches!(folder.finish(), Err(RotationError::NotActivated)));

        folder.activate().unwrap();
        assert_eq!(state(dir.path()), (new.clone(), 2));
        assert_eq!(mode(&dir.path().join(KEY)), 0o600);
        assert_eq!(mode(&dir.path().join(CRT)), 0o644);
        assert_eq!(mode(&dir.path().join("old.pem")), 0o600);
        // Whoever knows only the two files finds a pair there, too.
        assert_eq!(load_in(dir.path()).unwrap().fingerprint_sha256(), new);
        assert!(matches!(folder.activate(), Err(RotationError::NotAnnounced)));
        assert!(matches!(folder.announce(&everything(), None), Err(RotationError::Unfinished(_))));

        folder.finish().unwrap();
        assert_eq!(state(dir.path()), (new, 1));
        assert_eq!(files(dir.path()), [CRT, KEY]);
        assert!(matches!(folder.finish(), Err(RotationError::NotUnderWay)));
        assert!(matches!(folder.back(), Err(RotationError::NotUnderWay)));
    }

    #[test]
    fn every_step_can_be_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = announced(dir.path());
        let folder = CaFolder::at(dir.path());
        folder.activate().unwrap();
        assert_eq!(state(dir.path()), (new.clone(), 2));
        folder.back().unwrap();
        assert_eq!(state(dir.path()), (old.clone(), 2));
        folder.activate().unwrap();
        assert_eq!(state(dir.path()), (new, 2), "the same successor");
        folder.back().unwrap();
        folder.back().unwrap();
        assert_eq!(state(dir.path()), (old, 1));
        assert_eq!(files(dir.path()), [CRT, KEY]);
    }

    #[test]
    fn a_date_activates_a_successor_and_the_files_follow_when_it_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let old = at(dir.path()).fingerprint_sha256();
        let folder = CaFolder::at(dir.path());
        let tomorrow = SystemTime::now() + std::time::Duration::from_secs(86_400);
        folder.announce(&everything(), Some(tomorrow)).unwrap();
        assert_eq!(state(dir.path()), (old.clone(), 2));
        assert!(matches!(folder.finish(), Err(RotationError::NotActivated)));

        let next = dir.path().join("next.pem");
        let text = fs::read_to_string(&next).unwrap();
        let line = text.lines().find(|line| line.starts_with(DATE)).unwrap();
        fs::write(&next, text.replace(line, "Signs from: 2026-01-01T00:00:00Z")).unwrap();
        let (new, published) = state(dir.path());
        assert!(new != old && published == 2);
        // Back: it is announced again, without a date.
        folder.back().unwrap();
        assert_eq!(state(dir.path()), (old, 2));
        fs::write(&next, text.replace(line, "Signs from: 2026-01-01T00:00:00Z")).unwrap();
        folder.finish().unwrap();
        assert_eq!(state(dir.path()), (new, 1));
        assert_eq!(files(dir.path()), [CRT, KEY]);

        folder.announce(&everything(), None).unwrap();
        let text = fs::read_to_string(&next).unwrap();
        fs::write(&next, format!("Signs from: some day\n{text}")).unwrap();
        let error = folder.load().unwrap_err().to_string();
        assert!(error.contains("next.pem: `some day` is no date"), "{error}");
    }

    #[test]
    fn a_successor_is_made_for_the_names_that_are_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        at(dir.path());
        let permitted = PermittedNames::new(["example.org".parse().unwrap()]);
        let folder = CaFolder::at(dir.path());
        folder.announce(&permitted, None).unwrap();
        assert_eq!(folder.activate().unwrap().signer().permitted(), permitted);
    }

    #[test]
    fn a_ca_that_has_ended_is_shown_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        at(dir.path());
        let old = expired(dir.path());
        let folder = CaFolder::at(dir.path());
        assert!(folder.load().is_err(), "nothing is signed by it");
        assert_eq!(folder.read().unwrap().view()[0].fingerprint_sha256, old);
        let announced = folder.announce(&everything(), None).unwrap().view();
        assert_eq!((announced[0].fingerprint_sha256.as_str(), announced.len()), (old.as_str(), 2));
        folder.activate().unwrap();
        assert_eq!(state(dir.path()), (announced[1].fingerprint_sha256.clone(), 1));
        folder.finish().unwrap();
    }

    #[test]
    fn nothing_goes_back_to_a_ca_that_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let (_, new) = announced(dir.path());
        let folder = CaFolder::at(dir.path());
        expired(dir.path());
        folder.activate().unwrap();
        let error = folder.back().unwrap_err().to_string();
        assert!(error.contains("old.pem: its certificate expired on 20"), "{error}");
        assert_eq!(state(dir.path()), (new.clone(), 1), "and nothing has changed");

        // The same where its date made the successor sign.
        folder.finish().unwrap();
        folder.announce(&everything(), Some(SystemTime::now())).unwrap();
        let new = state(dir.path()).0;
        expired(dir.path());
        let error = folder.back().unwrap_err().to_string();
        assert!(error.contains("ca.crt: its certificate expired on 20"), "{error}");
        assert_eq!(state(dir.path()), (new, 1));
    }

    #[test]
    fn a_successor_that_has_ended_is_not_activated() {
        let dir = tempfile::tempdir().unwrap();
        let (old, _) = announced(dir.path());
        let ended = Successor { authority: Arc::new(of_the_past()), from: None };
        fs::write(dir.path().join("next.pem"), pair_text(&ended).reveal()).unwrap();
        let folder = CaFolder::at(dir.path());
        let error = folder.activate().unwrap_err().to_string();
        assert!(error.contains("next.pem: its certificate expired on 20"), "{error}");
        assert_eq!(state(dir.path()).0, old);
    }

    #[test]
    fn a_successor_signs_before_the_ca_of_today_ends() {
        let dir = tempfile::tempdir().unwrap();
        at(dir.path());
        let folder = CaFolder::at(dir.path());
        let end = folder.read().unwrap().view()[0].not_after;
        let after = end + std::time::Duration::from_secs(86_400);
        let error = folder.announce(&everything(), Some(after)).unwrap_err().to_string();
        assert!(error.contains("ends on 20") && error.contains("before the successor would sign"), "{error}");
        assert_eq!(files(dir.path()), [CRT, KEY]);
        folder.announce(&everything(), Some(end)).unwrap();
    }
}
