//! What a session does automatically: its scheduled start, its switch, and its splits.
//!
//! The [`Policy`] of a session says from when on it is switched, or split in [`Mode::Copy`]. What
//! is due then follows from the states of its pairs:
//!
//! | mode | pairs | due |
//! |---|---|---|
//! | mirror | all in sync with the source | switch |
//! | track | all in sync with the source, or tracking | switch |
//! | copy | all in sync with the source | split |
//! | copy, not paused by the operator | the hindmost is split or paused | resume |
//! | any | otherwise | nothing |
//!
//! With [`Scope::Each`] a pair is switched as soon as the first two rows hold for it alone, unless
//! it was switched before, or another pair is cancelled already.
//!
//! A switch and an undo set the policy to [`Policy::Manual`]: what the operator, or a failure of
//! the target, has taken back is not repeated automatically. After a split [`next_split`] decides.
//! An action that failed is repeated with a growing delay ([`Attempts`]).
//!
//! No clock: times are arguments.

use alloc::vec::Vec;
use core::time::Duration;

use crate::pair::{PairState, Phase, Position, Verb};
use crate::route::Side;
use crate::session::{self, SessionDecision};
use crate::units::{Time, WallTime};

/// The first and the longest delay until an automatic action is repeated, in nanoseconds.
const AGAIN_FIRST: u64 = 5_000_000_000;
const AGAIN_MAX: u64 = 300_000_000_000;

/// The purpose of the targets of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The data moves to the targets; writes are mirrored.
    Mirror,
    /// The data moves to the targets; before the switch, what was written is copied in passes.
    Track,
    /// The targets become copies at an instant: the session is split, and never switched.
    Copy,
}

/// When a session is switched, or split in [`Mode::Copy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Policy {
    /// Only when the operator asks for it.
    Manual,
    /// As soon as it is in sync.
    WhenSynced,
    /// As soon as it is in sync, but not before this time.
    At(WallTime),
    /// As soon as it is in sync after an event that was not signalled yet.
    OnEvent,
}

impl Policy {
    /// Whether the session waits only for its pairs.
    #[must_use]
    pub fn is_due(self, now: WallTime) -> bool {
        match self {
            Self::Manual | Self::OnEvent => false,
            Self::WhenSynced => true,
            Self::At(at) => at <= now,
        }
    }
}

/// Which pairs of a session are switched together when the switch is automatic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// All of them, or none.
    Together,
    /// Each one as soon as it is in sync.
    Each,
}

/// What the operator chose for a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Schedule {
    /// The purpose of the targets.
    pub mode: Mode,
    /// When the session is switched or split.
    pub policy: Policy,
    /// Which pairs are switched together.
    pub scope: Scope,
    /// Whether the operator stopped the copy.
    pub paused: bool,
}

/// A pair of a session with a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ScheduledPair {
    /// Its position.
    pub position: Position,
    /// Its phase.
    pub phase: Phase,
    /// Whether its target has become authoritative, and the role has not moved back since.
    pub switched: bool,
}

/// An automatic action. If the verb, the pairs or the policy differ, it is a different action, with
/// its own delays.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DueAction {
    /// What is done.
    pub verb: Verb,
    /// The pairs with which it is done, in the order of the session.
    pub pairs: Vec<usize>,
    /// Why it is due.
    pub policy: Policy,
}

impl Schedule {
    /// The action that is due now, if there is one. None is due in a session that was cancelled in
    /// part: all of its pairs are to end on the source, and a split target that is left is a copy
    /// to be kept.
    #[must_use]
    pub fn due(&self, pairs: &[ScheduledPair], now: WallTime) -> Option<DueAction> {
        if !self.policy.is_due(now) || pairs.iter().any(|pair| pair.phase.is_cancelled()) {
            return None;
        }
        let (verb, pairs) = match (self.scope, self.mode) {
            (Scope::Each, Mode::Mirror | Mode::Track) => {
                let pairs = self.pairs_to_switch(pairs);
                (!pairs.is_empty()).then_some((Verb::Switch, pairs))?
            }
            (Scope::Together, Mode::Mirror | Mode::Track)
            | (Scope::Together | Scope::Each, Mode::Copy) => {
                let positions: Vec<Position> = pairs.iter().map(|pair| pair.position).collect();
                let verb = self.verb(&positions)?;
                (verb, pairs_to_do(verb, &positions)?)
            }
        };
        Some(DueAction {
            verb,
            pairs,
            policy: self.policy,
        })
    }

