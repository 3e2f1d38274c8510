//! Resets a machine repeatedly, changes one of its LUNs before it boots, and compares every byte
//! with a log that the host keeps.
//!
//! The host boots a virtual machine with both LUNs and a disk with Shunt's state. The guest waits
//! until the pair is in sync, runs an application that verifies what it reads, and changes sides at
//! least twice. After the boot and after each change it hands the contents of the volume to the
//! host. Then it writes until the host ends it.
#![allow(clippy::expect_used)]

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use clap::{Parser, Subcommand};
use tests::{
    host::Host,
    log::Log,
    lun,
    machine::Machine,
    power::{self, Writer},
    random::Random,
    run, sh,
};

/// Resets a machine and changes its LUNs before it boots
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Boot machines and end them
    Host(Plan),
    /// Run inside the machine
    Guest {
        /// Folder that the host sees too
        #[arg(long)]
        folder: PathBuf,
        /// Number of this life of the machine with these LUNs
        #[arg(long)]
        life: u64,
        /// How long the application runs between the boot and the first change of sides
        #[arg(long)]
        load_seconds: u64,
        /// How long each writer waits after a flush, in milliseconds
        #[arg(long)]
        think_ms: u64,
        /// Number of changes of sides
        #[arg(long)]
        changes: u64,
    },
}

#[derive(Debug, Parser)]
struct Plan {
    /// The kernel
    #[arg(long)]
    kernel: String,
    /// Path of scripts/vm
    #[arg(long)]
    vm: PathBuf,
    /// Number of reboots; the mishaps between them are used in turn
    #[arg(long)]
    reboots: u64,
    /// How long the application runs after each boot
    #[arg(long, default_value_t = 300)]
    load_seconds: u64,
    /// How long each writer waits after a flush during that time, in milliseconds
    #[arg(long, default_value_t = 0)]
    think_ms: u64,
    /// Seed of the random numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What happens to a LUN between two boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mishap {
    /// Blocks of the mirror leg are overwritten.
    MirrorWritten,
    /// Blocks of the authoritative leg are overwritten.
    AuthoritativeWritten,
    /// A leg grows.
    Grown,
    /// The machine finds its disks in another order, so that the kernel gives them other names.
    Renamed,
    /// Nothing happens.
    Nothing,
}

const MISHAPS: [Mishap; 5] = [
    Mishap::MirrorWritten,
    Mishap::AuthoritativeWritten,
    Mishap::Grown,
    Mishap::Renamed,
    Mishap::Nothing,
];
const VOLUME: &str = "db";
const SESSION: &str = "move";
/// The line that reports that the guest has changed sides and writes until the host ends it.
const READY: &str = "now";
/// The growth of a leg, in bytes.
const GROWTH_BYTES: u64 = 16 << 20;
/// The maximum number of blocks of a leg that are overwritten.
const FOREIGN_BLOCKS: u64 = 64;
/// The time limit until the volume is served after a boot. The machine is emulated and shared.
const SERVED_WITHIN: Duration = Duration::from_secs(600);
/// The time limit until both legs are known to be equal.
const IN_SYNC_WITHIN: Duration = Duration::from_secs(900);

fn main() -> ExitCode {
    match Arguments::parse().role {
        Role::Host(plan) => host(&plan),
        Role::Guest {
            folder,
            life,
            load_seconds,
            think_ms,
            changes,
        } => {
            let load = Load {
                length: Duration::from_secs(load_seconds),
                think: Duration::from_millis(think_ms),
            };
            guest(&folder, life, load, changes)
        }
    }
}

// ---- the host -----------------------------------------------------------------------------------

fn host(plan: &Plan) -> ExitCode {
    // The folder is below target/, where the guest can write.
    let folder = tempfile::tempdir_in("target").expect("a folder");
    let folder = std::fs::canonicalize(folder.path()).expect("its path");
    let mut violations = 0;
    let mut left = None;
    let mut seeds = Random::new(plan.seed);
    for round in 1..=plan.reboots {
        // Separate generators make each round depend on the seed alone: the quantity of numbers
        // that a life takes varies.
        let [mut fate, mut life, mut first_life] =
            [(); 3].map(|()| Random::new(seeds.below(u64::MAX)));
        let mut world = match left.take() {
            Some(world) => world,
            // In the first round, and after a violation.
            None => match World::begin(plan, &folder, &mut first_life) {
                Ok(world) => world,
                Err(report) => {
                    println!("round {round}, seed {}: with new LUNs; {report}", plan.seed);
                    violations += 1;
                    continue;
                }
            },
        };
        let what = world.disturb(round, &mut fate);
        let report = world.live(plan, &folder, &mut life);
        println!("round {round}, seed {}: {what}; {report}", plan.seed);
        match report.violation {
            None => left = Some(world),
            Some(_) => violations += 1,
        }
    }
    let (reboots, kernel) = (plan.reboots, &plan.kernel);
    if violations == 0 {
        println!(
            "kernel {kernel}, {reboots} reboots: every byte was as the log says, both legs became equal each time"
        );
        return ExitCode::SUCCESS;
    }
    println!("kernel {kernel}, {reboots} reboots: {violations} violations");
    ExitCode::FAILURE
}

