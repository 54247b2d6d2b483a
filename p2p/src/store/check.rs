//! [`check`]: a store that nobody uses, looked through byte by byte.
//!
//! Every piece of every complete task is read and compared with its hash, and the whole with its digest where it has one.
//! What is wrong can be taken away: it will be fetched again. A daemon does not need this after a crash, which its store
//! survives by itself; it is for disks that rot, and for people who have been in the folder.

use super::catalog::{Catalog, Entry};
use super::file::{Access, TaskFile};
use super::guard::Guard;
use super::journal::Journal;
use super::names::{CATALOG, PACKS, content_path, files, journal_path, remove_file};
use super::pack::{self, Place};
use super::{StoreError, is_loss};
use aws_lc_rs::digest;
use darter_protocol::hash::PieceHasher;
use darter_protocol::{Algorithm, Digest, PieceHash, PieceLayout, TaskId};
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// What there is in a store.
#[derive(Debug, Default, Serialize)]
pub struct StoreReport {
    /// Complete tasks, the wrong ones included.
    pub complete: u64,
    /// Bytes of theirs that were read and are right.
    pub bytes: u64,
    /// Incomplete tasks that can be resumed. What they have is checked when they are.
    pub incomplete: u64,
    /// What is not as it should be.
    pub findings: Vec<Finding>,
}

/// Something that is not as it should be.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// What is wrong.
    #[serde(flatten)]
    pub fault: Fault,
    /// A crash leaves such, and the next start of the daemon takes it away.
    pub left_over: bool,
    /// Where.
    pub path: PathBuf,
    /// Whether it was taken away.
    pub repaired: bool,
}

/// What is wrong with a file, or with what is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "fault", rename_all = "kebab-case")]
pub enum Fault {
    /// The catalog of the complete tasks cannot be read: nothing is known of them.
    DamagedCatalog {
        /// In the catalog's words.
        reason: String,
    },
    /// The catalog names a task, and what it says of it is no entry.
    DamagedEntry,
    /// The catalog names a task, and its file is not there.
    MissingFile,
    /// A file is longer or shorter than its content.
    WrongLength {
        /// Bytes of the content.
        expected: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// Pieces do not match their hashes.
    WrongPieces {
        /// How many.
        wrong: u32,
        /// Of how many.
        pieces: u32,
    },
    /// The whole does not match its digest, although every piece matches its hash.
    WrongDigest {
        /// What it should be.
        expected: String,
    },
    /// The file cannot be read.
    Unreadable {
        /// In the system's words.
        reason: String,
    },
    /// Neither the catalog nor a journal knows the file.
    Orphan,
    /// A journal that says nothing, or that is for a file which is not there, or for a task that is complete.
    StrayJournal,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DamagedCatalog { reason } => write!(f, "the catalog cannot be read: {reason}"),
            Self::DamagedEntry => f.write_str("its entry in the catalog cannot be read"),
            Self::MissingFile => f.write_str("the file is missing"),
            Self::WrongLength { expected, found } => {
                write!(f, "the file has {found} bytes, the content {expected}")
            }
            Self::WrongPieces { wrong, pieces } => {
                write!(f, "{wrong} of {pieces} pieces do not match their hashes")
            }
            Self::WrongDigest { expected } => write!(f, "the content does not match {expected}"),
            Self::Unreadable { reason } => write!(f, "the file cannot be read: {reason}"),
            Self::Orphan => f.write_str("nothing knows the file"),
            Self::StrayJournal => f.write_str("the journal belongs to no incomplete task"),
        }
    }
}

/// Looks through the store in `dir`; with `repair` takes away what is wrong. Blocks for as long as it takes to read everything.
///
/// # Errors
/// When there is no store, a daemon uses it, or it cannot be read, or what is wrong cannot be taken away.
pub fn check(dir: &Path, repair: bool) -> Result<StoreReport, StoreError> {
    let fail = |error: io::Error| StoreError { dir: dir.to_owned(), reason: error.to_string() };
    if !dir.join("content").is_dir() {
        return Err(StoreError { dir: dir.to_owned(), reason: "there is no content/ in it".to_owned() });
    }
    let _ours = Guard::take(dir).map_err(fail)?;
    let mut look =
        Look { dir, repair, catalog: None, entries: HashMap::new(), report: StoreReport::default() };
    look.read_catalog()
        .and_then(|()| look.packs())
        .and_then(|()| look.files())
        .and_then(|()| look.missing())
        .map_err(fail)?;
    Ok(look.report)
}

/// One look through a store.
struct Look<'a> {
    dir: &'a Path,
    repair: bool,
    catalog: Option<Catalog>,
    /// Complete tasks whose files have not been seen yet; `None`: what is known of it cannot be read.
    entries: HashMap<TaskId, Option<Entry>>,
    report: StoreReport,
}

