//! The command line `shunt`: a thin client that sends requests to shuntd and shows the answers.
//!
//! * [`args`] defines the command line; help, man pages and completions come from it
//!   ([`documents`]); `values` and `when` parse the values of options.
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
pub mod documents;
pub mod exit;
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

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Parser;
use migration_proto::luns::LunPaths;
use migration_proto::manager::{
    JSON_SCHEMA, PRIORITY_DEFAULT, PairSpec, Record, Request, Response, SessionLimits,
    SessionOptions,
};
use serde::Serialize;

use crate::units::printable;
use args::{Arguments, Command, Global};
use ask::{ABSENCE_MAX, Poll, Shuntd};
use client::Limits;
use exit::Exit;
use problem::{Problem, Stop};

/// How much of the operator's answer to a question is read, in bytes.
const REPLY_BYTES_MAX: u64 = 64;

/// The interval of retries while shuntd is absent.
const RETRY_EVERY: Duration = Duration::from_millis(200);

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

fn run(arguments: Arguments) -> Result<(), Stop> {
    let Arguments { global, command } = arguments;
    match command {
        Command::Attach {
            volume,
            luns,
            accept_weak_identity,
        } => {
            let luns = LunPaths::new(luns).map_err(|cause| {
                let next = "name each LUN by its path";
                Problem::failed(format!("volume {volume}"), cause, next).with_exit(Exit::Usage)
            })?;
            let request = Request::Attach {
                volume,
                luns,
                accept_weak_identity,
            };
            change(&global, &request)
        }
        Command::Detach { volume } => change(&global, &Request::Detach { volume }),
        Command::Create {
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
                return change(&global, &session_file::request(&file)?);
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
            change(&global, &request)
        }
        Command::Plan {
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
            plan(&global, session, pairs, file.as_deref(), options)
        }
        Command::Start { session } => change(&global, &Request::Start { session }),
        Command::Status { session, watch } => status(&global, session, watch),
        Command::Show { session, format } => show_session(&global, session, format),
        Command::List => list(&global),
        Command::Wait {
            session,
            goal,
            timeout,
        } => {
            let wish = wait::WaitParams {
                session,
                goal,
                timeout,
            };
            wait_for(&global, &wish)
        }
        Command::Pause { session } => change(&global, &Request::Pause { session }),
        Command::Resume { session } => change(&global, &Request::Resume { session }),
        Command::Verify {
            session,
            repair,
            no_wait,
        } => verify::verify(&global, session, repair, !no_wait),
        Command::Switch { session, pause } => {
            let max_pause_ms = pause.milliseconds();
            change(
                &global,
                &Request::Switch {
                    session,
                    max_pause_ms,
                },
            )
        }
        Command::Undo { session, pause } => {
            let max_pause_ms = pause.milliseconds();
            change(
                &global,
                &Request::Undo {
                    session,
                    max_pause_ms,
                },
            )
        }
        Command::Split { session, pause } => {
            let max_pause_ms = pause.milliseconds();
            change(
                &global,
                &Request::Split {
                    session,
                    max_pause_ms,
                },
            )
        }
        Command::Commit { session, yes } => {
            let loss = "The source leg will no longer be a copy.";
            confirm(&Asked::of_session("commit", &session, loss), yes)?;
            change(&global, &Request::Commit { session })
        }
        Command::Cancel { session, yes } => {
            let loss = "What was copied to the target is dropped.";
            confirm(&Asked::of_session("cancel", &session, loss), yes)?;
            change(&global, &Request::Cancel { session })
        }
        Command::Retire {
            session,
            how,
            take_back,
            yes,
        } => {
            let how = (!take_back).then_some(how);
            retire(&global, session, how, yes)
        }
        Command::Recover {
            volume,
            authoritative,
            against_record,
            locks: _,
            yes,
        } => match volume.zip(authoritative) {
            Some((volume, leg)) => recover(&global, &volume, leg, against_record, yes),
            None => free_locks(&global, yes),
        },
        Command::Set {
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
            change(&global, &request)
        }
        Command::Signal { event } => change(&global, &Request::Signal { event }),
        Command::Events { session } => events(&global, session),
        Command::History { session } => history(&global, session),
        Command::Report { session, output } => report(&global, &session, output.as_deref()),
        Command::Completions { shell } => print(&documents::completions(shell)),
        Command::Man { directory } => man(&global, &directory),
    }
}

fn shuntd(global: &Global) -> Shuntd {
    Shuntd::new(global.socket(), Limits::default())
}

/// Sends a request that changes something, and shows the messages of the answer.
fn change(global: &Global, request: &Request) -> Result<(), Stop> {
    #[derive(Serialize)]
    struct DoneRecord<'a> {
        r#type: &'static str,
        schema: u32,
        changed: bool,
        messages: &'a [String],
    }
    let (changed, messages) = match shuntd(global).ask(request)? {
        Response::Done { changed, messages } => (changed, messages),
        Response::Records { .. } | Response::Events { .. } | Response::Failed(_) => {
            return Err(ask::wrong_answer().into());
        }
    };
    if global.json {
        let record = DoneRecord {
            r#type: "done",
            schema: JSON_SCHEMA,
            changed,
            messages: &messages,
        };
        let line = serde_json::to_string(&record).expect("strings and numbers are always JSON");
        return print((line + "\n").as_bytes());
    }
    for message in &messages {
        say(global, message);
    }
    if messages.is_empty() {
        say(
            global,
            if changed {
                "done"
            } else {
                "already in effect; nothing changed"
            },
        );
    }
    Ok(())
}

