use super::*;
use crate::ContentInfo;
use darter_protocol::PieceIndex;
use std::path::Path;

pub(crate) const MIB: u64 = 1 << 20;
/// Of content that has a file of its own.
const LARGE: u64 = MIB + 1;
const PIECE: u64 = PieceLayout::MIN_PIECE_SIZE;

pub(crate) fn config(dir: &Path, quota: u64) -> StoreConfig {
    StoreConfig { dir: dir.to_owned(), quota, quota_percent: 100, expire: Duration::from_secs(3600) }
}

pub(crate) fn task(n: u8) -> TaskId {
    TaskId::from([n; 32])
}

pub(crate) fn record(length: u64) -> Record {
    let digest = format!("sha256:{}", "00".repeat(32)).parse().unwrap();
    Record::new(ContentInfo { length, headers: http::HeaderMap::new() }, Some(digest))
}

pub(crate) fn write_piece(partial: &mut Partial, index: u32, fill: u8) -> PieceHash {
    let layout = *partial.file.layout();
    let piece = layout.piece(index).unwrap();
    let bytes = vec![fill; layout.range(piece).len() as usize];
    partial.file.write_at(layout.range(piece).start(), &bytes).unwrap();
    let mut hasher = PieceHasher::new(&layout, piece);
    hasher.update(&bytes);
    partial.note(piece, &hasher.finish());
    hasher.finish()
}

pub(crate) fn store_complete(store: &Store, task: &TaskId, length: u64) {
    let mut partial = store.create(task, record(length)).unwrap();
    let hashes: Vec<_> =
        partial.file.layout().iter().map(|piece| write_piece(&mut partial, piece.get(), 7)).collect();
    store.commit(task, &partial, hashes).unwrap();
}

/// What is right of what an earlier download left of a task, if `checked` is known to be.
pub(crate) fn resumed(store: &Store, task: &TaskId, checked: Held) -> Held {
    let (partial, noted) = store.resume(task).unwrap().unwrap();
    noted.with_checked(checked).verify(&partial.file, |_| true)
}

/// Throws a task away; whether there was anything of it.
fn delete(store: &Store, task: &TaskId) -> io::Result<bool> {
    let mut was_here = false;
    store.delete(task, |here| was_here = here).map(|()| was_here)
}

#[test]
fn a_complete_task_survives_a_restart_and_a_partial_one_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
    store_complete(&store, &task(1), 3 * PIECE - 5);
    let mut partial = store.create(&task(2), record(3 * PIECE)).unwrap();
    let hash = write_piece(&mut partial, 1, 3);
    write_piece(&mut partial, 2, 4);
    // The journal claims piece 2, but its bytes did not survive.
    partial.file.write_at(2 * PIECE + 5, b"xyz").unwrap();
    drop((store, partial));

    let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
    assert_eq!(store.used(), 6 * PIECE - 5);
    assert_eq!(store.complete(&task(1)).unwrap().unwrap().hashes.len(), 3);
    assert!(store.complete(&task(2)).unwrap().is_none());
    let verified = resumed(&store, &task(2), Held::default());
    assert_eq!(verified, Held { pieces: vec![(PieceIndex::new(1), hash)], blocks: vec![] });
    assert!(store.resume(&task(3)).unwrap().is_none());
}

#[test]
fn what_a_crash_left_behind_is_cleared_away() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
    store_complete(&store, &task(1), LARGE);
    store_complete(&store, &task(2), LARGE);
    let (kept, lost) = (store.path(&task(1)), store.path(&task(2)));
    drop(store);
    std::fs::remove_file(&lost).unwrap();
    let orphan = kept.with_file_name("0".repeat(64));
    std::fs::write(&orphan, b"left over").unwrap();

    let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
    assert!(!orphan.exists());
    assert!(store.complete(&task(1)).unwrap().is_some());
    assert!(store.complete(&task(2)).unwrap().is_none());
    assert_eq!(store.used(), LARGE);
}

