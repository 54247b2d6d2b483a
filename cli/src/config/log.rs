//! `log`: how lines of the log look, and whether requests leave one.

use super::section::Section;
use super::value;
use crate::logging::Format;

/// How the log looks. The command line and `RUST_LOG` come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Log {
    /// One form for all lines.
    pub(crate) format: Format,
    /// Whether every request leaves a line.
    pub(crate) access: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: Format::Text, access: true }
    }
}

pub(super) fn log(section: &mut Section<'_>) -> Log {
    let ours = Log::default();
    Log {
        format: section.value("format", format).unwrap_or(ours.format),
        access: section.value("access", value::boolean).unwrap_or(ours.access),
    }
}

fn format(text: &str) -> value::Read<Format> {
    match text {
        "text" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        _ => Err(format!("expected text or json, found `{text}`")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::top;
    use super::*;

    #[test]
    fn the_form_is_one_of_two() {
        let (log, report) = top("format: json\naccess: false", log);
        assert_eq!((log, report.as_str()), (Log { format: Format::Json, access: false }, ""));
        let (log, report) = top("format: xml", super::log);
        assert_eq!(log, Log::default());
        assert!(report.contains("format: expected text or json"), "{report}");
    }
}
