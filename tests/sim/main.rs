//! The simulation: the decisions of `ublk-target` and `shuntd` in a world with reordering,
//! failures, torn writes, deaths and power losses, checked against an oracle. A seed is a world,
//! and always gives the same run.
#![allow(clippy::expect_used)]

mod application;
mod border;
mod copier;
mod copies;
mod daemon;
mod dice;
mod disk;
#[path = "../shared/intention.rs"]
mod intention;
mod io;
mod operation;
mod recovery;
mod settings;
mod site;
mod world;

use std::{
    panic::{self, catch_unwind},
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use clap::Parser;
use seeded_core::operation::SeededBug;
use settings::Counts;
use world::{World, Wrong};

/// The number of worlds of an ordinary run.
const SEEDS: u64 = 4000;
/// The number of worlds with a wrong rule, of which at least one must fail.
const WRONG_RULE_SEEDS: u64 = 1000;

/// Seeds that failed once, one a line; what follows a `#` says why.
const OLD_SEEDS: &str = include_str!("../seeds");

/// Events that must happen, at least once in this number of worlds on average: a world in which
/// nothing happens proves nothing. The events are about four times more frequent than that.
const MUST_HAPPEN: &[(&str, u64)] = &[
    ("caches lost by a leg that failed", 20),
    ("changes past their deadline", 10),
    ("changes that failed", 40),
    ("clean ends of ublk-target", 5),
    ("copies at an instant", 40),
    ("copies in sync", 3),
    ("copies that were spoiled", 40),
    ("deaths between two effects", 1),
    ("deaths in recovery", 1),
    ("deaths of a copier", 1),
    ("deaths of shuntd in an operation", 8),
    ("doubts because a claim lapsed", 5),
    ("doubts because a leg is missing", 30),
    ("ends of which the outcome is unknown", 100),
    ("flushes of a leg that failed", 200),
    ("foreign writes", 5),
    ("foreign writes found", 60),
    ("flushes of the authoritative leg that failed", 200),
    ("ghosts of a copier", 5),
    ("LUNs found under another name", 20),
    ("map files damaged", 20),
    ("map files lost", 20),
    ("map files made again", 10),
    ("LUNs without a name that were not accepted", 5),
    ("ghosts of ublk-target", 1),
    ("mirror legs given up", 60),
    ("mirror legs given up after a stall", 4),
    ("mirror legs tried again", 3),
    ("pairs committed", 200),
    ("pairs cancelled", 8),
    ("pairs switched", 10),
    ("pairs taken back", 2000),
    ("pairs undone", 13),
    ("power losses", 2),
    ("queued pairs started", 7),
    ("recoveries done", 10),
    ("reads from the mirror", 150),
    ("resumes that were due", 400),
    ("roles moved by a failure", 600),
    ("splits that were due", 100),
    ("starts without the mirror leg", 16),
    ("suspensions past their deadline", 1),
    ("switches that were due", 10),
    ("torn sectors", 50),
    ("verbs finished after a death", 80),
    ("writes to the map file that failed", 40),
];

static TRACED: AtomicBool = AtomicBool::new(false);

/// Whether events are printed.
fn is_traced() -> bool {
    TRACED.load(Ordering::Relaxed)
}

#[derive(Parser)]
#[command(about = "Runs simulated worlds, and reports those that break a promise")]
struct Arguments {
    /// Number of worlds
    #[arg(long, default_value_t = SEEDS)]
    seeds: u64,
    /// The seed of the first one
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print the list of tests for the test harness
    #[arg(long)]
    list: bool,
    /// Print every event
    #[arg(long)]
    trace: bool,
    /// Accepted for the test harness
    #[arg(long, short)]
    quiet: bool,
    /// Accepted for the test harness
    #[arg(hide = true)]
    filters: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        println!("no_order_of_events_breaks_a_promise: test");
        return ExitCode::SUCCESS;
    }
    TRACED.store(arguments.trace, Ordering::Relaxed);
    let old = OLD_SEEDS.lines().filter_map(|line| {
        let seed = line.split('#').next().unwrap_or_default().trim();
        (!seed.is_empty()).then(|| seed.parse().expect("a seed"))
    });
    let new = (0..arguments.seeds).map(|index| arguments.seed.wrapping_add(index));
    let seeds: Vec<u64> = old.chain(new).collect();
    let started = Instant::now();
    let mut counts = Counts::new();
    let mut failed = Vec::new();
    for seed in &seeds {
        match catch_unwind(|| World::new(*seed, Wrong::Nothing).run()) {
            Ok(of_seed) => {
                for (what, count) in of_seed {
                    *counts.entry(what).or_default() += count;
                }
            }
            Err(_) => {
                eprintln!(
                    "seed {seed} failed; repeat it with: cargo test --release -p tests --test sim -- --seeds 1 --seed {seed}"
                );
                failed.push(*seed);
            }
        }
    }
    report(&counts, seeds.len(), started.elapsed());
    let missing = too_few(&counts, seeds.len() as u64);
    if arguments.seeds >= SEEDS {
        for what in &missing {
            eprintln!("too few {what}: a world in which nothing happens proves nothing");
        }
    }
    let unnoticed = match arguments.seeds >= SEEDS {
        true => unnoticed_rules(),
        false => Vec::new(),
    };
    for wrong in &unnoticed {
        eprintln!("{wrong:?} is wrong in {WRONG_RULE_SEEDS} worlds, and nobody notices");
    }
    if !unnoticed.is_empty() {
        return ExitCode::FAILURE;
    }
    if failed.is_empty() && (missing.is_empty() || arguments.seeds < SEEDS) {
        ExitCode::SUCCESS
    } else {
        let first: Vec<u64> = failed.iter().copied().take(10).collect();
        eprintln!("{} seeds failed, the first ones: {first:?}", failed.len());
        ExitCode::FAILURE
    }
}

/// The rules of which nobody notices that they are wrong: one that lost data once, and those of
/// operations.
fn unnoticed_rules() -> Vec<Wrong> {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let fails = |wrong, seed| catch_unwind(|| World::new(seed, wrong).run()).is_err();
    let rules = SeededBug::ALL.map(Wrong::Operation).into_iter();
    let unnoticed = rules.chain([Wrong::LunsBySizeOnly]).filter(|wrong| {
        let first = (0..WRONG_RULE_SEEDS).find(|seed| fails(*wrong, *seed));
        if let Some(seed) = first {
            println!("{wrong:?} is wrong: noticed with seed {seed}");
        }
        first.is_none()
    });
    let unnoticed = unnoticed.collect();
    panic::set_hook(hook);
    unnoticed
}

fn report(counts: &Counts, seeds: usize, took: Duration) {
    for (what, count) in counts {
        println!("{count:>12} {what}");
    }
    println!(
        "{seeds} seeds in {:.1} s, {:.0} a second",
        took.as_secs_f64(),
        seeds as f64 / took.as_secs_f64()
    );
}

fn too_few(counts: &Counts, seeds: u64) -> Vec<&'static str> {
    let happened = |what| counts.get(what).copied().unwrap_or(0);
    MUST_HAPPEN
        .iter()
        .filter(|(what, worlds)| happened(what) < seeds / worlds)
        .map(|(what, _)| *what)
        .collect()
}
