//! Tests with a database that is older than the map files: restored from a backup, or with its file
//! system. The map files decide.

use std::path::Path;
use std::time::Duration;

use migration_proto::manager::{Request, RetireHow};
use migration_proto::route::{Route, Side};

use crate::fake::Whim;
use crate::world::*;

const COMPANIONS: [&str; 3] = ["", "-wal", "-shm"];

/// Copies the database as it is now; returns a function that puts the copy back.
fn backup(world: &mut World) -> impl Fn(&mut World) + use<> {
    let path = |world: &World, companion: &str, suffix: &str| {
        format!("{}{companion}{suffix}", world.config.database().display())
    };
    let copy = move |world: &World, from: &str, to: &str| {
        for companion in COMPANIONS {
            let _ = std::fs::remove_file(path(world, companion, to));
            let _ = std::fs::copy(path(world, companion, from), path(world, companion, to));
        }
    };
    world.stop();
    copy(world, "", ".backup");
    world.start();
    move |world| {
        world.stop();
        copy(world, ".backup", "");
        world.start();
    }
}

fn migrate(world: &World, session: &str, target: &Path) {
    world.changes(&create(session, &[("db", target)]));
    world.changes(&start(session));
    world.wait_for_state(session, "source-selected");
}

#[test]
fn a_mirrored_volume_that_the_database_knows_in_no_session_gets_one_and_is_not_detached() {
    let mut world = World::new();
    world.changes(&attach("db", &world.lun("a", MIB, 1)));
    let put_back = backup(&mut world);
    let target = world.lun("b", MIB, 0);
    migrate(&world, "s1", &target);
    world.changes(&switch("s1"));
    put_back(&mut world);
    let mirrored = Route::Mirrored {
        authoritative: Side::Target,
    };
    assert_eq!(world.volume("db").unwrap().route, Some(mirrored));
    let failure = world.refused(&detach("db"));
    assert!(failure.cause.contains("session found-db"), "{failure:?}");
    assert!(world.map("db").exists());
    let pair = &world.pairs("found-db")[0];
    assert_eq!(
        (pair.state.as_str(), pair.authoritative),
        ("paused", Side::Target)
    );
    let history = world.history().join("\n");
    assert!(history.contains("older than the map file"), "{history}");
    // The locks exist again, and the migration continues to its end.
    world.refused(&attach("other", &target));
    world.changes(&commit("found-db"));
    let messages = world.changes(&detach("db"));
    assert!(
        messages.contains(&target.display().to_string()),
        "{messages}"
    );
}

#[test]
fn a_volume_that_has_moved_is_where_its_map_file_says() {
    let mut world = World::new();
    let source = world.lun("a", MIB, 1);
    world.changes(&attach("db", &source));
    let put_back = backup(&mut world);
    let target = world.lun("b", MIB, 0);
    migrate(&world, "s1", &target);
    world.changes(&switch("s1"));
    world.changes(&commit("s1"));
    put_back(&mut world);
    assert_eq!(world.volume("db").unwrap().lun, target);
    // The next session starts from that LUN, and cannot overwrite it.
    world.refused(&overwriting(create("s2", &[("db", &target)])));
    let messages = world.changes(&detach("db"));
    assert!(
        messages.contains(&target.display().to_string()),
        "{messages}"
    );
    world.changes(&attach("x", &source));
}

#[test]
fn a_volume_that_the_database_does_not_know_is_there_again() {
    let mut world = World::new();
    let put_back = backup(&mut world);
    let source = world.lun("a", MIB, 1);
    world.changes(&attach("db", &source));
    migrate(&world, "s1", &world.lun("b", MIB, 0));
    world.changes(&switch("s1"));
    put_back(&mut world);
    assert_eq!(world.pairs("found-db")[0].authoritative, Side::Target);
    world.refused(&attach("other", &source));
}

