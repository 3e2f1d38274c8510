//! Tests of who is kept away: from the legs, from the sockets, and LUNs that are not the accepted
//! ones.

use std::{
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
};

use tests::{
    host::Host,
    load,
    lun::{self, LoopDevice, Mapped},
    run, sh, wait_until,
};

const REFUSED: i32 = 3;
const NOT_FOUND: i32 = 4;

#[test]
fn nobody_can_mount_or_format_a_leg_underneath_and_a_leg_that_is_given_up_is_free() {
    let host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    sh("mkfs.ext4", &["-q", &source]);
    host.ok(&["attach", "db", &source]);
    let at = tempfile::tempdir_in("/var/tmp").unwrap();
    let place = at.path().to_string_lossy().into_owned();
    let refuses = |lun: &str| {
        assert!(
            !run("mount", &[lun, &place]).status.success(),
            "{lun} was mounted"
        );
        assert!(
            !run("mkfs.ext4", &["-q", "-F", lun]).status.success(),
            "{lun} was formatted"
        );
        assert!(!lun::is_free(lun), "{lun} can be claimed");
    };
    refuses(&source);
    assert!(lun::is_free(&target));
    host.ok(&["create", "move", &format!("db:{target}")]);
    host.ok(&["start", "move"]);
    refuses(&source);
    refuses(&target);
    host.wait_for("move", "source-selected");
    host.kill_target("db");
    host.wait_for("move", "source-selected");
    refuses(&source);
    refuses(&target);
    host.ok(&["switch", "move"]);
    host.ok(&["commit", "move", "--yes"]);
    refuses(&target);
    // The leg is closed last.
    wait_until("the leg that was given up is free", || {
        lun::is_free(&source)
    });
    host.ok(&["detach", "db"]);
    assert!(lun::is_free(&target));
    sh("fsck.ext4", &["-f", "-n", &target]);
}

/// Sends a greeting as another user; returns the answer.
fn greet_as_nobody(socket: &Path) -> std::io::Result<Vec<u8>> {
    const NOBODY: libc::c_long = 65534;
    let socket = socket.to_owned();
    let thread = std::thread::spawn(move || {
        // The system call changes this thread alone; the function of the C library would change all
        // threads.
        // SAFETY: setresuid takes numbers only.
        let result = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
        assert_eq!(result, 0, "setresuid");
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(tests::SOON))?;
        // The other end may have closed already.
        let _ = stream.write_all(b"\x0e\0\0\0{\"protocol\":1}\x14\0\0\0{\"request\":\"status\"}");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        Ok(answer)
    });
    thread.join().unwrap()
}

#[test]
fn another_user_is_refused_whatever_the_mode_of_the_sockets_is() {
    let host = Host::new();
    host.ok(&["attach", "db", &lun::disk(0)]);
    for socket in [host.socket(), host.volume_socket("db")] {
        let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", socket.display());
        let error = greet_as_nobody(&socket).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
        let mut open = socket.as_path();
        while open != Path::new("/run") {
            std::fs::set_permissions(open, std::fs::Permissions::from_mode(0o777)).unwrap();
            open = open.parent().unwrap();
        }
        let answer = greet_as_nobody(&socket).unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            !answer.contains("volume") && !answer.contains("records"),
            "{answer}"
        );
    }
    assert_eq!(host.volume("db")["state"], "attached");
    host.ok(&["detach", "db"]);
}

fn file(folder: &Path, name: &str, bytes: u64) -> String {
    let path = folder.join(name);
    std::fs::File::create(&path)
        .unwrap()
        .set_len(bytes)
        .unwrap();
    path.to_string_lossy().into_owned()
}

