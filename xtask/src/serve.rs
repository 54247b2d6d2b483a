//! The README's first command really serves, and ends well when it is asked to.

use crate::report::Count;
use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Where the two ports are that are looked at.
#[derive(Default)]
struct Addresses {
    proxy: Option<String>,
    health: Option<String>,
}

/// Builds and starts `darter up` as the README says, but on free ports and with a folder of its own.
pub(crate) fn check() -> Result<Count> {
    let folder = tempfile::tempdir()?;
    let mut command = Command::new("cargo");
    command.args(["run", "--release", "--", "up", "--data-dir"]).arg(folder.path());
    for flag in ["--proxy-addr", "--scheduler-addr", "--piece-addr", "--health-addr"] {
        command.args([flag, "127.0.0.1:0"]);
    }
    println!("{command:?}");
    // cargo becomes the program that it runs, so that signals reach it.
    let child = command
        .env("RUST_LOG", "info")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = Killed(child.context("cannot start cargo")?);
    let mut lines = BufReader::new(child.0.stderr.take().context("piped")?).lines();
    let mut said = Vec::new();
    let mut addresses = Addresses::default();
    while addresses.proxy.is_none() || addresses.health.is_none() {
        let line = lines.next().with_context(|| format!("it ended:\n{}", said.join("\n")))??;
        addresses.learn(&line);
        said.push(line);
    }
    // Whoever logs into a pipe that nobody reads stands still.
    let rest = std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<_>>());

    let health = addresses.health.context("no health port")?;
    let proxy = addresses.proxy.context("no proxy port")?;
    wait_healthy(&health)?;
    ensure!(get(&proxy, "/ca.crt")?.contains("-----BEGIN CERTIFICATE-----"), "/ca.crt is no certificate");
    let id = child.0.id().to_string();
    ensure!(Command::new("kill").args(["-TERM", &id]).status()?.success(), "cannot send SIGTERM");
    let status = child.0.wait()?;
    let rest = rest.join().unwrap_or_default();
    ensure!(status.success(), "{status}:\n{}\n{}", said.join("\n"), rest.join("\n"));
    Ok(Count::default())
}

impl Addresses {
    /// Reads a line like `... listening component=proxy addr=127.0.0.1:41234`.
    fn learn(&mut self, line: &str) {
        let Some((_, words)) = line.split_once("listening") else { return };
        let value = |key| words.split_whitespace().find_map(|word| word.strip_prefix(key)).map(str::to_owned);
        match value("component=").as_deref() {
            Some("proxy") => self.proxy = value("addr="),
            Some("health") => self.health = value("addr="),
            _ => {}
        }
    }
}

/// Ports are open before all parts serve: healthy is what says so.
fn wait_healthy(address: &str) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let answer = get(address, "/healthy")?;
        if answer.starts_with("HTTP/1.1 200") {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "/healthy is not 200:\n{answer}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn get(address: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// A program that does not outlive us.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Already ended: nothing to kill.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_from_the_log() {
        let mut addresses = Addresses::default();
        addresses.learn("2026-01-01T00:00:00Z  INFO darter: listening component=proxy addr=127.0.0.1:1");
        addresses.learn("2026-01-01T00:00:00Z  INFO darter: listening component=scheduler addr=127.0.0.1:2");
        assert_eq!((addresses.proxy.as_deref(), addresses.health), (Some("127.0.0.1:1"), None));
    }
}
