//! Tests of the main job, and that the two legs hold what they should all the time.

use migration_proto::target::{Request, Response};
use tests::{
    host::Host,
    load::{self, Load},
    lun::{self, LoopDevice, Mapped, Mounted},
    sh, wait_until, write_random,
};

#[test]
fn a_volume_moves_under_verified_load_and_the_target_alone_has_every_byte() {
    let host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    host.ok(&["attach", "db", &source]);
    let device = Host::device("db");
    let load = Load::start(&device, load::VERIFY);
    load.go_on();
    host.ok(&["create", "move", &format!("db:{target}")]);
    host.ok(&["start", "move"]);
    host.wait_for("move", "source-selected");
    load.go_on();
    host.assert_legs_equal("db", &source, &target);
    for (verb, authoritative) in [
        ("switch", "target"),
        ("undo", "source"),
        ("switch", "target"),
    ] {
        host.ok(&[verb, "move"]);
        assert_eq!(host.pair("move")["authoritative"], authoritative);
        load.go_on();
        host.assert_legs_equal("db", &source, &target);
    }
    host.ok(&["commit", "move", "--yes"]);
    load.go_on();
    load.finish();
    // Read through the volume, then from the target without Shunt.
    let contents = lun::checksum(&device);
    host.ok(&["detach", "db"]);
    assert_eq!(
        lun::checksum(&target),
        contents,
        "the target is not what the application saw"
    );
    assert_ne!(
        lun::checksum(&source),
        contents,
        "the source was written after the commit"
    );
}

#[test]
fn writes_that_overlap_all_the_time_leave_both_legs_equal() {
    let host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    host.ok(&["attach", "db", &source]);
    let load = Load::start(&Host::device("db"), load::OVERLAPPING);
    host.ok(&["create", "move", &format!("db:{target}")]);
    host.ok(&["start", "move"]);
    host.wait_for("move", "source-selected");
    for verb in ["switch", "undo", "switch", "undo"] {
        load.go_on();
        host.assert_legs_equal("db", &source, &target);
        host.ok(&[verb, "move"]);
    }
    assert!(
        host.connect("db").status().counters.waited > 0,
        "no write ever overlapped"
    );
    load.finish();
    host.assert_legs_equal("db", &source, &target);
    host.ok(&["cancel", "move", "--yes"]);
}

#[test]
fn a_suspension_that_nobody_ends_ends_by_its_deadline() {
    let mut host = Host::new();
    host.ok(&["attach", "db", &lun::disk(0)]);
    let mut connection = host.connect("db");
    // Long enough for fio to start in an emulated machine.
    let suspend = Request::Suspend { deadline_ms: 5_000 };
    assert_eq!(connection.ask(&suspend), Response::Suspended);
    assert!(connection.status().suspended);
    host.kill_shuntd();
    // The requests are answered late, and without an error.
    load::once(&Host::device("db"), load::SMALL).unwrap();
    let status = connection.status();
    assert!(!status.suspended);
    assert!(status.counters.last_pause_us > 0, "{status:?}");
    assert_eq!(
        connection.ask(&Request::Resume),
        Response::Resumed { ended: None }
    );
}

#[test]
fn a_file_system_survives_its_migration() {
    let host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    host.ok(&["attach", "db", &source]);
    let device = Host::device("db");
    sh("mkfs.ext4", &["-q", &device]);
    let mounted = Mounted::new(&device);
    let mut files = Vec::new();
    let mut write = |name| files.push((name, write_random(&mounted.path().join(name), 8 << 20)));
    write("before");
    host.ok(&["create", "move", &format!("db:{target}")]);
    host.ok(&["start", "move"]);
    write("while-copying");
    sh("fstrim", &[&mounted.path().to_string_lossy()]);
    host.wait_for("move", "source-selected");
    host.ok(&["switch", "move"]);
    write("switched");
    host.ok(&["commit", "move", "--yes"]);
    write("committed");
    drop(mounted);
    host.ok(&["detach", "db"]);
    sh("fsck.ext4", &["-f", "-n", &target]);
    let mounted = Mounted::new(&target);
    for (name, contents) in files {
        let found = std::fs::read(mounted.path().join(name)).unwrap();
        assert!(found == contents, "{name} has other contents");
    }
}

