//! `shunt-map`: looks at a map file. It never writes to one.

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

/// Look at the map file of a volume: its route, what it is made of, what still has to be copied
///
/// The map file says which leg of a volume is authoritative and in which regions the other leg may
/// differ. shunt-map only reads it, also while the volume is being served: then it shows one moment.
#[derive(Debug, Parser)]
#[command(name = "shunt-map", version, after_help = AFTER_HELP, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say whether a map file is whole; if not, what is damaged and the way out
    #[command(after_help = AFTER_HELP)]
    Check {
        /// The map file
        file: PathBuf,
    },
    /// Print what is in a map file; of a damaged one, as much as can be read
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

/// Whether the file is whole.
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
