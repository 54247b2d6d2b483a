//! Packed objects at every step of their life: the folder is copied there, as a crash would leave it, and opened.

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

#[test]
fn many_small_objects_are_one_file_and_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let lengths: Vec<u64> = (0..50).map(|n| 1 + n * n * 40).collect();
    for (seed, length) in (0..).zip(&lengths) {
        put(&store, seed, *length);
    }
    let used = store.used();
    assert_eq!(used, lengths.iter().map(|length| length.next_multiple_of(4096)).sum::<u64>());
    assert_eq!((segments(dir.path()), super::super::names::files(dir.path()).unwrap().len()), (1, 0));
    drop(store);
    let store = is_sound(dir.path());
    assert_eq!(store.used(), used);
    (0..).zip(&lengths).for_each(|(seed, length)| assert_has(&store, seed, *length));
    assert_eq!(store.packs.staged.load(Ordering::Relaxed), 0);
}

#[test]
fn what_waited_together_is_entered_together() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut waiting = Vec::new();
    let crashes = crashes(&store, dir.path(), || {
        let mut leads = Vec::new();
        for seed in 0..100 {
            let (partial, hash) = fetched(&store, seed, 5000);
            let (lead, told) = store.pack(&task(seed), &partial, vec![hash], false);
            leads.push(lead);
            waiting.push((partial, told));
        }
        assert_eq!(leads.iter().filter(|leads| **leads).count(), 1);
        store.write_groups();
    });
    assert_eq!(steps(&crashes), [Step::Written, Step::Flushed, Step::Entered]);
    for (partial, told) in waiting {
        told.blocking_recv().unwrap().unwrap();
        drop(partial);
    }
    (0..100).for_each(|seed| assert_has(&store, seed, 5000));
    assert_eq!(store.packs.staged.load(Ordering::Relaxed), 0, "memory is given back");
}

#[test]
fn a_crash_while_a_group_is_written_leaves_what_was_there_and_nothing_half() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put(&store, 1, 10 * KIB);
    let crashes = crashes(&store, dir.path(), || put(&store, 2, 20 * KIB));
    assert_eq!(steps(&crashes), [Step::Written, Step::Flushed, Step::Entered]);
    for (step, there) in crashes {
        let used = open(there.path()).used();
        assert!(blocks(there.path()) <= used, "{step:?}: what is nobody's takes space");
        let store = is_sound(there.path());
        assert_has(&store, 1, 10 * KIB);
        let second = get(&store, &task(2));
        assert_eq!(second.is_some(), step == Step::Entered, "{step:?}");
        assert!(second.is_none_or(|second| second == bytes(2, 20 * KIB)));
        assert_eq!(store.used(), if step == Step::Entered { 32 * KIB } else { 12 * KIB }, "{step:?}");
    }
}

#[test]
fn a_crash_while_something_is_evicted_leaves_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    (1..=3).for_each(|seed| put(&store, seed, 64 * KIB));
    let crashes = crashes(&store, dir.path(), || drop(store.forget(&[task(2)]).unwrap()));
    assert_eq!(steps(&crashes), [Step::Forgotten]);
    for (_, there) in crashes {
        let store = is_sound(there.path());
        assert!(get(&store, &task(2)).is_none());
        [1, 3].iter().for_each(|seed| assert_has(&store, *seed, 64 * KIB));
        assert_eq!(store.used(), 128 * KIB);
        assert!(blocks(there.path()) <= 128 * KIB, "a start gives back what was not punched out yet");
    }
}

#[test]
fn what_is_evicted_gives_its_space_back_when_nobody_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    (1..=3).for_each(|seed| put(&store, seed, 512 * KIB));
    let before = blocks(dir.path());
    let held = store.complete(&task(2)).unwrap().unwrap();
    store.forget(&[task(2), task(3)]).unwrap();
    assert_eq!(
        (store.used(), before - blocks(dir.path())),
        (512 * KIB, 512 * KIB),
        "the held one is not cut"
    );
    held.file.read_piece(PieceIndex::new(0), |part| assert!(part.iter().any(|byte| *byte != 0))).unwrap();
    let mut got = Vec::new();
    held.file.read_piece(PieceIndex::new(0), |part| got.extend_from_slice(part)).unwrap();
    assert!(got == bytes(2, 512 * KIB));
    drop(held);
    store.collect(std::time::SystemTime::now()).unwrap();
    assert_eq!(before - blocks(dir.path()), 1024 * KIB);
    assert_has(&store, 1, 512 * KIB);
}

