use super::*;
use alloc::string::String;

/// The second table of the module, with one row for each authoritative side.
const TABLE: [(PairState, Side, &str); 36] = {
    use PairState as P;
    use Side::{Source, Target};
    [
        (P::Setup, Source, "D......D"),
        (P::Setup, Target, "D......D"),
        (P::Queued, Source, "=D=....D"),
        (P::Queued, Target, "=D=....D"),
        (P::Syncing, Source, "=D=....D"),
        (P::Syncing, Target, "=D=...D."),
        (P::Tracking, Source, "=D=D=..D"),
        (P::Tracking, Target, "=D=D=..D"),
        (P::Paused, Source, "==D....D"),
        (P::Paused, Target, "==D...D."),
        (P::Degraded, Source, "=DD....D"),
        (P::Degraded, Target, "=DD...D."),
        (P::SourceSelected, Source, "=D=D=D.D"),
        (P::SourceSelected, Target, "=D=D=D.D"),
        (P::Splitting, Source, "........"),
        (P::Splitting, Target, "........"),
        (P::Split, Source, "=DD..=.D"),
        (P::Split, Target, "=DD..=.D"),
        (P::TargetSelected, Source, "=D==D.D."),
        (P::TargetSelected, Target, "=D==D.D."),
        (P::Switching, Source, "........"),
        (P::Switching, Target, "........"),
        (P::Verifying, Source, "=D=D=D.D"),
        (P::Verifying, Target, "=D==D.D."),
        (P::Committing, Source, "......D."),
        (P::Committing, Target, "......D."),
        (P::Committed, Source, "......=."),
        (P::Committed, Target, "......=."),
        (P::Retired, Source, "......=."),
        (P::Retired, Target, "......=."),
        (P::Cancelled, Source, ".......="),
        (P::Cancelled, Target, ".......="),
        (P::Failed, Source, ".......D"),
        (P::Failed, Target, "......D."),
        (P::NeedsRecovery, Source, ".......D"),
        (P::NeedsRecovery, Target, "......D."),
    ]
};

#[test]
fn every_verb_in_every_state_is_decided_as_the_table_says() {
    for (state, authoritative, expected) in TABLE {
        let position = Position {
            state,
            authoritative,
        };
        let decided: String = Verb::ALL
            .into_iter()
            .map(|verb| match decide(verb, position) {
                Decision::Do => 'D',
                Decision::Already => '=',
                Decision::Refuse { .. } => '.',
            })
            .collect();
        assert_eq!(decided, expected, "{state}, {authoritative} rules");
    }
}

#[test]
fn the_table_names_every_state_with_both_sides() {
    for state in PairState::ALL {
        let rows = TABLE.iter().filter(|row| row.0 == state).count();
        assert_eq!(rows, 2, "{state}");
    }
}

const MIRRORED_SOURCE: Route = Route::Mirrored {
    authoritative: Side::Source,
};
const MIRRORED_TARGET: Route = Route::Mirrored {
    authoritative: Side::Target,
};

fn seen(route: Route) -> Seen {
    Seen {
        route,
        ours: true,
        dirty: false,
        tracks: false,
        degraded: false,
        changing: false,
    }
}

fn state(phase: Phase, seen: Option<Seen>) -> PairState {
    Facts {
        phase,
        paused: false,
        last_authoritative: Side::Source,
        seen,
        comparing: false,
        retired: false,
        outside_hours: false,
    }
    .position()
    .state
}

