//! Tests of shuntd through its socket, without root and without ublk: LUNs are files, and
//! ublk-target is a fake that speaks the protocol. The copier and the checks are the real ones.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod cutover;
mod fake;
mod hours;
mod layouts;
mod lost;
mod older;
mod plan;
mod processes;
mod queue;
mod refusals;
mod releases;
mod restarts;
mod retire;
mod schedule;
mod socket;
mod split;
mod table;
mod verify;
mod world;

use migration_proto::manager::{EventRecord, FailureKind, HistoryEvent, Record};
use migration_proto::route::{Route, Side};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use world::*;

#[test]
fn a_volume_is_attached_and_detached() {
    let world = World::new();
    let lun = world.lun("a", MIB, 1);
    world.changes(&attach("db", &lun));
    let volume = world.volume("db").unwrap();
    assert_eq!(
        (volume.state.as_str(), volume.lun, volume.size_bytes),
        ("attached", paths(&lun), MIB)
    );
    assert_eq!(volume.route, Some(Route::Single { leg: Side::Source }));
    assert_eq!(
        std::fs::read_link(world.link("db")).unwrap(),
        volume.kernel_device.unwrap()
    );
    world.already(&attach("db", &lun));
    let other_name = world.directory.path().join("same-lun");
    std::os::unix::fs::symlink(&lun, &other_name).unwrap();
    world.already(&attach("db", &other_name));

    world.changes(&detach("db"));
    assert_eq!(world.volume("db"), None);
    assert!(!world.link("db").is_symlink() && !world.map("db").parent().unwrap().exists());
    world.fails(FailureKind::NotFound, &detach("db"));
    world.changes(&attach("db", &lun));
}

#[test]
fn a_volume_that_cannot_be_served_leaves_nothing_behind() {
    let world = World::new();
    let lun = world.lun("broken", MIB, 1);
    let failure = world.fails(FailureKind::Failed, &attach("db", &lun));
    assert!(
        failure.cause.contains("the leg is broken: repair it"),
        "{failure:?}"
    );
    assert_eq!(world.volume("db"), None);
    assert!(!world.map("db").parent().unwrap().exists());
    let repaired = world.directory.path().join("whole");
    std::fs::rename(&lun, &repaired).unwrap();
    world.changes(&attach("db", &repaired));
}

#[test]
fn a_lun_moves_there_and_back_and_there_for_good() {
    let world = World::new();
    let (source, target) = (world.lun("a", 4 * MIB, 1), world.lun("b", 5 * MIB, 0));
    world.changes(&attach("db", &source));
    world.changes(&create("s1", &[("db", &target)]));
    assert_eq!(world.session("s1").state, "setup");
    assert_eq!(world.session("s1").allowed, ["start", "cancel"]);
    world.changes(&start("s1"));
    world.already(&start("s1"));
    world.wait_for_state("s1", "source-selected");
    assert_eq!(
        std::fs::read(&source).unwrap(),
        std::fs::read(&target).unwrap()[..4 << 20]
    );
    let pair = &world.pairs("s1")[0];
    assert_eq!(
        (pair.dirty_bytes, pair.authoritative, pair.size_bytes),
        (0, Side::Source, 4 * MIB)
    );
    world.wait("what was copied is counted", |world| {
        (world.pairs("s1")[0].copied_bytes == 4 * MIB).then_some(())
    });

    world.already(&undo("s1"));
    let messages = world.changes(&switch("s1"));
    assert!(messages.contains("1.234 ms"), "{messages}");
    world.already(&switch("s1"));
    let pair = &world.pairs("s1")[0];
    assert_eq!(
        (pair.state.as_str(), pair.authoritative, pair.last_pause_us),
        ("target-selected", Side::Target, Some(1234))
    );
    assert_eq!(world.volume("db").unwrap().lun, target);
    world.changes(&undo("s1"));
    assert_eq!(world.session("s1").state, "source-selected");
    assert_eq!(world.volume("db").unwrap().lun, source);
    world.changes(&switch("s1"));
    world.changes(&commit("s1"));
    world.already(&commit("s1"));
    assert_eq!(world.session("s1").state, "committed");
    let volume = world.volume("db").unwrap();
    assert_eq!(
        (volume.lun, volume.route),
        (paths(&target), Some(Route::Single { leg: Side::Target }))
    );
    let history = world.records(&whole_history());
    let epochs = history.iter().filter_map(|record| match record {
        Record::Event(EventRecord {
            event: HistoryEvent::RoleMoved { epoch, .. },
            ..
        }) => Some(*epoch),
        _ => None,
    });
    // The mirror leg was added with epoch 2.
    assert_eq!(epochs.collect::<Vec<_>>(), [Some(3), Some(4), Some(5)]);
}

