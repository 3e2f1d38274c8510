//! The machine, seen from inside.

use std::{
    io,
    path::Path,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use tests::{
    host::Host,
    lun,
    power::{self, Writer},
    run, sh,
};

use super::{IN_SYNC_WITHIN, READY, SERVED_WITHIN, SESSION, VOLUME};

/// The machine, seen from inside.
struct Guest {
    host: Host,
    said: String,
}

/// The application between the boot and the first change of sides.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) length: Duration,
    /// The wait after each flush.
    pub(super) think: Duration,
}

pub(super) fn guest(folder: &Path, life: u64, load: Load, changes: u64) -> ExitCode {
    let disk = "/dev/disk/by-id/virtio-lun2";
    if life == 1 {
        sh("mkfs.ext4", &["-q", disk]);
    } else {
        // Checks the file system, as every boot does: a power loss may tear the superblock, which
        // is two sectors. Status 1: something was repaired.
        let checked = run("e2fsck", &["-y", disk]);
        let text = String::from_utf8_lossy(&checked.stdout).replace('\n', "; ");
        assert!(matches!(checked.status.code(), Some(0 | 1)), "{text}");
        if checked.status.code() == Some(1) {
            println!("e2fsck: {text}");
        }
    }
    let state = lun::Mounted::new(disk);
    let mut guest = Guest {
        host: Host::with_state(&state.path().join("shunt")),
        said: String::new(),
    };
    match guest.run(folder, life, load, changes) {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("{}{}", guest.host.shunt(&["status"]).out, guest.host.log());
            println!("violation {}", text.replace('\n', " "));
            // The host ends the machine. An orderly end could be delayed by what hangs.
            std::thread::sleep(Duration::from_secs(600));
            ExitCode::FAILURE
        }
    }
}

impl Guest {
    fn run(&mut self, folder: &Path, life: u64, load: Load, changes: u64) -> Result<(), String> {
        if life == 1 {
            let pair = format!("{VOLUME}:/dev/disk/by-id/virtio-lun1");
            self.host
                .ok(&["attach", VOLUME, "/dev/disk/by-id/virtio-lun0"]);
            self.host.ok(&["create", SESSION, &pair, "--overwrite"]);
            self.host.ok(&["start", SESSION]);
        }
        self.wait_until_served()?;
        hand_over(folder, "after-the-boot");
        let started = Instant::now();
        self.wait_until_in_sync()?;
        let copied = self.host.connect(VOLUME).status().copied_bytes;
        let seconds = started.elapsed().as_secs_f64();
        println!("in-sync after {seconds:.1} s, {copied} bytes copied");

        let mut writers: Vec<Writer> = (0..power::WRITERS)
            .map(|writer| Writer::new(life, writer))
            .collect();
        let stop = &AtomicBool::new(false);
        std::thread::scope(|scope| {
            let threads: Vec<_> = writers
                .iter_mut()
                .zip(0..)
                .map(|(writer, number)| {
                    scope.spawn(move || apply(writer, number, load.think, stop))
                })
                .collect();
            let end = Instant::now() + load.length;
            while Instant::now() < end && !threads.iter().any(|thread| thread.is_finished()) {
                std::thread::sleep(Duration::from_millis(100).min(load.length));
            }
            stop.store(true, Ordering::Relaxed);
            let join = |thread: std::thread::ScopedJoinHandle<'_, io::Result<()>>| {
                thread.join().expect("no panic")
            };
            threads.into_iter().try_for_each(join)
        })
        .map_err(|error| format!("the application: {error}"))?;

        for change in 1..=changes {
            self.change_sides()?;
            hand_over(folder, &format!("after-change-{change}"));
            self.compare_legs()?;
        }
        let pair = self.host.pair(SESSION);
        let side = pair["authoritative"].as_str().unwrap_or_default();
        println!("authoritative {side}");

