//! `darter config check FILE`.

use std::path::Path;

use crate::config;
use crate::exit::{self, Failure};

/// Checks `file` and says `FILE: ok`, or everything that is wrong.
pub(crate) fn run(file: &Path) -> exit::Result {
    let loaded = config::load(file).map_err(|report| Failure::configuration(report.to_string()))?;
    for line in loaded.report.warning_lines() {
        eprintln!("{line}");
    }
    println!("{}: ok", file.display());
    Ok(())
}