impl Look<'_> {
    fn read_catalog(&mut self) -> io::Result<()> {
        let path = self.dir.join(CATALOG);
        if !path.try_exists()? {
            return Ok(());
        }
        let catalog = Catalog::suspected(path.clone());
        let entries = &mut self.entries;
        let read = catalog.for_each(|task, entry, _| {
            entries.insert(task, entry);
        });
        match read {
            Ok(()) => self.catalog = Some(catalog),
            Err(error) if error.is_damage() => {
                drop(catalog);
                self.entries.clear();
                let reason = error.to_string();
                let repaired = self.repair && remove_file(&path).map(|()| true)?;
                self.find(Fault::DamagedCatalog { reason }, path, repaired);
            }
            Err(error) => return Err(error.into()),
        }
        self.report.complete = self.entries.len() as u64;
        Ok(())
    }

    /// Everything that is packed, and the segments in which nothing is.
    fn packs(&mut self) -> io::Result<()> {
        let packs = self.dir.join(PACKS);
        let is_packed =
            |_: &TaskId, entry: &mut Option<Entry>| entry.as_ref().is_some_and(|it| it.place.is_some());
        let mut packed: Vec<_> = self.entries.extract_if(is_packed).filter_map(packed).collect();
        // As they lie on the disk.
        packed.sort_unstable_by_key(|(place, ..)| *place);
        let mut named = HashSet::new();
        for (place, task, entry) in packed {
            let path = pack::path(&packs, place.segment);
            named.insert(path.clone());
            match compare_packed(&path, place, &entry)? {
                None => self.report.bytes += entry.record.info.length,
                Some(fault) => {
                    let repaired = self.forget_entry(&task)?;
                    self.find(fault, path, repaired);
                }
            }
        }
        for path in pack::list(&packs)? {
            if !named.contains(&path) {
                self.take_away(Fault::Orphan, path)?;
            }
        }
        Ok(())
    }

    /// Everything that stands in the folder of the content.
    fn files(&mut self) -> io::Result<()> {
        for path in files(self.dir)? {
            let content = path.with_extension("");
            let task = content.file_name().and_then(|name| name.to_str()?.parse::<TaskId>().ok());
            let task = task.filter(|task| content_path(self.dir, task) == content);
            if path == content {
                match task.and_then(|task| Some((task, self.entries.remove(&task)?))) {
                    Some((task, entry)) => self.complete(&task, entry, path)?,
                    None if task.is_some() && journal_path(&content).try_exists()? => {}
                    None => self.take_away(Fault::Orphan, path)?,
                }
            } else {
                self.journal(task, path, &content)?;
            }
        }
        Ok(())
    }

    fn complete(&mut self, task: &TaskId, entry: Option<Entry>, path: PathBuf) -> io::Result<()> {
        let fault = match entry {
            None => Some(Fault::DamagedEntry),
            Some(entry) => {
                let fault = compare(&path, &entry)?;
                self.report.bytes += if fault.is_none() { entry.record.info.length } else { 0 };
                // Its journal is judged by this: it is seen after, or was seen before.
                if fault.is_none() && journal_path(&path).try_exists()? {
                    if self.repair {
                        // Without the journal nobody will look whether the disk has it.
                        std::fs::File::open(&path)?.sync_data()?;
                    }
                    self.take_away(Fault::StrayJournal, journal_path(&path))?;
                }
                fault
            }
        };
        match fault {
            None => Ok(()),
            Some(fault) => self.forget(task, fault, path),
        }
    }

    fn journal(&mut self, task: Option<TaskId>, path: PathBuf, content: &Path) -> io::Result<()> {
        let complete = match (&self.catalog, &task) {
            (Some(catalog), Some(task)) => catalog.contains(task)?,
            _ => false,
        };
        // With the file of its task; or gone with it.
        if complete || !path.try_exists()? {
            return Ok(());
        }
        let known = task.map_or(Ok(None), |_| Journal::open_to_read(&path))?;
        let Some(record) = known.filter(|_| content.exists()) else {
            return self.take_away(Fault::StrayJournal, path);
        };
        let found = std::fs::metadata(content)?.len();
        if found == record.info.length {
            self.report.incomplete += 1;
            return Ok(());
        }
        let fault = Fault::WrongLength { expected: record.info.length, found };
        if self.repair {
            remove_file(content)?;
        }
        self.take_away(fault, path)
    }

    /// What the catalog names, and the folder does not have.
    fn missing(&mut self) -> io::Result<()> {
        for task in std::mem::take(&mut self.entries).into_keys() {
            self.forget(&task, Fault::MissingFile, content_path(self.dir, &task))?;
        }
        Ok(())
    }

    /// A complete task is wrong.
    fn forget(&mut self, task: &TaskId, fault: Fault, path: PathBuf) -> io::Result<()> {
        // With its journal it was imported a moment before the crash.
        let left_over = journal_path(&path).try_exists()?;
        if self.forget_entry(task)? {
            remove_file(&journal_path(&path))?;
        }
        let repaired = self.repair && remove_file(&path).map(|()| true)?;
        self.report.findings.push(Finding { fault, left_over, path, repaired });
        Ok(())
    }

    /// Takes a task out of the catalog, if something is to be done about it.
    fn forget_entry(&self, task: &TaskId) -> io::Result<bool> {
        let catalog = self.catalog.as_ref().filter(|_| self.repair);
        catalog.map_or(Ok(false), |catalog| Ok(catalog.remove(&[*task]).map(|_| true)?))
    }

    fn take_away(&mut self, fault: Fault, path: PathBuf) -> io::Result<()> {
        let repaired = self.repair && remove_file(&path).map(|()| true)?;
        self.find(fault, path, repaired);
        Ok(())
    }

    fn find(&mut self, fault: Fault, path: PathBuf, repaired: bool) {
        let left_over = matches!(fault, Fault::Orphan | Fault::StrayJournal);
        self.report.findings.push(Finding { fault, left_over, path, repaired });
    }
}

