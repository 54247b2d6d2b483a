//! What is left of sparse segments is moved together, under the eyes of readers, and in spite of crashes.

use super::*;

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
