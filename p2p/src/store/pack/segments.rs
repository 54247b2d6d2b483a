//! [`Segments`]: which there are, how much is in each, and who reads of them.

use super::super::names::remove_file;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

/// Objects begin at multiples of this, in bytes: the block of file systems, so that one can be punched out without another.
const ALIGNMENT: u64 = 4096;

/// Where an object begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(in super::super) struct Place {
    pub(in super::super) segment: u32,
    /// In bytes, a multiple of [`ALIGNMENT`].
    pub(in super::super) offset: u32,
}

/// An object in a segment that somebody may read, for as long as this is there.
#[derive(Debug)]
pub(in super::super) struct Extent {
    pub(in super::super) file: Arc<File>,
    pub(in super::super) offset: u64,
    /// In bytes.
    length: u64,
}

/// What is known of the segments.
#[derive(Debug, Default)]
pub(super) struct Segments {
    /// By number.
    all: BTreeMap<u32, Segment>,
    /// What was opened, until somebody tidies up.
    extents: HashMap<Place, Weak<Extent>>,
    /// What was opened before the folder was looked through anew, and is read still.
    earlier: Vec<(Place, Weak<Extent>)>,
    /// When [`Self::extents`] is looked through for those that nobody reads.
    tidy_at: usize,
    /// What nobody names any more, and somebody reads.
    graveyard: Vec<(Place, u64)>,
    /// Was let go of while the catalog named it still.
    early: HashSet<Place>,
    /// The file system cannot punch.
    pub(super) solid: bool,
}

#[derive(Debug, Default)]
struct Segment {
    /// Bytes of objects that the catalog names or is about to.
    live: u64,
    file: Weak<File>,
    /// Something of it could not be moved: it stays until it is empty.
    stays: bool,
}

/// What an object of so many bytes takes.
pub(in super::super) fn extent_length(length: u64) -> u64 {
    length.next_multiple_of(ALIGNMENT)
}

/// Where a segment stands in the folder of the segments.
pub(in super::super) fn path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{number:08}.pack"))
}

/// The number of the segment that is called so.
pub(super) fn number(name: &Path) -> Option<u32> {
    let digits = name.file_name()?.to_str()?.strip_suffix(".pack")?;
    let number = digits.parse().ok()?;
    (digits == format!("{number:08}")).then_some(number)
}

/// The segments of a folder as the catalog has them, where the next object goes, and the places whose bytes are not there.
/// Nobody goes on in a segment of a number up to `before`: somebody may read of it what the catalog names no more.
pub(super) fn load(
    dir: &Path,
    extents: &[(Place, u64)],
    before: u32,
) -> io::Result<(Segments, Place, Vec<Place>)> {
    let mut segments = Segments::default();
    let mut ends = BTreeMap::<u32, u64>::new();
    for (place, length) in extents {
        segments.all.entry(place.segment).or_default().live += extent_length(*length);
        let end = ends.entry(place.segment).or_default();
        *end = (*end).max(u64::from(place.offset) + extent_length(*length));
    }
    let mut lengths = BTreeMap::new();
    for path in list(dir)? {
        match number(&path) {
            Some(number) if ends.contains_key(&number) => {
                lengths.insert(number, std::fs::metadata(&path)?.len());
            }
            // Nobody's: a crash came before its first object was entered, or after its last one had gone.
            _ => remove_file(&path)?,
        }
    }
    let is_there = |(place, length): &&(Place, u64)| {
        lengths.get(&place.segment).is_some_and(|found| u64::from(place.offset) + length <= *found)
    };
    let lost = extents.iter().filter(|extent| !is_there(extent)).map(|(place, _)| *place).collect();
    let newest = ends.last_key_value().map_or((0, 0), |(number, end)| (*number, *end));
    let next = match (newest, lengths.get(&newest.0), u32::try_from(newest.1)) {
        ((segment, end), Some(length), Ok(offset)) if segment > before => {
            // What a crash has left behind the last object.
            OpenOptions::new().write(true).open(path(dir, segment))?.set_len(end.min(*length))?;
            Place { segment, offset }
        }
        ((segment, _), ..) => Place { segment: segment.max(before), offset: 0 }.next_segment()?,
    };
    Ok((segments, next, lost))
}

/// What is in the folder of the segments; nothing when there is none.
pub(in super::super) fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match std::fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

impl Place {
    pub(in super::super) const ENCODED: usize = 8;

    pub(in super::super) fn encode(self) -> [u8; Self::ENCODED] {
        (u64::from(self.segment) | (u64::from(self.offset) << 32)).to_le_bytes()
    }

