//! `darter store`: the content on this host's disk, looked through while no daemon works with it.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use darter_p2p::{StoreReport, check_store};
use serde::Serialize;

use crate::args::StorePlace;
use crate::config::directories;
use crate::exit::{self, Failure};
use crate::identity;

/// What to do with what is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// Say it.
    Check,
    /// Take it away.
    Repair,
}

/// As JSON.
#[derive(Serialize)]
struct Said<'a> {
    dir: &'a Path,
    #[serde(flatten)]
    report: &'a StoreReport,
}

/// `darter store check` and `darter store repair`.
pub(crate) fn run(place: &StorePlace, what: What) -> exit::Result {
    let dir = folder(&place.dir);
    for work_home in [Some(place.dir.as_path()), dir.parent()].into_iter().flatten() {
        if identity::is_work_home(work_home) {
            identity::take(work_home)?;
            break;
        }
    }
    let report =
        check_store(&dir, what == What::Repair).map_err(|error| Failure::own_files(error.to_string()))?;
    let text = if place.json { json(&dir, &report)? } else { words(&dir, &report) };
    exit::say(io::stdout(), text.trim_end());
    let wrong = report.findings.iter().filter(|finding| !finding.left_over && !finding.repaired).count();
    if wrong == 0 {
        return Ok(());
    }
    Err(Failure::not_now(format!(
        "{wrong} found; `darter store repair` takes it away, and it will be fetched again"
    )))
}

/// Where the content is kept, of a daemon's folder.
fn folder(dir: &Path) -> PathBuf {
    let inside = directories::content(dir);
    if inside.join("content").is_dir() { inside } else { dir.to_owned() }
}

fn json(dir: &Path, report: &StoreReport) -> exit::Result<String> {
    serde_json::to_string_pretty(&Said { dir, report })
        .map_err(|error| Failure::software(format!("cannot say it in JSON: {error}")))
}

fn words(dir: &Path, report: &StoreReport) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let end = match (finding.repaired, finding.left_over) {
            (true, _) => ": taken away",
            (false, true) => ": left over, the next start takes it away",
            (false, false) => "",
        };
        // A String takes everything.
        let _ = writeln!(text, "{}: {}{end}", finding.path.display(), finding.fault);
    }
    let StoreReport { complete, bytes, incomplete, .. } = report;
    let dir = dir.display();
    let _ =
        writeln!(text, "{dir}: {complete} complete, {bytes} bytes of them right; {incomplete} to be resumed");
    text
}
