//! `shunt-bench`: compares the speed of Shunt with other layers between an application and a disk.
//!
//! A run has several rounds, and each round measures all contestants in turn, so that a change on
//! the host during the run affects all of them. The report has medians, over the rounds, of the
//! ratios within a round.
//!
//! | file | purpose |
//! |---|---|
//! | `disks` | the requirements for the two disks; filling them |
//! | `contestant` | setting up and removing each contestant |
//! | `shunt` | shuntd, a volume, a session, through the command line |
//! | `fio` | one measurement |
//! | `copy` | the copy rates |
//! | `redirect` | the pauses of a switch and an undo |
//! | `impact` | the effect of a copy on an application |
//! | `report` | medians, tables, JSON |
//! | `process` | running other programs, and the end of this one |

mod contestant;
mod copy;
mod disks;
mod fio;
mod impact;
mod process;
mod redirect;
mod report;
mod shunt;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};
use contestant::{Contestant, Place};
use process::say;
use report::Report;
use shunt::Daemon;

const AFTER_HELP: &str = "WHAT IS MEASURED:
  4 KiB random reads and writes, 1 and 32 deep, and 256 KiB sequential reads and writes, 8 deep, by
  fio with io_uring and direct I/O; and the rate of a whole copy, both ways, beside
  `dd bs=1M iflag=direct oflag=direct`. Both disks are overwritten. Only ratios mean something:
  absolute figures of an emulated machine do not. CPU is that of the whole machine while fio runs.
  The map file of Shunt's volume is in the work folder, by default in memory: on a real disk, the
  first write into a region of a mirrored volume also costs a durable write of the map file.

REDIRECTS:
  With --redirects N: N switches and undos of an in-sync pair during 4 KiB random writes 32 deep,
  then N exchanges of a linear table of device-mapper (which mirrors nothing). The pause that the
  application sees is its longest request that was in progress during the command. For comparison
  there is the longest request in a period of the same length without a redirect.

IMPACT:
  With --impact: an application reads and writes 4 KiB at a fixed rate, in each round without a copy,
  with a copy at full speed, and with a copy that `--max-latency-impact` limits. The copy must take
  longer than --seconds.

RUBLK:
  rublk's loop target is measured too if the program `rublk` is on PATH, in cargo/bin of the folder
  $SHUNT_CACHE, or named with --rublk. To build it (needs libclang: apt-get install libclang-dev):
    cargo install rublk --version 0.2.13 --locked --no-default-features --root FOLDER
  scripts/bench does all of this and runs shunt-bench in the virtual machine.

EXAMPLES:
  shunt-bench --source /dev/disk/by-id/virtio-lun0 --target /dev/disk/by-id/virtio-lun1
  shunt-bench --source /dev/sdb --target /dev/sdc --overwrite --seconds 10 --rounds 5 --json
  shunt-bench --source /dev/sdb --target /dev/sdc --contestants raw,single --no-copy
  shunt-bench --source /dev/sdb --target /dev/sdc --redirects 100
  shunt-bench --source /dev/sdb --target /dev/sdc --impact 20 --seconds 10

EXIT STATUS:
  0  measured
  1  something failed
  2  the command line is wrong
  3  a disk is in use, or holds something and --overwrite was not given; nothing changed";

const EXIT_REFUSED: u8 = 3;

