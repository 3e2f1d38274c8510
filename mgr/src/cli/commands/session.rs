//! Runs the commands that describe a session.

use std::path::Path;

use migration_proto::manager::{PairSpec, Record, Request, SessionOptions};

use super::{change, shuntd};
use crate::cli::args::{Global, SessionCommand};
use crate::cli::exit::Exit;
use crate::cli::output::print_records;
use crate::cli::problem::{Problem, Stop};
use crate::cli::{render, session_file};

/// Runs a command of this group.
pub(super) fn run(global: &Global, command: SessionCommand) -> Result<(), Stop> {
    match command {
        SessionCommand::Create {
            session,
            pairs,
            file,
            options,
        } => {
            if let Some(file) = file {
                return change(global, &session_file::request(&file)?);
            }
            let request = Request::Create {
                session: session.expect("clap asks for it if there is no file"),
                pairs,
                options: options.into_options(),
            };
            change(global, &request)
        }
        SessionCommand::Plan {
            session,
            pairs,
            file,
            overwrite,
            accept_weak_identity,
        } => {
            let options = SessionOptions {
                overwrite,
                accept_weak_identity,
                ..SessionOptions::default()
            };
            plan(global, session, pairs, file.as_deref(), options)
        }
        SessionCommand::Start { session } => change(global, &Request::Start { session }),
        SessionCommand::Set {
            session,
            limits,
            max_pairs,
        } => {
            let limits = limits.into_limits();
            let request = match (session, max_pairs) {
                (Some(session), _) => Request::SetSession { session, limits },
                (None, Some(pairs_max)) => Request::SetHost { pairs_max },
                (None, None) => unreachable!("clap asks for one of them"),
            };
            change(global, &request)
        }
        SessionCommand::Signal { event } => change(global, &Request::Signal { event }),
    }
}

fn plan(
    global: &Global,
    session: Option<String>,
    pairs: Vec<PairSpec>,
    file: Option<&Path>,
    options: SessionOptions,
) -> Result<(), Stop> {
    let create = match file {
        Some(file) => session_file::request(file)?,
        None => Request::Create {
            session: session.expect("clap asks for it if there is no file"),
            pairs,
            options,
        },
    };
    let Request::Create {
        session,
        pairs,
        options,
    } = create
    else {
        unreachable!("a session file asks for a session");
    };
    let request = Request::Plan {
        session: session.clone(),
        pairs,
        options,
    };
    let records = shuntd(global).records(&request)?;
    print_records(global, &records, render::plan)?;
    let refused =
        |record: &Record| matches!(record, Record::Plan(plan) if !plan.problems.is_empty());
    if !records.iter().any(refused) {
        return Ok(());
    }
    let problem = Problem::failed(
        format!("session {session}"),
        "it would be refused: see the problems above",
        "correct them, then shunt plan again",
    );
    Err(problem.with_exit(Exit::Refused).into())
}
