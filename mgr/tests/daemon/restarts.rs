//! Tests in which shuntd or ublk-target dies: the work in progress continues, or the operator sees
//! why it does not.

use std::time::Duration;

use migration_proto::manager::FailureKind;
use migration_proto::route::{Route, Side};

use crate::fake::Whim;
use crate::world::*;

/// A world with a session of one pair in sync.
fn in_sync() -> World {
    let world = World::new();
    world.changes(&attach("db", &world.lun("a", MIB, 1)));
    world.changes(&create("s1", &[("db", &world.lun("b", MIB, 0))]));
    world.changes(&start("s1"));
    world.wait_for_state("s1", "source-selected");
    world
}

#[test]
fn a_restarted_shuntd_finds_its_volumes_running_and_goes_on_copying() {
    let mut world = World::new();
    world.changes(&attach("db", &world.lun("a", MIB, 1)));
    world.set("db", Whim::HoldClaims);
    world.changes(&create("s1", &[("db", &world.lun("b", MIB, 0))]));
    world.changes(&start("s1"));
    let before = world.volume("db").unwrap();
    world.stop();
    world.unset("db", Whim::HoldClaims);
    world.start();
    let after = world.volume("db").unwrap();
    assert_eq!((after.pid, after.restarts), (before.pid, 0));
    world.wait_for_state("s1", "source-selected");
}

#[test]
fn a_killed_ublk_target_is_started_again_and_the_copy_goes_on() {
    let world = World::new();
    world.changes(&attach("db", &world.lun("a", MIB, 1)));
    world.set("db", Whim::HoldClaims);
    world.changes(&create("s1", &[("db", &world.lun("b", MIB, 0))]));
    world.changes(&start("s1"));
    let before = world.volume("db").unwrap();
    world.kill_ublk_target("db");
    let after = world.wait("it is started again", |world| {
        world
            .volume("db")
            .filter(|volume| volume.state == "attached" && volume.pid != before.pid)
    });
    assert_eq!(after.restarts, 1);
    assert_eq!(
        after.route,
        Some(Route::Mirrored {
            authoritative: Side::Source
        })
    );
    world.unset("db", Whim::HoldClaims);
    world.wait_for_state("s1", "source-selected");
}

#[test]
fn a_volume_that_cannot_be_started_again_says_why_and_comes_back() {
    let world = in_sync();
    let (map, away) = (world.map("db"), world.map("db").with_extension("away"));
    std::fs::rename(&map, &away).unwrap();
    world.kill_ublk_target("db");
    let volume = world.wait("it fails", |world| {
        world.volume("db").filter(|volume| volume.state == "failed")
    });
    assert!(volume.problem.unwrap().contains("map file"));
    let pair = &world.pairs("s1")[0];
    assert_eq!(
        (pair.state.as_str(), pair.authoritative),
        ("needs-recovery", Side::Source)
    );
    let failure = world.refused(&switch("s1"));
    assert!(
        failure.cause.contains("map file") && failure.cause.contains("the source is authoritative"),
        "{failure:?}"
    );
    let failure = world.refused(&cancel("s1"));
    assert!(failure.cause.contains("does not answer"), "{failure:?}");
    std::fs::rename(&away, &map).unwrap();
    world.wait_for_state("s1", "source-selected");
    assert_eq!(world.volume("db").unwrap().problem, None);
}

#[test]
fn nothing_is_called_in_sync_while_ublk_target_does_not_answer() {
    let world = in_sync();
    world.set("db", Whim::HoldStart);
    world.kill_ublk_target("db");
    world.wait("it is noticed", |world| {
        world
            .volume("db")
            .filter(|volume| volume.state == "recovering")
    });
    assert_eq!(world.session("s1").state, "syncing");
    world.unset("db", Whim::HoldStart);
    world.wait_for_state("s1", "source-selected");
}

#[test]
fn a_switch_during_which_ublk_target_dies_is_finished() {
    for whim in [Whim::DieBeforeRole, Whim::DieAfterRole] {
        let world = in_sync();
        world.set("db", whim);
        world.changes(&switch("s1"));
        let pair = &world.pairs("s1")[0];
        assert_eq!(
            (pair.state.as_str(), pair.authoritative),
            ("target-selected", Side::Target),
            "{whim:?}"
        );
    }
}

#[test]
fn a_switch_during_which_shuntd_died_is_settled_by_the_route() {
    // shuntd died before the role moved, or after.
    for (moved, state) in [(false, "source-selected"), (true, "target-selected")] {
        let mut world = in_sync();
        if moved {
            world.changes(&switch("s1"));
        }
        world.stop();
        world.rewrite("UPDATE pairs SET phase = 'switching', authoritative = 'source'");
        world.start();
        world.wait_for_state("s1", state);
        let history = world.history();
        assert!(
            history
                .iter()
                .any(|line| line.contains("switching was interrupted")),
            "{history:?}"
        );
    }
}

