//! The answers of `shuntd`, and its errors.

use serde::{Deserialize, Serialize};

use super::cursor::Cursor;
use super::records::Record;

/// The answer to a [`Request`](super::Request).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "kebab-case")]
pub enum Response {
    /// The request was done.
    Done {
        /// Whether anything changed; false if it had been done before.
        changed: bool,
        /// What happened, for people; one line each.
        messages: Vec<String>,
    },
    /// The records that were asked for.
    Records {
        /// The records, in the order in which they are to be printed.
        records: Vec<Record>,
    },
    /// The events after the last answer, or the current state.
    Events {
        /// The value of [`Request::Events::after`](super::Request::Events::after) for the next
        /// request.
        next: u64,
        /// The place in the history up to which the records have everything.
        cursor: Cursor,
        /// Whether the records are the current state: at the beginning, and when events were
        /// missed.
        present: bool,
        /// The records, in the order in which they are to be printed; none if there was no event.
        records: Vec<Record>,
    },
    /// The request was refused or failed.
    Failed(Failure),
}

/// An error as the operator reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The kind of failure; it decides the exit code.
    pub kind: FailureKind,
    /// What the error is about, such as `volume db` or `session s1, pair db`.
    pub object: String,
    /// What was found or what failed.
    pub cause: String,
    /// What the operator can do now.
    pub next: String,
}

/// The kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// Something failed on the way.
    Failed,
    /// A safety check or the current state forbids it; nothing changed.
    Refused,
    /// There is no such volume or session.
    NotFound,
}
