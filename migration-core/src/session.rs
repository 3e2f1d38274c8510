//! A session: several pairs that are started, switched, undone and ended together.
//!
//! The session's state is that of the pair which is furthest behind: the one that the operator has
//! to wait for, or has to check. From the furthest behind to the furthest ahead:
//!
//! ```text
//! needs-recovery  failed  degraded  setup  queued  paused  syncing  tracking  verifying
//! source-selected  splitting  split  switching  target-selected  committing  committed
//! retired  cancelled
//! ```
//!
//! So trouble in one pair is the session's state, and `source-selected` means that every pair is at
//! least in sync.
//!
//! A verb concerns every pair. If one pair refuses the verb, the whole session refuses it and
//! nothing is done. Otherwise the verb is done for the pairs that are not there already. Three
//! exceptions:
//!
//! * A pair whose source is authoritative never blocks an undo, whatever else is wrong with that
//!   pair. So a switch that a crash interrupted half-way can always be taken back.
//! * A pair that has ended does not block a verb that brings the others to where it ended: a
//!   resume, and after a commit a switch. Nor does it block a start while a target is authoritative
//!   anywhere, so that the session cannot just be cancelled. While the other pairs are not in sync,
//!   it does not block their end either, on whichever side. The role of a pair may have moved
//!   automatically while the session ended, and there must be a next command. When pairs have ended
//!   on both sides, none of them blocks a switch, an undo or an end of the others: the session can
//!   no longer be in one place.
//! * A split concerns all pairs or none: copies of one instant are made at one instant.

use crate::pair::{Decision, PairState, Phase, Position, Reason, Verb, decide};
use crate::route::Side;
use alloc::vec::Vec;
use core::cmp::Reverse;

/// How far a pair is. The lowest rank gives the session's state.
const fn rank(state: PairState) -> u8 {
    match state {
        PairState::NeedsRecovery => 0,
        PairState::Failed => 1,
        PairState::Degraded => 2,
        PairState::Setup => 3,
        PairState::Queued => 4,
        PairState::Paused => 5,
        PairState::Syncing => 6,
        PairState::Tracking => 7,
        PairState::Verifying => 8,
        PairState::SourceSelected => 9,
        PairState::Splitting => 10,
        PairState::Split => 11,
        PairState::Switching => 12,
        PairState::TargetSelected => 13,
        PairState::Committing => 14,
        PairState::Committed => 15,
        PairState::Retired => 16,
        PairState::Cancelled => 17,
    }
}

/// The state of the pair that is furthest behind; `None` without pairs.
#[must_use]
pub fn state(pairs: &[Position]) -> Option<PairState> {
    pairs
        .iter()
        .map(|position| position.state)
        .min_by_key(|state| rank(*state))
}

/// What a verb does to a whole session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SessionDecision {
    /// Do it for these pairs, given by their indexes in the list; the others are there already.
    Do(Vec<usize>),
    /// Every pair is there already.
    Already,
    /// One pair does not allow the verb.
    Refuse {
        /// The index of that pair in the list.
        pair: usize,
        /// The reason.
        reason: Reason,
    },
}

/// Decides whether a verb is allowed for a session.
#[must_use]
pub fn decide_session(verb: Verb, pairs: &[Position]) -> SessionDecision {
    let decisions: Vec<Decision> = pairs
        .iter()
        .map(|position| decide(verb, *position))
        .collect();
    let to_do: Vec<usize> = (0..pairs.len())
        .filter(|index| decisions[*index] == Decision::Do)
        .collect();
    for (index, decision) in decisions.iter().enumerate() {
        if let Decision::Refuse { reason } = decision {
            let undone = verb == Verb::Undo && pairs[index].authoritative == Side::Source;
            let held_up = to_do.is_empty() || !(undone || follows(verb, pairs, index, &to_do));
            if held_up {
                return SessionDecision::Refuse {
                    pair: index,
                    reason: *reason,
                };
            }
        }
    }
    let left_out = (0..pairs.len()).find(|index| !to_do.contains(index));
    if to_do.is_empty() {
        SessionDecision::Already
    } else if let (Verb::Split, Some(pair)) = (verb, left_out) {
        let reason = Reason::Split;
        SessionDecision::Refuse { pair, reason }
    } else {
        SessionDecision::Do(to_do)
    }
}

