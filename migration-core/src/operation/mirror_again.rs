//! Mirroring onto a target that was split off.

use alloc::vec::Vec;

use super::seeded::{Broken, Rule};
use super::{
    Answer, Effect, Event, Freshness, Legs, Stage, Step, enter, mirrored, set_route, step,
    unexpected,
};
use crate::route::{Route, Side};

/// One pair whose target is mirrored onto again.
///
/// ```text
/// Inspecting --> Unsealing --> Joining --> end         what was written since the split is copied
///                              |
/// Dropping --> Unsealing --> Marking --> Joining       everything is copied
///                              |
///         (a failure) --> InspectingAgain --> Sealing --> end
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct MirrorAgain {
    pair: usize,
    from_scratch: bool,
    stage: AgainStage,
    outcome: Answer,
    broken: Broken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum AgainStage {
    /// Whether the target is still split off: an unanswered split may be in progress.
    Inspecting,
    /// The target is being dropped, because nothing of what it holds counts.
    Dropping,
    /// The target is being made writable.
    Unsealing,
    /// The target is being marked as no copy.
    Marking,
    /// The target is becoming the mirror leg.
    Joining,
    /// Whether the target is still split off after a failure.
    InspectingAgain,
    /// The target is being made read-only again.
    Sealing,
}

impl Stage for AgainStage {
    fn leads_to(self, next: Self) -> bool {
        match self {
            Self::Inspecting => matches!(next, Self::Unsealing),
            Self::Dropping => matches!(next, Self::Unsealing | Self::InspectingAgain),
            Self::Unsealing => {
                matches!(next, Self::Joining | Self::Marking | Self::InspectingAgain)
            }
            Self::Marking => matches!(next, Self::Joining | Self::InspectingAgain),
            Self::Joining => matches!(next, Self::InspectingAgain),
            Self::InspectingAgain => matches!(next, Self::Sealing),
            Self::Sealing => false,
        }
    }
}

/// What follows.
pub(super) enum Next {
    Effects(Vec<Effect>),
    Ended {
        /// `Done`, `Refused` or `Unknown`.
        outcome: Answer,
        /// Whether the target is still split off.
        split: bool,
    },
}

impl MirrorAgain {
    pub(super) fn begin(pair: usize, from_scratch: bool, broken: Broken) -> (Self, Vec<Effect>) {
        let (stage, first) = match from_scratch {
            true => (AgainStage::Dropping, set_route(Route::Single(Side::Source))),
            false => (AgainStage::Inspecting, Step::Inspect(Freshness::Settled)),
        };
        let again = Self {
            pair,
            from_scratch,
            stage,
            outcome: Answer::Done,
            broken,
        };
        (again, step(pair, first))
    }

    pub(super) fn apply(&mut self, event: &Event) -> Next {
        let Event::Pair(pair, answer) = event else {
            return Next::Effects(unexpected(self.stage, event));
        };
        debug_assert_eq!(*pair, self.pair);
        match (self.stage, answer) {
            (AgainStage::Inspecting, Answer::Legs(Legs::Split))
            | (AgainStage::Dropping, Answer::Done) => {
                self.go(AgainStage::Unsealing, Step::SetReadOnly(false))
            }
            // The split has not happened.
            (AgainStage::Inspecting, Answer::Legs(Legs::Apart | Legs::Mirrored { .. }))
            | (AgainStage::Joining, Answer::Done) => self.ended(false),
            (AgainStage::Unsealing, Answer::Done)
                if self.from_scratch && !self.broken.breaks(Rule::NewMirrorIsMarked) =>
            {
                self.go(AgainStage::Marking, Step::MarkUnfinished)
            }
            (AgainStage::Unsealing | AgainStage::Marking, Answer::Done) => {
                let join = match self.from_scratch {
                    true => Step::AddMirror,
                    false => set_route(mirrored(Side::Source)),
                };
                self.go(AgainStage::Joining, join)
            }
            // It has happened after all, or may still happen.
            (
                AgainStage::Inspecting | AgainStage::Dropping | AgainStage::Joining,
                Answer::Unknown,
            ) => {
                self.outcome = Answer::Unknown;
                self.ended(false)
            }
            (
                AgainStage::Dropping
                | AgainStage::Unsealing
                | AgainStage::Marking
                | AgainStage::Joining,
                Answer::Refused | Answer::Unknown,
            ) => {
                self.outcome = Answer::Refused;
                self.go(AgainStage::InspectingAgain, Step::Inspect(Freshness::Last))
            }
            (AgainStage::InspectingAgain, Answer::Legs(Legs::Split)) => {
                self.go(AgainStage::Sealing, Step::SetReadOnly(true))
            }
            (AgainStage::InspectingAgain, _) => self.ended(false),
            // A failure is logged. The seal is checked before the target is used again.
            (AgainStage::Sealing, _) => self.ended(true),
            (stage, _) => Next::Effects(unexpected(stage, event)),
        }
    }

    fn go(&mut self, stage: AgainStage, next: Step) -> Next {
        enter(&mut self.stage, stage);
        Next::Effects(step(self.pair, next))
    }

    const fn ended(&self, split: bool) -> Next {
        Next::Ended {
            outcome: self.outcome,
            split,
        }
    }
}
