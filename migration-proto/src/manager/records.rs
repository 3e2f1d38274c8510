//! The records in an answer: what `shunt` prints with `--json`.

use std::path::PathBuf;

use migration_core::verify::Found;
use serde::{Deserialize, Serialize};

use super::cursor::Cursor;
use super::history::HistoryEvent;
use super::options::{RetireHow, SessionOptions};

use crate::luns::LunPaths;
use crate::route::{Route, Side};

/// The schema number of every record that `--json` prints.
pub const JSON_SCHEMA: u32 = 3;

/// The result of comparing both legs of a pair. All bytes are counted in whole regions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Verification {
    /// When the comparison ended, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// How much was compared, with either result.
    pub compared_bytes: u64,
    /// How much of that differed.
    pub differing_bytes: u64,
    /// The address of the first region that differed, in bytes from the start of the volume; `null`
    /// if none did.
    pub first_difference_bytes: Option<u64>,
    /// How much was not compared: written all the time, dirty, or unreadable.
    pub unknown_bytes: u64,
    /// Whether differing regions were to be copied again.
    pub repaired: bool,
}

impl Verification {
    /// What the comparison says about the legs.
    #[must_use]
    pub const fn found(&self) -> Found {
        Found::of(self.differing_bytes, self.unknown_bytes, self.repaired)
    }

    /// Whether the whole volume was compared, and nothing differs any more.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        matches!(self.found(), Found::Clean)
    }

    /// Whether the legs are known to differ, and differing regions were not copied again.
    #[must_use]
    pub const fn is_different(&self) -> bool {
        matches!(self.found(), Found::Different)
    }
}

/// One line of `shunt status --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Record {
    /// This host.
    Host(HostRecord),
    /// A volume.
    Volume(VolumeRecord),
    /// A session.
    Session(SessionRecord),
    /// A pair of a session.
    Pair(PairRecord),
    /// An event.
    Event(EventRecord),
    /// A sample of a pair's progress.
    Sample(SampleRecord),
    /// The plan of a pair.
    Plan(PlanRecord),
}

/// This host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HostRecord {
    /// The number of the schema of the records, `JSON_SCHEMA`.
    pub schema: u32,
    /// How many pairs of all sessions are copied at once, at most.
    pub pairs_max: u32,
    /// The number of pairs that are being copied.
    pub pairs_copied: u32,
    /// The number of pairs that wait for their turn.
    pub pairs_queued: u32,
    /// The problems with shuntd's own folders, each with what to do next.
    pub problems: Vec<String>,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct VolumeRecord {
    /// The number of the schema of the records, `JSON_SCHEMA`.
    pub schema: u32,
    /// The name of the volume.
    pub volume: String,
    /// `attached`, `recovering` (its ublk-target is being restarted) or `failed`.
    pub state: String,
    /// The stable name, `/dev/shunt/NAME`.
    pub device: PathBuf,
    /// `/dev/ublkbN`; `null` while there is none.
    pub kernel_device: Option<PathBuf>,
    /// The LUNs of the authoritative leg.
    pub lun: LunPaths,
    /// The size of the volume, in bytes.
    pub size_bytes: u64,
    /// The process id of the volume's ublk-target; `null` while shuntd is not connected to it.
    pub pid: Option<u32>,
    /// How often the volume's ublk-target was restarted.
    pub restarts: u64,
    /// The route; `null` while ublk-target does not answer.
    pub route: Option<Route>,
    /// The LUNs of the volume (of both legs, in a session that has not ended) that have no name of
    /// their own and were accepted all the same.
    pub weak_identity: Vec<PathBuf>,
    /// The LUNs of the volume that are larger than when they were recorded.
    pub grown: Vec<PathBuf>,
    /// The problem of the volume; `null` if it has none.
    pub problem: Option<String>,
}

/// A session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SessionRecord {
    /// The number of the schema of the records, `JSON_SCHEMA`.
    pub schema: u32,
    /// The name of the session.
    pub session: String,
    /// The UUID of the session; no other session has it, before or after this one.
    pub id: String,
    /// The state of the session: that of the pair which is furthest behind.
    pub state: String,
    /// The number of pairs.
    pub pairs: u32,
    /// The verbs that are allowed now.
    pub allowed: Vec<String>,
    /// The options of the session.
    pub options: SessionOptions,
    /// The cutover in progress, or the last one if it ended without success; `null` otherwise.
    pub cutover: Option<CutoverRecord>,
    /// When the session was created, in milliseconds since the Unix epoch.
    pub created_at_ms: u64,
}

/// The phase of a cutover that ended without success.
pub const CUTOVER_OVER: &str = "over";

/// A cutover of a session that tracks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CutoverRecord {
    /// `baseline`, `update`, `administrative`, `cutover`, or `over`.
    pub phase: String,
    /// How many attempts have failed.
    pub failures: u32,
    /// Why the cutover is over, or why the last attempt failed; `null` if none failed.
    pub cause: Option<String>,
    /// How long requests may be held, in milliseconds.
    pub max_pause_ms: u64,
    /// The predicted pause: how long requests would be held now, in microseconds; `null` while
    /// unknown.
    pub predicted_pause_us: Option<u64>,
    /// What applications write, in bytes a second.
    pub write_bytes_per_second: u64,
    /// What can be copied, in bytes a second.
    pub copy_bytes_per_second: u64,
    /// The rate to which writes are slowed, in bytes a second; `null` if they are not.
    pub throttle_bytes_per_second: Option<u64>,
}

