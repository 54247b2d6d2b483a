//! [`Way`]: the limits that a byte passes, one after the other.

use super::line::Throttle;
use std::sync::Arc;
use tokio::sync::watch;

/// The limits on one way, the narrowest first: whoever waits at a wide one must not wait for its own narrow one afterwards,
/// when others could have used what was kept for it. So the widest holds to the byte, and a narrower one to what is
/// under way between the two: a chunk for each stream.
pub(crate) struct Way {
    prefetch: Option<Prefetch>,
    throttles: Vec<Arc<Throttle>>,
}

/// What holds back bytes for which nobody waits.
struct Prefetch {
    throttle: Arc<Throttle>,
    /// Whether some reader of the task lacks something.
    lacking: watch::Receiver<bool>,
}

/// Bytes that may pass. What is not [used](Self::used) is given back when this is dropped.
pub(crate) struct Taken<'a> {
    bytes: u64,
    from: Vec<&'a Throttle>,
}

// === impl Way ===

impl Way {
    pub(super) fn through(throttles: impl IntoIterator<Item = Arc<Throttle>>) -> Self {
        Self { prefetch: None, throttles: throttles.into_iter().collect() }
    }

    /// As long as no reader lacks anything, `throttle` is passed as well.
    pub(super) fn prefetching(self, throttle: Arc<Throttle>, lacking: watch::Receiver<bool>) -> Self {
        Self { prefetch: Some(Prefetch { throttle, lacking }), ..self }
    }

    /// Waits until some of `most` bytes may pass, at least one.
    ///
    /// # Cancel safety
    /// What was taken at one limit while the next one was waited for is given back.
    pub(crate) async fn take(&self, most: u64) -> Taken<'_> {
        let chunks = self.throttles.iter().filter_map(|throttle| Some(throttle.rate()?.chunk()));
        let mut taken = Taken { bytes: chunks.fold(most, u64::min), from: Vec::new() };
        if let Some(Prefetch { throttle, lacking }) = &self.prefetch {
            let mut lacking = lacking.clone();
            tokio::select! {
                biased;
                // A reader must not wait for the end of this: what is held back here has the places that its pieces need.
                _ = lacking.wait_for(|lacking| *lacking) => {}
                bytes = throttle.take(taken.bytes) => taken.add(throttle, bytes),
            }
        }
        for throttle in &self.throttles {
            let bytes = throttle.take(taken.bytes).await;
            taken.add(throttle, bytes);
        }
        taken
    }
}

// === impl Taken ===

impl<'a> Taken<'a> {
    /// How many.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// `bytes` of them have passed; the rest is given back.
    pub(crate) fn used(mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    fn add(&mut self, throttle: &'a Throttle, bytes: Option<u64>) {
        let Some(bytes) = bytes else { return };
        // Fewer than were asked for: its rate is another since it was looked at.
        self.give_back(self.bytes - bytes);
        self.bytes = bytes;
        self.from.push(throttle);
    }

    fn give_back(&self, bytes: u64) {
        if bytes > 0 {
            self.from.iter().for_each(|throttle| throttle.give_back(bytes));
        }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}
