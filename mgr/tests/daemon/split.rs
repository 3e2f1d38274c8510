//! Tests of `split`: the targets of all volumes of a session become copies of one instant, or none
//! does.

use std::os::unix::fs::FileExt;

use migration_proto::manager::{Record, Request, SessionLimits, SessionMode, SwitchPolicy};

use super::fake::Whim;
use super::world::*;

const SIZE: u64 = 2 * MIB;

fn split() -> Request {
    Request::Split {
        session: "s1".to_owned(),
        max_pause_ms: 1_000,
    }
}

fn set(limits: SessionLimits) -> Request {
    Request::SetSession {
        session: "s1".to_owned(),
        limits,
    }
}

/// Brings a session of two volumes with mode `copy` into sync.
fn in_sync(world: &World) {
    let mut pairs = Vec::new();
    for (volume, seed) in [("data", 1), ("log", 2)] {
        let source = world.lun(&format!("{volume}-source"), SIZE, seed);
        world.changes(&attach(volume, &source));
        pairs.push((volume, world.lun(&format!("{volume}-target"), SIZE, 9)));
    }
    let pairs: Vec<_> = pairs
        .iter()
        .map(|(volume, target)| (*volume, target.as_path()))
        .collect();
    let mut request = create("s1", &pairs);
    if let Request::Create { options, .. } = &mut request {
        options.mode = SessionMode::Copy;
        options.overwrite = true;
    }
    world.changes(&request);
    world.changes(&start("s1"));
    world.wait_for_state("s1", "source-selected");
}

fn copies_of(world: &World) -> Vec<Option<u64>> {
    let pairs = world.pairs("s1");
    pairs.into_iter().map(|pair| pair.copy_of_at_ms).collect()
}

#[test]
fn all_targets_are_copies_of_one_moment_and_take_what_was_written_since() {
    let mut world = World::new();
    in_sync(&world);
    let session = world.session("s1");
    assert!(session.allowed.contains(&"split".to_owned()), "{session:?}");
    assert!(
        !session.allowed.contains(&"switch".to_owned()),
        "{session:?}"
    );
    let refused = world.refused(&switch("s1"));
    assert!(refused.next.contains("shunt split s1"), "{refused:?}");
    let said = world.changes(&split());
    assert!(said.contains("data-target is a copy of"), "{said}");
    assert_eq!(world.session("s1").state, "split");
    let copies = copies_of(&world);
    assert!(copies[0].is_some() && copies[0] == copies[1], "{copies:?}");
    world.already(&split());
    // The split outlives shuntd.
    world.stop();
    world.start();
    world.wait_for_state("s1", "split");
    assert_eq!(copies_of(&world), copies);
    let pairs = world.pairs("s1");
    assert!(pairs.iter().all(|pair| pair.dirty_bytes > 0), "{pairs:?}");
    world.changes(&resume("s1"));
    assert_eq!(copies_of(&world), [None, None]);
    world.wait_for_state("s1", "source-selected");
    world.changes(&split());
    world.changes(&cancel("s1"));
    assert_eq!(world.session("s1").state, "cancelled");
}

#[test]
fn a_volume_that_did_not_hold_long_enough_spoils_the_copy_and_all_are_mirrored_again() {
    let world = World::new();
    in_sync(&world);
    for whim in [Whim::LetGo, Whim::DieAfterRole] {
        world.set("log", whim);
        let failure = world.fails(migration_proto::manager::FailureKind::Failed, &split());
        assert!(failure.cause.contains("pair log"), "{whim:?}: {failure:?}");
        assert!(failure.next.contains("shunt split s1"), "{failure:?}");
        assert_eq!(copies_of(&world), [None, None]);
        world.wait_for_state("s1", "source-selected");
    }
    world.set("data", Whim::RefuseRole);
    let failure = world.fails(migration_proto::manager::FailureKind::Failed, &split());
    assert!(failure.cause.contains("pair data"), "{failure:?}");
    world.unset("data", Whim::RefuseRole);
    world.wait_for_state("s1", "source-selected");
    // The next ublk-target does the split and holds the requests.
    world.set("log", Whim::DieBeforeRole);
    world.changes(&split());
    world.wait_for_state("s1", "split");
}

