//! Commands that show what has happened: events, history, report.

use std::path::PathBuf;

use clap::{Subcommand, ValueHint};

use crate::cli::values::absolute_path;

/// A command that shows what has happened.
#[derive(Debug, Subcommand)]
pub enum RecordCommand {
    /// Show the current state, then follow events
    ///
    /// Runs until Ctrl-C. Events are lines of the history, and every change of the state of a pair
    /// or a volume. With --json prints one object a line: first those of status, then events. If
    /// shuntd is restarted meanwhile, waits for it for 30 seconds and shows the current state
    /// again.
    #[command(after_help = "EXAMPLES:
  shunt events
  shunt events s1 --json | jq 'select(.state != null)'")]
    Events {
        /// Only this session
        session: Option<String>,
    },
    /// Show the history
    ///
    /// What happened and when, oldest first, with times in UTC.
    #[command(after_help = "EXAMPLES:
  shunt history
  shunt history s1 --json")]
    History {
        /// Only this session
        session: Option<String>,
    },
    /// Write a report about a session
    ///
    /// One self-contained HTML file: what was still to be copied, rates, how long requests of
    /// applications took, every pause, and the history. With --json prints the same as records.
    #[command(after_help = "EXAMPLES:
  shunt report s1 -o s1.html
  shunt report s1 --json")]
    Report {
        /// The session
        session: String,
        /// The file to write; standard output without it
        #[arg(short, long, value_name = "FILE", value_parser = absolute_path, value_hint = ValueHint::FilePath)]
        output: Option<PathBuf>,
    },
}
