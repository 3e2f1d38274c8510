//! Tests of what others write to a leg while no process of Shunt holds it, and of which process
//! holds it when.

use tests::{host::Host, lun, wait_until};

const REFUSED: i32 = 3;

/// Brings a pair into sync, and waits until its map file marks no region: because of marks nothing
/// is copied again.
fn in_sync_and_unmarked(host: &Host, source: &str, target: &str) {
    host.bring_into_sync("db", source, target, "move");
    wait_until("no region is marked", || {
        let map = map_store::MapFile::open_read_only(&host.map("db"));
        map.is_ok_and(|map| map.dirty.iter().chain(&map.intent).all(|word| *word == 0))
    });
}

fn end(host: &Host) {
    host.ok(&["cancel", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}

#[test]
fn a_leg_that_others_wrote_to_while_nobody_held_it_is_compared_before_it_counts() {
    let mut host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    in_sync_and_unmarked(&host, &source, &target);
    host.ok(&["set", "move", "--rate", "1MiB"]);
    host.kill_shuntd();
    host.kill_target_only("db");
    lun::write_megabyte(&target, 40, 0xee).unwrap();
    host.start_shuntd();
    wait_until("it says why", || {
        let problem = host.pair("move")["problem"].to_string();
        problem.contains("compared again")
    });
    assert_eq!(host.pair("move")["state"], "syncing");
    host.refused(&["switch", "move"], REFUSED, &["still to be copied"]);
    host.ok(&["set", "move", "--rate", "unlimited"]);
    host.wait_for("move", "source-selected");
    let history = host.ok(&["history", "move"]).out;
    assert!(history.contains("the legs are compared again"), "{history}");
    host.ok(&["switch", "move"]);
    assert_ne!(
        lun::read_megabyte(&Host::device("db"), 40).unwrap()[0],
        0xee
    );
    host.ok(&["undo", "move"]);
    host.assert_legs_equal("db", &source, &target);
    end(&host);
}

#[test]
fn the_luns_of_a_ublk_target_that_died_stay_claimed_and_nothing_is_compared() {
    let host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    in_sync_and_unmarked(&host, &source, &target);
    let before = host.connect("db").status();
    assert_eq!(before.held.len(), 2);
    // shuntd is stopped, so that it does not start the next process yet.
    host.signal_shuntd(libc::SIGSTOP);
    let pid = host.kill_target_only("db");
    wait_until("it is dead", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    });
    assert!(!lun::is_free(&source) && !lun::is_free(&target));
    host.signal_shuntd(libc::SIGCONT);
    wait_until("the volume comes back", || {
        let volume = host.volume("db");
        volume["state"] == "attached" && volume["pid"].as_u64() != Some(before.pid.into())
    });
    let after = host.connect("db").status();
    assert_ne!(after.pid, before.pid);
    assert_eq!(after.claim, before.claim, "the claim was handed on");
    assert_eq!(after.doubt, None);
    assert_eq!(after.copied_bytes + after.dirty_bytes, 0);
    assert!(!lun::is_free(&source) && !lun::is_free(&target));
    end(&host);
    assert!(lun::is_free(&source) && lun::is_free(&target));
}