/// A pair.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PairRecord {
    /// The number of the schema of the records, `JSON_SCHEMA`.
    pub schema: u32,
    /// The session.
    pub session: String,
    /// The volume.
    pub volume: String,
    /// The name of the state: `setup`, `queued`, `syncing`, ... (see `shunt wait --help`).
    pub state: String,
    /// The source.
    pub source: LunPaths,
    /// The target.
    pub target: LunPaths,
    /// The authoritative leg.
    pub authoritative: Side,
    /// The LUNs of the pair that have no name of their own and were accepted all the same.
    pub weak_identity: Vec<PathBuf>,
    /// The size of the volume, in bytes.
    pub size_bytes: u64,
    /// What is still to be copied, in bytes.
    pub dirty_bytes: u64,
    /// How much of each part of the volume is still to be copied, in percent, rounded up: at most
    /// [`MAP_PARTS`](crate::target::MAP_PARTS) equal parts. `null` while ublk-target does not
    /// answer, before the start and after the end.
    pub dirty_percent: Option<Vec<u8>>,
    /// What has been copied since the start of the session, in bytes.
    pub copied_bytes: u64,
    /// The current rate of the copy or of the comparison, in bytes a second; `null` while there is
    /// none.
    pub rate_bytes_per_second: Option<u64>,
    /// How long the copy or comparison still takes at that rate, in seconds; `null` while unknown.
    pub eta_seconds: Option<u64>,
    /// What has been compared so far, in bytes; `null` while the legs are not being compared.
    pub compared_bytes: Option<u64>,
    /// The result of the last whole comparison; `null` if there was none.
    pub verification: Option<Verification>,
    /// The parts that the source could not read; they are zeroes on the target
    /// ([`SessionOptions::accept_unreadable_bytes`]).
    pub unreadable: Vec<UnreadablePart>,
    /// How the leg that is no longer used was made inaccessible; `null` if it was not.
    pub retired: Option<RetireHow>,
    /// The last pause that a change of the route caused, in microseconds; `null` if there was none.
    pub last_pause_us: Option<u64>,
    /// The load of applications; `null` while ublk-target does not answer.
    pub application: Option<ApplicationRecord>,
    /// While the pair is split: the instant that the target is a copy of, in milliseconds since
    /// the Unix epoch; `null` otherwise.
    pub copy_of_at_ms: Option<u64>,
    /// The problem of the pair; `null` if it has none.
    pub problem: Option<String>,
}

/// A part of a volume that its source could not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct UnreadablePart {
    /// The start of the part, in bytes.
    pub offset_bytes: u64,
    /// The length of the part, in bytes.
    pub length_bytes: u64,
}

/// The plan of a pair, as far as a short check can find out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PlanRecord {
    /// The number of the schema of the records, `JSON_SCHEMA`.
    pub schema: u32,
    /// The volume.
    pub volume: String,
    /// The source.
    pub source: LunPaths,
    /// The target.
    pub target: LunPaths,
    /// The size of the volume, in bytes.
    pub size_bytes: u64,
    /// How fast the source was read, in bytes a second; `null` if that is not known.
    pub source_bytes_per_second: Option<u64>,
    /// How fast the target was read, in bytes a second; the target is not written for the plan.
    /// `null` if that is not known.
    pub target_bytes_per_second: Option<u64>,
    /// What applications write, in bytes a second; `null` if that is not known.
    pub write_bytes_per_second: Option<u64>,
    /// How long the copy may take, in seconds; `null` if that is not known.
    pub copy_seconds: Option<u64>,
    /// How long a switch may hold requests, in microseconds; `null` if that is not known.
    pub pause_us: Option<u64>,
    /// The reasons why `create` would refuse this pair; empty if it would accept the pair.
    pub problems: Vec<String>,
    /// Other things that the operator should know.
    pub notes: Vec<String>,
}

/// The load of applications on a volume, in the last second or two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ApplicationRecord {
    /// What was read, in bytes a second.
    pub read_bytes_per_second: u64,
    /// What was written, in bytes a second.
    pub write_bytes_per_second: u64,
    /// The median latency of reads and writes, in microseconds; `null` if there were none.
    pub median_us: Option<u64>,
    /// The 99th percentile of that latency, in microseconds; `null` if there were none.
    pub p99_us: Option<u64>,
    /// The 99th percentile while nothing is copied, in microseconds; `null` if it was not measured.
    /// It is measured for [`SessionOptions::max_latency_impact_percent`].
    pub undisturbed_p99_us: Option<u64>,
}

/// A sample of a pair's progress in the seconds before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SampleRecord {
    /// The number of the schema of the records, `JSON_SCHEMA`.
    pub schema: u32,
    /// When the sample was taken, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// The volume.
    pub volume: String,
    /// What was still to be copied, in bytes.
    pub dirty_bytes: u64,
    /// The rate of the copy, in bytes a second.
    pub copy_bytes_per_second: u64,
    /// The load of applications.
    pub application: ApplicationRecord,
    /// The rate to which writes were slowed, in bytes a second; 0: they were not slowed.
    pub throttle_bytes_per_second: u64,
}

/// An event. Its JSON has the code and the fields of [`HistoryEvent`] beside the fields of this
/// record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct EventRecord {
    /// The number of the schema of the records, `JSON_SCHEMA`.
    pub schema: u32,
    /// When the event happened, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// The place in the history after this event; `shunt events --after` continues from there. A
    /// change of a state is not in the history, and has the cursor of the event before it.
    #[cfg_attr(test, schemars(with = "String"))]
    pub cursor: Cursor,
    /// The session that the event concerns; `null` if it concerns none.
    pub session: Option<String>,
    /// The volume that the event concerns; `null` if it concerns none.
    pub volume: Option<String>,
    /// The number of the user who asked for the action; `null` if `shuntd` acted automatically.
    pub who: Option<u32>,
    /// What happened.
    #[serde(flatten)]
    pub event: HistoryEvent,
}
