//! `shunt-map`: checks or dumps a map file. It only reads.

mod check;
mod dump;
mod survey;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use survey::Survey;

const EXIT_DAMAGED: u8 = 1;
const EXIT_UNREADABLE: u8 = 3;

const AFTER_HELP: &str = "EXAMPLES:
  shunt-map check /var/lib/shunt/volumes/db.map
  shunt-map dump /var/lib/shunt/volumes/db.map
  shunt-map dump db.map --json | jq 'select(.type == \"role\")'

EXIT STATUS:
  0  the file is whole
  1  the file is damaged, or is no map file
  2  the command line is wrong
  3  the file cannot be read";

/// Show the map file of a volume: its route, its legs, and what still has to be copied
///
/// The map file says which leg of a volume is authoritative and in which regions the other leg may
/// differ. shunt-map only reads it. It can do so while the volume is being served, and then shows
/// one moment.
#[derive(Debug, Parser)]
#[command(name = "shunt-map", version, after_help = AFTER_HELP, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check whether a map file is whole; if not, show what is damaged and the way out
    #[command(after_help = AFTER_HELP)]
    Check {
        /// The map file
        file: PathBuf,
    },
    /// Print the contents of a map file; if it is damaged, as much as can be read
    #[command(after_help = AFTER_HELP)]
    Dump {
        /// The map file
        file: PathBuf,
        /// One JSON object a line, with "type" and "schema"
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    match run(&Arguments::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_DAMAGED),
        Err(error) => {
            eprintln!(
                "shunt-map: {}",
                migration_proto::chain::text(error.as_ref())
            );
            ExitCode::from(EXIT_UNREADABLE)
        }
    }
}

/// Runs a command; returns whether the file is whole.
fn run(command: &Command) -> anyhow::Result<bool> {
    match command {
        Command::Check { file } => {
            let survey = Survey::settled(file)?;
            if survey.is_whole() {
                tools::print(&check::whole(&survey))?;
            } else {
                eprint!("{}", check::damaged(&survey));
            }
            Ok(survey.is_whole())
        }
        Command::Dump { file, json } => {
            let survey = Survey::settled(file)?;
            tools::print(&if *json {
                dump::json(&survey)
            } else {
                dump::text(&survey)
            })?;
            for problem in &survey.problems {
                eprintln!("shunt-map: {}: {problem}", survey.path.display());
            }
            Ok(survey.is_whole())
        }
    }
}
