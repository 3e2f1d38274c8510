//! Cuts the power of a machine repeatedly, and checks that flushed data is still there.
//!
//! The host boots a virtual machine whose disks (both LUNs, and the disk with Shunt's state) have
//! volatile caches. The guest starts `shuntd`, hands the contents of the volume to the host, waits
//! until the pair is in sync and compares both legs. Then it writes, reports which writes were
//! flushed, and starts an operation during which the host cuts the power.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use clap::{Parser, Subcommand, ValueEnum};
use map_store::MapFile;
use migration_core::route::Route;
use migration_proto::target::{Request, Response, Status};
use tests::{
    host::Host,
    lun,
    machine::Machine,
    power::{self, Block, Mark, Writer},
    random::Random,
    sh, wait_until,
};

/// Cuts the power of a machine at certain moments
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Boot machines and cut their power
    Host {
        /// The kernel
        #[arg(long)]
        kernel: String,
        /// Path of scripts/vm
        #[arg(long)]
        vm: PathBuf,
        /// Number of power losses; the moments are used in turn
        #[arg(long)]
        losses: u64,
        /// Seed of the random numbers
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Run inside the machine
    Guest {
        /// Folder that the host sees too
        #[arg(long)]
        folder: PathBuf,
        /// Number of this life of the machine
        #[arg(long)]
        life: u64,
        /// Moment at which the power will be cut
        #[arg(long)]
        moment: Moment,
    },
}

/// When the power is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Moment {
    /// While the copy runs, soon after the start.
    Copy,
    /// While marks are written and cleared.
    Intent,
    /// While requests are held.
    Suspension,
    /// While the role moves to the target.
    Switch,
    /// Some time after the role has moved.
    AfterSwitch,
    /// While the role moves back.
    Undo,
    /// While the source is given up.
    Commit,
    /// While the target is given up.
    Cancel,
}

const VOLUME: &str = "db";
const READY: &str = "now";

fn main() {
    match Arguments::parse().role {
        Role::Host {
            kernel,
            vm,
            losses,
            seed,
        } => host(&kernel, &vm, losses, seed),
        Role::Guest {
            folder,
            life,
            moment,
        } => guest(&folder, life, moment),
    }
}

// ---- the host -----------------------------------------------------------------------------------

/// The output of the guest so far.
#[derive(Debug, Default)]
struct Heard {
    /// For each writer, how many of its writes were flushed.
    flushed: [u64; power::WRITERS as usize],
    text: Vec<String>,
}

impl Heard {
    fn note(&mut self, line: String) {
        match power::flushed(&line) {
            Some((writer, count)) => self.flushed[writer] = count,
            None => self.text.push(line),
        }
    }
}

