//! How long a decision takes, and what the rules cost in memory.

use anyhow::{Context as _, Result};
use darter_rules::{
    Decision, Destinations, Intercept, Mirror, Naming, Proxies, ProxyRule, Request, Rules, Target, Way,
};
use http::{HeaderMap, Method, Uri};
use std::process::Command;
use std::time::{Duration, Instant};

const COUNTS: [usize; 3] = [0, 100, 10_000];
const DECISIONS: usize = 200_000;

/// Measures with `count` rules; without it, with each of [`COUNTS`] in a process of its own, so that memory that one has
/// given back is not there for the next.
pub(crate) fn run(count: Option<usize>) -> Result<()> {
    if let Some(count) = count {
        return measure(count);
    }
    println!("| rules | read in | resident | URLs | p50 | p99 | p99.9 |\n|---|---|---|---|---|---|---|");
    for count in COUNTS {
        let this = std::env::current_exe()?;
        let status = Command::new(this).args(["rules", "--count", &count.to_string()]).status()?;
        anyhow::ensure!(status.success(), "the measurement with {count} rules ended with {status}");
    }
    Ok(())
}

fn measure(count: usize) -> Result<()> {
    // What is made once, whatever the number of rules.
    let built_in = of(Vec::new())?;
    decide(&built_in, &urls(&[0])?, DECISIONS);
    let before = resident_kib()?;
    let began = Instant::now();
    let list = (0..count).map(|i| Ok(ProxyRule::new(pattern(i).parse()?)));
    let rules = of(list.collect::<Result<_>>()?)?;
    let read = began.elapsed();
    let cost = |now: u64| (now.saturating_sub(before)) as f64 / 1024.0;
    let few: Vec<usize> = (0..20).map(|i| i * count / 20).collect();
    let all: Vec<usize> = (0..count.max(1)).map(|i| i * 7919 % count.max(1)).collect();
    let none: Vec<usize> = (0..1000).map(|i| count + i).collect();
    // A rule is compiled when it is asked for the first time, which is shown by itself.
    for (name, hosts, decisions) in [
        ("of no rule", &none, DECISIONS),
        ("of 20 rules in turn", &few, DECISIONS),
        ("of all rules, the first time", &all, all.len()),
        ("of all rules in turn, again", &all, DECISIONS),
    ] {
        let times = decide(&rules, &urls(hosts)?, decisions);
        row(count, (read, cost(resident_kib()?)), name, times);
    }
    Ok(())
}

/// Rules as people write them: a host or a folder of it, then anything, then a kind of file.
fn pattern(i: usize) -> String {
    match i % 4 {
        0 => format!(r"^https://host{i}\.example\.org/.*\.deb$"),
        1 => format!(r"^https?://[\w.-]+\.example\.org/repo{i}/.*\.(?:deb|rpm)(?:\?.*)?$"),
        2 => format!(r"(?i)host{i}\.example\.org(?::\d+)?/"),
        _ => format!("host{i}.example.org/.*/blobs/sha256.*|/repo{i}/"),
    }
}

fn urls(hosts: &[usize]) -> Result<Vec<Uri>> {
    let paths = ["pool/main/h/hello/hello_2.10-3_amd64.deb?Expires=1", "dists/stable/InRelease"];
    let url = |(i, host): (usize, &usize)| {
        let path = paths[i % paths.len()];
        format!("https://host{host}.example.org/repo{host}/debian/{path}").parse().context("a constant URL")
    };
    hosts.iter().enumerate().map(url).collect()
}

fn of(list: Vec<ProxyRule>) -> Result<Rules> {
    Ok(Rules {
        mirror: Mirror {
            url: Target::parse("https://registry.example")?,
            dynamic: true,
            direct: false,
            use_proxies: false,
        },
        proxies: Proxies::new(list)?,
        intercept: Intercept::default(),
        destinations: Destinations::default(),
        naming: Naming::default(),
    })
}

/// How long each decision took, in order of length.
fn decide(rules: &Rules, urls: &[Uri], decisions: usize) -> Vec<Duration> {
    let (method, headers) = (Method::GET, HeaderMap::new());
    let mut times = Vec::with_capacity(decisions);
    for uri in urls.iter().cycle().take(decisions) {
        let request = Request { method: &method, way: Way::Forward, uri, headers: &headers };
        let began = Instant::now();
        let decision = rules.decide(&request);
        times.push(began.elapsed());
        assert!(!matches!(decision, Decision::Refuse(_)), "every URL goes somewhere");
    }
    times.sort_unstable();
    times
}

fn row(count: usize, (read, mib): (Duration, f64), name: &str, times: Vec<Duration>) {
    let at = |share: f64| times[(times.len() as f64 * share) as usize].as_nanos() as f64 / 1000.0;
    println!(
        "| {count} | {} ms | {mib:.1} MiB | {name} | {:.2} us | {:.2} us | {:.2} us |",
        read.as_millis(),
        at(0.5),
        at(0.99),
        at(0.999)
    );
}

fn resident_kib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    line.split_whitespace().nth(1).context("no number")?.parse().context("no number")
}
