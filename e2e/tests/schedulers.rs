//! Three schedulers and eight daemons, all real processes: what is lost when one after the other is killed or replaced.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use darter_e2e::content::{Content, digest_of};
use darter_e2e::darter::{Daemon, START_LIMIT, Scheduler, loopback_config};
use darter_e2e::http;
use darter_e2e::origin::Origin;
use darter_e2e::poll::until;
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const SCHEDULERS: usize = 3;
const DAEMONS: usize = 8;

/// How long a process may take to end what is under way: each content takes a second.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);

#[test]
fn no_download_fails_while_one_scheduler_after_the_other_is_killed() -> Result<()> {
    /// For each kill: some belong to the one that is killed, and some to the others.
    const CONTENTS: u64 = 6;
    const SIZE: u64 = 3 * MIB;
    let folder = tempfile::tempdir()?;
    let origin = Origin::start(None)?;
    let mut cluster = Cluster::start(folder.path())?;
    let mut all = Vec::new();
    for killed in 0..SCHEDULERS {
        let contents: Vec<Blob> = (0..CONTENTS)
            .map(|n| Blob::put(&origin, Content::new(300 + 10 * killed as u64 + n, SIZE), Some(SIZE)))
            .collect();
        std::thread::scope(|scope| {
            let mut clients = Vec::new();
            for daemon in &cluster.daemons {
                clients.extend(contents.iter().map(|blob| scope.spawn(move || blob.get(daemon))));
            }
            origin.wait_sent(&contents[0].path, MIB, START_LIMIT)?;
            cluster.schedulers[killed].process.signal(Signal::KILL)?;
            clients.into_iter().try_for_each(|client| client.join().expect("no panic"))
        })
        .with_context(|| format!("scheduler {killed} was killed"))?;
        cluster.restart_scheduler(killed)?;
        all.extend(contents);
    }
    // Whoever reads from the origin goes on with it while the next scheduler is asked, which keeps the lease for him. What he has
    // not brought yet when he comes later than that may be asked for twice; on one machine nobody does.
    let copies: Vec<u64> = all.iter().map(|blob| origin.sent(&blob.path)).collect();
    println!("copies: {:?}", copies.iter().map(|sent| *sent as f64 / SIZE as f64).collect::<Vec<_>>());
    ensure!(copies.iter().all(|sent| *sent == SIZE), "{copies:?}");

    // Whoever comes now costs the origin nothing: all schedulers know again who has what.
    let late = cluster.daemon(DAEMONS)?;
    cluster.wait_joined(DAEMONS + 1)?;
    all.iter().try_for_each(|blob| blob.get(&late))?;
    let after: Vec<u64> = all.iter().map(|blob| origin.sent(&blob.path)).collect();
    ensure!(after == copies, "somebody went to the origin for what others have");
    Ok(())
}

#[test]
fn everything_is_replaced_one_after_the_other_and_nothing_fails() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let origin = Origin::start(None)?;
    let mut cluster = Cluster::start(folder.path())?;
    let mut all = Vec::new();
    for number in 0..DAEMONS {
        let blob = Blob::put(&origin, Content::new(400 + number as u64, 4 * MIB), Some(4_000_000));
        std::thread::scope(|scope| {
            let client = scope.spawn(|| blob.get(&cluster.daemons[number]));
            origin.wait_sent(&blob.path, MIB / 2, START_LIMIT)?;
            cluster.daemons[number].process.signal(Signal::TERM)?;
            client.join().expect("no panic")
        })
        .with_context(|| cluster.daemons[number].process.log())?;
        let status = cluster.daemons[number].process.wait_exit(DRAIN_LIMIT)?;
        ensure!(status.success(), "a daemon ended with {status}: {}", cluster.daemons[number].process.log());
        cluster.daemons[number] = cluster.daemon(number)?;
        all.push(blob);
        if number % 2 == 1 {
            let scheduler = number / 2 % SCHEDULERS;
            cluster.schedulers[scheduler].process.signal(Signal::TERM)?;
            cluster.schedulers[scheduler].process.wait_exit(DRAIN_LIMIT)?;
            cluster.restart_scheduler(scheduler)?;
        }
    }
    cluster.wait_joined(DAEMONS)?;
    for blob in &all {
        cluster.daemons.iter().try_for_each(|daemon| blob.get(daemon))?;
        ensure!(origin.sent(&blob.path) == 4 * MIB, "{:#?}", origin.asked(&blob.path));
    }
    Ok(())
}