#[test]
fn a_committed_volume_moves_on_to_a_third_lun() {
    let host = Host::new();
    let (first, second) = (lun::disk(0), lun::disk(1));
    let third = LoopDevice::new(160 << 20, 512);
    host.bring_into_sync("db", &first, &second, "one");
    host.ok(&["switch", "one"]);
    host.ok(&["commit", "one", "--yes"]);
    load::once(&Host::device("db"), load::VERIFY).unwrap();
    // The target may be larger.
    host.ok(&["create", "two", &format!("db:{}", third.path)]);
    host.ok(&["start", "two"]);
    host.wait_for("two", "source-selected");
    host.assert_legs_equal("db", &second, &third.path);
    host.ok(&["switch", "two"]);
    host.ok(&["undo", "two"]);
    host.ok(&["cancel", "two", "--yes"]);
    host.ok(&["detach", "db"]);
}

#[test]
fn odd_sizes_large_sectors_and_files_move_too() {
    let host = Host::new();
    let odd = (33 << 20) + 4096;
    let legs = [LoopDevice::new(odd, 4096), LoopDevice::new(odd, 4096)];
    host.bring_into_sync("odd", &legs[0].path, &legs[1].path, "odd");
    let block = format!("/sys/block/{}/queue/logical_block_size", kernel_name("odd"));
    assert_eq!(std::fs::read_to_string(block).unwrap().trim(), "4096");
    let large = [
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=16",
        "--verify=crc32c",
    ];
    load::once(&Host::device("odd"), &large).unwrap();
    host.assert_legs_equal("odd", &legs[0].path, &legs[1].path);
    host.ok(&["switch", "odd"]);
    load::once(&Host::device("odd"), &large).unwrap();
    host.assert_legs_equal("odd", &legs[0].path, &legs[1].path);
    host.ok(&["undo", "odd"]);
    host.ok(&["cancel", "odd", "--yes"]);
    host.ok(&["detach", "odd"]);

    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let file = |name: &str| {
        let path = folder.path().join(name);
        std::fs::File::create(&path)
            .unwrap()
            .set_len(40 << 20)
            .unwrap();
        path.to_string_lossy().into_owned()
    };
    let (source, target) = (file("source"), file("target"));
    host.bring_into_sync("trial", &source, &target, "trial");
    load::once(&Host::device("trial"), load::SMALL).unwrap();
    host.assert_legs_equal("trial", &source, &target);
    host.ok(&["switch", "trial"]);
    host.ok(&["commit", "trial", "--yes"]);
    host.ok(&["detach", "trial"]);
}

#[test]
fn a_mirror_leg_that_fails_is_not_seen_by_the_application_and_is_copied_again() {
    let host = Host::new();
    let (source, disk) = (lun::disk(0), lun::disk(1));
    let target = Mapped::linear("shunt-test-target", &disk);
    host.bring_into_sync("db", &source, &target.path(), "move");
    let load = Load::start(&Host::device("db"), load::SMALL);
    load.go_on();
    target.break_it();
    load.go_on();
    wait_until("the pair is degraded", || {
        host.pair("move")["state"] == "degraded"
    });
    assert_eq!(host.pair("move")["authoritative"], "source");
    host.refused(&["switch", "move"], 3, &["move"]);
    target.mend_it();
    load.go_on();
    host.ok(&["resume", "move"]);
    host.wait_for("move", "source-selected");
    load.finish();
    host.assert_legs_equal("db", &source, &target.path());
    host.ok(&["cancel", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}

fn kernel_name(volume: &str) -> String {
    let device = std::fs::canonicalize(Host::device(volume)).unwrap();
    device.file_name().unwrap().to_string_lossy().into_owned()
}
