//! Files on a file system that never answers.

use crate::MIB;
use anyhow::{Context, Result, ensure};
use darter_e2e::content::Content;
use darter_e2e::darter::{Daemon, binary, loopback_config};
use darter_e2e::fuse::Dead;
use rustix::process::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);

/// More than are taken in at once.
const STUCK: usize = 6;

fn cache(socket: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.arg("cache").args(args).arg("--socket").arg(socket);
    command
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("an odd folder")
}

/// Imports of such files end with a sentence, hold up neither others nor the daemon, and not its end either.
pub(crate) fn a_dead_file_system_holds_up_nobody() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("download.sock");
    let listens = format!("download: {{ downloadGRPC: {{ unixListen: {{ socket: {} }} }},", socket.display());
    let config = loopback_config(folder.path(), "").replace("download: {", &listens);
    let mut daemon = Daemon::start("daemon", folder.path(), &config)?;
    let dead = Dead::mount(&folder.path().join("dead"), 3 * MIB)?;
    let file = dead.file();
    ensure!(fs::metadata(&file)?.len() == 3 * MIB, "it does not even say what is in it");
    let stuck = (0..STUCK).map(|number| {
        let id = format!("stuck{number}");
        let mut command = cache(&socket, &["import", text(&file)?, "--id", &id]);
        Ok(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?)
    });
    let stuck: Vec<_> = stuck.collect::<Result<_>>()?;

    let healthy: PathBuf = folder.path().join("healthy");
    std::io::copy(&mut Content::new(1, 2 * MIB).reader(0), &mut fs::File::create(&healthy)?)?;
    let import = cache(&socket, &["import", text(&healthy)?, "--timeout", "100s"]).output()?;
    ensure!(import.status.success(), "a file that can be read: {import:?}");
    for child in stuck {
        let ended = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&ended.stderr);
        let right = ended.status.code() == Some(74) && said.contains("its file system does not answer");
        ensure!(right && said.lines().count() == 1, "{ended:?}");
    }
    let busy = cache(&socket, &["import", text(&healthy)?, "--id", "stuck0"]).output()?;
    ensure!(busy.status.code() == Some(69), "a thread may still write there: {busy:?}");

    daemon.process.signal(Signal::TERM)?;
    let stopped = |line: &str| line.contains("stopped").then_some(());
    daemon.process.wait_line("the daemon to have nothing left to do", LIMIT, stopped)?;
    // Until then the kernel keeps what waits for FUSE, also from SIGKILL.
    drop(dead);
    let ended = daemon.process.wait_exit(LIMIT)?;
    ensure!(ended.success(), "{ended}: {}", daemon.process.log());
    Ok(())
}
