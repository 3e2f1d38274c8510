//! Tests in which the surroundings of Shunt fail: the path to a LUN, memory, the disk that its
//! state is on.

use std::thread;

use tests::{
    host::Host,
    lun::{self, LoopDevice, Mapped, Mounted, ScsiDisk},
    run, sh,
    steady::{SPAN, Steady},
    wait_until,
};

const REFUSED: i32 = 3;

fn is_degraded(host: &Host) -> bool {
    host.pair("move")["state"] == "degraded"
}

#[test]
fn a_target_that_is_pulled_out_is_not_missed_and_goes_on_when_it_is_back() {
    const MIB: u32 = 48;
    let host = Host::new();
    let source = LoopDevice::new(u64::from(MIB) << 20, 512);
    let disk = ScsiDisk::new(MIB);
    host.bring_into_sync("db", &source.path, &disk.path(), "move");
    let load = Steady::start(&Host::device("db"), SPAN);
    load.go_on();
    disk.pull();
    degraded_until_it_is_back(&host, &disk, &load);
    host.wait_for("move", "source-selected");
    load.finish();
    host.assert_legs_equal("db", &source.path, &disk.path());
    host.ok(&["cancel", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}

#[test]
fn a_target_that_is_pulled_out_during_the_copy_gets_the_rest_when_it_is_back() {
    const MIB: u32 = 48;
    let host = Host::new();
    let below = LoopDevice::new(u64::from(MIB) << 20, 512);
    let source = Mapped::linear("shunt-test-source", &below.path);
    let disk = ScsiDisk::new(MIB);
    host.ok(&["attach", "db", &source.path()]);
    host.ok(&["create", "move", &format!("db:{}", disk.path())]);
    let load = Steady::start(&Host::device("db"), SPAN);
    source.slow_down(100);
    host.ok(&["start", "move"]);
    let dirty_bytes = || host.pair("move")["dirty_bytes"].as_u64().unwrap();
    wait_until("a part is copied", || dirty_bytes() < u64::from(MIB) << 20);
    disk.pull();
    assert!(dirty_bytes() > 0);
    degraded_until_it_is_back(&host, &disk, &load);
    source.mend_it();
    host.wait_for("move", "source-selected");
    load.finish();
    host.assert_legs_equal("db", &source.path(), &disk.path());
    host.ok(&["cancel", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}

/// Checks that the application continues without the target and that the operator sees the failure;
/// then puts the target back.
fn degraded_until_it_is_back(host: &Host, disk: &ScsiDisk, load: &Steady) {
    load.go_on();
    wait_until("the pair is degraded", || is_degraded(host));
    let pair = host.pair("move");
    assert!(pair["problem"].to_string().contains("mirror leg"), "{pair}");
    assert_eq!(pair["authoritative"], "source");
    host.refused(
        &["switch", "move"],
        REFUSED,
        &["move", "degraded", "shunt resume move"],
    );
    // The target is not there yet.
    let said = host.shunt(&["resume", "move"]);
    for word in ["next: ", &disk.path()] {
        assert!(said.code != 0 && said.error.contains(word), "{said:?}");
    }
    load.go_on();
    disk.put_back();
    host.ok(&["resume", "move"]);
}

#[test]
fn the_page_cache_writes_back_through_the_volume_when_memory_is_short() {
    let host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    host.bring_into_sync("db", &source, &target, "move");
    let pid = host.connect("db").status().pid;
    let of_process = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
    assert_eq!(of_process("oom_score_adj").trim(), "-1000");
    // All of its memory is locked, not just its buffers.
    let smaps = of_process("smaps");
    let stack = smaps.split("[stack]").nth(1).unwrap();
    let flags = stack.lines().find(|line| line.starts_with("VmFlags:"));
    assert!(flags.unwrap().contains(" lo"), "{flags:?}");
    // Reclaim on behalf of the engine thread starts no I/O (PF_MEMALLOC_NOIO).
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let engine = threads.flatten().find_map(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).ok()?;
        stat.contains("(engine)").then_some(stat)
    });
    let engine = engine.expect("the thread `engine`");
    let mut fields = engine.rsplit(')').next().unwrap().split_whitespace();
    let flags: u64 = fields.nth(6).unwrap().parse().unwrap();
    assert_ne!(flags & 0x0008_0000, 0, "{engine}");
    sh("mkfs.ext4", &["-q", &Host::device("db")]);
    let files = Mounted::new(&Host::device("db"));
    let scanned = || {
        let counters = std::fs::read_to_string("/proc/vmstat").unwrap();
        number_after(&counters, "pgscan_direct ") + number_after(&counters, "pgscan_kswapd ")
    };
    let before = scanned();
    let mut sums = Vec::new();
    // Files that cannot be reclaimed hold nearly all of the memory, and more is asked for than the
    // rest. The kernel has to write back, and kills the workers that ask for too much, which then
    // begin again.
    let held = Held::all_but(192);
    let mut pressure = std::process::Command::new("stress-ng")
        .args(["--vm", "2", "--vm-bytes", "98%", "--vm-keep"])
        .args(["--timeout", "60", "--quiet"])
        .spawn()
        .unwrap();
    wait_until("memory is short", || scanned() > before);
    let before = scanned();
    for number in 0..3 {
        let to = format!("of={}", files.path().join(number.to_string()).display());
        sh(
            "dd",
            &["if=/dev/urandom", &to, "bs=1M", "count=28", "status=none"],
        );
        sums.push(sh("sha256sum", &[to.trim_start_matches("of=")]));
        host.ok(&[if number % 2 == 0 { "switch" } else { "undo" }, "move"]);
        sh("sync", &[]);
    }
    // stress-ng ends its workers on SIGTERM.
    sh("kill", &[&pressure.id().to_string()]);
    let _ = pressure.wait();
    assert!(scanned() > before, "there was enough memory");
    drop(held);
    assert_eq!(host.connect("db").status().pid, pid);
    host.wait_for("move", "target-selected");
    drop(files);
    host.assert_legs_equal("db", &source, &target);
    host.ok(&["commit", "move", "--yes"]);
    host.ok(&["detach", "db"]);
    sh("fsck.ext4", &["-fn", &target]);
    let files = Mounted::read_only(&target);
    for (number, sum) in sums.iter().enumerate() {
        let found = sh(
            "sha256sum",
            &[&files.path().join(number.to_string()).to_string_lossy()],
        );
        let first = |text: &str| text.split(' ').next().unwrap().to_owned();
        assert_eq!(first(&found), first(sum), "file {number}");
    }
}

/// Memory that cannot be reclaimed: a file in a file system in memory, on a host without swap.
struct Held(#[expect(dead_code, reason = "it is held")] Mounted);

impl Held {
    /// Holds all available memory but this number of MiB.
    fn all_but(mebibytes: u64) -> Self {
        let at = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = at.path().to_string_lossy().into_owned();
        sh("mount", &["-t", "tmpfs", "-o", "size=100%", "none", &path]);
        let files = Mounted { at };
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
        let available = number_after(&meminfo, "MemAvailable:") >> 10;
        let size = format!("{}M", available.saturating_sub(mebibytes));
        sh("fallocate", &["-l", &size, &format!("{path}/held")]);
        Self(files)
    }
}

/// The number that follows a name.
fn number_after(text: &str, name: &str) -> u64 {
    let rest = text.lines().find_map(|line| line.strip_prefix(name));
    let number = rest.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// Makes and mounts a file system for the state. It has no journal, and continues where it was when
/// its disk works again.
fn state_on(disk: &Mapped) -> Mounted {
    sh("mke2fs", &["-q", "-F", "-t", "ext2", &disk.path()]);
    Mounted::new(&disk.path())
}

#[test]
fn while_the_disk_of_the_map_file_fails_only_writes_that_need_a_mark_wait() {
    let below = Mapped::linear("shunt-test-state", &lun::disk(2));
    let mounted = state_on(&below);
    let host = Host::with_state(&mounted.path().join("state"));
    let (source, target) = (lun::disk(0), lun::disk(1));
    host.bring_into_sync("db", &source, &target, "move");
    let load = Steady::start(&Host::device("db"), SPAN);
    load.go_on();
    below.break_it();
    // Far from the load: its region has no mark.
    let unmarked = thread::spawn(|| lun::write_megabyte(&Host::device("db"), 100, 0x5a));
    wait_until("the volume says what is wrong", || {
        host.volume("db")["problem"]
            .to_string()
            .contains("map file")
    });
    load.go_on();
    assert!(!unmarked.is_finished());
    let said = host.shunt(&["switch", "move"]);
    assert!(said.code != 0 && said.error.contains("next: "), "{said:?}");
    assert!(!unmarked.is_finished());
    below.mend_it();
    unmarked.join().unwrap().unwrap();
    wait_until("nothing is wrong any more", || {
        host.volume("db")["problem"].is_null()
    });
    host.kill_target("db");
    load.go_on();
    host.wait_for("move", "source-selected");
    load.finish();
    let waited = lun::read_megabyte(&Host::device("db"), 100).unwrap();
    assert!(waited.iter().all(|byte| *byte == 0x5a));
    host.assert_legs_equal("db", &source, &target);
    host.ok(&["switch", "move"]);
    host.ok(&["commit", "move", "--yes"]);
    host.ok(&["detach", "db"]);
    drop(host);
    drop(mounted);
}

#[test]
fn on_a_state_directory_that_cannot_be_written_shuntd_says_so_and_volumes_go_on() {
    let mut host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    host.bring_into_sync("db", &source, &target, "move");
    let load = Steady::start(&Host::device("db"), SPAN);
    load.go_on();
    host.kill_shuntd();
    let state = host.state_dir().to_string_lossy().into_owned();
    sh("mount", &["--bind", &state, &state]);
    sh("mount", &["-o", "remount,bind,ro", &state]);
    let output = run("shuntd", &["--state-dir", &state]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    for word in [&state, "Read-only file system", "next: "] {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
    load.go_on();
    sh("umount", &[&state]);
    host.start_shuntd();
    host.wait_for("move", "source-selected");
    load.finish();
    host.assert_legs_equal("db", &source, &target);
    host.ok(&["cancel", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}
