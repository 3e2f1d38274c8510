//! Which sessions are switched automatically, or split in `--mode copy`: as soon as all their pairs
//! are in sync, from a certain time on, or after a signal.
//!
//! The policy is one of the session's options. A switch that fails is retried with a growing
//! interval. A switch that was done, and an undo, set the policy to `manual`: what the operator, or
//! a failure of the target, has taken back is not repeated automatically. After a split the policy
//! is `manual` too, or the time of the next split (`--every`): then the target is mirrored again,
//! and split when it is in sync.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use migration_core::pair::{PairState, Position, Verb};
use migration_core::session::{self, SessionDecision};
use migration_proto::manager::{SessionMode, SessionOptions, SwitchPairs, SwitchPolicy};

use crate::daemon::context::{note, now_ms};
use crate::store::{Change, SessionRow};
use crate::{moments, names};

/// The first and the longest interval until a failed automatic action is retried.
const AGAIN_FIRST: Duration = Duration::from_secs(5);
const AGAIN_MAX: Duration = Duration::from_secs(300);

/// An automatic action that was attempted. If the verb, the pairs or the time differ, it is a
/// different action, with its own retries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DueAction {
    pub(crate) verb: Verb,
    pub(crate) pairs: Vec<usize>,
    pub(crate) policy: SwitchPolicy,
}

impl DueAction {
    /// The action that starts pairs at the time `at_ms`.
    pub(crate) const fn start(at_ms: u64, pairs: Vec<usize>) -> Self {
        Self {
            verb: Verb::Start,
            pairs,
            policy: SwitchPolicy::At(at_ms),
        }
    }
}

/// For each session the last automatic action, the earliest time of its retry, and the delay until
/// then.
#[derive(Debug, Default)]
pub(crate) struct Attempts(BTreeMap<String, (DueAction, Instant, Duration)>);

impl Attempts {
    fn last(&self, session: &str, action: &DueAction) -> Option<(Instant, Duration)> {
        let (last, not_before, delay) = self.0.get(session)?;
        (last == action).then_some((*not_before, *delay))
    }

    pub(crate) fn may_begin(&self, session: &str, action: &DueAction, now: Instant) -> bool {
        let last = self.last(session, action);
        last.is_none_or(|(not_before, _)| not_before <= now)
    }

    pub(crate) fn begin(&mut self, session: &str, action: DueAction, now: Instant) {
        let last = self.last(session, &action);
        let delay = last.map_or(AGAIN_FIRST, |(_, delay)| (delay * 2).min(AGAIN_MAX));
        let attempt = (action, now + delay, delay);
        self.0.insert(session.to_owned(), attempt);
    }
}

/// The next automatic action for a session whose switch is due: the verb and its pairs.
pub(crate) fn due_verb(row: &SessionRow, positions: &[Position]) -> Option<(Verb, Vec<usize>)> {
    let verb = match row.options.switch_pairs {
        SwitchPairs::Each if row.options.mode != SessionMode::Copy => {
            let pairs = pairs_to_switch(row, positions);
            return (!pairs.is_empty()).then_some((Verb::Switch, pairs));
        }
        SwitchPairs::Each | SwitchPairs::Together => verb_that_is_due(row, positions)?,
    };
    match session::decide_session(verb, positions) {
        SessionDecision::Do(pairs) => Some((verb, pairs)),
        SessionDecision::Already | SessionDecision::Refuse { .. } => None,
    }
}

/// The pairs that may be switched automatically and have never been switched: a switch that was
/// taken back is not repeated automatically.
fn pairs_to_switch(row: &SessionRow, positions: &[Position]) -> Vec<usize> {
    let is_ready = |pair: &usize| {
        let position = std::slice::from_ref(&positions[*pair]);
        may_switch(row.options.mode, position) && row.pairs[*pair].progress.switched_ms.is_none()
    };
    (0..positions.len()).filter(is_ready).collect()
}

/// Whether the pairs may be switched automatically. A session of mode `mirror` tracks for a while
/// when its target has stalled: it is not switched then, because that would slow its writes.
fn may_switch(mode: SessionMode, positions: &[Position]) -> bool {
    let tracks = |position: &Position| position.state == PairState::Tracking;
    let may_track = mode == SessionMode::Track;
    session::may_switch_automatically(positions) && (may_track || !positions.iter().any(tracks))
}

fn verb_that_is_due(row: &SessionRow, positions: &[Position]) -> Option<Verb> {
    let in_sync = may_switch(row.options.mode, positions);
    match row.options.mode {
        SessionMode::Mirror | SessionMode::Track => in_sync.then_some(Verb::Switch),
        SessionMode::Copy if in_sync => Some(Verb::Split),
        SessionMode::Copy => {
            // A session that the operator did not pause: a failed split can leave targets split.
            let apart = [PairState::Split, PairState::Paused].map(Some);
            let resumes = !row.paused && apart.contains(&session::state(positions));
            resumes.then_some(Verb::Resume)
        }
    }
}

