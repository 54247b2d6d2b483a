//! [`Bag`]: hosts from which some can be drawn at random, at a cost that does not grow with their number.

use crate::host::HostKey;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};

/// Hosts in no particular order. Whether one is in the bag its owner knows without searching: it keeps that with the
/// host. So a bag of one host, and there are millions of them, is eight bytes on the heap.
#[derive(Debug, Default)]
pub(crate) struct Bag(Vec<HostKey>);

impl Bag {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Puts in a host that is not in.
    pub(crate) fn insert(&mut self, host: HostKey) {
        self.0.push(host);
    }

    /// Takes a host out. It is searched for, which takes two microseconds among ten thousand.
    pub(crate) fn remove(&mut self, host: HostKey) {
        if let Some(place) = self.0.iter().position(|listed| *listed == host) {
            self.0.swap_remove(place);
        }
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = HostKey> {
        self.0.iter().copied()
    }

    /// All of them, beginning anywhere.
    pub(crate) fn iter_anywhere(&self, rng: &mut impl Rng) -> impl Iterator<Item = HostKey> {
        let start = if self.0.is_empty() { 0 } else { rng.random_range(..self.0.len()) };
        let (before, after) = self.0.split_at(start);
        after.iter().chain(before).copied()
    }

    /// Some of them, at most `most`.
    pub(crate) fn some(&self, most: usize, rng: &mut impl Rng) -> Vec<HostKey> {
        if self.0.len() <= most { self.0.clone() } else { self.0.sample(rng, most).copied().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use std::collections::BTreeSet;

    #[test]
    fn what_is_drawn_is_in_it_and_each_once() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut bag = Bag::default();
        assert_eq!((bag.some(3, &mut rng), bag.iter_anywhere(&mut rng).next()), (vec![], None));
        (0..50).for_each(|host| bag.insert(HostKey::for_test(host)));
        (0..20).for_each(|host| bag.remove(HostKey::for_test(host)));
        bag.remove(HostKey::for_test(99));
        let left: BTreeSet<_> = (20..50).map(HostKey::for_test).collect();
        assert_eq!(bag.len(), 30);
        for drawn in [bag.some(50, &mut rng), bag.iter().collect(), bag.iter_anywhere(&mut rng).collect()] {
            assert_eq!((drawn.len(), drawn.into_iter().collect()), (30, left.clone()));
        }
        let some: BTreeSet<_> = bag.some(10, &mut rng).into_iter().collect();
        assert!(some.len() == 10 && some.is_subset(&left));
    }
}
