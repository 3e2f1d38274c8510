//! Tests of comparing the legs, and of the switches that a result forbids.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use migration_proto::manager::{Verification, VerifyPolicy};

use super::fake::{REGION_BYTES, Whim};
use super::world::*;

/// Starts a session. With full proof it gets no claims until the test removes [`Whim::HoldClaims`].
fn started(world: &World, proof: VerifyPolicy) -> (PathBuf, PathBuf) {
    let (source, target) = (world.lun("a", 4 * MIB, 1), world.lun("b", 4 * MIB, 0));
    world.changes(&attach("db", &source));
    if proof == VerifyPolicy::Full {
        world.set("db", Whim::HoldClaims);
    }
    world.changes(&proving(create("s1", &[("db", &target)]), proof));
    world.changes(&start("s1"));
    (source, target)
}

/// Waits for the result of a comparison that differs from `before`.
fn result(world: &World, before: Option<&Verification>) -> Verification {
    world.wait("the comparison has a result", |world| {
        let found = world.pairs("s1").remove(0).verification;
        found.filter(|found| Some(found) != before)
    })
}

#[test]
fn a_comparison_goes_on_until_its_result_is_recorded() {
    let world = World::new();
    started(&world, VerifyPolicy::None);
    world.wait_for_state("s1", "source-selected");
    world.set("db", Whim::HoldComparing);
    world.changes(&verify("s1", false));
    let locker = rusqlite::Connection::open(world.config.database()).unwrap();
    locker.execute_batch("BEGIN IMMEDIATE;").unwrap();
    world.unset("db", Whim::HoldComparing);
    for _ in 0..20 {
        let pair = world.pairs("s1").remove(0);
        assert!(pair.compared_bytes.is_some(), "{pair:?}");
        assert_eq!(pair.state, "verifying");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    locker.execute_batch("ROLLBACK;").unwrap();
    assert!(result(&world, None).is_clean());
    world.wait_for_state("s1", "source-selected");
}

/// Writes to a LUN, bypassing ublk-target.
fn spoil(lun: &Path, at_bytes: u64) {
    let file = std::fs::File::options().write(true).open(lun).unwrap();
    file.write_all_at(b"spoiled", at_bytes).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn legs_that_are_equal_are_found_equal() {
    let world = World::new();
    started(&world, VerifyPolicy::None);
    world.wait_for_state("s1", "source-selected");
    assert!(world.session("s1").allowed.contains(&"verify".to_owned()));
    world.changes(&verify("s1", false));
    let found = result(&world, None);
    assert_eq!(
        (
            found.compared_bytes,
            found.differing_bytes,
            found.unknown_bytes
        ),
        (4 * MIB, 0, 0)
    );
    world.wait_for_state("s1", "source-selected");
    assert_eq!(world.pairs("s1")[0].compared_bytes, None);
    assert_eq!(world.pairs("s1")[0].problem, None);
    world.changes(&switch("s1"));
    world.changes(&verify("s1", false));
    assert!(result(&world, Some(&found)).is_clean());
}

#[test]
fn a_difference_is_told_forbids_a_switch_and_is_repaired() {
    let world = World::new();
    let (source, target) = started(&world, VerifyPolicy::None);
    world.wait_for_state("s1", "source-selected");
    spoil(&target, 3 * REGION_BYTES + 5);
    world.changes(&verify("s1", false));
    let found = result(&world, None);
    assert_eq!(
        (
            found.differing_bytes,
            found.first_difference_bytes,
            found.repaired
        ),
        (REGION_BYTES, Some(3 * REGION_BYTES), false)
    );
    world.wait("the difference is copied again", |_| {
        (std::fs::read(&source).unwrap() == std::fs::read(&target).unwrap()).then_some(())
    });
    world.wait_for_state("s1", "source-selected");
    let failure = world.refused(&switch("s1"));
    assert!(failure.cause.contains("differ"), "{failure:?}");
    assert!(failure.next.contains("verify s1"), "{failure:?}");

    spoil(&target, 3 * REGION_BYTES + 5);
    world.changes(&verify("s1", true));
    assert!(result(&world, Some(&found)).repaired);
    world.wait("the difference is copied again", |_| {
        (std::fs::read(&source).unwrap() == std::fs::read(&target).unwrap()).then_some(())
    });
    world.wait_for_state("s1", "source-selected");
    world.changes(&switch("s1"));
    assert!(world.history().iter().any(|what| what.contains("differed")));
}

#[test]
fn with_full_proof_the_legs_are_compared_before_a_switch() {
    let world = World::new();
    started(&world, VerifyPolicy::Full);
    world.wait_for_state("s1", "syncing");
    world.unset("db", Whim::HoldClaims);
    assert!(result(&world, None).is_clean());
    world.wait_for_state("s1", "source-selected");
    world.changes(&switch("s1"));
    // An undo needs no proof.
    world.changes(&undo("s1"));
}

#[test]
fn with_full_proof_a_spoiled_target_is_not_switched_to() {
    let world = World::new();
    let (_, target) = started(&world, VerifyPolicy::Full);
    world.wait_for_state("s1", "syncing");
    world.unset("db", Whim::HoldClaims);
    let found = result(&world, None);
    assert!(found.is_clean());
    spoil(&target, MIB);
    world.wait_for_state("s1", "source-selected");
    world.changes(&verify("s1", false));
    assert!(result(&world, Some(&found)).is_different());
    world.wait_for_state("s1", "source-selected");
    world.refused(&switch("s1"));
}

#[test]
fn legs_that_are_not_in_sync_are_not_compared() {
    let world = World::new();
    let (source, target) = (world.lun("a", 4 * MIB, 1), world.lun("b", 4 * MIB, 0));
    world.changes(&attach("db", &source));
    world.changes(&create("s1", &[("db", &target)]));
    let failure = world.refused(&verify("s1", false));
    assert!(failure.next.contains("shunt start s1"), "{failure:?}");
    world.set("db", Whim::HoldClaims);
    world.changes(&start("s1"));
    world.wait_for_state("s1", "syncing");
    let failure = world.refused(&verify("s1", true));
    assert!(
        failure.next.contains("--for source-selected"),
        "{failure:?}"
    );
    world.unset("db", Whim::HoldClaims);
    world.wait_for_state("s1", "source-selected");
    world.changes(&cancel("s1"));
    let failure = world.refused(&verify("s1", false));
    assert!(failure.cause.contains("cancelled"), "{failure:?}");
}

#[test]
fn a_comparison_begins_again_when_ublk_target_dies_and_was_not_in_sync_before() {
    let world = World::new();
    started(&world, VerifyPolicy::Full);
    world.wait_for_state("s1", "syncing");
    world.unset("db", Whim::HoldClaims);
    let first = result(&world, None);
    world.wait_for_state("s1", "source-selected");
    for whim in [Whim::HoldComparing, Whim::HoldClaims, Whim::DirtyAtStart] {
        world.set("db", whim);
    }
    world.changes(&verify("s1", false));
    world.wait_for_state("s1", "verifying");
    world.kill_ublk_target("db");
    world.wait_for_state("s1", "syncing");
    world.unset("db", Whim::HoldComparing);
    world.unset("db", Whim::HoldClaims);
    assert!(result(&world, Some(&first)).is_clean());
}

#[test]
fn a_comparison_that_is_asked_for_in_another_way_begins_again_in_that_way() {
    let world = World::new();
    started(&world, VerifyPolicy::None);
    world.wait_for_state("s1", "source-selected");
    world.set("db", Whim::HoldComparing);
    world.changes(&verify("s1", false));
    world.wait_for_state("s1", "verifying");
    world.already(&verify("s1", false));
    world.changes(&verify("s1", true));
    world.unset("db", Whim::HoldComparing);
    assert!(result(&world, None).repaired);
    world.wait_for_state("s1", "source-selected");
    assert_eq!(world.pairs("s1")[0].problem, None);
}
