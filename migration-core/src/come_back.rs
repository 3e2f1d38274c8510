//! When a target that kept applications waiting is mirrored onto again.
//!
//! The volume has given the target up, and what the target misses is dirty. After a back-off, and
//! once the target has ended its earlier writes, a probe reads from it. If the target answers, the
//! volume *tracks*: what the target misses is copied while no write waits for it. When little is
//! dirty, writes are mirrored again. The back-off doubles, up to a limit, each time the target
//! stalls again.
//!
//! Times are in nanoseconds. No clock: times are arguments.

use crate::units::Time;

/// The first and the longest back-off after a stall.
const ALONE_FIRST: u64 = 5_000_000_000;
const ALONE_MAX: u64 = 300_000_000_000;
/// A target that did not stall for this long starts with the first back-off again.
const FORGIVEN_AFTER: u64 = 600_000_000_000;
/// Mirroring restarts when no more than this is dirty: one `REST_PART`th of the volume, or
/// `REST_BYTES`, whichever is larger.
const REST_PART: u64 = 64;
const REST_BYTES: u64 = 16 << 20;

/// The current state of a volume and its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StallObservation {
    /// The target was given up because it kept writes waiting, and may be used again.
    pub stalled: bool,
    /// The target was given up for another reason; the operator decides.
    pub failed: bool,
    /// The number of writes to the target that have not ended.
    pub under_way: u32,
    /// Writes go to the source alone, to be copied in passes.
    pub tracks: bool,
    /// The size of all dirty regions, in bytes.
    pub dirty_bytes: u64,
    /// The size of the volume, in bytes.
    pub size_bytes: u64,
}

/// What the caller has to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Read from the target, and report to [`StallRecovery::answered`] whether it answered in time.
    Probe,
    /// Let the volume use its target again, and report to [`StallRecovery::answered`] whether that
    /// succeeded.
    Retry,
    /// Nothing: writes are mirrored again.
    Mirrored,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stage {
    /// The target is in use. `since`: when it came back or was given to the operator; `None`: it
    /// never stalled.
    Well { since: Option<Time> },
    /// The target is not used during the back-off.
    Alone { until: Time },
    /// The target is being probed.
    Probing,
    /// The volume is to track before it uses its target again.
    Turning,
    /// The volume is asked to use its target again.
    Retrying,
    /// What the target misses is being copied.
    CatchingUp,
}

/// How the target of one volume comes back after a stall.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StallRecovery {
    stage: Stage,
    alone: u64,
}

impl Default for StallRecovery {
    fn default() -> Self {
        Self {
            stage: Stage::Well { since: None },
            alone: ALONE_FIRST,
        }
    }
}

impl StallRecovery {
    /// Whether the volume has to track.
    #[must_use]
    pub const fn tracks(&self) -> bool {
        matches!(
            self.stage,
            Stage::Turning | Stage::Retrying | Stage::CatchingUp
        )
    }

    /// Whether the value is as good as a new one: the target never stalled.
    #[must_use]
    pub const fn is_new(&self) -> bool {
        matches!(self.stage, Stage::Well { since: None })
    }

    /// Takes the current state of the volume. Returns what the caller has to do, if anything.
    pub fn observe(&mut self, now: Time, observed: StallObservation) -> Option<Step> {
        match self.stage {
            Stage::Well { since } if observed.stalled => {
                let did_well = since.is_none_or(|since| now.since(since) >= FORGIVEN_AFTER);
                if did_well {
                    self.alone = ALONE_FIRST;
                }
                self.leave_alone(now);
                None
            }
            Stage::Well { .. } | Stage::Probing | Stage::Retrying => None,
            // The operator was faster, or ublk-target was restarted.
            Stage::Alone { .. } | Stage::Turning if !observed.stalled => {
                self.stage = Stage::Well { since: Some(now) };
                None
            }
            Stage::Alone { until } if now >= until && observed.under_way == 0 => {
                self.stage = Stage::Probing;
                Some(Step::Probe)
            }
            Stage::Turning if observed.tracks => {
                self.stage = Stage::Retrying;
                Some(Step::Retry)
            }
            Stage::Alone { .. } | Stage::Turning => None,
            Stage::CatchingUp if observed.stalled => {
                self.leave_alone(now);
                None
            }
            Stage::CatchingUp if observed.failed => {
                self.stage = Stage::Well { since: Some(now) };
                None
            }
            Stage::CatchingUp => {
                let rest = (observed.size_bytes / REST_PART).max(REST_BYTES);
                if observed.dirty_bytes > rest {
                    return None;
                }
                self.stage = Stage::Well { since: Some(now) };
                Some(Step::Mirrored)
            }
        }
    }

    /// Takes the outcome of the last step: whether it went well.
    pub fn answered(&mut self, now: Time, well: bool) {
        match self.stage {
            Stage::Probing if well => self.stage = Stage::Turning,
            Stage::Retrying if well => self.stage = Stage::CatchingUp,
            // No application waits for a probe, so the back-off is not doubled.
            Stage::Probing => {
                self.stage = Stage::Alone {
                    until: now.plus(ALONE_FIRST),
                }
            }
            Stage::Retrying => self.leave_alone(now),
            Stage::Well { .. } | Stage::Alone { .. } | Stage::Turning | Stage::CatchingUp => {}
        }
    }

