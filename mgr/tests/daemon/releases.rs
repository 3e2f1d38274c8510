//! Tests with programs of different releases: a running ublk-target outlives updates of the others.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use migration_proto::frame;
use serde_json::Value;

use crate::fake::Whim;
use crate::world::*;

#[test]
fn a_ublk_target_of_a_later_release_is_managed_and_copied() {
    let mut world = World::new();
    world.changes(&attach("db", &world.lun("a", MIB, 1)));
    let before = world.volume("db").unwrap();
    world.set("db", Whim::LaterRelease);
    world.stop();
    world.start();
    assert_eq!(world.volume("db").unwrap().pid, before.pid);
    let target = world.lun("b", MIB, 0);
    world.changes(&create("s1", &[("db", &target)]));
    world.changes(&start("s1"));
    world.wait_for_state("s1", "source-selected");
    world.changes(&switch("s1"));
    world.changes(&commit("s1"));
}

#[test]
fn a_ublk_target_without_a_common_protocol_is_left_running_and_the_remedy_is_named() {
    let mut world = World::new();
    world.changes(&attach("db", &world.lun("a", MIB, 1)));
    let before = world.volume("db").unwrap();
    world.set("db", Whim::OtherProtocols);
    world.stop();
    world.start();
    let problem = world.wait("a problem", |world| world.volume("db")?.problem);
    let ours = migration_proto::PROTOCOLS.to_string();
    for part in ["protocols 7 to 9", &ours, "the shuntd of the release"] {
        assert!(problem.contains(part), "{problem}");
    }
    world.unset("db", Whim::OtherProtocols);
    let after = world.wait("it is managed again", |world| {
        world.volume("db").filter(|volume| volume.pid.is_some())
    });
    assert_eq!((after.pid, after.restarts), (before.pid, 0));
}

/// It serves, so it must not be taken for one that is silent.
#[test]
fn a_ublk_target_whose_status_is_not_understood_is_not_ended() {
    let mut world = World::stopped();
    world.config.silent_max = Duration::from_secs(1);
    world.start();
    world.changes(&attach("db", &world.lun("a", MIB, 1)));
    let before = world.volume("db").unwrap();
    world.set("db", Whim::StrangeLeg);
    let problem = world.wait("a problem", |world| world.volume("db")?.problem);
    assert!(problem.contains("not understood"), "{problem}");
    std::thread::sleep(3 * world.config.silent_max);
    world.unset("db", Whim::StrangeLeg);
    let after = world.wait("it is managed again", |world| {
        world.volume("db").filter(|volume| volume.problem.is_none())
    });
    assert_eq!((after.pid, after.restarts), (before.pid, 0));
}

/// The bytes that a `shunt` of the first release sends, and what it needs from the answers.
#[test]
fn a_shunt_of_the_first_release_is_answered() {
    let world = World::new();
    world.changes(&attach("db", &world.lun("a", MIB, 1)));
    let mut stream = UnixStream::connect(world.config.control_socket()).unwrap();
    let mut exchange = |text: &str| -> Value {
        let message: Value = serde_json::from_str(text).unwrap();
        frame::write(&mut stream, &message).unwrap();
        frame::read(&mut stream).unwrap()
    };
    let welcome = exchange(r#"{"protocols":{"oldest":1,"newest":1}}"#);
    assert_eq!(
        (&welcome["answer"], &welcome["protocol"]),
        (&"ready".into(), &1.into())
    );
    let answer = exchange(r#"{"request":"status","session":null}"#);
    assert_eq!(answer["response"], "records");
    let volume = &answer["records"][1];
    assert_eq!(
        (&volume["type"], &volume["volume"]),
        (&"volume".into(), &"db".into())
    );
    let answer = exchange(r#"{"request":"commit","session":"s1"}"#);
    assert_eq!(
        (&answer["response"], &answer["kind"]),
        (&"failed".into(), &"not-found".into())
    );
}
