//! [`Supplier`]: where a byte of content came from; and [`Supplied`]: how many each supplied, as one reader got them.

use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};
use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Where a byte of content came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Supplier {
    /// It was on this host's disk when the reader came, or when the download that it reads from began.
    Disk,
    /// From another daemon, by the download that the reader reads from.
    Peer,
    /// From the origin, by the download that the reader reads from.
    Origin,
}

impl Supplier {
    /// All of them, in the order of what they cost.
    pub const ALL: [Self; 3] = [Self::Disk, Self::Peer, Self::Origin];

    /// Its name in logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Peer => "peer",
            Self::Origin => "origin",
        }
    }
}

impl EncodeLabelValue for Supplier {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(self.as_str())
    }
}

/// How many bytes one reader got from each source so far, the sum of which is what has left its body; and what it waited for.
#[derive(Debug, Default)]
pub struct Supplied {
    bytes: [AtomicU64; 3],
    queued_ms: AtomicU64,
}

impl Supplied {
    /// Bytes from this one.
    pub fn bytes(&self, supplier: Supplier) -> u64 {
        self.bytes[supplier as usize].load(Ordering::Relaxed)
    }

    /// How long the reader waited because the origin had as many requests as it may have, in whole milliseconds.
    pub fn queued(&self) -> Duration {
        Duration::from_millis(self.queued_ms.load(Ordering::Relaxed))
    }

    pub(crate) fn set_queued(&self, queued: Duration) {
        self.queued_ms.store(queued.as_millis().try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn add(&self, supplier: Supplier, bytes: u64) {
        self.bytes[supplier as usize].fetch_add(bytes, Ordering::Relaxed);
    }
}