/// Both LUNs, the disk with Shunt's state, and what the volume must hold.
struct World {
    media: tempfile::TempDir,
    /// In the order in which the machine finds them.
    order: [&'static str; 3],
    /// How often the machine has been booted.
    life: u64,
    /// The authoritative leg: 0 is the source, 1 the target.
    authoritative: u64,
    /// By how many bytes the legs differ before the boot.
    differ: u64,
    log: Log,
}

/// The result of one life of the machine.
#[derive(Debug, Default)]
struct Report {
    said: Vec<String>,
    in_sync: Option<String>,
    differ: u64,
    flushed: u64,
    end: String,
    violation: Option<String>,
}

impl std::fmt::Display for Report {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "shuntd said: {}", self.said.join(", then "))?;
        match &self.in_sync {
            Some(text) => write!(to, "; in sync {text}, {} bytes differed", self.differ)?,
            None => write!(to, "; not in sync, {} bytes differ", self.differ)?,
        }
        write!(to, "; {} writes flushed", self.flushed)?;
        match &self.violation {
            Some(text) => write!(to, "; VIOLATION: {text}"),
            None => write!(to, "; {}; ok", self.end),
        }
    }
}

impl World {
    fn new(random: &mut Random) -> Self {
        let media = tempfile::tempdir_in("/var/tmp").expect("a folder");
        let mut new = Self {
            media,
            order: ["lun0", "lun1", "lun2"],
            life: 0,
            authoritative: 0,
            differ: power::LUN_BYTES,
            log: Log::default(),
        };
        for disk in new.order {
            let file = File::create(new.path(disk)).expect("a disk");
            file.set_len(power::LUN_BYTES).expect("its size");
            if disk == "lun2" {
                continue;
            }
            let content = noise(random, power::LUN_BYTES);
            file.write_all_at(&content, 0).expect("its content");
            if disk == "lun0" {
                new.log.bytes = content;
            }
        }
        new
    }

    fn path(&self, disk: &str) -> PathBuf {
        self.media.path().join(disk)
    }

    fn open(&self, disk: &str) -> File {
        let mut options = File::options();
        options.read(true).write(true);
        options.open(self.path(disk)).expect("a disk")
    }

    /// Creates new LUNs, and runs a life of the machine that brings them into sync and ends like
    /// every other life.
    fn begin(plan: &Plan, folder: &Path, random: &mut Random) -> Result<Self, Report> {
        let mut world = Self::new(random);
        let report = world.live(plan, folder, random);
        match report.violation {
            None => Ok(world),
            Some(_) => Err(report),
        }
    }

    /// Changes a leg, or the order of the disks, while the machine is off. Returns a description.
    fn disturb(&mut self, round: u64, random: &mut Random) -> String {
        let mishap = MISHAPS[(round - 1) as usize % MISHAPS.len()];
        let leg = match mishap {
            Mishap::MirrorWritten => 1 - self.authoritative,
            Mishap::AuthoritativeWritten => self.authoritative,
            Mishap::Grown | Mishap::Renamed | Mishap::Nothing => random.below(2),
        };
        let disk = ["lun0", "lun1"][leg as usize];
        let role = match leg == self.authoritative {
            true => "the authoritative leg",
            false => "the mirror leg",
        };
        let what = match mishap {
            Mishap::MirrorWritten | Mishap::AuthoritativeWritten => {
                let file = self.open(disk);
                let blocks = 1 + random.below(FOREIGN_BLOCKS);
                for _ in 0..blocks {
                    // Half of the blocks are where the application writes.
                    let offset = match random.below(2) {
                        0 => {
                            random.below(power::LUN_BYTES / power::BLOCK_BYTES) * power::BLOCK_BYTES
                        }
                        _ => {
                            random.below(power::LUN_BYTES / power::STRIDE_BYTES)
                                * power::STRIDE_BYTES
                        }
                    };
                    let data = noise(random, power::BLOCK_BYTES);
                    file.write_all_at(&data, offset).expect("a foreign write");
                    if leg == self.authoritative {
                        self.log.overwrite(offset, &data);
                    }
                }
                format!("{blocks} blocks of {disk}, {role}, were overwritten")
            }
            Mishap::Grown => {
                let file = self.open(disk);
                let size = file.metadata().expect("its size").len() + GROWTH_BYTES;
                file.set_len(size).expect("another size");
                format!("{disk}, {role}, has grown to {size} bytes")
            }
            Mishap::Renamed => {
                let before = self.order;
                while self.order == before {
                    self.order.swap(0, random.below(3) as usize);
                    self.order.swap(1, random.below(3) as usize);
                }
                format!("the disks came up as {}", self.order.join(", "))
            }
            Mishap::Nothing => "nothing happened".to_owned(),
        };
        let [first, second] =
            ["lun0", "lun1"].map(|disk| std::fs::read(self.path(disk)).expect("a leg"));
        let blocks = first
            .chunks(power::BLOCK_BYTES as usize)
            .zip(second.chunks(power::BLOCK_BYTES as usize));
        let differ = blocks.filter(|(first, second)| first != second).count();
        self.differ = differ as u64 * power::BLOCK_BYTES;
        what
    }

