//! What the tests of the folder share.

use super::CaFolder;
use crate::ca::Authority;
use crate::constraints::PermittedNames;
use crate::pem::FileError;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use time::OffsetDateTime;

pub(super) const CRT: &str = "ca.crt";
pub(super) const KEY: &str = "ca.key";

pub(super) fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// The CA that signs in this folder, made if there is none.
pub(super) fn at(folder: &Path) -> Arc<Authority> {
    let set = CaFolder::at(folder).load_or_generate(&PermittedNames::default()).unwrap();
    set.signer().clone()
}

pub(super) fn load_in(folder: &Path) -> Result<Authority, FileError> {
    Authority::load(&folder.join(CRT), &folder.join(KEY))
}

/// Which of the two CAs signs, and whether both are published.
pub(super) fn state(folder: &Path) -> (String, usize) {
    let set = CaFolder::at(folder).load().unwrap();
    (set.signer().fingerprint_sha256(), set.bundle_pem().matches("BEGIN CERTIFICATE").count())
}

pub(super) fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name != "ca.lock");
    names.sort();
    names
}

pub(super) fn announced(folder: &Path) -> (String, String) {
    let old = at(folder).fingerprint_sha256();
    let set = CaFolder::at(folder).announce(&PermittedNames::default(), None).unwrap();
    (old, set.view()[1].fingerprint_sha256.clone())
}

/// Puts a CA that ended a while ago in the place of the one that signs; its fingerprint.
pub(super) fn expired(folder: &Path) -> String {
    let authority = of_the_past();
    fs::write(folder.join(CRT), authority.certificate_pem()).unwrap();
    fs::write(folder.join(KEY), authority.key_text().reveal()).unwrap();
    authority.fingerprint_sha256()
}

/// A CA that ended a while ago.
pub(super) fn of_the_past() -> Authority {
    let then = OffsetDateTime::now_utc() - time::Duration::days(3700);
    Authority::generate_at(&PermittedNames::default(), then).unwrap()
}

#[test]
fn what_cannot_be_used_stops_the_start_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    announced(dir.path());
    let folder = CaFolder::at(dir.path());
    let ten_years_on = OffsetDateTime::now_utc() + time::Duration::days(3700);
    let error = folder.load_at(ten_years_on).unwrap_err().to_string();
    assert!(error.contains("ca.crt: its certificate expired on 20"), "{error}");
    fs::write(dir.path().join("next.pem"), "garbage").unwrap();
    let error = folder.load().unwrap_err().to_string();
    assert!(error.contains("next.pem: it holds no certificate"), "{error}");
}