#[test]
fn what_is_read_is_not_cut_after_the_folder_was_looked_through_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    (1..=2).for_each(|seed| put(&store, seed, 512 * KIB));
    let held = store.complete(&task(2)).unwrap().unwrap();
    store.tidy().unwrap();
    store.forget(&[task(2)]).unwrap();
    put(&store, 3, 512 * KIB);
    let mut got = Vec::new();
    held.file.read_piece(PieceIndex::new(0), |part| got.extend_from_slice(part)).unwrap();
    assert!(got == bytes(2, 512 * KIB));
}

#[test]
fn what_is_not_what_it_was_is_not_served() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    (1..=2).for_each(|seed| put(&store, seed, 64 * KIB));
    drop(store);
    let segment = list(&dir.path().join("packs")).unwrap().remove(0);
    OpenOptions::new().write(true).open(segment).unwrap().write_all_at(&[0; 4096], 4096).unwrap();
    assert_eq!(check(dir.path(), false).unwrap().findings.len(), 1);
    let store = open(dir.path());
    assert!(get(&store, &task(1)).is_none());
    assert!(store.is_absent(&task(1)));
    assert_has(&store, 2, 64 * KIB);
    assert_eq!(store.used(), 64 * KIB);
}

#[test]
fn repairing_takes_away_one_object_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    (1..=3).for_each(|seed| put(&store, seed, 64 * KIB));
    drop(store);
    let segment = list(&dir.path().join("packs")).unwrap().remove(0);
    std::fs::write(dir.path().join("packs/00000009.pack"), "nobody's").unwrap();
    OpenOptions::new().write(true).open(segment).unwrap().write_all_at(b"rot", 70_000).unwrap();
    let found = check(dir.path(), true).unwrap();
    assert_eq!((found.findings.len(), found.complete, found.bytes), (2, 3, 128 * KIB), "{found:?}");
    assert!(check(dir.path(), false).unwrap().findings.is_empty());
    let store = open(dir.path());
    assert!(get(&store, &task(2)).is_none());
    [1, 3].iter().for_each(|seed| assert_has(&store, *seed, 64 * KIB));
}

#[test]
fn a_segment_that_is_gone_or_cut_costs_what_was_in_it() {
    for cut in [None, Some(70_000)] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        (1..=2).for_each(|seed| put(&store, seed, 64 * KIB));
        drop(store);
        let segment = list(&dir.path().join("packs")).unwrap().remove(0);
        match cut {
            Some(length) => OpenOptions::new().write(true).open(segment).unwrap().set_len(length).unwrap(),
            None => std::fs::remove_file(segment).unwrap(),
        }
        let store = open(dir.path());
        assert_eq!(get(&store, &task(1)).is_some(), cut.is_some());
        assert!(get(&store, &task(2)).is_none());
        put(&store, 3, KIB);
        assert_has(&store, 3, KIB);
    }
}

#[test]
fn what_cannot_be_written_takes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    std::fs::write(dir.path().join("packs"), "in the way").unwrap();
    let (partial, hash) = fetched(&store, 1, 10 * KIB);
    assert!(store.commit(&task(1), &partial, vec![hash]).is_err());
    store.discard(&task(1)).unwrap();
    drop(partial);
    assert_eq!((store.used(), get(&store, &task(1))), (0, None));
    std::fs::remove_file(dir.path().join("packs")).unwrap();
    store.collect(std::time::SystemTime::now()).unwrap();
    put(&store, 1, 10 * KIB);
    assert_has(&store, 1, 10 * KIB);
}

#[test]
fn memory_is_bounded_and_nobody_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    const LENGTH: u64 = MIB - 5;
    let mut fetching: Vec<_> = (0..40).map(|seed| fetched(&store, seed, LENGTH)).collect();
    let staged = fetching.iter().filter(|(partial, _)| partial.file.is_staged()).count();
    assert_eq!(staged as u64, STAGED_BYTES / LENGTH);
    assert_eq!(store.used(), 32 * MIB + 8 * LENGTH);
    (32..40).for_each(|seed| store.discard(&task(seed)).unwrap());
    assert_eq!(store.used(), 32 * MIB, "files give back what they have taken");
    fetching.truncate(20);
    for (seed, (partial, hash)) in (0..).zip(fetching) {
        store.commit(&task(seed), &partial, vec![hash]).unwrap();
    }
    (0..20).for_each(|seed| assert_has(&store, seed, LENGTH));
    assert!(fetched(&store, 50, MIB).0.file.is_staged());
}

