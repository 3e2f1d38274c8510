//! Runs the commands that show what has happened.

use std::path::Path;
use std::thread;
use std::time::Duration;

use migration_proto::manager::{Record, Request};

use super::shuntd;
use crate::cli::args::{Global, RecordCommand};
use crate::cli::ask::{self, ABSENCE_MAX, Poll};
use crate::cli::output::{print, print_records, say};
use crate::cli::problem::{Problem, Stop};
use crate::cli::{render, report};

/// The interval of retries while shuntd is absent.
const RETRY_EVERY: Duration = Duration::from_millis(200);

/// Runs a command of this group.
pub(super) fn run(global: &Global, command: RecordCommand) -> Result<(), Stop> {
    match command {
        RecordCommand::Events { session } => events(global, session),
        RecordCommand::History { session } => history(global, session),
        RecordCommand::Report { session, output } => report(global, &session, output.as_deref()),
    }
}

fn history(global: &Global, session: Option<String>) -> Result<(), Stop> {
    let records = shuntd(global).records(&Request::History { session })?;
    if records.is_empty() && !global.json {
        say(global, "nothing has happened yet");
    }
    print_records(global, &records, render::history)
}

/// Writes the report about a session, or with `--json` its records.
fn report(global: &Global, session: &str, output: Option<&Path>) -> Result<(), Stop> {
    let mut shuntd = shuntd(global);
    let named = Some(session.to_owned());
    let status = shuntd.records(&Request::Status {
        session: named.clone(),
    })?;
    let history = shuntd.records(&Request::History { session: named })?;
    let samples = shuntd.records(&Request::Samples {
        session: session.to_owned(),
    })?;
    if global.json {
        let all: Vec<Record> = [status, history, samples].concat();
        return print(render::json_lines(&all).as_bytes());
    }
    let page = report::Report::new(&status, &history, &samples)
        .ok_or_else(ask::wrong_answer)?
        .page();
    let Some(path) = output else {
        return print(page.as_bytes());
    };
    std::fs::write(path, page).map_err(|error| {
        Problem::failed(
            path.display().to_string(),
            format!("the report cannot be written: {error}"),
            format!("shunt report {session} -o FILE with a file that can be written"),
        )
    })?;
    say(global, &format!("the report is in {}", path.display()));
    Ok(())
}

/// Prints the current state and then events, until Ctrl-C or until shuntd is absent for longer than
/// [`ABSENCE_MAX`].
fn events(global: &Global, session: Option<String>) -> Result<(), Stop> {
    let mut poll = Poll::of_events(shuntd(global), session, ABSENCE_MAX);
    loop {
        match poll.events()? {
            Some((_, records)) if global.json => print(render::json_lines(&records).as_bytes())?,
            Some((true, records)) => print(render::status(&records).as_bytes())?,
            Some((false, records)) => print(render::history(&records).as_bytes())?,
            None => thread::sleep(RETRY_EVERY),
        }
    }
}
