//! Many daemons that want the same at the same time, on links of one speed in each direction: how long the last one takes,
//! measured in the time that one copy takes over one link, and how often the origin sends it.
//!
//! The small herd runs with every change. The large ones, thirty seconds of a full line each, run when `DARTER_NIGHTLY` is
//! set, as `cargo xtask nightly` does.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use darter_e2e::content::{Content, digest_of};
use darter_e2e::darter::{START_LIMIT, Scheduler, sum_of};
use darter_e2e::http;
use darter_e2e::net::{Host, Lab};
use darter_e2e::node::Node;
use darter_e2e::origin::Origin;
use darter_e2e::suite::{self, Scene};
use rustix::process::Signal;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const MBIT: u64 = 1_000_000;

/// What is played.
struct Herd {
    daemons: usize,
    bytes: u64,
    bits_per_second: u64,
    /// Over this time they begin, one after the other.
    over: Duration,
    /// What is lost when a third of the time of one copy has passed.
    losses: Losses,
    /// The last one is done within so many times the time of one copy. `None`: not judged, because the machine is shared.
    within: Option<f64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Losses {
    Nothing,
    /// One is killed and one is cut off.
    Two,
    /// Four are cut off that do not go to the origin: the one that does is sending pieces to some of them, which nobody else has.
    Four,
    /// The one that goes to the origin for all is cut off.
    AtOrigin,
}

/// Thirty seconds of a line, for each of sixteen.
const LARGE: Herd = Herd {
    daemons: 16,
    bytes: 256 * MIB,
    bits_per_second: 80 * MBIT,
    over: Duration::ZERO,
    losses: Losses::Nothing,
    within: Some(1.35),
};

struct Nothing;

impl Scene for Nothing {
    fn logs(&self) -> String {
        String::new()
    }
}

fn main() -> ExitCode {
    let mut tests: Vec<suite::Test<Nothing>> =
        vec![("six_daemons_that_start_together", six_daemons_that_start_together)];
    if std::env::var_os("DARTER_NIGHTLY").is_some() {
        tests.push(("sixteen_daemons_that_start_together", sixteen_daemons_that_start_together));
        tests.push((
            "sixteen_daemons_that_start_over_ten_seconds",
            sixteen_daemons_that_start_over_ten_seconds,
        ));
        tests.push(("sixteen_daemons_of_which_two_are_lost", sixteen_daemons_of_which_two_are_lost));
        tests.push(("sixteen_daemons_of_which_four_are_cut_off", sixteen_daemons_of_which_four_are_cut_off));
        tests.push((
            "sixteen_daemons_of_which_the_one_at_the_origin_is_cut_off",
            sixteen_daemons_of_which_the_one_at_the_origin_is_cut_off,
        ));
    }
    suite::run(|| Ok(Nothing), &tests)
}

fn six_daemons_that_start_together(_: &Nothing) -> Result<()> {
    play(&Herd { daemons: 6, bytes: 64 * MIB, within: None, ..LARGE })
}

fn sixteen_daemons_that_start_together(_: &Nothing) -> Result<()> {
    play(&LARGE)
}

fn sixteen_daemons_that_start_over_ten_seconds(_: &Nothing) -> Result<()> {
    play(&Herd { over: Duration::from_secs(10), ..LARGE })
}

fn sixteen_daemons_of_which_two_are_lost(_: &Nothing) -> Result<()> {
    play(&Herd { losses: Losses::Two, ..LARGE })
}

fn sixteen_daemons_of_which_the_one_at_the_origin_is_cut_off(_: &Nothing) -> Result<()> {
    // All stand still until the scheduler misses that one, two seconds and more.
    play(&Herd { losses: Losses::AtOrigin, within: Some(2.0), ..LARGE })
}

fn sixteen_daemons_of_which_four_are_cut_off(_: &Nothing) -> Result<()> {
    play(&Herd { losses: Losses::Four, within: Some(2.0), ..LARGE })
}

fn play(herd: &Herd) -> Result<()> {
    let mut lab = Lab::new()?;
    let _scheduler = Scheduler::start_on(&lab.host(&["scheduler"])?)?;
    let home = lab.host(&["origin.example"])?;
    let origin = Origin::start_on(home.listen(8000)?, None)?;
    let mut start = |number: usize| {
        let host = lab.host(&[&format!("node{number}")])?;
        host.limit(herd.bits_per_second)?;
        Node::start(host, "  whiteList: [{ host: 10.79.0.0/24 }]\n")
    };
    let nodes = (0..herd.daemons).map(&mut start).collect::<Result<Vec<_>>>()?;
    for node in &nodes {
        node.daemon.process.wait_line("it to join the scheduler", START_LIMIT, |line| {
            line.contains("joined the scheduler").then_some(())
        })?;
    }
    home.limit(herd.bits_per_second)?;

    let content = Content::new(1, herd.bytes);
    let path = origin.put_blob(content, None);
    let url = format!("http://origin.example:8000{path}");
    let one_copy = Duration::from_secs_f64(herd.bytes as f64 * 8.0 / herd.bits_per_second as f64);
    let began = Instant::now();
    let (tell, told) = mpsc::channel();
    for (number, node) in nodes.iter().enumerate() {
        let (host, url, tell) = (node.host.clone(), url.clone(), tell.clone());
        let after = herd.over * number as u32 / herd.daemons as u32;
        // Not waited for: whose daemon is lost ends when the laboratory does.
        std::thread::spawn(move || {
            std::thread::sleep(after);
            let _ = tell.send((number, get(&host, &url), began.elapsed()));
        });
    }
    let lost = match herd.losses {
        Losses::Nothing => Vec::new(),
        Losses::Two => {
            std::thread::sleep(one_copy / 3);
            let (killed, cut) = (herd.daemons / 2, herd.daemons / 2 + 1);
            nodes[killed].daemon.process.signal(Signal::KILL)?;
            nodes[cut].host.cut()?;
            vec![killed, cut]
        }
        Losses::Four => {
            std::thread::sleep(one_copy / 3);
            let spared = at_origin(&nodes)?;
            let cut: Vec<usize> = (0..herd.daemons).filter(|number| *number != spared).step_by(4).collect();
            cut.iter().try_for_each(|number| nodes[*number].host.cut())?;
            cut
        }
        Losses::AtOrigin => {
            std::thread::sleep(one_copy / 3);
            let cut = at_origin(&nodes)?;
            nodes[cut].host.cut()?;
            vec![cut]
        }
    };
    let mut took = Vec::new();
    while took.len() < herd.daemons - lost.len() {
        let (number, digest, at) =
            told.recv_timeout(one_copy * 10).context("somebody does not come to an end")?;
        if !lost.contains(&number) {
            let digest = digest.with_context(|| nodes[number].daemon.process.log())?;
            ensure!(digest == content.digest(), "node{number} got something else");
            took.push(at.as_secs_f64() / one_copy.as_secs_f64());
        }
    }
    let copies = origin.sent(&path) as f64 / herd.bytes as f64;
    let (median, last) = (took[took.len() / 2], took[took.len() - 1]);
    println!(
        "{} daemons, {} MiB at {} Mbit/s: half by {median:.2}, the last by {last:.2} times one copy ({one_copy:.1?}); \
         the origin sent {copies:.3} copies",
        herd.daemons,
        herd.bytes / MIB,
        herd.bits_per_second / MBIT
    );
    // What one that goes to the origin for all had not given away is lost with it: 1.04 copies at most in the simulation, and
    // what was on its way to it.
    let most = if herd.losses == Losses::Nothing { 1.0 } else { 1.1 };
    ensure!(copies <= most, "the origin sent {copies} copies: {:#?}", origin.asked(&path));
    let late = herd.over.as_secs_f64() / one_copy.as_secs_f64();
    let in_time = herd.within.is_none_or(|within| last <= within + late);
    ensure!(in_time, "the last was done after {last:.2} times one copy");
    Ok(())
}

/// The one that has brought something from the origin.
fn at_origin(nodes: &[Node]) -> Result<usize> {
    for (number, node) in nodes.iter().enumerate() {
        let stream = node.host.connect(node.host.port(40901))?;
        let request =
            http::Request { method: "GET", target: "/metrics", host: "node", headers: &[], body: None };
        let page = http::send(Box::new(stream), &request)?.text()?;
        // One that has fetched nothing has no such line.
        if sum_of(&page, "darter_p2p_content_bytes_total{from=\"origin\"}").is_ok_and(|bytes| bytes > 0.0) {
            return Ok(number);
        }
    }
    bail!("nobody has brought anything from the origin")
}

fn get(host: &Host, url: &str) -> Result<String> {
    let stream = host.connect(host.port(65001))?;
    http::prepare(&stream)?;
    let request =
        http::Request { method: "GET", target: url, host: "origin.example:8000", headers: &[], body: None };
    let answer = http::send(Box::new(stream), &request)?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.reason);
    digest_of(answer)
}
