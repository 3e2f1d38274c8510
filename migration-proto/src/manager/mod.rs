//! The requests of `shunt` to `shuntd`, and the answers.

mod cursor;
mod history;
mod line;
mod options;
mod records;
mod request;
mod response;
#[cfg(test)]
mod schema;

pub use cursor::Cursor;
pub use history::{CopierTask, CutoverMisfit, HistoryEvent, LimitChange};
pub use line::{DoneRecord, ErrorRecord, EventLine, Line, LiveRecord};
pub use options::{
    CutoverAction, CutoverOptions, EVERY_SECONDS_MAX, Hours, PAIRS_MAX_DEFAULT, PAIRS_MAX_MAX,
    PRIORITY_DEFAULT, PRIORITY_MAX, RetireHow, SessionLimits, SessionMode, SessionOptions,
    SwitchPairs, SwitchPolicy, VerifyPolicy,
};
pub use records::{
    ApplicationRecord, CUTOVER_OVER, CutoverRecord, EventRecord, HostRecord, JSON_SCHEMA,
    PairRecord, PlanRecord, Record, SampleRecord, SessionRecord, UnreadablePart, Verification,
    VolumeRecord,
};
pub use request::{EVENTS_WAIT_MS, PairSpec, Request};
pub use response::{Failure, FailureKind, Response};
