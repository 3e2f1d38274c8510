//! The command line `shunt`: a thin client that sends requests to shuntd and shows the answers.
//!
//! * [`args`] defines the command line; help, man pages and completions come from it
//!   ([`documents`]); `values` and `when` parse the values of options.
//! * `commands` runs the commands, `output` writes to standard output and standard error.
//! * [`client`] is the connection to shuntd, [`ask`] turns its failures into a [`problem`].
//! * [`render`] and [`units`](crate::units) show records, `screen` redraws them on a terminal,
//!   [`mod@report`] makes a page of them.
//! * [`wait`] and [`state`] wait for a state, `verify` for the end of a comparison.
//! * [`session_file`] reads and prints a session as a file.
//! * [`exit`] is the table of exit codes.
//!
//! Data goes to standard output, messages for people go to standard error. This module decides
//! nothing about a migration: shuntd decides whether a verb is allowed.

pub mod args;
pub mod ask;
pub mod client;
mod commands;
pub mod documents;
pub mod exit;
#[cfg(test)]
mod options_tests;
mod output;
pub mod problem;
pub mod render;
pub mod report;
mod screen;
pub mod session_file;
pub mod state;
mod values;
mod verify;
pub mod wait;
mod when;

use std::process::ExitCode;

use clap::Parser;

use args::Arguments;
use commands::run;
use exit::Exit;
use problem::{Problem, Stop};

/// Runs the command that the arguments of the process name; returns its exit code.
#[must_use]
pub fn main() -> ExitCode {
    let exit = match Arguments::try_parse() {
        Ok(arguments) => {
            let json = arguments.global.json;
            match run(arguments) {
                Ok(()) | Err(Stop::PipeClosed) => Exit::Done,
                Err(Stop::Problem(problem)) => {
                    problem.report(json);
                    problem.exit
                }
            }
        }
        Err(error) => usage(&error),
    };
    ExitCode::from(exit.code())
}

/// Reports an error of the command line, or prints the help or the version.
fn usage(error: &clap::Error) -> Exit {
    if !error.use_stderr() {
        let _ = error.print();
        return Exit::Done;
    }
    if std::env::args_os().any(|argument| argument == "--json") {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        let cause = first.strip_prefix("error: ").unwrap_or(first);
        Problem::failed("command line", cause, "shunt --help")
            .with_exit(Exit::Usage)
            .report(true);
    } else {
        let _ = error.print();
    }
    Exit::Usage
}
