//! What is evicted leaves, with its space, and nothing that is read or named goes with it.

use super::*;

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
