//! Tests of `plan`: estimates for a session, and reasons to refuse it.

use std::path::Path;

use migration_proto::manager::{PlanRecord, Record, Request};

use super::world::*;

fn plan(world: &World, pairs: &[(&str, &Path)]) -> Vec<PlanRecord> {
    let Request::Create {
        session,
        pairs,
        options,
    } = create("s1", pairs)
    else {
        unreachable!()
    };
    let request = Request::Plan {
        session,
        pairs,
        options,
    };
    let records = world.records(&request).into_iter();
    records
        .map(|record| match record {
            Record::Plan(plan) => plan,
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn a_plan_has_rates_and_an_estimate_and_changes_nothing() {
    let world = World::new();
    let (source, target) = (world.lun("a", MIB, 1), world.lun("b", MIB, 0));
    world.changes(&attach("db", &source));
    let before = [&source, &target].map(|lun| std::fs::read(lun).unwrap());
    let history = world.history();
    let planned = plan(&world, &[("db", &target)]);
    let [pair] = planned.as_slice() else {
        panic!("{planned:?}");
    };
    assert_eq!(pair.problems, [""; 0]);
    assert!(pair.source_bytes_per_second.is_some() && pair.target_bytes_per_second.is_some());
    assert_eq!(pair.write_bytes_per_second, Some(0));
    assert!(pair.copy_seconds.is_some() && pair.pause_us.is_some());
    assert_eq!(
        [&source, &target].map(|lun| std::fs::read(lun).unwrap()),
        before
    );
    assert_eq!(world.history(), history);
    world.changes(&create("s1", &[("db", &target)]));
}

#[test]
fn what_was_estimated_stands_beside_what_has_happened() {
    let mut world = World::new();
    let (source, target) = (world.lun("a", MIB, 1), world.lun("b", MIB, 0));
    world.changes(&attach("db", &source));
    plan(&world, &[("db", &target)]);
    world.stop();
    world.rewrite(
        "UPDATE estimates SET estimate = '{\"at_ms\":1,\"copy_seconds\":4000,\"pause_us\":7700}'",
    );
    world.start();
    world.changes(&create("s1", &[("db", &target)]));
    world.changes(&start("s1"));
    world.wait_for_state("s1", "source-selected");
    let tells = |parts: &[&str]| {
        world.wait("the history has both", |world| {
            let all_in = |line: &String| parts.iter().all(|part| line.contains(part));
            world.history().iter().any(all_in).then_some(())
        });
    };
    tells(&[
        "in sync",
        "since the start, in ",
        "`shunt plan` said 1h 06m",
    ]);
    world.changes(&switch("s1"));
    tells(&["the target is authoritative", "`shunt plan` said 7.7 ms"]);
    // A target that was not planned gets no such note.
    world.changes(&commit("s1"));
    world.changes(&create("s2", &[("db", &world.lun("c", MIB, 0))]));
    world.changes(&start("s2"));
    world.wait_for_state("s2", "source-selected");
    world.changes(&switch("s2"));
    let planned = |line: &&String| line.contains("shunt plan");
    assert_eq!(world.history().iter().filter(planned).count(), 2);
}

#[test]
fn all_that_speaks_against_it_is_told_for_every_pair() {
    let world = World::new();
    let small = world.lun("small", MIB / 2, 0);
    for name in ["one", "two"] {
        world.changes(&attach(name, &world.lun(name, MIB, 1)));
    }
    let target = world.lun("b", MIB, 0);
    let same = target.parent().unwrap().join("./b");
    let planned = plan(&world, &[("one", &small), ("two", &target)]);
    assert!(planned[0].problems[0].contains("small"), "{planned:?}");
    assert_eq!(planned[1].problems, [""; 0]);
    // The same LUN with two spellings of its path.
    let planned = plan(&world, &[("one", &target), ("two", &same)]);
    assert_eq!(planned[0].problems, [""; 0]);
    assert!(
        planned[1].problems[0].contains("target of one"),
        "{planned:?}"
    );
    let gone = target.with_file_name("gone");
    let planned = plan(&world, &[("one", &gone)]);
    assert!(
        planned[0]
            .problems
            .iter()
            .any(|problem| problem.contains("gone"))
    );
}
