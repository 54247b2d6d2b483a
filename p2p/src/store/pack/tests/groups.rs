//! Objects that come together are written together: what waits, what fails, and what a crash leaves of it.

use super::*;

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
    assert_eq!((segments(dir.path()), crate::store::names::files(dir.path()).unwrap().len()), (1, 0));
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
