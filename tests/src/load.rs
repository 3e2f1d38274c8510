//! Load with verification: fio.

use std::{
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use serde_json::Value;

use crate::{run, wait_until};

/// Random sizes, 32 deep, every block verified; overlapping requests are sent one after the other.
pub const VERIFY: &[&str] = &[
    "--rw=randwrite",
    "--bsrange=512-1M",
    "--blockalign=512",
    "--iodepth=32",
    "--serialize_overlap=1",
    "--size=16M",
    "--verify=crc32c",
    "--verify_fatal=1",
    "--do_verify=1",
];

/// Writes that overlap all the time, from two jobs, in any order. The only check is that both legs
/// are equal at the end.
pub const OVERLAPPING: &[&str] = &[
    "--rw=randwrite",
    "--norandommap",
    "--bsrange=4k-128k",
    "--blockalign=512",
    "--iodepth=16",
    "--size=2M",
    "--io_size=12M",
    "--numjobs=2",
    "--randrepeat=0",
];

/// Small random writes, 32 deep, verified.
pub const SMALL: &[&str] = &[
    "--rw=randwrite",
    "--bs=4k",
    "--iodepth=32",
    "--size=32M",
    "--io_size=4M",
    "--verify=crc32c",
    "--verify_fatal=1",
    "--do_verify=1",
    "--randrepeat=0",
];

/// Like [`SMALL`], on a volume of a few megabytes.
pub const LITTLE: &[&str] = &[
    "--rw=randwrite",
    "--bs=4k",
    "--iodepth=16",
    "--size=8M",
    "--io_size=2M",
    "--verify=crc32c",
    "--verify_fatal=1",
    "--do_verify=1",
    "--randrepeat=0",
];

fn fio(device: &str, arguments: &[&str]) -> Child {
    Command::new("fio")
        .args([
            "--name=load",
            "--direct=1",
            "--ioengine=io_uring",
            "--group_reporting",
            // fio must not create a file where the device was.
            "--allow_file_create=0",
        ])
        .arg("--output-format=json")
        .arg(format!("--filename={device}"))
        .args(arguments)
        .current_dir("/var/tmp")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("fio")
}

/// Runs fio once.
///
/// # Errors
/// The output of fio, if it saw an I/O error or data that it had not written.
pub fn once(device: &str, arguments: &[&str]) -> Result<(), String> {
    judge(fio(device, arguments), arguments)
}

fn judge(fio: Child, arguments: &[&str]) -> Result<(), String> {
    let output = fio.wait_with_output().expect("fio's output");
    let text = String::from_utf8_lossy(&output.stdout);
    let said = format!("{text}{}", String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        return Err(format!("fio: {}: {said}", output.status));
    }
    let start = text.find('{').ok_or_else(|| said.clone())?;
    let report: Value =
        serde_json::from_str(&text[start..]).map_err(|error| format!("{error}: {said}"))?;
    let jobs = report["jobs"].as_array().ok_or_else(|| said.clone())?;
    let verifies = arguments
        .iter()
        .any(|argument| argument.starts_with("--verify="));
    let bad = jobs.iter().any(|job| {
        let unverified = verifies && job["read"]["total_ios"] == 0;
        job["error"] != 0 || job["write"]["total_ios"] == 0 || unverified
    });
    if bad || jobs.is_empty() {
        Err(said)
    } else {
        Ok(())
    }
}

/// A load that runs fio repeatedly until it is stopped.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    pid: Arc<AtomicU32>,
    thread: Option<JoinHandle<Result<(), String>>>,
}

impl Load {
    /// Starts the load.
    #[must_use]
    pub fn start(device: &str, arguments: &'static [&'static str]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let pid = Arc::new(AtomicU32::new(0));
        let thread = std::thread::spawn({
            let (stop, rounds, pid) = (Arc::clone(&stop), Arc::clone(&rounds), Arc::clone(&pid));
            let device = device.to_owned();
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let fio = fio(&device, arguments);
                    pid.store(fio.id(), Ordering::Relaxed);
                    judge(fio, arguments)?;
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            }
        });
        Self {
            stop,
            rounds,
            pid,
            thread: Some(thread),
        }
    }

    /// Waits until a round of fio has begun and ended after this call.
    ///
    /// # Panics
    /// If fio has failed, or takes too long.
    pub fn go_on(&self) {
        let before = self.rounds.load(Ordering::Relaxed);
        let ended = || self.thread.as_ref().is_some_and(JoinHandle::is_finished);
        wait_until("another round of fio", || {
            ended() || self.rounds.load(Ordering::Relaxed) >= before + 2
        });
        assert!(!ended(), "fio ended too early");
    }

    /// Stops the load after the current round.
    ///
    /// # Panics
    /// If fio saw an error.
    pub fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let outcome = self
            .thread
            .take()
            .expect("one thread")
            .join()
            .expect("no panic");
        if let Err(error) = outcome {
            panic!("the application saw an error: {error}");
        }
        assert!(
            self.rounds.load(Ordering::Relaxed) > 0,
            "fio never ended a round"
        );
    }
}

impl Drop for Load {
    /// Stops the load in a test that fails, so that it does not disturb the tests after it.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = run("kill", &[&self.pid.load(Ordering::Relaxed).to_string()]);
            // The wait is limited: it may be the volume that hangs.
            for _ in 0..200 {
                if thread.is_finished() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}
