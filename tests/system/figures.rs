//! Tests of the paths of the patent's figures, as an administrator walks them, with a file system
//! in use: start, queue, pause, restart, cancel, the automatic switch with retirement, startup, and
//! every loop of undo.

use std::process::Command;

use tests::{
    host::Host,
    lun::{self, LoopDevice, Mounted, ScsiDisk},
    sh, wait_until, write_random,
};

/// A file system on a volume, in which every step leaves a file that is checked at the end.
struct InUse {
    mounted: Mounted,
    files: Vec<(String, Vec<u8>)>,
}

impl InUse {
    fn new(volume: &str) -> Self {
        let device = Host::device(volume);
        sh("mkfs.ext4", &["-q", "-F", &device]);
        let mounted = Mounted::new(&device);
        let files = Vec::new();
        Self { mounted, files }
    }

    /// Writes a file for a step, and verifies the files of all steps.
    fn goes_on(&mut self, step: &str) {
        let contents = write_random(&self.mounted.path().join(step), 1 << 20);
        self.files.push((step.to_owned(), contents));
        verify(&self.mounted, &self.files);
    }

    /// Unmounts the file system, and finds all of its files on a LUN.
    fn must_be_on(self, host: &Host, volume: &str, lun: &str) {
        let Self { mounted, files } = self;
        drop(mounted);
        host.ok(&["detach", volume]);
        sh("fsck.ext4", &["-f", "-n", lun]);
        verify(&Mounted::read_only(lun), &files);
    }
}

fn verify(mounted: &Mounted, files: &[(String, Vec<u8>)]) {
    for (name, contents) in files {
        let found = std::fs::read(mounted.path().join(name)).unwrap();
        assert!(&found == contents, "{name} has other contents");
    }
}

