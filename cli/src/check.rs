//! `darter config check FILE`.

use std::io;
use std::path::Path;

use crate::config;
use crate::exit::{self, Failure};

/// Checks `file` and says `FILE: ok`, or everything that is wrong.
pub(crate) fn run(file: &Path) -> exit::Result {
    let loaded = config::load(file).map_err(|report| Failure::configuration(report.to_string()))?;
    for line in loaded.report.warning_lines() {
        exit::say(io::stderr(), &line);
    }
    exit::say(io::stdout(), &format!("{}: ok", file.display()));
    Ok(())
}
