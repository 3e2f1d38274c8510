//! Runs the commands that show the state, or wait for a state.

use migration_proto::manager::{Record, Request};

use super::shuntd;
use crate::cli::args::{Global, ShowCommand};
use crate::cli::ask::{self, ABSENCE_MAX, Poll};
use crate::cli::output::{print, print_records, say};
use crate::cli::problem::Stop;
use crate::cli::{render, session_file, wait};

/// Runs a command of this group.
pub(super) fn run(global: &Global, command: ShowCommand) -> Result<(), Stop> {
    match command {
        ShowCommand::Status { session, watch } => status(global, session, watch),
        ShowCommand::Show { session } => show_session(global, session),
        ShowCommand::List => list(global),
        ShowCommand::Wait {
            session,
            goal,
            timeout,
        } => {
            let wish = wait::WaitParams {
                session,
                goal,
                timeout,
            };
            wait_for(global, &wish)
        }
    }
}

fn status(global: &Global, session: Option<String>, watch: bool) -> Result<(), Stop> {
    if watch {
        let mut poll = Poll::new(shuntd(global), session, ABSENCE_MAX);
        return wait::watch(&mut poll, global.json);
    }
    let records = shuntd(global).records(&Request::Status { session })?;
    show(global, &records, render::status)
}

fn show_session(global: &Global, session: String) -> Result<(), Stop> {
    let request = Request::Status {
        session: Some(session.clone()),
    };
    let records = shuntd(global).records(&request)?;
    let found = render::find_session(&records, &session).ok_or_else(ask::wrong_answer)?;
    if global.json {
        return print(render::json_lines(&records).as_bytes());
    }
    print(session_file::show(found, &records).as_bytes())
}

fn list(global: &Global) -> Result<(), Stop> {
    let records = shuntd(global).records(&Request::Status { session: None })?;
    show(global, &render::list_records(records), render::list)
}

fn wait_for(global: &Global, wish: &wait::WaitParams) -> Result<(), Stop> {
    let mut poll = Poll::new(shuntd(global), Some(wish.session.clone()), ABSENCE_MAX);
    let records = wait::wait(&mut poll, wish, global.quiet)?;
    if global.json {
        return print(render::json_lines(&records).as_bytes());
    }
    say(
        global,
        &format!("session {} is {}", wish.session, wish.goal.name()),
    );
    Ok(())
}

fn show(global: &Global, records: &[Record], human: fn(&[Record]) -> String) -> Result<(), Stop> {
    let nothing = records
        .iter()
        .all(|record| matches!(record, Record::Host(_)));
    if nothing && !global.json {
        say(
            global,
            "no volumes and no sessions; next: shunt attach VOLUME LUN",
        );
    }
    print_records(global, records, human)
}
