//! What becomes of a stored phase, once the volume answers.

use super::{Phase, Seen, Verb};
use crate::route::Side;

/// What happens to a phase that was stored before a crash, once the volume's route is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Settlement {
    /// There is nothing to settle.
    Nothing,
    /// The phase becomes this one; the route says that the change has happened, or that it has not.
    Becomes(Phase),
    /// The change can only be finished: the verb is to be performed again, if the session allows it
    /// ([`session::can_finish`](crate::session::can_finish)).
    Finish(Verb),
    /// The route contradicts the phase; the operator decides.
    Contradiction,
}

/// Decides what to do about a pair whose volume has just answered, while no operation on the pair
/// is running.
///
/// While the volume is changing its route, nothing is decided: a change outlives the shuntd that
/// asked for it. An example is a start that was given up and happens all the same.
///
/// A start and a change of role that did not happen are taken back: the operator can ask again. A
/// commit and a cancel are finished, because other pairs of the session may have ended already.
/// They are not finished if the role has moved automatically in the meantime: then the leg to be
/// dropped is authoritative.
#[must_use]
pub fn settle(phase: Phase, seen: &Seen) -> Settlement {
    let mirrored = seen.mirrored();
    match phase {
        // It is not known yet whether the change succeeds.
        _ if seen.changing => Settlement::Nothing,
        Phase::Committed | Phase::Cancelled => Settlement::Nothing,
        Phase::Setup | Phase::Queued => match mirrored {
            Some(_) => Settlement::Becomes(Phase::Active),
            None => Settlement::Nothing,
        },
        // A copy does not count before all volumes of the session have been held at the same time.
        Phase::Splitting => match mirrored {
            Some(_) => Settlement::Becomes(Phase::Active),
            None if seen.is_split() => Settlement::Becomes(Phase::Active),
            None => Settlement::Contradiction,
        },
        Phase::Split => match mirrored {
            Some(_) => Settlement::Becomes(Phase::Active),
            None if seen.is_split() => Settlement::Nothing,
            None => Settlement::Contradiction,
        },
        Phase::Starting => match mirrored {
            Some(_) => Settlement::Becomes(Phase::Active),
            // The target was to be mirrored onto again, and that has not begun.
            None if seen.is_split() => Settlement::Becomes(Phase::Active),
            None => Settlement::Becomes(Phase::Setup),
        },
        Phase::Active => match mirrored {
            Some(_) => Settlement::Nothing,
            None if seen.is_split() => Settlement::Nothing,
            None => Settlement::Contradiction,
        },
        Phase::Switching | Phase::Undoing => match mirrored {
            Some(_) => Settlement::Becomes(Phase::Active),
            None => Settlement::Contradiction,
        },
        Phase::Committing => match (mirrored, seen.single()) {
            (Some(Side::Target), _) => Settlement::Finish(Verb::Commit),
            (Some(Side::Source), _) => Settlement::Becomes(Phase::Active),
            (None, Some(Side::Target)) => Settlement::Becomes(Phase::Committed),
            (None, Some(Side::Source) | None) => Settlement::Contradiction,
        },
        Phase::Cancelling => match (mirrored, seen.single()) {
            (Some(Side::Source), _) => Settlement::Finish(Verb::Cancel),
            (Some(Side::Target), _) => Settlement::Becomes(Phase::Active),
            (None, _) if seen.is_split() => Settlement::Finish(Verb::Cancel),
            (None, Some(Side::Source)) => Settlement::Becomes(Phase::Cancelled),
            (None, Some(Side::Target) | None) => Settlement::Contradiction,
        },
    }
}

/// Whether a switch that was interrupted has happened, as the volume reports it. Then what a switch
/// records is recorded ([`operation::Entry`](crate::operation::Entry)): that the pair was switched,
/// and, if no other pair is left to be switched, that the session is switched by hand from now on.
#[must_use]
pub fn has_switched(phase: Phase, seen: &Seen) -> bool {
    let settled = settle(phase, seen) == Settlement::Becomes(Phase::Active);
    settled && phase == Phase::Switching && seen.mirrored() == Some(Side::Target)
}
