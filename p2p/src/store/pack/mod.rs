//! [`Packs`]: small objects, many in one file, so that a million of them are not a million files and one flush is for many.
//!
//! A segment (`packs/<number>.pack`) is appended to, object after object, each from a block's start. What is where says the
//! catalog alone: a segment has no index. So it needs no repair after a crash, whenever that comes: bytes that the catalog
//! does not name are nobody's, and bytes that it names were flushed before it named them (see `group`).
//!
//! Space comes back in two ways. What is evicted is punched out of its segment at once, or as soon as the last one who
//! reads it is done: what is open is never cut. And a segment in which little is left is moved into the newest and
//! removed (see `compact`), so that their number stays a small multiple of what they hold. An object is compared with its
//! hash whenever it is opened from here: a catalog that a damage has thrown back may name what is not there any more.

mod compact;
mod group;
mod segments;

use super::file::TaskFile;
use super::names::sync_folder;
use super::space::Claim;
use super::{Store, lock};
use darter_protocol::PieceLayout;
use segments::Segments;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

pub(super) use group::Waiting;
pub(super) use segments::{Extent, Place, extent_length, list, path};

/// Content up to this length is packed, in bytes. Above it a file of its own costs less than a tenth of what its bytes do;
/// and it is the most that is lost of a download that was stopped, since what is not complete lies in memory.
pub(super) const PACKED_UP_TO: u64 = PieceLayout::MIN_PIECE_SIZE;

/// A segment takes no more objects when it is so long, in bytes; a shorter one is enough to see in a test what happens then.
const SEGMENT_BYTES: u64 = if cfg!(test) { 4 << 20 } else { 64 << 20 };

/// Memory for small objects that are being fetched, or wait to be packed, in bytes. What comes beyond that gets a file of its
/// own: nobody waits.
const STAGED_BYTES: u64 = 32 << 20;

/// The small objects on disk, and those on their way there.
#[derive(Debug)]
pub(super) struct Packs {
    dir: PathBuf,
    queue: Mutex<group::Queue>,
    /// Something came that does not want to wait for more.
    hurry: Condvar,
    /// Held while a segment is written to. Before the store's `names`.
    writer: Mutex<Writer>,
    segments: Mutex<Segments>,
    staged: Arc<AtomicU64>,
    #[cfg(test)]
    pub(super) watch: Mutex<Option<tests::Watch>>,
}

/// The segment that is appended to.
#[derive(Debug, Default)]
pub(super) struct Writer {
    open: Option<Newest>,
    /// Where the next segment would go on, or the number of the next one.
    next: Place,
}

#[derive(Debug)]
struct Newest {
    number: u32,
    file: Arc<File>,
}

/// A small object in memory: it is being fetched, or waits to be packed.
#[derive(Debug)]
pub(super) struct Staged {
    /// Read by many while they are written to a segment.
    pub(super) bytes: RwLock<Box<[u8]>>,
    /// Taken when it is packed.
    pub(super) claim: Mutex<Option<Claim>>,
    _memory: Memory,
}

impl Staged {
    pub(super) fn read(&self) -> RwLockReadGuard<'_, Box<[u8]>> {
        self.bytes.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A share of [`STAGED_BYTES`].
#[derive(Debug)]
struct Memory {
    staged: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.staged.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A step of what is written, for tests that stop there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Written,
    Flushed,
    Entered,
    Forgotten,
    Copied,
    Moved,
}

impl Packs {
    pub(super) fn at(dir: PathBuf) -> Self {
        Self {
            dir,
            queue: Mutex::default(),
            hurry: Condvar::new(),
            writer: Mutex::default(),
            segments: Mutex::default(),
            staged: Arc::default(),
            #[cfg(test)]
            watch: Mutex::default(),
        }
    }

    /// A place in memory for content of this layout, whose space on disk was claimed. Gives the claim back when there is no memory.
    pub(super) fn stage(&self, layout: PieceLayout, claim: Claim) -> Result<TaskFile, Claim> {
        let bytes = layout.length();
        let fits = |staged: u64| staged.checked_add(bytes).filter(|all| *all <= STAGED_BYTES);
        if self.staged.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_err() {
            return Err(claim);
        }
        let staged = Staged {
            bytes: RwLock::new(vec![0; bytes as usize].into()),
            claim: Mutex::new(Some(claim)),
            _memory: Memory { staged: Arc::clone(&self.staged), bytes },
        };
        Ok(TaskFile::staged(staged, layout))
    }

    /// The content at `place`.
    ///
    /// # Errors
    /// `NotFound` when its segment is not there, `UnexpectedEof` when that ends before it does.
    pub(super) fn open(&self, place: Place, layout: PieceLayout) -> io::Result<TaskFile> {
        Ok(TaskFile::packed(lock(&self.segments).open(&self.dir, place, layout.length())?, layout))
    }

    /// Where the segment of `place` stands.
    pub(super) fn path(&self, place: Place) -> PathBuf {
        path(&self.dir, place.segment)
    }

