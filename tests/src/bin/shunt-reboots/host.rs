//! The host: boots machines, ends them, changes their LUNs, and checks what they hold.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use tests::{log::Log, machine::Machine, power, random::Random};

use super::{IN_SYNC_WITHIN, Plan, READY, SERVED_WITHIN};

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

/// The growth of a leg, in bytes.
const GROWTH_BYTES: u64 = 16 << 20;

/// The maximum number of blocks of a leg that are overwritten.
const FOREIGN_BLOCKS: u64 = 64;

pub(super) fn host(plan: &Plan) -> ExitCode {
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
