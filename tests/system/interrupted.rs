//! Tests of deaths in the middle of something: a claim, a full queue, a change of the role.

use std::{thread::sleep, time::Duration};

use migration_proto::target::{Request, Response};
use tests::{
    host::Host,
    load::{self, Load},
    lun::{self, Mapped},
    wait_until,
};

/// More requests than a device has tags.
const CROWD: &[&str] = &[
    "--rw=randwrite",
    "--bs=4k",
    "--iodepth=64",
    "--numjobs=4",
    "--offset_increment=8M",
    "--size=8M",
    "--io_size=1M",
    "--verify=crc32c",
    "--verify_fatal=1",
    "--do_verify=1",
    "--randrepeat=0",
];

fn kernel_name(volume: &str) -> String {
    let device = std::fs::canonicalize(Host::device(volume)).unwrap();
    device.file_name().unwrap().to_string_lossy().into_owned()
}

fn number(path: &str) -> u64 {
    let text = std::fs::read_to_string(path).unwrap();
    text.split_whitespace()
        .map(|word| word.parse::<u64>().unwrap())
        .sum()
}

#[test]
fn the_target_is_written_once_except_for_what_was_claimed_when_shuntd_died() {
    let mut host = Host::new();
    let (source, disk) = (lun::disk(0), lun::disk(1));
    let target = Mapped::slow_writes("shunt-test-slow", &disk, 150);
    host.ok(&["attach", "db", &source]);
    host.ok(&["create", "move", &format!("db:{}", target.path())]);
    let written_before = target.written_bytes();
    host.ok(&["start", "move"]);
    let mut connection = host.connect("db");
    wait_until("the copy has come some way", || {
        let status = connection.status();
        status.copied_bytes >= 16 * status.region_bytes
    });
    host.signal_shuntd(libc::SIGSTOP);
    // A stopped shuntd claims and reports no more; the requests that it has sent before are
    // answered.
    let mut last = (u64::MAX, 0);
    wait_until("the claims stay as they are", || {
        sleep(Duration::from_millis(100));
        let status = connection.status();
        let now = (status.claimed_bytes, status.copied_bytes);
        std::mem::replace(&mut last, now) == now
    });
    let (claimed, copied) = last;
    let size = lun::size(&source);
    assert!(
        claimed > 0 && copied < size,
        "{claimed} claimed, {copied} copied"
    );
    host.kill_shuntd();
    host.start_shuntd();
    host.wait_for("move", "source-selected");
    let written = target.written_bytes() - written_before;
    assert!(
        written >= size && written <= size + claimed,
        "{written} bytes were written for {size}, and {claimed} were claimed"
    );
    host.assert_legs_equal("db", &source, &target.path());
    host.ok(&["cancel", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}

#[test]
fn shuntd_ends_when_it_is_told_to_and_the_volume_goes_on() {
    let mut host = Host::new();
    let (source, disk) = (lun::disk(0), lun::disk(1));
    let target = Mapped::slow_writes("shunt-test-slow", &disk, 150);
    host.ok(&["attach", "db", &source]);
    host.ok(&["create", "move", &format!("db:{}", target.path())]);
    host.ok(&["start", "move"]);
    let pid = host.connect("db").status().pid;
    assert_eq!(host.stop_shuntd(), Some(0));
    load::once(&Host::device("db"), load::SMALL).unwrap();
    host.start_shuntd();
    host.wait_for("move", "source-selected");
    assert_eq!(host.connect("db").status().pid, pid);
    host.assert_legs_equal("db", &source, &target.path());
    host.ok(&["cancel", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}

#[test]
fn ublk_target_dies_with_every_tag_of_the_device_held() {
    let host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    host.bring_into_sync("db", &source, &target, "move");
    let name = kernel_name("db");
    for _ in 0..2 {
        let mut connection = host.connect("db");
        let suspend = Request::Suspend {
            deadline_ms: 60_000,
        };
        assert_eq!(connection.ask(&suspend), Response::Suspended);
        // All requests of the load are held from the beginning.
        let load = Load::start(&Host::device("db"), CROWD);
        let tags = number(&format!("/sys/block/{name}/mq/0/nr_tags"));
        wait_until("every tag is held", || {
            number(&format!("/sys/block/{name}/inflight")) >= tags
        });
        let killed = std::time::Instant::now();
        host.kill_target("db");
        // The driver's own request timeout of 30 s would be too late.
        assert!(
            killed.elapsed() < Duration::from_secs(25),
            "back after {:?}",
            killed.elapsed()
        );
        load.go_on();
        load.finish();
    }
    host.wait_for("move", "source-selected");
    host.assert_legs_equal("db", &source, &target);
    host.ok(&["cancel", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}

#[test]
fn ublk_target_dies_under_writes_of_all_sizes_on_either_side() {
    let host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    host.bring_into_sync("db", &source, &target, "move");
    let load = Load::start(&Host::device("db"), load::VERIFY);
    for (verb, state) in [
        ("switch", "target-selected"),
        ("undo", "source-selected"),
        ("switch", "target-selected"),
    ] {
        // The kill comes neither at the beginning nor at the end of a round.
        let before = host.connect("db").status().counters.writes;
        wait_until("some writes are through", || {
            host.connect("db").status().counters.writes >= before + 20
        });
        host.kill_target("db");
        load.go_on();
        let other = if verb == "switch" { "source" } else { "target" };
        host.wait_for("move", &format!("{other}-selected"));
        host.assert_legs_equal("db", &source, &target);
        host.ok(&[verb, "move"]);
        host.wait_for("move", state);
    }
    load.finish();
    host.assert_legs_equal("db", &source, &target);
    host.ok(&["commit", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}
