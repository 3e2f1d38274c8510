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

/// Waits until a condition holds; `what` describes it.
///
/// # Panics
/// If the condition does not hold after [`SOON`].
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < SOON, "it never came: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