/// Whether the pair `ended` has ended, and the verb lets the pairs `to_do` follow it, or end where
/// they are.
fn follows(verb: Verb, pairs: &[Position], ended: usize, to_do: &[usize]) -> bool {
    let Position {
        state,
        authoritative,
    } = pairs[ended];
    let differs = |index: &usize| {
        let state = pairs[*index].state;
        rank(state) < rank(PairState::SourceSelected) && state != PairState::Verifying
    };
    let ended_on = |side: Side| {
        let mut pairs = pairs.iter();
        pairs.any(|pair| pair.state.is_ended() && pair.authoritative == side)
    };
    let apart = ended_on(Side::Source) && ended_on(Side::Target);
    let mut all = pairs.iter();
    let any_on_target = all.any(|pair| pair.authoritative == Side::Target);
    state.is_ended()
        && match verb {
            Verb::Resume => true,
            Verb::Switch => apart || authoritative == Side::Target,
            Verb::Undo => apart,
            Verb::Commit | Verb::Cancel => apart || to_do.iter().all(differs),
            Verb::Start => any_on_target,
            Verb::Pause | Verb::Split => false,
        }
}

/// Why shuntd cannot count on an answer of a pair's volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Silence {
    /// It has not reported its route since shuntd began.
    Unseen,
    /// Its ublk-target cannot be started.
    Down,
}

impl Silence {
    /// The silence of a volume whose ublk-target has failed to start `failures` times in a row.
    /// `None`: it answers, or did so until it was restarted a moment ago.
    #[must_use]
    pub const fn of(failures: u32, has_reported: bool) -> Option<Self> {
        match (failures, has_reported) {
            (0, true) => None,
            (0, false) => Some(Self::Unseen),
            (1.., _) => Some(Self::Down),
        }
    }
}

/// Whether a verb that is allowed can be begun with a pair. An operation waits for a ublk-target
/// that is being restarted, but not for one that cannot be started. A session ends only where all
/// pairs are known to be: the role of a pair that has not reported may have moved.
///
/// # Errors
/// The reason to refuse the verb.
pub const fn require_contact(
    verb: Verb,
    phase: Phase,
    silence: Option<Silence>,
) -> Result<(), Silence> {
    let ends = matches!(verb, Verb::Commit | Verb::Cancel);
    let needs_volume = match verb {
        Verb::Pause => false,
        Verb::Cancel => !matches!(phase, Phase::Setup | Phase::Queued),
        Verb::Start | Verb::Resume | Verb::Switch | Verb::Undo | Verb::Split | Verb::Commit => true,
    };
    match silence {
        Some(Silence::Unseen) if needs_volume && ends => Err(Silence::Unseen),
        Some(Silence::Down) if needs_volume => Err(Silence::Down),
        Some(Silence::Unseen | Silence::Down) | None => Ok(()),
    }
}

/// Whether a commit or a cancel that a crash of shuntd interrupted can be finished
/// ([`Settlement::Finish`](crate::pair::Settlement::Finish)); the positions of all pairs are known.
/// If not (the role of another pair has moved meanwhile), the pair becomes active again: otherwise
/// neither this pair nor the others would allow any verb.
#[must_use]
pub fn can_finish(verb: Verb, pairs: &[Position]) -> bool {
    matches!(decide_session(verb, pairs), SessionDecision::Do(_))
}

/// The verbs that would change something, in the order in which a migration uses them.
#[must_use]
pub fn allowed(pairs: &[Position]) -> Vec<Verb> {
    Verb::ALL
        .into_iter()
        .filter(|verb| matches!(decide_session(*verb, pairs), SessionDecision::Do(_)))
        .collect()
}

