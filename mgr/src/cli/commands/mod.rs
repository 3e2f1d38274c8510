//! Runs the commands: sends their requests to shuntd, and shows the answers. One module for each
//! group of commands, as in [`super::args`].

mod course;
mod end;
mod record;
mod session;
mod show;
mod volume;

use std::path::Path;

use migration_proto::manager::{DoneRecord, JSON_SCHEMA, Line, Request, Response};

use crate::cli::args::{Arguments, Command, Global};
use crate::cli::ask::{self, Shuntd};
use crate::cli::client::Limits;
use crate::cli::documents;
use crate::cli::output::{print, say};
use crate::cli::problem::{Problem, Stop};

/// Runs the command that the arguments name.
pub(super) fn run(arguments: Arguments) -> Result<(), Stop> {
    let Arguments { global, command } = arguments;
    match command {
        Command::Volume(command) => volume::run(&global, command),
        Command::Session(command) => session::run(&global, command),
        Command::Show(command) => show::run(&global, command),
        Command::Course(command) => course::run(&global, command),
        Command::End(command) => end::run(&global, command),
        Command::Record(command) => record::run(&global, command),
        Command::Completions { shell } => print(&documents::completions(shell)),
        Command::Man { directory } => man(&global, &directory),
    }
}

pub(super) fn shuntd(global: &Global) -> Shuntd {
    Shuntd::new(global.socket(), Limits::default())
}

/// Sends a request that changes something, and shows the messages of the answer.
pub(super) fn change(global: &Global, request: &Request) -> Result<(), Stop> {
    let (changed, messages) = match shuntd(global).ask(request)? {
        Response::Done { changed, messages } => (changed, messages),
        Response::Records { .. } | Response::Events { .. } | Response::Failed(_) => {
            return Err(ask::wrong_answer().into());
        }
    };
    if global.json {
        let record = DoneRecord {
            schema: JSON_SCHEMA,
            changed,
            messages: &messages,
        };
        return print(Line::Done(record).text().as_bytes());
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