#[test]
fn what_was_let_go_of_early_is_not_let_go_of_twice() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    (1..=2).for_each(|seed| put(&store, seed, 64 * KIB));
    let place = store.catalog.get(&task(1)).unwrap().unwrap().place.unwrap();
    store.opened.invalidate(&task(1));
    store.opened.run_pending_tasks();
    store.packs.free_early((place, 64 * KIB));
    assert!(get(&store, &task(1)).is_none(), "there is a hole where it was");
    assert!(store.is_absent(&task(1)));
    assert_eq!(lock(&store.packs.segments).live(place.segment), 64 * KIB);
    assert_has(&store, 2, 64 * KIB);
    put(&store, 3, 64 * KIB);
    drop(store);
    assert_has(&is_sound(dir.path()), 2, 64 * KIB);
}

#[test]
fn a_segment_that_is_empty_goes_when_it_is_not_the_newest_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    (0..16).for_each(|seed| put(&store, seed, 256 * KIB));
    store.forget(&(0..16).map(task).collect::<Vec<_>>()).unwrap();
    assert_eq!(segments(dir.path()), 1, "it is appended to");
    (20..22).for_each(|seed| put(&store, seed, 256 * KIB));
    store.collect(std::time::SystemTime::now()).unwrap();
    assert_eq!(list(&dir.path().join("packs")).unwrap(), [dir.path().join("packs/00000002.pack")]);
    (20..22).for_each(|seed| assert_has(&store, seed, 256 * KIB));
}

/// A store with three segments of sixteen, in the first two of which little is left.
fn sparse(dir: &Path) -> Store {
    let store = open(dir);
    (0..35).for_each(|seed| put(&store, seed, 256 * KIB));
    let gone: Vec<_> = (0..32).filter(|seed| ![5, 20].contains(seed)).map(task).collect();
    store.forget(&gone).unwrap();
    assert_eq!(segments(dir), 3);
    store
}

#[test]
fn sparse_segments_are_moved_and_a_crash_meanwhile_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = sparse(dir.path());
    let held = store.complete(&task(5)).unwrap().unwrap();
    let used = store.used();
    let crashes = crashes(&store, dir.path(), || store.compact().unwrap());
    assert_eq!(steps(&crashes), [Step::Written, Step::Flushed, Step::Copied, Step::Moved]);
    let stays = [5, 20, 32, 33, 34];
    for (step, there) in crashes {
        let store = is_sound(there.path());
        stays.iter().for_each(|seed| assert_has(&store, *seed, 256 * KIB));
        assert_eq!((store.used(), segments(there.path())), (used, if step == Step::Moved { 1 } else { 3 }));
    }
    assert_eq!((store.used(), segments(dir.path())), (used, 1));
    let mut got = Vec::new();
    held.file.read_piece(PieceIndex::new(0), |part| got.extend_from_slice(part)).unwrap();
    assert!(got == bytes(5, 256 * KIB), "it is read where it was");
    stays.iter().for_each(|seed| assert_has(&store, *seed, 256 * KIB));
}

#[test]
fn what_is_being_packed_is_read_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (partial, hash) = fetched(&store, 1, 10 * KIB);
    let file = Arc::clone(&partial.file);
    let (tell, told) = mpsc::channel();
    watch(&store, move |step| {
        if step == Step::Written {
            let (say, said) = mpsc::channel();
            let file = Arc::clone(&file);
            std::thread::spawn(move || {
                file.read_piece(PieceIndex::new(0), |part| say.send(part.to_vec()).unwrap())
            });
            // Whoever had to wait for the end of this step would wait for ever.
            tell.send(said.recv_timeout(std::time::Duration::from_secs(10))).unwrap();
        }
        Ok(())
    });
    store.commit(&task(1), &partial, vec![hash]).unwrap();
    assert!(told.recv().unwrap() == Ok(bytes(1, 10 * KIB)));
}