fn host(kernel: &str, vm: &Path, losses: u64, seed: u64) {
    let mut random = Random::new(seed);
    // The folder is below target/, where the guest can write.
    let folder = tempfile::tempdir_in("target").expect("a folder");
    let folder = std::fs::canonicalize(folder.path()).expect("its path");
    let media = tempfile::tempdir_in("/var/tmp").expect("a folder");
    let paths = ["lun0", "lun1", "lun2"].map(|disk| {
        let path = media.path().join(disk);
        let file = File::create(&path).expect("a disk");
        file.set_len(power::LUN_BYTES).expect("its size");
        (disk, path)
    });
    let disks = paths.each_ref().map(|(disk, path)| (*disk, path.as_path()));
    let moments = Moment::value_variants();
    let mut before = vec![Mark::default(); sectors()];
    for life in 1..=losses + 1 {
        let moment = moments[(life as usize - 1) % moments.len()];
        let last = life == losses + 1;
        let name = moment.to_possible_value().expect("a name");
        let arguments = [
            "guest".to_owned(),
            format!("--life={life}"),
            format!("--moment={}", name.get_name()),
            format!("--folder={}", folder.display()),
        ];
        let limit = Duration::from_secs(600);
        let machine = Machine::boot(vm, kernel, limit, &disks, &arguments);
        let mut heard = Heard::default();
        loop {
            match machine.line(limit) {
                Ok(line) if line == READY => break,
                Ok(line) => heard.note(line),
                Err(_) => panic!(
                    "life {life} ({moment:?}) did not get that far; its output:\n{}",
                    heard.text.join("\n")
                ),
            }
        }
        if !last {
            let wait = match moment {
                Moment::Copy | Moment::Intent | Moment::AfterSwitch => random.below(1500),
                _ => random.below(500),
            };
            let end = Instant::now() + Duration::from_millis(wait);
            while let Ok(line) = machine.line(end.saturating_duration_since(Instant::now())) {
                heard.note(line);
            }
        }
        let lost = machine.lose_power(|limit| random.below(limit));

        // The contents that this life found are what the previous life left.
        let found = dump_of(&folder, life);
        check(&before, &found.0, &found.1);
        before = found.0.iter().map(|mark| mark.expect("checked")).collect();
        for line in &heard.text {
            if line.starts_with("found: ") {
                println!("{line}");
            }
        }
        if last {
            break;
        }
        // The next life is checked against these numbers.
        std::fs::write(
            folder.join("flushed"),
            serde_json::to_vec(&(life, heard.flushed)).expect("numbers"),
        )
        .expect("a file");
        let sum: u64 = heard.flushed.iter().sum();
        println!(
            "{life}: power lost at {moment:?}; {sum} writes were flushed, {lost} sectors lost"
        );
    }
    println!(
        "{losses} power losses: every flushed write was there, no difference without a mark, one leg was authoritative, both \
         became equal"
    );
}

const fn sectors() -> usize {
    (power::WRITERS * power::BLOCKS * power::BLOCK_BYTES / power::SECTOR_BYTES) as usize
}

type Found = (Vec<Option<Mark>>, Option<(u64, Vec<u64>)>);

fn dump_of(folder: &Path, life: u64) -> Found {
    let bytes = std::fs::read(folder.join(format!("dump-{life}"))).expect("what the guest found");
    let marks: Vec<Option<(u64, u64)>> = serde_json::from_slice(&bytes).expect("marks");
    let marks = marks
        .into_iter()
        .map(|mark| mark.map(|(life, number)| Mark { life, number }))
        .collect();
    let flushed = std::fs::read(folder.join("flushed")).ok();
    (
        marks,
        flushed.map(|bytes| serde_json::from_slice(&bytes).expect("numbers")),
    )
}

/// Checks that every sector holds what it held before the last life, or what that life wrote there,
/// and nothing older than what that life flushed.
fn check(before: &[Mark], found: &[Option<Mark>], flushed: &Option<(u64, Vec<u64>)>) {
    assert_eq!(found.len(), sectors());
    let (life, flushed) = flushed
        .clone()
        .unwrap_or((0, vec![0; power::WRITERS as usize]));
    // For each block, the last write that was flushed.
    let mut floor = vec![None; (power::WRITERS * power::BLOCKS) as usize];
    for (writer, count) in (0..).zip(&flushed) {
        for number in 0..*count {
            let block = power::block_of(life, writer, number);
            floor[(writer * power::BLOCKS + block) as usize] = Some(number);
        }
    }
    let of_a_block = (power::BLOCK_BYTES / power::SECTOR_BYTES) as usize;
    for (sector, mark) in found.iter().enumerate() {
        let block = (sector / of_a_block) as u64;
        let (writer, own) = (block / power::BLOCKS, block % power::BLOCKS);
        let mark = mark.unwrap_or_else(|| panic!("sector {sector} holds what nobody wrote"));
        let written = mark.life == life && power::block_of(life, writer, mark.number) == own;
        let right = match floor[block as usize] {
            Some(floor) => written && mark.number >= floor,
            None => written || mark == before[sector],
        };
        assert!(
            right,
            "sector {sector} (writer {writer}, block {own}) holds {mark:?}, before life {life} it held {:?}, and write {:?} of \
             that was flushed",
            before[sector], floor[block as usize]
        );
    }
}

