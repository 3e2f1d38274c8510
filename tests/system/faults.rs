//! Tests of legs that fail or are too slow.

use tests::{
    host::Host,
    load,
    lun::{self, Mapped},
    sh,
    steady::{SPAN, Steady},
    wait_until,
};

const FAILED: i32 = 1;
const REFUSED: i32 = 3;
const TIME_RAN_OUT: i32 = 6;

#[test]
fn a_switch_that_would_hold_requests_too_long_is_not_done() {
    let host = Host::new();
    let (source, disk) = (lun::disk(0), lun::disk(1));
    let target = Mapped::slow_flushes("shunt-test-slow", &disk, 3000);
    host.bring_into_sync("db", &source, &target.path(), "move");
    let load = Steady::start(&Host::device("db"), SPAN);
    load.go_on();
    let said = host.shunt(&["switch", "move", "--max-pause", "0.4"]);
    assert_eq!(said.code, FAILED, "{said:?}");
    for word in ["move", "source", "--max-pause", "next: "] {
        assert!(said.error.contains(word), "no {word:?} in {said:?}");
    }
    load.go_on();
    host.wait_for("move", "source-selected");
    assert_eq!(host.pair("move")["authoritative"], "source");
    host.ok(&["switch", "move", "--max-pause", "60"]);
    load.go_on();
    load.finish();
    host.assert_legs_equal("db", &source, &target.path());
    host.ok(&["commit", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}

#[test]
fn a_target_that_fails_during_the_copy_is_copied_to_the_end_when_it_is_repaired() {
    let host = Host::new();
    let (source, disk) = (lun::disk(0), lun::disk(1));
    let target = Mapped::slow_writes("shunt-test-slow", &disk, 100);
    host.ok(&["attach", "db", &source]);
    host.ok(&["create", "move", &format!("db:{}", target.path())]);
    host.ok(&["start", "move"]);
    let load = Steady::start(&Host::device("db"), SPAN);
    wait_until("the copy has come some way", || {
        let status = host.connect("db").status();
        status.copied_bytes >= 8 * status.region_bytes
    });
    target.break_it();
    wait_until("the pair is degraded", || {
        host.pair("move")["state"] == "degraded"
    });
    let pair = host.pair("move");
    assert!(pair["problem"].to_string().contains("mirror leg"), "{pair}");
    load.go_on();
    host.refused(&["switch", "move"], REFUSED, &["move", "degraded"]);
    target.mend_it();
    host.ok(&["resume", "move"]);
    host.wait_for("move", "source-selected");
    load.finish();
    host.assert_legs_equal("db", &source, &target.path());
    host.ok(&["cancel", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}

#[test]
fn ublk_target_dies_while_the_mirror_leg_fails() {
    let host = Host::new();
    let (source, disk) = (lun::disk(0), lun::disk(1));
    let target = Mapped::linear("shunt-test-target", &disk);
    host.bring_into_sync("db", &source, &target.path(), "move");
    let load = Steady::start(&Host::device("db"), SPAN);
    load.go_on();
    target.break_it();
    wait_until("the pair is degraded", || {
        host.pair("move")["state"] == "degraded"
    });
    load.go_on();
    // The volume is served, whatever is wrong with its mirror leg.
    host.kill_target("db");
    load.go_on();
    wait_until("the pair is degraded again", || {
        host.pair("move")["state"] == "degraded"
    });
    host.refused(&["switch", "move"], REFUSED, &["move"]);
    target.mend_it();
    host.ok(&["resume", "move"]);
    host.wait_for("move", "source-selected");
    load.finish();
    host.assert_legs_equal("db", &source, &target.path());
    host.ok(&["cancel", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}

#[test]
fn a_source_that_cannot_be_read_in_one_place_is_named_and_never_switched_away_from() {
    let host = Host::new();
    let (disk, target) = (lun::disk(0), lun::disk(1));
    let source = Mapped::linear("shunt-test-source", &disk);
    host.ok(&["attach", "db", &source.path()]);
    source.break_megabyte(100);
    host.ok(&["create", "move", &format!("db:{target}")]);
    host.ok(&["start", "move"]);
    wait_until("the pair says what is wrong with which leg", || {
        host.pair("move")["problem"].to_string().contains("source")
    });
    let wait = [
        "wait",
        "move",
        "--for",
        "source-selected",
        "--timeout",
        "0.5",
    ];
    assert_eq!(host.shunt(&wait).code, TIME_RAN_OUT);
    host.refused(&["switch", "move"], REFUSED, &["move"]);
    // In other places the application continues.
    load::once(&Host::device("db"), load::SMALL).unwrap();
    source.mend_it();
    host.wait_for("move", "source-selected");
    assert_eq!(host.pair("move")["problem"], serde_json::Value::Null);
    host.assert_legs_equal("db", &source.path(), &target);
    host.ok(&["switch", "move"]);
    host.ok(&["commit", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}

#[test]
fn the_application_sees_the_errors_of_the_authoritative_leg_and_only_those() {
    let host = Host::new();
    let (disk, target) = (lun::disk(0), lun::disk(1));
    let source = Mapped::linear("shunt-test-source", &disk);
    host.bring_into_sync("db", &source.path(), &target, "move");
    host.ok(&["switch", "move"]);
    // Now the source is the mirror leg.
    source.break_megabyte(3);
    load::once(&Host::device("db"), load::SMALL).unwrap();
    wait_until("the pair is degraded", || {
        host.pair("move")["state"] == "degraded"
    });
    assert_eq!(host.pair("move")["authoritative"], "target");
    host.refused(&["undo", "move"], REFUSED, &["move", "degraded"]);
    source.mend_it();
    host.ok(&["resume", "move"]);
    host.wait_for("move", "target-selected");
    host.ok(&["undo", "move"]);
    source.break_megabyte(120);
    let reads = |megabyte| lun::read_megabyte(&Host::device("db"), megabyte).is_ok();
    let before = lun::read_megabyte(&disk, 120).unwrap();
    let through = lun::read_megabyte(&Host::device("db"), 120).unwrap();
    assert!(before == through, "the target has it too");
    assert!(host.connect("db").status().counters.mirror_reads > 0);
    assert_eq!(host.pair("move")["authoritative"], "source");
    wait_until("the pair says which leg has failed", || {
        let problem = host.pair("move")["problem"].to_string();
        problem.contains("authoritative leg")
    });
    // A write that the source fails may be on the target: from now on the target does not answer
    // reads for the source there.
    assert!(lun::write_megabyte(&Host::device("db"), 120, 7).is_err());
    assert!(reads(119) && !reads(120) && reads(121));
    source.mend_it();
    assert!(reads(120));
    sh("blockdev", &["--flushbufs", &Host::device("db")]);
    host.wait_for("move", "source-selected");
    host.assert_legs_equal("db", &source.path(), &target);
    host.ok(&["cancel", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}
