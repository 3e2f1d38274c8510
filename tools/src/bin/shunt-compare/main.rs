//! `shunt-compare`: compares two LUNs byte for byte. It only reads.

mod blocks;
mod reader;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use blocks::{BLOCK_BYTES, Differences};
use clap::Parser;
use lun::{Lun, OpenError, OpenOptions};
use reader::Reader;
use serde_json::json;
use tools::{JSON_SCHEMA, size_text};

const EXIT_DIFFERENT: u8 = 1;
const EXIT_USAGE: u8 = 2;
const EXIT_UNREADABLE: u8 = 3;

const AFTER_HELP: &str = "EXAMPLES:
  shunt-compare /dev/disk/by-id/OLD /dev/disk/by-id/NEW
  shunt-compare --bytes 10G /dev/shunt/db /dev/disk/by-id/NEW
  shunt-compare --json a.img b.img | jq .different_blocks

If something writes to one of the LUNs during the comparison, they can look different.

EXIT STATUS:
  0  equal
  1  different
  2  the command line is wrong
  3  one of the two cannot be read";

/// Compare two LUNs (block devices or regular files) byte for byte
///
/// Bypasses the page cache where that is possible. Without --bytes compares the size of the smaller
/// LUN.
#[derive(Debug, Parser)]
#[command(name = "shunt-compare", version, after_help = AFTER_HELP, max_term_width = 100)]
struct Arguments {
    /// One LUN
    a: PathBuf,
    /// The other LUN
    b: PathBuf,
    /// Compare only the first bytes; K, M, G and T are powers of 1024
    #[arg(long, value_name = "N", value_parser = tools::parse_size)]
    bytes: Option<u64>,
    /// Print one JSON object, with "type" and "schema"
    #[arg(long)]
    json: bool,
}

/// One of the two LUNs.
struct Side {
    lun: Lun,
    direct: bool,
}

/// The result of the comparison.
struct Outcome {
    sides: [Side; 2],
    compared_bytes: u64,
    differences: Differences,
}

/// Why there is no result.
enum Failure {
    Usage(String),
    Unreadable(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Unreadable(error.into())
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_DIFFERENT),
        Err(Failure::Usage(cause)) => {
            eprintln!("shunt-compare: {cause}");
            ExitCode::from(EXIT_USAGE)
        }
        Err(Failure::Unreadable(error)) => {
            eprintln!(
                "shunt-compare: {}",
                migration_proto::chain::text(error.as_ref())
            );
            ExitCode::from(EXIT_UNREADABLE)
        }
    }
}

/// Compares and prints the result; returns whether the LUNs are equal.
fn run(arguments: &Arguments) -> Result<bool, Failure> {
    let sides = [
        open(arguments, &arguments.a)?,
        open(arguments, &arguments.b)?,
    ];
    if sides[0].lun.is_same_lun(&sides[1].lun) {
        let (a, b) = (arguments.a.display(), arguments.b.display());
        return Err(Failure::Usage(format!(
            "{a} and {b} are the same LUN: name two different ones"
        )));
    }
    let compared_bytes = compared_bytes(arguments, &sides)?;
    let differences = compare(&sides, compared_bytes)?;
    let outcome = Outcome {
        sides,
        compared_bytes,
        differences,
    };
    tools::print(&if arguments.json {
        outcome.json()
    } else {
        outcome.text()
    })?;
    Ok(outcome.differences.is_none())
}

fn open(arguments: &Arguments, path: &std::path::Path) -> Result<Side, OpenError> {
    let direct = OpenOptions {
        direct: true,
        ..OpenOptions::default()
    };
    match Lun::open(path, &direct) {
        Err(OpenError::DirectUnsupported { path }) => {
            if !arguments.json {
                eprintln!(
                    "shunt-compare: {} is read through the page cache: it does not support direct I/O",
                    path.display()
                );
            }
            Ok(Side {
                lun: Lun::open(&path, &OpenOptions::default())?,
                direct: false,
            })
        }
        result => Ok(Side {
            lun: result?,
            direct: true,
        }),
    }
}

fn compared_bytes(arguments: &Arguments, sides: &[Side; 2]) -> Result<u64, Failure> {
    let [a, b] = sides.each_ref().map(|side| side.lun.identity.size_bytes);
    match arguments.bytes {
        Some(bytes) if bytes > a.min(b) => Err(Failure::Usage(format!(
            "--bytes {bytes} is more than both LUNs have: {} has {a}, {} has {b}",
            arguments.a.display(),
            arguments.b.display()
        ))),
        Some(bytes) => Ok(bytes),
        None => Ok(a.min(b)),
    }
}

fn compare(sides: &[Side; 2], compared_bytes: u64) -> Result<Differences, Failure> {
    let [a, b] = sides;
    let (a, b) = (
        Reader::start(&a.lun, compared_bytes)?,
        Reader::start(&b.lun, compared_bytes)?,
    );
    let mut differences = Differences::default();
    let mut offset = 0;
    while offset < compared_bytes {
        let (from_a, from_b) = (a.next()?, b.next()?);
        differences.compare(offset, from_a.bytes(), from_b.bytes());
        offset += from_a.bytes().len() as u64;
        a.give_back(from_a);
        b.give_back(from_b);
    }
    Ok(differences)
}

impl Outcome {
    fn sizes(&self) -> [u64; 2] {
        self.sides
            .each_ref()
            .map(|side| side.lun.identity.size_bytes)
    }

    fn text(&self) -> String {
        let [a, b] = self.sizes();
        let mut text = if self.differences.is_none() {
            format!("equal: {} compared\n", size_text(self.compared_bytes))
        } else {
            format!(
                "different: {} of {} blocks of {} differ: {}\n",
                self.differences.blocks(),
                self.compared_bytes.div_ceil(BLOCK_BYTES as u64),
                size_text(BLOCK_BYTES as u64),
                self.differences.ranges()
            )
        };
        if a != b {
            text.push_str(&format!(
                "the sizes differ: {a} and {b} bytes, of which {} were compared\n",
                self.compared_bytes
            ));
        }
        text
    }

    fn json(&self) -> String {
        let ranges: Vec<_> = self
            .differences
            .ranges()
            .kept()
            .iter()
            .map(|run| json!({ "first_block": run.first, "blocks": run.count }))
            .collect();
        let record = json!({
            "type": "comparison",
            "schema": JSON_SCHEMA,
            "paths": self.sides.each_ref().map(|side| side.lun.path.display().to_string()),
            "size_bytes": self.sizes(),
            "direct": self.sides.each_ref().map(|side| side.direct),
            "compared_bytes": self.compared_bytes,
            "equal": self.differences.is_none(),
            "block_bytes": BLOCK_BYTES,
            "different_blocks": self.differences.blocks(),
            "different_ranges": ranges,
            "different_ranges_left_off": self.differences.ranges().left_off(),
        });
        format!("{record}\n")
    }
}

impl Reader {
    fn next(&self) -> anyhow::Result<reader::Chunk> {
        self.receive()
            .with_context(|| format!("cannot read {}", self.path.display()))
    }
}
