//! When a target that kept applications waiting is mirrored onto again.
//!
//! It was given up: what it misses is dirty. After a while, and once it has ended what it was given before, it is read from; if it answers, the
//! volume *tracks*: what the target misses is copied while no write waits for it. When little is left, writes are mirrored again. A target
//! that keeps them waiting once more is left alone for longer and longer.
//!
//! Times are in nanoseconds. No clock: times are arguments.

use crate::units::Time;

/// How long a target is left alone at first, and at most.
const ALONE_FIRST: u64 = 5_000_000_000;
const ALONE_MAX: u64 = 300_000_000_000;
/// A target that did well for so long begins with the first time again.
const FORGIVEN_AFTER: u64 = 600_000_000_000;
/// So little may be left when writes are mirrored again: this part of the volume, or so many bytes if that is more.
const REST_PART: u64 = 64;
const REST_BYTES: u64 = 16 << 20;

/// What a volume says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Look {
    /// Its target was given up because it kept writes waiting, and may be taken again.
    pub stalled: bool,
    /// Its target was given up for another reason: that is for the operator.
    pub failed: bool,
    /// How many writes that were given to the target have not ended.
    pub under_way: u32,
    /// Writes go to the source alone, to be copied in passes.
    pub tracks: bool,
    /// What is dirty, and all of it.
    pub dirty_bytes: u64,
    /// The size of the volume.
    pub size_bytes: u64,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Read from the target, and tell [`ComeBack::answered`] whether it was quick.
    Probe,
    /// Let the volume take its target again, and tell [`ComeBack::answered`] whether it did.
    Retry,
    /// Nothing: writes are mirrored again.
    Mirrored,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stage {
    /// It is written.
    Well { since: Option<Time> },
    /// It is left alone.
    Alone { until: Time },
    /// It is being read from.
    Probing,
    /// The volume is to track before it takes its target again.
    Turning,
    /// It takes its target again.
    Retrying,
    /// What the target misses is copied.
    CatchingUp,
}

/// How the target of one volume comes back.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ComeBack {
    stage: Stage,
    alone: u64,
}

impl Default for ComeBack {
    fn default() -> Self {
        Self {
            stage: Stage::Well { since: None },
            alone: ALONE_FIRST,
        }
    }
}

impl ComeBack {
    /// Whether the volume is to track meanwhile.
    #[must_use]
    pub const fn tracks(&self) -> bool {
        matches!(
            self.stage,
            Stage::Turning | Stage::Retrying | Stage::CatchingUp
        )
    }

    /// Whether nothing is known of the target that a new value would not know.
    #[must_use]
    pub const fn is_new(&self) -> bool {
        matches!(self.stage, Stage::Well { since: None })
    }

    /// The volume says how it is.
    pub fn look(&mut self, now: Time, look: Look) -> Option<Step> {
        match self.stage {
            Stage::Well { since } if look.stalled => {
                let did_well = since.is_none_or(|since| now.since(since) >= FORGIVEN_AFTER);
                if did_well {
                    self.alone = ALONE_FIRST;
                }
                self.leave_alone(now);
                None
            }
            Stage::Well { .. } | Stage::Probing | Stage::Retrying => None,
            // The operator was faster, or the volume was started again.
            Stage::Alone { .. } | Stage::Turning if !look.stalled => {
                self.stage = Stage::Well { since: Some(now) };
                None
            }
            Stage::Alone { until } if now >= until && look.under_way == 0 => {
                self.stage = Stage::Probing;
                Some(Step::Probe)
            }
            Stage::Turning if look.tracks => {
                self.stage = Stage::Retrying;
                Some(Step::Retry)
            }
            Stage::Alone { .. } | Stage::Turning => None,
            Stage::CatchingUp if look.stalled => {
                self.leave_alone(now);
                None
            }
            Stage::CatchingUp if look.failed => {
                self.stage = Stage::Well { since: Some(now) };
                None
            }
            Stage::CatchingUp => {
                let rest = (look.size_bytes / REST_PART).max(REST_BYTES);
                if look.dirty_bytes > rest {
                    return None;
                }
                self.stage = Stage::Well { since: Some(now) };
                Some(Step::Mirrored)
            }
        }
    }