    /// `None` for bytes that say no place at which an object begins.
    pub(in super::super) fn decode(bytes: [u8; Self::ENCODED]) -> Option<Self> {
        let both = u64::from_le_bytes(bytes);
        let (segment, offset) = (both as u32, (both >> 32) as u32);
        u64::from(offset).is_multiple_of(ALIGNMENT).then_some(Self { segment, offset })
    }

    /// The place behind an object of so many bytes here. A segment is never so long that this overflows.
    pub(super) fn after(self, length: u64) -> Self {
        let end = u64::from(self.offset) + extent_length(length);
        Self { offset: u32::try_from(end).unwrap_or(u32::MAX), ..self }
    }

    /// The start of the next segment.
    pub(super) fn next_segment(self) -> io::Result<Self> {
        let segment = self.segment.checked_add(1).ok_or(io::ErrorKind::StorageFull)?;
        Ok(Self { segment, offset: 0 })
    }
}

impl Extent {
    pub(super) fn open(segment: &Path, place: Place, length: u64) -> io::Result<Self> {
        Self::of(Arc::new(File::open(segment)?), place, length)
    }

    fn of(file: Arc<File>, place: Place, length: u64) -> io::Result<Self> {
        if file.metadata()?.len() < u64::from(place.offset) + length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Self { file, offset: place.offset.into(), length })
    }
}

impl Segments {
    /// Counts objects of `length` bytes at `place` as there.
    pub(super) fn take(&mut self, place: Place, length: u64) {
        self.all.entry(place.segment).or_default().live += extent_length(length);
    }

    pub(super) fn open(&mut self, dir: &Path, place: Place, length: u64) -> io::Result<Arc<Extent>> {
        if let Some(extent) = self.extents.get(&place).and_then(Weak::upgrade) {
            return Ok(extent);
        }
        let segment = self.all.entry(place.segment).or_default();
        let file = match segment.file.upgrade() {
            Some(file) => file,
            None => Arc::new(File::open(path(dir, place.segment))?),
        };
        segment.file = Arc::downgrade(&file);
        let extent = Arc::new(Extent::of(file, place, length)?);
        if self.extents.len() >= self.tidy_at {
            self.extents.retain(|_, extent| extent.strong_count() > 0);
            self.tidy_at = 2 * self.extents.len() + 64;
        }
        self.extents.insert(place, Arc::downgrade(&extent));
        Ok(extent)
    }

    /// Notes that what is freed now is named by the catalog still, and will be freed again when it is not.
    pub(super) fn free_early(&mut self, dir: &Path, extent: (Place, u64)) {
        if self.early.insert(extent.0) {
            self.free_all(dir, vec![extent]);
        }
    }

    pub(super) fn free(&mut self, dir: &Path, extents: &[(Place, u64)]) {
        let new = extents.iter().filter(|(place, _)| !self.early.remove(place)).copied().collect();
        self.free_all(dir, new);
    }

    fn free_all(&mut self, dir: &Path, new: Vec<(Place, u64)>) {
        for (place, length) in &new {
            let segment = self.all.entry(place.segment).or_default();
            segment.live = segment.live.saturating_sub(extent_length(*length));
        }
        let mut all = std::mem::take(&mut self.graveyard);
        all.extend(new);
        // Whoever reads of a file that has no name any more reads on.
        self.remove_empty(dir, &mut all);
        let (open, mut gone): (Vec<_>, Vec<_>) = all.into_iter().partition(|(place, _)| self.is_read(place));
        self.graveyard = open;
        gone.sort_unstable();
        for range in joined(&gone) {
            self.punch(dir, range);
        }
    }

    fn is_read(&self, place: &Place) -> bool {
        let earlier = self.earlier.iter().filter(|(at, _)| at == place).map(|(_, extent)| extent);
        self.extents.get(place).into_iter().chain(earlier).any(|extent| extent.strong_count() > 0)
    }

    /// Takes over what somebody reads since before the folder was looked through anew.
    pub(super) fn follow(&mut self, before: Self) {
        self.earlier = before.earlier.into_iter().chain(before.extents).collect();
        self.earlier.retain(|(_, extent)| extent.strong_count() > 0);
    }

