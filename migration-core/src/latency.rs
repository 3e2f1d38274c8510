//! A histogram of request durations. It has 32 buckets for each power of two of a microsecond, so
//! that a quantile is right within a thirtieth. Counting is one addition. The difference between
//! two states of one histogram is what was counted in between.

/// The number of buckets for each power of two.
const STEPS: u64 = 32;
const STEPS_LOG2: u32 = STEPS.trailing_zeros();
/// Durations up to 2^30 microseconds, which is more than 17 minutes; a longer one goes into the
/// last bucket.
const OCTAVES: u64 = 30;
const BUCKETS: usize = (STEPS * (OCTAVES - STEPS_LOG2 as u64 + 1)) as usize;

/// A histogram of durations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; BUCKETS],
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: [0; BUCKETS],
        }
    }
}

impl Histogram {
    /// Counts a request that took `nanoseconds`.
    pub fn note(&mut self, nanoseconds: u64) {
        self.counts[bucket(nanoseconds / 1000)] += 1;
    }

    /// The counts of the buckets, without the empty ones at the end.
    #[must_use]
    pub fn counts(&self) -> &[u64] {
        let used = self.counts.iter().rposition(|count| *count > 0);
        &self.counts[..used.map_or(0, |last| last + 1)]
    }

    /// The histogram with these counts; counts beyond the last bucket go into the last bucket.
    #[must_use]
    pub fn from_counts(counts: &[u64]) -> Self {
        let mut histogram = Self::default();
        for (index, count) in counts.iter().enumerate() {
            histogram.counts[index.min(BUCKETS - 1)] += count;
        }
        histogram
    }

    /// What was counted after `before`; everything, if `before` is not an earlier state of this
    /// histogram.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let pairs = || self.counts.iter().zip(&before.counts);
        let mut difference = self.clone();
        if pairs().all(|(now, then)| now >= then) {
            for (count, then) in difference.counts.iter_mut().zip(&before.counts) {
                *count -= then;
            }
        }
        difference
    }

    /// The number of requests that were counted.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The duration, in nanoseconds, that `of_thousand` of a thousand requests did not exceed,
    /// rounded up to the end of a bucket. `None` if nothing was counted.
    #[must_use]
    pub fn quantile(&self, of_thousand: u64) -> Option<u64> {
        let total = self.total();
        let wanted = (total * of_thousand.min(1000)).div_ceil(1000).max(1);
        let mut seen = 0;
        let index = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        })?;
        Some(end(index) * 1000)
    }

    /// The sum of both histograms.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        let mut sum = self.clone();
        for (count, more) in sum.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        sum
    }
}

fn bucket(microseconds: u64) -> usize {
    if microseconds < STEPS {
        return microseconds as usize;
    }
    let octave = microseconds.ilog2() - STEPS_LOG2;
    let step = (microseconds >> octave) - STEPS;
    let index = (u64::from(octave) + 1) * STEPS + step;
    (index as usize).min(BUCKETS - 1)
}

/// The first value beyond a bucket, in microseconds.
fn end(index: usize) -> u64 {
    let index = index as u64;
    if index < STEPS {
        return index + 1;
    }
    let octave = index / STEPS - 1;
    (STEPS + index % STEPS + 1) << octave
}

/// The histograms of reads and writes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Latencies {
    /// Durations of reads.
    pub reads: Histogram,
    /// Durations of writes.
    pub writes: Histogram,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_is_in_a_bucket_that_is_narrow() {
        let mut last = 0;
        for microseconds in (0..5000).chain((13..36).map(|shift| (1_u64 << shift) + 77)) {
            let index = bucket(microseconds);
            assert!(index >= last, "{microseconds}");
            last = index;
            if index < BUCKETS - 1 {
                assert!(end(index) > microseconds, "{microseconds}");
                let width = end(index) - index.checked_sub(1).map_or(0, end);
                assert!(
                    width == 1 || width * STEPS <= microseconds,
                    "{microseconds}"
                );
            }
        }
        assert_eq!(last, BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_those_of_what_was_counted_in_between() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(500), None);
        for milliseconds in 1..=100 {
            histogram.note(milliseconds * 1_000_000);
        }
        let before = Histogram::from_counts(histogram.counts());
        assert_eq!(before, histogram);
        let within = |found: Option<u64>, milliseconds: u64| {
            let (found, exact) = (found.unwrap(), milliseconds * 1_000_000);
            assert!(
                found >= exact && found <= exact + exact / 32 + 1000,
                "{found}"
            );
        };
        within(histogram.quantile(500), 50);
        within(histogram.quantile(990), 99);
        within(histogram.quantile(1000), 100);
        histogram.note(7_000_000_000);
        let between = histogram.since(&before);
        assert_eq!(between.total(), 1);
        within(between.quantile(500), 7000);
        // The histogram was started again, so everything counts.
        assert_eq!(before.since(&histogram), before);
        assert_eq!(before.with(&between), histogram);
    }

    #[test]
    fn what_takes_for_ever_is_counted_too() {
        let mut histogram = Histogram::default();
        histogram.note(u64::MAX);
        assert_eq!(histogram.counts().len(), BUCKETS);
        assert!(histogram.quantile(1).unwrap() > 1_000_000_000_000);
    }
}