    /// The pairs that are switched each on its own. A pair whose role a failure of the target has
    /// moved back is not switched again.
    fn pairs_to_switch(&self, pairs: &[ScheduledPair]) -> Vec<usize> {
        let is_ready = |pair: &ScheduledPair| {
            !pair.switched && self.may_switch(core::slice::from_ref(&pair.position))
        };
        (0..pairs.len())
            .filter(|index| is_ready(&pairs[*index]))
            .collect()
    }

    /// Whether the pairs may be switched, or split, automatically. A session of mode `mirror`
    /// tracks for a while when its target has stalled: it is not switched then, because that would
    /// slow its writes.
    fn may_switch(&self, positions: &[Position]) -> bool {
        let tracks = |position: &Position| position.state == PairState::Tracking;
        let may_track = self.mode == Mode::Track;
        session::may_switch_automatically(positions) && (may_track || !positions.iter().any(tracks))
    }

    fn verb(&self, positions: &[Position]) -> Option<Verb> {
        let in_sync = self.may_switch(positions);
        match self.mode {
            Mode::Mirror | Mode::Track => in_sync.then_some(Verb::Switch),
            Mode::Copy if in_sync => Some(Verb::Split),
            Mode::Copy => {
                // In a session that the operator did not pause, a failed split can leave pairs
                // paused.
                let apart = [PairState::Split, PairState::Paused].map(Some);
                let resumes = !self.paused && apart.contains(&session::state(positions));
                resumes.then_some(Verb::Resume)
            }
        }
    }
}

fn pairs_to_do(verb: Verb, positions: &[Position]) -> Option<Vec<usize>> {
    match session::decide_session(verb, positions) {
        SessionDecision::Do(pairs) => Some(pairs),
        SessionDecision::Already | SessionDecision::Refuse { .. } => None,
    }
}

/// Whether a pair is left to be switched, as far as it alone decides that. While one is left, a
/// switch of others does not set the policy to manual
/// ([`Plan::is_last`](crate::operation::Plan::is_last)).
#[must_use]
pub const fn is_to_be_switched(phase: Phase, authoritative: Side, switched: bool) -> bool {
    matches!(authoritative, Side::Source) && !switched && !phase.is_ended()
}

/// The start of a session that was scheduled for the time `at`, if it is due now. A session that
/// was started before is not started again.
#[must_use]
pub fn due_start(at: WallTime, positions: &[Position], now: WallTime) -> Option<DueAction> {
    let has_ended = positions.iter().any(|position| position.state.is_ended());
    if at > now || has_ended || session::state(positions) != Some(PairState::Setup) {
        return None;
    }
    Some(DueAction {
        verb: Verb::Start,
        pairs: pairs_to_do(Verb::Start, positions)?,
        policy: Policy::At(at),
    })
}

/// The time of the next split of a session that was split at the time `now` because of `policy`;
/// `None`: the operator asks for it. `every`: the interval; zero: there is none.
///
/// The rhythm of a session is kept; splits that were missed are not made up for.
#[must_use]
pub fn next_split(policy: Policy, every: Duration, now: WallTime) -> Option<WallTime> {
    let every = u64::try_from(every.as_millis()).unwrap_or(u64::MAX);
    let next = match policy {
        _ if every == 0 => return None,
        Policy::At(at) => {
            let missed = now.0.saturating_sub(at.0) / every;
            at.0.saturating_add(every.saturating_mul(missed + 1))
        }
        Policy::Manual | Policy::WhenSynced | Policy::OnEvent => now.0.saturating_add(every),
    };
    Some(WallTime(next))
}

/// What a session attempted automatically.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Attempts {
    last: Option<Attempt>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Attempt {
    action: DueAction,
    /// The delay until the next attempt, in nanoseconds, and when it ends.
    delay: u64,
    not_before: Time,
}

