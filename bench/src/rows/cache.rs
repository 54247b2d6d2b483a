//! `darter cache`: what a question costs on a connection that is there, and how long a person waits for a command.

use super::Round;
use super::bulk::touch;
use crate::client::at;
use crate::goals;
use crate::goals::Goal;
use crate::report::{Report, Who};
use crate::servers::Darter;
use crate::stage::Stage;
use anyhow::{Context, Result, ensure};
use darter_e2e::content::Content;
use darter_e2e::darter::{START_LIMIT, Scheduler, binary};
use darter_e2e::poll::until;
use darter_protocol::daemon as proto;
use darter_protocol::daemon::daemon_client::DaemonClient;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

/// Questions of one kind in one run.
const QUESTIONS: usize = 500;
/// Contents that are deleted in one run.
const DELETED: usize = 50;

/// Times that a small command is run in one run.
const TIMES: usize = 15;
/// A small content, in bytes.
const SMALL: u64 = 4096;

/// What else is exported: its length, and how long that may take.
const EXPORTED: [(u64, Goal); 2] = [(4 << 20, goals::EXPORT_4M), (128 << 20, goals::EXPORT_128M)];

/// Two daemons of a cluster: one takes files in and gives them out again, the other is asked about them.
pub(crate) fn rounds(stage: &Stage) -> Result<Round<'_>> {
    Ok(Box::new(move |report, run| {
        let folder = stage.folder().join("cache");
        std::fs::create_dir_all(&folder)?;
        std::fs::copy(stage.folder().join("ca.crt"), folder.join("ca.crt"))?;
        let scheduler = Scheduler::start(&folder, 0)?;
        let start = |name| Darter::start(name, &folder, &stage.origin, Some(&scheduler));
        let daemons = [start("here")?, start("there")?];
        for daemon in &daemons {
            until("a daemon to join", START_LIMIT, || {
                daemon.metric("darter_p2p_schedulers_up").ok().filter(|up| *up >= 1.0)
            })?;
        }
        let [here, there] = ["here", "there"].map(|name| Tool::of(&folder, name));
        small_commands(report, &here)?;
        commands(report, &here, 4000 + run, stage)?;
        questions(report, &here, &there)
    }))
}

/// Commands that take no longer than their start.
fn small_commands(report: &mut Report, here: &Tool) -> Result<()> {
    let (file, output) = (here.folder.join("in"), here.folder.join("out"));
    std::io::copy(&mut Content::new(1, SMALL).reader(0), &mut File::create(&file)?)?;
    here.run(&["import", path(&file)?, "--id", &SMALL.to_string()])?;
    let (mut starts, mut exports) = (Vec::new(), Vec::new());
    for _ in 0..TIMES {
        starts.push(timed(Command::new(binary()).arg("--version"))?);
        exports.push(here.run(&["export", &SMALL.to_string(), "-O", path(&output)?])?);
        ensure!(std::fs::metadata(&output)?.len() == SMALL, "not all of it was exported");
        // To write a file in another's place costs more than the file: ext4 flushes it first.
        std::fs::remove_file(&output)?;
    }
    starts.sort_unstable();
    exports.sort_unstable();
    let [start, export] = [starts, exports].map(|times| at(&times, 0.5).as_secs_f64() * 1e3);
    report.add(goals::START, Who::Darter, start);
    report.add(goals::EXPORT_4K, Who::Darter, export);
    report.add(goals::EXPORT_ALONE, Who::Darter, (export - start).max(0.0));
    Ok(())
}

/// Whole commands, from their start to their end.
fn commands(report: &mut Report, here: &Tool, seed: u64, stage: &Stage) -> Result<()> {
    let large = stage.size.bytes;
    let lengths = EXPORTED.into_iter().chain([(large, goals::EXPORT_LARGE)]);
    for (length, goal) in lengths {
        let (file, id) = (here.folder.join("in"), length.to_string());
        std::io::copy(&mut Content::new(seed, length).reader(0), &mut File::create(&file)?)?;
        // What the disk still has to write of it is not the daemon's.
        File::open(&file)?.sync_all()?;
        touch(stage)?;
        let took = here.run(&["import", path(&file)?, "--id", &id])?;
        if length == large {
            report.add(goals::IMPORT_LARGE, Who::Darter, took.as_secs_f64() * 1e3);
        }
        let output = here.folder.join("out");
        touch(stage)?;
        settle(&here.folder)?;
        let took = here.run(&["export", &id, "-O", path(&output)?])?;
        report.add(goal, Who::Darter, took.as_secs_f64() * 1e3);
        ensure!(std::fs::metadata(&output)?.len() == length, "not all of it was exported");
        std::fs::remove_file(output)?;
        std::fs::remove_file(file)?;
    }
    Ok(())
}

