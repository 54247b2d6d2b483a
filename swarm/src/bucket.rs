//! [`Bucket`]: how many bytes may pass, and when, at a limited [`Rate`].
//!
//! A bucket fills at its rate up to a burst, and what passes is taken out. The level is counted in billionths of a byte, so that
//! bytes per second times nanoseconds is a whole number of them: nothing is ever rounded, however small the steps.
//!
//! Invariant: `0 <= level <= burst`. So in any stretch of time `w` at most `burst + rate * w` bytes pass, and somebody who
//! always has something to take gets `rate * w` of them as long as he is never later than a burst takes to fill.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// Billionths of a byte in a byte: nanoseconds in a second.
const UNIT: u128 = 1_000_000_000;
/// A burst is what the rate gives in an eighth of a second: timers of a machine that is busy are late by tens of
/// milliseconds, and that must not cost any of the rate.
const BURSTS_PER_SEC: u64 = 8;
const MIN_BURST: u64 = 4 << 10;
/// What is taken at once is what the rate gives in a fortieth of a second, or less where more than ten streams share it.
const CHUNKS_PER_SEC: u64 = 40;
/// So often each of them moves, twice before whoever waits for one takes it for silent; less often where that is less than
/// [`MIN_CHUNK`] at a time (4 KiB/s for each).
const ROUNDS_PER_SEC: u64 = 4;
const MIN_CHUNK: u64 = 1 << 10;
const MAX_CHUNK: u64 = 64 << 10;

/// A limit, in bytes per second. Never 0: what must not move at all is not asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(NonZeroU64);

/// See the head of this file.
#[derive(Debug, Clone)]
pub struct Bucket {
    rate: Rate,
    /// In billionths of a byte, at `updated`.
    level: u128,
    updated: Instant,
}

// === impl Rate ===

impl Rate {
    /// `None` for 0.
    pub const fn new(bytes_per_sec: u64) -> Option<Self> {
        match NonZeroU64::new(bytes_per_sec) {
            Some(rate) => Some(Self(rate)),
            None => None,
        }
    }

    /// Bytes per second.
    pub const fn bytes_per_sec(self) -> u64 {
        self.0.get()
    }

    /// How many bytes may pass at once after a pause.
    pub fn burst(self) -> u64 {
        (self.0.get() / BURSTS_PER_SEC).max(MIN_BURST)
    }

    /// How many bytes are taken at once, at most. Never more than the burst.
    pub fn chunk(self) -> u64 {
        (self.0.get() / CHUNKS_PER_SEC).clamp(MIN_CHUNK, MAX_CHUNK)
    }

    /// How many bytes are taken at once, at most, by one of so many streams that share the rate, one after the other.
    pub fn chunk_of(self, streams: u64) -> u64 {
        self.chunk().min(self.0.get() / ROUNDS_PER_SEC / streams.max(1)).max(MIN_CHUNK)
    }
}

// === impl Bucket ===

impl Bucket {
    /// A full one.
    pub fn new(now: Instant, rate: Rate) -> Self {
        Self { rate, level: full(rate), updated: now }
    }

    /// From `now` on it fills at `rate`. What is in it stays, up to the new burst.
    pub fn set_rate(&mut self, now: Instant, rate: Rate) {
        if rate != self.rate {
            self.fill(now);
            self.rate = rate;
            self.level = self.level.min(full(rate));
        }
    }

    /// Takes up to `most` bytes: all of them, or the rate's [chunk](Rate::chunk) when they are more. Gives how many.
    ///
    /// # Errors
    /// Nothing is taken when that many are not there. They are after this long, if nobody else takes any.
    pub fn take(&mut self, now: Instant, most: u64) -> Result<u64, Duration> {
        self.fill(now);
        let bytes = most.min(self.rate.chunk());
        match (u128::from(bytes) * UNIT).checked_sub(self.level) {
            None | Some(0) => {
                self.level -= u128::from(bytes) * UNIT;
                Ok(bytes)
            }
            Some(missing) => {
                let nanos = missing.div_ceil(u128::from(self.rate.bytes_per_sec()));
                // At most a chunk at one byte per second.
                Err(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
            }
        }
    }

    /// Puts back what was taken and did not pass.
    pub fn give_back(&mut self, now: Instant, bytes: u64) {
        self.fill(now);
        self.level = (self.level + u128::from(bytes) * UNIT).min(full(self.rate));
    }

    /// Whether it is as a new one would be.
    pub fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.level == full(self.rate)
    }

    fn fill(&mut self, now: Instant) {
        let nanos = now.saturating_duration_since(self.updated).as_nanos();
        let more = nanos.saturating_mul(u128::from(self.rate.bytes_per_sec()));
        self.level = self.level.saturating_add(more).min(full(self.rate));
        self.updated = self.updated.max(now);
    }
}

fn full(rate: Rate) -> u128 {
    u128::from(rate.burst()) * UNIT
}
