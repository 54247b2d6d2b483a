//! A body as it is read: no faster than its limits allow, and watched for silence.

use crate::throttle::Way;
use bytes::Bytes;
use futures_util::{FutureExt, Stream, stream};
use http_body::Body;
use http_body_util::BodyExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// The bytes of `body`, in parts as they may pass. Ends with an error: its text says how the body broke off, or that it was
/// silent for longer than `idle`, not counting for how long this host held it back. `None` is the body's own end.
///
/// Nothing more is read from the body while a part of it waits. What waits stays in its place in the line when whoever
/// polls this does something else in between.
pub(crate) fn parts<'a, B: Body<Data = Bytes, Error = hyper::Error> + Unpin>(
    body: B,
    way: &'a Way,
    idle: Duration,
    heard: &'a Heard,
) -> impl Stream<Item = Result<Bytes, String>> + use<'a, B> {
    stream::try_unfold((body, Bytes::new()), move |(mut body, mut held)| async move {
        let part = next_part(&mut body, &mut held, (way, idle, heard)).await?;
        Ok(part.map(|part| (part, (body, held))))
    })
}

/// The next of [`parts`]; `held` is what the body has given and what has not passed yet.
pub(crate) async fn next_part<B: Body<Data = Bytes, Error = hyper::Error> + Unpin>(
    body: &mut B,
    held: &mut Bytes,
    (way, idle, heard): (&Way, Duration, &Heard),
) -> Result<Option<Bytes>, String> {
    while held.is_empty() {
        *held = match tokio::time::timeout(idle, body.frame()).await {
            Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
            Ok(Some(Err(error))) => return Err(describe(&error)),
            Ok(None) => return Ok(None),
            Err(_) => return Err(format!("no byte came for {idle:?}")),
        };
        heard.tell();
    }
    let taking = || way.take(held.len() as u64);
    let taken = match taking().now_or_never() {
        Some(taken) => taken,
        None => {
            let _held = heard.hold();
            taking().await
        }
    };
    let part = held.split_to(usize::try_from(taken.bytes()).unwrap_or(usize::MAX));
    taken.used(part.len() as u64);
    Ok(Some(part))
}

/// hyper's own words are about its code; its cause is about the connection.
fn describe(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("the connection broke off: {cause}"),
        None => "the connection broke off".to_owned(),
    }
}

/// When the last byte of a stream came, and for how long this host has held it back. Read by who watches it, without a
/// message for every part.
#[derive(Debug)]
pub(crate) struct Heard {
    since: Instant,
    /// All in nanoseconds after `since`; 0: nothing has come, or it is not held back.
    last: AtomicU64,
    holding_since: AtomicU64,
    /// In nanoseconds, without what is going on.
    held: AtomicU64,
}

/// A stream is held back until this is dropped.
pub(crate) struct Holding<'a>(&'a Heard);

// === impl Heard ===

impl Default for Heard {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            last: AtomicU64::new(0),
            holding_since: AtomicU64::new(0),
            held: AtomicU64::new(0),
        }
    }
}

impl Heard {
    fn tell(&self) {
        self.last.store(self.after(), Ordering::Relaxed);
    }

    /// From now on it is not the other side's fault that nothing comes. One holds a stream at a time.
    pub(crate) fn hold(&self) -> Holding<'_> {
        self.holding_since.store(self.after(), Ordering::Relaxed);
        Holding(self)
    }

    /// When the last byte came: now, while bytes wait here.
    pub(crate) fn last(&self) -> Option<Instant> {
        if self.holding_since.load(Ordering::Relaxed) > 0 {
            return Some(Instant::now());
        }
        let after = self.last.load(Ordering::Relaxed);
        (after > 0).then(|| self.since + Duration::from_nanos(after))
    }

    /// For how long it was held back, all in all.
    pub(crate) fn held(&self) -> Duration {
        let going_on = match self.holding_since.load(Ordering::Relaxed) {
            0 => 0,
            since => self.after().saturating_sub(since),
        };
        Duration::from_nanos(self.held.load(Ordering::Relaxed) + going_on)
    }

    /// Nanoseconds, at least one.
    fn after(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1)
    }
}

impl Drop for Holding<'_> {
    /// What comes next comes from the other side: its silence begins here.
    fn drop(&mut self) {
        let Self(heard) = self;
        let since = heard.holding_since.swap(0, Ordering::Relaxed);
        heard.held.fetch_add(heard.after().saturating_sub(since), Ordering::Relaxed);
        heard.tell();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    #[tokio::test(start_paused = true)]
    async fn what_is_held_back_here_is_not_silence() {
        let heard = Heard::default();
        assert_eq!(heard.last(), None);
        let second = Duration::from_secs(1);
        advance(second).await;
        heard.tell();
        advance(second).await;
        assert_eq!(heard.last(), Some(Instant::now() - second));
        let holding = heard.hold();
        advance(5 * second).await;
        assert_eq!((heard.last(), heard.held()), (Some(Instant::now()), 5 * second));
        drop(holding);
        advance(second).await;
        assert_eq!((heard.last(), heard.held()), (Some(Instant::now() - second), 5 * second));
        drop(heard.hold());
        let _again = heard.hold();
        advance(second).await;
        assert_eq!(heard.held(), 6 * second);
    }
}
