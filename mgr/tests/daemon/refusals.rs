//! Tests of refusals: nothing has changed afterwards, and the answer has the reason and the next
//! command.

use std::fs;
use std::path::Path;

use migration_proto::manager::{FailureKind, Request};

use crate::fake::Whim;
use crate::world::*;

fn with_volume() -> (World, std::path::PathBuf) {
    let world = World::new();
    let lun = world.lun("a", MIB, 1);
    world.changes(&attach("db", &lun));
    (world, lun)
}

#[test]
fn an_attach_with_a_bad_name_or_lun_is_refused() {
    let (world, lun) = with_volume();
    let other = world.lun("other", MIB, 1);
    let cases = [
        (attach("../x", &other), "a name has"),
        (attach("", &other), "a name has"),
        (attach("x", Path::new("relative")), "not absolute"),
        (
            attach("x", &world.directory.path().join("missing")),
            "does not exist",
        ),
        (attach("x", world.directory.path()), "directory"),
        (attach("x", &lun), "volume db"),
        (attach("db", &other), "attached to"),
        (attach("x", &world.lun("odd", MIB + 1, 1)), "multiple"),
    ];
    for (request, part) in cases {
        let failure = world.refused(&request);
        assert!(failure.cause.contains(part), "{request:?}: {failure:?}");
    }
    let folder = world.map("left-over").parent().unwrap().to_owned();
    fs::create_dir(&folder).unwrap();
    let failure = world.refused(&attach("left-over", &other));
    assert!(failure.cause.contains("exists already"), "{failure:?}");
    assert!(folder.exists());
}

#[test]
fn an_open_volume_is_not_detached_and_goes_on() {
    let (world, _) = with_volume();
    world.set("db", Whim::DeviceOpen);
    let failure = world.refused(&detach("db"));
    assert!(failure.cause.contains("open"), "{failure:?}");
    assert_eq!(world.volume("db").unwrap().state, "attached");
    world.unset("db", Whim::DeviceOpen);
    world.changes(&detach("db"));
}

#[test]
fn a_target_that_does_not_fit_is_refused_with_every_reason() {
    let (world, lun) = with_volume();
    let small = world.lun("small", MIB / 2, 0);
    let same = world.directory.path().join("same");
    fs::hard_link(&lun, &same).unwrap();
    let cases = [
        (
            create("s1", &[("db", &small)]),
            vec!["too small", "524288", "1048576"],
        ),
        (
            create("s1", &[("db", &same)]),
            vec!["the source of volume db itself"],
        ),
        (
            create("s1", &[("db", &world.directory.path().join("missing"))]),
            vec!["does not exist"],
        ),
        (create("s1", &[]), vec!["at least one pair"]),
        (create("a b", &[("db", &small)]), vec!["a name has"]),
    ];
    for (request, parts) in cases {
        let failure = world.refused(&request);
        for part in parts {
            assert!(failure.cause.contains(part), "{request:?}: {failure:?}");
        }
    }
    world.fails(FailureKind::NotFound, &create("s1", &[("nobody", &small)]));
    world.fails(FailureKind::NotFound, &start("s1"));
    world.fails(
        FailureKind::NotFound,
        &Request::Status {
            session: Some("s1".into()),
        },
    );
}

#[test]
fn findings_of_all_pairs_are_told_at_once() {
    let (world, _) = with_volume();
    world.changes(&attach("other", &world.lun("o", MIB, 1)));
    let (small, missing) = (
        world.lun("small", MIB / 2, 0),
        world.directory.path().join("missing"),
    );
    let failure = world.refused(&create("s1", &[("db", &small), ("other", &missing)]));
    assert!(
        failure.cause.contains("pair db") && failure.cause.contains("pair other"),
        "{failure:?}"
    );
    let target = world.lun("t", MIB, 0);
    let failure = world.refused(&create("s1", &[("db", &target), ("other", &target)]));
    assert!(
        failure.cause.contains("target of db in this session"),
        "{failure:?}"
    );
}