// A table: a row for each phase, with the state for each route.
#[test]
fn the_state_follows_from_phase_and_route() {
    use PairState as P;
    let none = None;
    let source = Some(seen(Route::Single(Side::Source)));
    let target = Some(seen(Route::Single(Side::Target)));
    let both_source = Some(seen(MIRRORED_SOURCE));
    let both_target = Some(seen(MIRRORED_TARGET));
    let foreign = Some(Seen {
        ours: false,
        ..seen(MIRRORED_SOURCE)
    });
    let split = Some(seen(Route::Split));
    let columns = [
        none,
        source,
        target,
        both_source,
        both_target,
        foreign,
        split,
    ];
    let rows = [
        (Phase::Setup, [P::Setup; 7]),
        (
            Phase::Queued,
            [
                P::Queued,
                P::Queued,
                P::Queued,
                P::SourceSelected,
                P::TargetSelected,
                P::Queued,
                P::Paused,
            ],
        ),
        (
            Phase::Starting,
            [
                P::Queued,
                P::Queued,
                P::Queued,
                P::SourceSelected,
                P::TargetSelected,
                P::Queued,
                P::Paused,
            ],
        ),
        (
            Phase::Active,
            [
                P::NeedsRecovery,
                P::NeedsRecovery,
                P::NeedsRecovery,
                P::SourceSelected,
                P::TargetSelected,
                P::NeedsRecovery,
                P::Paused,
            ],
        ),
        (
            Phase::Splitting,
            [
                P::NeedsRecovery,
                P::NeedsRecovery,
                P::NeedsRecovery,
                P::Splitting,
                P::Splitting,
                P::NeedsRecovery,
                P::Splitting,
            ],
        ),
        (
            Phase::Split,
            [
                P::NeedsRecovery,
                P::NeedsRecovery,
                P::NeedsRecovery,
                P::SourceSelected,
                P::TargetSelected,
                P::NeedsRecovery,
                P::Split,
            ],
        ),
        (
            Phase::Switching,
            [
                P::NeedsRecovery,
                P::NeedsRecovery,
                P::NeedsRecovery,
                P::Switching,
                P::Switching,
                P::NeedsRecovery,
                P::NeedsRecovery,
            ],
        ),
        (
            Phase::Undoing,
            [
                P::NeedsRecovery,
                P::NeedsRecovery,
                P::NeedsRecovery,
                P::Switching,
                P::Switching,
                P::NeedsRecovery,
                P::NeedsRecovery,
            ],
        ),
        (
            Phase::Committing,
            [
                P::NeedsRecovery,
                P::NeedsRecovery,
                P::Committing,
                P::Committing,
                P::Committing,
                P::NeedsRecovery,
                P::NeedsRecovery,
            ],
        ),
        (Phase::Committed, [P::Committed; 7]),
        (
            Phase::Cancelling,
            [
                P::NeedsRecovery,
                P::Paused,
                P::NeedsRecovery,
                P::Paused,
                P::Paused,
                P::NeedsRecovery,
                P::Paused,
            ],
        ),
        (Phase::Cancelled, [P::Cancelled; 7]),
    ];
    for (phase, expected) in rows {
        for (seen, expected) in columns.into_iter().zip(expected) {
            assert_eq!(state(phase, seen), expected, "{phase:?} {seen:?}");
        }
    }
}

#[test]
fn degraded_comes_before_paused_and_paused_before_dirty() {
    let dirty = Seen {
        dirty: true,
        ..seen(MIRRORED_SOURCE)
    };
    let mut facts = Facts {
        phase: Phase::Active,
        paused: false,
        last_authoritative: Side::Source,
        seen: Some(dirty),
        comparing: false,
        retired: false,
        outside_hours: false,
    };
    assert_eq!(facts.position().state, PairState::Syncing);
    assert!(facts.wants_copier());
    facts.seen = Some(Seen {
        tracks: true,
        ..seen(MIRRORED_SOURCE)
    });
    assert_eq!(facts.position().state, PairState::Tracking);
    assert!(facts.wants_copier() && facts.holds_place());
    facts.paused = true;
    assert_eq!(facts.position().state, PairState::Paused);
    assert!(!facts.wants_copier());
    facts.seen = Some(Seen {
        degraded: true,
        ..dirty
    });
    assert_eq!(facts.position().state, PairState::Degraded);
    assert!(!facts.wants_copier());
}

#[test]
fn a_queued_pair_wants_a_place_and_one_that_is_copied_has_it() {
    let single = Some(seen(Route::Single(Side::Source)));
    let dirty = Some(Seen {
        dirty: true,
        ..seen(MIRRORED_SOURCE)
    });
    let facts = |phase, seen, paused| Facts {
        phase,
        paused,
        last_authoritative: Side::Source,
        seen,
        comparing: false,
        retired: false,
        outside_hours: false,
    };
    for (phase, seen, paused, wants, holds) in [
        (Phase::Setup, single, false, false, false),
        (Phase::Queued, single, false, true, false),
        (Phase::Queued, None, false, true, false),
        (Phase::Queued, single, true, false, false),
        // The pair was given its place, and the crash of shuntd hides that for a moment.
        (Phase::Queued, dirty, false, false, false),
        (Phase::Starting, single, false, false, true),
        (Phase::Active, dirty, false, false, true),
        (Phase::Active, dirty, true, false, false),
        (
            Phase::Active,
            Some(self::seen(MIRRORED_SOURCE)),
            false,
            false,
            false,
        ),
    ] {
        let facts = facts(phase, seen, paused);
        let found = (facts.wants_place(), facts.holds_place());
        assert_eq!(found, (wants, holds), "{facts:?}");
    }
    let paused = facts(Phase::Queued, single, true).position();
    assert_eq!(paused.state, PairState::Paused);
}

#[test]
fn a_silent_volume_keeps_the_authoritative_side_that_was_last_seen() {
    let facts = Facts {
        phase: Phase::Active,
        paused: false,
        last_authoritative: Side::Target,
        seen: None,
        comparing: false,
        retired: false,
        outside_hours: false,
    };
    assert_eq!(facts.position().authoritative, Side::Target);
    assert_eq!(facts.position().state, PairState::NeedsRecovery);
}

