//! What the operator can do when a verb is refused.

use migration_core::pair::{PairState, Position, Reason, Verb};
use migration_core::session;
use migration_proto::manager::Failure;

use crate::daemon::failure;
use crate::daemon::handle::View;
use crate::store::SessionRow;

/// The refusal of a verb: the reason, and what can be done.
pub(crate) fn of_verb(
    session: &SessionRow,
    verb: Verb,
    pair: usize,
    reason: Reason,
    positions: &[Position],
    view: Option<&View>,
) -> Failure {
    let name = &session.name;
    let (row, position) = (&session.pairs[pair], positions[pair]);
    let status = view.and_then(|view| view.status.as_deref());
    let mut cause = format!(
        "{verb} is not allowed while it is {}: {reason}",
        position.state
    );
    if let Some(status) =
        status.filter(|status| reason == Reason::NotInSync && status.dirty_bytes > 0)
    {
        cause.push_str(&format!(
            ", {} bytes are still to be copied",
            status.dirty_bytes
        ));
    }
    if let Some(problem) = view
        .and_then(|view| view.problem.clone())
        .or_else(|| row.problem.clone())
    {
        cause.push_str(&format!(" ({problem})"));
    }
    cause.push_str(&format!(
        "; the {} is authoritative",
        position.authoritative
    ));
    let verbs = session::allowed(positions);
    let first = first_step(name, reason, &position, session.paused, &verbs);
    let allowed: Vec<&str> = verbs.into_iter().map(Verb::name).collect();
    let allowed = if allowed.is_empty() {
        "nothing but status and history".to_owned()
    } else {
        allowed.join(", ")
    };
    let next = format!("{first} (allowed now: {allowed})");
    failure::refused(failure::pair(name, &row.volume), cause, next)
}

/// What the operator can do about a refusal, given what the state of the session allows.
fn first_step(
    name: &str,
    reason: Reason,
    position: &Position,
    paused: bool,
    allowed: &[Verb],
) -> String {
    let command = |verb: Verb| format!("`shunt {verb} {name}`");
    let may = |verb: Verb| allowed.contains(&verb);
    let status = format!("see `shunt status {name}`");
    let in_sync = match paused && may(Verb::Resume) {
        true => command(Verb::Resume),
        false => format!(
            "`shunt wait {name} --for {}-selected`",
            position.authoritative
        ),
    };
    // The role has to move first, or the session ends on the leg that is authoritative.
    let move_or_end = |moves: Verb, ends: Verb| {
        let first = match position.state {
            _ if may(moves) => format!("{} first", command(moves)),
            PairState::Degraded => {
                format!(
                    "repair the leg, then {}, then {}",
                    command(Verb::Resume),
                    command(moves)
                )
            }
            PairState::Syncing | PairState::Paused => format!("{in_sync}, then {}", command(moves)),
            PairState::Setup
            | PairState::Queued
            | PairState::Tracking
            | PairState::SourceSelected
            | PairState::Splitting
            | PairState::Split
            | PairState::Switching
            | PairState::TargetSelected
            | PairState::Committing
            | PairState::Committed
            | PairState::Retired
            | PairState::Cancelled
            | PairState::Failed
            | PairState::NeedsRecovery
            | PairState::Verifying => status.clone(),
        };
        match may(ends) {
            true => format!("{first}, or {}", command(ends)),
            false => first,
        }
    };
    match reason {
        Reason::NotInSync => in_sync,
        Reason::NotStarted if may(Verb::Start) => command(Verb::Start),
        Reason::Queued => format!(
            "`shunt wait {name} --for source-selected`, or `shunt set --max-pairs` to copy more pairs at once"
        ),
        Reason::MirrorFailed if may(Verb::Resume) => {
            format!("repair the leg, then {}", command(Verb::Resume))
        }
        Reason::Split if may(Verb::Resume) => {
            format!("{} mirrors onto it again", command(Verb::Resume))
        }
        Reason::SourceRules => move_or_end(Verb::Switch, Verb::Cancel),
        Reason::TargetRules => move_or_end(Verb::Undo, Verb::Commit),
        Reason::NotStarted
        | Reason::MirrorFailed
        | Reason::Split
        | Reason::UnderWay
        | Reason::NeedsRecovery => status,
        Reason::Ended => "`shunt create` makes another session".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use migration_core::route::Side;
    use migration_core::session::SessionDecision;

    use super::*;

    /// The first command that a refusal names is allowed in that state.
    #[test]
    fn a_refusal_names_a_command_that_is_allowed() {
        let states = PairState::ALL.into_iter();
        for (state, side) in states.flat_map(|state| [(state, Side::Source), (state, Side::Target)])
        {
            let position = Position {
                state,
                authoritative: side,
            };
            let allowed = session::allowed(&[position]);
            for verb in Verb::ALL {
                let SessionDecision::Refuse { reason, .. } =
                    session::decide_session(verb, &[position])
                else {
                    continue;
                };
                for paused in [false, true] {
                    let text = first_step("s1", reason, &position, paused, &allowed);
                    let command = text.split("`shunt ").nth(1).unwrap_or_default();
                    let word = command.split([' ', '`']).next().unwrap_or_default();
                    let named = Verb::ALL.into_iter().find(|verb| verb.name() == word);
                    let reads = ["status", "wait", "create"].contains(&word);
                    assert!(
                        reads || named.is_some_and(|named| allowed.contains(&named)),
                        "{verb} in {state} on the {side}: {text}"
                    );
                }
            }
        }
    }
}
