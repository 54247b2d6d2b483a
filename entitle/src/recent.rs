//! [`Recent`]: a map that forgets what was not used for longest, in constant time and bounded memory.

use std::collections::HashMap;
use std::hash::Hash;

/// A map in two generations. Entries that are used move to the young one; when that is full, the old one is dropped and
/// the young one grows old. So at least the last `capacity / 2` entries that were used are there, and never more than
/// `capacity`.
#[derive(Debug)]
pub(crate) struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    capacity: usize,
}

impl<K: Eq + Hash, V> Recent<K, V> {
    /// An empty map of at most `capacity` entries.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), capacity }
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        if self.young.len() >= self.capacity / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.old.remove(&key);
        self.young.insert(key, value);
    }

    /// The entry, which thereby counts as used.
    pub(crate) fn get(&mut self, key: &K) -> Option<&V>
    where
        K: Clone,
    {
        if let Some((key, value)) = self.old.remove_entry(key) {
            self.insert(key, value);
        }
        self.young.get(key)
    }

    pub(crate) fn remove(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_last_used_are_there_and_memory_is_bounded(keys in prop::collection::vec(0..40u8, 1..300)) {
            let mut map = Recent::new(16);
            for (at, key) in keys.iter().enumerate() {
                map.insert(*key, at);
                prop_assert!(map.len() <= 16);
            }
            let mut newest: Vec<u8> = Vec::new();
            for key in keys.iter().rev() {
                if !newest.contains(key) {
                    newest.push(*key);
                }
            }
            for key in newest.iter().take(8) {
                let last = keys.iter().rposition(|other| other == key);
                prop_assert_eq!(map.get(key).copied(), last);
            }
        }
    }

    #[test]
    fn what_is_removed_is_gone_from_both_generations() {
        let mut map = Recent::new(4);
        (0..4).for_each(|key| map.insert(key, ()));
        (0..4).for_each(|key| map.remove(&key));
        assert_eq!(map.len(), 0);
    }
}