#[test]
fn after_a_commit_the_next_session_moves_from_there() {
    let world = World::new();
    let (first, second) = (world.lun("a", MIB, 1), world.lun("b", MIB, 0));
    world.changes(&attach("db", &first));
    for (source, target) in [(&first, &second), (&second, &first)] {
        // The name of an ended session is free again. The second target still holds its old data.
        world.changes(&overwriting(create("s1", &[("db", target)])));
        assert_eq!(world.pairs("s1")[0].source, *source);
        world.changes(&start("s1"));
        world.wait_for_state("s1", "source-selected");
        world.changes(&switch("s1"));
        world.changes(&commit("s1"));
    }
    assert_eq!(world.volume("db").unwrap().lun, first);
    world.changes(&detach("db"));
    // Both LUNs are free.
    world.changes(&attach("x", &first));
    world.changes(&attach("y", &second));
}

#[test]
fn a_cancel_ends_on_the_source_at_any_time_before_a_switch() {
    let world = World::new();
    let (source, target) = (world.lun("a", MIB, 1), world.lun("b", MIB, 0));
    world.changes(&attach("db", &source));
    world.changes(&create("never-started", &[("db", &target)]));
    world.changes(&cancel("never-started"));
    world.already(&cancel("never-started"));
    world.changes(&create("s1", &[("db", &target)]));
    world.set("db", fake::Whim::HoldClaims);
    world.changes(&start("s1"));
    assert_eq!(world.session("s1").state, "syncing");
    world.changes(&cancel("s1"));
    assert_eq!(
        world.volume("db").unwrap().route,
        Some(Route::Single { leg: Side::Source })
    );
    assert_eq!(world.session("s1").state, "cancelled");
}

#[test]
fn a_pause_stops_the_copy_and_resume_lets_it_go_on() {
    let mut world = World::new();
    let (source, target) = (world.lun("a", MIB, 1), world.lun("b", MIB, 0));
    world.changes(&attach("db", &source));
    world.set("db", fake::Whim::HoldClaims);
    world.changes(&create("s1", &[("db", &target)]));
    world.changes(&start("s1"));
    world.changes(&pause("s1"));
    world.already(&pause("s1"));
    world.unset("db", fake::Whim::HoldClaims);
    world.stop();
    world.start();
    let pair = &world.pairs("s1")[0];
    assert_eq!((pair.state.as_str(), pair.dirty_bytes), ("paused", MIB));
    let failure = world.refused(&switch("s1"));
    assert!(failure.next.contains("shunt resume s1"), "{failure:?}");
    world.changes(&resume("s1"));
    world.wait_for_state("s1", "source-selected");
}

#[test]
fn the_status_is_what_is_so_now_and_of_a_volume_that_hangs_what_was_so_last() {
    let world = World::new();
    world.changes(&attach("db", &world.lun("a", MIB, 1)));
    world.changes(&create("s1", &[("db", &world.lun("b", MIB, 0))]));
    world.changes(&start("s1"));
    world.wait_for_state("s1", "source-selected");
    world.set("db", fake::Whim::Degraded);
    assert_eq!(world.session("s1").state, "degraded");
    let pid = world.volume("db").and_then(|volume| volume.pid).unwrap();
    let tell = |signal| kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
    tell(Signal::SIGSTOP);
    world.wait("it has stopped", |_| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.contains(") T ").then_some(())
    });
    world.unset("db", fake::Whim::Degraded);
    assert_eq!(world.session("s1").state, "degraded");
    tell(Signal::SIGCONT);
    assert_eq!(world.session("s1").state, "source-selected");
}

