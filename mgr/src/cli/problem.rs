//! What the operator reads when a command does not end well.

use std::io::{self, Write};

use migration_proto::manager::{Failure, FailureKind, JSON_SCHEMA};
use serde::Serialize;

use super::exit::Exit;
use crate::units::printable;

/// A command that did not end well: the object, the cause, and the next command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Decides the exit code and the `"kind"` of the record.
    pub exit: Exit,
    /// What it is about, such as `session s1`.
    pub object: String,
    /// What was found or what failed.
    pub cause: String,
    /// What the operator can do now.
    pub next: String,
}

/// Why a command stops before its end.
#[derive(Debug)]
pub enum Stop {
    /// The operator is told.
    Problem(Problem),
    /// The reader of standard output went away, as `head` does; there is nobody to tell.
    PipeClosed,
}

#[derive(Serialize)]
struct ErrorRecord<'a> {
    r#type: &'static str,
    schema: u32,
    kind: &'static str,
    object: &'a str,
    cause: &'a str,
    next: &'a str,
}

impl Problem {
    /// Something that broke on the way.
    pub fn failed(
        object: impl Into<String>,
        cause: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        Self {
            exit: Exit::Failed,
            object: object.into(),
            cause: cause.into(),
            next: next.into(),
        }
    }

    /// The same problem with another exit code.
    #[must_use]
    pub fn with_exit(self, exit: Exit) -> Self {
        Self { exit, ..self }
    }

    /// Tells the operator, or with `json` the program that reads standard error.
    ///
    /// A standard error that cannot be written to is ignored: the exit code still tells.
    pub fn report(&self, json: bool) {
        let mut stderr = io::stderr().lock();
        let _ = stderr.write_all(self.text(json).as_bytes());
    }

    /// What [`Problem::report`] writes.
    #[must_use]
    pub fn text(&self, json: bool) -> String {
        if json {
            let record = ErrorRecord {
                r#type: "error",
                schema: JSON_SCHEMA,
                kind: self.exit.row().kind,
                object: &self.object,
                cause: &self.cause,
                next: &self.next,
            };
            let line = serde_json::to_string(&record).expect("strings and numbers are always JSON");
            return line + "\n";
        }
        let mut text = format!(
            "shunt: {}: {}\n",
            printable(&self.object),
            printable(&self.cause)
        );
        if !self.next.is_empty() {
            text.push_str(&format!("next: {}\n", printable(&self.next)));
        }
        text
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let exit = match failure.kind {
            FailureKind::Failed => Exit::Failed,
            FailureKind::Refused => Exit::Refused,
            FailureKind::NotFound => Exit::NotFound,
        };
        Self {
            exit,
            object: failure.object,
            cause: failure.cause,
            next: failure.next,
        }
    }
}

impl From<Problem> for Stop {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

/// A write to standard output that failed.
impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::PipeClosed;
        }
        Self::Problem(Problem::failed(
            "standard output",
            format!("cannot be written: {error}"),
            "make room there, then shunt status",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_shuntd_cannot_move_the_cursor() {
        let problem = Problem::failed("volume \u{1b}[2J", "a\nb", "");
        assert_eq!(problem.text(false), "shunt: volume \\u{1b}[2J: a\\nb\n");
    }
}
