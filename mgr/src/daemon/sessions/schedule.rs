//! What a session does automatically: it is started at a certain time, and switched, or split in
//! `--mode copy`, as soon as all its pairs are in sync, from a certain time on, or after a signal.
//! What is due, what follows a split, and when an action that failed is repeated is decided by
//! [`migration_core::schedule`].
//!
//! The policy is one of the session's options. A switch that was done, and an undo, set the policy
//! to `manual`. After a split the policy is `manual` too, or the time of the next split
//! (`--every`): then the target is mirrored again, and split when it is in sync.

use std::time::Duration;

use migration_core::pair::{Position, Verb};
use migration_core::schedule::{self, DueAction, Policy, Schedule, ScheduledPair};
use migration_core::units::WallTime;
use migration_proto::manager::{HistoryEvent, SessionOptions, SwitchPolicy};

use crate::daemon::context::{note, now_ms};
use crate::store::{Change, SessionRow};
use crate::{moments, names};

/// Whether a session waits only for its pairs until it is switched or split automatically.
pub(crate) fn is_due(row: &SessionRow, now: WallTime) -> bool {
    Policy::from(&row.options.switch).is_due(now)
}

/// The switch, split or resume of a session that is due now.
pub(crate) fn due(row: &SessionRow, positions: &[Position], now: WallTime) -> Option<DueAction> {
    let schedule = Schedule {
        mode: row.options.mode.into(),
        policy: Policy::from(&row.options.switch),
        scope: row.options.switch_pairs.into(),
        paused: row.paused,
    };
    let pairs: Vec<ScheduledPair> = positions
        .iter()
        .zip(&row.pairs)
        .map(|(position, pair)| ScheduledPair {
            position: *position,
            phase: pair.phase,
            switched: pair.progress.switched_ms.is_some(),
        })
        .collect();
    schedule.due(&pairs, now)
}

/// The time at which a session is to be started.
pub(crate) fn start_at(row: &SessionRow) -> Option<WallTime> {
    let at_ms = row.options.start_at_ms;
    (at_ms != 0).then_some(WallTime(at_ms))
}

/// Checks a policy. The error says why it is refused.
pub(crate) fn check(policy: &SwitchPolicy) -> Result<(), String> {
    match policy {
        SwitchPolicy::Manual | SwitchPolicy::WhenSynced => Ok(()),
        SwitchPolicy::At(at_ms) if *at_ms <= now_ms() => Err(format!(
            "the time for the switch, {}, has passed",
            moments::text(at_ms / 1000)
        )),
        SwitchPolicy::At(_) => Ok(()),
        SwitchPolicy::OnEvent(event) => {
            names::check(event).map_err(|error| format!("the event: {error}"))
        }
    }
}

/// Changes that set the switch policy to manual after `verb`.
pub(crate) fn by_hand_from_now_on(session: &SessionRow, verb: Verb) -> Vec<Change> {
    if session.options.switch == SwitchPolicy::Manual {
        return Vec::new();
    }
    after_verb(session, SwitchPolicy::Manual, verb)
}

/// The policy after a split: the time of the next split, or manual if there is none.
pub(super) fn after_split(session: &SessionRow, now_ms: u64) -> Vec<Change> {
    let options = &session.options;
    let every = Duration::from_secs(options.every_seconds);
    match schedule::next_split(Policy::from(&options.switch), every, WallTime(now_ms)) {
        Some(WallTime(at_ms)) => after_verb(session, SwitchPolicy::At(at_ms), Verb::Split),
        None => by_hand_from_now_on(session, Verb::Split),
    }
}

fn after_verb(session: &SessionRow, policy: SwitchPolicy, verb: Verb) -> Vec<Change> {
    let event = HistoryEvent::SwitchPolicySet {
        verb,
        policy: policy.clone(),
        mode: session.options.mode,
    };
    with_policy(session, policy, event)
}

/// Changes that switch a session as soon as it is in sync, after the event `signal`.
pub(crate) fn signalled(session: &SessionRow, signal: &str) -> Vec<Change> {
    let event = HistoryEvent::Signalled {
        signal: signal.to_owned(),
        mode: session.options.mode,
    };
    with_policy(session, SwitchPolicy::WhenSynced, event)
}

fn with_policy(session: &SessionRow, policy: SwitchPolicy, event: HistoryEvent) -> Vec<Change> {
    let options = SessionOptions {
        switch: policy,
        ..session.options.clone()
    };
    vec![
        Change::SetOptions(session.name.clone(), options),
        note(Some(&session.name), None, event),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_has_passed_and_a_name_that_is_none_are_no_policies() {
        check(&SwitchPolicy::At(u64::MAX)).unwrap();
        check(&SwitchPolicy::OnEvent("backup-done".into())).unwrap();
        assert!(check(&SwitchPolicy::At(1)).unwrap_err().contains("1970"));
        check(&SwitchPolicy::OnEvent("../x".into())).unwrap_err();
    }
}