/// Some content of an origin.
struct Blob {
    content: Content,
    path: String,
    url: String,
}

impl Blob {
    fn put(origin: &Origin, content: Content, rate: Option<u64>) -> Self {
        let path = origin.put_blob(content, rate);
        Self { content, url: format!("http://{}{path}", origin.address()), path }
    }

    fn get(&self, daemon: &Daemon) -> Result<()> {
        let digest = digest_of(http::get(daemon.proxy, &self.url, &[])?)?;
        ensure!(digest == self.content.digest(), "something else came for {}", self.path);
        Ok(())
    }
}

struct Cluster {
    folder: PathBuf,
    schedulers: Vec<Scheduler>,
    daemons: Vec<Daemon>,
}

impl Cluster {
    fn start(folder: &Path) -> Result<Self> {
        let mut cluster = Self { folder: folder.to_owned(), schedulers: Vec::new(), daemons: Vec::new() };
        for number in 0..SCHEDULERS {
            let folder = folder.join(format!("scheduler{number}"));
            std::fs::create_dir(&folder)?;
            cluster.schedulers.push(Scheduler::start(&folder, 0)?);
        }
        for number in 0..DAEMONS {
            cluster.daemons.push(cluster.daemon(number)?);
        }
        cluster.wait_joined(DAEMONS)?;
        Ok(cluster)
    }

    /// Starts a daemon, or the same one again.
    fn daemon(&self, number: usize) -> Result<Daemon> {
        let (name, folder) = (format!("node{number}"), self.folder.join(format!("node{number}")));
        std::fs::create_dir_all(&folder)?;
        let address = |scheduler: &Scheduler| format!("{{ type: tcp, addr: '{}' }}", scheduler.address);
        let addresses: Vec<String> = self.schedulers.iter().map(address).collect();
        let schedulers = format!(
            "scheduler: {{ netAddrs: [{}] }}\nsecurity: {{ insecure: true }}\n",
            addresses.join(", ")
        );
        // Eight share this machine's disk: however full it is, none of it goes.
        let kept = "storage: { diskGCThresholdPercent: 100 }\n";
        Daemon::start(&name, &folder, &(loopback_config(&folder, "") + &schedulers + kept))
    }

    /// Starts a scheduler again in the place of one that has ended, and waits until everybody is back with all that he has.
    fn restart_scheduler(&mut self, number: usize) -> Result<()> {
        let port = self.schedulers[number].address.port();
        let folder = self.folder.join(format!("scheduler{number}"));
        // The port is free once nothing of the process is left.
        self.schedulers[number].process.wait_exit(DRAIN_LIMIT)?;
        self.schedulers[number] = Scheduler::start(&folder, port)?;
        self.wait_joined(self.daemons.len())
    }

    /// Waits until every scheduler knows so many hosts, and the same content.
    fn wait_joined(&self, hosts: usize) -> Result<()> {
        let complete = "darter_scheduler_peers{role=\"complete\"}";
        until("the daemons to join all schedulers", START_LIMIT, || {
            let there = |scheduler: &Scheduler| scheduler.metric("darter_scheduler_hosts ").ok();
            self.schedulers.iter().all(|it| there(it) == Some(hosts as f64)).then_some(())
        })?;
        let known = || -> Vec<f64> {
            self.schedulers.iter().filter_map(|scheduler| scheduler.metric(complete).ok()).collect()
        };
        until("the schedulers to know what there is", START_LIMIT, || {
            let known = known();
            (known.len() == SCHEDULERS && known.iter().all(|it| *it == known[0])).then_some(())
        })
        .with_context(|| format!("they know {:?}", known()))
    }
}