#[test]
fn a_change_that_a_crash_interrupted_is_settled_by_the_route() {
    use Settlement as S;
    let source = seen(Route::Single(Side::Source));
    let target = seen(Route::Single(Side::Target));
    let both_source = seen(MIRRORED_SOURCE);
    let both_target = seen(MIRRORED_TARGET);
    let foreign = Seen {
        ours: false,
        ..both_source
    };
    let split = seen(Route::Split);
    let columns = [source, target, both_source, both_target, foreign, split];
    let active = S::Becomes(Phase::Active);
    let setup = S::Becomes(Phase::Setup);
    let no = S::Contradiction;
    let rows = [
        (
            Phase::Setup,
            [
                S::Nothing,
                S::Nothing,
                active,
                active,
                S::Nothing,
                S::Nothing,
            ],
        ),
        (
            Phase::Queued,
            [
                S::Nothing,
                S::Nothing,
                active,
                active,
                S::Nothing,
                S::Nothing,
            ],
        ),
        (
            Phase::Starting,
            [setup, setup, active, active, setup, active],
        ),
        (
            Phase::Active,
            [no, no, S::Nothing, S::Nothing, no, S::Nothing],
        ),
        (Phase::Splitting, [no, no, active, active, no, active]),
        (Phase::Split, [no, no, active, active, no, S::Nothing]),
        (Phase::Switching, [no, no, active, active, no, no]),
        (Phase::Undoing, [no, no, active, active, no, no]),
        (
            Phase::Committing,
            [
                no,
                S::Becomes(Phase::Committed),
                active,
                S::Finish(Verb::Commit),
                no,
                no,
            ],
        ),
        (Phase::Committed, [S::Nothing; 6]),
        (
            Phase::Cancelling,
            [
                S::Becomes(Phase::Cancelled),
                no,
                S::Finish(Verb::Cancel),
                active,
                no,
                S::Finish(Verb::Cancel),
            ],
        ),
        (Phase::Cancelled, [S::Nothing; 6]),
    ];
    for (phase, expected) in rows {
        for (seen, expected) in columns.iter().zip(expected) {
            assert_eq!(settle(phase, seen), expected, "{phase:?} {seen:?}");
            let changing = Seen {
                changing: true,
                ..*seen
            };
            assert_eq!(settle(phase, &changing), S::Nothing, "{phase:?}");
        }
    }
}

/// The database is older than the map file: the side has the same name in every session, but not
/// the same LUN.
#[test]
fn a_leg_that_another_session_left_settles_nothing() {
    for side in [Side::Source, Side::Target] {
        let seen = Seen {
            ours: false,
            ..seen(Route::Single(side))
        };
        for phase in Phase::ALL {
            let expected = match phase {
                Phase::Setup | Phase::Queued | Phase::Committed | Phase::Cancelled => {
                    Settlement::Nothing
                }
                Phase::Starting => Settlement::Becomes(Phase::Setup),
                Phase::Active
                | Phase::Splitting
                | Phase::Split
                | Phase::Switching
                | Phase::Undoing
                | Phase::Committing
                | Phase::Cancelling => {
                    assert_eq!(state(phase, Some(seen)), PairState::NeedsRecovery);
                    Settlement::Contradiction
                }
            };
            assert_eq!(settle(phase, &seen), expected, "{phase:?} on the {side}");
        }
    }
}

#[test]
fn nothing_is_asked_of_a_pair_while_its_volume_is_changing_its_route() {
    for phase in Phase::ALL {
        let changing = Some(Seen {
            changing: true,
            ..seen(Route::Single(Side::Source))
        });
        let facts = Facts {
            phase,
            paused: false,
            last_authoritative: Side::Source,
            seen: changing,
            comparing: false,
            retired: false,
            outside_hours: false,
        };
        let allowed = allowed(facts.position());
        assert!(allowed.is_empty(), "{phase:?}: {allowed:?}");
    }
}

#[test]
fn phase_names_are_read_back() {
    for phase in Phase::ALL {
        assert_eq!(Phase::from_name(phase.name()), Some(phase));
    }
    assert_eq!(Phase::from_name("other"), None);
}

#[test]
fn a_switch_that_a_crash_interrupted_has_happened_if_the_target_is_authoritative() {
    for (phase, side) in Phase::ALL
        .into_iter()
        .flat_map(|phase| [Side::Source, Side::Target].map(|side| (phase, side)))
    {
        let mut seen = Seen {
            route: Route::Mirrored {
                authoritative: side,
            },
            ours: true,
            dirty: false,
            tracks: false,
            degraded: false,
            changing: false,
        };
        let expected = phase == Phase::Switching && side == Side::Target;
        assert_eq!(has_switched(phase, &seen), expected, "{phase:?} {side}");
        seen.changing = true;
        assert!(!has_switched(phase, &seen), "{phase:?} {side}");
    }
}
