//! Tests of sessions that track a volume that is written faster than its target can take.

use std::{
    fs::File,
    os::unix::fs::{FileExt, OpenOptionsExt},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tests::{
    host::{CommandOutput, Host},
    load::Load,
    lun::{self, LoopDevice, Mapped, SlowDisk},
    wait_until,
};

const SIZE_BYTES: u64 = 32 << 20;

/// The throughput of the target, in megabytes a second.
const TARGET_MEGABYTES: u32 = 8;

/// Writes without pauses, beside fio. fio pauses between its rounds and while it verifies: on a
/// slow machine longer than the target needs for what is left.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<std::io::Result<()>>,
}

impl Writer {
    /// The area that it writes to, in bytes; fio writes before that.
    const AREA: std::ops::Range<u64> = 16 << 20..28 << 20;
    const BLOCK_BYTES: usize = 64 << 10;
    /// The interval between two blocks, which makes 16 MiB a second.
    const EVERY: Duration = Duration::from_millis(4);

    fn start(device: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, device) = (Arc::clone(&stop), device.to_owned());
        let thread = std::thread::spawn(move || {
            let device = File::options()
                .write(true)
                .custom_flags(libc::O_DIRECT)
                .open(device)?;
            let memory = vec![0x5a; 2 * Self::BLOCK_BYTES];
            let shift = memory.as_ptr().align_offset(4096);
            let block = &memory[shift..shift + Self::BLOCK_BYTES];
            let blocks = (Self::AREA.end - Self::AREA.start) / Self::BLOCK_BYTES as u64;
            let mut due = Instant::now();
            // 7 and the number of blocks have no common divisor: each block has its turn, and none
            // is next to the one before.
            for number in (0_u64..).map(|at| at * 7 % blocks) {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                device.write_all_at(block, Self::AREA.start + number * block.len() as u64)?;
                due = due.max(Instant::now() - Duration::from_secs(1)) + Self::EVERY;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            Ok(())
        });
        Self { stop, thread }
    }

    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap().unwrap();
    }
}

/// A load of twice the throughput of the target.
const FASTER: &[&str] = &[
    "--rw=randwrite",
    "--bs=64k",
    "--iodepth=8",
    "--rate=,16m",
    "--size=12M",
    "--io_size=12M",
    "--verify=crc32c",
    "--verify_fatal=1",
    "--do_verify=1",
    "--randrepeat=0",
];

const MAX_PAUSE_SECONDS: &str = "2";

/// A slow disk and a mapping over it. The mapping has a UUID that identifies it; `null_blk` gives
/// its disks none.
fn slow_target(source: &str) -> (SlowDisk, Mapped) {
    let megabytes = u32::try_from(lun::size(source) >> 20).unwrap();
    let disk = SlowDisk::new(megabytes, TARGET_MEGABYTES);
    let mapped = Mapped::linear("shunt-test-slow", &disk.path());
    (disk, mapped)
}

fn track(host: &Host, source: &str, target: &Mapped, options: &[&str]) {
    host.ok(&["attach", "db", source]);
    let pair = format!("db:{}", target.path());
    let mut create = vec!["create", "move", &pair, "--mode", "track"];
    create.extend(options);
    host.ok(&create);
    host.ok(&["start", "move"]);
    wait_until("it tracks", || host.pair("move")["state"] == "tracking");
}

fn wait_for_target(host: &Host) -> CommandOutput {
    host.shunt(&[
        "wait",
        "move",
        "--for",
        "target-selected",
        "--timeout",
        "300",
    ])
}

fn history(host: &Host) -> String {
    host.ok(&["history", "move"]).out
}

