//! The binary as a process.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// What a run left behind.
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs the binary to its end.
pub(crate) fn darter(args: &[&str]) -> Ended {
    let output = command(args).output().unwrap();
    Ended {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_darter"));
    command.args(args).env_remove("RUST_LOG");
    command
}

/// A process that serves, killed when this is dropped.
pub(crate) struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: BufReader<ChildStderr>,
    /// What was read of the log so far.
    log: String,
}

impl Running {
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::start_with(args, &[])
    }

    /// With these variables in its environment.
    pub(crate) fn start_with(args: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = command(args);
        command.envs(variables.iter().copied());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self { child, stdout, stderr, log: String::new() }
    }

    /// Reads the log until `component` says where it listens.
    pub(crate) fn listening(&mut self, component: &str) -> SocketAddr {
        let words = format!("listening component={component} addr=");
        let line = self.line_with(&words);
        line.split_once(&words).unwrap().1.trim().parse().unwrap()
    }

    /// Reads the log until a line has these words.
    pub(crate) fn line_with(&mut self, words: &str) -> String {
        loop {
            let mut line = String::new();
            let read = self.stderr.read_line(&mut line).unwrap();
            self.log.push_str(&line);
            assert_ne!(read, 0, "the log ended without {words:?}:\n{}", self.log);
            if line.contains(words) {
                return line;
            }
        }
    }

    /// Reads what is printed until a line begins like this.
    pub(crate) fn printed_until(&mut self, last: &str) -> String {
        let mut printed = String::new();
        while !printed.lines().last().is_some_and(|line| line.starts_with(last)) {
            assert_ne!(self.stdout.read_line(&mut printed).unwrap(), 0, "{printed}");
        }
        printed
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end: the code, and the whole log.
    pub(crate) fn end(mut self) -> (i32, String) {
        self.stderr.read_to_string(&mut self.log).unwrap();
        (self.child.wait().unwrap().code().unwrap(), std::mem::take(&mut self.log))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The whole answer to a GET, head and body.
pub(crate) fn get(addr: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(addr).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The answer of `/healthy` once its status is this. Asks on until then.
pub(crate) fn health(addr: SocketAddr, status: &str) -> String {
    let wanted = format!("HTTP/1.1 {status}");
    let mut answers = std::iter::repeat_with(|| get(addr, "/healthy")).take(10_000);
    answers.find(|answer| answer.starts_with(&wanted)).expect("the status comes")
}
