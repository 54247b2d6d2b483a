//! [`region`], and which addresses are whose.

use crate::sys::Mapping;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError, RwLock};

/// A file that regions keep open.
pub type Source = Arc<dyn AsFd + Send + Sync>;

/// All regions of the process, by their first address.
static REGIONS: RwLock<BTreeMap<usize, Part>> = RwLock::new(BTreeMap::new());

/// The kernel allows a process 65,530 mappings (vm.max_map_count), and memory for anything else needs some, too.
const MAX_REGIONS: usize = 16_384;

/// What stands behind the addresses of a region.
struct Part {
    file: Source,
    offset: u64,
    length: usize,
}

/// The owner of a region's addresses.
struct Region(Mapping);

/// The `length` bytes of `file` from `offset` on, to be sent by a [`Socket`](crate::Socket) without being read. `None` when
/// some of it is not in the page cache (to send it would wait for the disk), or there are very many regions.
///
/// Nobody may write to this part of the file any more, or cut it off, while the bytes or a clone of them are there.
///
/// # Errors
/// Those of mmap(2) and mincore(2): what cannot be mapped can be read.
pub fn region<F>(file: &Arc<F>, offset: u64, length: usize) -> io::Result<Option<Bytes>>
where
    F: AsFd + Send + Sync + 'static,
{
    if length == 0 {
        return Ok(Some(Bytes::new()));
    }
    if read().len() >= MAX_REGIONS {
        return Ok(None);
    }
    let page = rustix::param::page_size();
    let before = usize::try_from(offset % page as u64).map_err(io::Error::other)?;
    let (offset, length) = (offset - before as u64, length + before);
    let mapping = Mapping::new(file, offset, length)?;
    if !mapping.is_cached(page)? {
        return Ok(None);
    }
    let part = Part { file: Arc::clone(file) as Source, offset, length };
    let region = Region(mapping);
    write().insert(region.0.address(), part);
    Ok(Some(Bytes::from_owner(region).slice(before..)))
}

/// Where these bytes stand in a file, if they are a region's: the file, and the offset in it in bytes.
pub fn find(bytes: &[u8]) -> Option<(Source, u64)> {
    let address = bytes.as_ptr().addr();
    let regions = read();
    let (start, part) = regions.range(..=address).next_back()?;
    let within = address - start;
    let is_inside = !bytes.is_empty() && within + bytes.len() <= part.length;
    is_inside.then(|| (Arc::clone(&part.file), part.offset + within as u64))
}

fn read() -> std::sync::RwLockReadGuard<'static, BTreeMap<usize, Part>> {
    REGIONS.read().unwrap_or_else(PoisonError::into_inner)
}

fn write() -> std::sync::RwLockWriteGuard<'static, BTreeMap<usize, Part>> {
    REGIONS.write().unwrap_or_else(PoisonError::into_inner)
}

impl AsRef<[u8]> for Region {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // Before the addresses can be another's.
        let part = write().remove(&self.0.address());
        // Closes the file, perhaps, and not with everybody waiting.
        drop(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write as _;

    fn file(length: usize) -> (Arc<File>, Vec<u8>) {
        let content: Vec<u8> = (0..length).map(|at| (at / 7) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        (Arc::new(file), content)
    }

    #[test]
    fn a_region_is_what_the_file_contains_wherever_it_begins() {
        let (file, content) = file(100_000);
        for (offset, length) in [(0, 100_000), (1, 5), (4096, 4096), (5000, 50_000), (99_999, 1), (7, 0)] {
            let bytes = region(&file, offset as u64, length).unwrap().unwrap();
            assert!(bytes == content[offset..offset + length], "{offset} {length}");
        }
    }

    #[test]
    fn addresses_are_found_while_they_live_and_others_are_not() {
        let (file, _) = file(10_000);
        let bytes = region(&file, 5000, 3000).unwrap().unwrap();
        let at = |bytes: &[u8]| find(bytes).map(|(_, offset)| offset);
        assert_eq!(at(&bytes), Some(5000));
        assert_eq!(at(&bytes[10..20]), Some(5010));
        assert_eq!(at(&bytes.slice(2999..)), Some(7999));
        assert_eq!(at(&[1, 2, 3]), None);
        assert_eq!(at(&bytes[..0]), None);
        assert_eq!(Arc::strong_count(&file), 2);
        drop(bytes);
        assert_eq!(Arc::strong_count(&file), 1, "its addresses are still known");
    }
}