    /// Gives back what no entry names: a crash came before it was punched out, or before it was entered.
    pub(super) fn punch_gaps(&mut self, dir: &Path, named: &[(Place, u64)]) {
        let extents = self.earlier.iter();
        let mut read: HashMap<Place, u64> =
            extents.filter_map(|(place, extent)| Some((*place, extent.upgrade()?.length))).collect();
        named.iter().for_each(|(place, _)| _ = read.remove(place));
        let mut taken = named.to_vec();
        taken.extend(read.iter().map(|(place, length)| (*place, *length)));
        taken.sort_unstable();
        self.graveyard.extend(read);
        for taken in taken.chunk_by(|(one, _), (other, _)| one.segment == other.segment) {
            let number = taken[0].0.segment;
            let live = self.all.get(&number).map_or(0, |segment| segment.live);
            let Ok(found) = std::fs::metadata(path(dir, number)) else { continue };
            // Mostly there is nothing to be given back.
            if found.blocks().saturating_mul(512) > live {
                gaps(number, found.len(), taken).into_iter().for_each(|gap| self.punch(dir, gap));
            }
        }
    }

    /// Notes that nothing more can be moved out of what is left of these segments.
    pub(super) fn leave(&mut self, numbers: &HashSet<u32>) {
        let left = self.all.iter_mut().filter(|(number, _)| numbers.contains(number));
        left.for_each(|(_, segment)| segment.stays = true);
    }

    /// Removes segments in which there is nothing, but for the newest, which is appended to.
    fn remove_empty(&mut self, dir: &Path, gone: &mut Vec<(Place, u64)>) {
        let newest = self.all.last_key_value().map(|(number, _)| *number);
        let is_empty = |(number, segment): &(&u32, &Segment)| segment.live == 0 && Some(**number) != newest;
        let empty: Vec<u32> = self.all.iter().filter(is_empty).map(|(number, _)| *number).collect();
        for number in empty {
            if remove_file(&path(dir, number)).is_ok() {
                self.all.remove(&number);
                gone.retain(|(place, _)| place.segment != number);
            }
        }
    }

    /// Bytes in a segment that the catalog names.
    #[cfg(test)]
    pub(super) fn live(&self, number: u32) -> u64 {
        self.all.get(&number).map_or(0, |segment| segment.live)
    }

    /// Gives the space of a stretch back to the file system.
    fn punch(&mut self, dir: &Path, (place, length): (Place, u64)) {
        if self.solid {
            return;
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let punched = OpenOptions::new()
            .write(true)
            .open(path(dir, place.segment))
            .and_then(|file| Ok(rustix::fs::fallocate(&file, flags, place.offset.into(), length)?));
        match punched {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => self.solid = true,
            // A file system may need room to say that there is room: it is tried again.
            Err(error) => {
                tracing::debug!(%error, "what was evicted keeps its space for now");
                self.graveyard.push((place, length));
            }
        }
    }

    /// The segments, but for the newest, of whose bytes at most one in `one_in` is an object's, the emptiest first; but for those
    /// out of which nothing can be moved.
    pub(super) fn sparse(&self, segment_bytes: u64, one_in: u64) -> Vec<(u32, u64)> {
        let newest = self.all.last_key_value().map(|(number, _)| *number);
        let mut sparse: Vec<_> = self
            .all
            .iter()
            .filter(|(number, segment)| Some(**number) != newest && segment.live > 0 && !segment.stays)
            .filter(|(_, segment)| segment.live <= segment_bytes / one_in)
            .map(|(number, segment)| (*number, segment.live))
            .collect();
        sparse.sort_by_key(|(_, live)| *live);
        sparse
    }
}

/// What lies between extents of a segment of so many bytes, and behind the last one. Must be sorted.
fn gaps(segment: u32, length: u64, extents: &[(Place, u64)]) -> Vec<(Place, u64)> {
    let mut start = Place { segment, offset: 0 };
    let mut gaps = Vec::new();
    for (place, length) in extents {
        gaps.push((start, u64::from(place.offset.saturating_sub(start.offset))));
        start = start.max(place.after(*length));
    }
    gaps.push((start, length.saturating_sub(start.offset.into())));
    gaps.retain(|(_, length)| *length > 0);
    gaps
}

/// Neighbours become one stretch, from block to block. Must be sorted.
fn joined(extents: &[(Place, u64)]) -> Vec<(Place, u64)> {
    let mut joined: Vec<(Place, u64)> = Vec::new();
    for (place, length) in extents {
        let length = extent_length(*length);
        match joined.last_mut() {
            Some((before, all)) if before.after(*all) == *place => *all += length,
            _ => joined.push((*place, length)),
        }
    }
    joined.retain(|(_, length)| *length > 0);
    joined
}
