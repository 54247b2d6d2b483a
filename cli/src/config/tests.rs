//! The configuration as a whole.

use super::*;

/// Reads `source` with `reader` as if it were a whole file: its result, and the report's lines.
pub(super) fn top<T>(source: &str, reader: impl FnOnce(&mut Section<'_>) -> T) -> (T, String) {
    let findings = Findings::default();
    let root = yaml::parse(source, &findings).expect("the source is YAML");
    let result = reader(&mut Section::top(&root, &findings));
    (result, findings.into_report(Path::new("f")).to_string())
}
