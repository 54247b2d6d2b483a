//! [`Entry`]: a complete task, and its row in the table.

use crate::store::pack::Place;
use crate::store::record::{Record, decode_hashes, encode_hashes};
use darter_protocol::{PieceHash, TaskId};

/// Bytes of a piece's hash.
const HASH_BYTES: usize = 32;

/// A complete task as the catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) record: Record,
    pub(crate) hashes: Vec<PieceHash>,
    /// Where it is packed; `None` when it has a file of its own.
    pub(in crate::store) place: Option<Place>,
}

/// An entry that was taken out.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct Removed {
    pub(in crate::store) task: TaskId,
    /// Where it was packed, and its length in bytes.
    pub(in crate::store) packed: Option<(Place, u64)>,
}

/// A packed object that lies at another place now.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct Move {
    pub(in crate::store) task: TaskId,
    pub(in crate::store) from: Place,
    pub(in crate::store) to: Place,
}

impl Entry {
    /// As it stands in the table of the tasks.
    pub(super) fn encode(&self) -> Vec<u8> {
        let record = self.record.encode();
        let mut bytes = [&(record.len() as u32).to_le_bytes(), record.as_slice()].concat();
        bytes.extend(encode_hashes(&self.hashes));
        bytes.extend(self.place.iter().flat_map(|place| place.encode()));
        bytes
    }

    /// `None` when the bytes are no entry.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (length, rest) = bytes.split_first_chunk()?;
        let (record, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        let record = Record::decode(record)?;
        let layout = record.layout()?;
        let (hashes, place) = rest.split_at_checked(layout.pieces() as usize * HASH_BYTES)?;
        let place = match <[u8; Place::ENCODED]>::try_from(place) {
            Ok(place) => Some(Place::decode(place)?),
            Err(_) if place.is_empty() => None,
            Err(_) => return None,
        };
        Some(Self { hashes: decode_hashes(&layout, hashes)?, record, place })
    }
}
