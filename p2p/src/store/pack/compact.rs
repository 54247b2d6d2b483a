//! Segments in which little is left are moved into the newest one.
//!
//! Copied and flushed first, then the catalog names the new places instead of the old ones in one transaction, then the old
//! segment goes. A crash before that transaction leaves bytes that are nobody's, one after it a segment in which there is
//! nothing: the next start removes either.

use super::segments::Place;
use super::{SEGMENT_BYTES, Step};
use crate::store::catalog::{Entry, Move};
use crate::store::{Store, lock};
use darter_protocol::TaskId;
use std::collections::{BTreeMap, HashSet};
use std::io;

/// A segment is moved when at most one in so many of its bytes is an object's. Holes cost nothing but their file, so little is
/// moved; where they cannot be punched, they cost what they measure.
const SPARSE: u64 = 8;
const SPARSE_SOLID: u64 = 2;

/// What is moved at a time, in bytes: it is read into memory.
const MOVE_BYTES: u64 = 16 << 20;

impl Store {
    /// Moves what is left in sparse segments. Blocks.
    pub(in super::super) fn compact(&self) -> io::Result<()> {
        let sparse = {
            let segments = lock(&self.packs.segments);
            segments.sparse(SEGMENT_BYTES, if segments.solid { SPARSE_SOLID } else { SPARSE })
        };
        let mut bytes = 0;
        let fits = |(_, live): &&(u32, u64)| {
            bytes += live;
            bytes <= MOVE_BYTES
        };
        let chosen: HashSet<u32> = sparse.iter().take_while(fits).map(|(number, _)| *number).collect();
        // A catalog that is looked through for one of a few files costs more than that is worth.
        if chosen.len() < 2 {
            return Ok(());
        }
        self.move_segments(&chosen)?;
        // Otherwise the catalog would be looked through for the same ones each time.
        lock(&self.packs.segments).leave(&chosen);
        Ok(())
    }

    fn move_segments(&self, chosen: &HashSet<u32>) -> io::Result<()> {
        let mut moving: BTreeMap<Place, (TaskId, Entry)> = BTreeMap::new();
        self.catalog.for_each(|task, entry, _| {
            if let Some(entry) = entry
                && let Some(place) = entry.place.filter(|place| chosen.contains(&place.segment))
            {
                moving.insert(place, (task, entry));
            }
        })?;
        let mut contents = Vec::with_capacity(moving.len());
        // What cannot be read stays where it is: whoever wants it will see.
        moving.retain(|place, (_, entry)| match self.read_packed(*place, entry) {
            Ok(content) => {
                contents.push(content);
                true
            }
            Err(error) => {
                tracing::debug!(%error, "a packed object cannot be moved");
                false
            }
        });
        let mut writer = lock(&self.packs.writer);
        let slices: Vec<&[u8]> = contents.iter().map(Vec::as_slice).collect();
        let places = writer.append(&self.packs, &slices)?;
        self.packs.step(Step::Copied)?;
        let _names = lock(&self.names);
        let moves: Vec<Move> = moving
            .iter()
            .zip(&places)
            .map(|((from, (task, _)), to)| Move { task: *task, from: *from, to: *to })
            .collect();
        for (step, (_, (_, entry))) in moves.iter().zip(&moving) {
            lock(&self.packs.segments).take(step.to, entry.record.info.length);
        }
        let moved = self.catalog.move_all(&moves).map_err(io::Error::from);
        let moved = moved.and_then(|moved| self.packs.step(Step::Moved).map(|()| moved));
        // The catalog may name the old places as well as the new ones.
        let moved = moved.inspect_err(|_| self.untidy())?;
        let left = moves.iter().zip(moving.values()).map(|(step, (task, entry))| {
            let length = entry.record.info.length;
            // Of one that was evicted meanwhile, the copy is nobody's.
            if moved.contains(task) {
                // It was opened where it had been.
                self.opened.invalidate(task);
                (step.from, length)
            } else {
                (step.to, length)
            }
        });
        let left: Vec<_> = left.collect();
        self.packs.free(&left);
        Ok(())
    }

    fn read_packed(&self, place: Place, entry: &Entry) -> io::Result<Vec<u8>> {
        let layout = super::super::layout(&entry.record)?;
        let file = self.packs.open(place, layout)?;
        let mut content = Vec::with_capacity(layout.length() as usize);
        for piece in layout.iter() {
            file.read_piece(piece, |part| content.extend_from_slice(part))?;
        }
        Ok(content)
    }
}
