//! [`ByteRange`]: the only form in which a range of content exists outside the proxy's HTTP grammar.

use std::fmt;

/// A half-open range of bytes, `start..end`, that is never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ByteRange {
    start: u64,
    end: u64,
}

impl ByteRange {
    /// The bytes from `start` (included) to `end` (excluded); `None` when that would be empty.
    pub const fn new(start: u64, end: u64) -> Option<Self> {
        if start < end { Some(Self { start, end }) } else { None }
    }

    /// The first byte's offset.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// The offset after the last byte.
    pub const fn end(self) -> u64 {
        self.end
    }

    /// How many bytes: at least one.
    #[expect(clippy::len_without_is_empty, reason = "never empty, by construction")]
    pub const fn len(self) -> u64 {
        self.end - self.start
    }

    /// The bytes that both ranges have; `None` when they share none.
    pub fn intersect(self, other: Self) -> Option<Self> {
        Self::new(self.start.max(other.start), self.end.min(other.end))
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_or_reversed_range_does_not_exist() {
        assert_eq!(ByteRange::new(5, 5), None);
        assert_eq!(ByteRange::new(6, 5), None);
        assert_eq!(ByteRange::new(5, 6).map(ByteRange::len), Some(1));
    }

    #[test]
    fn touching_ranges_share_nothing() {
        let (a, b) = (ByteRange::new(0, 4).unwrap(), ByteRange::new(4, 8).unwrap());
        assert_eq!(a.intersect(b), None);
        assert_eq!(a.intersect(ByteRange::new(3, 8).unwrap()), ByteRange::new(3, 4));
    }
}
