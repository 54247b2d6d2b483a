//! [`Line`]: the connections of HTTP/2 that are idle, the longest idle first.
//!
//! One keeps 46 KB, of which 28 are buffers of a fixed size in the library that speaks it: its frames are read into 8 KiB and
//! written from 16, its headers decoded in 4, and neither h2 nor hyper lets one choose, shrink or take them back. Nor can
//! such a connection come to rest as one of HTTP/1.1 does ([`rest`](crate::rest)), because what both sides remember of it
//! (header tables, windows, the numbers of streams) stays inside that library. But a server may say at any time that it
//! takes nothing further (GOAWAY, RFC 9113 section 6.8), and a client then makes a new connection for its next request, and
//! asks again for what crossed on its way: all that it loses is a handshake. So only so many are kept. When one more comes to
//! be idle, the one that is idle longest is told to go.
//!
//! It leaves when its client has heard of it. Until then it takes as much memory, so those that leave stand in a line of
//! their own: when that is too long, the first is closed, whether or not its client has taken the end of its last answer.
//!
//! Invariant: no more than `most` stand in it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// Connections that may stand in it. Clones are the same line.
#[derive(Clone)]
pub(crate) struct Line(Arc<Mutex<Standing>>);

struct Standing {
    most: usize,
    /// The number of who joins next.
    next: u64,
    /// By its number who it is that has to go; in the order in which they joined.
    places: BTreeMap<u64, oneshot::Sender<()>>,
}

/// Where one stands. It leaves when this is dropped.
pub(crate) struct Place {
    line: Line,
    number: u64,
    crowded: oneshot::Receiver<()>,
}

// === impl Line ===

impl Line {
    /// One for as many.
    pub(crate) fn new(most: usize) -> Self {
        Self(Arc::new(Mutex::new(Standing { most, next: 0, places: BTreeMap::new() })))
    }

    /// So many from now on. Of those who stand in it, the first have to go.
    pub(crate) fn resize(&self, most: usize) {
        let mut standing = self.standing();
        standing.most = most;
        standing.shorten();
    }

    /// Joins at the end. Where there are too many then, the first has to go, which may be the one that joins.
    pub(crate) fn join(&self) -> Place {
        let (tell, crowded) = oneshot::channel();
        let mut standing = self.standing();
        let number = standing.next;
        standing.next += 1;
        standing.places.insert(number, tell);
        standing.shorten();
        Place { line: self.clone(), number, crowded }
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Standing {
    fn shorten(&mut self) {
        while self.places.len() > self.most {
            let Some((_, first)) = self.places.pop_first() else { return };
            // It may be about to leave by itself.
            let _ = first.send(());
        }
    }
}

// === impl Place ===

impl Place {
    /// Resolves when there are too many, and this is the first.
    ///
    /// # Cancel safety
    /// It resolves when it is asked again.
    pub(crate) async fn crowded_out(&mut self) {
        // The sender is not dropped before it has spoken, unless this is.
        let _ = (&mut self.crowded).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.line.standing().places.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    fn has_to_go(place: &mut Place) -> bool {
        place.crowded_out().now_or_never().is_some()
    }

    #[test]
    fn who_stands_longest_has_to_go_when_there_are_too_many() {
        let line = Line::new(2);
        let (mut first, mut second) = (line.join(), line.join());
        assert!(!has_to_go(&mut first) && !has_to_go(&mut second));
        let mut third = line.join();
        assert!(has_to_go(&mut first) && !has_to_go(&mut second) && !has_to_go(&mut third));
        // Its place is not taken from another when it goes.
        drop(first);
        assert!(!has_to_go(&mut second));
        // Who leaves by itself makes room.
        drop(second);
        let mut fourth = line.join();
        assert!(!has_to_go(&mut third) && !has_to_go(&mut fourth));
        assert_eq!(line.standing().places.len(), 2);
        drop((third, fourth));
        assert!(line.standing().places.is_empty());
    }

    #[test]
    fn a_shorter_line_is_short_at_once() {
        let line = Line::new(3);
        let mut places = [line.join(), line.join(), line.join()];
        line.resize(1);
        let gone = places.each_mut().map(has_to_go);
        assert_eq!(gone, [true, true, false]);
        line.resize(0);
        assert!(has_to_go(&mut places[2]) && has_to_go(&mut line.join()));
    }
}
