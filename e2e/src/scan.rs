//! [`folder`]: whether what must stand nowhere stands in some file.

use anyhow::{Result, bail, ensure};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// What engines keep for themselves, by how the names of their folders begin: nobody's log.
const OF_ENGINES: [&str; 3] = ["docker.", "containerd.", "copied."];
/// How much of what stands before a secret is shown, in bytes.
const BEFORE: usize = 300;

/// Fails when a file in a folder, or below it, holds one of the secrets; how many files were read. A private key stands in a
/// file of its own, `*.key`, which must be its owner's alone and is not read.
pub fn folder(folder: &Path, secrets: &[String]) -> Result<usize> {
    let mut files = 0;
    for entry in std::fs::read_dir(folder)? {
        let (entry, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
        let name = name.to_string_lossy();
        if entry.is_dir() && !OF_ENGINES.iter().any(|it| name.starts_with(it)) {
            files += self::folder(&entry, secrets)?;
        } else if entry.extension().is_some_and(|it| it == "key") {
            let mode = entry.metadata()?.permissions().mode() & 0o777;
            ensure!(mode == 0o600, "{} is for {mode:o}", entry.display());
        } else if entry.is_file() {
            bytes(&entry.display().to_string(), &std::fs::read(&entry)?, secrets)?;
            files += 1;
        }
    }
    Ok(files)
}

/// Fails when `what`, which is these bytes, holds one of the secrets.
pub fn bytes(what: &str, bytes: &[u8], secrets: &[String]) -> Result<()> {
    let text = String::from_utf8_lossy(bytes);
    for secret in secrets {
        ensure!(!secret.is_empty(), "an empty secret stands everywhere");
        if let Some((before, _)) = text.split_once(secret.as_str()) {
            let line = before.lines().next_back().unwrap_or_default().as_bytes();
            let shown = String::from_utf8_lossy(&line[line.len().saturating_sub(BEFORE)..]);
            bail!("{what} holds {secret}, behind {shown}");
        }
    }
    Ok(())
}

/// The part of a private key in PEM form that is nobody else's: the line that holds the middle of it.
///
/// # Errors
/// When the file is no such key.
pub fn of_key(pem: &str) -> Result<String> {
    let lines: Vec<&str> = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    ensure!(pem.contains("PRIVATE KEY-----") && lines.len() > 1, "this is no private key in PEM form");
    Ok(lines[1].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::Ca;

    /// The key of a node, and of a cluster's CA.
    fn keys() -> [String; 2] {
        let ca = Ca::new("a cluster").unwrap();
        ["node", "authority"].map(|name| ca.issue(&[name]).unwrap().key)
    }

    #[test]
    fn a_key_is_found_in_a_log_in_a_trace_and_among_other_bytes_on_disk() {
        let keys = keys();
        let secrets = keys.clone().map(|key| of_key(&key).unwrap());
        let home = tempfile::tempdir().unwrap();
        let below = home.path().join("work/store");
        std::fs::create_dir_all(&below).unwrap();
        std::fs::write(home.path().join("daemon.log"), "TRACE nothing of importance\n").unwrap();
        assert_eq!(folder(home.path(), &secrets).unwrap(), 1);
        for key in &keys {
            // As a log would hold it: in one line, its ends escaped.
            let line = format!("TRACE read {:?}\n", key);
            let among = [&[0xff; 70_000][..], key.as_bytes(), &[0xfe; 9]].concat();
            for (name, planted) in [("daemon.log", line.as_bytes()), ("work/store/catalog", &among)] {
                std::fs::write(home.path().join(name), planted).unwrap();
                let found = folder(home.path(), &secrets).unwrap_err().to_string();
                assert!(found.contains(name), "{found}");
                std::fs::write(home.path().join(name), "").unwrap();
                assert!(bytes("the traces", planted, &secrets).is_err());
            }
        }
        folder(home.path(), &secrets).unwrap();
    }

    #[test]
    fn a_key_may_stand_in_its_own_file_alone_which_nobody_else_may_read() {
        let [key, _] = keys();
        let secrets = [of_key(&key).unwrap()];
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("node.key");
        let readable_to = |mode| {
            std::fs::write(&file, &key).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            folder(home.path(), &secrets)
        };
        assert_eq!(readable_to(0o600).unwrap(), 0);
        assert!(readable_to(0o640).unwrap_err().to_string().contains("node.key is for 640"));
        readable_to(0o600).unwrap();
        std::fs::copy(&file, home.path().join("node.key.old")).unwrap();
        assert!(folder(home.path(), &secrets).unwrap_err().to_string().contains("node.key.old"));
    }

    #[test]
    fn what_is_no_key_and_no_secret_is_not_looked_for() {
        assert!(of_key("-----BEGIN CERTIFICATE-----\nA\nB\n-----END CERTIFICATE-----\n").is_err());
        assert!(of_key("").is_err());
        assert!(bytes("it", b"x", &[String::new()]).is_err());
    }
}