    /// Lets go of what no entry of the catalog names any more. What somebody reads stays until he is done.
    pub(super) fn free(&self, extents: &[(Place, u64)]) {
        lock(&self.segments).free(&self.dir, extents);
    }

    /// As [`Self::free`] of one, which the catalog names still because there is no room for saying otherwise.
    pub(super) fn free_early(&self, extent: (Place, u64)) {
        lock(&self.segments).free_early(&self.dir, extent);
    }

    /// Lets go of what somebody has read when it was let go of, and reads no more.
    pub(super) fn sweep(&self) {
        self.free(&[]);
    }

    /// Nobody writes to a segment, or enters what was written there, until this is dropped.
    pub(super) fn lock_writer(&self) -> MutexGuard<'_, Writer> {
        lock(&self.writer)
    }

    /// As the catalog has it: begins anew, with these extents. Removes segments in which there is nothing, gives back what lies
    /// between and behind them, and leaves what somebody reads until he is done. Gives the places whose bytes are not there.
    pub(super) fn load(&self, writer: &mut Writer, extents: &[(Place, u64)]) -> io::Result<Vec<Place>> {
        let (mut segments, next, lost) = segments::load(&self.dir, extents, writer.next.segment)?;
        let mut current = lock(&self.segments);
        segments.follow(std::mem::take(&mut current));
        segments.punch_gaps(&self.dir, extents);
        *current = segments;
        *writer = Writer { open: None, next };
        Ok(lost)
    }

    /// Tells who watches that a step was done. He may let it fail.
    pub(super) fn step(&self, _step: Step) -> io::Result<()> {
        #[cfg(test)]
        if let Some(watch) = lock(&self.watch).as_mut() {
            return (watch.0)(_step);
        }
        Ok(())
    }
}

/// The object at `place` of a segment that stands there.
///
/// # Errors
/// As [`Packs::open`].
pub(super) fn open(segment: &Path, place: Place, layout: PieceLayout) -> io::Result<TaskFile> {
    Ok(TaskFile::packed(Arc::new(Extent::open(segment, place, layout.length())?), layout))
}

impl Writer {
    /// Writes `contents` one after the other behind what is there, and flushes. Gives their places.
    ///
    /// # Errors
    /// Those of the file system: then nothing of it is there.
    fn append(&mut self, packs: &Packs, contents: &[&[u8]]) -> io::Result<Vec<Place>> {
        let before = self.next;
        let appended = self.write(packs, contents);
        if appended.is_err() {
            self.take_back(&packs.dir, before);
        }
        appended
    }

    fn write(&mut self, packs: &Packs, contents: &[&[u8]]) -> io::Result<Vec<Place>> {
        let mut places = Vec::with_capacity(contents.len());
        let mut full: Vec<Arc<File>> = Vec::new();
        let mut made = false;
        for content in contents {
            if u64::from(self.next.offset) >= SEGMENT_BYTES {
                full.extend(self.open.take().map(|newest| newest.file));
                self.next = self.next.next_segment()?;
            }
            let file = match &self.open {
                Some(newest) if newest.number == self.next.segment => Arc::clone(&newest.file),
                _ => {
                    made = true;
                    self.open_next(&packs.dir)?
                }
            };
            file.write_all_at(content, self.next.offset.into())?;
            places.push(self.next);
            self.next = self.next.after(content.len() as u64);
        }
        packs.step(Step::Written)?;
        full.extend(self.open.as_ref().map(|newest| Arc::clone(&newest.file)));
        full.iter().try_for_each(|file| file.sync_data())?;
        if made {
            // So that it is found under its name after a power cut, too; and its folder.
            sync_folder(&packs.dir)?;
            packs.dir.parent().map_or(Ok(()), sync_folder)?;
        }
        packs.step(Step::Flushed)?;
        Ok(places)
    }

    fn open_next(&mut self, dir: &Path) -> io::Result<Arc<File>> {
        std::fs::create_dir_all(dir)?;
        let segment = path(dir, self.next.segment);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(segment)?;
        let file = Arc::new(file);
        self.open = Some(Newest { number: self.next.segment, file: Arc::clone(&file) });
        Ok(file)
    }

    /// Nobody is told of what was written behind `before`: on a full disk its space is worth more.
    fn take_back(&mut self, dir: &Path, before: Place) {
        for number in before.segment..=self.next.segment {
            let kept = if number == before.segment { before.offset } else { 0 };
            let cut = OpenOptions::new().write(true).open(path(dir, number));
            if let Err(error) = cut.and_then(|file| file.set_len(kept.into())) {
                tracing::debug!(%error, number, "a segment keeps what is nobody's");
            }
        }
        *self = Self { open: None, next: before };
    }
}

impl Store {
    /// Whether content of this length, of a task of which there is nothing, is packed at this moment. Does not block.
    pub(super) fn packs_now(&self, length: u64) -> bool {
        (1..=PACKED_UP_TO).contains(&length) && !self.alarm.is_raised() && self.is_tidied()
    }
}

#[cfg(test)]
mod tests;