#[test]
fn an_open_file_outlives_its_eviction_and_its_successor() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
    store_complete(&store, &task(1), LARGE);
    let held = store.complete(&task(1)).unwrap().unwrap();
    store.forget(&[task(1)]).unwrap();
    let mut next = store.create(&task(1), record(LARGE)).unwrap();
    write_piece(&mut next, 0, 9);
    held.file.read_piece(PieceIndex::new(0), |part| assert!(part.iter().all(|byte| *byte == 7))).unwrap();
}

#[test]
fn an_evicted_task_is_closed_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
    store_complete(&store, &task(1), LARGE);
    let file = Arc::downgrade(&store.complete(&task(1)).unwrap().unwrap().file);
    assert!(file.upgrade().is_some(), "kept open for the next one");
    store.forget(&[task(1)]).unwrap();
    assert!(file.upgrade().is_none());
}

#[test]
fn what_does_not_fit_is_refused_before_a_byte_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path(), 10 * MIB)).unwrap();
    assert_eq!(store.create(&task(1), record(11 * MIB)).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(store.used(), 0);
    assert!(!store.path(&task(1)).exists());
}
#[test]
fn a_download_that_starts_over_does_not_count_twice() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
    for _ in 0..3 {
        drop(store.create(&task(1), record(9 * MIB)).unwrap());
        assert_eq!(store.used(), 9 * MIB);
    }
    store.discard(&task(1)).unwrap();
    assert_eq!(store.used(), 0);
}

#[test]
fn files_that_cannot_be_made_take_no_space() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
    // What cannot be removed is in the way, as on a disk that has become read-only.
    std::fs::create_dir_all(store.path(&task(1))).unwrap();
    assert!(store.create(&task(1), record(LARGE)).is_err());
    assert_eq!(store.used(), 0);
    // Longer than ext4 lets a file be, and than any disk has room for.
    let huge = record(PieceLayout::MAX_LENGTH);
    let claim = store.space.claim(huge.info.length).unwrap();
    let layout = layout(&huge).unwrap();
    assert!(store.create_in(&task(2), huge, layout, claim).is_err());
    assert_eq!(store.used(), 0);
}

#[test]
fn what_cannot_be_removed_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
    drop(store.create(&task(1), record(LARGE)).unwrap());
    let path = store.path(&task(1));
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(delete(&store, &task(1)).is_err());
    std::fs::remove_dir(&path).unwrap();
    assert!(delete(&store, &task(1)).unwrap());
    assert!(!delete(&store, &task(1)).unwrap());
}

#[test]
fn what_a_download_just_made_is_not_forgotten_with_what_was_there_before() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
    store_complete(&store, &task(1), LARGE);
    assert_eq!(store.forget(&[task(1)]).unwrap(), [task(1)]);
    let mut partial = store.create(&task(1), record(LARGE)).unwrap();
    // A second one who found the same entry expired, a moment later.
    assert_eq!(store.forget(&[task(1)]).unwrap(), []);
    let hashes = [0, 1].map(|piece| write_piece(&mut partial, piece, 7));
    store.commit(&task(1), &partial, hashes.to_vec()).unwrap();
    assert!(store.complete(&task(1)).unwrap().is_some());
}

#[test]
fn a_record_from_the_far_future_is_no_panic() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
    let created = SystemTime::UNIX_EPOCH + Duration::from_secs(i64::MAX as u64 - 5);
    let record = Record { digest: None, created, ..record(0) };
    let partial = store.create(&task(1), record).unwrap();
    store.commit(&task(1), &partial, vec![]).unwrap();
    assert!(store.complete(&task(1)).unwrap().is_some());
    store.collect(SystemTime::now()).unwrap();
}
#[test]
fn what_was_checked_is_not_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
    let mut partial = store.create(&task(1), record(3 * PIECE)).unwrap();
    let held = [
        (PieceIndex::new(0), write_piece(&mut partial, 0, 3)),
        (PieceIndex::new(1), write_piece(&mut partial, 1, 4)),
    ];
    // Only whoever reads a piece notices.
    partial.file.write_at(0, &[9; 2 * PIECE as usize]).unwrap();
    drop(partial);
    let other_hash = Held { pieces: vec![held[0], (held[1].0, held[0].1)], blocks: vec![] };
    assert_eq!(resumed(&store, &task(1), other_hash).pieces, [held[0]]);
    assert_eq!(resumed(&store, &task(1), Held::default()), Held::default());
}