    /// Boots the machine, and ends it after the last change of sides or at the first violation.
    fn live(&mut self, plan: &Plan, folder: &Path, random: &mut Random) -> Report {
        self.life += 1;
        let mut report = Report {
            differ: self.differ,
            ..Report::default()
        };
        let arguments = [
            "guest".to_owned(),
            format!("--life={}", self.life),
            format!("--load-seconds={}", plan.load_seconds),
            format!("--think-ms={}", plan.think_ms),
            format!("--changes={}", 2 + random.below(2)),
            format!("--folder={}", folder.display()),
        ];
        let limit = SERVED_WITHIN + 4 * IN_SYNC_WITHIN + Duration::from_secs(plan.load_seconds);
        let paths = self.order.map(|disk| (disk, self.path(disk)));
        let disks = paths.each_ref().map(|(disk, path)| (*disk, path.as_path()));
        let machine = Machine::boot(&plan.vm, &plan.kernel, limit, &disks, &arguments);
        let mut end = None;
        loop {
            let left = end.map_or(limit, |end: Instant| {
                end.saturating_duration_since(Instant::now())
            });
            match machine.line(left) {
                Ok(line) if line == READY => {
                    let wait = Duration::from_millis(random.below(3000));
                    end = Some(Instant::now() + wait);
                }
                Ok(line) => self.hear(&line, folder, &mut report),
                Err(_) if end.is_some() => break,
                Err(error) => {
                    report.violation = Some(format!("the machine did not come so far ({error})"));
                }
            }
            if report.violation.is_some() {
                return report;
            }
        }
        report.flushed = self.log.flushed.iter().sum();
        report.end = if random.below(2) == 0 {
            machine.lose_power(|limit| limit - 1);
            "reset".to_owned()
        } else {
            let lost = machine.lose_power(|limit| random.below(limit));
            format!("power lost, {lost} sectors lost")
        };
        let leg = ["source", "target"][self.authoritative as usize];
        report.end += &format!(" with the {leg} authoritative");
        report
    }

    fn hear(&mut self, line: &str, folder: &Path, report: &mut Report) {
        if let Some((writer, count)) = power::flushed(line) {
            self.log.flushed[writer] = count;
            return;
        }
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "said" => report.said.push(rest.to_owned()),
            "in-sync" => report.in_sync = Some(rest.to_owned()),
            "authoritative" => self.authoritative = u64::from(rest == "target"),
            "holds" => {
                let file = folder.join(rest);
                let found = std::fs::read(&file).expect("what the volume holds");
                std::fs::remove_file(file).expect("it is not needed any more");
                let boots = self.log.life != self.life;
                match self.log.check(&found, !boots) {
                    Err(text) => report.violation = Some(format!("{rest}: {text}")),
                    Ok(()) if boots => self.log.begin(self.life, found),
                    Ok(()) => {}
                }
            }
            "violation" => report.violation = Some(rest.to_owned()),
            _ => println!("  {line}"),
        }
    }
}

/// Random bytes, which were never there before.
fn noise(random: &mut Random, length: u64) -> Vec<u8> {
    (0..length / 8)
        .flat_map(|_| random.below(u64::MAX).to_le_bytes())
        .collect()
}

// ---- the guest ----------------------------------------------------------------------------------

/// The machine, seen from inside.
struct Guest {
    host: Host,
    said: String,
}

/// The application between the boot and the first change of sides.
#[derive(Debug, Clone, Copy)]
struct Load {
    length: Duration,
    /// The wait after each flush.
    think: Duration,
}

fn guest(folder: &Path, life: u64, load: Load, changes: u64) -> ExitCode {
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
