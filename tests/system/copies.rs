//! Tests of copies at an instant of volumes that belong together, while they are written.

use std::{
    fs::File,
    os::unix::fs::{FileExt, OpenOptionsExt},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use tests::{
    host::Host,
    lun::{self, LoopDevice, Mapped, Mounted},
    sh, wait_until,
};

const REFUSED_OR_FAILED: [i32; 2] = [1, 3];
const BLOCK: usize = 4096;
/// The number of blocks. Each number has its own block, so that a copy shows all the last numbers.
const BLOCKS: u64 = 512;

/// A program that writes numbers, each first to its log and then to its data, as a database does.
struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Writer {
    fn start(data: &str, log: &str) -> Self {
        let open = |device: &str| {
            let mut options = File::options();
            let flags = libc::O_DIRECT | libc::O_DSYNC;
            options.write(true).custom_flags(flags).open(device)
        };
        let (data, log) = (open(data).unwrap(), open(log).unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let written = Arc::new(AtomicU64::new(0));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&written));
        let thread = std::thread::spawn(move || {
            let mut memory = vec![0; 2 * BLOCK];
            let start = memory.as_ptr().align_offset(BLOCK);
            let block = &mut memory[start..start + BLOCK];
            for number in 1.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                block[..8].copy_from_slice(&u64::to_le_bytes(number));
                let offset = number % BLOCKS * BLOCK as u64;
                log.write_all_at(block, offset).unwrap();
                data.write_all_at(block, offset).unwrap();
                count.store(number, Ordering::SeqCst);
            }
        });
        Self {
            stop,
            written,
            thread,
        }
    }

    fn written(&self) -> u64 {
        self.written.load(Ordering::SeqCst)
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

/// The last number on a LUN. Checks that every number before it is there too.
fn last_number(lun: &str) -> u64 {
    let file = File::open(lun).unwrap();
    let mut block = [0; BLOCK];
    let mut numbers: Vec<u64> = (0..BLOCKS)
        .map(|place| {
            file.read_exact_at(&mut block, place * BLOCK as u64)
                .unwrap();
            u64::from_le_bytes(block[..8].try_into().unwrap())
        })
        .collect();
    numbers.sort_unstable();
    let last = numbers[numbers.len() - 1];
    let missing = (1..=last)
        .rev()
        .take(BLOCKS as usize)
        .find(|number| numbers.binary_search(number).is_err());
    assert_eq!(missing, None, "{last} is there");
    last
}

fn copied_bytes(host: &Host) -> u64 {
    let said = host.ok(&["status", "copy", "--json"]);
    let records = said.out.lines().map(|line| {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        record["copied_bytes"].as_u64()
    });
    records.flatten().sum()
}

#[test]
fn copies_of_two_volumes_are_of_one_instant_and_take_only_what_changed() {
    const COPIES: u64 = 6;
    let host = Host::new();
    let [data, log] = [lun::disk(0), lun::disk(2)];
    let below = [&data, &log].map(|lun| LoopDevice::new(lun::size(lun), 512));
    // One volume is split long after the other: a volume that does not hold requests until then is
    // noticed.
    let slow = Mapped::slow_flushes("log-copy", &below[1].path, 100);
    let targets = [below[0].path.clone(), slow.path()];
    for lun in [&data, &log] {
        sh("blkdiscard", &["-z", "--length", "4M", lun]);
    }
    host.ok(&["attach", "data", &data]);
    host.ok(&["attach", "log", &log]);
    let pairs = [
        format!("data:{}", targets[0]),
        format!("log:{}", targets[1]),
    ];
    host.ok(&["create", "copy", &pairs[0], &pairs[1], "--mode", "copy"]);
    host.ok(&["start", "copy"]);
    let writer = Writer::start(&Host::device("data"), &Host::device("log"));
    host.wait_for("copy", "source-selected");
    host.refused(
        &["switch", "copy"],
        3,
        &["session copy", "shunt split copy"],
    );
    let whole = copied_bytes(&host);
    for copy in 0..COPIES {
        let before = writer.written();
        wait_until("more is written", || writer.written() > before + 20);
        let before = writer.written();
        host.ok(&["split", "copy"]);
        let after = writer.written() + 1;
        wait_until("the application writes", || writer.written() > after + 20);
        let read_only = |lun: &String| sh("blockdev", &["--getro", lun]).trim() == "1";
        assert!(targets.iter().all(read_only));
        let [in_data, in_log] = [0, 1].map(|leg: usize| last_number(&targets[leg]));
        assert!(
            in_data <= in_log && in_log <= in_data + 1,
            "copy {copy}: {in_data} in the data, {in_log} in the log"
        );
        assert!(
            (before..=after).contains(&in_data),
            "copy {copy}: {in_data} is not within {before} to {after}"
        );
        host.ok(&["resume", "copy"]);
        host.wait_for("copy", "source-selected");
    }
    let since = copied_bytes(&host) - whole;
    assert!(
        since < COPIES * whole / 10,
        "{since} bytes were copied for {COPIES} copies of {whole}"
    );
    writer.stop();
    host.wait_for("copy", "source-selected");
    host.assert_legs_equal("data", &data, &targets[0]);
    host.assert_legs_equal("log", &log, &targets[1]);
}

#[test]
fn a_copy_can_be_read_by_others_survives_every_process_and_is_mirrored_onto_when_it_is_free() {
    let mut host = Host::new();
    let source = lun::disk(0);
    let target = LoopDevice::new(lun::size(&source), 512);
    host.ok(&["attach", "db", &source]);
    let device = Host::device("db");
    sh("mkfs.ext4", &["-q", "-F", &device]);
    let mounted = Mounted::new(&device);
    let write = |name: &str| {
        let path = mounted.path().join(name);
        std::fs::write(&path, name.repeat(1000)).unwrap();
        File::open(&path).unwrap().sync_all().unwrap();
    };
    write("before");
    host.ok(&["create", "copy", &format!("db:{}", target.path)]);
    host.ok(&["start", "copy"]);
    host.wait_until_in_sync("copy");
    host.ok(&["split", "copy"]);
    write("after");
    let copy = lun::checksum(&target.path);
    host.kill_target("db");
    write("after the death of ublk-target");
    host.kill_shuntd();
    host.start_shuntd();
    host.wait_for("copy", "split");
    // Both processes die at once.
    host.kill_shuntd();
    host.kill_target_only("db");
    host.start_shuntd();
    host.wait_for("copy", "split");
    // A client that must write, for example to replay a journal, uses a copy of the target.
    let elsewhere = LoopDevice::new(lun::size(&source), 512);
    sh("cp", &[&target.path, &elsewhere.path]);
    let read = Mounted::new(&elsewhere.path);
    assert!(read.path().join("before").exists());
    assert!(!read.path().join("after").exists());
    drop(read);
    // While the target is in use, it stays split.
    let read = Mounted::read_only(&target.path);
    let said = host.shunt(&["resume", "copy"]);
    assert!(REFUSED_OR_FAILED.contains(&said.code), "{said:?}");
    assert!(said.error.contains("next:"), "{said:?}");
    host.wait_for("copy", "split");
    drop(read);
    assert_eq!(lun::checksum(&target.path), copy);
    // The target was made writable, so it is unknown what was written to it.
    sh("blockdev", &["--setrw", &target.path]);
    host.refused(
        &["resume", "copy"],
        3,
        &[&target.path, "writable", "shunt cancel copy"],
    );
    host.wait_for("copy", "split");
    sh("blockdev", &["--setro", &target.path]);
    host.ok(&["resume", "copy"]);
    host.wait_until_in_sync("copy");
    drop(mounted);
    host.assert_legs_equal("db", &source, &target.path);
    // After another split and its cancel, the target belongs to the operator.
    host.ok(&["split", "copy"]);
    // The target is made writable and read-only again: the kernel has counted what was written.
    sh("blockdev", &["--setrw", &target.path]);
    sh(
        "dd",
        &[
            "if=/dev/zero",
            &format!("of={}", target.path),
            "bs=4k",
            "count=1",
            "seek=9000",
            "oflag=direct",
            "conv=notrunc",
        ],
    );
    sh("blockdev", &["--setro", &target.path]);
    host.refused(
        &["resume", "copy"],
        3,
        &[
            &target.path,
            "written to by somebody else",
            "shunt cancel copy",
        ],
    );
    host.wait_for("copy", "split");
    host.ok(&["cancel", "copy", "--yes"]);
    sh("fsck.ext4", &["-f", "-p", &target.path]);
    lun::write_megabyte(&target.path, 1, 7).unwrap();
}
