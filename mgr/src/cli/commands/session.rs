//! Runs the commands that describe a session.

use std::path::Path;

use migration_proto::manager::{
    PRIORITY_DEFAULT, PairSpec, Record, Request, SessionLimits, SessionOptions,
};

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
            overwrite,
            accept_weak_identity,
            detect_zeroes,
            verify,
            on_authoritative_failure,
            rate,
            priority,
            switch,
            retire,
            max_latency_impact,
            accept_unreadable,
            cutover,
            when,
        } => {
            if let Some(file) = file {
                return change(global, &session_file::request(&file)?);
            }
            let request = Request::Create {
                session: session.expect("clap asks for it if there is no file"),
                pairs,
                options: SessionOptions {
                    overwrite,
                    accept_weak_identity,
                    detect_zeroes,
                    on_authoritative_failure: on_authoritative_failure.into(),
                    verify: verify.into(),
                    rate_bytes_per_second: rate.unwrap_or(0),
                    priority: priority.unwrap_or(PRIORITY_DEFAULT),
                    switch: switch.unwrap_or_default(),
                    max_latency_impact_percent: max_latency_impact.unwrap_or(0),
                    accept_unreadable_bytes: accept_unreadable.unwrap_or(0),
                    mode: cutover.mode(),
                    every_seconds: when.every.unwrap_or(0),
                    hours: when.window_hours.unwrap_or_default(),
                    start_at_ms: when.start_at.unwrap_or(0),
                    max_duration_seconds: when.max_duration.unwrap_or(0),
                    switch_pairs: when.switch_pairs.map(Into::into).unwrap_or_default(),
                    cutover: cutover.options(),
                    retire: retire.map(Into::into),
                },
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
            rate,
            priority,
            on_authoritative_failure,
            switch,
            max_latency_impact,
            accept_unreadable,
            cutover,
            when,
            max_pairs,
        } => {
            let limits = SessionLimits {
                rate_bytes_per_second: rate,
                priority,
                on_authoritative_failure: on_authoritative_failure.map(Into::into),
                switch,
                max_latency_impact_percent: max_latency_impact,
                accept_unreadable_bytes: accept_unreadable,
                every_seconds: when.every,
                hours: when.window_hours,
                start_at_ms: when.start_at,
                max_duration_seconds: when.max_duration,
                switch_pairs: when.switch_pairs.map(Into::into),
                ..cutover.limits()
            };
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