fn packed((task, entry): (TaskId, Option<Entry>)) -> Option<(Place, TaskId, Entry)> {
    let entry = entry?;
    Some((entry.place?, task, entry))
}

/// Compares a packed object with what the catalog says of it.
fn compare_packed(segment: &Path, place: Place, entry: &Entry) -> io::Result<Option<Fault>> {
    let Some(layout) = entry.record.layout() else { return Ok(Some(Fault::DamagedEntry)) };
    match pack::open(segment, place, layout) {
        Ok(file) => Ok(judge(&file, &layout, entry)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some(Fault::MissingFile)),
        Err(error) if is_loss(&error) => {
            let expected = u64::from(place.offset) + layout.length();
            Ok(Some(Fault::WrongLength { expected, found: std::fs::metadata(segment)?.len() }))
        }
        Err(error) => Err(error),
    }
}

/// Compares a file with what the catalog says of it.
fn compare(path: &Path, entry: &Entry) -> io::Result<Option<Fault>> {
    let Some(layout) = entry.record.layout() else { return Ok(Some(Fault::DamagedEntry)) };
    let found = std::fs::metadata(path)?.len();
    if found != layout.length() {
        return Ok(Some(Fault::WrongLength { expected: layout.length(), found }));
    }
    let file = TaskFile::open(path, layout, Access::Read)?;
    Ok(judge(&file, &layout, entry))
}

fn judge(file: &TaskFile, layout: &PieceLayout, entry: &Entry) -> Option<Fault> {
    match wrong_pieces(file, layout, &entry.hashes, entry.record.digest.as_ref()) {
        Err(error) => Some(Fault::Unreadable { reason: error.to_string() }),
        Ok((0, true)) => None,
        Ok((0, false)) => Some(Fault::WrongDigest {
            expected: entry.record.digest.map_or_else(String::new, |it| it.to_string()),
        }),
        Ok((wrong, _)) => Some(Fault::WrongPieces { wrong, pieces: layout.pieces() }),
    }
}