#[test]
fn a_change_of_which_the_outcome_is_unknown_is_not_recorded_as_not_done() {
    for (verb, on, then) in [
        (commit("s1"), Side::Target, "committed"),
        (cancel("s1"), Side::Source, "cancelled"),
        (switch("s1"), Side::Source, "target-selected"),
        (undo("s1"), Side::Target, "source-selected"),
    ] {
        let world = in_sync();
        if on == Side::Target {
            world.changes(&switch("s1"));
        }
        world.set("db", Whim::Later);
        let failure = world.fails(FailureKind::Failed, &verb);
        assert!(failure.cause.contains("is not known"), "{failure:?}");
        let problem = world.pairs("s1")[0].problem.clone().unwrap();
        assert!(problem.contains("is not known"), "{problem}");
        // The change happens after all.
        world.unset("db", Whim::Later);
        world.wait_for_state("s1", then);
        assert_eq!(world.pairs("s1")[0].problem, None);
    }
}

#[test]
fn a_start_of_which_the_outcome_is_unknown_is_found_done() {
    let world = World::new();
    world.changes(&attach("db", &world.lun("a", MIB, 1)));
    world.changes(&create("s1", &[("db", &world.lun("b", MIB, 0))]));
    world.set("db", Whim::Later);
    let failure = world.fails(FailureKind::Failed, &start("s1"));
    assert!(failure.cause.contains("is not known"), "{failure:?}");
    world.unset("db", Whim::Later);
    world.wait_for_state("s1", "source-selected");
    assert_eq!(world.pairs("s1")[0].problem, None);
}

#[test]
fn a_session_that_is_switched_in_part_shows_where_each_pair_is_and_can_go_either_way() {
    for verb in [switch("s1"), undo("s1")] {
        let mut world = World::new();
        let pairs = ["data", "log"].map(|name| {
            world.changes(&attach(name, &world.lun(name, MIB, 1)));
            (name, world.lun(&format!("{name}-target"), MIB, 0))
        });
        let pairs = pairs
            .each_ref()
            .map(|(name, target)| (*name, target.as_path()));
        world.changes(&create("s1", &pairs));
        world.changes(&start("s1"));
        world.wait_for_state("s1", "source-selected");
        world.set("log", Whim::Later);
        let failure = world.fails(FailureKind::Failed, &switch("s1"));
        assert!(failure.cause.contains("pair data went back"), "{failure:?}");
        // shuntd is stopped before the change ends.
        world.stop();
        world.unset("log", Whim::Later);
        world.start();
        world.wait("the second pair is found on its target", |world| {
            let sides: Vec<Side> = world
                .pairs("s1")
                .iter()
                .map(|pair| pair.authoritative)
                .collect();
            (sides == [Side::Source, Side::Target]).then_some(())
        });
        let history = world.history().join("\n");
        assert!(
            history.contains("switching was interrupted; found: active, the target is"),
            "{history}"
        );
        let allowed = world.wait("the copiers say that all is in sync", |world| {
            let session = world.session("s1");
            (session.state == "source-selected").then_some(session.allowed)
        });
        for verb in ["switch", "undo"] {
            assert!(allowed.contains(&verb.to_owned()), "{allowed:?}");
        }
        let side = match verb {
            migration_proto::manager::Request::Switch { .. } => Side::Target,
            _ => Side::Source,
        };
        world.changes(&verb);
        assert!(
            world
                .pairs("s1")
                .iter()
                .all(|pair| pair.authoritative == side)
        );
    }
}

#[test]
fn a_start_during_which_shuntd_died_is_taken_back_or_found_done() {
    let mut world = World::new();
    world.changes(&attach("db", &world.lun("a", MIB, 1)));
    world.changes(&create("s1", &[("db", &world.lun("b", MIB, 0))]));
    world.stop();
    world.rewrite("UPDATE pairs SET phase = 'starting'");
    world.start();
    world.wait_for_state("s1", "setup");
    world.changes(&start("s1"));
    world.wait_for_state("s1", "source-selected");
    world.stop();
    world.rewrite("UPDATE pairs SET phase = 'starting'");
    world.start();
    world.wait_for_state("s1", "source-selected");
}

