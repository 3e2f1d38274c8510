//! Tests every verb in every lasting state: it is done, it is done already, or it is refused with
//! the state and the next command.
//!
//! The table in the core covers the verbs in the transient states (switching, splitting,
//! committing).

use migration_proto::manager::{Request, Response, RetireHow, SessionLimits};

use super::fake::Whim;
use super::world::*;

/// The verbs, in the order of the columns.
const VERBS: [&str; 13] = [
    "start",
    "pause",
    "resume",
    "switch",
    "undo",
    "split",
    "commit",
    "cancel",
    "verify",
    "retire",
    "take-back",
    "set",
    "detach",
];

/// The outcomes for each state. `D`: done. `=`: done already. `.`: refused.
const TABLE: [(&str, &str); 13] = [
    ("setup", "D......D..=D."),
    ("queued", "=D=....D..=D."),
    ("syncing", "=D=....D..=D."),
    ("tracking", "=D=D=..D..=D."),
    ("paused", "==D....D..=D."),
    ("degraded", "=DD....D..=D."),
    ("source-selected", "=D=D=D.DD.=D."),
    ("split", "=DD..=.D..=D."),
    ("target-selected", "=D==D.D.D.=D."),
    ("verifying", "=D=D=D.D=.=D."),
    ("committed", "......=..D=.D"),
    ("retired", "......=..=D.D"),
    ("cancelled", ".......=.D=.D"),
];

fn request(verb: &str) -> Request {
    let session = || "s1".to_owned();
    match verb {
        "start" => start("s1"),
        "pause" => pause("s1"),
        "resume" => resume("s1"),
        "switch" => switch("s1"),
        "undo" => undo("s1"),
        "split" => Request::Split {
            session: session(),
            max_pause_ms: 1000,
        },
        "commit" => commit("s1"),
        "cancel" => cancel("s1"),
        "verify" => verify("s1", false),
        "retire" => Request::Retire {
            session: session(),
            how: RetireHow::Hold,
        },
        "take-back" => Request::TakeBack { session: session() },
        "set" => limits(SessionLimits {
            priority: Some(7),
            ..SessionLimits::default()
        }),
        "detach" => detach("db"),
        other => panic!("{other}"),
    }
}

fn limits(limits: SessionLimits) -> Request {
    Request::SetSession {
        session: "s1".to_owned(),
        limits,
    }
}

/// Creates a session and brings it into `state`.
fn in_state(state: &str) -> World {
    let world = World::new();
    world.changes(&attach("db", &world.lun("a", 2 * MIB, 1)));
    world.changes(&create("s1", &[("db", &world.lun("b", 2 * MIB, 0))]));
    let begun = |whim| {
        world.set("db", whim);
        world.changes(&start("s1"));
    };
    let selected = || {
        world.changes(&start("s1"));
        world.wait_for_state("s1", "source-selected");
    };
    match state {
        "setup" => {}
        "queued" => {
            world.changes(&attach("other", &world.lun("c", MIB, 1)));
            world.changes(&create("s2", &[("other", &world.lun("d", MIB, 0))]));
            world.set("other", Whim::HoldClaims);
            world.changes(&Request::SetHost { pairs_max: 1 });
            world.changes(&start("s2"));
            world.changes(&start("s1"));
        }
        "syncing" => begun(Whim::HoldClaims),
        "tracking" => {
            world.changes(&limits(SessionLimits {
                mode: Some(migration_proto::manager::SessionMode::Track),
                ..SessionLimits::default()
            }));
            begun(Whim::HoldClaims);
        }
        "paused" => {
            begun(Whim::HoldClaims);
            world.changes(&pause("s1"));
        }
        "degraded" => {
            selected();
            world.set("db", Whim::Degraded);
        }
        "source-selected" => selected(),
        "split" => {
            selected();
            world.changes(&request("split"));
        }
        "target-selected" => {
            selected();
            world.changes(&switch("s1"));
        }
        "verifying" => {
            selected();
            world.set("db", Whim::HoldComparing);
            world.changes(&verify("s1", false));
        }
        "committed" | "retired" => {
            selected();
            world.changes(&switch("s1"));
            world.changes(&commit("s1"));
            if state == "retired" {
                world.changes(&request("retire"));
            }
        }
        "cancelled" => {
            selected();
            world.changes(&cancel("s1"));
        }
        other => panic!("{other}"),
    }
    world.wait_for_state("s1", state);
    world
}

/// The outcome of a verb, as in [`TABLE`].
fn outcome(world: &World, state: &str, verb: &str) -> char {
    match world.ask(&request(verb)) {
        Response::Done { changed: true, .. } => 'D',
        Response::Done { messages, .. } => {
            assert!(!messages.is_empty(), "{verb} in {state}");
            '='
        }
        Response::Failed(failure) => {
            let told = format!("{}: {}", failure.object, failure.cause);
            assert!(told.contains("s1"), "{verb} in {state}: {failure:?}");
            let of_session = !["set", "detach"].contains(&verb);
            assert!(!of_session || told.contains(state), "{failure:?}");
            assert!(
                failure.next.contains("shunt "),
                "{verb} in {state}: {failure:?}"
            );
            '.'
        }
        other => panic!("{verb} in {state}: {other:?}"),
    }
}

/// Checks a row of [`TABLE`]. The verbs that change nothing run one after another on one session;
/// each of the others gets a session of its own.
fn check(state: &str, expected: &str) {
    let world = in_state(state);
    let mut found = String::new();
    for (verb, expected) in VERBS.iter().zip(expected.chars()) {
        found.push(match expected {
            'D' => outcome(&in_state(state), state, verb),
            _ => {
                let outcome = outcome(&world, state, verb);
                assert_eq!(world.session("s1").state, state, "after {verb}");
                outcome
            }
        });
    }
    assert_eq!(found, expected, "{state}");
}

#[test]
fn before_and_during_the_copy() {
    TABLE[..6]
        .iter()
        .for_each(|(state, expected)| check(state, expected));
}

#[test]
fn when_the_legs_were_equal_once() {
    TABLE[6..]
        .iter()
        .for_each(|(state, expected)| check(state, expected));
}