/// Recovers a volume: shows what would be done, asks for confirmation, and sends the request.
fn recover(
    global: &Global,
    volume: &str,
    leg: args::Leg,
    against_record: bool,
    yes: bool,
) -> Result<(), Stop> {
    let request = |dry_run| Request::Recover {
        volume: volume.to_owned(),
        authoritative: leg.side(),
        against_record,
        dry_run,
    };
    let against = if against_record {
        " --against-record"
    } else {
        ""
    };
    let asked = Asked {
        verb: "recover",
        object: format!("volume {volume}"),
        loss: "What only the other leg has is lost.",
        sure: format!(
            "shunt recover {volume} --authoritative {}{against} --yes",
            leg.name()
        ),
    };
    if !yes {
        would_do(global, &request(true))?;
        confirm(&asked, false)?;
    }
    change(global, &request(false))
}

/// Frees the locks that nobody holds, after the same steps as [`recover`].
fn free_locks(global: &Global, yes: bool) -> Result<(), Stop> {
    let request = |dry_run| Request::FreeLocks { dry_run };
    let asked = Asked {
        verb: "recover",
        object: "locks that nobody holds".to_owned(),
        loss: "What uses one of these luns without Shunt's knowledge is not protected any more.",
        sure: "shunt recover --locks --yes".to_owned(),
    };
    if !yes && would_do(global, &request(true))? {
        confirm(&asked, false)?;
    }
    change(global, &request(false))
}

/// Shows what a request would do; returns whether it would change anything.
fn would_do(global: &Global, dry_run: &Request) -> Result<bool, Stop> {
    match shuntd(global).ask(dry_run)? {
        Response::Done { changed, messages } => {
            // Part of the question: shown with --quiet too.
            for message in &messages {
                eprintln!("shunt: would do: {}", printable(message));
            }
            Ok(changed)
        }
        Response::Records { .. } | Response::Events { .. } | Response::Failed(_) => {
            Err(ask::wrong_answer().into())
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

fn show_session(
    global: &Global,
    session: String,
    format: session_file::Format,
) -> Result<(), Stop> {
    let request = Request::Status {
        session: Some(session.clone()),
    };
    let records = shuntd(global).records(&request)?;
    let found = render::find_session(&records, &session).ok_or_else(ask::wrong_answer)?;
    let format = match global.json {
        true => session_file::Format::Json,
        false => format,
    };
    print(session_file::show(found, &records, format).as_bytes())
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

/// Retires what a session left behind; without `how`, takes the retiring back.
fn retire(
    global: &Global,
    session: String,
    how: Option<args::RetireMethod>,
    yes: bool,
) -> Result<(), Stop> {
    let Some(how) = how else {
        return change(global, &Request::TakeBack { session });
    };
    if how == args::RetireMethod::Discard {
        let loss = "What is on the LUN that it left behind is lost.";
        let asked = Asked {
            sure: format!("shunt retire {session} --how discard --yes"),
            ..Asked::of_session("retire", &session, loss)
        };
        confirm(&asked, yes)?;
    }
    let how = how.into();
    change(global, &Request::Retire { session, how })
}

fn list(global: &Global) -> Result<(), Stop> {
    let records = shuntd(global).records(&Request::Status { session: None })?;
    show(global, &render::list_records(records), render::list)
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

fn man(global: &Global, directory: &Path) -> Result<(), Stop> {
    let pages = documents::write_man_pages(directory).map_err(|error| {
        Problem::failed(
            directory.display().to_string(),
            format!("the man pages cannot be written: {error}"),
            "shunt man DIR with a folder that can be written to",
        )
    })?;
    say(
        global,
        &format!("{pages} pages written to {}", directory.display()),
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

fn print_records(
    global: &Global,
    records: &[Record],
    human: fn(&[Record]) -> String,
) -> Result<(), Stop> {
    if global.json {
        return print(render::json_lines(records).as_bytes());
    }
    print(human(records).as_bytes())
}

/// The question before an action that cannot be taken back.
struct Asked<'a> {
    verb: &'a str,
    object: String,
    loss: &'a str,
    /// The same command with `--yes`.
    sure: String,
}

impl<'a> Asked<'a> {
    fn of_session(verb: &'a str, session: &str, loss: &'a str) -> Self {
        Self {
            verb,
            object: format!("session {session}"),
            loss,
            sure: format!("shunt {verb} {session} --yes"),
        }
    }
}

fn confirm(asked: &Asked<'_>, yes: bool) -> Result<(), Problem> {
    if yes {
        return Ok(());
    }
    let Asked {
        verb,
        object,
        loss,
        sure,
    } = asked;
    let refused = |cause: String| Problem {
        exit: Exit::Refused,
        object: object.clone(),
        cause,
        next: sure.clone(),
    };
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(refused(format!(
            "{verb} cannot be taken back and there is no terminal to ask on; nothing was done"
        )));
    }
    let question = format!("{verb} {}? {loss} type yes: ", printable(object));
    let mut stderr = io::stderr();
    let mut reply = String::new();
    let answered = stderr
        .write_all(question.as_bytes())
        .and_then(|()| stderr.flush())
        .and_then(|()| {
            io::stdin()
                .lock()
                .take(REPLY_BYTES_MAX)
                .read_line(&mut reply)
        });
    match answered {
        Ok(_) if reply.trim() == "yes" => Ok(()),
        Ok(_) => Err(refused(format!(
            "{verb} was not confirmed; nothing was done"
        ))),
        Err(error) => Err(refused(format!(
            "the question could not be asked: {error}; nothing was done"
        ))),
    }
}

/// Writes data to standard output.
fn print(data: &[u8]) -> Result<(), Stop> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(data)?;
    Ok(stdout.flush()?)
}

/// Writes a line for people to standard error, unless `--quiet`; errors of the write are ignored.
fn say(global: &Global, line: &str) {
    if !global.quiet {
        let _ = writeln!(io::stderr(), "{}", printable(line));
    }
}
