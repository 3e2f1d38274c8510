//! How long shuntd waits before it starts a ublk-target again.

use std::time::Duration;

/// The first and the longest delay before ublk-target is started again.
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A connection that lasted at least this long resets the back-off.
const STEADY_AFTER: Duration = Duration::from_secs(1);

/// The delay before ublk-target is started (again).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Backoff {
    pub(super) delay: Duration,
}

impl Backoff {
    pub(super) const fn new() -> Self {
        Self {
            delay: Duration::ZERO,
        }
    }

    pub(super) fn failed(&mut self) {
        self.delay = (self.delay * 2).clamp(BACKOFF_FIRST, BACKOFF_MAX);
    }

    /// Adapts the delay to how long the last connection lasted: no delay if that was long enough.
    pub(super) fn lived(&mut self, life: Duration) {
        if life >= STEADY_AFTER {
            self.delay = Duration::ZERO;
        } else {
            self.failed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_failures_wait_longer_up_to_a_limit() {
        let mut backoff = Backoff::new();
        assert_eq!(backoff.delay, Duration::ZERO);
        let mut delays = Vec::new();
        for _ in 0..9 {
            backoff.failed();
            delays.push(u64::try_from(backoff.delay.as_millis()).unwrap());
        }
        assert_eq!(delays, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        backoff.lived(STEADY_AFTER / 2);
        assert_eq!(backoff.delay, BACKOFF_MAX);
        backoff.lived(STEADY_AFTER);
        assert_eq!(backoff.delay, Duration::ZERO);
    }
}