#[test]
fn a_target_that_holds_something_needs_overwrite_and_must_not_change_before_the_start() {
    let (world, _) = with_volume();
    let target = world.lun("t", 4 * MIB, 0);
    make_swap_area(&target, "one");
    let request = create("s1", &[("db", &target)]);
    let failure = world.refused(&request);
    assert!(
        failure.cause.contains("swap") && failure.cause.contains("--overwrite"),
        "{failure:?}"
    );
    let messages = world.changes(&overwriting(request));
    assert!(messages.contains("will be overwritten"), "{messages}");
    make_swap_area(&target, "two");
    let failure = world.refused(&start("s1"));
    assert!(failure.cause.contains("does not hold what"), "{failure:?}");
    assert_eq!(world.session("s1").state, "setup");
}

#[test]
fn a_target_that_became_another_one_is_refused_at_the_start() {
    let (world, _) = with_volume();
    let target = world.lun("t", MIB, 0);
    world.changes(&create("s1", &[("db", &target)]));
    fs::rename(&target, target.with_extension("old")).unwrap();
    world.lun("t", MIB, 0);
    let failure = world.refused(&start("s1"));
    assert!(
        failure.cause.contains("not the LUN that was recorded"),
        "{failure:?}"
    );
}

#[test]
fn volumes_and_targets_belong_to_one_live_session() {
    let (world, _) = with_volume();
    world.changes(&attach("other", &world.lun("o", MIB, 1)));
    let (target, second) = (world.lun("t", MIB, 0), world.lun("u", MIB, 0));
    world.changes(&create("s1", &[("db", &target)]));
    let cases = [
        (create("s1", &[("other", &second)]), "not ended"),
        (create("s2", &[("db", &second)]), "session s1"),
        (create("s2", &[("other", &target)]), "session s1"),
        (attach("x", &target), "session s1"),
        (detach("db"), "session s1"),
    ];
    for (request, part) in cases {
        let failure = world.refused(&request);
        assert!(failure.cause.contains(part), "{request:?}: {failure:?}");
    }
}

#[test]
fn verbs_that_the_state_does_not_allow_are_refused_with_what_is_allowed() {
    let (world, _) = with_volume();
    world.set("db", Whim::HoldClaims);
    world.changes(&create("s1", &[("db", &world.lun("t", MIB, 0))]));
    for request in [
        switch("s1"),
        undo("s1"),
        commit("s1"),
        pause("s1"),
        resume("s1"),
    ] {
        let failure = world.refused(&request);
        assert!(
            failure.cause.contains("setup") && failure.next.contains("shunt start s1"),
            "{failure:?}"
        );
    }
    world.changes(&start("s1"));
    let failure = world.refused(&switch("s1"));
    assert!(
        failure
            .cause
            .contains("1048576 bytes are still to be copied"),
        "{failure:?}"
    );
    assert!(
        failure.next.contains("shunt wait s1 --for source-selected"),
        "{failure:?}"
    );
    world.refused(&undo("s1"));
    let failure = world.refused(&commit("s1"));
    assert!(failure.next.contains("shunt switch s1"), "{failure:?}");
    world.unset("db", Whim::HoldClaims);
    world.wait_for_state("s1", "source-selected");
    world.refused(&Request::Switch {
        session: "s1".into(),
        max_pause_ms: 0,
    });
    world.changes(&switch("s1"));
    let failure = world.refused(&cancel("s1"));
    assert!(failure.next.contains("shunt undo s1"), "{failure:?}");
    world.changes(&commit("s1"));
    for request in [
        start("s1"),
        switch("s1"),
        undo("s1"),
        cancel("s1"),
        pause("s1"),
        resume("s1"),
    ] {
        let failure = world.refused(&request);
        assert!(failure.cause.contains("committed"), "{failure:?}");
    }
}

/// Writes what libblkid takes for a swap area (version 1, pages of 4096 bytes).
fn make_swap_area(path: &Path, label: &str) {
    use std::os::unix::fs::FileExt;
    let file = fs::File::options().write(true).open(path).unwrap();
    let mut header = [0; 128];
    header[..4].copy_from_slice(&1_u32.to_le_bytes());
    header[4..8].copy_from_slice(&1023_u32.to_le_bytes());
    header[12..28].fill(7);
    header[28..28 + label.len()].copy_from_slice(label.as_bytes());
    file.write_all_at(&header, 1024).unwrap();
    file.write_all_at(b"SWAPSPACE2", 4086).unwrap();
}
