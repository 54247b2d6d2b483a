//! [`BlockSet`]: a set of blocks of one task, as the runs that it consists of.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of blocks, or of any numbers that come in runs. It takes memory by the number of its runs.
///
/// Invariant: no run is empty, and between two runs there is a gap.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BlockSet {
    /// By the first of each run, the one after its last.
    runs: BTreeMap<u32, u32>,
}

impl BlockSet {
    /// Puts all of `blocks` in.
    pub fn insert(&mut self, blocks: Range<u32>) {
        if blocks.is_empty() {
            return;
        }
        let Range { mut start, mut end } = blocks;
        // Those that it touches become one with it.
        while let Some((before, until)) = self.runs.range(..=end).next_back().map(|(a, b)| (*a, *b))
            && until >= start
        {
            self.runs.remove(&before);
            (start, end) = (start.min(before), end.max(until));
        }
        self.runs.insert(start, end);
    }

    /// Takes all of `blocks` out.
    pub fn remove(&mut self, blocks: Range<u32>) {
        if blocks.is_empty() {
            return;
        }
        while let Some((start, end)) = self.runs.range(..blocks.end).next_back().map(|(a, b)| (*a, *b))
            && end > blocks.start
        {
            self.runs.remove(&start);
            if end > blocks.end {
                self.runs.insert(blocks.end, end);
            }
            if start < blocks.start {
                self.runs.insert(start, blocks.start);
            }
        }
    }

    /// Whether `block` is in the set.
    pub fn contains(&self, block: u32) -> bool {
        self.end_from(block) > block
    }

    /// Whether all of `blocks` are in the set.
    pub fn contains_all(&self, blocks: &Range<u32>) -> bool {
        blocks.is_empty() || self.end_from(blocks.start) >= blocks.end
    }

    /// The first block from `block` on that is not in the set.
    pub fn end_from(&self, block: u32) -> u32 {
        self.runs.range(..=block).next_back().map_or(block, |(_, end)| block.max(*end))
    }

    /// The first block of the set from `block` on.
    pub fn next_from(&self, block: u32) -> Option<u32> {
        if self.contains(block) {
            Some(block)
        } else {
            self.runs.range(block..).next().map(|(start, _)| *start)
        }
    }

    /// The last block of the set before `block`.
    pub fn last_before(&self, block: u32) -> Option<u32> {
        self.runs.range(..block).next_back().map(|(_, end)| block.min(*end) - 1)
    }

    /// Whether no block is in the set.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The runs, in order.
    pub fn runs(&self) -> impl Iterator<Item = Range<u32>> + '_ {
        self.runs.iter().map(|(start, end)| *start..*end)
    }

    /// The parts of `blocks` that are in the set, in order.
    pub fn within(&self, blocks: Range<u32>) -> impl Iterator<Item = Range<u32>> + '_ {
        let mut at = blocks.start;
        std::iter::from_fn(move || {
            let start = self.next_from(at).filter(|start| *start < blocks.end)?;
            at = self.end_from(start).min(blocks.end);
            Some(start..at)
        })
    }
}

impl Extend<Range<u32>> for BlockSet {
    fn extend<I: IntoIterator<Item = Range<u32>>>(&mut self, runs: I) {
        runs.into_iter().for_each(|run| self.insert(run));
    }
}

impl FromIterator<Range<u32>> for BlockSet {
    fn from_iter<I: IntoIterator<Item = Range<u32>>>(runs: I) -> Self {
        let mut set = Self::default();
        set.extend(runs);
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_behaves_like_a_set(ops in prop::collection::vec((0u32..60, 0u32..12, any::<bool>()), 0..60)) {
            let (mut set, mut model) = (BlockSet::default(), BTreeSet::new());
            for (start, length, insert) in ops {
                let blocks = start..start + length;
                if insert {
                    set.insert(blocks.clone());
                    model.extend(blocks.clone());
                } else {
                    set.remove(blocks.clone());
                    model.retain(|block| !blocks.contains(block));
                }
                prop_assert_eq!(set.runs().flatten().collect::<BTreeSet<_>>(), model.clone());
                let ends: Vec<_> = set.runs().map(|run| run.end).collect();
                prop_assert!(set.runs().skip(1).zip(ends).all(|(run, before)| before < run.start));
                prop_assert!(set.runs().all(|run| !run.is_empty()));
                prop_assert_eq!(set.contains_all(&blocks), blocks.clone().all(|block| model.contains(&block)));
                let parts: Vec<u32> = set.within(blocks.clone()).flatten().collect();
                prop_assert_eq!(parts, model.range(blocks).copied().collect::<Vec<_>>());
            }
            for block in 0..75 {
                prop_assert_eq!(set.contains(block), model.contains(&block));
                prop_assert_eq!(set.next_from(block), model.range(block..).next().copied());
                prop_assert_eq!(set.last_before(block), model.range(..block).next_back().copied());
                prop_assert_eq!(set.end_from(block), (block..).find(|block| !model.contains(block)).unwrap());
            }
        }
    }
}
