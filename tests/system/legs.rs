//! Tests of a damaged map file: nothing is served, nothing is guessed, no leg is touched.

use std::os::unix::fs::FileExt;

use tests::{host::Host, lun, sh, wait_until};

fn flip_bit(map: &std::path::Path, offset: u64) {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(map)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

/// Kills shuntd and ublk-target, damages the map file and starts shuntd: the volume must stay away
/// and say why.
fn refuses_after(host: &mut Host, offsets: &[u64], luns: &[&str]) {
    host.kill_shuntd();
    let pid = host.kill_target_only("db");
    wait_until("ublk-target is gone", || {
        !std::path::Path::new(&format!("/proc/{pid}")).exists()
    });
    for offset in offsets {
        flip_bit(&host.map("db"), *offset);
    }
    let before: Vec<String> = luns.iter().map(|lun| lun::checksum(lun)).collect();
    let checked = tests::run("shunt-map", &["check", &host.map("db").to_string_lossy()]);
    assert_eq!(checked.status.code(), Some(1), "{checked:?}");
    host.start_shuntd();
    wait_until("shuntd says that the map file is damaged", || {
        let record = host.volume("db");
        record["state"] == "failed" && record["problem"].to_string().contains("damaged")
    });
    let after: Vec<String> = luns.iter().map(|lun| lun::checksum(lun)).collect();
    assert_eq!(before, after, "a leg was written");
    for offset in offsets {
        flip_bit(&host.map("db"), *offset);
    }
    wait_until("the mended volume comes back", || {
        host.volume("db")["state"] == "attached"
    });
}

#[test]
fn a_volume_with_two_damaged_role_records_is_not_served() {
    let mut host = Host::new();
    let source = lun::disk(0);
    host.ok(&["attach", "db", &source]);
    refuses_after(&mut host, &[20, 4096 + 20], &[&source]);
    host.ok(&["detach", "db"]);
}

#[test]
fn a_volume_with_one_damaged_role_record_is_served_by_the_other() {
    let mut host = Host::new();
    let source = lun::disk(0);
    host.ok(&["attach", "db", &source]);
    host.kill_shuntd();
    host.kill_target_only("db");
    flip_bit(&host.map("db"), 20);
    host.start_shuntd();
    wait_until("the volume comes back", || {
        host.volume("db")["state"] == "attached"
    });
    sh("shunt-map", &["check", &host.map("db").to_string_lossy()]);
    host.ok(&["detach", "db"]);
}

#[test]
fn a_mirrored_volume_with_a_damaged_bitmap_is_not_served() {
    let mut host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    host.bring_into_sync("db", &source, &target, "move");
    // In the payload of the first sector of the dirty bitmap.
    refuses_after(&mut host, &[143_360 + 100], &[&source, &target]);
    host.wait_for("move", "source-selected");
    host.assert_legs_equal("db", &source, &target);
    host.ok(&["cancel", "move", "--yes"]);
}