// ---- the guest ----------------------------------------------------------------------------------

fn guest(folder: &Path, life: u64, moment: Moment) {
    let disk = "/dev/disk/by-id/virtio-lun2";
    if life == 1 {
        sh("mkfs.ext4", &["-q", disk]);
    }
    let state = lun::Mounted::new(disk);
    let folder_of_state = state.path().join("shunt");
    let map = folder_of_state.join("volumes").join(VOLUME).join("map");
    let left = (life > 1).then(|| MapFile::open_read_only(&map).expect("the map file"));
    if let Some(left) = &left {
        unmarked_regions_are_equal(left);
    }
    let host = Host::with_state(&folder_of_state);
    if life == 1 {
        host.ok(&["attach", VOLUME, "/dev/disk/by-id/virtio-lun0"]);
    }
    wait_until("the volume is attached", || {
        host.volume(VOLUME)["state"] == "attached"
    });
    let status = host.connect(VOLUME).status();
    if let Some(left) = &left {
        follows(&status, left);
    }
    hand_over(folder, life);
    if let Some(pair) = host
        .live_pair(VOLUME)
        .filter(|pair| pair["state"] != "setup")
    {
        let session = pair["session"].as_str().unwrap().to_owned();
        if pair["state"] == "degraded" || pair["state"] == "paused" {
            host.ok(&["resume", &session]);
        }
        host.wait_until_in_sync(&session);
        let leg = |key: &str| pair[key].as_str().unwrap().to_owned();
        host.assert_legs_equal(VOLUME, &leg("source"), &leg("target"));
    }
    prepare(&host, life, moment);
    for writer in 0..power::WRITERS {
        std::thread::spawn(move || write(life, writer));
    }
    println!("{READY}");
    act(&host, life, moment);
    std::thread::sleep(Duration::from_secs(120));
    panic!("the power was not lost");
}

/// Checks that the volume follows its map file as it was at the power loss, and that everything is
/// compared again.
fn follows(status: &Status, left: &MapFile) {
    let record = left.chosen.record;
    println!("found: {:?}, epoch {}", record.route, record.epoch.0);
    // A commit or cancel that was interrupted may be finished by now.
    if status.epoch != record.epoch.0 {
        return;
    }
    assert_eq!(Route::from(status.route), record.route);
    if !status.route.is_mirrored() {
        return;
    }
    // Nobody held the legs for a while, so every region is dirty or has been copied again.
    assert!(
        status.dirty_bytes + status.copied_bytes >= status.size_bytes,
        "{status:?}"
    );
}

/// Checks that the legs are equal wherever no mark was durable at the power loss.
fn unmarked_regions_are_equal(left: &MapFile) {
    let record = left.chosen.record;
    if !matches!(record.route, Route::Mirrored { .. }) {
        return;
    }
    let [one, other] = ["lun0", "lun1"]
        .map(|lun| std::fs::read(format!("/dev/disk/by-id/virtio-{lun}")).expect("a leg"));
    let region_bytes = record.geometry.region_bytes() as usize;
    let regions = one.chunks(region_bytes).zip(other.chunks(region_bytes));
    for (region, (one, other)) in regions.enumerate() {
        let word = left.dirty[region / 64] | left.intent[region / 64];
        let is_marked = word >> (region % 64) & 1 == 1;
        assert!(
            is_marked || one == other,
            "region {region} has no mark, and the legs differ there"
        );
    }
}