#[test]
fn a_cancel_that_is_refused_leaves_the_copies_what_they_are() {
    let world = World::new();
    in_sync(&world);
    world.changes(&split());
    let copies = copies_of(&world);
    world.set("log", Whim::RefuseSingle);
    let failure = world.fails(migration_proto::manager::FailureKind::Failed, &cancel("s1"));
    assert!(failure.cause.contains("is a copy as before"), "{failure:?}");
    let pairs = world.pairs("s1");
    let log = pairs.iter().find(|pair| pair.volume == "log").unwrap();
    assert_eq!(
        (log.state.as_str(), log.copy_of_at_ms),
        ("split", copies[1])
    );
    world.unset("log", Whim::RefuseSingle);
    world.changes(&cancel("s1"));
}

#[test]
fn a_target_that_may_have_been_written_to_is_copied_anew() {
    let mut world = World::new();
    in_sync(&world);
    world.changes(&split());
    let lun = |name: &str| world.map("log").ancestors().nth(4).unwrap().join(name);
    let [source, target] = ["log-source", "log-target"].map(lun);
    // Writes where the map says that both legs are equal.
    let file = std::fs::File::options().write(true).open(&target).unwrap();
    file.write_all_at(&[0xee; 4096], SIZE - 4096).unwrap();
    // First as a boot leaves the row, then as a crash before the target is given up leaves it.
    let booted = "copy_of = replace(copy_of, '\"boot_id\":\"', '\"boot_id\":\"another-')";
    let crashed = "phase = 'starting', copy_of = NULL";
    for state in [booted, crashed] {
        world.stop();
        world.rewrite(&format!("UPDATE pairs SET {state} WHERE volume = 'log'"));
        world.start();
    }
    world.wait_for_state("s1", "paused");
    world.changes(&resume("s1"));
    world.wait_for_state("s1", "source-selected");
    // The reason is the boot of the host or, once that is recorded, the doubt about the target.
    let told = |world: &World| {
        let reasons = ["this host was booted", "what was written to the target"];
        let reasons = reasons.map(|why| format!("everything is copied, because {why}"));
        let is_told = |text: &&String| reasons.iter().any(|reason| text.contains(reason));
        world.history().iter().filter(is_told).count()
    };
    assert_eq!(told(&world), 1);
    assert!(std::fs::read(&source).unwrap() == std::fs::read(&target).unwrap());
    world.changes(&split());
    world.stop();
    world.rewrite(&format!("UPDATE pairs SET {booted} WHERE volume = 'log'"));
    world.start();
    world.wait_for_state("s1", "split");
    world.changes(&resume("s1"));
    world.wait_for_state("s1", "source-selected");
    assert_eq!(told(&world), 2);
}

/// The kernel does not count the writes to a regular file.
#[test]
fn a_file_that_was_written_to_while_it_was_split_is_copied_from_scratch() {
    let world = World::new();
    in_sync(&world);
    world.changes(&split());
    let lun = |name: &str| world.directory.path().join(name);
    let [source, target] = ["log-source", "log-target"].map(lun);
    // Writes where the map says that both legs are equal.
    let file = std::fs::File::options().write(true).open(&target).unwrap();
    file.write_all_at(&[0xee; 4096], SIZE - 4096).unwrap();
    world.changes(&resume("s1"));
    world.wait_for_state("s1", "source-selected");
    assert!(std::fs::read(&source).unwrap() == std::fs::read(&target).unwrap());
    let history = world.history().join("\n");
    assert!(
        history.contains("everything is copied, because nothing counts"),
        "{history}"
    );
}

#[test]
fn copies_follow_one_another_by_themselves() {
    let world = World::new();
    in_sync(&world);
    let every = |seconds| SessionLimits {
        every_seconds: Some(seconds),
        ..SessionLimits::default()
    };
    world.changes(&set(SessionLimits {
        switch: Some(SwitchPolicy::WhenSynced),
        ..every(1)
    }));
    let first = world.wait("the first copy", |world| copies_of(world)[0]);
    let second = world.wait("another copy", |world| {
        copies_of(world)[0].filter(|at| *at > first)
    });
    world.wait("a third copy", |world| {
        copies_of(world)[0].filter(|at| *at > second)
    });
    // Without an interval no further copy follows.
    world.wait("it is split", |world| copies_of(world)[0]);
    world.changes(&set(every(0)));
    world.wait("no further copy is scheduled", |world| {
        let records = world.records(&Request::Status {
            session: Some("s1".to_owned()),
        });
        records.into_iter().find_map(|record| match record {
            Record::Session(session) => {
                (session.options.switch == SwitchPolicy::Manual).then_some(())
            }
            _ => None,
        })
    });
    let refused = world.refused(&set(SessionLimits {
        mode: Some(SessionMode::Mirror),
        ..every(5)
    }));
    assert!(refused.cause.contains("--mode copy"), "{refused:?}");
}
