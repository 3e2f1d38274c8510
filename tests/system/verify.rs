//! Tests that compare both legs while applications write, and that find a target that does not keep
//! its data.

use tests::{
    host::Host,
    lun::{self, Mapped},
    steady::{SPAN, Steady},
    wait_until,
};

const FAILED: i32 = 1;
const REFUSED: i32 = 3;

#[test]
fn a_difference_is_found_under_load_forbids_a_switch_and_is_repaired() {
    const SPOILED: u64 = 100;
    let host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    host.bring_into_sync("db", &source, &target, "move");
    let load = Steady::start(&Host::device("db"), SPAN);
    load.go_on();
    host.ok(&["verify", "move"]);
    assert_eq!(host.pair("move")["verification"]["differing_bytes"], 0);
    lun::write_megabyte(&target, SPOILED, 0xab).unwrap();
    let said = host.shunt(&["verify", "move"]);
    assert_eq!(said.code, FAILED, "{said:?}");
    let at = (SPOILED << 20).to_string();
    for word in ["db", "1.00 MiB", &at, "shunt verify move"] {
        assert!(said.error.contains(word), "no {word:?} in {said:?}");
    }
    host.wait_for("move", "source-selected");
    host.refused(&["switch", "move"], REFUSED, &["move", "differ"]);
    load.go_on();
    host.ok(&["verify", "move", "--repair"]);
    host.wait_for("move", "source-selected");
    host.ok(&["switch", "move"]);
    host.ok(&["verify", "move"]);
    load.finish();
    host.assert_legs_equal("db", &source, &target);
    host.ok(&["commit", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}

#[test]
fn regions_that_are_written_all_the_time_are_compared_too() {
    let host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    host.bring_into_sync("db", &source, &target, "move");
    let load = Steady::start(&Host::device("db"), 2 << 20);
    load.go_on();
    host.ok(&["verify", "move"]);
    let pair = host.pair("move");
    assert_eq!(pair["verification"]["compared_bytes"], pair["size_bytes"]);
    load.go_on();
    // The comparison begins again when ublk-target dies.
    host.ok(&["verify", "move", "--no-wait"]);
    host.kill_target("db");
    wait_until("there is a new result", || {
        let found = &host.pair("move")["verification"];
        found["at_ms"] != pair["verification"]["at_ms"] && found["unknown_bytes"] == 0
    });
    load.finish();
    host.assert_legs_equal("db", &source, &target);
    host.ok(&["cancel", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}

#[test]
fn a_target_that_does_not_keep_what_it_is_given_is_found_out_during_the_copy() {
    let host = Host::new();
    let (source, disk) = (lun::disk(0), lun::disk(1));
    let target = Mapped::linear("shunt-test-target", &disk);
    host.ok(&["attach", "db", &source]);
    let pair = format!("db:{}", target.path());
    host.ok(&["create", "move", &pair, "--verify", "full"]);
    target.spoil_writes();
    host.ok(&["start", "move"]);
    wait_until("the pair is degraded", || {
        host.pair("move")["state"] == "degraded"
    });
    wait_until("somebody says why", || {
        host.ok(&["history", "move"])
            .out
            .contains("do not read back")
    });
    host.refused(&["switch", "move"], REFUSED, &["move"]);
    target.mend_it();
    host.ok(&["resume", "move"]);
    // The pair is in sync, and was compared.
    host.wait_for("move", "source-selected");
    let pair = host.pair("move");
    assert_eq!(pair["verification"]["compared_bytes"], pair["size_bytes"]);
    host.ok(&["switch", "move"]);
    host.assert_legs_equal("db", &source, &target.path());
    host.ok(&["commit", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}