/// How many pieces are wrong, and whether the whole is what its digest says.
fn wrong_pieces(
    file: &TaskFile,
    layout: &PieceLayout,
    hashes: &[PieceHash],
    expected: Option<&Digest>,
) -> io::Result<(u32, bool)> {
    let mut whole = expected.map(|expected| {
        (
            expected,
            digest::Context::new(match expected.algorithm() {
                Algorithm::Sha256 => &digest::SHA256,
                Algorithm::Sha512 => &digest::SHA512,
            }),
        )
    });
    let mut wrong = 0;
    for (piece, hash) in layout.iter().zip(hashes) {
        let mut hasher = PieceHasher::new(layout, piece);
        file.read_piece(piece, |part| {
            hasher.update(part);
            if let Some((_, whole)) = &mut whole {
                whole.update(part);
            }
        })?;
        wrong += u32::from(hasher.finish() != *hash);
    }
    Ok((wrong, whole.is_none_or(|(expected, whole)| whole.finish().as_ref() == expected.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::super::Held;
    use super::super::tests::{config, record, resumed, store_complete, task, write_piece};
    use super::super::{Record, Store};
    use super::*;
    use std::fs;

    const PIECE: u64 = PieceLayout::MIN_PIECE_SIZE;
    const LENGTH: u64 = 3 * PIECE - 5;

    /// A store with a task without a digest, damaged by `damage`; what is found, before and after it was repaired.
    fn found(damage: impl FnOnce(&Path, &Path)) -> (Vec<Fault>, Vec<Fault>) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
        let mut partial = store.create(&task(1), Record { digest: None, ..record(LENGTH) }).unwrap();
        let hashes = [0, 1, 2].map(|piece| write_piece(&mut partial, piece, 7)).to_vec();
        store.commit(&task(1), &partial, hashes).unwrap();
        let (path, catalog) = (store.path(&task(1)), dir.path().join("catalog.redb"));
        drop(store);
        assert_eq!(faults(dir.path(), false), []);
        damage(&path, &catalog);
        let (before, repaired) = (faults(dir.path(), false), faults(dir.path(), true));
        assert_eq!(before, repaired, "repairing finds what checking finds");
        let after = faults(dir.path(), false);
        // And a daemon goes on with it.
        drop(Store::open(config(dir.path(), u64::MAX)).unwrap());
        (before, after)
    }

    fn faults(dir: &Path, repair: bool) -> Vec<Fault> {
        let report = check(dir, repair).unwrap();
        assert!(report.findings.iter().all(|finding| finding.repaired == repair));
        report.findings.into_iter().map(|finding| finding.fault).collect()
    }

    fn change(path: &Path, at: usize) {
        let mut bytes = fs::read(path).unwrap();
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn a_byte_that_rotted_is_found() {
        let wrong = vec![Fault::WrongPieces { wrong: 1, pieces: 3 }];
        assert_eq!(found(|path, _| change(path, PIECE as usize + 7)), (wrong, vec![]));
    }

    #[test]
    fn a_file_that_was_cut_or_removed_is_found() {
        let cut = |path: &Path| fs::File::options().write(true).open(path).unwrap().set_len(5).unwrap();
        let wrong = vec![Fault::WrongLength { expected: LENGTH, found: 5 }];
        assert_eq!(found(|path, _| cut(path)), (wrong, vec![]));
        assert_eq!(found(|path, _| fs::remove_file(path).unwrap()), (vec![Fault::MissingFile], vec![]));
    }

    #[test]
    fn what_belongs_to_nobody_is_found() {
        let orphan = |path: &Path| fs::write(path.with_file_name("0".repeat(64)), "x").unwrap();
        assert_eq!(found(|path, _| orphan(path)), (vec![Fault::Orphan], vec![]));
        let journal = |path: &Path| fs::write(journal_path(path), "x").unwrap();
        assert_eq!(found(|path, _| journal(path)), (vec![Fault::StrayJournal], vec![]));
        let lonely = |path: &Path| fs::write(path.with_file_name("f.partial"), "x").unwrap();
        assert_eq!(found(|path, _| lonely(path)), (vec![Fault::StrayJournal], vec![]));
    }

    #[test]
    fn a_catalog_that_cannot_be_read_takes_the_content_with_it() {
        let is_catalog = |fault: &Fault| matches!(fault, Fault::DamagedCatalog { .. });
        for damage in [|path: &Path| change(path, 3), |path: &Path| fs::write(path, "no catalog").unwrap()] {
            let (before, after) = found(|_, catalog| damage(catalog));
            assert!(is_catalog(&before[0]) && before[1..] == [Fault::Orphan], "{before:?}");
            assert_eq!(after, []);
        }
        // Whatever is overwritten in it, nothing panics, and what is left is right.
        for page in (4096..64 << 10).step_by(4096) {
            let zero = |path: &Path| {
                let mut bytes = fs::read(path).unwrap();
                bytes[page..page + 4096].fill(0);
                fs::write(path, bytes).unwrap();
            };
            assert_eq!(found(|_, catalog| zero(catalog)).1, [], "page at {page}");
        }
    }

    #[test]
    fn content_with_another_digest_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
        store_complete(&store, &task(1), PIECE);
        drop(store);
        assert!(matches!(faults(dir.path(), false)[..], [Fault::WrongDigest { .. }]));
    }

    #[test]
    fn what_can_be_resumed_is_no_fault() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
        let mut partial = store.create(&task(1), record(LENGTH)).unwrap();
        write_piece(&mut partial, 1, 3);
        drop((store, partial));
        let report = check(dir.path(), true).unwrap();
        assert_eq!((report.incomplete, report.findings.len()), (1, 0));
        let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
        assert_eq!(resumed(&store, &task(1), Held::default()).pieces.len(), 1);
    }

    #[test]
    fn a_store_in_use_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
        let refused = check(dir.path(), true).unwrap_err().to_string();
        assert!(refused.contains("another process uses it"), "{refused}");
        drop(store);
        assert!(check(&dir.path().join("elsewhere"), false).is_err());
    }
}