        let never = &AtomicBool::new(false);
        println!("{READY}");
        std::thread::scope(|scope| {
            for (writer, number) in writers.iter_mut().zip(0..) {
                scope.spawn(move || {
                    if let Err(error) = apply(writer, number, Duration::ZERO, never) {
                        println!("violation the application: {error}");
                    }
                });
            }
        });
        Ok(())
    }

    /// Reports the states of the volume and the pair to the host if they have changed. Returns both
    /// states.
    fn tell(&mut self) -> (String, String) {
        let volume = self.host.volume(VOLUME);
        let pair = self.host.live_pair(VOLUME).unwrap_or_default();
        let text = |value: &serde_json::Value| value.as_str().unwrap_or("-").to_owned();
        let mut said = format!("{}/{}", text(&volume["state"]), text(&pair["state"]));
        for record in [&volume, &pair] {
            if let Some(problem) = record["problem"].as_str() {
                said += &format!(" ({})", problem.replace('\n', " "));
            }
        }
        if said != self.said {
            println!("said {said}");
            self.said = said;
        }
        (text(&volume["state"]), text(&pair["state"]))
    }

    fn wait_until_served(&mut self) -> Result<(), String> {
        let end = Instant::now() + SERVED_WITHIN;
        while self.tell().0 != "attached" {
            if Instant::now() > end {
                return Err(format!("the volume is not served: {}", self.said));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    fn wait_until_in_sync(&mut self) -> Result<(), String> {
        let started = Instant::now();
        let mut asked = 0;
        loop {
            let state = self.tell().1;
            if state == "source-selected" || state == "target-selected" {
                return Ok(());
            }
            if started.elapsed() > IN_SYNC_WITHIN {
                return Err(format!("the pair does not come into sync: {}", self.said));
            }
            // These states wait for a command.
            let waits = state == "degraded" || state == "paused";
            if waits && started.elapsed().as_secs() / 10 > asked {
                asked = started.elapsed().as_secs() / 10;
                let said = self.host.shunt(&["resume", SESSION]);
                println!(
                    "said resume: {} {}",
                    said.code,
                    said.error.replace('\n', " ")
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn change_sides(&mut self) -> Result<(), String> {
        let end = Instant::now() + IN_SYNC_WITHIN;
        loop {
            self.wait_until_in_sync()?;
            let verb = match self.host.pair(SESSION)["authoritative"] == "source" {
                true => "switch",
                false => "undo",
            };
            let said = self.host.shunt(&[verb, SESSION, "--max-pause", "60"]);
            if said.code == 0 {
                return Ok(());
            }
            println!("said {verb}: {}", said.error.trim().replace('\n', " "));
            if Instant::now() > end {
                return Err(format!("no {verb}: {}", said.error));
            }
        }
    }

    fn compare_legs(&mut self) -> Result<(), String> {
        self.wait_until_in_sync()?;
        let pair = self.host.pair(SESSION);
        let leg = |key: &str| pair[key].as_str().unwrap_or_default().to_owned();
        let (source, target) = (leg("source"), leg("target"));
        // A leg may be larger than the volume.
        let equal = self
            .host
            .connect(VOLUME)
            .while_suspended(|| lun::are_equal_up_to(&source, &target, power::LUN_BYTES));
        match equal {
            true => Ok(()),
            false => Err("the legs differ although they are in sync".to_owned()),
        }
    }
}

/// The application: writes, flushes, and sometimes reads back what it has written. It waits for
/// `think` after each flush.
fn apply(writer: &mut Writer, number: u64, think: Duration, stop: &AtomicBool) -> io::Result<()> {
    let volume = power::open(&Host::device(VOLUME));
    writer.write(&volume, stop, |writer, count| {
        power::say_flushed(number, count);
        std::thread::sleep(think);
        writer.read_one(&volume)
    })
}

/// Hands the contents of the volume to the host.
fn hand_over(folder: &Path, name: &str) {
    let to = format!("of={}", folder.join(name).display());
    let from = format!("if={}", Host::device(VOLUME));
    sh("dd", &[&from, &to, "bs=1M", "iflag=direct", "status=none"]);
    println!("holds {name}");
}
