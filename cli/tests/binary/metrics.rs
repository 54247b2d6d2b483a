//! The page about metrics, and the metrics.

use std::collections::BTreeSet;
use std::path::Path;

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

/// Where metrics are registered one by one, and the prefix of their names.
const REGISTERED: [(&str, &str); 4] = [
    ("proxy/src/metrics.rs", "darter_proxy_"),
    ("upstream/src/metrics.rs", "darter_upstream_"),
    ("p2p/src/metrics.rs", "darter_p2p_"),
    ("cli/src/reload.rs", "darter_config_"),
];

/// The names in these sources, without the words that the encoder puts behind them: a scrape leaves out what has labels and
/// has not been counted yet.
fn registered() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (file, prefix) in REGISTERED {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
        let source = std::fs::read_to_string(file).unwrap();
        for call in source.split(".register").skip(1) {
            let arguments =
                call.strip_prefix("_with_unit").unwrap_or(call).strip_prefix('(').map(str::trim_start);
            if let Some((name, _)) = arguments.and_then(|it| it.strip_prefix('"')?.split_once('"')) {
                names.insert(format!("{prefix}{name}"));
            }
        }
    }
    names
}

fn bare(name: &str) -> &str {
    let name = name.strip_suffix("_total").unwrap_or(name);
    name.strip_suffix("_seconds").unwrap_or(name)
}

#[test]
fn the_page_about_metrics_has_those_that_there_are() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = up(dir.path());
    let Daemon { running: mut daemon, dir: _dir } = Daemon::start("");
    let mut shown = BTreeSet::new();
    for running in [&mut up, &mut daemon] {
        let probes = running.listening("health");
        health(probes, "200");
        shown.extend(names(&get(probes, "/metrics")));
    }
    let page = include_str!("../../../docs/metrics.md");
    // A table's first column.
    let first = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let is_name = |name: &&str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let written: BTreeSet<String> = first.map(|(name, _)| name).filter(is_name).map(str::to_owned).collect();
    let missing: Vec<_> = shown.difference(&written).collect();
    assert!(missing.is_empty() && shown.len() > 30, "not on the page: {missing:?}, of {shown:?}");

    let is_ours = |name: &&str| REGISTERED.iter().any(|(_, prefix)| name.starts_with(prefix));
    let on_page: BTreeSet<String> =
        written.iter().map(|name| bare(name)).filter(is_ours).map(str::to_owned).collect();
    assert_eq!(on_page, registered());
    let gone: Vec<_> =
        written.iter().filter(|name| !is_ours(&name.as_str()) && !shown.contains(*name)).collect();
    assert!(gone.is_empty(), "on the page, but gone: {gone:?}");
}
