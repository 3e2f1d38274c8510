//! The base of the system tests: a shuntd of their own, LUNs, load, and the control socket of a
//! volume.
//!
//! The tests run as root in a machine of their own (`scripts/vm`). A failure here is a failure of
//! the test: it panics.
#![allow(clippy::expect_used, clippy::unwrap_used)]

pub mod host;
pub mod load;
pub mod log;
pub mod logged;
pub mod lun;
pub mod machine;
pub mod power;
pub mod random;
pub mod steady;
pub mod volatile;
pub mod volume;

use std::{
    fs::File,
    io::{Read, Write},
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

/// The time limit for anything that should come soon. The machine is emulated and shared.
pub const SOON: Duration = Duration::from_secs(90);

/// Runs a program and returns its output, whatever its exit status.
///
/// # Panics
/// If the program cannot be started.
pub fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// Runs a program that must succeed; returns what it printed.
///
/// # Panics
/// If it fails.
pub fn sh(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Loads a module of the kernel, if that is not done yet.
///
/// # Panics
/// If it cannot be loaded.
pub fn load_module(name: &str) {
    if !Path::new("/sys/module")
        .join(name.replace('-', "_"))
        .exists()
    {
        sh("modprobe", &[name]);
    }
}

/// Waits until a condition holds; `what` describes it.
///
/// # Panics
/// If the condition does not hold after [`SOON`].
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    const PAUSE_MIN: Duration = Duration::from_millis(20);
    const PAUSE_MAX: Duration = Duration::from_millis(250);
    let started = Instant::now();
    while !is_so() {
        let elapsed = started.elapsed();
        assert!(elapsed < SOON, "it never came: {what}");
        // To ask often would take the processor from those who are waited for.
        std::thread::sleep((elapsed / 8).clamp(PAUSE_MIN, PAUSE_MAX));
    }
}

/// Writes a file with random contents, and flushes it. Returns the contents.
///
/// # Panics
/// If it cannot be written.
#[must_use]
pub fn write_random(path: &Path, size: u64) -> Vec<u8> {
    let mut contents = Vec::new();
    let random = File::open("/dev/urandom").expect("random data");
    random
        .take(size)
        .read_to_end(&mut contents)
        .expect("random data");
    let mut file = File::create(path).expect("a file");
    file.write_all(&contents).expect("a write");
    file.sync_all().expect("a flush");
    contents
}
