//! A set of region indexes: one bit each.

use alloc::{vec, vec::Vec};

use crate::units::RegionIndex;

/// A set of indexes below a fixed length.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Bits {
    words: Vec<u64>,
    length: usize,
    count: usize,
}

impl Bits {
    /// An empty set of indexes below `length`, whose words are a multiple of `word_multiple`.
    #[must_use]
    pub fn new(length: usize, word_multiple: usize) -> Self {
        let words = length.div_ceil(64).next_multiple_of(word_multiple.max(1));
        Self {
            words: vec![0; words],
            length,
            count: 0,
        }
    }

    /// The number of members.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    /// The words, lowest index in the lowest bit of the first.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Whether `index` is a member.
    #[must_use]
    pub fn contains(&self, index: RegionIndex) -> bool {
        self.words[index.0 / 64] >> (index.0 % 64) & 1 == 1
    }

    /// Adds `index`; says whether it was missing.
    pub fn insert(&mut self, index: RegionIndex) -> bool {
        debug_assert!(index.0 < self.length);
        let (word, mask) = (&mut self.words[index.0 / 64], 1 << (index.0 % 64));
        let missing = *word & mask == 0;
        *word |= mask;
        self.count += usize::from(missing);
        missing
    }

    /// Removes `index`; says whether it was a member.
    pub fn remove(&mut self, index: RegionIndex) -> bool {
        let (word, mask) = (&mut self.words[index.0 / 64], 1 << (index.0 % 64));
        let present = *word & mask != 0;
        *word &= !mask;
        self.count -= usize::from(present);
        present
    }

    /// Replaces a word; bits beyond the length are dropped.
    pub fn set_word(&mut self, word: usize, value: u64) {
        let bits_left = self.length.saturating_sub(word * 64);
        let kept = if bits_left >= 64 {
            value
        } else {
            value & ((1 << bits_left) - 1)
        };
        self.count -= self.words[word].count_ones() as usize;
        self.count += kept.count_ones() as usize;
        self.words[word] = kept;
    }

    /// Makes every index a member.
    pub fn fill(&mut self) {
        for word in 0..self.words.len() {
            self.set_word(word, u64::MAX);
        }
    }

    /// Removes every member.
    pub fn clear(&mut self) {
        self.words.fill(0);
        self.count = 0;
    }

    /// The first member that is not below `from`.
    #[must_use]
    pub fn next_from(&self, from: usize) -> Option<RegionIndex> {
        if from >= self.length {
            return None;
        }
        let mut word = from / 64;
        let mut rest = self.words[word] & (u64::MAX << (from % 64));
        loop {
            if rest != 0 {
                return Some(RegionIndex(word * 64 + rest.trailing_zeros() as usize));
            }
            word += 1;
            rest = *self.words.get(word)?;
        }
    }

    /// The number of members in `from..to`.
    #[must_use]
    pub fn count_within(&self, from: usize, to: usize) -> usize {
        let to = to.min(self.length);
        if from >= to {
            return 0;
        }
        let (first, last) = (from / 64, (to - 1) / 64);
        let words = self.words[first..=last].iter().enumerate();
        words
            .map(|(index, word)| {
                let mut word = *word;
                if index == 0 {
                    word &= u64::MAX << (from % 64);
                }
                if first + index == last {
                    word &= u64::MAX >> (63 - (to - 1) % 64);
                }
                word.count_ones() as usize
            })
            .sum()
    }

    /// The members, ascending.
    pub fn iter(&self) -> impl Iterator<Item = RegionIndex> + '_ {
        core::iter::successors(self.next_from(0), |last| self.next_from(last.0 + 1))
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_set(length in 1usize..300, operations in prop::collection::vec((any::<bool>(), 0usize..300), 0..200)) {
            let mut bits = Bits::new(length, 3);
            let mut model = BTreeSet::new();
            for (insert, index) in operations {
                let index = index % length;
                if insert {
                    prop_assert_eq!(bits.insert(RegionIndex(index)), model.insert(index));
                } else {
                    prop_assert_eq!(bits.remove(RegionIndex(index)), model.remove(&index));
                }
            }
            prop_assert_eq!(bits.count(), model.len());
            let members: Vec<usize> = bits.iter().map(|r| r.0).collect();
            prop_assert_eq!(members, model.iter().copied().collect::<Vec<_>>());
            for (from, to) in [(0, length), (length / 3, length / 2), (length / 2, length / 2 + 64), (1, 2)] {
                let within = model.range(from.min(to)..to).count();
                prop_assert_eq!(bits.count_within(from, to), within);
            }
            bits.fill();
            prop_assert_eq!(bits.count(), length);
            prop_assert_eq!(bits.iter().count(), length);
        }
    }
}
