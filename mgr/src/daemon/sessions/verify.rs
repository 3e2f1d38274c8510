//! What is recorded of a comparison of the legs, and the words for what it forbids. When legs are
//! compared, and which verbs the result forbids, is decided by [`migration_core::verify`] and
//! [`may_be_compared`](migration_core::session::may_be_compared).

use copier::compare::Found;
use migration_core::pair::{PairState, Position, Verb};
use migration_core::verify::{self, Unproved};
use migration_proto::manager::{Failure, HistoryEvent, Verification, VerifyPolicy};

use crate::daemon::context::{note, now_ms};
use crate::daemon::failure;
use crate::history;
use crate::store::{Change, PairField, PairKey, PairRow, SessionRow};

/// Why the legs of a pair cannot be compared now, and what to do first.
pub(crate) fn not_comparable(session: &SessionRow, pair: usize, position: Position) -> Failure {
    let name = &session.name;
    let cause = format!(
        "it is {}: only legs that are in sync can be compared",
        position.state
    );
    let next = match position.state {
        PairState::Setup => format!("`shunt start {name}`"),
        PairState::Paused | PairState::Degraded | PairState::Split => {
            format!("`shunt resume {name}`")
        }
        PairState::Committed | PairState::Retired | PairState::Cancelled => {
            "`shunt create` makes another session".to_owned()
        }
        PairState::Tracking => format!("`shunt set {name} --mode mirror`"),
        PairState::Failed | PairState::NeedsRecovery => format!("`shunt status {name}`"),
        PairState::Queued
        | PairState::Syncing
        | PairState::Splitting
        | PairState::Switching
        | PairState::Committing
        | PairState::Verifying
        | PairState::SourceSelected
        | PairState::TargetSelected => {
            let side = position.authoritative;
            format!("`shunt wait {name} --for {side}-selected`")
        }
    };
    failure::refused(
        failure::pair(name, &session.pairs[pair].volume),
        cause,
        next,
    )
}

/// Changes that record the result of a comparison.
pub(crate) fn compared(
    key: &PairKey,
    pair: &PairRow,
    found: &Found,
    repaired: bool,
) -> Vec<Change> {
    let found_now = Verification {
        at_ms: now_ms(),
        compared_bytes: found.compared_bytes,
        differing_bytes: found.differing_bytes,
        first_difference_bytes: found.first_difference_bytes,
        unknown_bytes: found.unknown_bytes,
        repaired,
    };
    let name = &key.session;
    let error = found.error.as_ref();
    let event = HistoryEvent::Compared {
        compared_bytes: found.compared_bytes,
        differing_bytes: found.differing_bytes,
        first_difference_bytes: found.first_difference_bytes,
        unknown_bytes: found.unknown_bytes,
        repaired,
        cause: error.map(|error| error.cause.clone()),
    };
    let problem =
        (!found_now.is_clean()).then(|| history::sentence(&event, Some(name), Some(&pair.volume)));
    let set = |field| Change::SetPair(key.clone(), field);
    vec![
        set(PairField::Problem(problem)),
        set(PairField::Verification(found_now)),
        note(Some(name), Some(&pair.volume), event),
    ]
}

/// Refuses to move a role to a leg that is known to differ, or, if the session requires a
/// comparison, to a leg that was never compared.
pub(crate) fn require_compared(
    session: &SessionRow,
    verb: Verb,
    pairs: &[usize],
) -> Result<(), Failure> {
    for position in pairs {
        let pair = &session.pairs[*position];
        if let Some((cause, next)) = not_compared(session, pair, verb) {
            let object = failure::pair(&session.name, &pair.volume);
            return Err(failure::refused(object, cause, next));
        }
    }
    Ok(())
}

/// The cause and the next command if a role must not move, because a comparison found differences
/// or because there was no comparison. `None`: the role may move.
pub(crate) fn not_compared(
    session: &SessionRow,
    pair: &PairRow,
    verb: Verb,
) -> Option<(String, String)> {
    let name = &session.name;
    let last = pair.verification.as_ref();
    let required = session.options.verify == VerifyPolicy::Full;
    let found = last.map_or(verify::Found::Nothing, Verification::found);
    let cause = match verify::may_move(verb, required, found) {
        Ok(()) => return None,
        Err(Unproved::Different) => format!(
            "{} bytes of its legs differed when they were compared last, and it is not known whether they are the same now",
            last.map_or(0, |last| last.differing_bytes)
        ),
        Err(Unproved::NotCompared) => {
            "it was created with --verify full, and its legs have not been compared as a whole"
                .to_owned()
        }
    };
    let next = format!("`shunt verify {name}`, then `shunt {verb} {name}`");
    Some((cause, next))
}