#[test]
fn nobody_moves_what_was_entered_before_it_is_kept_open() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(dir.path()));
    let waiting: Vec<_> = (0..250)
        .map(|seed| {
            let (partial, hash) = fetched(&store, seed, KIB);
            let (_, told) = store.pack(&task(seed), &partial, vec![hash], false);
            (partial, told)
        })
        .collect();
    let (tell, told) = mpsc::channel();
    let next = Arc::clone(&store);
    watch(&store, move |step| {
        if step == Step::Written {
            let (tell, next) = (tell.clone(), Arc::clone(&next));
            std::thread::spawn(move || {
                let _writer = next.packs.lock_writer();
                tell.send(next.opened.contains_key(&task(249))).unwrap();
            });
        }
        Ok(())
    });
    store.write_groups();
    assert!(told.recv().unwrap(), "the next writer finds it kept open, where it is");
    *lock(&store.packs.watch) = None;
    drop(waiting);
}

#[test]
fn what_was_replaced_meanwhile_is_not_kept_open() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put(&store, 1, 10 * KIB);
    let (entry, file) = store.open_complete(&task(1)).unwrap().unwrap();
    store.forget(&[task(1)]).unwrap();
    put(&store, 1, 10 * KIB);
    let old = store.keep_opened(&task(1), entry, file);
    let kept = store.opened(&task(1)).unwrap();
    assert!(!Arc::ptr_eq(&kept.file, &old.file));
    let (entry, file) = store.open_complete(&task(1)).unwrap().unwrap();
    let now = store.keep_opened(&task(1), entry, file);
    assert!(Arc::ptr_eq(&store.opened(&task(1)).unwrap().file, &now.file));
}

#[test]
fn a_group_that_was_entered_although_that_failed_is_not_cut() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put(&store, 1, 64 * KIB);
    let (partial, hash) = fetched(&store, 2, 64 * KIB);
    fail_once(&store, Step::Entered, io::ErrorKind::Other);
    store.commit(&task(2), &partial, vec![hash]).unwrap_err();
    store.discard(&task(2)).unwrap();
    drop(partial);
    assert!(!store.is_tidied(), "nobody knows what is there");
    assert_has(&store, 2, 64 * KIB);
    store.collect(std::time::SystemTime::now()).unwrap();
    assert!(store.is_tidied());
    (1..=2).for_each(|seed| assert_has(&store, seed, 64 * KIB));
    assert_eq!(store.used(), 128 * KIB);
}

#[test]
fn what_was_moved_although_that_failed_is_not_cut() {
    let dir = tempfile::tempdir().unwrap();
    let store = sparse(dir.path());
    let used = store.used();
    fail_once(&store, Step::Moved, io::ErrorKind::Other);
    store.compact().unwrap_err();
    store.collect(std::time::SystemTime::now()).unwrap();
    [5, 20, 32, 33, 34].iter().for_each(|seed| assert_has(&store, *seed, 256 * KIB));
    assert_eq!((store.used(), segments(dir.path())), (used, 1));
}

#[test]
fn a_group_for_which_there_was_no_room_is_written_when_there_is() {
    for at in [Step::Written, Step::Flushed, Step::Entered] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        fail_once(&store, at, io::ErrorKind::StorageFull);
        put(&store, 1, 64 * KIB);
        assert_has(&store, 1, 64 * KIB);
        store.collect(std::time::SystemTime::now()).unwrap();
        assert_eq!(store.used(), 64 * KIB, "{at:?}");
        assert!(blocks(dir.path()) <= 64 * KIB, "{at:?}: the first try keeps nothing");
    }
}

#[test]
fn what_nobody_names_and_somebody_reads_goes_when_he_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    (1..=3).for_each(|seed| put(&store, seed, 512 * KIB));
    let before = blocks(dir.path());
    let held = store.complete(&task(2)).unwrap().unwrap();
    // As a transaction of which nobody heard that it was done.
    store.catalog.remove(&[task(2)]).unwrap();
    store.opened.invalidate(&task(2));
    store.opened.run_pending_tasks();
    store.tidy().unwrap();
    let mut got = Vec::new();
    held.file.read_piece(PieceIndex::new(0), |part| got.extend_from_slice(part)).unwrap();
    assert!(got == bytes(2, 512 * KIB));
    drop(held);
    store.collect(std::time::SystemTime::now()).unwrap();
    assert_eq!((store.used(), before - blocks(dir.path())), (1024 * KIB, 512 * KIB));
    [1, 3].iter().for_each(|seed| assert_has(&store, *seed, 512 * KIB));
}

