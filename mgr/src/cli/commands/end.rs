//! Runs the commands that ask for confirmation.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use migration_proto::manager::{Request, Response};

use super::{change, shuntd};
use crate::cli::args::{self, EndCommand, Global};
use crate::cli::ask;
use crate::cli::exit::Exit;
use crate::cli::problem::{Problem, Stop};
use crate::units::printable;

/// How much of the operator's answer to a question is read, in bytes.
const REPLY_BYTES_MAX: u64 = 64;

/// Runs a command of this group.
pub(super) fn run(global: &Global, command: EndCommand) -> Result<(), Stop> {
    match command {
        EndCommand::Commit { session, yes } => {
            let loss = "The source leg will no longer be a copy.";
            confirm(&Asked::of_session("commit", &session, loss), yes)?;
            change(global, &Request::Commit { session })
        }
        EndCommand::Cancel { session, yes } => {
            let loss = "What was copied to the target is dropped.";
            confirm(&Asked::of_session("cancel", &session, loss), yes)?;
            change(global, &Request::Cancel { session })
        }
        EndCommand::Retire {
            session,
            how,
            take_back,
            yes,
        } => {
            let how = (!take_back).then_some(how);
            retire(global, session, how, yes)
        }
        EndCommand::Recover {
            volume,
            authoritative,
            against_record,
            locks: _,
            yes,
        } => match volume.zip(authoritative) {
            Some((volume, leg)) => recover(global, &volume, leg, against_record, yes),
            None => free_locks(global, yes),
        },
    }
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