#[test]
fn a_failed_mirror_leg_is_shown_and_tried_again_by_resume() {
    let world = World::new();
    world.changes(&attach("db", &world.lun("a", MIB, 1)));
    world.changes(&create("s1", &[("db", &world.lun("b", MIB, 0))]));
    world.changes(&start("s1"));
    world.wait_for_state("s1", "source-selected");
    world.set("db", fake::Whim::Degraded);
    world.wait_for_state("s1", "degraded");
    assert!(
        world.pairs("s1")[0]
            .problem
            .as_ref()
            .unwrap()
            .contains("EIO")
    );
    let failure = world.refused(&switch("s1"));
    assert!(
        failure.cause.contains("the source is authoritative")
            && failure.next.contains("shunt resume s1"),
        "{failure:?}"
    );
    world.changes(&resume("s1"));
    world.wait_for_state("s1", "source-selected");
}

#[test]
fn a_target_that_stalled_is_taken_again_by_itself_unless_the_session_is_paused() {
    let world = World::new();
    world.changes(&attach("db", &world.lun("a", MIB, 1)));
    world.changes(&create("s1", &[("db", &world.lun("b", MIB, 0))]));
    world.changes(&start("s1"));
    world.wait_for_state("s1", "source-selected");
    let told = |what: &str| world.history().iter().any(|line| line.contains(what));
    world.set("db", fake::Whim::Stalled);
    world.set("db", fake::Whim::Degraded);
    world.wait_for_state("s1", "degraded");
    let problem = world.pairs("s1")[0].problem.clone().unwrap();
    assert!(problem.contains("copied automatically"), "{problem}");
    world.wait_for_state("s1", "source-selected");
    world.wait("the history has both", |_| {
        (told("the target answers again") && told("the target has caught up")).then_some(())
    });
    assert!(!told("resumed"), "{:?}", world.history());
    // The back-off is longer the second time, and a paused session does not retry the target.
    world.set("db", fake::Whim::Degraded);
    world.wait_for_state("s1", "degraded");
    world.changes(&pause("s1"));
    std::thread::sleep(std::time::Duration::from_secs(12));
    assert_eq!(world.session("s1").state, "degraded");
    world.changes(&resume("s1"));
    world.wait_for_state("s1", "source-selected");
}

#[test]
fn a_session_of_several_pairs_moves_together_or_goes_back() {
    let world = World::new();
    for volume in ["one", "two"] {
        world.changes(&attach(volume, &world.lun(&format!("{volume}-a"), MIB, 1)));
    }
    let targets = [world.lun("one-b", MIB, 0), world.lun("two-b", MIB, 0)];
    world.changes(&create("s1", &[("one", &targets[0]), ("two", &targets[1])]));
    world.changes(&start("s1"));
    world.wait_for_state("s1", "source-selected");
    world.set("two", fake::Whim::RefuseRole);
    let failure = world.fails(FailureKind::Failed, &switch("s1"));
    assert!(
        failure.cause.contains("drained in time") && failure.cause.contains("pair one went back"),
        "{failure:?}"
    );
    assert!(failure.next.contains("--max-pause"), "{failure:?}");
    for pair in world.pairs("s1") {
        assert_eq!(
            (pair.state.as_str(), pair.authoritative),
            ("source-selected", Side::Source)
        );
    }
    world.unset("two", fake::Whim::RefuseRole);
    world.changes(&switch("s1"));
    world.changes(&commit("s1"));
    let history = world.history();
    assert!(
        history.iter().any(|line| line.contains("went back")),
        "{history:?}"
    );
}
