//! The lines that `shunt` prints with `--json`. `docs/schema` has a JSON Schema for each type of
//! line, made from these types.

use serde::Serialize;

use super::cursor::Cursor;
use super::records::{
    EventRecord, HostRecord, PairRecord, PlanRecord, Record, SampleRecord, SessionRecord,
    VolumeRecord,
};

/// One line of `--json`.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Line<'a> {
    /// This host.
    Host(&'a HostRecord),
    /// A volume.
    Volume(&'a VolumeRecord),
    /// A session.
    Session(&'a SessionRecord),
    /// A pair of a session.
    Pair(&'a PairRecord),
    /// An event.
    Event(EventLine<'a>),
    /// The mark after the current state.
    Live(LiveRecord),
    /// A sample of a pair's progress.
    Sample(&'a SampleRecord),
    /// The plan of a pair.
    Plan(&'a PlanRecord),
    /// The answer to a request that changes something.
    Done(DoneRecord<'a>),
    /// An error.
    Error(ErrorRecord<'a>),
}

/// An event, as `shunt` prints it.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct EventLine<'a> {
    /// The event.
    #[serde(flatten)]
    pub record: &'a EventRecord,
    /// The sentence that `shunt history` prints. It is for people: programs use the code and the
    /// fields.
    pub what: String,
}

/// The mark of `shunt events` between the current state and the events that follow: the records
/// before it are the current state, the events after it happened later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LiveRecord {
    /// The number of the schema of the records, `JSON_SCHEMA`.
    pub schema: u32,
    /// The place in the history up to which the current state has everything; `shunt events
    /// --after` continues from there.
    #[cfg_attr(test, schemars(with = "String"))]
    pub cursor: Cursor,
}

/// The answer to a request that changes something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DoneRecord<'a> {
    /// The number of the schema of the records, `JSON_SCHEMA`.
    pub schema: u32,
    /// Whether anything changed; false if it had been done before.
    pub changed: bool,
    /// What happened, for people; one line each.
    pub messages: &'a [String],
}

/// Why a command failed or was refused. It is printed to standard error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ErrorRecord<'a> {
    /// The number of the schema of the records, `JSON_SCHEMA`.
    pub schema: u32,
    /// The kind of the error; each kind has an exit code, which the man page lists.
    pub kind: &'a str,
    /// The object of the command, such as `session s1`.
    pub object: &'a str,
    /// What was found or what failed.
    pub cause: &'a str,
    /// What the operator can do now, usually a command.
    pub next: &'a str,
}

impl<'a> Line<'a> {
    /// The line for a record. `sentence` makes the sentence for an event.
    pub fn of(record: &'a Record, sentence: impl Fn(&EventRecord) -> String) -> Self {
        match record {
            Record::Host(record) => Self::Host(record),
            Record::Volume(record) => Self::Volume(record),
            Record::Session(record) => Self::Session(record),
            Record::Pair(record) => Self::Pair(record),
            Record::Event(record) => Self::Event(EventLine {
                what: sentence(record),
                record,
            }),
            Record::Sample(record) => Self::Sample(record),
            Record::Plan(record) => Self::Plan(record),
        }
    }

    /// The line as text, with its end.
    ///
    /// # Panics
    /// Never: all records are numbers, names and text.
    #[must_use]
    pub fn text(&self) -> String {
        serde_json::to_string(self).expect("records are JSON") + "\n"
    }
}
