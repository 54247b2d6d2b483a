//! Every dependency's licence is one that deny.toml allows.
//!
//! Where cargo-deny is installed it decides, with all that deny.toml says. Elsewhere its licence list is checked here, so
//! that a machine with nothing but Rust's toolchain checks it too.

use crate::report::Count;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::process::{Command, Stdio};

/// Checks all dependencies.
pub(crate) fn check() -> Result<Count> {
    let deny = Command::new("cargo")
        .args(["deny", "--version"])
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .status();
    if deny.is_ok_and(|status| status.success()) {
        // Advisories need a database from the Internet, and change without us: they are no property of a commit.
        return crate::report::check(
            Command::new("cargo").args(["deny", "check", "licenses", "bans", "sources"]),
        );
    }
    println!("no cargo-deny here: the licences are checked against deny.toml by xtask");
    let allowed = allow_list(&std::fs::read_to_string("deny.toml").context("cannot read deny.toml")?)?;
    let output = Command::new("cargo").args(["metadata", "--format-version=1", "--locked"]).output()?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    let refused: Vec<String> = packages.iter().filter_map(|package| refuse(package, &allowed)).collect();
    ensure!(refused.is_empty(), "deny.toml does not allow:\n{}", refused.join("\n"));
    println!("{} packages, all allowed", packages.len());
    Ok(Count::default())
}

fn refuse(package: &Value, allowed: &[String]) -> Option<String> {
    let licence = package["license"].as_str();
    let fine = licence.is_some_and(|licence| allows(licence, allowed) == Some(true));
    (!fine).then(|| {
        format!("{} {}: {}", package["name"], package["version"], licence.unwrap_or("no licence named"))
    })
}

/// The strings of `allow = [...]` in the table `[licenses]`.
fn allow_list(deny: &str) -> Result<Vec<String>> {
    let lines = deny.lines().map(|line| line.split('#').next().unwrap_or_default());
    let table: Vec<&str> = lines.skip_while(|line| line.trim() != "[licenses]").collect();
    let table = table.join("\n");
    let (_, list) = table.split_once("allow = [").context("deny.toml: no `allow = [` in [licenses]")?;
    let (list, _) = list.split_once(']').context("deny.toml: `allow` does not end")?;
    Ok(list.split('"').skip(1).step_by(2).map(str::to_owned).collect())
}

/// Whether an SPDX expression can be met with the allowed licences; `None` when it cannot be read.
fn allows(expression: &str, allowed: &[String]) -> Option<bool> {
    // Before SPDX expressions cargo took a slash for OR.
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let (verdict, rest) = any(&words, allowed)?;
    rest.is_empty().then_some(verdict)
}

/// `all { OR all }`
fn any<'a, 'b>(words: &'b [&'a str], allowed: &[String]) -> Option<(bool, &'b [&'a str])> {
    let (mut verdict, mut words) = all(words, allowed)?;
    while let Some(rest) = words.strip_prefix(&["OR"]) {
        let (other, rest) = all(rest, allowed)?;
        (verdict, words) = (verdict | other, rest);
    }
    Some((verdict, words))
}

/// `one { AND one }`
fn all<'a, 'b>(words: &'b [&'a str], allowed: &[String]) -> Option<(bool, &'b [&'a str])> {
    let (mut verdict, mut words) = one(words, allowed)?;
    while let Some(rest) = words.strip_prefix(&["AND"]) {
        let (other, rest) = one(rest, allowed)?;
        (verdict, words) = (verdict & other, rest);
    }
    Some((verdict, words))
}

/// `( any )`, `licence`, or `licence WITH exception`, which must be allowed as a whole.
fn one<'a, 'b>(words: &'b [&'a str], allowed: &[String]) -> Option<(bool, &'b [&'a str])> {
    let has = |licence: &str| allowed.iter().any(|have| have == licence);
    match words {
        ["(", rest @ ..] => {
            let (verdict, rest) = any(rest, allowed)?;
            Some((verdict, rest.strip_prefix(&[")"])?))
        }
        [licence, "WITH", exception, rest @ ..] => Some((has(&format!("{licence} WITH {exception}")), rest)),
        [")" | "OR" | "AND" | "WITH", ..] | [] => None,
        [licence, rest @ ..] => Some((has(licence), rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_allow_list_is_read_from_the_licence_table() {
        let deny = "[bans]\nallow = [\"no\"]\n[licenses]\n# allow = [\"neither\"]\nallow = [\n  \"MIT\", # common\n  \"A WITH B\",\n]\n";
        assert_eq!(allow_list(deny).unwrap(), ["MIT", "A WITH B"]);
        assert!(allow_list("[bans]\nallow = []").is_err());
    }

    #[test]
    fn expressions_are_met_or_not() {
        let allowed = ["MIT".to_owned(), "Zlib".to_owned(), "Apache-2.0 WITH LLVM-exception".to_owned()];
        for (expression, verdict) in [
            ("MIT", Some(true)),
            ("GPL-3.0", Some(false)),
            ("GPL-3.0 OR MIT", Some(true)),
            ("GPL-3.0/MIT", Some(true)),
            ("GPL-3.0 AND MIT", Some(false)),
            ("MIT AND (GPL-3.0 OR Zlib)", Some(true)),
            ("(MIT OR GPL-3.0) AND GPL-3.0", Some(false)),
            ("GPL-3.0 OR MIT AND Zlib", Some(true)),
            ("Apache-2.0 WITH LLVM-exception", Some(true)),
            ("Apache-2.0", Some(false)),
            ("", None),
            ("MIT OR", None),
            ("(MIT", None),
        ] {
            assert_eq!(allows(expression, &allowed), verdict, "{expression}");
        }
    }
}
