//! Tests of `retire` and `take-back` for the leg that an ended session has left behind. Files stand
//! for LUNs; a method that only a block device supports is refused.

use std::path::{Path, PathBuf};
use std::process::Command;

use lun::{Lun, OpenOptions, signatures};
use migration_proto::manager::{Request, RetireHow};

use super::fake::Whim;
use super::world::*;

const SIZE: u64 = 16 * MIB;

fn retire(how: RetireHow) -> Request {
    Request::Retire {
        session: "s1".to_owned(),
        how,
    }
}

fn take_back() -> Request {
    Request::TakeBack {
        session: "s1".to_owned(),
    }
}

/// Commits a session whose source has a file system. Returns the source, which is left behind, and
/// the target.
fn committed(world: &World, by_itself: Option<RetireHow>) -> [PathBuf; 2] {
    let (source, target) = (world.lun("a", SIZE, 0), world.lun("b", SIZE, 0));
    let made = Command::new("/sbin/mkfs.ext4")
        .args(["-q", "-F"])
        .arg(&source)
        .status();
    assert!(made.unwrap().success());
    world.changes(&attach("db", &source));
    let mut request = create("s1", &[("db", &target)]);
    if let Request::Create { options, .. } = &mut request {
        options.retire = by_itself;
    }
    world.changes(&request);
    world.changes(&start("s1"));
    world.wait_for_state("s1", "source-selected");
    world.changes(&switch("s1"));
    world.changes(&commit("s1"));
    [source, target]
}

fn kinds(path: &Path) -> Vec<String> {
    let lun = Lun::open(path, &OpenOptions::default()).unwrap();
    let found = signatures(&lun).unwrap();
    found.into_iter().map(|signature| signature.kind).collect()
}

fn is_locked(path: &Path) -> bool {
    let lun = Lun::open(path, &OpenOptions::default()).unwrap();
    !lun.try_lock_exclusive().unwrap()
}

#[test]
fn what_programs_recognise_is_taken_away_and_put_back() {
    let mut world = World::new();
    let [source, target] = committed(&world, None);
    let before = std::fs::read(&source).unwrap();
    let data = std::fs::read(&target).unwrap();
    assert_eq!(kinds(&source), ["ext4"]);
    world.changes(&retire(RetireHow::WipeSignatures));
    assert_eq!(kinds(&source), [""; 0]);
    assert_eq!(world.session("s1").state, "retired");
    assert_eq!(
        world.pairs("s1")[0].retired,
        Some(RetireHow::WipeSignatures)
    );
    world.already(&retire(RetireHow::WipeSignatures));
    let refused = world.refused(&retire(RetireHow::Hold));
    assert!(refused.next.contains("--take-back"), "{refused:?}");
    // The saved signatures outlive shuntd, and another session cannot replace the retired one.
    world.stop();
    world.start();
    let other = world.lun("c", SIZE, 0);
    let refused = world.refused(&create("s1", &[("db", &other)]));
    assert!(refused.cause.contains("retired"), "{refused:?}");
    let refused = world.refused(&attach("again", &source));
    assert!(
        refused.cause.contains("retired source of db"),
        "{refused:?}"
    );
    world.changes(&take_back());
    assert_eq!(std::fs::read(&source).unwrap(), before);
    assert_eq!(world.session("s1").state, "committed");
    world.already(&take_back());
    assert_eq!(
        std::fs::read(&target).unwrap(),
        data,
        "the volume's LUN is unchanged"
    );
}

#[test]
fn a_leg_is_held_until_it_is_taken_back_also_by_the_next_shuntd() {
    let mut world = World::new();
    let [source, _] = committed(&world, None);
    let is_free = |world: &World| {
        // A program that is being started holds copies of our descriptors for a moment.
        world.wait("it is free", |_| (!is_locked(&source)).then_some(()));
    };
    is_free(&world);
    world.changes(&retire(RetireHow::Hold));
    world.wait("it is held", |_| is_locked(&source).then_some(()));
    world.stop();
    is_free(&world);
    world.start();
    world.wait("it is held again", |_| is_locked(&source).then_some(()));
    world.changes(&take_back());
    is_free(&world);
}

