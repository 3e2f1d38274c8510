//! Time limits of a session: the hours of the day in which it is copied, and how long the copy may
//! take.
//!
//! No clock and no time zone: times are arguments.

use core::time::Duration;

use crate::pair::Phase;
use crate::units::Time;

/// The number of minutes of a day.
pub const MINUTES_OF_A_DAY: u16 = 24 * 60;

/// A minute of the day in local time, from midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Minute(pub u16);

/// Hours of the day: from a minute of the day to a later one, or over midnight to an earlier one.
/// Two equal minutes mean the whole day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Hours {
    /// The first minute of the hours.
    pub from: Minute,
    /// The first minute after the hours.
    pub to: Minute,
}

impl Hours {
    /// Whether both ends are minutes of a day.
    #[must_use]
    pub fn are_valid(self) -> bool {
        self.from.max(self.to) < Minute(MINUTES_OF_A_DAY)
    }

    /// Whether the hours are the whole day.
    #[must_use]
    pub fn is_always(self) -> bool {
        self.from == self.to
    }

    /// Whether a minute of the day is within the hours.
    #[must_use]
    pub fn contains(self, minute: Minute) -> bool {
        let Self { from, to } = self;
        if from < to {
            from <= minute && minute < to
        } else {
            from <= minute || minute < to || self.is_always()
        }
    }
}

/// How far the first copy of a pair is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FirstCopy {
    /// The phase of the pair.
    pub phase: Phase,
    /// When the copy began, if it did.
    pub begun: Option<Time>,
    /// Whether the pair has been in sync once.
    pub in_sync: bool,
}

/// Whether the first copy of one of the pairs of a session has reached the maximum duration `max`,
/// so that the session is to be paused. `max` is zero if there is no maximum.
#[must_use]
pub fn takes_too_long(
    max: Duration,
    pairs: impl IntoIterator<Item = FirstCopy>,
    now: Time,
) -> bool {
    let max = u64::try_from(max.as_nanos()).unwrap_or(u64::MAX);
    let is_late = |pair: FirstCopy| {
        let copies = !pair.in_sync && !pair.phase.is_ended();
        pair.begun
            .is_some_and(|begun| copies && now.since(begun) >= max)
    };
    max > 0 && pairs.into_iter().any(is_late)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hours(from: u16, to: u16) -> Hours {
        Hours {
            from: Minute(from),
            to: Minute(to),
        }
    }

    #[test]
    fn hours_go_over_midnight_and_equal_ones_are_always() {
        for (hours, within, outside) in [
            (
                hours(22 * 60, 6 * 60),
                &[22 * 60, 23 * 60, 1439, 0, 359][..],
                &[360, 720, 1319][..],
            ),
            (
                hours(8 * 60, 18 * 60),
                &[480, 720, 1079][..],
                &[0, 479, 1080, 1439][..],
            ),
            (hours(0, 1), &[0][..], &[1, 720, 1439][..]),
            (hours(1, 0), &[1, 720, 1439][..], &[0][..]),
            (hours(0, 0), &[0, 720, 1439][..], &[][..]),
            (hours(720, 720), &[0, 719, 720, 1439][..], &[][..]),
        ] {
            for minute in within {
                assert!(hours.contains(Minute(*minute)), "{hours:?} {minute}");
            }
            for minute in outside {
                assert!(!hours.contains(Minute(*minute)), "{hours:?} {minute}");
            }
        }
    }

    #[test]
    fn the_minutes_of_a_day_are_in_the_hours_or_in_the_hours_between() {
        for (from, to) in [(0, 1), (360, 1320), (1439, 0), (1, 1439)] {
            for minute in (0..MINUTES_OF_A_DAY).map(Minute) {
                let (these, others) = (hours(from, to), hours(to, from));
                assert_ne!(
                    these.contains(minute),
                    others.contains(minute),
                    "{minute:?}"
                );
            }
        }
    }

    #[test]
    fn hours_end_with_the_day() {
        assert!(hours(0, 1439).are_valid() && hours(1439, 0).are_valid());
        assert!(!hours(0, 1440).are_valid() && !hours(1440, 0).are_valid());
    }

    #[test]
    fn a_session_takes_too_long_until_it_is_in_sync_only() {
        const SECOND: u64 = 1_000_000_000;
        let copies = FirstCopy {
            phase: Phase::Active,
            begun: Some(Time(SECOND)),
            in_sync: false,
        };
        let in_sync = FirstCopy {
            in_sync: true,
            ..copies
        };
        let waits = FirstCopy {
            phase: Phase::Queued,
            begun: None,
            ..copies
        };
        let ended = FirstCopy {
            phase: Phase::Cancelled,
            ..copies
        };
        for (max_seconds, pairs, late) in [
            (3, &[copies][..], true),
            (3, &[in_sync, copies][..], true),
            (3, &[in_sync, waits, ended][..], false),
            (3, &[][..], false),
            (0, &[copies][..], false),
        ] {
            let max = Duration::from_secs(max_seconds);
            let at = |now| takes_too_long(max, pairs.iter().copied(), Time(now));
            assert!(!at(4 * SECOND - 1), "{max_seconds} {pairs:?}");
            assert_eq!(at(4 * SECOND), late, "{max_seconds} {pairs:?}");
            assert!(!at(0), "a clock that has not begun");
        }
    }
}