/// Whether every pair is in sync with its source, or follows it in passes, and no pair has to be
/// waited for or checked first.
#[must_use]
pub fn may_switch_automatically(pairs: &[Position]) -> bool {
    let in_sync = |position: &Position| {
        matches!(
            position.state,
            PairState::SourceSelected | PairState::Tracking
        )
    };
    !pairs.is_empty() && pairs.iter().all(in_sync)
}

/// Whether the legs of all pairs that have not ended are in sync, so that it makes sense to compare
/// them.
///
/// # Errors
/// The index of a pair that is not in sync; if all have ended, that of the first one.
pub fn may_be_compared(pairs: &[Position]) -> Result<(), usize> {
    let is_equal = |state| {
        matches!(
            state,
            PairState::SourceSelected | PairState::TargetSelected | PairState::Verifying
        )
    };
    let all_ended = pairs.iter().all(|position| position.state.is_ended());
    let wrong = |position: &Position| {
        !is_equal(position.state) && (all_ended || !position.state.is_ended())
    };
    pairs.iter().position(wrong).map_or(Ok(()), Err)
}

/// A pair that waits until fewer pairs are being copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Waiting {
    /// The priority of the pair's session; a higher one comes first.
    pub priority: u8,
    /// When the pair's session was created; at equal priority an earlier one comes first.
    pub since: u64,
}