#[test]
fn a_commit_and_a_cancel_during_which_shuntd_died_are_finished() {
    for (done_before, verb) in [
        (false, "commit"),
        (true, "commit"),
        (false, "cancel"),
        (true, "cancel"),
    ] {
        let mut world = in_sync();
        let (request, phase, ended, side) = match verb {
            "commit" => {
                world.changes(&switch("s1"));
                (commit("s1"), "committing", "committed", Side::Target)
            }
            _ => (cancel("s1"), "cancelling", "cancelled", Side::Source),
        };
        if done_before {
            world.changes(&request);
            assert_eq!(world.session("s1").state, ended);
        }
        world.stop();
        world.rewrite(&format!("UPDATE pairs SET phase = '{phase}'"));
        world.start();
        world.wait_for_state("s1", ended);
        assert_eq!(
            world.volume("db").unwrap().route,
            Some(Route::Single { leg: side })
        );
        // The history says how it ended.
        let end = match side {
            Side::Source => "a alone",
            Side::Target => "b alone",
        };
        let ends = |world: &World| {
            let lines = world.history();
            lines.iter().filter(|line| line.contains(end)).count()
        };
        assert_eq!(ends(&world), 1 + usize::from(done_before));
        world.changes(&detach("db"));
    }
}

#[test]
fn a_route_that_contradicts_the_record_is_shown_and_can_be_ended() {
    let mut world = in_sync();
    world.changes(&cancel("s1"));
    world.stop();
    world.rewrite("UPDATE pairs SET phase = 'active'");
    world.start();
    world.wait_for_state("s1", "needs-recovery");
    world.wait("the problem is shown", |world| {
        world.pairs("s1")[0].problem.clone()
    });
    assert_eq!(world.session("s1").allowed, ["cancel"]);
    world.changes(&cancel("s1"));
    assert_eq!(world.session("s1").state, "cancelled");
}

#[test]
fn an_attach_and_a_detach_during_which_shuntd_died_are_finished() {
    let mut world = World::new();
    let lun = world.lun("a", MIB, 1);
    world.changes(&attach("db", &lun));
    world.stop();
    world.rewrite("UPDATE volumes SET state = 'attaching'");
    world.start();
    world.wait("it is attached", |world| {
        world
            .volume("db")
            .filter(|volume| volume.state == "attached")
    });
    world.stop();
    world.rewrite("UPDATE volumes SET state = 'detaching'");
    world.start();
    world.wait("it is detached", |world| {
        world.volume("db").is_none().then_some(())
    });
    // An attach that left only its record.
    world.changes(&attach("db", &lun));
    world.changes(&attach("gone", &world.lun("b", MIB, 1)));
    world.changes(&detach("gone"));
    world.stop();
    world.rewrite(
        "INSERT INTO volumes (name, volume_id, state, leg, size_bytes, logical_block_bytes)
         SELECT 'gone', 'other', 'attaching', leg, 1, 512 FROM volumes WHERE name = 'db'",
    );
    world.start();
    world.wait("it is forgotten", |world| {
        world.volume("gone").is_none().then_some(())
    });
    world.already(&attach("db", &lun));
}

#[test]
fn an_ended_session_is_not_touched_by_what_its_volume_does_later() {
    let mut world = in_sync();
    world.changes(&cancel("s1"));
    world.changes(&create("s2", &[("db", &world.lun("c", MIB, 0))]));
    world.changes(&start("s2"));
    world.wait_for_state("s2", "source-selected");
    world.stop();
    world.start();
    assert_eq!(world.session("s1").state, "cancelled");
    world.wait_for_state("s2", "source-selected");
    world.fails(FailureKind::Refused, &start("s1"));
}

#[test]
fn shuntd_is_for_root_only() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let directory = tempfile::tempdir().unwrap();
    // Another user may not be able to reach the folder of the build. `cp` copies the program: a
    // child that another test starts meanwhile could inherit the file open for writing, and then
    // nobody could execute it.
    let program = directory.path().join("shuntd");
    let copied = std::process::Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_shuntd"))
        .arg(&program)
        .status();
    assert!(copied.unwrap().success());
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(directory.path(), mode).unwrap();
    let mut command = std::process::Command::new(&program);
    command
        .arg("--state-dir")
        .arg(directory.path().join("state"))
        .arg("--runtime-dir")
        .arg(directory.path().join("run"));
    if nix::unistd::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("root"), "{said}");
}

#[test]
fn only_one_shuntd_works_on_a_state_directory() {
    let world = World::new();
    let mut config = world.config.clone();
    config.runtime_directory = world.directory.path().join("other-run");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let second = async {
        tokio::time::timeout(
            Duration::from_secs(20),
            mgr::daemon::run(config, std::future::pending()),
        )
        .await
    };
    let error = runtime.block_on(second).unwrap().unwrap_err();
    assert!(error.to_string().contains("another shuntd"), "{error}");
}
