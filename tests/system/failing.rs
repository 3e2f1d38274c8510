//! Tests of legs that fail or stall under a load that must not notice.

use std::{thread::sleep, time::Duration};

use tests::{
    host::Host,
    load::Load,
    lun::{self, Mapped},
    sh,
    steady::{SPAN, Steady},
    wait_until,
};

const REFUSED: i32 = 3;

fn is_in(host: &Host, state: &str) -> bool {
    host.pair("move")["state"] == state
}

/// One tag is in use, so that a write that waits for the mirror leg holds up everything.
const ONE_BY_ONE: &[&str] = &[
    "--rw=randwrite",
    "--bs=4k",
    "--iodepth=1",
    "--size=8M",
    "--io_size=512k",
    "--verify=crc32c",
    "--verify_fatal=1",
    "--do_verify=1",
    "--randrepeat=0",
];

#[test]
fn a_mirror_leg_that_stalls_is_given_up_and_copied_again_when_it_is_back() {
    let host = Host::new();
    let (source, disk) = (lun::disk(0), lun::disk(1));
    let target = Mapped::linear("shunt-test-target", &disk);
    host.bring_into_sync("db", &source, &target.path(), "move");
    let load = Steady::start(&Host::device("db"), SPAN);
    load.go_on();
    target.slow_down(3000);
    wait_until("the pair is degraded", || is_in(&host, "degraded"));
    let problem = host.pair("move")["problem"].to_string();
    assert!(problem.contains("timed out"), "{problem}");
    // Many more writes than there are places for writes to the mirror leg.
    let before = host.connect("db").status().counters.writes;
    wait_until("many writes are done", || {
        host.connect("db").status().counters.writes >= before + 300
    });
    host.refused(&["switch", "move"], REFUSED, &["move", "degraded"]);
    // The target is as slow as before: no write waits for it again.
    let history = || host.ok(&["history", "move"]).out;
    sleep(Duration::from_secs(6));
    assert!(!history().contains("answers again"), "{}", history());
    target.mend_it();
    // The rest happens automatically.
    host.wait_for("move", "source-selected");
    for line in ["answers again", "has caught up"] {
        wait_until(line, || history().contains(line));
    }
    load.go_on();
    load.finish();
    host.assert_legs_equal("db", &source, &target.path());
    host.ok(&["switch", "move"]);
    host.ok(&["commit", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}

#[test]
fn a_mirror_leg_that_hangs_can_be_left_behind() {
    let host = Host::new();
    let (source, disk) = (lun::disk(0), lun::disk(1));
    let target = Mapped::linear("shunt-test-target", &disk);
    host.bring_into_sync("db", &source, &target.path(), "move");
    let load = Load::start(&Host::device("db"), ONE_BY_ONE);
    load.go_on();
    target.hang();
    wait_until("the pair is degraded", || is_in(&host, "degraded"));
    load.go_on();
    host.ok(&["cancel", "move", "--yes"]);
    load.go_on();
    // What the mirror leg was given may still reach the LUN, so no other migration of the volume
    // starts before that.
    let third = lun::LoopDevice::new(lun::size(&source), 512);
    host.ok(&["create", "again", &format!("db:{}", third.path)]);
    let said = host.shunt(&["start", "again"]);
    assert_ne!(said.code, 0, "{said:?}");
    assert!(said.error.contains("next: "), "{said:?}");
    assert!(said.error.contains("under way"), "{said:?}");
    target.let_go();
    wait_until("it starts", || host.shunt(&["start", "again"]).code == 0);
    host.wait_for("again", "source-selected");
    load.finish();
    host.assert_legs_equal("db", &source, &third.path);
    host.ok(&["cancel", "again", "--yes"]);
    host.ok(&["detach", "db"]);
}

#[test]
fn a_target_that_fails_after_the_switch_gives_the_role_back_by_itself() {
    let host = Host::new();
    let (source, disk) = (lun::disk(0), lun::disk(1));
    let target = Mapped::linear("shunt-test-target", &disk);
    host.bring_into_sync("db", &source, &target.path(), "move");
    let load = Steady::start(&Host::device("db"), SPAN);
    load.go_on();
    host.ok(&["switch", "move"]);
    load.go_on();
    target.break_it();
    wait_until("the source rules", || {
        host.pair("move")["authoritative"] == "source"
    });
    load.go_on();
    assert!(is_in(&host, "degraded"), "{}", host.pair("move"));
    assert_eq!(host.connect("db").status().counters.fail_overs, 1);
    let told = || host.ok(&["history", "move"]).out.contains("automatically");
    wait_until("the history has the new role", told);
    // The next process finds the same role.
    host.kill_target("db");
    load.go_on();
    assert_eq!(host.pair("move")["authoritative"], "source");
    wait_until("the target is tried, and fails again", || {
        is_in(&host, "degraded")
    });
    target.mend_it();
    host.ok(&["resume", "move"]);
    host.wait_for("move", "source-selected");
    load.finish();
    host.assert_legs_equal("db", &source, &target.path());
    host.ok(&["cancel", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}

#[test]
fn the_policy_decides_whether_the_application_sees_the_failure() {
    let host = Host::new();
    let (disk, target) = (lun::disk(0), lun::disk(1));
    let source = Mapped::linear("shunt-test-source", &disk);
    let device = Host::device("db");
    host.ok(&["attach", "db", &source.path()]);
    for (policy, seen) in [("switch", false), ("error", true)] {
        let pair = format!("db:{target}");
        let option = format!("--on-authoritative-failure={policy}");
        host.ok(&["create", "move", &pair, "--overwrite", &option]);
        host.ok(&["start", "move"]);
        host.wait_for("move", "source-selected");
        wait_until("the volume knows the policy", || {
            let known = host.connect("db").status().on_authoritative_failure;
            format!("{known:?}").eq_ignore_ascii_case(policy)
        });
        source.break_it();
        let written = lun::write_megabyte(&device, 17, 3);
        assert_eq!(written.is_err(), seen, "{policy}: {written:?}");
        assert_eq!(lun::read_megabyte(&device, 17).is_err(), seen, "{policy}");
        let ruler = if seen { "source" } else { "target" };
        wait_until("shuntd knows who rules", || {
            host.pair("move")["authoritative"] == ruler
        });
        source.mend_it();
        if !seen {
            host.ok(&["resume", "move"]);
            host.wait_for("move", "target-selected");
            host.assert_legs_equal("db", &source.path(), &target);
            host.ok(&["undo", "move"]);
        }
        host.ok(&["cancel", "move", "--yes"]);
    }
    host.ok(&["detach", "db"]);
}

#[test]
fn a_volume_comes_back_without_its_mirror_leg_and_takes_it_again() {
    let mut host = Host::new();
    let (source, disk) = (lun::disk(0), lun::disk(1));
    let target = Mapped::linear("shunt-test-target", &disk);
    let path = target.path();
    host.bring_into_sync("db", &source, &path, "move");
    let load = Steady::start(&Host::device("db"), SPAN);
    load.go_on();
    host.kill_shuntd();
    host.kill_target_only("db");
    drop(target);
    host.start_shuntd();
    load.go_on();
    assert!(is_in(&host, "degraded"), "{}", host.pair("move"));
    let problem = host.pair("move")["problem"].to_string();
    assert!(problem.contains(&path), "{problem}");
    let said = host.shunt(&["resume", "move"]);
    assert_ne!(said.code, 0, "{said:?}");
    assert!(said.error.contains(&path), "{said:?}");
    // Another LUN in the place of the target is not accepted for it.
    let stranger = Mapped::linear("shunt-test-target", &lun::disk(2));
    let said = host.shunt(&["resume", "move"]);
    assert_ne!(said.code, 0, "{said:?}");
    assert!(is_in(&host, "degraded"), "{}", host.pair("move"));
    drop(stranger);
    let _target = Mapped::linear("shunt-test-target", &disk);
    host.ok(&["resume", "move"]);
    host.wait_for("move", "source-selected");
    load.finish();
    host.assert_legs_equal("db", &source, &path);
    host.ok(&["cancel", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}

/// Blocks that a source cannot read: a copy skips them only if the operator has accepted that. A
/// LUN that is away does not count as one with bad blocks.
#[test]
fn bad_blocks_of_a_source_are_copied_past_only_if_that_is_asked_for_and_never_those_of_a_lun_that_is_away()
 {
    // The bad sectors, where `lun::disk` has written something: this data is lost.
    const BAD: [(u64, u64); 2] = [(34 * 2048 + 1024, 8), (50 * 2048 + 1024, 1)];
    let mut host = Host::new();
    let (disk, target) = (lun::disk(0), lun::disk(1));
    let source = Mapped::linear("shunt-test-source", &disk);
    host.ok(&["attach", "db", &source.path()]);
    host.ok(&["create", "move", &format!("db:{target}")]);
    source.break_sectors(&BAD);
    host.ok(&["start", "move"]);
    let problem = |host: &Host| host.pair("move")["problem"].to_string();
    wait_until("all but the bad regions is copied", || {
        host.pair("move")["dirty_bytes"].as_u64().unwrap() <= 4 << 20
    });
    wait_until("the status names the way on", || {
        problem(&host).contains("--accept-unreadable")
    });
    // It stays until the copy is past the bad blocks. A copier that is started again copies parts
    // of their regions first.
    for _ in 0..40 {
        let said = problem(&host);
        assert!(said.contains("--accept-unreadable"), "{said}");
        sleep(Duration::from_millis(100));
    }
    host.refused(&["switch", "move"], REFUSED, &["still to be copied"]);

    // The source is away: none of its blocks is skipped.
    source.break_it();
    host.ok(&["set", "move", "--accept-unreadable", "1MiB"]);
    wait_until("the copy fails", || problem(&host).contains("read again"));
    assert_eq!(host.pair("move")["unreadable"], serde_json::json!([]));
    host.ok(&["set", "move", "--accept-unreadable", "1KiB"]);
    source.break_sectors(&BAD);
    wait_until("too much cannot be read", || {
        problem(&host).contains("1024 were accepted")
    });

    host.ok(&["set", "move", "--accept-unreadable", "1MiB"]);
    host.wait_for("move", "source-selected");
    let bad = BAD.map(|(start, sectors)| {
        serde_json::json!({"offset_bytes": start * 512, "length_bytes": sectors * 512})
    });
    assert_eq!(host.pair("move")["unreadable"], serde_json::json!(bad));
    host.kill_shuntd();
    host.start_shuntd();
    assert_eq!(host.pair("move")["unreadable"], serde_json::json!(bad));

    // A block that was copied before becomes bad: the target is not overwritten, and the pair
    // waits.
    let once_more = [BAD[0], BAD[1], (60 * 2048 + 1024, 1)];
    source.break_sectors(&once_more);
    host.kill_shuntd();
    host.kill_target_only("db");
    host.start_shuntd();
    wait_until("the pair says why it waits", || {
        problem(&host).contains("only good copy")
    });
    assert_eq!(host.pair("move")["unreadable"], serde_json::json!(bad));
    source.break_sectors(&BAD);
    host.wait_for("move", "source-selected");
    let said = host.ok(&["switch", "move"]).error;
    assert!(said.contains("zeroes on the target"), "{said}");
    let said = host.ok(&["status", "move"]).out;
    assert!(said.contains("4608 bytes could not be read"), "{said}");
    assert!(
        host.ok(&["history", "move"])
            .out
            .contains("cannot be read from the source")
    );
    host.ok(&["commit", "move", "--yes"]);
    host.ok(&["detach", "db"]);
    // Everything else was copied.
    drop(source);
    for (start, sectors) in BAD {
        let (seek, count) = (format!("seek={start}"), format!("count={sectors}"));
        sh(
            "dd",
            &[
                "if=/dev/zero",
                &format!("of={disk}"),
                "oflag=direct",
                &seek,
                &count,
            ],
        );
    }
    assert!(lun::are_equal(&disk, &target));
}