fn state(host: &Host, session: &str) -> String {
    host.pair(session)["state"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// The type that `blkid` finds on a LUN, bypassing its cache.
fn kind(lun: &str) -> String {
    let found = Command::new("blkid")
        .args(["-p", "-o", "value", "-s", "TYPE", lun])
        .output()
        .unwrap();
    String::from_utf8_lossy(&found.stdout).trim().to_owned()
}

fn can_be_mounted(lun: &str) -> bool {
    let at = tempfile::tempdir_in("/var/tmp").unwrap();
    let at = at.path().to_string_lossy().into_owned();
    let mounted = Command::new("mount")
        .args(["-o", "ro,noload", lun, &at])
        .output()
        .unwrap();
    if mounted.status.success() {
        sh("umount", &[&at]);
    }
    mounted.status.success()
}

#[test]
fn start_queue_pause_restart_and_cancel() {
    let mut host = Host::new();
    let legs = [(); 4].map(|()| LoopDevice::new(24 << 20, 512));
    host.ok(&["attach", "one", &legs[0].path]);
    host.ok(&["attach", "two", &legs[2].path]);
    let mut application = InUse::new("two");
    application.goes_on("before");
    host.ok(&["set", "--max-pairs", "1"]);
    let pairs =
        [(0, "one"), (2, "two")].map(|(leg, name)| format!("{name}:{}", legs[leg + 1].path));
    host.ok(&["create", "first", &pairs[0], "--rate", "1MiB"]);
    host.ok(&[
        "create",
        "second",
        &pairs[1],
        "--rate",
        "1MiB",
        "--overwrite",
    ]);
    host.ok(&["start", "first"]);
    host.ok(&["start", "second"]);
    assert_eq!(state(&host, "second"), "queued");
    application.goes_on("queued");
    // The session is paused while it waits, and while it is copied.
    host.ok(&["pause", "second"]);
    assert_eq!(state(&host, "second"), "paused");
    host.ok(&["resume", "second"]);
    assert_eq!(state(&host, "second"), "queued");
    host.ok(&["pause", "first"]);
    wait_until("its turn has come", || state(&host, "second") == "syncing");
    application.goes_on("copied");
    host.ok(&["pause", "second"]);
    application.goes_on("paused");
    // Startup: a session that was paused stays paused, and one that was not continues.
    host.kill_shuntd();
    application.goes_on("without-shuntd");
    host.start_shuntd();
    assert_eq!(state(&host, "second"), "paused");
    host.ok(&["resume", "second"]);
    wait_until("it is copied again", || state(&host, "second") == "syncing");
    host.kill_shuntd();
    host.start_shuntd();
    wait_until("it continues automatically", || {
        state(&host, "second") == "syncing"
    });
    // The session is cancelled in the middle; a new session starts from the beginning.
    host.ok(&["cancel", "second", "--yes"]);
    application.goes_on("cancelled");
    host.ok(&["create", "third", &pairs[1], "--overwrite"]);
    host.ok(&["start", "third"]);
    host.wait_for("third", "source-selected");
    application.goes_on("in-sync");
    host.ok(&["cancel", "third", "--yes"]);
    host.ok(&["cancel", "first", "--yes"]);
    application.must_be_on(&host, "two", &legs[2].path);
    host.ok(&["detach", "one"]);
}

#[test]
fn every_loop_of_undo() {
    let host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    host.ok(&["attach", "db", &source]);
    let mut application = InUse::new("db");
    let pair = format!("db:{target}");
    for (round, ends) in [("abandoned", "cancel"), ("finalized", "commit")] {
        let session = format!("s-{round}");
        let session = session.as_str();
        host.ok(&["create", session, &pair, "--overwrite"]);
        host.ok(&["start", session]);
        application.goes_on(&format!("{round}-copied"));
        host.wait_for(session, "source-selected");
        // Switched, not finalized, undone without abandoning, switched again; twice.
        for time in 1..=2 {
            host.ok(&["switch", session]);
            application.goes_on(&format!("{round}-switched-{time}"));
            host.ok(&["undo", session]);
            application.goes_on(&format!("{round}-undone-{time}"));
        }
        if ends == "commit" {
            host.ok(&["switch", session]);
        }
        host.ok(&[ends, session, "--yes"]);
        application.goes_on(&format!("{round}-ended"));
    }
    application.must_be_on(&host, "db", &target);
}

#[test]
fn a_session_that_is_switched_by_itself_and_whose_source_is_retired() {
    let host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    host.ok(&["attach", "db", &source]);
    let mut application = InUse::new("db");
    let pair = format!("db:{target}");
    let options = ["--switch", "when-synced", "--retire", "wipe-signatures"];
    host.ok(&[&["create", "move", &pair][..], &options].concat());
    host.ok(&["start", "move"]);
    application.goes_on("copied");
    wait_until("it is switched automatically", || {
        state(&host, "move") == "target-selected"
    });
    application.goes_on("switched");
    host.ok(&["commit", "move", "--yes"]);
    assert_eq!(state(&host, "move"), "retired");
    application.goes_on("committed");
    assert_eq!(kind(&source), "");
    assert!(!can_be_mounted(&source));
    host.ok(&["retire", "move", "--take-back"]);
    assert_eq!(kind(&source), "ext4");
    assert!(can_be_mounted(&source));
    // Held: the contents of the source are visible, but nobody can use it.
    host.ok(&["retire", "move"]);
    wait_until("it is held", || !can_be_mounted(&source));
    host.ok(&["retire", "move", "--take-back"]);
    wait_until("it is free", || can_be_mounted(&source));
    host.ok(&["retire", "move", "--how", "discard", "--yes"]);
    assert_eq!(kind(&source), "");
    application.must_be_on(&host, "db", &target);
}

#[test]
fn a_disk_is_retired_read_only_and_offline_and_is_so_again_after_a_start() {
    let mut host = Host::new();
    let disk = ScsiDisk::new(32);
    let target = LoopDevice::new(32 << 20, 512);
    host.ok(&["attach", "db", &disk.path()]);
    let mut application = InUse::new("db");
    application.goes_on("before");
    host.ok(&["create", "move", &format!("db:{}", target.path)]);
    host.ok(&["start", "move"]);
    host.wait_for("move", "source-selected");
    host.ok(&["switch", "move"]);
    host.ok(&["commit", "move", "--yes"]);
    let writable = || {
        std::fs::File::options()
            .write(true)
            .open(disk.path())
            .is_ok()
    };
    let readable = || std::fs::File::open(disk.path()).is_ok();
    let read_only = || sh("blockdev", &["--getro", &disk.path()]).trim() == "1";
    host.ok(&["retire", "move", "--how", "read-only"]);
    assert!(read_only());
    sh("blockdev", &["--setrw", &disk.path()]);
    host.kill_shuntd();
    host.start_shuntd();
    wait_until("it is read-only again", read_only);
    host.ok(&["retire", "move", "--take-back"]);
    assert!(!read_only() && writable());
    host.ok(&["retire", "move", "--how", "offline"]);
    assert!(!readable());
    host.ok(&["retire", "move", "--take-back"]);
    assert!(readable());
    application.goes_on("after");
    application.must_be_on(&host, "db", &target.path);
}

#[test]
fn a_target_that_is_no_copy_yet_is_not_taken_for_one() {
    let host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    sh("mkfs.ext4", &["-q", "-F", &source]);
    sh("mkfs.ext4", &["-q", "-F", &target]);
    host.ok(&["attach", "db", &source]);
    let pair = format!("db:{target}");
    host.ok(&["create", "move", &pair, "--overwrite", "--rate", "8MiB"]);
    assert_eq!(
        kind(&target),
        "ext4",
        "nothing is done to it before the start"
    );
    host.ok(&["start", "move"]);
    wait_until("a part is copied", || {
        lun::read_megabyte(&source, 20).unwrap() == lun::read_megabyte(&target, 20).unwrap()
            && host.pair("move")["state"] == "syncing"
    });
    assert_eq!(kind(&target), "");
    assert!(!can_be_mounted(&target));
    host.ok(&["cancel", "move", "--yes"]);
    assert!(!can_be_mounted(&target));
    host.refused(
        &["attach", "wrong", &target],
        3,
        &[&target, "never finished", "session move"],
    );
    host.ok(&["create", "again", &pair]);
    host.ok(&["start", "again"]);
    host.wait_for("again", "source-selected");
    assert_eq!(kind(&target), "ext4");
    host.assert_legs_equal("db", &source, &target);
    // While the pair is paused in sync, writes still go to both legs: the target stays a copy.
    host.ok(&["pause", "again"]);
    lun::write_megabyte(&Host::device("db"), 50, 7).unwrap();
    host.ok(&["cancel", "again", "--yes"]);
    assert_eq!(kind(&target), "ext4", "the legs were equal when it ended");
}

#[test]
fn a_session_is_started_at_its_time_and_copied_in_its_hours_only() {
    let host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    host.ok(&["attach", "db", &source]);
    let mut application = InUse::new("db");
    let in_hours = |hours: u32| {
        let text = sh("date", &["-d", &format!("{hours} hours"), "+%H:%M"]);
        text.trim().to_owned()
    };
    let closed = format!("{}-{}", in_hours(8), in_hours(10));
    let soon = sh("date", &["-u", "-d", "3 seconds", "+%Y-%m-%dT%H:%M:%SZ"]);
    let pair = format!("db:{target}");
    let options = [
        "--start-at",
        soon.trim(),
        "--window-hours",
        &closed,
        "--rate",
        "4MiB",
    ];
    host.ok(&[&["create", "move", &pair][..], &options].concat());
    wait_until("its time has come, and it waits for its hours", || {
        state(&host, "move") == "queued"
    });
    application.goes_on("waits");
    assert_eq!(host.pair("move")["copied_bytes"], 0);
    host.ok(&["set", "move", "--window-hours", "always"]);
    wait_until("it is copied", || {
        host.pair("move")["copied_bytes"].as_u64() > Some(4 << 20)
    });
    host.ok(&["set", "move", "--window-hours", &closed]);
    wait_until("its hours are over", || state(&host, "move") == "paused");
    application.goes_on("rests");
    let copied = || host.connect("db").status().copied_bytes;
    let before = copied();
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(copied(), before);
    host.ok(&[
        "set",
        "move",
        "--window-hours",
        "always",
        "--rate",
        "unlimited",
    ]);
    host.wait_for("move", "source-selected");
    host.ok(&["switch", "move"]);
    application.goes_on("switched");
    host.ok(&["commit", "move", "--yes"]);
    application.must_be_on(&host, "db", &target);
}