/// What the daemon answers on a connection that is there.
fn questions(report: &mut Report, here: &Tool, there: &Tool) -> Result<()> {
    // On one thread, as the commands have it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let held = SMALL.to_string();
    let median = |times: &[Duration]| at(times, 0.5).as_secs_f64() * 1e3;
    let call = median(&here.health(&runtime)?);
    report.add(goals::NO_QUESTION, Who::Darter, call);
    // What was asked for a moment ago.
    here.run(&["export", &held, "-O", path(&here.folder.join("out"))?])?;
    for (goal, alone, tool, id, is) in [
        (goals::STAT_HERE, Some(goals::STAT_ALONE), here, &*held, (true, 0)),
        (goals::STAT_PEER, Some(goals::STAT_PEER_ALONE), there, &*held, (false, 1)),
        (goals::STAT_MISS, None, here, "nothing", (false, 0)),
    ] {
        let took = median(&tool.stat(&runtime, id, goal == goals::STAT_HERE, is)?);
        report.add(goal, Who::Darter, took);
        if let Some(alone) = alone {
            report.add(alone, Who::Darter, (took - call).max(0.0));
        }
    }
    let file = here.folder.join("in");
    std::io::copy(&mut Content::new(1, SMALL).reader(0), &mut File::create(&file)?)?;
    for (goal, local) in [(goals::DELETE_HERE, true), (goals::DELETE_ALL, false)] {
        let mut times = Vec::new();
        for number in 0..DELETED {
            let id = format!("deleted{number}");
            here.run(&["import", path(&file)?, "--id", &id])?;
            settle(&here.folder)?;
            times.push(here.delete(&runtime, &id, local)?);
        }
        times.sort_unstable();
        report.add(goal, Who::Darter, median(&times));
    }
    Ok(())
}

/// A daemon's socket.
struct Tool {
    socket: PathBuf,
    folder: PathBuf,
}

impl Tool {
    fn of(folder: &Path, name: &str) -> Self {
        Self { socket: folder.join(name).join("work/download.sock"), folder: folder.to_owned() }
    }

    /// How long a command takes.
    fn run(&self, args: &[&str]) -> Result<Duration> {
        let mut command = Command::new(binary());
        timed(command.arg("cache").args(args).arg("--socket").arg(&self.socket))
    }

    async fn client(&self) -> Result<DaemonClient<Channel>> {
        let address = format!("unix:{}", self.socket.display());
        Ok(DaemonClient::new(Endpoint::from_shared(address)?.connect().await?))
    }

    /// How long each of many questions takes, sorted; it `is` here, and at so many others.
    fn stat(&self, runtime: &Runtime, id: &str, local: bool, is: (bool, u32)) -> Result<Vec<Duration>> {
        runtime.block_on(async {
            let (mut client, mut times) = (self.client().await?, Vec::new());
            for _ in 0..QUESTIONS {
                let content = Some(proto::Cached { id: id.to_owned(), ..Default::default() });
                let begun = Instant::now();
                let said = client.stat_task(proto::StatTaskRequest { content, local }).await?.into_inner();
                times.push(begun.elapsed());
                ensure!((said.here, said.others) == is, "{said:?}");
            }
            times.sort_unstable();
            Ok(times)
        })
    }

    /// How long an answer takes that needs no thought, sorted.
    fn health(&self, runtime: &Runtime) -> Result<Vec<Duration>> {
        runtime.block_on(async {
            let (mut client, mut times) = (self.client().await?, Vec::new());
            for _ in 0..QUESTIONS {
                let begun = Instant::now();
                client.check_health(proto::CheckHealthRequest {}).await?;
                times.push(begun.elapsed());
            }
            times.sort_unstable();
            Ok(times)
        })
    }

    fn delete(&self, runtime: &Runtime, id: &str, local: bool) -> Result<Duration> {
        runtime.block_on(async {
            let mut client = self.client().await?;
            client.check_health(proto::CheckHealthRequest {}).await?;
            let content = Some(proto::Cached { id: id.to_owned(), ..Default::default() });
            let begun = Instant::now();
            let said = client.delete_task(proto::DeleteTaskRequest { content, local }).await?;
            let took = begun.elapsed();
            ensure!(said.into_inner().here, "it was not there");
            Ok(took)
        })
    }
}

/// Waits until the disk has what was imported: a daemon answers before.
fn settle(folder: &Path) -> Result<()> {
    timed(Command::new("sync").arg("--file-system").arg(folder)).map(drop)
}

/// How long a command takes that succeeds.
fn timed(command: &mut Command) -> Result<Duration> {
    let begun = Instant::now();
    let ended = command.output()?;
    let took = begun.elapsed();
    ensure!(ended.status.success(), "{ended:?}");
    Ok(took)
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("an odd folder")
}
