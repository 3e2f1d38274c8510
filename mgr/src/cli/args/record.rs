//! Commands that show what has happened: events, history, report.

use std::path::PathBuf;

use clap::{Subcommand, ValueHint};
use migration_proto::manager::Cursor;

use crate::cli::values::absolute_path;

/// A command that shows what has happened.
#[derive(Debug, Subcommand)]
pub enum RecordCommand {
    /// Show the current state, then follow events
    ///
    /// Runs until Ctrl-C. Events are lines of the history, and every change of the state of a pair
    /// or a volume. With --json prints one object a line: first those of status, then the mark
    /// "type":"live", then events. If shuntd is restarted meanwhile, waits for it for 30 seconds,
    /// then shows the events that were missed, the current state and the mark again.
    ///
    /// The mark and each event have a cursor. A program that was away gives the last one to
    /// --after: then the lines of the history that it missed come first. Changes of states are not
    /// kept: the current state replaces them. If lines were missed that are not kept, the command
    /// is refused.
    #[command(after_help = "EXAMPLES:
  shunt events
  shunt events s1 --json | jq 'select(.code == \"state_changed\")'
  shunt events --json --after 9f3a01bc-1042-1763687825123")]
    Events {
        /// Only this session
        session: Option<String>,
        /// Begin with the lines of the history after this cursor
        #[arg(long, value_name = "CURSOR")]
        after: Option<Cursor>,
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
