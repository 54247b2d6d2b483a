//! The log: lines on standard error, where systemd and container runtimes pick them up.

use std::io::{self, IsTerminal as _};

use clap::ValueEnum;
use tracing::Dispatch;
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, fmt, reload};

use crate::args::Logging;
use crate::config;
use crate::exit;
use crate::traces::{self, Traces};

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

/// The running log.
pub(crate) struct Log {
    /// `None` when the operator chose a level.
    filter: Option<reload::Handle<EnvFilter, Registry>>,
    /// Whether requests leave lines.
    access: bool,
}

impl Log {
    /// Logs at debug level from now on, or else at info level, unless `--log-level` or `RUST_LOG` say something.
    pub(crate) fn verbose(&self, verbose: bool) {
        if let Some(filter) = &self.filter {
            let level = if verbose { Level::Debug } else { Level::Info };
            // Fails only when the subscriber is gone, and then nobody listens.
            let _ = filter.reload(EnvFilter::new(directives(level, self.access)));
        }
    }
}

/// Starts logging: as `--log-level` says, else as `RUST_LOG` says, else at info level. Sends `traces`, too. Call it once.
pub(crate) fn start(wish: Logging, config: config::Log, traces: Option<&Traces>) -> Log {
    let access = config.access;
    let chosen = wish.log_level.map(|level| directives(level, access)).or_else(from_environment);
    let is_chosen = chosen.is_some();
    let filter = EnvFilter::new(chosen.unwrap_or_else(|| directives(Level::Info, access)));
    let (filter, handle) = reload::Layer::new(filter);
    subscriber(filter, wish.log_format.unwrap_or(config.format), traces).init();
    Log { filter: (!is_chosen).then_some(handle), access }
}

/// What takes lines and spans. Without traces it has no layer for them, not even one that is `None`: that one would want every
/// span, and whatever no filter lets through.
fn subscriber(
    filter: reload::Layer<EnvFilter, Registry>,
    format: Format,
    traces: Option<&Traces>,
) -> Dispatch {
    let lines = fmt::layer().with_writer(io::stderr);
    let lines = match format {
        Format::Text => lines.with_ansi(io::stderr().is_terminal()).boxed(),
        Format::Json => lines.json().flatten_event(true).boxed(),
    };
    // A line of the log does not repeat the spans of a trace.
    let lines = lines.with_filter(filter.and(filter_fn(|metadata| metadata.target() != traces::TARGET)));
    let log = tracing_subscriber::registry().with(lines);
    match traces {
        Some(traces) => log.with(traces.layer()).into(),
        None => log.into(),
    }
}

/// What `RUST_LOG` says, if it can be understood.
fn from_environment() -> Option<String> {
    let text = std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|text| !text.is_empty())?;
    match EnvFilter::try_new(&text) {
        Ok(_) => Some(text),
        Err(error) => {
            exit::say(io::stderr(), &format!("RUST_LOG is not understood and has no effect: {error}"));
            None
        }
    }
}

/// Ours at `level`. Libraries only warn at any level: below that some of them log headers, which hold credentials.
fn directives(level: Level, access: bool) -> String {
    let level = match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    };
    let libraries = if level == "error" { "error" } else { "warn" };
    // A directive holds for every target that begins like it: all our crates, and the access log.
    let access = if access { level } else { "off" };
    format!("{libraries},darter={level},access={access}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_traces_no_span_is_made() {
        let (filter, _handle) = reload::Layer::new(EnvFilter::new(directives(Level::Info, true)));
        tracing::dispatcher::with_default(&subscriber(filter, Format::Text, None), || {
            assert!(tracing::info_span!(target: traces::TARGET, "request").is_disabled());
            assert!(tracing::debug_span!(target: "hyper", "headers").is_disabled());
            assert!(!tracing::info_span!(target: "darter", "line").is_disabled());
        });
    }

    #[test]
    fn libraries_never_log_below_warn_by_level() {
        assert_eq!(directives(Level::Trace, true), "warn,darter=trace,access=trace");
        assert_eq!(directives(Level::Error, true), "error,darter=error,access=error");
        assert_eq!(directives(Level::Info, false), "warn,darter=info,access=off");
        for level in Level::value_variants() {
            assert!(EnvFilter::try_new(directives(*level, true)).is_ok());
        }
    }
}