/// Since the backup the volume was detached and attached again: the running process does not belong
/// to the volume of the database.
#[test]
fn a_process_of_another_volume_of_the_same_name_is_not_ended_and_its_map_file_not_replaced() {
    let mut world = World::stopped();
    world.config.silent_max = Duration::from_secs(1);
    world.start();
    world.changes(&attach("db", &world.lun("a", MIB, 1)));
    let put_back = backup(&mut world);
    world.changes(&detach("db"));
    world.changes(&attach("db", &world.lun("b", MIB, 2)));
    let serving = world.volume("db").unwrap().pid.unwrap();
    put_back(&mut world);
    let problem = |world: &World| world.volume("db").and_then(|volume| volume.problem);
    let found = world.wait("it is noticed", problem);
    assert!(
        found.contains("serves another volume") && found.contains("shunt.db"),
        "{found}"
    );
    let map = std::fs::read(world.map("db")).unwrap();
    std::thread::sleep(3 * world.config.silent_max);
    let process = format!("/proc/{serving}");
    assert!(Path::new(&process).exists(), "it was ended");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(serving).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    let found = world.wait("its map file is noticed", |world| {
        problem(world).filter(|problem| problem.contains("map file"))
    });
    assert!(found.contains("shunt.db"), "{found}");
    let failure = world.refused(&recover("db", Side::Source));
    assert!(failure.cause.contains("older"), "{failure:?}");
    assert_eq!(std::fs::read(world.map("db")).unwrap(), map);
}

/// Since the backup the session of the database has ended, and another session followed.
#[test]
fn no_verb_of_an_older_session_decides_about_other_luns() {
    let mut world = World::new();
    world.changes(&attach("db", &world.lun("a", MIB, 1)));
    let (old, new) = (world.lun("b", MIB, 0), world.lun("c", MIB, 0));
    migrate(&world, "s1", &old);
    let put_back = backup(&mut world);
    world.changes(&cancel("s1"));
    migrate(&world, "s2", &new);
    world.changes(&switch("s2"));
    world.changes(&commit("s2"));
    put_back(&mut world);
    // The volume is on the target of s2; the target of s1 is a different LUN.
    world.wait_for_state("s1", "needs-recovery");
    for request in [commit("s1"), cancel("s1"), detach("db")] {
        match world.ask(&request) {
            migration_proto::manager::Response::Failed(_) => {}
            other => panic!("{request:?}: {other:?}"),
        }
    }
    let pair = world.wait("the contradiction is shown", |world| {
        let pair = world.pairs("s1").remove(0);
        pair.problem.is_some().then_some(pair)
    });
    let problem = pair.problem.unwrap();
    assert!(problem.contains("move shunt.db"), "{problem}");
    assert!(problem.contains(&new.display().to_string()), "{problem}");
}

/// A leg that an older session left behind may be in use again.
#[test]
fn a_leg_that_is_in_use_is_not_retired_for_an_older_session() {
    let mut world = World::new();
    world.changes(&attach("db", &world.lun("a", MIB, 1)));
    let target = world.lun("b", MIB, 0);
    migrate(&world, "s1", &target);
    world.changes(&cancel("s1"));
    let put_back = backup(&mut world);
    world.changes(&overwriting(create("s2", &[("db", &target)])));
    world.changes(&start("s2"));
    world.wait_for_state("s2", "source-selected");
    world.changes(&switch("s2"));
    world.changes(&commit("s2"));
    put_back(&mut world);
    let failure = world.refused(&Request::Retire {
        session: "s1".to_owned(),
        how: RetireHow::WipeSignatures,
    });
    assert!(failure.cause.contains("in use"), "{failure:?}");
}

/// While no process serves the volume, its map file decides what it is.
#[test]
fn a_volume_that_is_not_served_is_detached_only_as_its_map_file_says() {
    let mut world = World::new();
    world.changes(&attach("db", &world.lun("a", MIB, 1)));
    world.changes(&create("s1", &[("db", &world.lun("b", MIB, 0))]));
    world.changes(&start("s1"));
    world.wait_for_state("s1", "source-selected");
    world.set("db", Whim::HoldStart);
    world.kill_ublk_target("db");
    world.stop();
    // The session looks ended; the lock of its target prevents shuntd from finding it again.
    world.rewrite("UPDATE pairs SET phase = 'cancelled'");
    // As after a boot, the kernel's device is gone.
    world.rewrite("UPDATE open_map SET boot_id = 'before'");
    world.start();
    let failure = world.refused(&detach("db"));
    assert!(failure.cause.contains("is mirrored"), "{failure:?}");
    assert!(failure.next.contains("move shunt.db"), "{failure:?}");
    assert!(world.map("db").exists());
    world.unset("db", Whim::HoldStart);
}