/// Chooses which waiting pairs to start, given by their indexes in the list, when `copied` of at
/// most `pairs_max` pairs are being copied already. Equal pairs keep the order of the list.
#[must_use]
pub fn admit(waiting: &[Waiting], copied: usize, pairs_max: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..waiting.len()).collect();
    order.sort_by_key(|index| (Reverse(waiting[*index].priority), waiting[*index].since));
    order.truncate(pairs_max.saturating_sub(copied));
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn at(state: PairState) -> Position {
        let authoritative = match state {
            PairState::TargetSelected | PairState::Committing | PairState::Committed => {
                Side::Target
            }
            _ => Side::Source,
        };
        Position {
            state,
            authoritative,
        }
    }

    #[test]
    fn an_interrupted_commit_is_finished_unless_another_pair_is_elsewhere() {
        use PairState as P;
        let positions = |states: [PairState; 2]| states.map(at);
        for other in [P::Committing, P::Committed, P::TargetSelected] {
            assert!(can_finish(Verb::Commit, &positions([P::Committing, other])));
        }
        let elsewhere = positions([P::Committing, P::SourceSelected]);
        assert!(!can_finish(Verb::Commit, &elsewhere));
        // It would have no next command otherwise.
        assert_eq!(allowed(&elsewhere), []);
        let taken_back = positions([P::TargetSelected, P::SourceSelected]);
        assert_eq!(
            allowed(&taken_back),
            [Verb::Pause, Verb::Switch, Verb::Undo]
        );
    }

    #[test]
    fn a_session_is_split_as_a_whole() {
        use PairState as P;
        let decided = |pairs: &[PairState]| {
            let positions: Vec<Position> = pairs.iter().map(|state| at(*state)).collect();
            decide_session(Verb::Split, &positions)
        };
        let whole = SessionDecision::Do(vec![0, 1]);
        assert_eq!(decided(&[P::SourceSelected, P::SourceSelected]), whole);
        assert_eq!(decided(&[P::Split, P::Split]), SessionDecision::Already);
        let refused = SessionDecision::Refuse {
            pair: 1,
            reason: Reason::Split,
        };
        assert_eq!(decided(&[P::SourceSelected, P::Split]), refused);
    }

    #[test]
    fn the_session_is_where_its_hindmost_pair_is() {
        use PairState as P;
        assert_eq!(state(&[]), None);
        assert_eq!(
            state(&[at(P::SourceSelected), at(P::Syncing)]),
            Some(P::Syncing)
        );
        assert_eq!(
            state(&[at(P::TargetSelected), at(P::Degraded)]),
            Some(P::Degraded)
        );
        assert_eq!(
            state(&[at(P::Committed), at(P::TargetSelected)]),
            Some(P::TargetSelected)
        );
    }

    #[test]
    fn ranks_are_unique() {
        let mut ranks: Vec<u8> = PairState::ALL.into_iter().map(rank).collect();
        ranks.sort_unstable();
        ranks.dedup();
        assert_eq!(ranks.len(), PairState::ALL.len());
    }

    #[test]
    fn one_pair_that_refuses_refuses_for_all() {
        use PairState as P;
        assert_eq!(
            decide_session(Verb::Switch, &[at(P::SourceSelected), at(P::Syncing)]),
            SessionDecision::Refuse {
                pair: 1,
                reason: Reason::NotInSync
            }
        );
    }

    #[test]
    fn a_half_switched_session_can_be_switched_or_undone() {
        use PairState as P;
        let half = [at(P::TargetSelected), at(P::SourceSelected)];
        assert_eq!(
            decide_session(Verb::Switch, &half),
            SessionDecision::Do(vec![1])
        );
        assert_eq!(
            decide_session(Verb::Undo, &half),
            SessionDecision::Do(vec![0])
        );
        let half = [at(P::TargetSelected), at(P::Syncing)];
        assert_eq!(
            decide_session(Verb::Undo, &half),
            SessionDecision::Do(vec![0])
        );
    }

    #[test]
    fn an_undo_of_a_session_that_was_never_switched_is_refused_or_already() {
        use PairState as P;
        assert!(matches!(
            decide_session(Verb::Undo, &[at(P::Syncing)]),
            SessionDecision::Refuse { .. }
        ));
        assert_eq!(
            decide_session(Verb::Undo, &[at(P::SourceSelected)]),
            SessionDecision::Already
        );
    }

    #[test]
    fn a_session_that_ended_in_part_has_a_next_command_wherever_the_rest_is() {
        use PairState as P;
        let ended = [
            (P::Committed, Side::Target),
            (P::Retired, Side::Target),
            (P::Cancelled, Side::Source),
        ];
        let rest = [P::Syncing, P::Paused, P::SourceSelected, P::TargetSelected]
            .into_iter()
            .chain([P::Degraded, P::Failed, P::NeedsRecovery]);
        for state in rest {
            for (ended, side) in ended {
                for authoritative in [Side::Source, Side::Target] {
                    if at(state).authoritative != authoritative
                        && matches!(state, P::SourceSelected | P::TargetSelected)
                    {
                        continue;
                    }
                    let ended = Position {
                        state: ended,
                        authoritative: side,
                    };
                    let rest = Position {
                        state,
                        authoritative,
                    };
                    assert!(!allowed(&[ended, rest]).is_empty(), "{ended:?} {rest:?}");
                }
            }
        }
    }

    /// Every combination of up to three pairs. What is under way ends, also a copy, a queued pair
    /// gets its turn, and a volume that does not answer, or whose route contradicts the record, is
    /// brought back first.
    #[test]
    fn a_session_that_has_not_ended_has_a_next_command() {
        use PairState as P;
        let all: Vec<Position> = P::ALL
            .into_iter()
            .flat_map(|state| {
                [Side::Source, Side::Target].map(|authoritative| Position {
                    state,
                    authoritative,
                })
            })
            .filter(|position| match position.state {
                P::Paused | P::Degraded | P::Verifying => true,
                P::TargetSelected | P::Committed | P::Retired => {
                    position.authoritative == Side::Target
                }
                P::Setup | P::Tracking | P::SourceSelected | P::Split | P::Cancelled => {
                    position.authoritative == Side::Source
                }
                P::Queued | P::Syncing | P::Splitting | P::Switching | P::Committing => false,
                P::Failed | P::NeedsRecovery => false,
            })
            .collect();
        let mut sessions: Vec<Vec<Position>> = vec![Vec::new()];
        for _ in 0..3 {
            let longer = sessions.iter().flat_map(|session| {
                all.iter()
                    .map(|position| session.iter().copied().chain([*position]).collect())
            });
            sessions = longer.chain([Vec::new()]).collect();
        }
        let is_live = |session: &&Vec<Position>| session.iter().any(|pair| !pair.state.is_ended());
        let stuck = |session: &&Vec<Position>| allowed(session).is_empty();
        let stuck: Vec<_> = sessions.iter().filter(is_live).filter(stuck).collect();
        assert!(stuck.is_empty(), "{} {stuck:#?}", stuck.len());
    }

    #[test]
    fn the_highest_priority_and_then_the_oldest_session_comes_first_while_there_is_a_place() {
        let waiting = |priority, since| Waiting { priority, since };
        let list = [
            waiting(50, 7),
            waiting(50, 3),
            waiting(90, 9),
            waiting(50, 3),
        ];
        assert_eq!(admit(&list, 0, 9), [2, 1, 3, 0]);
        assert_eq!(admit(&list, 1, 3), [2, 1]);
        assert_eq!(admit(&list, 3, 3), []);
        assert_eq!(admit(&list, 4, 3), []);
        assert_eq!(admit(&[], 0, 3), []);
    }

    #[test]
    fn only_a_session_that_is_in_sync_everywhere_is_switched_by_itself() {
        use PairState as P;
        assert!(may_switch_automatically(&[at(P::SourceSelected)]));
        assert!(!may_switch_automatically(&[]));
        for other in P::ALL {
            let pairs = [at(P::SourceSelected), at(other)];
            let expected = matches!(other, P::SourceSelected | P::Tracking);
            assert_eq!(may_switch_automatically(&pairs), expected, "{other}");
        }
    }

    #[test]
    fn a_verb_needs_a_volume_that_can_be_started_and_an_end_one_that_has_reported() {
        for (failures, has_reported, silence) in [
            (0, true, None),
            (0, false, Some(Silence::Unseen)),
            (1, true, Some(Silence::Down)),
            (9, false, Some(Silence::Down)),
        ] {
            assert_eq!(Silence::of(failures, has_reported), silence);
            for (verb, phase) in Verb::ALL
                .into_iter()
                .flat_map(|verb| Phase::ALL.map(|phase| (verb, phase)))
            {
                let never_mirrored = matches!(phase, Phase::Setup | Phase::Queued);
                let may = match (silence, verb) {
                    (None, _) | (_, Verb::Pause) => true,
                    (_, Verb::Cancel) => never_mirrored,
                    (Some(Silence::Unseen), verb) => verb != Verb::Commit,
                    (Some(Silence::Down), _) => false,
                };
                let found = require_contact(verb, phase, silence);
                let expected = silence.filter(|_| !may).map_or(Ok(()), Err);
                assert_eq!(found, expected, "{verb} {phase:?} {silence:?}");
            }
        }
    }

    #[test]
    fn legs_are_compared_where_every_pair_that_has_not_ended_is_in_sync() {
        use PairState as P;
        for state in P::ALL {
            let in_sync = matches!(state, P::SourceSelected | P::TargetSelected | P::Verifying);
            let alone = may_be_compared(&[at(state)]);
            assert_eq!(alone.is_ok(), in_sync, "{state}");
            let expected = if in_sync || state.is_ended() {
                Ok(())
            } else {
                Err(1)
            };
            let pairs = [at(P::SourceSelected), at(state)];
            assert_eq!(may_be_compared(&pairs), expected, "{state}");
        }
        let ended = [at(P::Committed), at(P::Committed)];
        assert_eq!(may_be_compared(&ended), Err(0));
    }

    #[test]
    fn a_half_committed_session_can_only_be_committed() {
        use PairState as P;
        let half = [at(P::Committed), at(P::TargetSelected)];
        assert_eq!(allowed(&half), vec![Verb::Commit]);
    }
}
