//! The first start: a CA is made where there is none.

use super::CaFolder;
use crate::ca::{Authority, AuthorityError};
use crate::constraints::PermittedNames;
use crate::pem::FileError;

impl CaFolder {
    /// Sees to it that both files are there, if this is the first start or one that a crash cut short. Both files are first
    /// written whole beside their places; then the key is put in place, then the certificate. So whatever a crash leaves
    /// can be told from a lost file: what is missing is still there under its other name.
    pub(super) fn make_pair(&self, permitted: &PermittedNames) -> Result<(), AuthorityError> {
        let _lock = self.lock()?;
        self.finish_what_was_interrupted()?;
        match (self.certificate.exists()?, self.key.exists()?) {
            (true, true) => Ok(()),
            (true, false) => Err(self.key.missing_beside(&self.certificate).into()),
            (false, true) => Err(self.certificate.missing_beside(&self.key).into()),
            (false, false) => {
                let authority = Authority::generate_for(permitted)?;
                self.store(&authority)?;
                tracing::info!(folder = %self.path.display(), fingerprint = authority.fingerprint_sha256(),
                    "made a new CA");
                Ok(())
            }
        }
    }

    fn finish_what_was_interrupted(&self) -> Result<(), FileError> {
        let (certificate, key) = (&self.certificate, &self.key);
        for (missing, other) in [(certificate, key), (key, certificate)] {
            if !missing.exists()? && other.exists()? && missing.prepared.exists() {
                missing.put_in_place()?;
                self.sync()?;
            }
        }
        Ok(())
    }

    fn store(&self, authority: &Authority) -> Result<(), FileError> {
        self.key.prepare(authority.key_text().reveal())?;
        self.certificate.prepare(&authority.certificate_pem())?;
        self.sync()?;
        self.key.put_in_place()?;
        self.certificate.put_in_place()?;
        self.sync()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{CRT, KEY, at, load_in, mode};
    use super::*;
    use std::fs;
    use std::sync::Arc;

    #[test]
    fn a_stored_ca_is_kept_for_its_owner_alone_and_loads_again() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("deep/ca");
        let first = at(&folder);
        assert_eq!(mode(&folder), 0o700);
        assert_eq!(mode(&folder.join(KEY)), 0o600);
        let mut names: Vec<_> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["ca.crt", "ca.key", "ca.lock"]);

        let again = at(&folder);
        assert_eq!(again.certificate_pem(), first.certificate_pem());
        assert_eq!(load_in(&folder).unwrap().fingerprint_sha256(), first.fingerprint_sha256());
        assert_eq!(fs::read_to_string(folder.join(CRT)).unwrap(), first.certificate_pem());
    }

    #[test]
    fn a_start_with_both_files_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        at(dir.path());
        fs::remove_file(dir.path().join("ca.lock")).unwrap();
        at(dir.path());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn many_that_start_at_once_get_one_pair() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Arc::new(dir.path().join("ca"));
        let threads: Vec<_> = (0..16)
            .map(|_| {
                let folder = folder.clone();
                std::thread::spawn(move || at(&folder).fingerprint_sha256())
            })
            .collect();
        let mut found: Vec<String> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        found.dedup();
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn a_crash_at_any_point_leaves_a_pair_or_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let made = at(dir.path()).fingerprint_sha256();
        let (crt, key) = (dir.path().join(CRT), dir.path().join(KEY));
        let (new_crt, new_key) = (dir.path().join(".ca.crt.new"), dir.path().join(".ca.key.new"));

        // Between the two renames, in either order that a disk may have kept.
        for (file, prepared) in [(&crt, &new_crt), (&key, &new_key)] {
            fs::rename(file, prepared).unwrap();
            assert_eq!(at(dir.path()).fingerprint_sha256(), made);
        }
        // Before them: nobody ever saw that CA.
        fs::rename(&crt, &new_crt).unwrap();
        fs::rename(&key, &new_key).unwrap();
        fs::write(&new_crt, "half a certif").unwrap();
        assert_ne!(at(dir.path()).fingerprint_sha256(), made);
        assert!(!new_crt.exists() && !new_key.exists());
    }

    #[test]
    fn a_lost_half_is_an_error_and_nothing_is_made() {
        for (lost, kept) in [(CRT, KEY), (KEY, CRT)] {
            let dir = tempfile::tempdir().unwrap();
            at(dir.path());
            fs::remove_file(dir.path().join(lost)).unwrap();
            let before = fs::read(dir.path().join(kept)).unwrap();
            let text = CaFolder::at(dir.path())
                .load_or_generate(&PermittedNames::default())
                .unwrap_err()
                .to_string();
            assert!(text.contains(&format!("{lost}: it is missing, but ")), "{text}");
            assert!(text.contains(&format!("{kept} is there")), "{text}");
            assert!(!dir.path().join(lost).exists());
            assert_eq!(fs::read(dir.path().join(kept)).unwrap(), before);
        }
    }

    #[test]
    fn a_broken_file_is_an_error_and_stays_as_it_is() {
        for name in [CRT, KEY] {
            let dir = tempfile::tempdir().unwrap();
            at(dir.path());
            fs::write(dir.path().join(name), "garbage").unwrap();
            let text = CaFolder::at(dir.path())
                .load_or_generate(&PermittedNames::default())
                .unwrap_err()
                .to_string();
            assert!(text.contains(&format!("{name}: it holds no")), "{text}");
            assert_eq!(fs::read_to_string(dir.path().join(name)).unwrap(), "garbage");
        }
    }
}
