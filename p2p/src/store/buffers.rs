//! Buffers into which content is read: zeroed once, and used again by whoever reads next. A fresh one for every read is fresh
//! memory from the system as often as not, and zeroed each time: the system call cannot be told that it will be filled.

use super::lock;
use bytes::Bytes;
use std::sync::Mutex;

/// How much one holds, in bytes. Large enough that the system call does not count, small enough that a thousand readers
/// are 128 MiB.
pub(super) const LENGTH: usize = 128 << 10;

/// Those that nobody uses at the moment, of all stores of the process.
static FREE: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());

/// How many of them are kept: 4 MiB.
const KEPT: usize = 32;

/// A buffer, until it is dropped.
pub(super) struct Buffer {
    /// There until this is dropped.
    memory: Box<[u8]>,
    filled: usize,
}

impl Buffer {
    /// One that is free; otherwise a new one.
    pub(super) fn take() -> Self {
        let free = lock(&FREE).pop();
        Self { memory: free.unwrap_or_else(|| vec![0; LENGTH].into()), filled: 0 }
    }

    /// Its memory; what is in it is not for anybody.
    pub(super) fn memory(&mut self) -> &mut [u8] {
        &mut self.memory
    }

    /// The first `filled` bytes. Its memory is used again when the last part of it is dropped.
    pub(super) fn into_bytes(mut self, filled: usize) -> Bytes {
        self.filled = filled.min(self.memory.len());
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[..self.filled]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        let mut free = lock(&FREE);
        if free.len() < KEPT {
            free.push(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_sees_what_was_in_it_before() {
        let mut first = Buffer::take();
        first.memory().fill(7);
        let bytes = first.into_bytes(5);
        let part = bytes.slice(1..3);
        drop(bytes);
        let mut second = Buffer::take();
        second.memory()[..2].fill(9);
        assert_eq!((second.into_bytes(2), part), (Bytes::from_static(&[9, 9]), Bytes::from_static(&[7, 7])));
    }
}