#[test]
fn a_lun_that_was_exchanged_behind_its_path_is_not_used() {
    let mut host = Host::new();
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let (source, target) = (
        file(folder.path(), "source", 8 << 20),
        file(folder.path(), "target", 8 << 20),
    );
    let away = folder.path().join("away");
    host.bring_into_sync("db", &source, &target, "move");
    for lun in [&source, &target] {
        host.kill_shuntd();
        let pid = host.kill_target_only("db");
        wait_until("ublk-target is gone", || {
            !Path::new(&format!("/proc/{pid}")).exists()
        });
        std::fs::rename(lun, &away).unwrap();
        let name = Path::new(lun).file_name().unwrap().to_string_lossy();
        let other = file(folder.path(), &name, 8 << 20);
        let before = lun::checksum(&other);
        host.start_shuntd();
        let says_which = |record: &serde_json::Value| {
            let problem = record["problem"].to_string();
            problem.contains(lun.as_str()) && problem.contains("inode")
        };
        if *lun == source {
            wait_until("the volume says which LUN was exchanged", || {
                let volume = host.volume("db");
                volume["state"] == "failed" && says_which(&volume)
            });
        } else {
            // The volume is served by the source alone.
            wait_until("the pair says which LUN was exchanged", || {
                let pair = host.pair("move");
                pair["state"] == "degraded" && says_which(&pair)
            });
            load::once(&Host::device("db"), load::LITTLE).unwrap();
            assert_ne!(host.shunt(&["resume", "move"]).code, 0);
        }
        host.refused(&["switch", "move"], REFUSED, &["move"]);
        assert_eq!(lun::checksum(&other), before, "{other} was written");
        std::fs::rename(&away, lun).unwrap();
        wait_until("the volume comes back", || {
            host.volume("db")["state"] == "attached"
        });
        if *lun == target {
            host.ok(&["resume", "move"]);
        }
        host.wait_for("move", "source-selected");
    }
    host.assert_legs_equal("db", &source, &target);
    host.ok(&["cancel", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}

/// Kills shuntd and the ublk-target of a volume, and waits until both are gone. shuntd is not
/// started again.
fn down(host: &mut Host, volume: &str) {
    host.kill_shuntd();
    let pid = host.kill_target_only(volume);
    wait_until("ublk-target is gone", || {
        !Path::new(&format!("/proc/{pid}")).exists()
    });
}

#[test]
fn a_lun_that_has_grown_is_taken_again_and_one_that_has_shrunk_is_not() {
    let mut host = Host::new();
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let (source, target) = (
        file(folder.path(), "source", 8 << 20),
        file(folder.path(), "target", 8 << 20),
    );
    let resize = |path: &str, size_bytes: u64| {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_len(size_bytes).unwrap();
    };
    host.bring_into_sync("db", &source, &target, "move");
    down(&mut host, "db");
    resize(&source, 12 << 20);
    resize(&target, 16 << 20);
    host.start_shuntd();
    host.wait_for("move", "source-selected");
    load::once(&Host::device("db"), load::LITTLE).unwrap();
    let volume = host.volume("db");
    assert_eq!(volume["size_bytes"], 8 << 20, "{volume}");
    let grown = volume["grown"].to_string();
    assert!(
        grown.contains(&source) && grown.contains(&target),
        "{grown}"
    );
    let history = host.ok(&["history"]).out;
    assert_eq!(history.matches("has grown to").count(), 2, "{history}");
    host.ok(&["switch", "move"]);
    down(&mut host, "db");
    resize(&source, 4 << 20);
    host.start_shuntd();
    wait_until("the pair says what is too small", || {
        let pair = host.pair("move");
        pair["state"] == "degraded" && pair["problem"].to_string().contains("size was")
    });
    load::once(&Host::device("db"), load::LITTLE).unwrap();
    resize(&source, 12 << 20);
    host.ok(&["commit", "move", "--yes"]);
    host.ok(&["detach", "db"]);
    host.ok(&["attach", "db", &target]);
    assert_eq!(
        host.volume("db")["size_bytes"],
        16 << 20,
        "the rest is used"
    );
    host.ok(&["detach", "db"]);
}

#[test]
fn a_device_that_comes_back_under_another_name_is_found() {
    let mut host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    let mut first = Mapped::linear("shunt-test-a", &source);
    let mut second = Mapped::linear("shunt-test-b", &target);
    host.bring_into_sync("db", &first.path(), &second.path(), "move");
    down(&mut host, "db");
    // Each device has the name of the other.
    first.rename("shunt-test-c");
    second.rename("shunt-test-a");
    first.rename("shunt-test-b");
    host.start_shuntd();
    host.wait_for("move", "source-selected");
    load::once(&Host::device("db"), load::LITTLE).unwrap();
    let history = host.ok(&["history"]).out;
    assert!(
        history.contains("by its identity it is found as"),
        "{history}"
    );
    // The next one inherits the claims under the names that lead to the devices now.
    host.kill_target_only("db");
    load::once(&Host::device("db"), load::LITTLE).unwrap();
    host.wait_for("move", "source-selected");
    host.ok(&["switch", "move"]);
    host.ok(&["undo", "move"]);
    host.assert_legs_equal("db", &source, &target);
    host.ok(&["cancel", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}

#[test]
fn disks_without_a_name_are_refused_unless_accepted_and_not_taken_for_each_other() {
    let mut host = Host::new();
    // Two LUNs of one size, as disks of one array are.
    let below = [0, 1].map(|_| LoopDevice::new(16 << 20, 512));
    let mut first = Mapped::nameless("shunt-test-a", &below[0].path);
    let mut second = Mapped::nameless("shunt-test-b", &below[1].path);
    let path = first.path();
    host.refused(
        &["attach", "db", &path],
        REFUSED,
        &["--accept-weak-identity"],
    );
    host.ok(&["attach", "db", &path, "--accept-weak-identity"]);
    let weak = host.volume("db")["weak_identity"].to_string();
    assert!(weak.contains(&path), "{weak}");
    lun::scribble(&Host::device("db"));
    let before = lun::checksum(&second.path());
    let mut exchange = || {
        first.rename("shunt-test-c");
        second.rename("shunt-test-a");
        first.rename("shunt-test-b");
        std::mem::swap(&mut first, &mut second);
    };
    down(&mut host, "db");
    exchange();
    host.start_shuntd();
    wait_until("it is not taken for the other one", || {
        let volume = host.volume("db");
        let problem = volume["problem"].to_string();
        volume["state"] == "failed"
            && problem.contains("another disk")
            && problem.contains("shunt attach db")
    });
    host.kill_shuntd();
    exchange();
    host.start_shuntd();
    wait_until("the volume comes back", || {
        host.volume("db")["state"] == "attached"
    });
    assert_eq!(lun::checksum("/dev/mapper/shunt-test-b"), before);
    host.ok(&["detach", "db"]);
}

#[test]
fn a_target_that_changed_between_create_and_start_is_refused() {
    let host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    host.ok(&["attach", "db", &source]);
    host.ok(&["create", "move", &format!("db:{target}")]);
    sh("mkfs.ext4", &["-q", &target]);
    let before = lun::checksum(&target);
    host.refused(&["start", "move"], REFUSED, &["ext4", "move"]);
    {
        let _mapped = Mapped::linear("shunt-test-holder", &target);
        host.refused(&["start", "move"], REFUSED, &["shunt-test-holder"]);
    }
    assert_eq!(host.pair("move")["state"], "setup");
    assert_eq!(lun::checksum(&target), before, "{target} was written");
    // What mkfs wrote is data too, also without its signature.
    sh("wipefs", &["--all", "--quiet", &target]);
    host.refused(&["start", "move"], REFUSED, &["not recognised"]);
    sh("blkdiscard", &["--zeroout", &target]);
    host.ok(&["start", "move"]);
    host.wait_for("move", "source-selected");
    host.ok(&["cancel", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}

#[test]
fn a_missing_map_file_is_told_and_not_guessed() {
    let mut host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    host.bring_into_sync("db", &source, &target, "move");
    host.kill_shuntd();
    let pid = host.kill_target_only("db");
    wait_until("ublk-target is gone", || {
        !Path::new(&format!("/proc/{pid}")).exists()
    });
    let (map, away) = (host.map("db"), host.map("db").with_extension("away"));
    std::fs::rename(&map, &away).unwrap();
    let before = [lun::checksum(&source), lun::checksum(&target)];
    host.start_shuntd();
    wait_until("the volume says that the map file is missing", || {
        let volume = host.volume("db");
        volume["state"] == "failed" && volume["problem"].to_string().contains("missing")
    });
    assert_eq!(host.pair("move")["state"], "needs-recovery");
    host.refused(&["switch", "move"], REFUSED, &["move"]);
    assert!(!map.exists(), "a map file was made up");
    assert_eq!(
        [lun::checksum(&source), lun::checksum(&target)],
        before,
        "a leg was written"
    );
    std::fs::rename(&away, &map).unwrap();
    host.wait_for("move", "source-selected");
    host.assert_legs_equal("db", &source, &target);
    host.ok(&["cancel", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}

#[test]
fn verbs_are_refused_while_the_copy_runs_and_names_are_taken_once() {
    let host = Host::new();
    let (source, disk) = (lun::disk(0), lun::disk(1));
    let target = Mapped::slow_writes("shunt-test-slow", &disk, 300);
    let pair = format!("db:{}", target.path());
    host.refused(&["create", "move", &pair], NOT_FOUND, &["db"]);
    host.ok(&["attach", "db", &source]);
    host.ok(&["create", "move", &pair]);
    host.refused(&["create", "move", &pair], REFUSED, &["move"]);
    host.refused(
        &["create", "other", &format!("db:{}", lun::disk(2))],
        REFUSED,
        &["db", "move"],
    );
    host.ok(&["start", "move"]);
    assert!(
        host.ok(&["start", "move"]).error.contains("already"),
        "a second start is nothing new"
    );
    // Unlike [`Host::refused`], does not compare the status: the copy changes it meanwhile.
    let refuse = |arguments: &[&str], words: &[&str]| {
        let said = host.shunt(arguments);
        assert_eq!(said.code, REFUSED, "shunt {arguments:?}: {said:?}");
        for word in words.iter().chain(&["next: "]) {
            assert!(
                said.error.contains(word),
                "shunt {arguments:?}: no {word:?} in {said:?}"
            );
        }
    };
    refuse(&["switch", "move"], &["move", "syncing", "wait move"]);
    refuse(&["undo", "move"], &["move", "syncing"]);
    refuse(&["commit", "move", "--yes"], &["move", "syncing"]);
    refuse(&["detach", "db"], &["db", "move"]);
    refuse(&["create", "move", &pair], &["move"]);
    host.ok(&["pause", "move"]);
    assert_eq!(host.pair("move")["state"], "paused");
    refuse(&["switch", "move"], &["move", "paused", "resume move"]);
    // What was claimed before is copied to its end.
    wait_until("nothing is claimed", || {
        host.connect("db").status().claimed_bytes == 0
    });
    let written = target.written_bytes();
    host.kill_target("db");
    assert_eq!(host.pair("move")["state"], "paused");
    assert_eq!(target.written_bytes(), written, "paused, and copied");
    target.mend_it();
    host.ok(&["resume", "move"]);
    host.wait_for("move", "source-selected");
    assert!(
        host.ok(&["undo", "move"]).error.contains("already"),
        "the source rules"
    );
    host.ok(&["cancel", "move", "--yes"]);
    host.refused(&["switch", "move"], REFUSED, &["cancelled"]);
    host.ok(&["detach", "db"]);
}
