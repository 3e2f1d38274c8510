//! What an ended pair leaves behind, and how that leg is made inaccessible (*retired*).
//!
//! | phase | left behind |
//! |---|---|
//! | committed | the source |
//! | cancelled | the target |
//! | any other | nothing: both legs are used, or will be |
//!
//! A leg is retired in one way at a time. What will be done to it is durable before it is done; if
//! it fails, [`How::after_failure`] says what is recorded.

use crate::pair::Phase;
use crate::route::Side;

/// The side that an ended pair no longer uses.
#[must_use]
pub const fn left_behind(phase: Phase) -> Option<Side> {
    match phase {
        Phase::Committed => Some(Side::Source),
        Phase::Cancelled => Some(Side::Target),
        Phase::Setup
        | Phase::Queued
        | Phase::Starting
        | Phase::Active
        | Phase::Splitting
        | Phase::Split
        | Phase::Switching
        | Phase::Undoing
        | Phase::Committing
        | Phase::Cancelling => None,
    }
}

/// The side of a pair that is locked because it was retired. `how`: how it was, if it was.
#[must_use]
pub fn locked(phase: Phase, how: Option<How>) -> Option<Side> {
    left_behind(phase).filter(|_| how.is_some_and(How::can_be_taken_back))
}

/// How a leg is made inaccessible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum How {
    /// The kernel refuses writes to it, until the next boot.
    ReadOnly,
    /// The kernel refuses every request to it, until the next boot.
    Offline,
    /// shuntd keeps it open exclusively.
    Hold,
    /// The signatures on it are removed, and kept so that they can be put back.
    WipeSignatures,
    /// All of its blocks are deallocated.
    Discard,
}

/// What becomes of a leg that is to be retired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// It is retired.
    Do,
    /// It is retired in this way already.
    Already,
    /// It is retired in a different way, which has to be taken back first.
    RetiredAs(How),
    /// Somebody uses it.
    InUse,
}

/// What is recorded of a leg that could not be retired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AfterFailure {
    /// That it is not retired: nothing was done to it.
    Untouched,
    /// That it is not retired, although a part may be lost: that cannot be taken back.
    PartLost,
    /// That it is retired, until that is taken back: a part of it is.
    PartRetired,
}

impl How {
    /// Every way.
    pub const ALL: [Self; 5] = [
        Self::ReadOnly,
        Self::Offline,
        Self::Hold,
        Self::WipeSignatures,
        Self::Discard,
    ];

    /// Whether the leg can be made accessible again. Until then it is locked, and is forgotten by
    /// no new session. A leg that holds nothing any more cannot be mistaken for anything.
    #[must_use]
    pub const fn can_be_taken_back(self) -> bool {
        match self {
            Self::ReadOnly | Self::Offline | Self::Hold | Self::WipeSignatures => true,
            Self::Discard => false,
        }
    }

    /// Whether it outlasts a boot, and the end of shuntd. What does not is done again when shuntd
    /// starts.
    #[must_use]
    pub const fn is_lasting(self) -> bool {
        match self {
            Self::WipeSignatures | Self::Discard => true,
            Self::ReadOnly | Self::Offline | Self::Hold => false,
        }
    }

    /// Decides about a leg that an ended pair has left behind. `retired`: how it is retired
    /// already; `in_use`: whether a volume, or another session, uses one of its LUNs.
    #[must_use]
    pub fn decide(self, retired: Option<Self>, in_use: bool) -> Decision {
        match retired {
            Some(how) if how == self => Decision::Already,
            Some(how) => Decision::RetiredAs(how),
            None if in_use => Decision::InUse,
            None => Decision::Do,
        }
    }

    /// What is recorded when the leg's LUN with this index could not be retired. The LUNs before it
    /// are retired already. A wipe that fails may have removed some signatures; which ones is
    /// recorded.
    #[must_use]
    pub const fn after_failure(self, lun: usize) -> AfterFailure {
        match (self, lun) {
            (Self::Discard, _) => AfterFailure::PartLost,
            (Self::ReadOnly | Self::Offline | Self::Hold, 0) => AfterFailure::Untouched,
            (Self::ReadOnly | Self::Offline | Self::Hold, _) | (Self::WipeSignatures, _) => {
                AfterFailure::PartRetired
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::Entry;

    #[test]
    fn an_ended_pair_leaves_the_leg_behind_that_is_not_authoritative() {
        for side in [Side::Source, Side::Target] {
            let phase = Entry::Ended { pair: 0, side }.phase();
            assert_eq!(phase.and_then(left_behind), Some(side.other()));
        }
        for phase in Phase::ALL {
            assert_eq!(left_behind(phase).is_some(), phase.is_ended(), "{phase:?}");
        }
    }

    #[test]
    fn a_leg_is_locked_until_it_is_taken_back_or_holds_nothing() {
        for phase in Phase::ALL {
            assert_eq!(locked(phase, None), None);
            for how in How::ALL {
                let side = left_behind(phase).filter(|_| how != How::Discard);
                assert_eq!(locked(phase, Some(how)), side, "{phase:?} {how:?}");
            }
        }
    }

    #[test]
    fn a_leg_is_retired_in_one_way_at_a_time() {
        for how in How::ALL {
            assert_eq!(how.decide(None, false), Decision::Do);
            assert_eq!(how.decide(None, true), Decision::InUse);
            for other in How::ALL {
                let expected = match other == how {
                    true => Decision::Already,
                    false => Decision::RetiredAs(other),
                };
                for in_use in [false, true] {
                    assert_eq!(
                        how.decide(Some(other), in_use),
                        expected,
                        "{how:?} {other:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_may_have_been_done_is_not_recorded_as_not_done_if_it_can_be_taken_back() {
        for how in How::ALL {
            let (first, later) = match how {
                How::ReadOnly | How::Offline | How::Hold => {
                    (AfterFailure::Untouched, AfterFailure::PartRetired)
                }
                How::WipeSignatures => (AfterFailure::PartRetired, AfterFailure::PartRetired),
                How::Discard => (AfterFailure::PartLost, AfterFailure::PartLost),
            };
            assert_eq!(how.after_failure(0), first, "{how:?}");
            assert_eq!(how.after_failure(1), later, "{how:?}");
        }
    }

    #[test]
    fn what_a_boot_undoes_is_done_again() {
        let again = How::ALL.into_iter().filter(|how| !how.is_lasting());
        assert!(again.eq([How::ReadOnly, How::Offline, How::Hold]));
    }
}