/// Compare the speed of Shunt with the bare disk, the kernel's loop driver and rublk; needs root
#[derive(Debug, Parser)]
#[command(name = "shunt-bench", version, after_help = AFTER_HELP, max_term_width = 100)]
struct Arguments {
    /// The disk below the contestants; it is overwritten
    #[arg(long, value_name = "DISK")]
    source: PathBuf,
    /// The target of mirroring and copies, of the same size; it is overwritten
    #[arg(long, value_name = "DISK")]
    target: PathBuf,
    /// How long each measurement takes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// The number of rounds
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// The contestants to measure; raw is always measured
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_enum,
          default_values_t = Contestant::USUAL)]
    contestants: Vec<Contestant>,
    /// Do not measure the copy rate
    #[arg(long)]
    no_copy: bool,
    /// Measure only the pauses of N switches and undos, and of N exchanges of a device-mapper table
    #[arg(long, value_name = "N", conflicts_with_all = ["rounds", "seconds", "contestants", "no_copy"],
          value_parser = clap::value_parser!(u32).range(2..=100_000))]
    redirects: Option<u32>,
    /// Measure only the latency of an application without a copy, with a copy, and with a copy
    /// whose impact is limited to PERCENT
    #[arg(long, value_name = "PERCENT", conflicts_with_all = ["contestants", "no_copy", "redirects"],
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    impact: Option<u32>,
    /// The program rublk [default: see below]
    #[arg(long, value_name = "PATH")]
    rublk: Option<PathBuf>,
    /// The folder of shuntd, shunt and ublk-target [default: that of shunt-bench]
    #[arg(long, value_name = "FOLDER")]
    programs: Option<PathBuf>,
    /// The folder for Shunt's state during the run
    #[arg(long, value_name = "FOLDER", default_value = "/dev/shm")]
    work_dir: PathBuf,
    /// Overwrite disks that are not blank
    #[arg(long)]
    overwrite: bool,
    /// Print every measurement as JSON, one object a line, with "type" and "schema"
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shunt-bench: {error:#}");
            match error.downcast_ref::<disks::Refused>() {
                Some(_) => ExitCode::from(EXIT_REFUSED),
                None => ExitCode::FAILURE,
            }
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let disks = disks::check(&arguments.source, &arguments.target, arguments.overwrite)?;
    if !nix::unistd::geteuid().is_root() {
        bail!("shunt-bench must be run as root");
    }
    process::watch_signals().context("cannot catch signals")?;
    let work = tempfile::Builder::new()
        .prefix("shunt-bench.")
        .tempdir_in(&arguments.work_dir)
        .with_context(|| format!("cannot make a folder in {}", arguments.work_dir.display()))?;
    let contestants = chosen(arguments);
    let uses_shunt = !arguments.no_copy
        || arguments.redirects.is_some()
        || arguments.impact.is_some()
        || contestants.iter().any(Contestant::is_shunt);
    let daemon = match uses_shunt {
        true => Some(Daemon::start(arguments.programs.as_deref(), work.path())?),
        false => None,
    };
    say("filling both disks");
    disks.fill(work.path())?;
    let place = Place {
        disks: &disks,
        work: work.path(),
        daemon: daemon.as_ref(),
        rublk: contestant::find_rublk(arguments.rublk.as_deref()),
    };
    let mut report = Report::new(arguments.json);
    if let (Some(redirects), Some(daemon)) = (arguments.redirects, &daemon) {
        for pauses in redirect::measure(&disks, daemon, work.path(), redirects)? {
            report.add_pauses(pauses);
        }
        return tools::print(&report.finish()).context("standard output");
    }
    if let (Some(percent), Some(daemon)) = (arguments.impact, &daemon) {
        let length = (arguments.rounds, arguments.seconds);
        let found = impact::measure(&disks, daemon, work.path(), percent, length, arguments.json)?;
        return tools::print(&found).context("standard output");
    }
    for round in 1..=arguments.rounds {
        measure_round(arguments, &place, &contestants, round, &mut report)?;
        if let (false, Some(daemon)) = (arguments.no_copy, &daemon) {
            say(&format!("round {round} of {}: copies", arguments.rounds));
            copy::measure(&disks, daemon, work.path(), round, &mut report)?;
        }
    }
    tools::print(&report.finish()).context("standard output")
}

/// The contestants that are asked for and can be measured here. `Raw` is always one of them,
/// because the others are compared with it.
fn chosen(arguments: &Arguments) -> Vec<Contestant> {
    let rublk = contestant::find_rublk(arguments.rublk.as_deref());
    let mut chosen = vec![Contestant::Raw];
    for contestant in Contestant::value_variants() {
        if !arguments.contestants.contains(contestant) || chosen.contains(contestant) {
            continue;
        }
        if contestant.needs_rublk() && rublk.is_none() {
            say("rublk was not found and is not measured: see shunt-bench --help");
            continue;
        }
        chosen.push(*contestant);
    }
    chosen
}

/// Measures all contestants once. Every second round has the opposite order, so that no contestant
/// always follows the same other.
fn measure_round(
    arguments: &Arguments,
    place: &Place<'_>,
    contestants: &[Contestant],
    round: u32,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut order = contestants.to_vec();
    if round.is_multiple_of(2) {
        order.reverse();
    }
    for contestant in order {
        say(&format!(
            "round {round} of {}: {}",
            arguments.rounds,
            contestant.name()
        ));
        let standing = contestant
            .set_up(place)
            .with_context(|| contestant.name())?;
        for workload in &fio::WORKLOADS {
            let sample = fio::measure(
                &standing.device,
                workload,
                arguments.seconds,
                standing.server,
                place.work,
            )
            .with_context(|| format!("{}, {}", contestant.name(), workload.name()))?;
            report.add(round, contestant, workload, sample);
        }
        standing.take_away().with_context(|| contestant.name())?;
    }
    Ok(())
}