    /// What was begun with the last step has ended.
    pub fn answered(&mut self, now: Time, well: bool) {
        match self.stage {
            Stage::Probing if well => self.stage = Stage::Turning,
            Stage::Retrying if well => self.stage = Stage::CatchingUp,
            // Nobody waits for that.
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

    const STALLED: Look = Look {
        stalled: true,
        failed: false,
        under_way: 0,
        tracks: false,
        dirty_bytes: SIZE / 2,
        size_bytes: SIZE,
    };
    const TRACKS: Look = Look {
        tracks: true,
        ..STALLED
    };
    const COPIES: Look = Look {
        stalled: false,
        ..TRACKS
    };
    const LITTLE: Look = Look {
        dirty_bytes: SIZE / REST_PART,
        ..COPIES
    };

    fn at(seconds: u64) -> Time {
        Time(seconds * SECOND)
    }

    /// Brings it to where the target has caught up.
    fn back(come_back: &mut ComeBack, seconds: u64) {
        assert_eq!(come_back.look(at(seconds), STALLED), Some(Step::Probe));
        come_back.answered(at(seconds), true);
        assert_eq!(come_back.look(at(seconds), STALLED), None);
        assert!(come_back.tracks());
        assert_eq!(come_back.look(at(seconds), TRACKS), Some(Step::Retry));
        assert_eq!(
            come_back.look(at(seconds), COPIES),
            None,
            "it is not told yet"
        );
        come_back.answered(at(seconds), true);
        assert_eq!(come_back.look(at(seconds), COPIES), None);
        assert!(come_back.tracks());
        assert_eq!(come_back.look(at(seconds), LITTLE), Some(Step::Mirrored));
        assert!(!come_back.tracks());
    }

    #[test]
    fn what_it_misses_is_copied_before_writes_wait_for_it_again() {
        let mut come_back = ComeBack::default();
        assert_eq!(come_back.look(at(0), COPIES), None);
        assert!(come_back.is_new());
        assert_eq!(come_back.look(at(1), STALLED), None);
        assert!(!come_back.tracks() && !come_back.is_new());
        assert_eq!(come_back.look(at(5), STALLED), None);
        let busy = Look {
            under_way: 1,
            ..STALLED
        };
        assert_eq!(
            come_back.look(at(100), busy),
            None,
            "it has not ended what it has"
        );
        back(&mut come_back, 100);
        assert_eq!(come_back.look(at(101), LITTLE), None);
    }

    #[test]
    fn one_that_stalls_again_is_left_alone_for_longer() {
        let mut come_back = ComeBack::default();
        let mut now = 0;
        for alone in [5, 10, 20, 40, 80, 160, 300, 300] {
            assert_eq!(come_back.look(at(now), STALLED), None);
            assert_eq!(come_back.look(at(now + alone - 1), STALLED), None);
            now += alone;
            back(&mut come_back, now);
            now += 1;
        }
        now += 600;
        assert_eq!(come_back.look(at(now), STALLED), None);
        assert_eq!(come_back.look(at(now + 4), STALLED), None);
        assert_eq!(come_back.look(at(now + 5), STALLED), Some(Step::Probe));
        // It does not answer; then it does, but is not taken; then it stalls while it catches up.
        come_back.answered(at(now + 6), false);
        assert_eq!(come_back.look(at(now + 10), STALLED), None);
        assert_eq!(come_back.look(at(now + 11), STALLED), Some(Step::Probe));
        come_back.answered(at(now + 11), true);
        assert_eq!(come_back.look(at(now + 11), TRACKS), Some(Step::Retry));
        come_back.answered(at(now + 11), false);
        assert!(!come_back.tracks());
        assert_eq!(come_back.look(at(now + 20), STALLED), None);
        assert_eq!(come_back.look(at(now + 21), STALLED), Some(Step::Probe));
        come_back.answered(at(now + 21), true);
        assert_eq!(come_back.look(at(now + 21), TRACKS), Some(Step::Retry));
        come_back.answered(at(now + 21), true);
        assert_eq!(come_back.look(at(now + 22), TRACKS), None);
        assert!(!come_back.tracks());
        assert_eq!(come_back.look(at(now + 41), TRACKS), None);
        assert_eq!(come_back.look(at(now + 42), TRACKS), Some(Step::Probe));
    }

    #[test]
    fn one_that_fails_while_it_catches_up_is_for_the_operator() {
        let mut come_back = ComeBack::default();
        come_back.look(at(0), STALLED);
        come_back.look(at(5), STALLED);
        come_back.answered(at(5), true);
        come_back.look(at(5), TRACKS);
        come_back.answered(at(5), true);
        let failed = Look {
            failed: true,
            ..LITTLE
        };
        assert_eq!(come_back.look(at(6), failed), None);
        assert!(!come_back.tracks());
    }

    #[test]
    fn the_operator_may_be_faster() {
        let mut come_back = ComeBack::default();
        come_back.look(at(0), STALLED);
        assert_eq!(come_back.look(at(1), COPIES), None);
        assert!(!come_back.tracks());
        assert_eq!(come_back.look(at(2), STALLED), None);
        assert_eq!(come_back.look(at(12), STALLED), Some(Step::Probe));
        come_back.answered(at(12), true);
        assert!(come_back.tracks());
        assert_eq!(come_back.look(at(12), COPIES), None);
        assert!(!come_back.tracks());
    }
}
