//! `darter status`, asked of a scheduler that runs.

use std::net::TcpListener;

use crate::process::{darter, health};
use crate::serving::up;

#[test]
fn a_cluster_is_shown_as_tables_and_as_json() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = up(dir.path());
    health(up.listening("health"), "200");
    let scheduler = up.listening("scheduler").to_string();
    let pieces = up.listening("pieces").to_string();
    up.line_with("joined the scheduler");
    let status = |more: &[&str]| {
        let data = dir.path().to_str().unwrap();
        darter(&[&["status", "--scheduler", &scheduler, "--data-dir", data], more].concat())
    };
    let ended = status(&[]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    assert!(ended.stdout.starts_with(&format!("scheduler {scheduler}, version ")), "{}", ended.stdout);
    let host = ended.stdout.lines().find(|line| line.contains(&pieces)).unwrap();
    assert!(
        host.contains("(seed)") && host.contains(env!("CARGO_PKG_VERSION")) && host.contains("good"),
        "{host}"
    );

    let json: serde_json::Value = serde_json::from_str(&status(&["--json", "--tasks"]).stdout).unwrap();
    let shown = &json[0];
    assert_eq!(shown["scheduler"], scheduler.as_str());
    assert_eq!(shown["cluster"]["hosts"], 1);
    assert_eq!(
        format!("{}:{}", shown["hosts"][0]["ip"].as_str().unwrap(), shown["hosts"][0]["piece_port"]),
        pieces
    );
    for empty in ["quarantine", "swarms", "leases", "tasks"] {
        assert_eq!(shown[empty], serde_json::json!([]), "{empty}");
    }
}

#[test]
fn nobody_there_is_one_sentence_and_one_that_answers_is_enough() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let ended = darter(&["status", "--insecure", "--scheduler", &closed]);
    assert_eq!(
        (ended.code, ended.stderr.lines().count(), ended.stdout.as_str()),
        (69, 1, ""),
        "{}",
        ended.stderr
    );
    assert!(ended.stderr.starts_with(&format!("no scheduler answers ({closed}: ")), "{}", ended.stderr);

    let dir = tempfile::tempdir().unwrap();
    let mut up = up(dir.path());
    let both = format!("{closed},{}", up.listening("scheduler"));
    up.line_with("joined the scheduler");
    let ended = darter(&["status", "--data-dir", dir.path().to_str().unwrap(), "--scheduler", &both]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stdout.starts_with(&format!("scheduler {closed}: ")), "{}", ended.stdout);
}

#[test]
fn the_schedulers_are_those_of_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("darter.yaml");
    let status = || darter(&["status", "--config", file.to_str().unwrap()]);
    std::fs::write(&file, "scheduler: { netAddrs: [{ type: tcp, addr: 127.0.0.1:1 }] }\nsecurity: { insecure: true, insecureOnNetworks: true }").unwrap();
    let ended = status();
    assert_eq!(ended.code, 69);
    assert!(ended.stderr.contains("(127.0.0.1:1: "), "{}", ended.stderr);
    std::fs::write(&file, "seed: true").unwrap();
    assert_eq!(status().code, 66);
}

#[test]
fn partners_are_explained_by_the_tasks_scheduler() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = up(dir.path());
    health(up.listening("health"), "200");
    let scheduler = up.listening("scheduler").to_string();
    up.line_with("joined the scheduler");
    let id = "ab".repeat(32);
    let ended = darter(&[
        "explain",
        "--scheduler",
        &scheduler,
        "--task",
        &id,
        "--data-dir",
        dir.path().to_str().unwrap(),
    ]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    let says = "nobody has it or asks for it: whoever asks first goes to the origin";
    assert!(ended.stdout.starts_with(says), "{}", ended.stdout);
    assert_eq!(darter(&["explain", "--task", "zz"]).code, 64);
    assert_eq!(darter(&["explain"]).code, 64);
    assert_eq!(darter(&["explain", "--insecure", "--task", &id, "--scheduler", "127.0.0.1:1"]).code, 69);
}
