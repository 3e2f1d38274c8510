//! Kills ublk-target and shuntd repeatedly under a verified load. `scripts/soak` runs it in a
//! machine of its own.
//!
//! The volume is mirrored, and between the kills it is switched and undone. The run fails if the
//! application sees an error or data that it did not write, if the pair does not come back into
//! sync, or if both legs differ at the end.
#![allow(clippy::expect_used)]

use std::{
    fs::File,
    os::unix::fs::{FileExt, OpenOptionsExt},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use clap::Parser;
use tests::{
    host::Host,
    load::{self, Load},
    lun,
    random::Random,
};

/// Kills ublk-target and shuntd under a verified load
#[derive(Debug, Parser)]
struct Arguments {
    /// Number of kills of each of the two programs
    #[arg(long, default_value_t = 200)]
    kills: u32,
    /// Seed of the random numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// An application that writes and reads back one block all the time, and measures the longest wait.
struct Probe {
    stop: Arc<AtomicBool>,
    longest_us: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

#[repr(align(4096))]
struct Block([u8; 4096]);

impl Probe {
    /// Starts the application at `offset`, where nobody else writes.
    fn start(device: &str, offset: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let longest_us = Arc::new(AtomicU64::new(0));
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(device)
            .expect("the volume");
        let thread = std::thread::spawn({
            let (stop, longest_us) = (Arc::clone(&stop), Arc::clone(&longest_us));
            move || {
                let mut number = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    let mut block = Box::new(Block([0; 4096]));
                    block.0[..8].copy_from_slice(&number.to_le_bytes());
                    let begun = Instant::now();
                    file.write_all_at(&block.0, offset).expect("a write");
                    let waited = begun.elapsed().as_micros();
                    longest_us
                        .fetch_max(u64::try_from(waited).unwrap_or(u64::MAX), Ordering::Relaxed);
                    block.0.fill(0xff);
                    file.read_exact_at(&mut block.0, offset).expect("a read");
                    assert_eq!(block.0[..8], number.to_le_bytes(), "another block");
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        Self {
            stop,
            longest_us,
            thread,
        }
    }

    fn forget(&self) {
        self.longest_us.store(0, Ordering::Relaxed);
    }

    fn longest(&self) -> Duration {
        Duration::from_micros(self.longest_us.load(Ordering::Relaxed))
    }

    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the application saw no error");
    }
}

fn summary(what: &str, mut pauses: Vec<Duration>) {
    pauses.sort_unstable();
    let (Some(longest), Some(median)) = (pauses.last(), pauses.get(pauses.len() / 2)) else {
        return;
    };
    println!(
        "{} kills of {what}: a write waited {:.3} s at most, {:.3} s in the middle",
        pauses.len(),
        longest.as_secs_f64(),
        median.as_secs_f64()
    );
}

/// Moves the role to the other side. A failure is only printed.
fn change_sides(host: &Host) {
    host.wait_until_in_sync("move");
    let verb = match host.pair("move")["authoritative"] == "source" {
        true => "switch",
        false => "undo",
    };
    let said = host.shunt(&[verb, "move", "--max-pause", "30"]);
    println!(
        "{verb}: {}",
        if said.code == 0 {
            "done"
        } else {
            said.error.trim()
        }
    );
}

fn main() {
    let arguments = Arguments::parse();
    let mut random = Random::new(arguments.seed);
    let mut host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    host.bring_into_sync("db", &source, &target, "move");
    let load = Load::start(&Host::device("db"), load::SMALL);
    let probe = Probe::start(&Host::device("db"), lun::size(&source) - (64 << 10));
    load.go_on();
    let (mut of_target, mut of_shuntd) = (Vec::new(), Vec::new());
    for round in 1..=2 * arguments.kills {
        std::thread::sleep(Duration::from_millis(random.below(700)));
        probe.forget();
        if round % 2 == 0 {
            host.kill_shuntd();
            host.start_shuntd();
            of_shuntd.push(probe.longest());
        } else {
            host.kill_target("db");
            std::thread::sleep(Duration::from_millis(200));
            of_target.push(probe.longest());
        }
        if random.below(10) == 0 {
            change_sides(&host);
        }
        if round % 20 == 0 {
            load.go_on();
            println!("{round} kills");
        }
    }
    load.finish();
    probe.finish();
    change_sides(&host);
    host.wait_until_in_sync("move");
    host.assert_legs_equal("db", &source, &target);
    summary("ublk-target", of_target);
    summary("shuntd", of_shuntd);
    println!("the application saw no error, and both legs are equal");
}
