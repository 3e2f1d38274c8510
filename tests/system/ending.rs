//! Tests of the signals that a shutdown sends to every process, and of a step of the clock.

use tests::{
    host::Host,
    lun::{self, LoopDevice, Mounted},
    wait_until,
};

const SIZE: u64 = 48 << 20;

fn signal(pid: u32, signal: i32) {
    // SAFETY: kill takes numbers only.
    let result = unsafe { libc::kill(pid.cast_signed(), signal) };
    assert_eq!(result, 0, "signal {signal} to {pid}");
}

fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

#[test]
fn the_server_of_an_open_device_does_not_obey_a_shutdown_and_otherwise_ends_cleanly() {
    let mut host = Host::new();
    let (source, target) = (LoopDevice::new(SIZE, 512), LoopDevice::new(SIZE, 512));
    host.bring_into_sync("db", &source.path, &target.path, "move");
    let device = Host::device("db");
    tests::sh("mkfs.ext4", &["-q", &device]);
    let status = host.connect("db").status();
    // systemd spares the process when it kills what is left.
    let arguments = std::fs::read(format!("/proc/{}/cmdline", status.pid)).unwrap();
    assert!(arguments.starts_with(b"@ublk-target\0"));

    let files = Mounted::new(&device);
    let mount = files.path().to_str().unwrap().to_owned();
    for (count, number) in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP]
        .into_iter()
        .enumerate()
    {
        signal(status.pid, number);
        wait_until("the log says why it is not obeyed", || {
            let log = host.log();
            let lines = log.lines().filter(|line| line.contains("not obeyed"));
            lines.filter(|line| line.contains(&mount)).count() == count + 1
        });
    }
    std::fs::write(files.path().join("file"), "written after the signals").unwrap();
    drop(files);
    assert_eq!(host.connect("db").status().pid, status.pid);

    // The device is open, though not mounted.
    let open = std::fs::File::open(&device).unwrap();
    signal(status.pid, libc::SIGTERM);
    let own = format!("pid {}", std::process::id());
    wait_until("it names the process", || {
        let log = host.log();
        log.lines()
            .any(|line| line.contains("not obeyed") && line.contains(&own))
    });
    drop(open);

    // As in a shutdown: shuntd ends first.
    assert_eq!(host.stop_shuntd(), Some(0));
    signal(status.pid, libc::SIGTERM);
    wait_until("it ends", || !is_alive(status.pid));
    assert!(!status.device.exists(), "the device is left");
    assert!(
        lun::are_equal(&source.path, &target.path),
        "the legs differ"
    );

    host.start_shuntd();
    wait_until("the volume is back", || {
        host.volume("db")["state"] == "attached"
    });
    let status = host.connect("db").status();
    assert!(!status.recovered);
    assert_eq!(status.doubt, None, "it has let go of its legs");
    let files = Mounted::new(&device);
    let text = std::fs::read_to_string(files.path().join("file")).unwrap();
    assert_eq!(text, "written after the signals");
    drop(files);
    host.wait_for("move", "source-selected");
    host.ok(&["cancel", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}

#[test]
fn a_step_of_the_clock_ends_no_duration() {
    let host = Host::new();
    let (source, target) = (LoopDevice::new(SIZE, 512), LoopDevice::new(SIZE, 512));
    host.ok(&["attach", "db", &source.path]);
    let pair = format!("db:{}", target.path);
    host.ok(&[
        "create",
        "move",
        &pair,
        "--rate",
        "1MiB",
        "--max-duration",
        "5m",
    ]);
    host.ok(&["start", "move"]);
    let dirty = || host.pair("move")["dirty_bytes"].as_u64().unwrap();
    let goes_on = || {
        let before = dirty();
        wait_until("the copy continues", || dirty() < before);
    };
    goes_on();
    for step in ["+3 hours", "-6 hours", "+3 hours"] {
        tests::sh("date", &["-s", step]);
        goes_on();
        assert_eq!(host.pair("move")["state"], "syncing", "after {step}");
    }
    host.ok(&["set", "move", "--rate", "unlimited"]);
    host.wait_for("move", "source-selected");
    host.ok(&["cancel", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}
