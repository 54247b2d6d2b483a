//! [`Cuts`]: what ends the connections of a member when that one is expelled.
//!
//! A member is here from its first connection to the end of its last one, or until it is expelled. An operator's certificate lives
//! for a command; a host that has gone does not come back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_util::sync::CancellationToken;

/// The connections that are there, by the key of who is at the other end. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cuts(Arc<Mutex<HashMap<String, Open>>>);

/// What is open with a member.
#[derive(Debug, Default)]
struct Open {
    connections: usize,
    end: CancellationToken,
}

/// One connection's part of it.
#[derive(Debug)]
pub(crate) struct Cut {
    key: String,
    end: CancellationToken,
    all: Cuts,
}

impl Cuts {
    /// For one more connection with this member; `None`, if `expelled` says that it was, a moment ago.
    pub(crate) fn open(&self, key: &str, expelled: impl FnOnce() -> bool) -> Option<Cut> {
        let mut all = self.lock();
        // Asked under the lock: whoever expels it afterwards finds the connection.
        if expelled() {
            return None;
        }
        let open = all.entry(key.to_owned()).or_default();
        open.connections += 1;
        Some(Cut { key: key.to_owned(), end: open.end.clone(), all: self.clone() })
    }

    /// Ends what is open with this member.
    pub(crate) fn cut(&self, key: &str) {
        let mut all = self.lock();
        if let Some(open) = all.remove(key) {
            open.end.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cut {
    /// When the member is expelled.
    pub(crate) async fn ended(&self) {
        self.end.cancelled().await;
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        // Who was cut is not there any more, and what is there by this key by now is somebody else's.
        let ended = self.end.is_cancelled();
        let Some(open) = all.get_mut(&self.key).filter(|_| !ended) else { return };
        open.connections -= 1;
        if open.connections == 0 {
            all.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    fn open(cuts: &Cuts) -> Cut {
        cuts.open("operator", || false).unwrap()
    }

    #[test]
    fn with_the_last_connection_nothing_is_left() {
        let cuts = Cuts::default();
        let (first, second) = (open(&cuts), open(&cuts));
        drop(first);
        assert_eq!(cuts.lock().len(), 1);
        assert!(second.ended().now_or_never().is_none());
        drop(second);
        assert!(cuts.lock().is_empty());
    }

    #[test]
    fn who_is_expelled_loses_all_of_them_and_what_comes_later_is_its_own() {
        let cuts = Cuts::default();
        let (first, second) = (open(&cuts), open(&cuts));
        cuts.cut("operator");
        assert!([&first, &second].iter().all(|cut| cut.ended().now_or_never().is_some()));
        assert!(cuts.open("operator", || true).is_none());
        // The statement has ended.
        let later = open(&cuts);
        drop((first, second));
        assert_eq!(cuts.lock().len(), 1);
        assert!(later.ended().now_or_never().is_none());
        cuts.cut("operator");
        assert!(later.ended().now_or_never().is_some());
    }
}