#[test]
fn writes_that_are_faster_than_the_target_are_slowed_until_what_is_left_fits_the_pause() {
    let host = Host::new();
    let disk = LoopDevice::new(SIZE_BYTES, 512);
    let source = disk.path.clone();
    let (_disk, target) = slow_target(&source);
    lun::scribble(&source);
    track(&host, &source, &target, &["--throttle-floor", "256KiB"]);
    let load = Load::start(&Host::device("db"), FASTER);
    let writer = Writer::start(&Host::device("db"));
    load.go_on();
    host.ok(&["switch", "move", "--max-pause", MAX_PAUSE_SECONDS]);
    let mut slowed = false;
    wait_until("writes are slowed, or it is over", || {
        let status = host.connect("db").status();
        slowed |= status.throttle_bytes_per_second > 0;
        slowed || host.pair("move")["state"] == "target-selected"
    });
    assert!(slowed, "{}", history(&host));
    let said = wait_for_target(&host);
    let told = history(&host);
    assert_eq!(said.code, 0, "{said:?}: {told}");
    println!("{told}");
    let pause_us = host.pair("move")["last_pause_us"].as_u64().unwrap();
    println!("requests were held for {} ms", pause_us / 1000);
    assert!(told.contains("the cutover slows writes"), "{told}");
    assert!(told.contains("the cutover holds requests"), "{told}");
    assert_eq!(host.connect("db").status().throttle_bytes_per_second, 0);
    // Both legs are written now: going back copies nothing.
    load.go_on();
    host.wait_for("move", "target-selected");
    let before = host.connect("db").status().copied_bytes;
    host.ok(&["undo", "move"]);
    assert_eq!(host.connect("db").status().copied_bytes, before);
    assert_eq!(host.pair("move")["authoritative"], "source");
    load.finish();
    writer.finish();
    host.ok(&["switch", "move"]);
    let said = wait_for_target(&host);
    assert_eq!(said.code, 0, "{said:?}: {}", history(&host));
    host.assert_legs_equal("db", &source, &target.path());
    host.ok(&["commit", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}

#[test]
fn an_impossible_window_falls_back_the_application_sees_nothing_and_the_state_says_why() {
    let host = Host::new();
    let disk = LoopDevice::new(SIZE_BYTES, 512);
    let source = disk.path.clone();
    let (_disk, target) = slow_target(&source);
    lun::scribble(&source);
    let options = ["--cutover-action", "abort", "--throttle-floor", "64MiB"];
    track(&host, &source, &target, &options);
    let load = Load::start(&Host::device("db"), FASTER);
    let writer = Writer::start(&Host::device("db"));
    load.go_on();
    host.ok(&["switch", "move", "--max-pause", "0.05"]);
    let said = wait_for_target(&host);
    assert_eq!(said.code, 1, "{said:?}: {}", history(&host));
    assert!(said.error.contains("the floor of 64"), "{said:?}");
    let status = host.ok(&["status", "move"]).out;
    assert!(status.contains("cutover: over"), "{status}");
    assert_eq!(host.pair("move")["state"], "tracking");
    assert_eq!(host.pair("move")["authoritative"], "source");
    assert_eq!(host.connect("db").status().throttle_bytes_per_second, 0);
    // A slow target does no harm: it can be mirrored live, or given up.
    load.go_on();
    host.ok(&["cancel", "move", "--yes"]);
    load.finish();
    writer.finish();
    host.ok(&["detach", "db"]);
}

#[test]
fn a_shuntd_that_dies_in_a_cutover_leaves_no_write_slowed() {
    let mut host = Host::new();
    let disk = LoopDevice::new(SIZE_BYTES, 512);
    let source = disk.path.clone();
    let (_disk, target) = slow_target(&source);
    let options = ["--throttle-floor", "64KiB"];
    track(&host, &source, &target, &options);
    let load = Load::start(&Host::device("db"), FASTER);
    let writer = Writer::start(&Host::device("db"));
    load.go_on();
    host.ok(&["switch", "move", "--max-pause", "0.05"]);
    wait_until("writes are slowed", || {
        host.connect("db").status().throttle_bytes_per_second > 0
    });
    host.kill_shuntd();
    wait_until("they are not slowed any more", || {
        host.connect("db").status().throttle_bytes_per_second == 0
    });
    load.go_on();
    host.start_shuntd();
    wait_until("it tracks", || host.pair("move")["state"] == "tracking");
    // A restarted ublk-target gets the copy mode again.
    host.kill_target("db");
    wait_until("it tracks again", || {
        host.pair("move")["state"] == "tracking"
    });
    load.go_on();
    host.ok(&["set", "move", "--mode", "mirror"]);
    load.finish();
    writer.finish();
    host.wait_for("move", "source-selected");
    host.assert_legs_equal("db", &source, &target.path());
    host.ok(&["cancel", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}
