//! The scheduler's file: what its cluster may fetch from origins, and how much at once.

use std::num::{NonZeroU32, NonZeroU64};
use std::path::Path;

use darter_protocol::{TaskId, UrlPrefix};
use darter_scheduler::{Access, Block, Blocked, Budget, HostPattern};
use url::Url;

use super::problem::{Findings, Report};
use super::section::Section;
use super::value::{self, Read};
use super::{read, yaml};

/// Reads and checks a scheduler's `file`; gives what it says, and warnings.
///
/// # Errors
/// With everything that is wrong.
pub(crate) fn load_access(file: &Path) -> Result<(Access, Report), Report> {
    let text = read(file).map_err(|why| Report::unreadable(file, why))?;
    parse_access(file, &text)
}

pub(super) fn parse_access(file: &Path, text: &str) -> Result<(Access, Report), Report> {
    let findings = Findings::of(file);
    let read = yaml::parse(text, &findings).map(|root| access(&mut Section::top(&root, &findings)));
    let report = findings.into_report(file);
    match read {
        Some(access) if report.errors.is_empty() => Ok((access, report)),
        _ => Err(report),
    }
}

fn access(top: &mut Section<'_>) -> Access {
    Access {
        disable_back_source: top.value("disableBackSource", value::boolean).unwrap_or(false),
        origins: top.sections("origins").iter_mut().filter_map(origin).collect(),
        others: budget(&mut top.section("otherOrigins")),
        blocked: top.sections("blocked").iter_mut().filter_map(block).collect(),
    }
}

fn origin(item: &mut Section<'_>) -> Option<(HostPattern, Budget)> {
    let budget = budget(item);
    let host = item.filled("host", host);
    if !item.has("host") {
        item.error("host", "needed: HOST, HOST:PORT or *.NAME of an origin");
    }
    host.map(|host| (host, budget))
}

/// 0: no limit.
fn budget(section: &mut Section<'_>) -> Budget {
    Budget {
        connections: section.value("connections", connections).and_then(NonZeroU32::new),
        bytes_per_second: section.value("bytesPerSecond", value::size).and_then(NonZeroU64::new),
    }
}

fn connections(text: &str) -> Read<u32> {
    text.parse().map_err(|_| format!("expected a whole number from 0 to {}, found `{text}`", u32::MAX))
}

fn host(text: &str) -> Read<HostPattern> {
    HostPattern::parse(text).ok_or_else(|| format!("expected HOST, HOST:PORT or *.NAME, found `{text}`"))
}

/// One of `host`, `url` and `task`.
fn block(item: &mut Section<'_>) -> Option<Block> {
    let reason = item.filled("reason", value::text).unwrap_or_default();
    let named = ["host", "url", "task"].into_iter().filter(|key| item.has(key)).count();
    let what = [
        item.filled("host", host).map(Blocked::Host),
        item.filled("url", url).map(Blocked::Below),
        item.filled("task", task).map(Blocked::Task),
    ];
    if named != 1 {
        item.error("host", "needed: one of host, url and task");
    }
    { what }.into_iter().flatten().next().map(|what| Block { what, reason })
}

/// The beginning of URLs. It goes by host and path: that is all that a scheduler can compare.
fn url(text: &str) -> Read<UrlPrefix> {
    let wrong = || format!("expected http:// or https:// with a host and no query, found `{text}`");
    let url = Url::parse(text).map_err(|_| wrong())?;
    let plain = matches!(url.scheme(), "http" | "https") && url.query().is_none() && url.fragment().is_none();
    let host = url.host_str().filter(|_| plain && url.username().is_empty()).ok_or_else(wrong)?;
    let origin = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    if UrlPrefix::all(&origin, url.path()).len() == UrlPrefix::MAX {
        return Err(format!("at most {} parts of a path can be compared", UrlPrefix::MAX - 2));
    }
    Ok(UrlPrefix::longest(&origin, url.path()))
}

/// 64 hexadecimal digits, as `darter status` and the logs show them.
fn task(text: &str) -> Read<TaskId> {
    text.parse().map_err(|_| format!("expected the 64 digits of a task, found `{text}`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn ok(text: &str) -> Access {
        let (access, report) =
            parse_access(Path::new("f"), text).map_err(|report| report.to_string()).unwrap();
        assert_eq!(report.to_string(), "");
        access
    }

    fn errors(text: &str) -> String {
        parse_access(Path::new("f"), text).unwrap_err().to_string()
    }

    fn example() -> (PathBuf, String) {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scheduler.example.yaml");
        let text = std::fs::read_to_string(&file).unwrap();
        (file, text)
    }

    #[test]
    fn the_example_says_the_defaults_and_what_stands_behind_its_marks_loads_too() {
        let (file, text) = example();
        assert_eq!(load_access(&file).unwrap().0, Access::default());
        let full: String = text
            .lines()
            .filter_map(|line| match line.strip_prefix('#') {
                // Prose begins with exactly one blank.
                Some(prose) if prose.is_empty() || prose.starts_with(' ') && !prose.starts_with("  ") => None,
                Some(key) => Some(format!("{key}\n")),
                None => None,
            })
            .collect();
        let access = ok(&full);
        assert!(
            !access.origins.is_empty() && access.blocked.len() == 3 && access.others.connections.is_some()
        );
    }

    #[test]
    fn budgets_are_those_of_the_first_that_fits() {
        let access =
            ok("origins: [{host: a.example, connections: 4}, {host: '*.example', bytesPerSecond: 10M}]\n\
                         otherOrigins: {connections: 0, bytesPerSecond: 1Gi}\n");
        assert_eq!(access.origins[0].1.connections, NonZeroU32::new(4));
        assert_eq!(access.origins[1].1.bytes_per_second, NonZeroU64::new(10 << 20));
        assert_eq!(access.others, Budget { connections: None, bytes_per_second: NonZeroU64::new(1 << 30) });
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        assert_eq!(
            errors(
                "disableBackSource: perhaps\norigins:\n  - connections: 4\nblocked:\n  - {reason: x}\n  - url: ftp://a\n"
            ),
            "f:1:20: disableBackSource: expected true or false, found `perhaps`\n\
             f:3:5: origins[0].host: needed: HOST, HOST:PORT or *.NAME of an origin\n\
             f:5:6: blocked[0].host: needed: one of host, url and task\n\
             f:6:10: blocked[1].url: expected http:// or https:// with a host and no query, found `ftp://a`"
        );
    }

    #[test]
    fn a_blocked_url_is_compared_by_its_host_and_path() {
        let access = ok("blocked: [{url: 'https://A.example:443/x/y/', reason: because}]");
        let what = Blocked::Below(UrlPrefix::longest("a.example", "/x/y"));
        assert_eq!(access.blocked, [Block { what, reason: "because".to_owned() }]);
    }
}
