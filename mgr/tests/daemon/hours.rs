//! Tests of the hours in which a session is copied, and of the automatic start at a given time.

use std::process::Command;

use migration_proto::manager::{Hours, Request, Response, SessionLimits, SessionOptions};

use super::fake::Whim;
use super::world::*;

const SIZE: u64 = 2 * MIB;

/// A window of one hour that opens ten hours from now.
fn another_hour() -> Hours {
    let shown = Command::new("date").arg("+%H %M").output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let now: Vec<u16> = shown
        .split_whitespace()
        .map(|part| part.parse().unwrap())
        .collect();
    let minute = |after: u16| (now[0] * 60 + now[1] + after) % 1440;
    Hours {
        from_minute: minute(600),
        to_minute: minute(660),
    }
}

fn set(limits: SessionLimits) -> Request {
    Request::SetSession {
        session: "s1".to_owned(),
        limits,
    }
}

fn set_hours(hours: Hours) -> Request {
    set(SessionLimits {
        hours: Some(hours),
        ..SessionLimits::default()
    })
}

fn created(world: &World, change: impl FnOnce(&mut SessionOptions)) -> Request {
    let (source, target) = (world.lun("a", SIZE, 1), world.lun("b", SIZE, 0));
    world.changes(&attach("db", &source));
    let mut request = create("s1", &[("db", &target)]);
    if let Request::Create { options, .. } = &mut request {
        change(options);
    }
    request
}

#[test]
fn a_session_is_copied_in_its_hours_only() {
    let world = World::new();
    let hours = another_hour();
    let request = created(&world, |options| options.hours = hours);
    world.changes(&request);
    world.changes(&start("s1"));
    // The pair stays queued until its hours begin.
    assert_eq!(world.session("s1").state, "queued");
    world.set("db", Whim::HoldClaims);
    world.changes(&set_hours(Hours::default()));
    world.wait_for_state("s1", "syncing");
    world.changes(&set_hours(hours));
    world.wait_for_state("s1", "paused");
    // `resume` fails while the copier is being stopped.
    let told = world.wait("it can be resumed", |world| {
        match world.ask(&resume("s1")) {
            Response::Done { messages, .. } => Some(messages.concat()),
            _ => None,
        }
    });
    assert!(told.contains("only"), "{told}");
    assert_eq!(world.session("s1").state, "paused");
    world.wait("the history has the end of the hours", |world| {
        let history = world.history();
        history
            .iter()
            .any(|line| line.contains("its hours are over"))
            .then_some(())
    });
    world.unset("db", Whim::HoldClaims);
    world.changes(&set_hours(Hours::default()));
    world.wait_for_state("s1", "source-selected");
    // A session that is in sync is not paused.
    world.changes(&set_hours(hours));
    assert_eq!(world.session("s1").state, "source-selected");
    world.changes(&switch("s1"));
}

#[test]
fn a_session_is_started_at_its_time() {
    let world = World::new();
    let now = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.unwrap().as_millis() as u64
    };
    let request = created(&world, |options| options.start_at_ms = now() - 1);
    let refused = world.refused(&request);
    assert!(refused.cause.contains("has passed"), "{refused:?}");
    let mut request = request;
    if let Request::Create { options, .. } = &mut request {
        options.start_at_ms = now() + 1_500;
    }
    world.changes(&request);
    assert_eq!(world.session("s1").state, "setup");
    world.wait_for_state("s1", "source-selected");
}
