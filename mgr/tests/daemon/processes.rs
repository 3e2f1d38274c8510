//! Tests of the processes: a ublk-target that hangs, folders that were removed, a second shuntd.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use mgr::daemon::StartError;
use migration_proto::manager::{HostRecord, Record, Request, VolumeRecord};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::fake::Whim;
use crate::world::*;

/// A world with a volume whose ublk-target shuntd ends after one second without a useful answer.
fn impatient() -> World {
    let mut world = World::stopped();
    world.config.silent_max = Duration::from_secs(1);
    world.start();
    world.changes(&attach("db", &world.lun("a", MIB, 1)));
    world
}

/// Waits until another process serves the volume.
fn see_replaced(world: &World, before: &VolumeRecord) {
    world.wait("another process serves the volume", |world| {
        world.volume("db").filter(|volume| {
            volume.state == "attached" && volume.pid != before.pid && volume.restarts > 0
        })
    });
}

#[test]
fn a_ublk_target_that_says_for_too_long_that_it_is_ending_is_ended() {
    let world = impatient();
    let before = world.volume("db").unwrap();
    world.set("db", Whim::Ending);
    let own = before.pid.unwrap().to_string();
    world.wait("another process is started", |world| {
        let pid = std::fs::read_to_string(world.map("db").with_extension("pid")).ok()?;
        (!pid.is_empty() && pid != own).then_some(())
    });
    world.unset("db", Whim::Ending);
    see_replaced(&world, &before);
}

#[test]
fn a_ublk_target_that_does_not_answer_for_too_long_is_ended() {
    let world = impatient();
    let before = world.volume("db").unwrap();
    let pid = Pid::from_raw(before.pid.unwrap().cast_signed());
    kill(pid, Signal::SIGSTOP).unwrap();
    see_replaced(&world, &before);
}

#[test]
fn a_ublk_target_whose_socket_file_is_gone_is_reached_by_the_next_shuntd() {
    let mut world = World::new();
    world.changes(&attach("db", &world.lun("a", MIB, 1)));
    world.set("db", Whim::HoldClaims);
    world.changes(&create("s1", &[("db", &world.lun("b", MIB, 0))]));
    world.changes(&start("s1"));
    let before = world.volume("db").unwrap();
    world.stop();
    std::fs::remove_dir_all(&world.config.runtime_directory).unwrap();
    world.unset("db", Whim::HoldClaims);
    world.start();
    // The copier connects too.
    world.wait_for_state("s1", "source-selected");
    let after = world.volume("db").unwrap();
    assert_eq!((after.pid, after.restarts), (before.pid, 0));
}

#[test]
fn shuntd_makes_the_folder_of_its_sockets_again() {
    let world = World::new();
    world.changes(&attach("db", &world.lun("a", MIB, 1)));
    let before = world.volume("db").unwrap();
    std::fs::remove_dir_all(&world.config.runtime_directory).unwrap();
    world.wait("it listens again", |world| {
        std::os::unix::net::UnixStream::connect(world.config.control_socket()).ok()
    });
    assert_eq!(world.volume("db").unwrap().pid, before.pid);
    // The next ublk-target has a place for its socket.
    world.kill_ublk_target("db");
    see_replaced(&world, &before);
}

