//! The page about metrics, and the metrics.

use std::collections::BTreeSet;

use crate::process::{get, health};
use crate::serving::{Daemon, up};

/// The names of a scrape, as a query has them: those of counters end with `_total`.
fn names(page: &str) -> impl Iterator<Item = String> {
    let kinds = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    kinds.map(|(name, kind)| match kind {
        "counter" => format!("{name}_total"),
        "info" => format!("{name}_info"),
        _ => name.to_owned(),
    })
}

#[test]
fn the_page_about_metrics_has_those_that_there_are() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = up(dir.path());
    let Daemon { running: mut daemon, dir: _dir } = Daemon::start("");
    let mut there = BTreeSet::new();
    for running in [&mut up, &mut daemon] {
        let probes = running.listening("health");
        health(probes, "200");
        there.extend(names(&get(probes, "/metrics")));
    }
    let page = include_str!("../../../docs/metrics.md");
    // A table's first column.
    let first = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let written: BTreeSet<String> = first.map(|(name, _)| name.to_owned()).collect();
    let (missing, gone): (Vec<_>, Vec<_>) =
        (there.difference(&written).collect(), written.difference(&there).collect());
    assert!(
        missing.is_empty() && gone.is_empty(),
        "not on the page: {missing:?}; on the page, but gone: {gone:?}"
    );
    assert!(there.len() > 30, "{there:?}");
}
