//! What a disk did to a segment: found, repaired, and paid for by nobody else.

use super::*;

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