fn host(world: &World) -> HostRecord {
    let records = world.records(&Request::Status { session: None });
    match &records[0] {
        Record::Host(host) => host.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_state_folder_that_is_not_the_one_that_was_opened_is_a_problem_of_the_host() {
    let world = World::new();
    world.changes(&attach("db", &world.lun("a", MIB, 1)));
    assert_eq!(host(&world).problems, Vec::<String>::new());
    let (state, away) = (
        world.config.state_directory.clone(),
        world.directory.path().join("away"),
    );
    std::fs::rename(&state, &away).unwrap();
    // A copy of the state folder, which misses everything that happens from now on.
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([&away, &state])
        .status();
    assert!(copied.unwrap().success());
    let problems = world.wait("it is reported", |world| {
        Some(host(world).problems).filter(|problems| !problems.is_empty())
    });
    assert!(problems[0].contains("next: "), "{problems:?}");
    assert!(
        problems[0].contains(state.to_str().unwrap()),
        "{problems:?}"
    );
    let before = world.volume("db").unwrap();
    assert_eq!(before.state, "attached");
    // A new ublk-target would serve from the wrong folder, so none is started.
    world.kill_ublk_target("db");
    let failed = world.wait("it is not served", |world| {
        world.volume("db").filter(|volume| volume.state == "failed")
    });
    let problem = failed.problem.unwrap();
    assert!(problem.contains("not the original one"), "{problem}");
    std::fs::remove_dir_all(&state).unwrap();
    std::fs::rename(&away, &state).unwrap();
    world.wait("it is not reported any more", |world| {
        host(world).problems.is_empty().then_some(())
    });
    see_replaced(&world, &before);
}

#[test]
fn a_socket_or_its_folder_that_is_removed_is_made_again() {
    let world = World::new();
    world.changes(&attach("db", &world.lun("a", MIB, 1)));
    let before = world.volume("db").unwrap();
    std::fs::remove_file(world.config.control_socket()).unwrap();
    world.wait("the control socket is there again", |world| {
        world.config.control_socket().exists().then_some(())
    });
    assert_eq!(world.volume("db").unwrap().state, "attached");
    let sockets = world.config.runtime_directory.join("volumes");
    std::fs::remove_dir_all(&sockets).unwrap();
    world.wait("the folder is there again", |_| {
        sockets.exists().then_some(())
    });
    world.kill_ublk_target("db");
    see_replaced(&world, &before);
}

#[test]
fn only_one_shuntd_works_in_a_folder_of_sockets() {
    let world = World::new();
    let mut second = World::stopped();
    let own = second.config.runtime_directory.clone();
    second.config.runtime_directory = world.config.runtime_directory.clone();
    let error = second.start_error();
    assert!(
        matches!(&error, StartError::AlreadyRunning { folder, .. } if *folder == world.config.runtime_directory),
        "{error}"
    );
    // The second world must not remove the folder of the first.
    second.config.runtime_directory = own;
    drop(second);
    assert_eq!(world.volume("db"), None);
}

#[test]
fn a_name_that_leads_to_another_device_is_refused_and_later_a_problem() {
    let world = World::new();
    let (first, second) = (world.lun("a", MIB, 1), world.lun("b", MIB, 2));
    // An existing file stands for the device of a volume of another shuntd.
    let foreign = world.lun("foreign", MIB, 3);
    std::fs::create_dir_all(&world.config.device_directory).unwrap();
    std::os::unix::fs::symlink(&foreign, world.link("db")).unwrap();
    let failure = world.refused(&attach("db", &first));
    assert!(
        failure.cause.contains(foreign.to_str().unwrap()),
        "{failure:?}"
    );
    assert_eq!(std::fs::read_link(world.link("db")).unwrap(), foreign);
    assert_eq!(world.volume("db"), None);
    // The name is taken after the attach.
    world.changes(&attach("web", &second));
    std::fs::remove_file(world.link("web")).unwrap();
    std::os::unix::fs::symlink(&foreign, world.link("web")).unwrap();
    let problem = world.wait("it is reported", |world| {
        world.volume("web").and_then(|volume| volume.problem)
    });
    assert!(problem.contains(foreign.to_str().unwrap()), "{problem}");
    assert_eq!(std::fs::read_link(world.link("web")).unwrap(), foreign);
    // shuntd makes the name again when the link is dead, and when it is gone.
    std::fs::remove_file(&foreign).unwrap();
    let is_own = |world: &World| {
        let volume = world.volume("web")?;
        let link = std::fs::read_link(world.link("web")).ok()?;
        (volume.problem.is_none() && Some(link) == volume.kernel_device).then_some(())
    };
    world.wait("the name is its own", is_own);
    std::fs::remove_file(world.link("web")).unwrap();
    world.wait("the name is made again", is_own);
}

#[test]
fn what_shuntd_keeps_is_for_its_user_alone() {
    let world = World::new();
    world.changes(&attach("db", &world.lun("a", MIB, 1)));
    let state = &world.config.state_directory;
    let mode =
        |path: std::path::PathBuf| std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    for folder in [
        state.clone(),
        state.join("volumes"),
        state.join("volumes/db"),
    ] {
        assert_eq!(mode(folder.clone()), 0o700, "{}", folder.display());
    }
    for file in [
        "shunt.db",
        "shunt.db-wal",
        "shuntd.lock",
        "volumes/db/ublk-target.log",
    ] {
        assert_eq!(mode(state.join(file)), 0o600, "{file}");
    }
}
