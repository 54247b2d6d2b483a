//! Programs that the tests run: [`run`] for those that end by themselves, [`Process`] for those that serve.

use crate::{poll, secret};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a program may take to end after it was killed.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// What a program said until it ended.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

impl Output {
    /// Itself, if the program ended well.
    ///
    /// # Errors
    /// When it did not: with all that it said.
    pub fn ok(self) -> Result<Self> {
        ensure!(self.status.success(), "{}\n{}{}", self.status, self.stdout, self.stderr);
        Ok(self)
    }

    /// Itself, if the program failed.
    ///
    /// # Errors
    /// When it ended well.
    pub fn failed(self) -> Result<Self> {
        ensure!(!self.status.success(), "it should have failed:\n{}{}", self.stdout, self.stderr);
        Ok(self)
    }
}

/// Runs a program to its end.
///
/// # Errors
/// When it cannot be started or has not ended after `limit`; it is killed then. A bad exit status is no error here: see
/// [`Output::ok`].
pub fn run(command: &mut Command, limit: Duration) -> Result<Output> {
    let shown = show(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {shown}"))?;
    let stdout = collect(child.stdout.take().expect("piped"));
    let stderr = collect(child.stderr.take().expect("piped"));
    let ended = poll::until(&format!("the end of {shown}"), limit, || child.try_wait().transpose());
    if ended.is_err() {
        // Ended in the meantime: nothing to kill.
        let _ = child.kill();
        let _ = child.wait();
    }
    let text = |reader: JoinHandle<String>| reader.join().expect("the reader does not panic");
    match ended {
        Ok(status) => {
            let output = Output { status: status?, stdout: text(stdout), stderr: text(stderr) };
            // What it prints may be what it was asked for: a join token.
            if is_ours(command) {
                secret::check(&shown, &output.stderr, None)?;
            }
            Ok(output)
        }
        // The readers are left alone: a grandchild may still hold the pipes.
        Err(error) => Err(error),
    }
}

fn collect(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is what is there.
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// The command's program and arguments, for messages; the way into a namespace left out.
fn show(command: &Command) -> String {
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    match words.iter().position(|word| word == crate::net::ENTERED) {
        Some(at) => words[at + 1..].join(" "),
        None => format!("{} {}", command.get_program().to_string_lossy(), words.join(" ")),
    }
}

/// A program that serves until it is dropped, which kills it.
pub struct Process {
    name: String,
    child: Child,
    log: Arc<Log>,
    readers: Vec<JoinHandle<()>>,
    /// Of the binary under test: its folder, where its keys are. What it wrote is looked through in the end.
    guarded: Option<PathBuf>,
}

/// The lines that a program wrote to its standard output and error.
#[derive(Default)]
struct Log {
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Default)]
struct Lines {
    lines: Vec<String>,
    ended: usize,
}

/// Both outputs.
const STREAMS: usize = 2;

impl Process {
    /// Starts a program; what it writes is kept, and copied to the file `log`, or into the folder that the environment names
    /// in `DARTER_E2E_LOGS`, for people who want to read it afterwards.
    ///
    /// When the binary under test is dropped and has written a secret (see [`secret`]), that panics.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let process = Self::start_unguarded(name, command, log)?;
        Ok(if is_ours(command) { process.guarded(log) } else { process })
    }

    /// The same, as if it were the binary under test.
    #[cfg(test)]
    pub(crate) fn start_guarded(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        Ok(Self::start_unguarded(name, command, log)?.guarded(log))
    }

    fn guarded(mut self, log: &Path) -> Self {
        self.guarded = log.parent().map(Path::to_owned);
        self
    }

    fn start_unguarded(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let kept =
            std::env::var_os("DARTER_E2E_LOGS").map(|folder| Path::new(&folder).join(format!("{name}.log")));
        let log = kept.as_deref().unwrap_or(log);
        let file = std::fs::File::options().create(true).append(true).open(log);
        let file = Arc::new(file.with_context(|| format!("cannot write {}", log.display()))?);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {name}: {}", show(command)))?;
        let log = Arc::new(Log::default());
        let readers = vec![
            follow(child.stdout.take().expect("piped"), log.clone(), file.clone()),
            follow(child.stderr.take().expect("piped"), log.clone(), file),
        ];
        Ok(Self { name: name.to_owned(), child, log, readers, guarded: None })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// All that it wrote so far.
    pub fn log(&self) -> String {
        self.log.lines.lock().unwrap_or_else(PoisonError::into_inner).lines.join("\n")
    }

    /// Waits for a line that `wanted` finds something in; lines that were there before count.
    ///
    /// # Errors
    /// When the program ends or `limit` passes first: with all that it wrote.
    pub fn wait_line<T>(&self, what: &str, limit: Duration, wanted: impl Fn(&str) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + limit;
        let mut lines = self.log.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen = 0;
        loop {
            if let Some(found) = lines.lines[seen..].iter().find_map(|line| wanted(line)) {
                return Ok(found);
            }
            seen = lines.lines.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if lines.ended == STREAMS || left.is_zero() {
                bail!("{} never wrote {what}:\n{}", self.name, lines.lines.join("\n"));
            }
            lines = self.log.changed.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("an odd process id")?;
        kill_process(id, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it has not ended after `limit`: with all that it wrote.
    pub fn wait_exit(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        let status = poll::until(&what, limit, || self.child.try_wait().transpose());
        let status = status.with_context(|| self.log())??;
        self.readers.drain(..).for_each(|reader| reader.join().expect("the reader does not panic"));
        Ok(status)
    }

    /// Kills it as a power cut would, and waits until it is gone.
    pub fn kill(mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.wait_exit(KILL_LIMIT).map(drop)
    }

    /// The most memory that it ever had resident, in bytes.
    pub fn peak_memory(&self) -> Result<u64> {
        self.memory("VmHWM")
    }

    /// The memory that it has resident, in bytes.
    pub fn resident_memory(&self) -> Result<u64> {
        self.memory("VmRSS")
    }

    fn memory(&self, field: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kib = line.with_context(|| format!("no {field}"))?.trim().trim_end_matches("kB").trim();
        Ok(kib.parse::<u64>()? * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already ended: then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // The outputs end with the last descendant, so that nobody writes into a folder that is being removed.
        self.readers.drain(..).for_each(|reader| reader.join().expect("the reader does not panic"));
        let Some(folder) = self.guarded.take() else { return };
        match secret::check(&self.name, &self.log(), Some(&folder)) {
            Err(found) if std::thread::panicking() => eprintln!("{found:#}"),
            found => found.expect("no secret is written"),
        }
    }
}

/// Whether a command runs the binary under test.
fn is_ours(command: &Command) -> bool {
    let Some(binary) = crate::darter::known_binary() else { return false };
    std::iter::once(command.get_program()).chain(command.get_args()).any(|word| word == binary)
}

fn follow(from: impl Read + Send + 'static, log: Arc<Log>, file: Arc<std::fs::File>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            // A full disk shows elsewhere.
            let _ = (&*file).write_all(&line);
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            log.lines.lock().unwrap_or_else(PoisonError::into_inner).lines.push(text);
            log.changed.notify_all();
            line.clear();
        }
        log.lines.lock().unwrap_or_else(PoisonError::into_inner).ended += 1;
        log.changed.notify_all();
    })
}
