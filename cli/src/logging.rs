//! The log: lines on standard error, where systemd and container runtimes pick them up.

use std::io::{self, IsTerminal as _};

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

use crate::args::Logging;

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// Starts logging. `default` is the level when neither `--log-level` nor `RUST_LOG` says anything. Call it once.
pub(crate) fn start(wish: Logging, default: Level) {
    let builder =
        tracing_subscriber::fmt().with_writer(io::stderr).with_env_filter(filter(wish.log_level, default));
    match wish.log_format {
        Format::Text => builder.with_ansi(io::stderr().is_terminal()).init(),
        Format::Json => builder.json().flatten_event(true).init(),
    }
}

fn filter(wish: Option<Level>, default: Level) -> EnvFilter {
    let level = match wish {
        Some(level) => level,
        None => match EnvFilter::try_from_default_env() {
            Ok(filter) if std::env::var_os("RUST_LOG").is_some_and(|text| !text.is_empty()) => return filter,
            _ => default,
        },
    };
    EnvFilter::new(directives(level))
}

/// Ours at `level`. Libraries only warn at any level: below that some of them log headers, which hold credentials.
fn directives(level: Level) -> String {
    let level = match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    };
    let libraries = if level == "error" { "error" } else { "warn" };
    // A directive holds for every target that begins like it: all our crates, and the access log.
    format!("{libraries},darter={level},access={level}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_never_log_below_warn_by_level() {
        assert_eq!(directives(Level::Trace), "warn,darter=trace,access=trace");
        assert_eq!(directives(Level::Error), "error,darter=error,access=error");
        for level in Level::value_variants() {
            assert!(EnvFilter::try_new(directives(*level)).is_ok());
        }
    }

    #[test]
    fn the_flag_wins() {
        assert_eq!(
            filter(Some(Level::Debug), Level::Info).to_string(),
            EnvFilter::new(directives(Level::Debug)).to_string()
        );
    }
}
