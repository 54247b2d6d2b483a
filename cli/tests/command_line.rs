//! The real binary: what it says, and the code it ends with.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

/// What a run left behind.
struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

fn darter(args: &[&str]) -> Ended {
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

fn check(text: &str) -> (Ended, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("darter.yaml");
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    (darter(&["config", "check", file]), file.to_owned())
}

#[test]
fn a_good_file_is_ok() {
    let (ended, file) = check("proxy:\n  proxies:\n  - regx: blobs/sha256.*\n");
    assert_eq!((ended.code, ended.stdout, ended.stderr), (0, format!("{file}: ok\n"), String::new()));
}

#[test]
fn keys_without_effect_are_said_and_the_file_is_ok() {
    let (ended, file) = check("jaeger: http://127.0.0.1:14268\n");
    assert_eq!((ended.code, ended.stdout), (0, format!("{file}: ok\n")));
    let expected =
        format!("{file}:1:1: warning: jaeger: has no effect: traces are not sent anywhere in this version\n");
    assert_eq!(ended.stderr, expected);
}

#[test]
fn everything_that_is_wrong_with_a_file_is_said_at_once() {
    let (ended, file) =
        check("verbose: maybe\nproxy:\n  proxies:\n  - regx: a\n  - regx: '['\n    colour: red\n");
    assert_eq!((ended.code, ended.stdout.as_str()), (78, ""));
    let lines: Vec<&str> = ended.stderr.lines().collect();
    assert_eq!(
        lines,
        [
            format!("{file}:1:10: verbose: expected true or false, found `maybe`"),
            format!("{file}:5:11: proxy.proxies[1].regx: not a regular expression: unclosed character class"),
            format!("{file}:6:5: proxy.proxies[1].colour: unknown key"),
        ]
    );
}

#[test]
fn a_file_that_is_not_there_is_one_sentence() {
    let ended = darter(&["config", "check", "/does/not/exist.yaml"]);
    assert_eq!(ended.code, 78);
    let expected =
        "/does/not/exist.yaml: cannot read the configuration: No such file or directory (os error 2)\n";
    assert_eq!(ended.stderr, expected);
}

#[test]
fn the_example_is_ok_and_says_nothing() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config.example.yaml");
    let ended = darter(&["config", "check", file.to_str().unwrap()]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
}

#[test]
fn a_wrong_command_line_is_64_and_help_is_not() {
    for args in [
        &["nonsense"][..],
        &[],
        &["config"],
        &["daemon"],
        &["scheduler", "--listen", "here"],
        &["up", "--drain-timeout", "soon"],
        &["--log-level", "loud", "up"],
    ] {
        let ended = darter(args);
        assert_eq!((ended.code, ended.stdout.as_str()), (64, ""), "{args:?}");
        assert!(!ended.stderr.is_empty(), "{args:?}");
    }
    for args in [&["--help"][..], &["up", "--help"], &["--version"]] {
        let ended = darter(args);
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{args:?}");
        assert!(!ended.stdout.is_empty(), "{args:?}");
    }
    assert_eq!(darter(&["--version"]).stdout, concat!("darter ", env!("CARGO_PKG_VERSION"), "\n"));
    let help = darter(&["--help"]).stdout;
    assert!(["64", "69", "70", "74", "78"].iter().all(|code| help.contains(code)), "{help}");
}

#[test]
fn a_port_in_use_is_one_sentence_with_its_flag() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let ended = darter(&["scheduler", "--health-listen", &addr, "--listen", "127.0.0.1:0"]);
    assert_eq!(ended.code, 69);
    let why = "another program listens there already";
    let expected = format!("cannot listen on {addr} (health, set by --health-listen): {why}\n");
    assert_eq!(ended.stderr, expected);
}

/// A process that serves, killed when this is dropped.
struct Running {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Running {
    fn start(args: &[&str]) -> Self {
        let mut child = command(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self { child, stderr }
    }

    /// Reads the log until `component` says where it listens.
    fn listening(&mut self, component: &str) -> SocketAddr {
        let words = format!("listening component={component} addr=");
        let line = self.line_with(&words);
        line.split_once(&words).unwrap().1.trim().parse().unwrap()
    }

    fn line_with(&mut self, words: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.stderr.read_line(&mut line).unwrap(), 0, "the log ended without {words:?}");
            if line.contains(words) {
                return line;
            }
        }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    fn code(mut self) -> i32 {
        self.child.wait().unwrap().code().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn get(addr: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(addr).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The answer of `/healthy` once it is 200. Asks on until every part has said that it serves.
fn healthy(addr: SocketAddr) -> String {
    let mut answers = std::iter::repeat_with(|| get(addr, "/healthy"));
    answers
        .by_ref()
        .take(10_000)
        .find(|answer| answer.starts_with("HTTP/1.1 200"))
        .expect("it becomes healthy")
}

const SCHEDULER: [&str; 5] = ["scheduler", "--listen", "127.0.0.1:0", "--health-listen", "127.0.0.1:0"];

#[test]
fn a_scheduler_serves_and_ends_well_when_asked_to() {
    use rustix::process::Signal;
    for signal in [Signal::TERM, Signal::INT] {
        let mut scheduler = Running::start(&SCHEDULER);
        let health = scheduler.listening("health");
        scheduler.listening("scheduler");
        let answer = healthy(health);
        assert!(answer.ends_with("\r\n\r\nok\n"), "{answer}");
        assert!(get(health, "/metrics").contains("darter_scheduler_hosts 0"));
        scheduler.signal(signal);
        scheduler.line_with("stopped");
        assert_eq!(scheduler.code(), 0);
    }
}
