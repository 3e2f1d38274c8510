//! The limit of the copy rate: a token bucket that may go into debt by one region.
//!
//! The limit delays *claims*, never the copying of a region that is already claimed: application
//! writes to a claimed region may be waiting for its copy, so such a region is copied at full
//! speed.

use std::time::{Duration, Instant};

/// The bucket holds at most the bytes of this time (but at least a region).
const BURST: Duration = Duration::from_millis(100);

/// A changed limit is noticed after this time at the latest.
const CHANGE_NOTICED: Duration = Duration::from_millis(100);

/// The bytes that may be claimed now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Allowance {
    /// There is no limit.
    Unlimited,
    /// At least the beginning of one region: this many bytes, at least 1.
    Bytes(u64),
    /// Nothing before this time; ask again then.
    NotBefore(Instant),
}

/// The token bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bucket {
    region_bytes: i64,
    /// Negative: debt.
    tokens_bytes: i64,
    filled_at: Instant,
}

impl Bucket {
    /// A bucket that lets one region through immediately.
    pub(super) fn new(region_bytes: u64, now: Instant) -> Self {
        Self {
            region_bytes: signed(region_bytes),
            tokens_bytes: 1,
            filled_at: now,
        }
    }

    /// The bytes that may be claimed at `now` under a limit of `bytes_per_second` (0 = unlimited).
    pub(super) fn allowance(&mut self, now: Instant, bytes_per_second: u64) -> Allowance {
        if bytes_per_second == 0 {
            // Neither debt nor savings outlive a time without a limit.
            self.tokens_bytes = 1;
            self.filled_at = now;
            return Allowance::Unlimited;
        }
        self.fill(now, bytes_per_second);
        if self.tokens_bytes > 0 {
            return Allowance::Bytes(self.tokens_bytes.unsigned_abs());
        }
        let missing_bytes = self.tokens_bytes.unsigned_abs() + 1;
        let nanoseconds =
            (u128::from(missing_bytes) * 1_000_000_000).div_ceil(u128::from(bytes_per_second));
        let wait = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        Allowance::NotBefore(now + wait.min(CHANGE_NOTICED))
    }

    /// Removes the granted bytes from the bucket.
    pub(super) fn take(&mut self, bytes: u64) {
        self.tokens_bytes = self.tokens_bytes.saturating_sub(signed(bytes));
    }

    fn fill(&mut self, now: Instant, bytes_per_second: u64) {
        let elapsed = now.saturating_duration_since(self.filled_at);
        let added = elapsed.as_nanos() * u128::from(bytes_per_second) / 1_000_000_000;
        if added == 0 {
            // The fraction of a byte is not lost: `filled_at` stays, so that the time counts later.
            return;
        }
        let burst = u128::from(bytes_per_second) * BURST.as_millis() / 1_000;
        let burst = i64::try_from(burst)
            .unwrap_or(i64::MAX)
            .max(self.region_bytes);
        // A debt made under a higher limit must not stop the copy for long under a lower one.
        self.tokens_bytes = self
            .tokens_bytes
            .max(-self.region_bytes)
            .saturating_add(i64::try_from(added).unwrap_or(i64::MAX))
            .min(burst);
        self.filled_at = now;
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGION: u64 = 1 << 20;

    /// Claims whole regions whenever it is allowed for `seconds`, and returns the bytes claimed.
    fn claim_for(seconds: u64, bytes_per_second: u64) -> u64 {
        let start = Instant::now();
        let mut bucket = Bucket::new(REGION, start);
        let mut now = start;
        let mut claimed = 0;
        while now < start + Duration::from_secs(seconds) {
            match bucket.allowance(now, bytes_per_second) {
                Allowance::Unlimited => panic!("there is a limit"),
                Allowance::Bytes(bytes) => {
                    let regions = bytes.div_ceil(REGION);
                    bucket.take(regions * REGION);
                    claimed += regions * REGION;
                }
                Allowance::NotBefore(at) => {
                    assert!(at > now && at <= now + CHANGE_NOTICED);
                    now = at;
                }
            }
        }
        claimed
    }

    #[test]
    fn the_rate_is_kept_below_and_above_one_region_a_second() {
        for rate in [100_000, REGION, 10 * REGION + 7, 3 << 30] {
            let claimed = claim_for(60, rate);
            assert!(
                claimed.abs_diff(60 * rate) <= 2 * REGION,
                "{claimed} at {rate}"
            );
        }
    }

    #[test]
    fn a_debt_under_a_high_limit_is_forgiven_down_to_one_region() {
        let start = Instant::now();
        let mut bucket = Bucket::new(REGION, start);
        bucket.take(1 << 40);
        let later = start + Duration::from_millis(1100);
        assert_eq!(
            bucket.allowance(later, REGION),
            Allowance::Bytes(REGION / 10)
        );
    }

    #[test]
    fn no_savings_are_made_while_unlimited() {
        let start = Instant::now();
        let mut bucket = Bucket::new(REGION, start);
        let later = start + Duration::from_secs(3600);
        assert_eq!(bucket.allowance(later, 0), Allowance::Unlimited);
        assert_eq!(bucket.allowance(later, REGION), Allowance::Bytes(1));
    }
}
