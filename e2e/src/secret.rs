//! [`note`]: what tests show to daemons and is nobody else's business, of this whole run. [`check`] looks for it in what a process
//! of ours has written, at whatever level `RUST_LOG` made it write, when it ends.
//!
//! Passwords, tokens and join tokens of the laboratory are noted where they are made, what else clients show where an origin or our
//! own client reads or writes its headers. Private keys are looked for in the folder of the process.

use crate::registry::CREDENTIALS;
use crate::scan;
use anyhow::Result;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Headers whose values are noted, in lower case.
const SHOWN: [&str; 4] = ["authorization", "cookie", "proxy-authorization", "private-token"];
/// What is shorter stands in logs for other reasons, in bytes.
const MIN: usize = 8;
/// How deep below a process's folder its keys lie, at most.
const DEPTH: usize = 4;

static NOTED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// From now on this may stand in no log.
pub fn note(secret: &str) {
    if secret.len() >= MIN {
        NOTED.lock().unwrap_or_else(PoisonError::into_inner).insert(secret.to_owned());
    }
}

/// Nor `user:password`, the password alone, or what HTTP makes of them.
pub fn note_password(credentials: &str) {
    note(credentials);
    note(credentials.split_once(':').map_or(credentials, |(_, password)| password));
    note(&BASE64_STANDARD.encode(credentials));
}

/// Nor what a token says last: of a JWT its signature, of a join token its secret.
pub fn note_token(token: &str) {
    note(token.trim().rsplit('.').next().unwrap_or_default());
}

/// Nor the value of this header, if it is one that says who asks.
pub(crate) fn note_header(name: &str, value: &str) {
    if SHOWN.contains(&name.to_ascii_lowercase().as_str()) {
        note(value);
        note_token(value.rsplit(' ').next().unwrap_or_default());
    }
}

/// Fails when `written`, which is what the process `name` wrote, holds something that was noted, or a key from its folder.
pub(crate) fn check(name: &str, written: &str, folder: Option<&Path>) -> Result<()> {
    note_password(CREDENTIALS);
    let mut secrets: Vec<String> =
        NOTED.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
    let mut keys = Vec::new();
    folder.into_iter().for_each(|folder| find_keys(folder, DEPTH, &mut keys));
    let read = |key: &PathBuf| scan::of_key(&std::fs::read_to_string(key).ok()?).ok();
    secrets.extend(keys.iter().filter_map(read));
    scan::bytes(&format!("what {name} wrote"), written.as_bytes(), &secrets)
}

/// What is gone by now has no keys.
fn find_keys(folder: &Path, depth: usize, keys: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_some_and(|it| it == "key") {
            keys.push(path);
        } else if depth > 0 && path.is_dir() && !path.is_symlink() {
            find_keys(&path, depth - 1, keys);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::Ca;
    use crate::process::Process;
    use std::process::Command;

    /// Runs a shell as if it were the binary, and says how it ends.
    fn writes(folder: &Path, text: &str) -> std::thread::Result<()> {
        let mut command = Command::new("echo");
        let log = folder.join("daemon.log");
        let process = Process::start_guarded("daemon", command.arg(text), &log).unwrap();
        process.wait_line("its words", crate::darter::START_LIMIT, |_| Some(())).unwrap();
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(process)))
    }

    #[test]
    fn a_process_that_writes_a_secret_of_the_laboratory_fails_its_test() {
        let home = tempfile::tempdir().unwrap();
        let below = home.path().join("work/node");
        std::fs::create_dir_all(&below).unwrap();
        let key = Ca::new("a cluster").unwrap().issue(&["node"]).unwrap().key;
        std::fs::write(below.join("node.key"), &key).unwrap();
        note_password("planted:correct-battery");
        note_token("darter1.id.planted-join-token");
        note_header("Authorization", "Bearer h.e.planted-signature");
        note_header("Cookie", "session=planted");
        writes(home.path(), "TRACE nothing of importance, and content-type: application/json").unwrap();
        for secret in [
            "correct-battery",
            &BASE64_STANDARD.encode("planted:correct-battery"),
            "planted-join-token",
            "planted-signature",
            "session=planted",
            CREDENTIALS,
            &scan::of_key(&key).unwrap(),
        ] {
            assert!(writes(home.path(), &format!("TRACE headers={{{secret}}}")).is_err(), "{secret}");
        }
    }
}