impl Attempts {
    /// Whether an action that is due may be attempted now. If so, it counts as attempted: the next
    /// attempt has to wait, and longer each time.
    pub fn begin(&mut self, action: &DueAction, now: Time) -> bool {
        let last = self.last.as_ref().filter(|last| last.action == *action);
        if last.is_some_and(|last| now < last.not_before) {
            return false;
        }
        let delay = last.map_or(AGAIN_FIRST, |last| (last.delay * 2).min(AGAIN_MAX));
        self.last = Some(Attempt {
            action: action.clone(),
            delay,
            not_before: now.plus(delay),
        });
        true
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    const NOW: WallTime = WallTime(1000);

    fn at(state: PairState) -> Position {
        let authoritative = match state {
            PairState::TargetSelected
            | PairState::Committing
            | PairState::Committed
            | PairState::Retired => Side::Target,
            _ => Side::Source,
        };
        Position {
            state,
            authoritative,
        }
    }

    fn pair(state: PairState) -> ScheduledPair {
        let phase = match state {
            PairState::Cancelled => Phase::Cancelled,
            PairState::Committed | PairState::Retired => Phase::Committed,
            _ => Phase::Active,
        };
        ScheduledPair {
            position: at(state),
            phase,
            switched: false,
        }
    }

    const fn schedule(mode: Mode, scope: Scope) -> Schedule {
        Schedule {
            mode,
            policy: Policy::WhenSynced,
            scope,
            paused: false,
        }
    }

    fn due(schedule: &Schedule, pairs: &[ScheduledPair]) -> Option<(Verb, Vec<usize>)> {
        let action = schedule.due(pairs, NOW)?;
        assert_eq!(action.policy, schedule.policy);
        Some((action.verb, action.pairs))
    }

    #[test]
    fn a_switch_is_due_at_its_time() {
        for (policy, due) in [
            (Policy::WhenSynced, true),
            (Policy::Manual, false),
            (Policy::OnEvent, false),
            (Policy::At(WallTime(0)), true),
            (Policy::At(WallTime(999)), true),
            (Policy::At(NOW), true),
            (Policy::At(WallTime(1001)), false),
        ] {
            assert_eq!(policy.is_due(NOW), due, "{policy:?}");
            let schedule = Schedule {
                policy,
                ..schedule(Mode::Mirror, Scope::Together)
            };
            let found = schedule.due(&[pair(PairState::SourceSelected)], NOW);
            assert_eq!(found.is_some(), due, "{policy:?}");
        }
    }

    /// The table of the module: what is due when one pair is in sync, and the other in any state.
    #[test]
    fn what_is_due_follows_from_the_mode_and_the_states() {
        use PairState as P;
        for state in P::ALL {
            let pairs = [pair(P::SourceSelected), pair(state)];
            for scope in [Scope::Together, Scope::Each] {
                let of = |mode| due(&schedule(mode, scope), &pairs);
                let alone = scope == Scope::Each && state != P::Cancelled;
                let first = alone.then(|| (Verb::Switch, vec![0]));
                let both = Some((Verb::Switch, vec![0, 1]));
                let (mirror, track, copy) = match state {
                    P::SourceSelected => (both.clone(), both, Some((Verb::Split, vec![0, 1]))),
                    P::Tracking => (first, both, None),
                    P::Paused => (first.clone(), first, Some((Verb::Resume, vec![1]))),
                    // The hindmost pair is the one that is in sync.
                    P::Split
                    | P::Setup
                    | P::Queued
                    | P::Syncing
                    | P::Splitting
                    | P::Switching
                    | P::TargetSelected
                    | P::Committing
                    | P::Committed
                    | P::Retired
                    | P::Cancelled
                    | P::Failed
                    | P::NeedsRecovery
                    | P::Degraded
                    | P::Verifying => (first.clone(), first, None),
                };
                assert_eq!(of(Mode::Mirror), mirror, "mirror, {scope:?}, {state}");
                assert_eq!(of(Mode::Track), track, "track, {scope:?}, {state}");
                assert_eq!(of(Mode::Copy), copy, "copy, {scope:?}, {state}");
            }
        }
    }

    #[test]
    fn a_session_that_tracks_only_until_its_target_has_caught_up_is_not_switched_meanwhile() {
        let [in_sync, tracks, copies] = [
            PairState::SourceSelected,
            PairState::Tracking,
            PairState::Syncing,
        ]
        .map(pair);
        for (mode, pairs, may) in [
            (Mode::Mirror, [in_sync, in_sync], true),
            (Mode::Mirror, [in_sync, tracks], false),
            (Mode::Track, [in_sync, tracks], true),
            (Mode::Track, [copies, tracks], false),
        ] {
            let found = due(&schedule(mode, Scope::Together), &pairs);
            assert_eq!(found.is_some(), may, "{mode:?} {pairs:?}");
        }
    }

    #[test]
    fn a_switch_of_one_pair_that_was_taken_back_is_not_repeated() {
        let in_sync = pair(PairState::SourceSelected);
        let switched = ScheduledPair {
            switched: true,
            ..in_sync
        };
        let each = schedule(Mode::Mirror, Scope::Each);
        let switch = |pairs| Some((Verb::Switch, pairs));
        assert_eq!(due(&each, &[in_sync, switched]), switch(vec![0]));
        assert_eq!(due(&each, &[switched, switched]), None);
        assert_eq!(due(&each, &[]), None);
        // A session that is switched as a whole is manual after an undo.
        let together = schedule(Mode::Mirror, Scope::Together);
        assert_eq!(due(&together, &[in_sync, switched]), switch(vec![0, 1]));
    }

    #[test]
    fn a_session_that_is_cancelled_in_part_is_not_switched_and_one_that_is_committed_is() {
        let each = schedule(Mode::Mirror, Scope::Each);
        for (ended, switched) in [
            (PairState::Cancelled, None),
            (PairState::Committed, Some((Verb::Switch, vec![0]))),
            (PairState::Retired, Some((Verb::Switch, vec![0]))),
        ] {
            let pairs = [pair(PairState::SourceSelected), pair(ended)];
            assert_eq!(due(&each, &pairs), switched, "{ended}");
            // As the operator may switch it.
            let by_hand = session::decide_session(Verb::Switch, &pairs.map(|pair| pair.position));
            let may = matches!(by_hand, SessionDecision::Do(_));
            assert_eq!(may, switched.is_some(), "{ended}");
        }
        // A cancel that has not ended yet shows in the phase only.
        let cancelling = ScheduledPair {
            phase: Phase::Cancelling,
            ..pair(PairState::NeedsRecovery)
        };
        let pairs = [pair(PairState::SourceSelected), cancelling];
        assert_eq!(due(&each, &pairs), None);
    }

    #[test]
    fn a_copy_that_a_cancel_has_left_is_not_overwritten() {
        let copies = schedule(Mode::Copy, Scope::Together);
        let split = pair(PairState::Split);
        assert_eq!(due(&copies, &[split]), Some((Verb::Resume, vec![0])));
        assert_eq!(due(&copies, &[split, pair(PairState::Cancelled)]), None);
    }

    #[test]
    fn a_pair_is_to_be_switched_until_it_was_switched_or_has_ended() {
        for phase in Phase::ALL {
            for (side, switched, left) in [
                (Side::Source, false, !phase.is_ended()),
                (Side::Source, true, false),
                (Side::Target, false, false),
                (Side::Target, true, false),
            ] {
                let found = is_to_be_switched(phase, side, switched);
                assert_eq!(found, left, "{phase:?} {side} {switched}");
            }
        }
    }

    #[test]
    fn targets_that_are_apart_are_mirrored_again_unless_the_operator_has_paused() {
        let split = [pair(PairState::Split), pair(PairState::Split)];
        for (pairs, resumed) in [
            (split, vec![0, 1]),
            (
                [pair(PairState::Paused), pair(PairState::Paused)],
                vec![0, 1],
            ),
            (
                [pair(PairState::Split), pair(PairState::Paused)],
                vec![0, 1],
            ),
        ] {
            let copies = schedule(Mode::Copy, Scope::Together);
            assert_eq!(due(&copies, &pairs), Some((Verb::Resume, resumed)));
            let paused = Schedule {
                paused: true,
                ..copies
            };
            assert_eq!(due(&paused, &pairs), None);
        }
    }

    #[test]
    fn a_session_is_started_at_its_time_once() {
        use PairState as P;
        for state in P::ALL {
            let positions = [at(P::Setup), at(state)];
            let started = due_start(NOW, &positions, NOW);
            // In trouble, or a state in which nothing is left to be started.
            let expected = match state {
                P::Setup => Some(vec![0, 1]),
                P::Queued
                | P::Syncing
                | P::Tracking
                | P::Paused
                | P::SourceSelected
                | P::Split
                | P::TargetSelected
                | P::Verifying => Some(vec![0]),
                P::Splitting
                | P::Switching
                | P::Committing
                | P::Committed
                | P::Retired
                | P::Cancelled
                | P::Failed
                | P::NeedsRecovery
                | P::Degraded => None,
            };
            let action = expected.map(|pairs| DueAction {
                verb: Verb::Start,
                pairs,
                policy: Policy::At(NOW),
            });
            assert_eq!(started, action, "{state}");
            assert_eq!(due_start(WallTime(1001), &positions, NOW), None, "{state}");
        }
        assert_eq!(due_start(NOW, &[at(P::Queued)], NOW), None);
        assert_eq!(due_start(NOW, &[], NOW), None);
    }

    #[test]
    fn after_a_split_comes_the_next_one_in_its_rhythm() {
        let every = Duration::from_millis(100);
        let at = |at| Policy::At(WallTime(at));
        for (policy, every, next) in [
            (at(1000), every, Some(1100)),
            (at(950), every, Some(1050)),
            // Nine were missed.
            (at(50), every, Some(1050)),
            // A clock that was set back.
            (at(5000), every, Some(5100)),
            (Policy::Manual, every, Some(1100)),
            (Policy::WhenSynced, every, Some(1100)),
            (Policy::OnEvent, every, Some(1100)),
            (at(950), Duration::ZERO, None),
            (Policy::WhenSynced, Duration::ZERO, None),
            (at(950), Duration::MAX, Some(u64::MAX)),
        ] {
            let found = next_split(policy, every, NOW);
            assert_eq!(found, next.map(WallTime), "{policy:?} {every:?}");
        }
    }

    proptest! {
        #[test]
        fn the_next_split_is_later_and_keeps_the_rhythm(
            at in 0u64..1 << 42,
            every in 1u64..1 << 36,
            now in 0u64..1 << 42,
        ) {
            let policy = Policy::At(WallTime(at));
            let next = next_split(policy, Duration::from_millis(every), WallTime(now)).unwrap();
            prop_assert!(next.0 > now && next.0 > at);
            prop_assert_eq!((next.0 - at) % every, 0);
            prop_assert!(next.0 <= now.max(at) + every);
        }
    }

    #[test]
    fn an_action_is_attempted_again_later_and_later() {
        let action = |verb, pairs| DueAction {
            verb,
            pairs,
            policy: Policy::WhenSynced,
        };
        let switch = action(Verb::Switch, vec![0]);
        let mut attempts = Attempts::default();
        let mut now = Time(7);
        for seconds in [5, 10, 20, 40, 80, 160, 300, 300] {
            assert!(attempts.begin(&switch, now), "{seconds}");
            let next = now.plus(seconds * 1_000_000_000);
            let before = Time(next.0 - 1);
            let unchanged = attempts.clone();
            assert!(!attempts.begin(&switch, now) && !attempts.begin(&switch, before));
            assert_eq!(attempts, unchanged, "what may not begin changes nothing");
            // A different action has delays of its own.
            let later = Policy::At(WallTime(1));
            for other in [
                action(Verb::Resume, vec![0]),
                action(Verb::Switch, vec![0, 1]),
                DueAction {
                    policy: later,
                    ..switch.clone()
                },
            ] {
                let mut attempts = attempts.clone();
                assert!(attempts.begin(&other, now), "{other:?}");
                assert!(
                    !attempts.begin(&other, now.plus(4_999_999_999)),
                    "{other:?}"
                );
                assert!(attempts.begin(&other, now.plus(5_000_000_000)), "{other:?}");
                // It is the last one from now on.
                assert!(attempts.begin(&switch, before));
            }
            now = next;
        }
    }
}
