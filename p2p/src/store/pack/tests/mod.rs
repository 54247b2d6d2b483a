//! Packed objects at every step of their life: the folder is copied there, as a crash would leave it, and opened.

mod damage;
mod eviction;
mod groups;
mod moves;
mod property;

use super::super::check::check;
use super::super::tests::{config, record, store_complete, task};
use super::super::{Partial, Record};
use super::*;
use darter_protocol::hash::PieceHasher;
use darter_protocol::{PieceHash, PieceIndex, TaskId};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::sync::mpsc;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Sees every step.
pub(in super::super) struct Watch(pub(in super::super) Box<dyn FnMut(Step) -> io::Result<()> + Send>);

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

fn open(dir: &Path) -> Store {
    Store::open(config(dir, u64::MAX)).unwrap()
}

fn bytes(seed: u8, length: u64) -> Vec<u8> {
    (0..length).map(|at| (at / 7) as u8 ^ seed).collect()
}

/// A task in memory, all of which has come; and its hash.
fn fetched(store: &Store, seed: u8, length: u64) -> (Partial, PieceHash) {
    let partial = store.create(&task(seed), Record { digest: None, ..record(length) }).unwrap();
    let bytes = bytes(seed, length);
    partial.file.write_at(0, &bytes).unwrap();
    let layout = *partial.file.layout();
    let mut hasher = PieceHasher::new(&layout, PieceIndex::new(0));
    hasher.update(&bytes);
    (partial, hasher.finish())
}

fn put(store: &Store, seed: u8, length: u64) {
    let (partial, hash) = fetched(store, seed, length);
    store.commit(&task(seed), &partial, vec![hash]).unwrap();
}

/// What is stored of a task, byte for byte.
fn get(store: &Store, task: &TaskId) -> Option<Vec<u8>> {
    let complete = store.complete(task).unwrap()?;
    let mut got = Vec::new();
    complete.file.read_piece(PieceIndex::new(0), |part| got.extend_from_slice(part)).unwrap();
    Some(got)
}

fn assert_has(store: &Store, seed: u8, length: u64) {
    assert!(get(store, &task(seed)) == Some(bytes(seed, length)), "{seed}");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let copy_to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &copy_to);
        } else {
            std::fs::copy(&path, copy_to).unwrap();
        }
    }
}

fn watch(store: &Store, see: impl FnMut(Step) -> io::Result<()> + Send + 'static) {
    *lock(&store.packs.watch) = Some(Watch(Box::new(see)));
}

/// The step that comes next of this kind fails.
fn fail_once(store: &Store, at: Step, kind: io::ErrorKind) {
    let mut failed = false;
    watch(store, move |step| {
        let fails = step == at && !std::mem::replace(&mut failed, true);
        if fails { Err(kind.into()) } else { Ok(()) }
    });
}

/// Copies the store's folder at every step of `work`.
fn crashes(store: &Store, dir: &Path, work: impl FnOnce()) -> Vec<(Step, tempfile::TempDir)> {
    let (tell, told) = mpsc::channel();
    let dir = dir.to_owned();
    let see = move |step| {
        let there = tempfile::tempdir().unwrap();
        copy(&dir, there.path());
        tell.send((step, there)).unwrap();
        Ok(())
    };
    watch(store, see);
    work();
    *lock(&store.packs.watch) = None;
    told.iter().collect()
}

fn steps(crashes: &[(Step, tempfile::TempDir)]) -> Vec<Step> {
    crashes.iter().map(|(step, _)| *step).collect()
}

/// Nothing but what a start takes away is wrong with a store that nobody has, and after that start nothing at all.
fn is_sound(dir: &Path) -> Store {
    let report = check(dir, false).unwrap();
    assert!(report.findings.iter().all(|finding| finding.left_over), "{report:?}");
    drop(open(dir));
    let report = check(dir, false).unwrap();
    assert!(report.findings.is_empty(), "{report:?}");
    let store = open(dir);
    // And it goes on.
    put(&store, 200, 33 * KIB);
    assert_has(&store, 200, 33 * KIB);
    store.forget(&[task(200)]).unwrap();
    store
}

fn segments(dir: &Path) -> usize {
    list(&dir.join("packs")).unwrap().len()
}

fn blocks(dir: &Path) -> u64 {
    list(&dir.join("packs")).unwrap().iter().map(|path| std::fs::metadata(path).unwrap().blocks() * 512).sum()
}
