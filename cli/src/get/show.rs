//! [`Show`]: what people and scripts see of a download. Standard output has what became of each file; a progress bar goes
//! to standard error, and only to a terminal.

use std::io;
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};

use super::transfer::{Done, Job};
use crate::exit::{self, Failure};

/// How much is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Show {
    Quiet,
    Json,
    People,
}

/// A progress bar, or none.
pub(super) struct Bar(ProgressBar);

impl Show {
    pub(super) fn new(quiet: bool, json: bool) -> Self {
        match (quiet, json) {
            (true, _) => Self::Quiet,
            (_, true) => Self::Json,
            _ => Self::People,
        }
    }

    /// A bar for a file of which `have` bytes of `length` are there. indicatif shows it on a terminal alone.
    pub(super) fn bar(self, output: &Path, length: Option<u64>, have: u64) -> Bar {
        if self != Self::People {
            return Bar(ProgressBar::hidden());
        }
        let (bar, template) = match length {
            Some(length) => (
                ProgressBar::new(length),
                "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta} left",
            ),
            None => (ProgressBar::no_length(), "{msg} {bytes} {bytes_per_sec}"),
        };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let name = output.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bar = bar.with_style(style.progress_chars("=> ")).with_message(name).with_position(have);
        bar.reset_eta();
        Bar(bar)
    }

    /// Says what became of a file.
    pub(super) fn file(self, job: &Job, outcome: exit::Result<Done>) -> exit::Result {
        let output = job.output.display();
        match (self, &outcome) {
            (Self::Json, Ok(done)) => line(&serde_json::json!({
                "url": job.url, "output": output.to_string(), "bytes": done.length, "resumed": done.resumed,
                "seconds": done.took.as_secs_f64(), "from": done.from,
            })),
            (Self::Json, Err(failure)) => line(&serde_json::json!({
                "url": job.url, "output": output.to_string(), "error": failure.to_string(), "code": failure.code(),
            })),
            (Self::People, Ok(done)) => exit::say(io::stdout(), &sentence(&output.to_string(), done)),
            (Self::People | Self::Quiet, _) => {}
        }
        outcome.map(drop)
    }

    /// Says which files there are.
    pub(super) fn url(self, url: &str) {
        match self {
            Self::Json => line(&serde_json::json!({ "url": url })),
            Self::People | Self::Quiet => exit::say(io::stdout(), url),
        }
    }

    /// Says of one of several files why it is not there; the last word is another's.
    pub(super) fn failed(self, url: &str, failure: &Failure) {
        if self != Self::Json {
            exit::say(io::stderr(), &format!("{url}: {failure}"));
        }
    }
}

impl Bar {
    pub(super) fn moved(&self, bytes: u64) {
        self.0.inc(bytes);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn line(value: &serde_json::Value) {
    exit::say(io::stdout(), &value.to_string());
}

fn sentence(output: &str, done: &Done) -> String {
    let Done { length, resumed, took, from } = done;
    let from = match *from {
        "disk" => "from this host's disk",
        "cluster" => "through the cluster",
        _ => "from its origin, for you alone",
    };
    let resumed = if *resumed > 0 { format!(", {resumed} of them from before") } else { String::new() };
    format!("{output}: {length} bytes{resumed}, {from}, in {:.1} s", took.as_secs_f64())
}