#[test]
fn a_catalog_that_was_thrown_back_takes_no_download_for_complete() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
    (1..=2).for_each(|n| store_complete(&store, &task(n), 3 * PIECE));
    store.close().unwrap();
    let older = std::fs::read(dir.path().join(CATALOG)).unwrap();
    store.forget(&[task(1)]).unwrap();
    let mut partial = store.create(&task(1), record(3 * PIECE)).unwrap();
    let hash = write_piece(&mut partial, 1, 7);
    // A crash between the entry of this one and the end of its journal.
    std::fs::write(journal_path(&store.path(&task(2))), "x").unwrap();
    store.close().unwrap();
    drop((store, partial));
    std::fs::write(dir.path().join(CATALOG), older).unwrap();

    let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
    assert!(store.complete(&task(1)).unwrap().is_none());
    assert_eq!(resumed(&store, &task(1), Held::default()).pieces, [(PieceIndex::new(1), hash)]);
    assert!(store.complete(&task(2)).unwrap().is_some());
    assert_eq!(store.used(), 6 * PIECE);
}

#[test]
fn a_folder_is_ours_also_while_its_catalog_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
    store.catalog.close();
    let refused = check(dir.path(), true).unwrap_err().to_string();
    assert!(refused.contains("another process uses it"), "{refused}");
    let refused = Store::open(config(dir.path(), u64::MAX)).unwrap_err().to_string();
    assert!(refused.contains("another process uses it"), "{refused}");
    drop(store);
    check(dir.path(), true).unwrap();
}

#[test]
fn looking_through_the_folder_again_counts_nothing_twice_and_forgets_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
    store_complete(&store, &task(1), LARGE);
    store_complete(&store, &task(2), MIB);
    let large = store.create(&task(3), record(3 * PIECE)).unwrap();
    let small = store.create(&task(4), record(MIB)).unwrap();
    let claimed = store.space.claim(5 * MIB).unwrap();
    let all = LARGE + MIB + 3 * PIECE + MIB + 5 * MIB;
    assert_eq!(store.used(), all);
    store.tidy().unwrap();
    assert_eq!(store.used(), all);
    drop((small, claimed, large));
    store.discard(&task(3)).unwrap();
    assert_eq!(store.used(), LARGE + MIB);
}

fn allocated(store: &Store, task: &TaskId) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(store.path(task)).unwrap()) * 512
}

#[test]
fn space_is_allocated_while_bytes_come_and_counted_before() {
    const LENGTH: u64 = 40 * MIB;
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
    let mut partial = store.create(&task(1), record(LENGTH)).unwrap();
    assert_eq!((store.used(), store.space.promised()), (LENGTH, LENGTH));
    assert!(allocated(&store, &task(1)) < MIB);
    let reservation = partial.take_reservation().unwrap();
    let steps = std::cell::Cell::new(0);
    let stops = || {
        steps.set(steps.get() + 1);
        steps.get() > 2
    };
    reservation.allocate(&store, stops).unwrap();
    assert_eq!(store.space.promised(), 0, "nobody wants the rest");
    assert!((32 * MIB..LENGTH).contains(&allocated(&store, &task(1))));
    drop(partial);

    // Who goes on has the rest allocated.
    let (mut partial, _) = store.resume(&task(1)).unwrap().unwrap();
    assert!(store.space.promised() > 0);
    partial.take_reservation().unwrap().allocate(&store, || false).unwrap();
    assert!(allocated(&store, &task(1)) >= LENGTH);
    assert!(store.space.promised() == 0);
}

#[test]
fn what_the_disk_has_is_promised_once() {
    const GIB: u64 = 1 << 30;
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
    let available = store.disk().unwrap().available;
    let most = store.create(&task(1), record(available.saturating_sub(GIB))).unwrap();
    let refused = store.create(&task(2), record(2 * GIB)).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
    assert!(!store.path(&task(2)).exists());
    drop(most);
    store.discard(&task(1)).unwrap();
    drop(store.create(&task(2), record(2 * GIB)).unwrap());
}
