//! [`Crowd`]: how many of something there are at a time, of all users together and of each of them: who is one of many does
//! not take it from the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Beyond all others so many are root's and the daemon's own user's, so that they can look at what goes on.
const SPARE: usize = 16;

/// Clones are the same crowd.
#[derive(Debug, Clone)]
pub(super) struct Crowd {
    all: usize,
    each: usize,
    there: Arc<Mutex<There>>,
}

#[derive(Debug, Default)]
struct There {
    all: usize,
    of: HashMap<u32, usize>,
}

/// One of them, until this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    crowd: Crowd,
    uid: u32,
}

impl Crowd {
    /// At most `all`, and of one user at most `each`.
    pub(super) fn new(all: usize, each: usize) -> Self {
        Self { all, each, there: Arc::default() }
    }

    /// One more for a user; `None` when there are too many.
    pub(super) fn join(&self, uid: u32) -> Option<Place> {
        let mut there = self.there();
        let own = there.of.get(&uid).copied().unwrap_or_default();
        let spare = if super::may_all(uid) { SPARE } else { 0 };
        if own >= self.each || there.all >= self.all + spare {
            return None;
        }
        there.all += 1;
        there.of.insert(uid, own + 1);
        Some(Place { crowd: self.clone(), uid })
    }

    /// As many as there can be.
    pub(super) fn most(&self) -> usize {
        self.all + SPARE
    }

    fn there(&self) -> MutexGuard<'_, There> {
        // Nothing panics while it is held.
        self.there.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut there = self.crowd.there();
        there.all -= 1;
        if let Some(own) = there.of.get_mut(&self.uid) {
            *own -= 1;
            if *own == 0 {
                there.of.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_all_places_and_root_finds_one_when_all_are_taken() {
        let own = rustix::process::geteuid().as_raw();
        let (alice, bob, carol) = (own + 1001, own + 1002, own + 1003);
        let crowd = Crowd::new(5, 3);
        let of_alice: Vec<_> = (0..3).map(|_| crowd.join(alice).unwrap()).collect();
        assert!(crowd.join(alice).is_none(), "she has as many as one may have");
        let _of_bob = [crowd.join(bob).unwrap(), crowd.join(bob).unwrap()];
        assert!(crowd.join(carol).is_none(), "there are as many as there may be");
        assert!(crowd.join(0).is_some() && crowd.join(own).is_some());
        drop(of_alice);
        assert!(crowd.join(alice).is_some() && crowd.join(carol).is_some());
        assert_eq!(crowd.there().of.len(), 1, "who has none is forgotten");
    }
}
