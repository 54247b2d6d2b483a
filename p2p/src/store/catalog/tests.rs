//! The catalog's tests.

use super::*;
use crate::ContentInfo;
use crate::store::record::Record;
use darter_protocol::{PieceHash, PieceLayout};
use std::io;

fn entry(length: u64) -> Entry {
    let record = Record::new(ContentInfo { length, headers: http::HeaderMap::new() }, None);
    let pieces = record.layout().unwrap().pieces();
    Entry { place: None, record, hashes: (0..pieces).map(|n| PieceHash::from([n as u8; 32])).collect() }
}

#[test]
fn entries_survive_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("catalog.redb");
    let (a, b) = (TaskId::from([1; 32]), TaskId::from([2; 32]));
    let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let catalog = Catalog::at(path.clone());
    catalog.insert(&a, &entry(PieceLayout::MIN_PIECE_SIZE * 2 + 1), now).unwrap();
    catalog.insert(&b, &entry(0), now).unwrap();
    let gone = catalog.remove(&[b, TaskId::from([3; 32])]).unwrap();
    assert_eq!(gone.iter().map(|gone| gone.task).collect::<Vec<_>>(), [b]);
    assert!(catalog.contains(&a).unwrap() && !catalog.contains(&b).unwrap());
    let later = now + Duration::from_secs(5);
    catalog.touch(&[(a, later), (b, later)]).unwrap();
    drop(catalog);

    let catalog = Catalog::at(path);
    assert_eq!(catalog.get(&a).unwrap().unwrap().hashes.len(), 3);
    assert!(catalog.get(&b).unwrap().is_none());
    let mut all = Vec::new();
    catalog.for_each(|task, entry, used| all.push((task, entry.is_some(), used))).unwrap();
    assert_eq!(all, vec![(a, true, later)]);
}

#[test]
fn only_what_was_not_closed_in_good_order_is_looked_at_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (path, crashed) = (dir.path().join("catalog.redb"), dir.path().join("crashed.redb"));
    let catalog = Catalog::at(path.clone());
    let was_checked = |catalog: &Catalog| {
        catalog.open().unwrap();
        catalog.database.read().unwrap().as_ref().unwrap().checked
    };
    catalog.insert(&TaskId::from([1; 32]), &entry(0), UNIX_EPOCH).unwrap();
    std::fs::copy(&path, &crashed).unwrap();
    catalog.close();
    assert!(!was_checked(&catalog));
    drop(catalog);
    assert!(was_checked(&Catalog::at(crashed)));
    assert!(was_checked(&Catalog::suspected(path)));
}

#[test]
fn what_is_not_there_is_known_without_a_look_at_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = Catalog::at(dir.path().join("catalog.redb"));
    let (a, b) = (TaskId::from([1; 32]), TaskId::from([2; 32]));
    assert_eq!(catalog.lacks(&a), None, "nobody has opened it");
    catalog.insert(&a, &entry(0), UNIX_EPOCH).unwrap();
    assert_eq!((catalog.lacks(&a), catalog.lacks(&b)), (Some(false), Some(true)));
    catalog.close();
    catalog.open().unwrap();
    assert_eq!((catalog.lacks(&a), catalog.lacks(&b)), (Some(false), Some(true)));
    catalog.remove(&[a]).unwrap();
    assert_eq!(catalog.lacks(&a), Some(true));
}

#[test]
fn only_what_nobody_could_read_is_damage() {
    let is_damage = |error: redb::Error| CatalogError(error).is_damage();
    assert!(is_damage(redb::Error::Corrupted("a page".to_owned())));
    assert!(is_damage(redb::Error::Io(io::ErrorKind::UnexpectedEof.into())));
    assert!(!is_damage(redb::Error::UpgradeRequired(1)));
    assert!(!is_damage(redb::Error::TableDoesNotExist("tasks".to_owned())));
    assert!(!is_damage(redb::Error::Io(io::ErrorKind::PermissionDenied.into())));
}

#[test]
fn a_second_process_is_told_that_the_catalog_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("catalog.redb");
    let first = Catalog::at(path.clone());
    first.open().unwrap();
    assert!(matches!(Catalog::at(path).open(), Err(CatalogError(redb::Error::DatabaseAlreadyOpen))));
}
