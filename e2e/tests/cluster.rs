//! Several daemons and a scheduler, all on loopback: what the origin is spared.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use darter_e2e::content::{Content, digest_of};
use darter_e2e::darter::{Daemon, START_LIMIT, Scheduler, loopback_config};
use darter_e2e::http;
use darter_e2e::origin::Origin;
use darter_e2e::poll::until;
use darter_e2e::port::Silent;
use std::path::Path;

const MIB: u64 = 1 << 20;

#[test]
fn daemons_that_ask_at_once_cost_the_origin_one_copy() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let origin = Origin::start(None)?;
    let cluster = Cluster::start(folder.path(), 3)?;
    // From less than a piece to many, from slower than the daemons to as fast as it goes.
    for (seed, (length, rate)) in [
        (500, None),
        (3 * MIB, None),
        (9 * MIB + 1, Some(20_000_000)),
        (40 * MIB, Some(60_000_000)),
        (100 * MIB, None),
    ]
    .into_iter()
    .enumerate()
    {
        let content = Content::new(100 + seed as u64, length);
        let path = origin.put_blob(content, rate);
        let url = format!("http://{}{path}", origin.address());
        std::thread::scope(|scope| {
            let ask = |daemon: &Daemon| digest_of(http::get(daemon.proxy, &url, &[])?);
            let clients: Vec<_> =
                cluster.daemons.iter().map(|daemon| scope.spawn(move || ask(daemon))).collect();
            clients.into_iter().try_for_each(|client| {
                assert_eq!(client.join().expect("no panic")?, content.digest());
                anyhow::Ok(())
            })
        })?;
        assert_eq!(origin.sent(&path), length, "{:#?}", origin.asked(&path));
    }
    Ok(())
}

/// One after another, with pauses of every length in between: whoever comes while the first is at it joins in.
#[test]
fn daemons_that_ask_one_after_another_cost_the_origin_one_copy() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let origin = Origin::start(None)?;
    let cluster = Cluster::start(folder.path(), 3)?;
    let content = Content::new(200, 60 * MIB);
    let path = origin.put_blob(content, Some(40_000_000));
    let url = format!("http://{}{path}", origin.address());
    std::thread::scope(|scope| {
        let mut clients = Vec::new();
        for (daemon, after) in cluster.daemons.iter().zip([0, 10 * MIB, 50 * MIB]) {
            origin.wait_sent(&path, after, START_LIMIT)?;
            let url = &url;
            clients.push(scope.spawn(move || digest_of(http::get(daemon.proxy, url, &[])?)));
        }
        clients.into_iter().try_for_each(|client| {
            assert_eq!(client.join().expect("no panic")?, content.digest());
            anyhow::Ok(())
        })
    })?;
    assert_eq!(origin.sent(&path), content.length, "{:#?}", origin.asked(&path));
    Ok(())
}

#[test]
fn a_daemon_without_its_scheduler_serves_and_joins_when_it_appears() -> Result<()> {
    let folders = [tempfile::tempdir()?, tempfile::tempdir()?];
    let silent = Silent::take()?;
    let port = silent.address.port();
    let origin = Origin::start(None)?;
    let daemon = |folder: &Path, name: &str| {
        Daemon::start(
            name,
            folder,
            &(loopback_config(folder, "") + &scheduled_by(&format!("127.0.0.1:{port}"))),
        )
    };
    let content = Content::new(21, 20 * MIB);
    let path = origin.put_blob(content, None);
    let url = format!("http://{}{path}", origin.address());

    let first = daemon(folders[0].path(), "first")?;
    assert_eq!(digest_of(http::get(first.proxy, &url, &[])?)?, content.digest());
    assert_eq!(origin.sent(&path), content.length);

    drop(silent);
    let scheduler = Scheduler::start(folders[0].path(), port)?;
    until("the first daemon to announce what it has", START_LIMIT, || {
        (scheduler.metric("darter_scheduler_peers{role=\"complete\"}").ok()? >= 1.0).then_some(())
    })
    .with_context(|| first.process.log())?;
    let second = daemon(folders[1].path(), "second")?;
    until("the second daemon to join", START_LIMIT, || {
        (scheduler.metric("darter_scheduler_hosts ").ok()? >= 2.0).then_some(())
    })
    .with_context(|| second.process.log())?;
    assert_eq!(digest_of(http::get(second.proxy, &url, &[])?)?, content.digest());
    assert_eq!(origin.sent(&path), content.length, "the second daemon went to the origin");

    // Without its scheduler it still serves what nobody has.
    scheduler.process.kill()?;
    let other = Content::new(22, 9 * MIB);
    let path = origin.put_blob(other, None);
    let url = format!("http://{}{path}", origin.address());
    assert_eq!(digest_of(http::get(second.proxy, &url, &[])?)?, other.digest());
    Ok(())
}

/// A scheduler and daemons that have joined it.
struct Cluster {
    daemons: Vec<Daemon>,
    _scheduler: Scheduler,
}

impl Cluster {
    fn start(folder: &Path, daemons: usize) -> Result<Self> {
        let scheduler = Scheduler::start(folder, 0)?;
        let address = scheduler.address.to_string();
        let start = |number: usize| {
            let name = format!("node{number}");
            let folder = folder.join(&name);
            std::fs::create_dir(&folder)?;
            Daemon::start(&name, &folder, &(loopback_config(&folder, "") + &scheduled_by(&address)))
        };
        let started = (1..=daemons).map(start).collect::<Result<Vec<_>>>()?;
        let joined = || (scheduler.metric("darter_scheduler_hosts ").ok()? >= daemons as f64).then_some(());
        until("the daemons to join", START_LIMIT, joined)?;
        Ok(Self { daemons: started, _scheduler: scheduler })
    }
}

fn scheduled_by(address: &str) -> String {
    format!(
        "scheduler: {{ netAddrs: [{{ type: tcp, addr: '{address}' }}] }}\nsecurity: {{ insecure: true }}\n"
    )
}
