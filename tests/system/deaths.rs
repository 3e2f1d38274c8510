//! Tests in which shuntd and ublk-target get SIGKILL while applications write.

use migration_proto::target::{Request, Response};
use tests::{
    host::Host,
    load::{self, Load},
    lun::{self, Mapped},
    wait_until,
};

/// Starts a migration that takes some seconds, because each write to the target is slow.
fn start_slow_copy(host: &Host) -> (String, Mapped) {
    let (source, disk) = (lun::disk(0), lun::disk(1));
    let target = Mapped::slow_writes("shunt-test-slow", &disk, 150);
    host.ok(&["attach", "db", &source]);
    host.ok(&["create", "move", &format!("db:{}", target.path())]);
    host.ok(&["start", "move"]);
    (source, target)
}

fn wait_for_progress(host: &Host, regions: u64) {
    wait_until("the copy has come some way", || {
        let status = host.connect("db").status();
        status.copied_bytes >= regions * status.region_bytes
    });
}

fn end(host: &Host, source: &str, target: &Mapped) {
    host.wait_for("move", "source-selected");
    host.assert_legs_equal("db", source, &target.path());
    host.ok(&["cancel", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}

#[test]
fn shuntd_dies_during_the_copy_and_only_what_it_had_claimed_is_copied_twice() {
    let mut host = Host::new();
    let (source, target) = start_slow_copy(&host);
    wait_for_progress(&host, 16);
    host.kill_shuntd();
    let at_death = host.connect("db").status();
    assert!(
        at_death.dirty_bytes > 0,
        "the copy was over too early to prove anything"
    );
    host.start_shuntd();
    host.wait_for("move", "source-selected");
    let status = host.connect("db").status();
    assert_eq!(
        status.pid, at_death.pid,
        "the volume continued with the same process"
    );
    // A region that was reported is never copied again; without writes each is reported once.
    assert_eq!(status.copied_bytes, status.size_bytes);
    end(&host, &source, &target);
}

#[test]
fn shuntd_dies_during_the_copy_and_the_application_notices_nothing() {
    let mut host = Host::new();
    let (source, target) = start_slow_copy(&host);
    let load = Load::start(&Host::device("db"), load::SMALL);
    for _ in 0..2 {
        wait_for_progress(&host, 4);
        host.kill_shuntd();
        load.go_on();
        host.start_shuntd();
    }
    host.wait_for("move", "source-selected");
    load.finish();
    end(&host, &source, &target);
}

#[test]
fn ublk_target_dies_during_the_copy_and_comes_back_without_an_error() {
    let host = Host::new();
    let (source, target) = start_slow_copy(&host);
    let load = Load::start(&Host::device("db"), load::SMALL);
    for _ in 0..4 {
        wait_for_progress(&host, 2);
        host.kill_target("db");
    }
    host.wait_for("move", "source-selected");
    load.finish();
    end(&host, &source, &target);
}

#[test]
fn ublk_target_dies_with_every_request_held_and_after_a_switch() {
    let host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    host.bring_into_sync("db", &source, &target, "move");
    let device = Host::device("db");
    let load = Load::start(&device, load::SMALL);
    load.go_on();
    let mut connection = host.connect("db");
    let suspend = Request::Suspend {
        deadline_ms: 60_000,
    };
    assert_eq!(connection.ask(&suspend), Response::Suspended);
    host.kill_target("db");
    load.go_on();
    host.wait_for("move", "source-selected");
    host.ok(&["switch", "move"]);
    host.kill_target("db");
    load.go_on();
    host.wait_for("move", "target-selected");
    assert_eq!(host.pair("move")["authoritative"], "target");
    load.finish();
    host.assert_legs_equal("db", &source, &target);
    host.ok(&["undo", "move"]);
    host.ok(&["cancel", "move", "--yes"]);
}

#[test]
fn both_die_at_once_and_the_copy_goes_on() {
    let mut host = Host::new();
    let (source, target) = start_slow_copy(&host);
    let load = Load::start(&Host::device("db"), load::SMALL);
    wait_for_progress(&host, 8);
    host.kill_shuntd();
    host.kill_target_only("db");
    host.start_shuntd();
    load.go_on();
    host.wait_for("move", "source-selected");
    load.finish();
    end(&host, &source, &target);
}