#[test]
fn a_commit_retires_the_source_if_that_was_chosen() {
    let world = World::new();
    let [source, _] = committed(&world, Some(RetireHow::WipeSignatures));
    assert_eq!(world.session("s1").state, "retired");
    assert_eq!(kinds(&source), [""; 0]);
    world.changes(&take_back());
    assert_eq!(kinds(&source), ["ext4"]);
    // A source that cannot be retired does not prevent the commit.
    let target = world.lun("c", SIZE, 0);
    let mut request = create("s2", &[("db", &target)]);
    if let Request::Create { options, .. } = &mut request {
        options.retire = Some(RetireHow::Offline);
    }
    world.changes(&request);
    world.changes(&start("s2"));
    world.wait_for_state("s2", "source-selected");
    world.changes(&switch("s2"));
    let said = world.changes(&commit("s2"));
    assert!(
        said.contains("SCSI") && said.contains("shunt retire s2"),
        "{said}"
    );
    assert_eq!(world.session("s2").state, "committed");
}

#[test]
fn only_what_was_left_behind_is_retired() {
    let world = World::new();
    let target = world.lun("b", MIB, 0);
    world.changes(&attach("db", &world.lun("a", MIB, 1)));
    world.changes(&create("s1", &[("db", &target)]));
    world.changes(&start("s1"));
    world.wait_for_state("s1", "source-selected");
    let refused = world.refused(&retire(RetireHow::Hold));
    assert!(refused.cause.contains("source-selected"), "{refused:?}");
    world.already(&take_back());
    world.changes(&cancel("s1"));
    // The target is in use.
    let lun = Lun::open(&target, &OpenOptions::default()).unwrap();
    assert!(lun.try_lock_exclusive().unwrap());
    let refused = world.refused(&retire(RetireHow::Hold));
    assert!(refused.cause.contains("locked"), "{refused:?}");
    drop(lun);
    // Only SCSI disks can be set offline.
    let refused = world.refused(&retire(RetireHow::Offline));
    assert!(refused.cause.contains("SCSI"), "{refused:?}");
    assert_eq!(world.pairs("s1")[0].retired, None);
    // The target becomes a leg again. It still holds the copy.
    let request = create("s2", &[("db", &target)]);
    let refused = world.refused(&request);
    assert!(refused.cause.contains("not recognised"), "{refused:?}");
    world.changes(&overwriting(request));
    let refused = world.refused(&retire(RetireHow::Hold));
    assert!(refused.cause.contains("target of volume db"), "{refused:?}");
}

#[test]
fn a_target_that_is_no_copy_says_so() {
    let world = World::new();
    let (source, target) = (world.lun("a", SIZE, 3), world.lun("b", SIZE, 0));
    let said = || {
        let lun = Lun::open(&target, &OpenOptions::default()).unwrap();
        lun.unfinished().unwrap()
    };
    world.changes(&attach("db", &source));
    world.changes(&create("s1", &[("db", &target)]));
    assert_eq!(said(), None);
    world.set("db", Whim::HoldClaims);
    world.changes(&start("s1"));
    assert_eq!(said().as_deref(), Some("volume db, session s1"));
    world.changes(&cancel("s1"));
    assert!(said().is_some());
    let refused = world.refused(&attach("other", &target));
    assert!(refused.cause.contains("session s1"), "{refused:?}");
    world.unset("db", Whim::HoldClaims);
    world.changes(&create("s2", &[("db", &target)]));
    world.changes(&start("s2"));
    world.wait_for_state("s2", "source-selected");
    assert_eq!(said(), None);
    // The target was a copy, and then missed a write.
    world.set("db", Whim::HoldClaims);
    world.set("db", Whim::DirtyAtStart);
    world.kill_ublk_target("db");
    world.wait_for_state("s2", "syncing");
    assert_eq!(said(), None);
    let told = world.changes(&cancel("s2"));
    assert_eq!(said().as_deref(), Some("volume db, session s2"), "{told}");
}
