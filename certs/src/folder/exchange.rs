//! One CA takes another's place: see the head of the module for the order in which files change.

use super::place::{DATE, Place};
use super::{CaFolder, Found};
use crate::ca::Authority;
use crate::date;
use crate::pem::FileError;
use crate::secret::Secret;
use crate::set::Successor;
use std::sync::Arc;

impl CaFolder {
    /// Puts `incoming`, which stands in another file, in the place of the CA that signs, which is kept in `outgoing`.
    pub(super) fn exchange(
        &self,
        current: &Arc<Authority>,
        incoming: &Authority,
        outgoing: &Place,
    ) -> Result<(), FileError> {
        outgoing.write(pair_text(&Successor { authority: current.clone(), from: None }).reveal())?;
        self.sync()?;
        self.key.write(incoming.key_text().reveal())?;
        self.sync()?;
        // This is the change.
        self.certificate.write(&incoming.certificates_text())?;
        self.sync()
    }

    /// What the files say, after what an interrupted exchange left was removed.
    pub(super) fn tidy(&self) -> Result<Found, FileError> {
        let found = self.find()?;
        if !self.key_fits(&found.current)? {
            self.key.write(found.current.key_text().reveal())?;
            self.sync()?;
        }
        for (place, counts) in [(&self.next, found.successor.is_some()), (&self.old, found.old.is_some())] {
            if !counts && place.exists()? {
                place.remove()?;
            }
        }
        self.sync()?;
        Ok(found)
    }
}

/// A CA in one file: what people should know about it, its key, its certificate.
pub(super) fn pair_text(Successor { authority, from }: &Successor) -> Secret {
    let date = from.map(|from| format!("{DATE}{}\n", date::rfc3339(from))).unwrap_or_default();
    let text = format!(
        "CA: {}\nSHA-256 fingerprint: {}\n{date}{}{}",
        authority.subject(),
        authority.fingerprint_sha256(),
        authority.key_text().reveal(),
        authority.certificates_text()
    );
    text.into()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{CRT, KEY, announced, files, load_in, state};
    use super::*;
    use std::fs;
    use std::path::Path;

    /// A crash is what the files looked like after any of the renames and removals of a step. So each is played by hand, and
    /// then the next command must find one of the two states, and both CAs.
    #[test]
    fn a_crash_within_an_exchange_leaves_it_before_or_behind() {
        let content = |folder: &Path| -> Vec<(String, Vec<u8>)> {
            let file = |name: String| (name.clone(), fs::read(folder.join(name)).unwrap());
            files(folder).into_iter().map(file).collect()
        };
        let part = |files: &[(String, Vec<u8>)], name: &str| {
            files.iter().find(|(it, _)| it == name).map(|(_, content)| content.clone())
        };
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = announced(dir.path());
        let before = content(dir.path());
        CaFolder::at(dir.path()).activate().unwrap();
        let after = content(dir.path());
        // The files in the order in which an exchange changes them, in both directions.
        for (order, from, to, first, second) in [
            (["old.pem", KEY, CRT, "next.pem"], &before, &after, &old, &new),
            (["next.pem", KEY, CRT, "old.pem"], &after, &before, &new, &old),
        ] {
            for done in 0..=order.len() {
                let crashed = tempfile::tempdir().unwrap();
                for (index, name) in order.iter().enumerate() {
                    let files = if index < done { to } else { from };
                    if let Some(content) = part(files, name) {
                        fs::write(crashed.path().join(name), content).unwrap();
                    }
                }
                let expected = if done < 3 { first } else { second };
                assert_eq!(&state(crashed.path()), &(expected.clone(), 2), "{order:?} {done}");
                // Whatever comes next clears up, and goes on from there.
                let folder = CaFolder::at(crashed.path());
                let other = if expected == &old {
                    folder.activate().unwrap();
                    &new
                } else {
                    folder.back().unwrap();
                    &old
                };
                assert_eq!(&state(crashed.path()), &(other.clone(), 2), "{order:?} {done}");
                assert_eq!(files(crashed.path()).len(), 3, "{order:?} {done}");
                assert!(load_in(crashed.path()).is_ok(), "{order:?} {done}");
            }
        }
    }
}
