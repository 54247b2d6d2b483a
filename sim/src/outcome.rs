//! [`Outcome`]: what came of it.

use std::time::Duration;

/// What came of a scenario.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// What one copy takes over one daemon's link.
    pub one_copy: Duration,
    /// From its own beginning to its end, of each daemon that lived and is not corrupt; sorted.
    pub took: Vec<Duration>,
    /// When the last of them was done, from the beginning of all.
    pub last: Duration,
    /// Daemons that lived, are not corrupt, and did not come to an end.
    pub unfinished: usize,
    /// Copies of the content that the origin has sent.
    pub origin_copies: f64,
    /// Wrong pieces that were thrown away.
    pub rejected: u64,
    /// Wrong pieces that an honest daemon kept. Never any.
    pub believed: u64,
    /// Corrupt daemons.
    pub corrupt: usize,
    /// Of these, those that the scheduler names to nobody any more, in any task.
    pub quarantined: usize,
    /// Quarantined, and neither corrupt nor ever cut off.
    pub wronged: usize,
    /// Bytes that came to daemons and were of no use, as copies of the content in each.
    pub waste: f64,
    /// Copies of the content that came into each zone from the others.
    pub border_copies: Vec<f64>,
    /// Events that were played.
    pub events: u64,
}

impl Outcome {
    /// When the last was done, in times of one copy.
    pub fn last_ratio(&self) -> f64 {
        self.last.as_secs_f64() / self.one_copy.as_secs_f64()
    }

    /// What half of the daemons took at most, in times of one copy.
    pub fn median_ratio(&self) -> f64 {
        let median = self.took.get(self.took.len() / 2).copied().unwrap_or_default();
        median.as_secs_f64() / self.one_copy.as_secs_f64()
    }
}
