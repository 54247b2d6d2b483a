//! `darter store`: what an operator sees of a store that is well, damaged, in use.

use std::fs;
use std::path::{Path, PathBuf};

use crate::process::{Ended, Running, darter, get};

/// `darter up` on this folder, as long as it is kept.
fn serve(folder: &Path) -> Running {
    let args = ["up", "--data-dir", folder.to_str().unwrap(), "--proxy-addr", "127.0.0.1:0"];
    let others =
        ["--scheduler-addr", "127.0.0.1:0", "--piece-addr", "127.0.0.1:0", "--health-addr", "127.0.0.1:0"];
    let mut up = Running::start(&[&args[..], &others].concat());
    let health = up.listening("health");
    while !get(health, "/healthy").starts_with("HTTP/1.1 200") {}
    up
}

fn store(command: &str, folder: &Path, more: &[&str]) -> Ended {
    darter(&[&["store", command, folder.to_str().unwrap()], more].concat())
}

/// A file in the store that nothing knows.
fn orphan(folder: &Path) -> PathBuf {
    let orphan = folder.join("data/content/ab").join("ab".repeat(32));
    fs::create_dir_all(orphan.parent().unwrap()).unwrap();
    fs::write(&orphan, "x").unwrap();
    orphan
}

#[test]
fn a_store_is_checked_and_repaired_while_no_daemon_works_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let up = serve(dir.path());
    for place in [dir.path(), &dir.path().join("data")] {
        let taken = store("check", place, &[]);
        assert_eq!((taken.code, taken.stdout.as_str()), (74, ""));
        assert!(taken.stderr.contains("another daemon works in"), "{}", taken.stderr);
    }
    drop(up);

    let well = store("check", dir.path(), &[]);
    assert_eq!((well.code, well.stderr.as_str()), (0, ""));
    assert!(well.stdout.ends_with("0 complete, 0 bytes of them right; 0 to be resumed\n"), "{}", well.stdout);

    // Such a crash leaves: no fault, and the next start takes it away.
    let left = orphan(dir.path());
    let checked = store("check", &dir.path().join("data"), &["--json"]);
    assert_eq!((checked.code, checked.stderr.as_str()), (0, ""));
    let said: serde_json::Value = serde_json::from_str(&checked.stdout).unwrap();
    assert_eq!(said["findings"][0]["fault"], "orphan");
    assert_eq!(said["findings"][0]["left_over"], true);
    assert_eq!(said["findings"][0]["path"], left.to_str().unwrap());
    assert!(left.exists());

    let catalog = dir.path().join("data/catalog.redb");
    fs::write(&catalog, "no catalog").unwrap();
    let damaged = store("check", dir.path(), &[]);
    assert_eq!(damaged.code, 65, "{}", damaged.stdout);
    assert!(damaged.stdout.contains("catalog.redb: the catalog cannot be read"), "{}", damaged.stdout);
    assert!(damaged.stderr.contains("darter store repair"), "{}", damaged.stderr);
    let repaired = store("repair", dir.path(), &[]);
    assert_eq!((repaired.code, repaired.stderr.as_str()), (0, ""));
    assert!(!catalog.exists() && !left.exists(), "{}", repaired.stdout);
    assert_eq!(store("check", dir.path(), &[]).code, 0);
    drop(serve(dir.path()));
}

#[test]
fn a_folder_without_a_store_is_said_to_be_none() {
    let dir = tempfile::tempdir().unwrap();
    let none = store("check", dir.path(), &[]);
    assert_eq!((none.code, none.stdout.as_str()), (74, ""));
    assert!(none.stderr.contains("there is no content/ in it"), "{}", none.stderr);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "looking leaves nothing behind");
}
