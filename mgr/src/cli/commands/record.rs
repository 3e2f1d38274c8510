//! Runs the commands that show what has happened.

use std::path::Path;
use std::thread;
use std::time::Duration;

use migration_proto::manager::{Cursor, JSON_SCHEMA, Line, LiveRecord, Record, Request};

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
        RecordCommand::Events { session, after } => events(global, session, after),
        RecordCommand::History { session } => history(global, session),
        RecordCommand::Report { session, output } => report(global, &session, output.as_deref()),
    }
}

fn history(global: &Global, session: Option<String>) -> Result<(), Stop> {
    let records = shuntd(global).records(&Request::History {
        session,
        after: None,
    })?;
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
    let history = shuntd.records(&Request::History {
        session: named,
        after: None,
    })?;
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

/// Prints the current state, the mark, and then events, until Ctrl-C or until shuntd is absent for
/// longer than [`ABSENCE_MAX`].
///
/// If the current state does not follow on what was printed before (`after`, or the last event
/// before shuntd was restarted), the lines of the history in between are printed before it.
fn events(global: &Global, session: Option<String>, after: Option<Cursor>) -> Result<(), Stop> {
    let mut poll = Poll::of_events(shuntd(global), session, ABSENCE_MAX);
    let mut seen = after;
    loop {
        let Some(answer) = poll.events()? else {
            thread::sleep(RETRY_EVERY);
            continue;
        };
        if answer.present {
            if let Some(seen) = seen.filter(|seen| *seen != answer.cursor) {
                print_missed(global, &mut poll, seen, &answer.cursor)?;
            }
            print_records(global, &answer.records, render::status)?;
            let mark = LiveRecord {
                schema: JSON_SCHEMA,
                cursor: answer.cursor.clone(),
            };
            print(
                match global.json {
                    true => Line::Live(mark).text(),
                    false => render::mark(&mark),
                }
                .as_bytes(),
            )?;
        } else {
            print_records(global, &answer.records, render::history)?;
        }
        seen = Some(answer.cursor);
    }
}

/// Prints the lines of the history after `seen`, up to `until`.
fn print_missed(
    global: &Global,
    poll: &mut Poll,
    mut seen: Cursor,
    until: &Cursor,
) -> Result<(), Stop> {
    loop {
        let Some(mut records) = poll.missed(&seen)? else {
            thread::sleep(RETRY_EVERY);
            continue;
        };
        let last = records.last().and_then(cursor_of).cloned();
        // Later events are in the stream.
        records.retain(|record| cursor_of(record).is_some_and(|cursor| cursor.line <= until.line));
        print_records(global, &records, render::history)?;
        match last {
            Some(last) if last.line < until.line => seen = last,
            Some(_) | None => return Ok(()),
        }
    }
}

const fn cursor_of(record: &Record) -> Option<&Cursor> {
    match record {
        Record::Event(event) => Some(&event.cursor),
        _ => None,
    }
}