/// Hands the contents of the volume to the host.
fn hand_over(folder: &Path, life: u64) {
    let volume = power::open(&Host::device(VOLUME));
    let mut block = Block::zeroed();
    let mut marks = Vec::with_capacity(sectors());
    for writer in 0..power::WRITERS {
        for number in 0..power::BLOCKS {
            let offset = power::offset_of(writer, number);
            volume.read_exact_at(&mut block.0, offset).expect("a read");
            let sectors = block.0.chunks_exact(power::SECTOR_BYTES as usize);
            for (index, sector) in sectors.enumerate() {
                let place = offset + index as u64 * power::SECTOR_BYTES;
                let mark = power::decode(sector, place);
                marks.push(mark.map(|mark| (mark.life, mark.number)));
            }
        }
    }
    let file = folder.join(format!("dump-{life}"));
    std::fs::write(file, serde_json::to_vec(&marks).unwrap()).expect("a file of the host");
}

/// Writes, flushes now and then, and reports what is flushed. An error means that the power is
/// lost.
fn write(life: u64, writer: u64) {
    let volume = power::open(&Host::device(VOLUME));
    let never = AtomicBool::new(false);
    let _ = Writer::new(life, writer).write(&volume, &never, |_, count| {
        power::say_flushed(writer, count);
        Ok(())
    });
}

/// Brings the volume into the state in which the moment can happen.
fn prepare(host: &Host, life: u64, moment: Moment) {
    let wanted = match moment {
        Moment::Copy => None,
        Moment::Intent | Moment::Suspension | Moment::Switch | Moment::Cancel => Some("source"),
        Moment::AfterSwitch | Moment::Undo | Moment::Commit => Some("target"),
    };
    let pair = host.live_pair(VOLUME);
    let session = match (pair, wanted) {
        (Some(pair), Some(_)) if pair["state"] != "setup" => {
            pair["session"].as_str().unwrap().to_owned()
        }
        (pair, _) => {
            if let Some(pair) = pair {
                end(host, &pair);
            }
            create(host, life)
        }
    };
    let Some(side) = wanted else {
        return;
    };
    let state = host.pair(&session)["state"].clone();
    if state == "setup" {
        host.ok(&["start", &session]);
    }
    host.wait_until_in_sync(&session);
    if host.pair(&session)["authoritative"] != side {
        let verb = if side == "target" { "switch" } else { "undo" };
        host.ok(&[verb, &session, "--max-pause", "60"]);
    }
}

fn end(host: &Host, pair: &serde_json::Value) {
    let session = pair["session"].as_str().unwrap();
    let verb = if pair["authoritative"] == "target" {
        "commit"
    } else {
        "cancel"
    };
    host.ok(&[verb, session, "--yes"]);
}

/// Creates a session from the LUN in use to the other LUN; returns its name.
fn create(host: &Host, life: u64) -> String {
    let current = host.volume(VOLUME)["lun"].as_str().unwrap().to_owned();
    let number = u32::from(current.ends_with("lun0"));
    let target = format!("/dev/disk/by-id/virtio-lun{number}");
    let session = format!("life{life}");
    let pair = format!("{VOLUME}:{target}");
    host.ok(&["create", &session, &pair, "--overwrite"]);
    session
}

/// Starts the operation during which the power is cut. It is unknown whether the operation is still
/// done.
fn act(host: &Host, life: u64, moment: Moment) {
    let pair = host.live_pair(VOLUME);
    let session = pair.map_or_else(
        || format!("life{life}"),
        |pair| pair["session"].as_str().unwrap().to_owned(),
    );
    let arguments: &[&str] = match moment {
        Moment::Copy => &["start", &session],
        Moment::Switch => &["switch", &session, "--max-pause", "60"],
        Moment::Undo => &["undo", &session, "--max-pause", "60"],
        Moment::Commit => &["commit", &session, "--yes"],
        Moment::Cancel => &["cancel", &session, "--yes"],
        Moment::Suspension => {
            let deadline_ms = 60_000;
            let answer = host.connect(VOLUME).ask(&Request::Suspend { deadline_ms });
            assert_eq!(answer, Response::Suspended);
            return;
        }
        Moment::Intent | Moment::AfterSwitch => return,
    };
    let _ = host.shunt(arguments);
}