#[test]
fn what_comes_while_the_folder_is_looked_through_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    std::thread::scope(|scope| {
        let coming = scope.spawn(|| {
            for seed in 0..40 {
                put(&store, seed, 5 * KIB);
                store_complete(&store, &task(100 + seed), MIB + 1);
            }
        });
        while !coming.is_finished() {
            store.tidy().unwrap();
        }
    });
    let used = store.used();
    store.tidy().unwrap();
    assert_eq!(store.used(), used);
    (0..40).for_each(|seed| assert_has(&store, seed, 5 * KIB));
    assert!((100..140).all(|seed| store.complete(&task(seed)).unwrap().is_some()));
}

#[test]
fn many_that_are_evicted_leave_in_several_steps() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    (0..40).for_each(|seed| put(&store, seed, KIB));
    let evict = || store.evict(std::time::SystemTime::now(), 40 * 4 * KIB).unwrap();
    assert_eq!(steps(&crashes(&store, dir.path(), evict)), [Step::Forgotten; 3]);
    assert_eq!((store.take_evicted().len(), store.used()), (40, 0));
}

#[test]
fn segments_out_of_which_nothing_can_be_moved_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = sparse(dir.path());
    for number in 1..=2 {
        let segment = path(&dir.path().join("packs"), number);
        OpenOptions::new().write(true).open(segment).unwrap().set_len(0).unwrap();
    }
    let tried = crashes(&store, dir.path(), || store.compact().unwrap());
    assert!(!tried.is_empty());
    assert_eq!(steps(&crashes(&store, dir.path(), || store.compact().unwrap())), []);
}

#[test]
fn segments_that_are_empty_and_stay_are_not_looked_for_in_the_catalog() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    (0..35).for_each(|seed| put(&store, seed, 256 * KIB));
    for number in 1..=2 {
        let segment = path(&dir.path().join("packs"), number);
        std::fs::remove_file(&segment).unwrap();
        std::fs::create_dir(&segment).unwrap();
    }
    store.forget(&(0..32).map(task).collect::<Vec<_>>()).unwrap();
    assert_eq!(segments(dir.path()), 3, "they cannot be removed");
    let collect = || store.collect(std::time::SystemTime::now()).unwrap();
    assert_eq!(steps(&crashes(&store, dir.path(), collect)), []);
    (32..35).for_each(|seed| assert_has(&store, seed, 256 * KIB));
}

#[derive(Debug, Clone)]
enum Act {
    Put(u8, u64),
    Forget(u8),
    Look(u8),
    Collect,
    /// Everything in this process ends.
    Crash,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        6 => (0u8..12, 1..40 * KIB).prop_map(|(seed, length)| Act::Put(seed, length)),
        3 => (0u8..12).prop_map(Act::Forget),
        3 => (0u8..12).prop_map(Act::Look),
        1 => Just(Act::Collect),
        1 => Just(Act::Crash),
    ];
    proptest::collection::vec(act, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn whatever_comes_in_whatever_order_what_is_there_is_right(acts in acts()) {
        let mut dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        let mut model = BTreeMap::new();
        for act in acts {
            match act {
                Act::Put(seed, length) => {
                    store.forget(&[task(seed)]).unwrap();
                    put(&store, seed, length);
                    model.insert(seed, length);
                }
                Act::Forget(seed) => {
                    let gone = store.forget(&[task(seed)]).unwrap();
                    prop_assert_eq!(gone.len(), usize::from(model.remove(&seed).is_some()));
                }
                Act::Look(seed) => {
                    let expected = model.get(&seed).map(|length| bytes(seed, *length));
                    prop_assert!(get(&store, &task(seed)) == expected);
                }
                Act::Collect => store.collect(std::time::SystemTime::now()).unwrap(),
                Act::Crash => {
                    let there = tempfile::tempdir().unwrap();
                    copy(dir.path(), there.path());
                    store = open(there.path());
                    dir = there;
                }
            }
            let takes: u64 = model.values().map(|length: &u64| length.next_multiple_of(4096)).sum();
            prop_assert_eq!(store.used(), takes);
        }
        for (seed, length) in &model {
            prop_assert!(get(&store, &task(*seed)) == Some(bytes(*seed, *length)));
        }
        drop(store);
        // The segment that is written to stays when the last object in it goes; the next start takes it away.
        let found = check(dir.path(), false).unwrap().findings;
        prop_assert!(found.len() <= 1 && found.iter().all(|finding| finding.left_over), "{found:?}");
    }
}
