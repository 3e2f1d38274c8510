//! A LUN that is pulled out.

use tests::{
    host::Host,
    load::{self, Load},
    lun::{self, LoopDevice, ScsiDisks},
    wait_until,
};

const REFUSED: i32 = 3;
const MIB: u32 = 48;

fn is_degraded(host: &Host) -> bool {
    host.pair("move")["state"] == "degraded"
}

#[test]
fn a_target_that_is_pulled_out_is_not_missed_and_goes_on_when_it_is_back() {
    let host = Host::new();
    let source = LoopDevice::new(u64::from(MIB) << 20, 512);
    let disks = ScsiDisks::new(MIB);
    host.ok(&["attach", "db", &source.path]);
    let load = Load::start(&Host::device("db"), load::SMALL);
    host.ok(&["create", "move", &format!("db:{}", disks.path())]);
    host.ok(&["start", "move"]);
    // Once in the copy, as far as it has come, and once in sync.
    for in_sync in [false, true] {
        if in_sync {
            host.wait_for("move", "source-selected");
        }
        disks.pull();
        load.go_on();
        wait_until("the pair is degraded", || is_degraded(&host));
        let pair = host.pair("move");
        assert!(pair["problem"].to_string().contains("mirror leg"), "{pair}");
        assert_eq!(pair["authoritative"], "source");
        host.refused(&["switch", "move"], REFUSED, &["move", "degraded"]);
        disks.put_back();
        // Another disk in its place.
        disks.lead_to(1);
        let said = host.shunt(&["resume", "move"]);
        println!("{said:?}");
        assert_ne!(said.code, 0, "{said:?}");
        assert!(
            said.error.contains("wwn") || said.error.contains("another"),
            "{said:?}"
        );
        assert!(said.error.contains("next: "), "{said:?}");
        assert!(is_degraded(&host));
        disks.lead_to(0);
        host.ok(&["resume", "move"]);
    }
    host.wait_for("move", "source-selected");
    load.finish();
    host.assert_legs_equal("db", &source.path, &disks.path());
    host.ok(&["cancel", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}

#[test]
fn the_only_leg_is_pulled_out_and_serves_again_when_it_is_back() {
    let host = Host::new();
    let disks = ScsiDisks::new(MIB);
    host.ok(&["attach", "db", &disks.path()]);
    load::once(&Host::device("db"), load::LITTLE).unwrap();
    let before = lun::checksum(&disks.path());
    disks.pull();
    // The one leg is gone: the application sees it.
    load::once(&Host::device("db"), load::LITTLE).unwrap_err();
    host.ok(&["status"]);
    disks.put_back();
    host.kill_target("db");
    assert_eq!(lun::checksum(&disks.path()), before);
    load::once(&Host::device("db"), load::LITTLE).unwrap();
    host.ok(&["detach", "db"]);
}
