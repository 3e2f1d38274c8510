//! Tests of sessions that track, and of their cutover. `tests/system` checks on real devices that
//! the rest is copied while requests are held.

use migration_proto::manager::SessionMode;
use migration_proto::manager::{
    CutoverAction, CutoverOptions, Request, SessionLimits, SwitchPolicy, VerifyPolicy,
};

use super::fake::Whim;
use super::world::*;

/// Creates and starts a session that tracks these volumes.
fn tracking(world: &World, volumes: &[&str], cutover: CutoverOptions) {
    let mut targets = Vec::new();
    for volume in volumes {
        world.changes(&attach(volume, &world.lun(&format!("{volume}-a"), MIB, 1)));
        targets.push((*volume, world.lun(&format!("{volume}-b"), MIB, 0)));
    }
    let pairs: Vec<_> = targets
        .iter()
        .map(|(volume, target)| (*volume, target.as_path()))
        .collect();
    let mut request = create("s1", &pairs);
    if let Request::Create { options, .. } = &mut request {
        options.mode = SessionMode::Track;
        options.cutover = cutover;
    }
    world.changes(&request);
    world.changes(&start("s1"));
    world.wait_for_state("s1", "tracking");
}

fn abort() -> CutoverOptions {
    CutoverOptions {
        action: CutoverAction::Abort,
        ..CutoverOptions::default()
    }
}

fn set(limits: SessionLimits) -> Request {
    Request::SetSession {
        session: "s1".to_owned(),
        limits,
    }
}

fn phase(world: &World) -> Option<String> {
    Some(world.session("s1").cutover?.phase)
}

#[test]
fn a_session_that_tracks_is_cut_over_as_a_whole_and_comes_back_at_once() {
    let world = World::new();
    tracking(&world, &["one", "two"], CutoverOptions::default());
    let said = world.changes(&switch("s1"));
    assert!(
        said.contains("shunt wait s1 --for target-selected"),
        "{said}"
    );
    world.wait_for_state("s1", "target-selected");
    assert_eq!(phase(&world), None);
    world.changes(&undo("s1"));
    world.wait_for_state("s1", "tracking");
    // No new cutover starts automatically.
    assert_eq!(phase(&world), None);
}

#[test]
fn what_cannot_be_cut_over_falls_back_and_says_why() {
    let world = World::new();
    tracking(&world, &["one", "two"], abort());
    world.set("two", Whim::RefuseRole);
    world.changes(&switch("s1"));
    let cause = world.wait("the cutover is over", |world| {
        let cutover = world.session("s1").cutover?;
        (cutover.phase == "over").then_some(cutover.cause?)
    });
    assert!(cause.contains("held"), "{cause}");
    // A cutover switches all pairs or none.
    let sides: Vec<_> = world
        .pairs("s1")
        .into_iter()
        .map(|pair| pair.authoritative)
        .collect();
    assert_eq!(sides, [migration_proto::route::Side::Source; 2]);
    world.wait_for_state("s1", "tracking");
    let history = world.history().join("\n");
    assert!(history.contains("went back"), "{history}");
    assert!(history.contains("the cutover is over"), "{history}");
    // The operator can switch again, also in another mode.
    world.unset("two", Whim::RefuseRole);
    let mirror = SessionLimits {
        mode: Some(SessionMode::Mirror),
        ..SessionLimits::default()
    };
    world.changes(&set(mirror));
    world.wait_for_state("s1", "source-selected");
    world.changes(&switch("s1"));
    world.wait_for_state("s1", "target-selected");
    assert_eq!(phase(&world), None, "what failed before is of no interest");
}

#[test]
fn what_is_forced_is_tried_once_more_when_the_last_attempt_has_ended() {
    let world = World::new();
    let force = CutoverOptions {
        action: CutoverAction::Force,
        attempts: 1,
        ..CutoverOptions::default()
    };
    tracking(&world, &["one"], force);
    world.set("one", Whim::RefuseRole);
    world.changes(&switch("s1"));
    world.wait("the cutover is over", |world| {
        (phase(world).as_deref() == Some("over")).then_some(())
    });
    let history = world.history();
    let held: Vec<_> = history
        .iter()
        .filter(|line| line.contains("the cutover holds requests"))
        .collect();
    assert_eq!(held.len(), 2, "{history:?}");
    assert!(held[1].contains("110000.0 ms"), "{held:?}");
    world.changes(&pause("s1"));
}

#[test]
fn a_cutover_is_ended_by_a_pause_and_by_a_cancel() {
    let world = World::new();
    let wait = CutoverOptions {
        action: CutoverAction::Wait,
        ..CutoverOptions::default()
    };
    tracking(&world, &["one"], wait);
    world.changes(&switch("s1"));
    assert_eq!(world.session("s1").state, "tracking");
    world.changes(&pause("s1"));
    world.wait("the cutover is over", |world| {
        (phase(world).as_deref() == Some("over")).then_some(())
    });
    let refused = world.refused(&switch("s1"));
    assert!(refused.cause.contains("paused"), "{refused:?}");
    world.changes(&resume("s1"));
    world.wait_for_state("s1", "tracking");
    world.changes(&switch("s1"));
    // With the action `wait`, a second `switch` releases the cutover.
    world.changes(&switch("s1"));
    world.wait_for_state("s1", "target-selected");
    world.changes(&undo("s1"));
    world.wait_for_state("s1", "tracking");
    world.changes(&switch("s1"));
    world.changes(&cancel("s1"));
    world.wait_for_state("s1", "cancelled");
    world.wait("nothing is left of it", |world| {
        phase(world).is_none().then_some(())
    });
}

#[test]
fn a_session_that_tracks_can_be_switched_by_itself_and_changes_its_mode_live() {
    let world = World::new();
    tracking(&world, &["one"], CutoverOptions::default());
    let mirror = SessionLimits {
        mode: Some(SessionMode::Mirror),
        ..SessionLimits::default()
    };
    world.changes(&set(mirror.clone()));
    world.already(&set(mirror));
    world.wait_for_state("s1", "source-selected");
    let track = SessionLimits {
        mode: Some(SessionMode::Track),
        switch: Some(SwitchPolicy::WhenSynced),
        ..SessionLimits::default()
    };
    world.changes(&set(track));
    world.wait_for_state("s1", "target-selected");
    assert_eq!(world.session("s1").options.switch, SwitchPolicy::Manual);
}

#[test]
fn limits_that_cannot_be_are_refused() {
    let world = World::new();
    tracking(&world, &["one"], CutoverOptions::default());
    let before = world.session("s1").options;
    for (limits, word) in [
        (
            SessionLimits {
                attempts: Some(0),
                ..SessionLimits::default()
            },
            "attempts",
        ),
        (
            SessionLimits {
                cutover_duration_seconds: Some(0),
                ..SessionLimits::default()
            },
            "duration",
        ),
    ] {
        let refused = world.refused(&set(limits));
        assert!(refused.cause.contains(word), "{refused:?}");
    }
    assert_eq!(world.session("s1").options, before);
    let target = world.lun("x-b", MIB, 0);
    world.changes(&attach("x", &world.lun("x-a", MIB, 1)));
    let mut request = proving(create("s2", &[("x", &target)]), VerifyPolicy::Full);
    if let Request::Create { options, .. } = &mut request {
        options.mode = SessionMode::Track;
    }
    let refused = world.refused(&request);
    assert!(refused.cause.contains("read-back"), "{refused:?}");
}
