//! Tests in which the files of shuntd and ublk-target are lost, damaged or locked, or their disk is
//! full.

use std::os::unix::fs::FileExt;

use tests::{
    host::Host,
    load, lun, run, sh,
    steady::{SPAN, Steady},
    wait_until,
};

const FAILED: i32 = 1;
const REFUSED: i32 = 3;

fn database(host: &Host) -> String {
    host.state_dir()
        .join("shunt.db")
        .to_string_lossy()
        .into_owned()
}

/// Kills the ublk-target of the volume, and waits until shuntd reports with `word` why it starts no
/// other.
fn goes_down(host: &Host, word: &str) {
    host.kill_target_only("db");
    wait_until("the volume says what is wrong", || {
        let volume = host.volume("db");
        volume["state"] == "failed" && volume["problem"].to_string().contains(word)
    });
}

#[test]
fn a_lost_database_is_made_again_while_the_application_goes_on() {
    let mut host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    host.bring_into_sync("db", &source, &target, "move");
    host.ok(&["switch", "move"]);
    let load = Steady::start(&Host::device("db"), SPAN);
    let pid = host.connect("db").status().pid;
    for damage in ["missing", "overwritten"] {
        host.kill_shuntd();
        if damage == "missing" {
            for companion in ["", "-wal", "-shm"] {
                let _ = std::fs::remove_file(database(&host) + companion);
            }
        } else {
            let _ = std::fs::remove_file(database(&host) + "-wal");
            let file = std::fs::File::options().write(true).open(database(&host));
            file.unwrap().write_all_at(&[0xa5; 9000], 0).unwrap();
        }
        load.go_on();
        host.start_shuntd();
        assert_eq!(host.connect("db").status().pid, pid, "{damage}");
        let pair = host.pair("found-db");
        assert_eq!(
            (&pair["state"], &pair["authoritative"]),
            (&"paused".into(), &"target".into())
        );
        assert!(
            pair["problem"].to_string().contains("database was lost"),
            "{pair}"
        );
        let history = host.ok(&["history"]).out;
        assert!(
            history.contains("restored as session found-db"),
            "{history}"
        );
    }
    host.ok(&["resume", "found-db"]);
    host.wait_for("found-db", "target-selected");
    load.finish();
    host.assert_legs_equal("db", &source, &target);
    host.ok(&["commit", "found-db", "--yes"]);
    host.ok(&["detach", "db"]);
}

#[test]
fn a_volume_whose_map_file_is_lost_goes_on_with_the_leg_that_the_operator_names() {
    let host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    host.bring_into_sync("db", &source, &target, "move");
    host.ok(&["switch", "move"]);
    let load = Steady::start(&Host::device("db"), SPAN);
    load.go_on();
    // The map file is truncated: nothing is served, and requests wait.
    let map = host.map("db");
    std::fs::File::options()
        .write(true)
        .open(&map)
        .unwrap()
        .set_len(5000)
        .unwrap();
    goes_down(&host, "shunt recover db");
    let recover = |leg| ["recover", "db", "--authoritative", leg, "--yes"];
    host.refused(
        &recover("source"),
        REFUSED,
        &["the target was authoritative", "--against-record"],
    );
    let unsure = host.shunt(&recover("target")[..4]);
    assert_eq!(unsure.code, REFUSED, "{unsure:?}");
    assert!(
        unsure.error.contains("would do") && unsure.error.contains("--yes"),
        "{unsure:?}"
    );
    let before = lun::checksum(&source);
    host.ok(&recover("target"));
    load.go_on();
    host.wait_for("move", "committed");
    load.finish();
    assert_eq!(lun::checksum(&source), before, "the other leg was written");
    // A map file of another volume that is served now is refused as well, and `recover` helps in
    // the same way.
    std::fs::remove_file(&map).unwrap();
    host.ok(&["attach", "other", &lun::disk(2)]);
    std::fs::copy(host.map("other"), &map).unwrap();
    goes_down(&host, "another volume, other");
    host.ok(&recover("source"));
    load::once(&Host::device("db"), load::SMALL).unwrap();
    host.ok(&["detach", "other"]);
    host.ok(&["detach", "db"]);
}

#[test]
fn on_a_full_disk_nothing_new_begins_and_what_runs_goes_on() {
    let at = tempfile::tempdir_in("/var/tmp").unwrap();
    let place = at.path().to_string_lossy().into_owned();
    sh("mount", &["-t", "tmpfs", "-o", "size=8M", "tmpfs", &place]);
    {
        let host = Host::with_state(&at.path().join("state"));
        let (source, target) = (lun::disk(0), lun::disk(1));
        host.bring_into_sync("db", &source, &target, "move");
        let _ = run(
            "dd",
            &["if=/dev/zero", &format!("of={place}/ballast"), "bs=4k"],
        );
        let load = Steady::start(&Host::device("db"), SPAN);
        load.go_on();
        let said = host.shunt(&["attach", "other", &lun::disk(2)]);
        assert_eq!(said.code, FAILED, "{said:?}");
        assert!(
            said.error.contains("full") || said.error.contains("No space"),
            "{said:?}"
        );
        assert!(said.error.contains("next: "), "{said:?}");
        host.kill_target("db");
        load.go_on();
        std::fs::remove_file(at.path().join("ballast")).unwrap();
        host.wait_for("move", "source-selected");
        host.ok(&["switch", "move"]);
        load.finish();
        host.assert_legs_equal("db", &source, &target);
        host.ok(&["commit", "move", "--yes"]);
        host.ok(&["detach", "db"]);
    }
    sh("umount", &[&place]);
}
