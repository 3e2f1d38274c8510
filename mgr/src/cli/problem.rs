//! The error that the operator reads when a command fails or is refused.

use std::io::{self, Write};

use migration_proto::manager::{ErrorRecord, Failure, FailureKind, JSON_SCHEMA, Line};

use super::exit::Exit;
use crate::units::printable;

/// Why a command failed or was refused: the object, the cause, and the next command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The exit code, and the `"kind"` of the error record.
    pub exit: Exit,
    /// The object of the command, such as `session s1`.
    pub object: String,
    /// What was found or what failed.
    pub cause: String,
    /// What the operator can do now.
    pub next: String,
}

/// Why a command stops before its end.
#[derive(Debug)]
pub enum Stop {
    /// A problem, to be reported to the operator.
    Problem(Problem),
    /// The reader of standard output has ended, as `head` does. This is not reported.
    PipeClosed,
}

impl Problem {
    /// A problem with the exit code [`Exit::Failed`].
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

    /// Writes the problem to standard error: as text, or with `json` as a record.
    ///
    /// If standard error cannot be written to, the exit code is the only report.
    pub fn report(&self, json: bool) {
        let mut stderr = io::stderr().lock();
        let _ = stderr.write_all(self.text(json).as_bytes());
    }

    /// The text that [`Problem::report`] writes.
    #[must_use]
    pub fn text(&self, json: bool) -> String {
        if json {
            let record = ErrorRecord {
                schema: JSON_SCHEMA,
                kind: self.exit.row().kind,
                object: &self.object,
                cause: &self.cause,
                next: &self.next,
            };
            return Line::Error(record).text();
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

/// Converts the error of a write to standard output.
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
