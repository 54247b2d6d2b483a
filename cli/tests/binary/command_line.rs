//! What the binary says about its command line and its configuration, and the code it ends with.

use std::net::TcpListener;
use std::path::Path;

use crate::process::{Ended, darter};

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
    let expected = format!(
        "{file}:1:1: warning: jaeger: has no effect: traces are sent by OTLP, which Jaeger takes too: see tracing\n"
    );
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