    fn leave_alone(&mut self, now: Time) {
        self.stage = Stage::Alone {
            until: now.plus(self.alone),
        };
        self.alone = (self.alone * 2).min(ALONE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const SIZE: u64 = 1 << 40;

    const STALLED: StallObservation = StallObservation {
        stalled: true,
        failed: false,
        under_way: 0,
        tracks: false,
        dirty_bytes: SIZE / 2,
        size_bytes: SIZE,
    };
    const TRACKS: StallObservation = StallObservation {
        tracks: true,
        ..STALLED
    };
    const COPIES: StallObservation = StallObservation {
        stalled: false,
        ..TRACKS
    };
    const LITTLE: StallObservation = StallObservation {
        dirty_bytes: SIZE / REST_PART,
        ..COPIES
    };

    fn at(seconds: u64) -> Time {
        Time(seconds * SECOND)
    }

    /// Drives `come_back` until the target has caught up.
    fn back(come_back: &mut StallRecovery, seconds: u64) {
        assert_eq!(come_back.observe(at(seconds), STALLED), Some(Step::Probe));
        come_back.answered(at(seconds), true);
        assert_eq!(come_back.observe(at(seconds), STALLED), None);
        assert!(come_back.tracks());
        assert_eq!(come_back.observe(at(seconds), TRACKS), Some(Step::Retry));
        assert_eq!(
            come_back.observe(at(seconds), COPIES),
            None,
            "the success is not reported yet"
        );
        come_back.answered(at(seconds), true);
        assert_eq!(come_back.observe(at(seconds), COPIES), None);
        assert!(come_back.tracks());
        assert_eq!(come_back.observe(at(seconds), LITTLE), Some(Step::Mirrored));
        assert!(!come_back.tracks());
    }

    #[test]
    fn what_it_misses_is_copied_before_writes_wait_for_it_again() {
        let mut come_back = StallRecovery::default();
        assert_eq!(come_back.observe(at(0), COPIES), None);
        assert!(come_back.is_new());
        assert_eq!(come_back.observe(at(1), STALLED), None);
        assert!(!come_back.tracks() && !come_back.is_new());
        assert_eq!(come_back.observe(at(5), STALLED), None);
        let busy = StallObservation {
            under_way: 1,
            ..STALLED
        };
        assert_eq!(
            come_back.observe(at(100), busy),
            None,
            "a write to the target has not ended"
        );
        back(&mut come_back, 100);
        assert_eq!(come_back.observe(at(101), LITTLE), None);
    }

    #[test]
    fn one_that_stalls_again_is_left_alone_for_longer() {
        let mut come_back = StallRecovery::default();
        let mut now = 0;
        for alone in [5, 10, 20, 40, 80, 160, 300, 300] {
            assert_eq!(come_back.observe(at(now), STALLED), None);
            assert_eq!(come_back.observe(at(now + alone - 1), STALLED), None);
            now += alone;
            back(&mut come_back, now);
            now += 1;
        }
        now += 600;
        assert_eq!(come_back.observe(at(now), STALLED), None);
        assert_eq!(come_back.observe(at(now + 4), STALLED), None);
        assert_eq!(come_back.observe(at(now + 5), STALLED), Some(Step::Probe));
        // The target does not answer; then it does, but the volume does not accept it; then it
        // stalls while it catches up.
        come_back.answered(at(now + 6), false);
        assert_eq!(come_back.observe(at(now + 10), STALLED), None);
        assert_eq!(come_back.observe(at(now + 11), STALLED), Some(Step::Probe));
        come_back.answered(at(now + 11), true);
        assert_eq!(come_back.observe(at(now + 11), TRACKS), Some(Step::Retry));
        come_back.answered(at(now + 11), false);
        assert!(!come_back.tracks());
        assert_eq!(come_back.observe(at(now + 20), STALLED), None);
        assert_eq!(come_back.observe(at(now + 21), STALLED), Some(Step::Probe));
        come_back.answered(at(now + 21), true);
        assert_eq!(come_back.observe(at(now + 21), TRACKS), Some(Step::Retry));
        come_back.answered(at(now + 21), true);
        assert_eq!(come_back.observe(at(now + 22), TRACKS), None);
        assert!(!come_back.tracks());
        assert_eq!(come_back.observe(at(now + 41), TRACKS), None);
        assert_eq!(come_back.observe(at(now + 42), TRACKS), Some(Step::Probe));
    }

    #[test]
    fn one_that_fails_while_it_catches_up_is_for_the_operator() {
        let mut come_back = StallRecovery::default();
        come_back.observe(at(0), STALLED);
        come_back.observe(at(5), STALLED);
        come_back.answered(at(5), true);
        come_back.observe(at(5), TRACKS);
        come_back.answered(at(5), true);
        let failed = StallObservation {
            failed: true,
            ..LITTLE
        };
        assert_eq!(come_back.observe(at(6), failed), None);
        assert!(!come_back.tracks());
    }

    #[test]
    fn the_operator_may_be_faster() {
        let mut come_back = StallRecovery::default();
        come_back.observe(at(0), STALLED);
        assert_eq!(come_back.observe(at(1), COPIES), None);
        assert!(!come_back.tracks());
        assert_eq!(come_back.observe(at(2), STALLED), None);
        assert_eq!(come_back.observe(at(12), STALLED), Some(Step::Probe));
        come_back.answered(at(12), true);
        assert!(come_back.tracks());
        assert_eq!(come_back.observe(at(12), COPIES), None);
        assert!(!come_back.tracks());
    }
}
