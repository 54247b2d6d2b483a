//! [`Bag`]: hosts from which some can be drawn at random, at a cost that does not grow with their number.

use crate::host::{ByHost, HostKey};
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};

/// Hosts in no particular order. Whether one is in the bag its owner knows without searching: it keeps that with the
/// host. So a bag of one host, and there are millions of them, is eight bytes on the heap.
#[derive(Debug, Default)]
pub(crate) struct Bag {
    hosts: Vec<HostKey>,
    /// Where each of them stands; not for few, which are searched sooner than looked up.
    places: Option<Box<ByHost<u32>>>,
}

/// With more hosts than these it is known where each stands. Among ten thousand a search takes two to ten microseconds, and in
/// a crowd nobody does anything else as often.
const SEARCHED: usize = 64;

impl Bag {
    pub(crate) fn len(&self) -> usize {
        self.hosts.len()
    }

    /// Puts in a host that is not in.
    pub(crate) fn insert(&mut self, host: HostKey) {
        self.hosts.push(host);
        match &mut self.places {
            Some(places) => drop(places.insert(host, self.hosts.len() as u32 - 1)),
            None if self.hosts.len() > SEARCHED => {
                let places = self.hosts.iter().zip(0..).map(|(host, place)| (*host, place));
                self.places = Some(Box::new(places.collect()));
            }
            None => {}
        }
    }

    /// Takes a host out, if it is in.
    pub(crate) fn remove(&mut self, host: HostKey) {
        let place = match &mut self.places {
            Some(places) => places.remove(&host).map(|place| place as usize),
            None => self.hosts.iter().position(|listed| *listed == host),
        };
        let Some(place) = place else { return };
        self.hosts.swap_remove(place);
        if self.hosts.len() <= SEARCHED / 2 {
            // At half, so that one who comes and goes does not have it built each time.
            self.places = None;
        }
        if let (Some(places), Some(moved)) = (&mut self.places, self.hosts.get(place)) {
            places.insert(*moved, place as u32);
        }
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = HostKey> {
        self.hosts.iter().copied()
    }

    /// All of them, beginning anywhere.
    pub(crate) fn iter_anywhere(&self, rng: &mut impl Rng) -> impl Iterator<Item = HostKey> {
        let start = if self.hosts.is_empty() { 0 } else { rng.random_range(..self.hosts.len()) };
        let (before, after) = self.hosts.split_at(start);
        after.iter().chain(before).copied()
    }

    /// Some of them, at most `most`.
    pub(crate) fn some(&self, most: usize, rng: &mut impl Rng) -> Vec<HostKey> {
        if self.hosts.len() <= most {
            self.hosts.clone()
        } else {
            self.hosts.sample(rng, most).copied().collect()
        }
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

    #[test]
    fn many_come_and_go_and_each_is_found() {
        let mut rng = StdRng::seed_from_u64(1);
        let (mut bag, mut model) = (Bag::default(), BTreeSet::new());
        for _ in 0..20_000 {
            let host = HostKey::for_test(rng.random_range(..300_u64));
            // More come for a while, then more go: it crosses the number from which it keeps their places, both ways.
            let comes = rng.random_range(..400_usize) > model.len();
            match (comes, model.contains(&host)) {
                (true, false) => {
                    bag.insert(host);
                    model.insert(host);
                }
                (false, true) => {
                    bag.remove(host);
                    model.remove(&host);
                }
                (true, true) => {}
                (false, false) => bag.remove(host),
            }
            if rng.random_ratio(1, 1_000) {
                model.iter().skip(SEARCHED / 4).for_each(|host| bag.remove(*host));
                model = model.into_iter().take(SEARCHED / 4).collect();
            }
            assert_eq!(bag.len(), model.len());
        }
        assert_eq!(bag.iter().collect::<BTreeSet<_>>(), model);
    }
}
