//! The states that `wait` can wait for, and whether they can still be reached.
//!
//! The states are those of [`migration_core::pair`], which has their diagram.

use clap::ValueEnum;
use migration_core::pair::PairState;

/// The state with that name. `None`: this build does not know the state; `wait` prints its name and
/// continues to wait.
#[must_use]
pub fn state_from_name(name: &str) -> Option<PairState> {
    PairState::ALL
        .into_iter()
        .find(|state| state.name() == name)
}

/// A state that can be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub enum Goal {
    /// The copy runs
    Syncing,
    /// The copy is paused
    Paused,
    /// In sync, the source is authoritative: ready to switch
    SourceSelected,
    /// The targets are copies at an instant
    Split,
    /// In sync, the target is authoritative: ready to commit or undo
    TargetSelected,
    /// Ended on the target
    Committed,
    /// Ended on the source
    Cancelled,
    /// The mirror leg failed; applications continue on the authoritative leg
    Degraded,
    /// A step failed and needs the operator
    Failed,
}

/// Whether a [`Goal`] is reached in the current state, or can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outlook {
    /// The goal is reached.
    Reached,
    /// The goal can be reached, automatically or by a command of the operator.
    Possible,
    /// The goal cannot be reached any more.
    Never,
}

impl Goal {
    /// The name of the goal on the command line and in the records.
    #[must_use]
    pub fn name(self) -> String {
        self.to_possible_value()
            .expect("no goal is skipped")
            .get_name()
            .to_owned()
    }

    /// Whether the goal is reached in `state`, or still can be.
    ///
    /// A goal that needs a command of the operator (resume, undo) is possible: the operator can
    /// give the command while `wait` runs. From `needs-recovery` every goal is possible: a pair is
    /// in it for a moment also while its volume is brought back. [`Goal::Syncing`] cannot be
    /// reached once the copy is over, although after a failure of the mirror leg a new copy can
    /// begin.
    #[must_use]
    pub fn outlook(self, state: PairState) -> Outlook {
        let (reached, never): (&[PairState], &[&[PairState]]) = match self {
            Self::Syncing => (&[PairState::Syncing], &[COPIED, ENDED, FAILED]),
            Self::Paused => (&[PairState::Paused], &[ENDED, FAILED]),
            Self::SourceSelected => (&[PairState::SourceSelected], &[ENDED, FAILED]),
            Self::Split => (&[PairState::Split], &[ENDED, FAILED]),
            Self::TargetSelected => (&[PairState::TargetSelected], &[ENDED, FAILED]),
            Self::Committed => (COMMITTED, &[CANCELLED]),
            Self::Cancelled => (CANCELLED, &[COMMITTED]),
            Self::Degraded => (&[PairState::Degraded], &[ENDED, FAILED]),
            Self::Failed => (FAILED, &[ENDED]),
        };
        if reached.contains(&state) {
            Outlook::Reached
        } else if never.concat().contains(&state) {
            Outlook::Never
        } else {
            Outlook::Possible
        }
    }
}

const COPIED: &[PairState] = &[
    PairState::SourceSelected,
    PairState::Switching,
    PairState::TargetSelected,
    PairState::Committing,
];
const COMMITTED: &[PairState] = &[PairState::Committed, PairState::Retired];
const CANCELLED: &[PairState] = &[PairState::Cancelled];
const ENDED: &[PairState] = &[
    PairState::Committed,
    PairState::Retired,
    PairState::Cancelled,
];
const FAILED: &[PairState] = &[PairState::Failed];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_goal_is_reached_in_the_state_of_its_name() {
        for goal in Goal::value_variants() {
            let state = state_from_name(&goal.name()).unwrap();
            assert_eq!(goal.outlook(state), Outlook::Reached, "{goal:?}");
        }
    }

    #[test]
    fn only_an_ended_session_leaves_no_goal() {
        for state in PairState::ALL {
            let open = Goal::value_variants()
                .iter()
                .any(|goal| goal.outlook(state) == Outlook::Possible);
            assert_eq!(open, !state.is_ended(), "{state}");
        }
    }

    #[test]
    fn in_sync_may_come_until_the_end_or_a_failure() {
        for goal in [Goal::SourceSelected, Goal::TargetSelected] {
            for state in PairState::ALL {
                let expected = if state.name() == goal.name() {
                    Outlook::Reached
                } else if state.is_ended() || state == PairState::Failed {
                    Outlook::Never
                } else {
                    Outlook::Possible
                };
                assert_eq!(goal.outlook(state), expected, "{goal:?} {state}");
            }
        }
    }

    #[test]
    fn a_copy_that_is_over_is_not_waited_for() {
        for state in [PairState::SourceSelected, PairState::TargetSelected] {
            assert_eq!(Goal::Syncing.outlook(state), Outlook::Never);
        }
    }
}