pub(crate) fn is_due(policy: &SwitchPolicy, now_ms: u64) -> bool {
    match policy {
        SwitchPolicy::Manual | SwitchPolicy::OnEvent(_) => false,
        SwitchPolicy::WhenSynced => true,
        SwitchPolicy::At(at_ms) => *at_ms <= now_ms,
    }
}

/// The policy in words.
pub(crate) fn text(policy: &SwitchPolicy, mode: SessionMode) -> String {
    let done = match mode {
        SessionMode::Mirror | SessionMode::Track => "switched",
        SessionMode::Copy => "split",
    };
    match policy {
        SwitchPolicy::Manual => format!("it is {done} when the operator says so"),
        SwitchPolicy::WhenSynced => format!("it is {done} as soon as it is in sync"),
        SwitchPolicy::At(at_ms) => format!(
            "it is {done} as soon as it is in sync, not before {}",
            moments::text(at_ms / 1000)
        ),
        SwitchPolicy::OnEvent(event) => {
            format!("it is {done} as soon as it is in sync, after `shunt signal {event}`")
        }
    }
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

/// Changes that set the switch policy to manual. `why`: a word for the history.
pub(super) fn by_hand_from_now_on(session: &SessionRow, why: &str) -> Vec<Change> {
    if session.options.switch == SwitchPolicy::Manual {
        return Vec::new();
    }
    with_policy(session, SwitchPolicy::Manual, why)
}

/// The policy after a split: the time of the next split, or manual if there is none.
pub(super) fn after_split(session: &SessionRow, now_ms: u64) -> Vec<Change> {
    let options = &session.options;
    if options.every_seconds == 0 {
        return by_hand_from_now_on(session, "split");
    }
    let every_ms = options.every_seconds.saturating_mul(1000);
    let next_ms = match options.switch {
        // The rhythm is kept; splits that were missed are not made up for.
        SwitchPolicy::At(at_ms) => {
            let missed = now_ms.saturating_sub(at_ms) / every_ms;
            at_ms.saturating_add(every_ms.saturating_mul(missed + 1))
        }
        SwitchPolicy::Manual | SwitchPolicy::WhenSynced | SwitchPolicy::OnEvent(_) => {
            now_ms.saturating_add(every_ms)
        }
    };
    with_policy(session, SwitchPolicy::At(next_ms), "split")
}

pub(crate) fn with_policy(session: &SessionRow, policy: SwitchPolicy, why: &str) -> Vec<Change> {
    let what = format!("{why}: {}", text(&policy, session.options.mode));
    let options = SessionOptions {
        switch: policy,
        ..session.options.clone()
    };
    vec![
        Change::SetOptions(session.name.clone(), options),
        note(Some(&session.name), None, what),
    ]
}

#[cfg(test)]
mod tests {
    use migration_core::route::Side;

    use super::*;

    #[test]
    fn a_switch_is_due_at_its_time_and_tried_again_later_and_later() {
        assert!(is_due(&SwitchPolicy::WhenSynced, 0));
        assert!(!is_due(&SwitchPolicy::Manual, 9));
        assert!(!is_due(&SwitchPolicy::OnEvent("e".into()), 9));
        assert!(!is_due(&SwitchPolicy::At(10), 9));
        assert!(is_due(&SwitchPolicy::At(10), 10));
        let action = |verb| DueAction {
            verb,
            pairs: vec![0],
            policy: SwitchPolicy::WhenSynced,
        };
        let mut attempts = Attempts::default();
        let mut now = Instant::now();
        let mut delays = Vec::new();
        for _ in 0..8 {
            let may = |session, verb| attempts.may_begin(session, &action(verb), now);
            assert!(may("s1", Verb::Switch) && may("s2", Verb::Switch));
            attempts.begin("s1", action(Verb::Switch), now);
            let may = |session, verb| attempts.may_begin(session, &action(verb), now);
            assert!(!may("s1", Verb::Switch) && may("s1", Verb::Resume));
            let (_, next, delay) = attempts.0["s1"];
            delays.push(delay.as_secs());
            now = next;
        }
        assert_eq!(delays, [5, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn a_session_that_tracks_only_until_its_target_has_caught_up_is_not_switched_meanwhile() {
        let position = |state| Position {
            state,
            authoritative: Side::Source,
        };
        let [in_sync, tracks, copies] = [
            PairState::SourceSelected,
            PairState::Tracking,
            PairState::Syncing,
        ]
        .map(position);
        for (mode, positions, may) in [
            (SessionMode::Mirror, vec![in_sync, in_sync], true),
            (SessionMode::Mirror, vec![in_sync, tracks], false),
            (SessionMode::Track, vec![in_sync, tracks], true),
            (SessionMode::Track, vec![copies, tracks], false),
        ] {
            assert_eq!(may_switch(mode, &positions), may, "{mode:?} {positions:?}");
        }
    }

    #[test]
    fn a_time_that_has_passed_and_a_name_that_is_none_are_no_policies() {
        check(&SwitchPolicy::At(u64::MAX)).unwrap();
        check(&SwitchPolicy::OnEvent("backup-done".into())).unwrap();
        assert!(check(&SwitchPolicy::At(1)).unwrap_err().contains("1970"));
        check(&SwitchPolicy::OnEvent("../x".into())).unwrap_err();
    }
}
