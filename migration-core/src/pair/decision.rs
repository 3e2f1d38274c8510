//! What a verb does in a state.

use alloc::vec::Vec;
use core::fmt;

use super::{PairState, Position, Verb, selected};
use crate::route::Side;

/// What a verb leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Do what the verb asks.
    Do,
    /// Nothing to do: the pair is already in that state.
    Already,
    /// The verb is not allowed in this state.
    Refuse {
        /// The reason.
        reason: Reason,
    },
}

/// Why a verb is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The session has not been started.
    NotStarted,
    /// Other pairs are being copied first.
    Queued,
    /// The target is detached.
    Split,
    /// Regions are dirty, or may become so while the copy is stopped.
    NotInSync,
    /// The mirror leg has failed.
    MirrorFailed,
    /// The source is authoritative and must not be.
    SourceRules,
    /// The target is authoritative and must not be.
    TargetRules,
    /// A change is under way.
    UnderWay,
    /// The pair has ended.
    Ended,
    /// The volume does not answer, or its route contradicts what was recorded.
    NeedsRecovery,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotStarted => "it has not been started",
            Self::Queued => "it waits for its turn",
            Self::Split => "the target is a detached copy",
            Self::NotInSync => "the two legs are not in sync",
            Self::MirrorFailed => "the leg that is not authoritative has failed",
            Self::SourceRules => "the source is authoritative",
            Self::TargetRules => "the target is authoritative",
            Self::UnderWay => "a change is under way",
            Self::Ended => "it has ended",
            Self::NeedsRecovery => {
                "the volume does not answer, or its route is not the one that was recorded"
            }
        })
    }
}

/// A table: whether a verb is allowed, as in the second table of [`super`].
#[must_use]
pub fn decide(verb: Verb, position: Position) -> Decision {
    use Decision::{Already, Do};
    const fn refuse(reason: Reason) -> Decision {
        Decision::Refuse { reason }
    }
    match position.state {
        PairState::Setup => match verb {
            Verb::Start | Verb::Cancel => Do,
            Verb::Pause | Verb::Resume | Verb::Switch | Verb::Undo | Verb::Split | Verb::Commit => {
                refuse(Reason::NotStarted)
            }
        },
        PairState::Queued => match verb {
            Verb::Start | Verb::Resume => Already,
            Verb::Pause | Verb::Cancel => Do,
            Verb::Switch | Verb::Undo | Verb::Split | Verb::Commit => refuse(Reason::Queued),
        },
        PairState::Syncing => match verb {
            Verb::Start | Verb::Resume => Already,
            Verb::Pause => Do,
            Verb::Switch | Verb::Undo | Verb::Split => refuse(Reason::NotInSync),
            Verb::Commit | Verb::Cancel => decide_end(verb, position.authoritative),
        },
        PairState::Tracking => match verb {
            Verb::Start | Verb::Resume | Verb::Undo => Already,
            Verb::Pause | Verb::Switch => Do,
            Verb::Split => refuse(Reason::NotInSync),
            Verb::Commit | Verb::Cancel => decide_end(verb, Side::Source),
        },
        PairState::Paused => match verb {
            Verb::Start | Verb::Pause => Already,
            Verb::Resume => Do,
            Verb::Switch | Verb::Undo | Verb::Split => refuse(Reason::NotInSync),
            Verb::Commit | Verb::Cancel => decide_end(verb, position.authoritative),
        },
        PairState::Degraded => match verb {
            Verb::Start => Already,
            Verb::Pause | Verb::Resume => Do,
            Verb::Switch | Verb::Undo | Verb::Split => refuse(Reason::MirrorFailed),
            Verb::Commit | Verb::Cancel => decide_end(verb, position.authoritative),
        },
        PairState::SourceSelected => match verb {
            Verb::Start | Verb::Resume | Verb::Undo => Already,
            Verb::Pause | Verb::Switch | Verb::Split => Do,
            Verb::Commit | Verb::Cancel => decide_end(verb, Side::Source),
        },
        PairState::Split => match verb {
            Verb::Start | Verb::Split => Already,
            Verb::Pause | Verb::Resume => Do,
            Verb::Switch | Verb::Undo => refuse(Reason::Split),
            Verb::Commit | Verb::Cancel => decide_end(verb, Side::Source),
        },
        PairState::TargetSelected => match verb {
            Verb::Start | Verb::Resume | Verb::Switch => Already,
            Verb::Pause | Verb::Undo => Do,
            Verb::Split => refuse(Reason::TargetRules),
            Verb::Commit | Verb::Cancel => decide_end(verb, Side::Target),
        },
        PairState::Switching | PairState::Splitting => refuse(Reason::UnderWay),
        PairState::Verifying => {
            let state = selected(position.authoritative);
            decide(verb, Position { state, ..position })
        }
        PairState::Committing => match verb {
            Verb::Commit => Do,
            Verb::Start
            | Verb::Pause
            | Verb::Resume
            | Verb::Switch
            | Verb::Undo
            | Verb::Split
            | Verb::Cancel => refuse(Reason::UnderWay),
        },
        PairState::Committed | PairState::Retired => match verb {
            Verb::Commit => Already,
            Verb::Start
            | Verb::Pause
            | Verb::Resume
            | Verb::Switch
            | Verb::Undo
            | Verb::Split
            | Verb::Cancel => refuse(Reason::Ended),
        },
        PairState::Cancelled => match verb {
            Verb::Cancel => Already,
            Verb::Start
            | Verb::Pause
            | Verb::Resume
            | Verb::Switch
            | Verb::Undo
            | Verb::Split
            | Verb::Commit => refuse(Reason::Ended),
        },
        PairState::Failed | PairState::NeedsRecovery => match verb {
            Verb::Commit | Verb::Cancel => decide_end(verb, position.authoritative),
            Verb::Start | Verb::Pause | Verb::Resume | Verb::Switch | Verb::Undo | Verb::Split => {
                refuse(Reason::NeedsRecovery)
            }
        },
    }
}

/// Decides about a commit or a cancel. A commit needs nothing of the source, and a cancel nothing
/// of the target: only the leg that stays must be authoritative.
const fn decide_end(verb: Verb, authoritative: Side) -> Decision {
    match (verb, authoritative) {
        (Verb::Commit, Side::Source) => Decision::Refuse {
            reason: Reason::SourceRules,
        },
        (Verb::Cancel, Side::Target) => Decision::Refuse {
            reason: Reason::TargetRules,
        },
        (
            Verb::Start
            | Verb::Pause
            | Verb::Resume
            | Verb::Switch
            | Verb::Undo
            | Verb::Split
            | Verb::Commit
            | Verb::Cancel,
            Side::Source | Side::Target,
        ) => Decision::Do,
    }
}

/// The verbs that would change something, in the order in which a migration uses them.
#[must_use]
pub fn allowed(position: Position) -> Vec<Verb> {
    Verb::ALL
        .into_iter()
        .filter(|verb| decide(*verb, position) == Decision::Do)
        .collect()
}
