//! [`Bag`]: a set of hosts from which some can be drawn at random, at a cost that does not grow with the set.

use crate::host::{ByHost, HostKey};
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};

/// Invariant: `places` gives each of `items` its index.
#[derive(Debug, Default)]
pub(crate) struct Bag {
    items: Vec<HostKey>,
    places: ByHost<usize>,
}

impl Bag {
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    pub(crate) fn contains(&self, host: HostKey) -> bool {
        self.places.contains_key(&host)
    }

    /// Puts the host in or takes it out.
    pub(crate) fn set(&mut self, host: HostKey, is_in: bool) {
        match (self.places.get(&host).copied(), is_in) {
            (None, true) => {
                self.places.insert(host, self.items.len());
                self.items.push(host);
            }
            (Some(place), false) => {
                self.places.remove(&host);
                self.items.swap_remove(place);
                if let Some(moved) = self.items.get(place) {
                    self.places.insert(*moved, place);
                }
            }
            _ => {}
        }
    }

    /// All of them, in no particular order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = HostKey> {
        self.items.iter().copied()
    }

    /// All of them, beginning anywhere.
    pub(crate) fn iter_anywhere(&self, rng: &mut impl Rng) -> impl Iterator<Item = HostKey> {
        let (before, after) =
            self.items.split_at(if self.items.is_empty() { 0 } else { rng.random_range(..self.items.len()) });
        after.iter().chain(before).copied()
    }

    /// Some of them, at most `most`.
    pub(crate) fn some(&self, most: usize, rng: &mut impl Rng) -> Vec<HostKey> {
        if self.items.len() <= most {
            self.items.clone()
        } else {
            self.items.sample(rng, most).copied().collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use std::collections::BTreeSet;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_behaves_like_a_set(changes in prop::collection::vec((0u64..20, any::<bool>()), 0..100), seed in any::<u64>()) {
            let (mut bag, mut model) = (Bag::default(), BTreeSet::new());
            for (host, is_in) in changes {
                let host = HostKey::for_test(host);
                bag.set(host, is_in);
                let _ = if is_in { model.insert(host) } else { model.remove(&host) };
                prop_assert_eq!(bag.contains(host), is_in);
            }
            let mut rng = StdRng::seed_from_u64(seed);
            prop_assert_eq!(bag.iter().collect::<BTreeSet<_>>(), model.clone());
            prop_assert_eq!(bag.len(), model.len());
            prop_assert_eq!(bag.iter_anywhere(&mut rng).collect::<BTreeSet<_>>(), model.clone());
            let some = bag.some(5, &mut rng);
            prop_assert_eq!(some.iter().collect::<BTreeSet<_>>().len(), model.len().min(5));
            prop_assert!(some.iter().all(|host| model.contains(host)));
        }
    }
}
