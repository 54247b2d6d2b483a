//! `proxy.accounts`: credentials for registries that are lent to clients without any.

use std::path::Path;

use darter_certs::Secret;
use darter_proxy::{Account, Login};

use super::section::Section;
use super::value;

/// The longest file with a name and a password, in bytes. A key of a cloud's service account takes about 2,500.
const MAX_FILE_BYTES: usize = 64 << 10;

pub(super) fn accounts(section: &mut Section<'_>) -> Vec<Account> {
    section.sections("accounts").iter_mut().filter_map(account).collect()
}

fn account(section: &mut Section<'_>) -> Option<Account> {
    let hosts = section.filled("regx", value::regex);
    let repositories = section.filled("repositories", value::regex);
    let file = section.file("credentials");
    let insecure = section.value("insecure", value::boolean).unwrap_or(false);
    let login = file.and_then(|file| login(&file).map_err(|why| section.error("credentials", why)).ok());
    for (key, what) in [
        ("regx", "needed: a regular expression for host:port of the registry"),
        (
            "repositories",
            "needed: a regular expression for the repositories that everybody may read; .* are all",
        ),
        ("credentials", "needed: a file that holds NAME:PASSWORD"),
    ] {
        if !section.has(key) {
            section.error(key, what);
        }
    }
    Some(Account { hosts: hosts?, repositories: repositories?, login: login?, insecure })
}

/// What stands in the file is never repeated.
fn login(file: &Path) -> Result<Login, String> {
    let text = std::fs::read_to_string(file).map(Secret::from);
    let text = text.map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    let text = text.reveal();
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.len() > MAX_FILE_BYTES {
        return Err(format!("{} is too long to hold NAME:PASSWORD", file.display()));
    }
    let (name, password) =
        text.split_once(':').ok_or_else(|| format!("{} does not hold NAME:PASSWORD", file.display()))?;
    Login::new(name, password).map_err(|why| format!("{}: {why}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::super::tests::top;
    use super::*;

    fn read(item: &str) -> (Vec<Account>, String) {
        top(&format!("accounts:\n- {item}\n"), accounts)
    }

    #[test]
    fn an_account_has_a_registry_repositories_and_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("login");
        std::fs::write(&file, "_json_key:{\"a\": \"b:c\"}\n").unwrap();
        let item = format!("{{regx: '^r:443$', repositories: ^team/, credentials: {}}}", file.display());
        let (accounts, report) = read(&item);
        assert_eq!((accounts.len(), report.as_str()), (1, ""));
        assert!(accounts[0].repositories.is_match("team/app") && accounts[0].hosts.is_match("r:443"));
        assert!(!accounts[0].insecure);
        let (accounts, _) = read(&item.replace('}', ", insecure: true}"));
        assert!(accounts[0].insecure);
    }

    #[test]
    fn what_is_missing_or_wrong_is_said_without_the_secret() {
        let (none, report) = read("{regx: a}");
        assert!(none.is_empty());
        assert_eq!(
            report,
            "f:2:4: accounts[0].repositories: needed: a regular expression for the repositories that everybody may read; .* are all\n\
             f:2:4: accounts[0].credentials: needed: a file that holds NAME:PASSWORD"
        );
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("login");
        std::fs::write(&file, "hunter2").unwrap();
        let (_, report) = read(&format!("{{regx: a, repositories: b, credentials: {}}}", file.display()));
        assert!(
            report.ends_with("/login does not hold NAME:PASSWORD") && !report.contains("hunter2"),
            "{report}"
        );
    }
}
