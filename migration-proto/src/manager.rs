//! The requests of `shunt` to `shuntd`, and the answers.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::luns::LunPaths;
use crate::route::{Route, Side};
use crate::target::{CopyMode, OnAuthoritativeFailure};

/// The schema number of every record that `--json` prints.
pub const JSON_SCHEMA: u32 = 1;

/// A request to `shuntd`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Put a volume over a LUN. Answer: [`Response::Done`].
    Attach {
        /// The name of the volume.
        volume: String,
        /// The LUNs of the volume, as absolute paths.
        luns: LunPaths,
        /// Accept LUNs that have no name of their own. If the volume is attached already: confirm
        /// that the LUNs that are at these paths now are those of its LUNs (of either leg) that
        /// were accepted in this way.
        accept_weak_identity: bool,
    },
    /// Take a volume away. Refused while it is open or part of a live session.
    Detach {
        /// The volume.
        volume: String,
    },
    /// Record a session.
    Create {
        /// The name of the session.
        session: String,
        /// The pairs of the session.
        pairs: Vec<PairSpec>,
        /// The options of the session.
        options: SessionOptions,
    },
    /// Begin to mirror and copy.
    Start {
        /// The session.
        session: String,
    },
    /// Stop copying; writes are still mirrored where the regions are clean.
    Pause {
        /// The session.
        session: String,
    },
    /// Continue copying, also after the mirror leg failed.
    Resume {
        /// The session.
        session: String,
    },
    /// Make the target authoritative.
    Switch {
        /// The session.
        session: String,
        /// How long requests may be held, in milliseconds.
        max_pause_ms: u64,
    },
    /// Make the source authoritative again.
    Undo {
        /// The session.
        session: String,
        /// How long requests may be held, in milliseconds.
        max_pause_ms: u64,
    },
    /// Detach the targets of all pairs, as copies of their sources at one instant.
    Split {
        /// The session.
        session: String,
        /// How long requests may be held, in milliseconds.
        max_pause_ms: u64,
    },
    /// End the migration on the target. Cannot be taken back.
    Commit {
        /// The session.
        session: String,
    },
    /// End the migration on the source.
    Cancel {
        /// The session.
        session: String,
    },
    /// Change limits of a session that has not ended.
    SetSession {
        /// The session.
        session: String,
        /// The limits to change.
        limits: SessionLimits,
    },
    /// Change the limits of this host.
    SetHost {
        /// How many pairs of all sessions are copied at once, 1 to [`PAIRS_MAX_MAX`].
        pairs_max: u32,
    },
    /// Let the sessions that wait for an event be switched as soon as they are in sync.
    Signal {
        /// The event.
        event: String,
    },
    /// Compare both legs of each pair while applications continue.
    Verify {
        /// The session.
        session: String,
        /// Copy differing regions again.
        repair: bool,
    },
    /// Make a new map file for a volume whose map file is lost or damaged. The volume uses one leg
    /// from then on.
    Recover {
        /// The volume.
        volume: String,
        /// The leg whose data is right.
        authoritative: Side,
        /// Recover also if the other leg was authoritative when the volume was last seen.
        against_record: bool,
        /// Change nothing; only say what would be done.
        dry_run: bool,
    },
    /// Free the locks on LUNs whose holder is gone.
    FreeLocks {
        /// Change nothing; only say which locks would be freed. `changed` in the answer says
        /// whether there are any.
        dry_run: bool,
    },
    /// Check all that `Create` would check, and estimate how long the session would take. Changes
    /// nothing, but keeps the estimate. Answer: [`Response::Records`] of [`Record::Plan`].
    Plan {
        /// The name of the session.
        session: String,
        /// The pairs of the session.
        pairs: Vec<PairSpec>,
        /// The options of the session.
        options: SessionOptions,
    },
    /// Make the legs that an ended session left behind inaccessible.
    Retire {
        /// The session.
        session: String,
        /// The method.
        how: RetireHow,
    },
    /// Make the legs that an ended session left behind accessible again, as far as that is
    /// possible.
    TakeBack {
        /// The session.
        session: String,
    },
    /// Report all volumes, sessions and pairs, or one session. Answer: [`Response::Records`].
    Status {
        /// Only this session.
        session: Option<String>,
    },
    /// Report the history: who did what, and when. Answer: [`Response::Records`] of
    /// [`Record::Event`].
    History {
        /// Only this session.
        session: Option<String>,
    },
    /// Report the progress of the pairs of a session. Answer: [`Response::Records`] of
    /// [`Record::Sample`], in the order of time.
    Samples {
        /// The session.
        session: String,
    },
    /// Report the current state, then the events that follow. Answer: [`Response::Events`], after
    /// [`EVENTS_WAIT_MS`] at the latest.
    Events {
        /// Only this session.
        session: Option<String>,
        /// [`Response::Events::next`] of the last answer; `None` asks for the current state.
        after: Option<u64>,
    },
}

/// How long the answer to [`Request::Events`] may take while there is no event, in milliseconds.
pub const EVENTS_WAIT_MS: u64 = 10_000;

/// The default priority of a session.
pub const PRIORITY_DEFAULT: u8 = 50;
/// The highest priority of a session.
pub const PRIORITY_MAX: u8 = 100;

/// The default for the most pairs that are copied at once on a host.
pub const PAIRS_MAX_DEFAULT: u32 = 4;
/// The highest limit of pairs that are copied at once on a host.
pub const PAIRS_MAX_MAX: u32 = 1024;

/// The limits of a session that can be changed while it lives; `None` changes nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SessionLimits {
    /// As [`SessionOptions::rate_bytes_per_second`].
    pub rate_bytes_per_second: Option<u64>,
    /// As [`SessionOptions::priority`].
    pub priority: Option<u8>,
    /// As [`SessionOptions::on_authoritative_failure`].
    pub on_authoritative_failure: Option<OnAuthoritativeFailure>,
    /// As [`SessionOptions::switch`].
    pub switch: Option<SwitchPolicy>,
    /// As [`SessionOptions::switch_pairs`].
    pub switch_pairs: Option<SwitchPairs>,
    /// As [`SessionOptions::max_latency_impact_percent`].
    pub max_latency_impact_percent: Option<u32>,
    /// As [`SessionOptions::accept_unreadable_bytes`].
    pub accept_unreadable_bytes: Option<u64>,
    /// As [`SessionOptions::mode`].
    pub mode: Option<SessionMode>,
    /// As [`SessionOptions::every_seconds`].
    pub every_seconds: Option<u64>,
    /// As [`SessionOptions::hours`].
    pub hours: Option<Hours>,
    /// As [`SessionOptions::start_at_ms`].
    pub start_at_ms: Option<u64>,
    /// As [`SessionOptions::max_duration_seconds`].
    pub max_duration_seconds: Option<u64>,
    /// As [`CutoverOptions::action`].
    pub cutover_action: Option<CutoverAction>,
    /// As [`CutoverOptions::attempts`].
    pub attempts: Option<u32>,
    /// As [`CutoverOptions::duration_seconds`].
    pub cutover_duration_seconds: Option<u64>,
    /// As [`CutoverOptions::floor_bytes_per_second`].
    pub throttle_floor_bytes_per_second: Option<u64>,
}

/// When a session is switched.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SwitchPolicy {
    /// Only when the operator asks for it.
    #[default]
    Manual,
    /// As soon as all pairs are in sync.
    WhenSynced,
    /// As soon as all pairs are in sync, but not before this time, in milliseconds since 1970.
    At(u64),
    /// As soon as all pairs are in sync after this event was signalled.
    OnEvent(String),
}

/// Which pairs of a session are switched together when the switch is automatic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SwitchPairs {
    /// All of them, or none.
    #[default]
    Together,
    /// Each one as soon as it is in sync.
    Each,
}

/// How a session that tracks is switched: writes are slowed until the rest fits into the pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CutoverOptions {
    /// What follows when an attempt fails.
    pub action: CutoverAction,
    /// How many attempts there may be.
    pub attempts: u32,
    /// How long writes may be slowed in one attempt, in seconds.
    pub duration_seconds: u64,
    /// The lowest rate to which writes are slowed, in bytes a second.
    pub floor_bytes_per_second: u64,
}

impl Default for CutoverOptions {
    fn default() -> Self {
        Self {
            action: CutoverAction::Retry,
            attempts: 3,
            duration_seconds: 120,
            floor_bytes_per_second: 1 << 20,
        }
    }
}

/// How a leg that is no longer used is made inaccessible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RetireHow {
    /// The kernel refuses writes to the LUN, until the next boot.
    ReadOnly,
    /// The kernel refuses every request to the LUN, until the next boot. SCSI disks only.
    Offline,
    /// shuntd keeps the LUN open exclusively, so that it cannot be mounted while shuntd runs.
    Hold,
    /// The signatures by which programs recognise the contents are removed from the LUN, and kept
    /// so that they can be put back.
    WipeSignatures,
    /// All blocks of the LUN are deallocated. Cannot be taken back.
    Discard,
}

impl RetireHow {
    /// The name that the operator types.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ReadOnly => "read-only",
            Self::Offline => "offline",
            Self::Hold => "hold",
            Self::WipeSignatures => "wipe-signatures",
            Self::Discard => "discard",
        }
    }
}

/// Hours of the day, in local time: from one minute of the day to a later one, or over midnight to
/// an earlier one. Two equal minutes mean the whole day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Hours {
    /// The first minute of the hours, counted from midnight.
    pub from_minute: u16,
    /// The first minute after the hours, counted from midnight.
    pub to_minute: u16,
}

impl Hours {
    /// Whether the hours are the whole day.
    #[must_use]
    pub const fn is_always(self) -> bool {
        self.from_minute == self.to_minute
    }

    /// Whether `minute` of the day is within the hours.
    #[must_use]
    pub const fn contains(self, minute: u16) -> bool {
        let Self {
            from_minute: from,
            to_minute: to,
        } = self;
        if from < to {
            from <= minute && minute < to
        } else {
            from <= minute || minute < to || self.is_always()
        }
    }
}

/// The longest interval between splits, and the longest maximum duration: a year, in seconds.
pub const EVERY_SECONDS_MAX: u64 = 366 * 24 * 3600;

/// The purpose of the targets of a session, and what writes of applications do to the targets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SessionMode {
    /// The data moves to the targets. Writes are done there too, where the legs are equal.
    #[default]
    Mirror,
    /// The data moves to the targets. Before the switch, what was written is copied in passes.
    Track,
    /// The targets become copies at an instant: the session is split, and never switched. Writes as
    /// in `Mirror`.
    Copy,
}

impl SessionMode {
    /// The name that the operator types.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mirror => "mirror",
            Self::Track => "track",
            Self::Copy => "copy",
        }
    }

    /// What a write does to the mirror leg.
    #[must_use]
    pub const fn copy_mode(self) -> CopyMode {
        match self {
            Self::Mirror | Self::Copy => CopyMode::Mirror,
            Self::Track => CopyMode::Track,
        }
    }
}

/// What follows when an attempt to cut over fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CutoverAction {
    /// Try again, up to the number of attempts that is allowed.
    #[default]
    Retry,
    /// Do not slow writes again; cut over when the rest fits without that.
    Defer,
    /// Do nothing more; the operator decides.
    Abort,
    /// As `retry`; when all attempts have failed, cut over with requests held up to
    /// [`FORCED_HOLD_NANOSECONDS`](migration_core::cutover::FORCED_HOLD_NANOSECONDS).
    Force,
    /// As `retry`, but only measure until the operator asks for the switch once more.
    Wait,
}

impl CutoverAction {
    /// The name that the operator types.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Defer => "defer",
            Self::Abort => "abort",
            Self::Force => "force",
            Self::Wait => "wait",
        }
    }
}

/// The options of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionOptions {
    /// Accept targets that hold a signature.
    pub overwrite: bool,
    /// Accept targets that have no name of their own.
    pub accept_weak_identity: bool,
    /// Find zeroes while copying and deallocate them on a target that can do that.
    pub detect_zeroes: bool,
    /// What to do when an authoritative leg fails.
    pub on_authoritative_failure: OnAuthoritativeFailure,
    /// What a copy has to prove.
    pub verify: VerifyPolicy,
    /// The highest rate at which all pairs together are copied, in bytes a second; 0: unlimited.
    pub rate_bytes_per_second: u64,
    /// The priority of the session. Waiting pairs start in the order of priority, the highest
    /// first; at most [`PRIORITY_MAX`].
    pub priority: u8,
    /// When the session is switched, or split in [`SessionMode::Copy`]. A switch and an undo set
    /// this back to [`SwitchPolicy::Manual`]; so does a split, unless another split is to follow.
    pub switch: SwitchPolicy,
    /// Which pairs are then switched together.
    pub switch_pairs: SwitchPairs,
    /// By how much the copy may raise the 99th percentile of the latency of applications, in
    /// percent of the latency without the copy; 0: unlimited.
    pub max_latency_impact_percent: u32,
    /// How many bytes of a source may be unreadable; they become zeroes on the target. 0: none.
    pub accept_unreadable_bytes: u64,
    /// The purpose of the targets.
    pub mode: SessionMode,
    /// In [`SessionMode::Copy`]: the interval from a split to the next one, in seconds; 0: no next
    /// one. At most [`EVERY_SECONDS_MAX`].
    pub every_seconds: u64,
    /// The hours of the day in which pairs are copied.
    pub hours: Hours,
    /// When the session starts automatically, in milliseconds since 1970; 0: it does not.
    pub start_at_ms: u64,
    /// The maximum duration from the start until all pairs are in sync, in seconds; 0: unlimited.
    /// At most [`EVERY_SECONDS_MAX`]. When the time is over, the session is paused and this is set
    /// to 0.
    pub max_duration_seconds: u64,
    /// How the session is switched while it tracks.
    pub cutover: CutoverOptions,
    /// How the source is automatically made inaccessible when the session is committed; `None`: it
    /// is not.
    pub retire: Option<RetireHow>,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            overwrite: false,
            accept_weak_identity: false,
            detect_zeroes: false,
            on_authoritative_failure: OnAuthoritativeFailure::default(),
            verify: VerifyPolicy::default(),
            rate_bytes_per_second: 0,
            priority: PRIORITY_DEFAULT,
            switch: SwitchPolicy::Manual,
            switch_pairs: SwitchPairs::Together,
            max_latency_impact_percent: 0,
            accept_unreadable_bytes: 0,
            mode: SessionMode::Mirror,
            every_seconds: 0,
            hours: Hours::default(),
            start_at_ms: 0,
            max_duration_seconds: 0,
            cutover: CutoverOptions::default(),
            retire: None,
        }
    }
}

/// What a copy has to prove before it counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VerifyPolicy {
    /// The LUN acknowledged it.
    #[default]
    None,
    /// It reads back as it was written.
    ReadBack,
    /// As `ReadBack`, and the whole volume is compared once before a switch.
    Full,
}

/// The result of comparing both legs of a pair. All bytes are counted in whole regions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verification {
    /// When the comparison ended, in milliseconds since 1970.
    pub at_ms: u64,
    /// How much was compared, with either result.
    pub compared_bytes: u64,
    /// How much of that differed.
    pub differing_bytes: u64,
    /// The address of the first region that differed, in bytes from the start of the volume.
    pub first_difference_bytes: Option<u64>,
    /// How much was not compared: written all the time, dirty, or unreadable.
    pub unknown_bytes: u64,
    /// Whether differing regions were to be copied again.
    pub repaired: bool,
}

impl Verification {
    /// Whether the whole volume was compared, and nothing differs any more.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.unknown_bytes == 0 && !self.is_different()
    }

    /// Whether the legs are known to differ, and differing regions were not copied again.
    #[must_use]
    pub const fn is_different(&self) -> bool {
        self.differing_bytes > 0 && !self.repaired
    }
}

/// One pair of a session to be created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PairSpec {
    /// The volume to move.
    pub volume: String,
    /// The LUNs of the target, as absolute paths.
    pub target: LunPaths,
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "kebab-case", deny_unknown_fields)]
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
        /// The value of [`Request::Events::after`] for the next request.
        next: u64,
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
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
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

/// One line of `shunt status --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
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
#[serde(deny_unknown_fields)]
pub struct HostRecord {
    /// [`JSON_SCHEMA`].
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
#[serde(deny_unknown_fields)]
pub struct VolumeRecord {
    /// [`JSON_SCHEMA`].
    pub schema: u32,
    /// The name of the volume.
    pub volume: String,
    /// `attached`, `recovering` (its ublk-target is being restarted) or `failed`.
    pub state: String,
    /// The stable name, `/dev/shunt/NAME`.
    pub device: PathBuf,
    /// `/dev/ublkbN`, while there is one.
    pub kernel_device: Option<PathBuf>,
    /// The LUNs of the authoritative leg.
    pub lun: LunPaths,
    /// The size of the volume, in bytes.
    pub size_bytes: u64,
    /// The process id of the volume's ublk-target.
    pub pid: Option<u32>,
    /// How often the volume's ublk-target was restarted.
    pub restarts: u64,
    /// The route, if ublk-target answers.
    pub route: Option<Route>,
    /// The LUNs of the volume (of both legs, in a session that has not ended) that have no name of
    /// their own and were accepted all the same.
    pub weak_identity: Vec<PathBuf>,
    /// The LUNs of the volume that are larger than when they were recorded.
    pub grown: Vec<PathBuf>,
    /// The problem of the volume, if it has one.
    pub problem: Option<String>,
}

/// A session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionRecord {
    /// [`JSON_SCHEMA`].
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
    /// The cutover in progress, or the last one if it ended without success.
    pub cutover: Option<CutoverRecord>,
    /// When the session was created, in seconds since 1970.
    pub created_at: u64,
}

/// The phase of a cutover that ended without success.
pub const CUTOVER_OVER: &str = "over";

/// A cutover of a session that tracks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CutoverRecord {
    /// `baseline`, `update`, `administrative`, `cutover`, or [`CUTOVER_OVER`].
    pub phase: String,
    /// How many attempts have failed.
    pub failures: u32,
    /// Why the cutover is over, or why the last attempt failed.
    pub cause: Option<String>,
    /// How long requests may be held, in milliseconds.
    pub max_pause_ms: u64,
    /// The predicted pause: how long requests would be held now, in milliseconds, if known.
    pub predicted_pause_ms: Option<u64>,
    /// What applications write, in bytes a second.
    pub write_bytes_per_second: u64,
    /// What can be copied, in bytes a second.
    pub copy_bytes_per_second: u64,
    /// The rate to which writes are slowed, in bytes a second, if they are.
    pub throttle_bytes_per_second: Option<u64>,
}

/// A pair.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairRecord {
    /// [`JSON_SCHEMA`].
    pub schema: u32,
    /// The session.
    pub session: String,
    /// The volume.
    pub volume: String,
    /// The name of the state ([`migration_core::pair::PairState`]).
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
    pub total_bytes: u64,
    /// What is still to be copied, in bytes.
    pub dirty_bytes: u64,
    /// How much of each part of the volume is still to be copied, in percent, rounded up: at most
    /// [`MAP_PARTS`](crate::target::MAP_PARTS) equal parts. Absent while ublk-target does not
    /// answer, and before the start.
    pub dirty_percent: Option<Vec<u8>>,
    /// What has been copied since the start of the session, in bytes.
    pub copied_bytes: u64,
    /// The current rate of the copy or of the comparison, in bytes a second; absent while there is
    /// none.
    pub rate_bytes_per_second: Option<u64>,
    /// How long the copy or comparison still takes at that rate, in seconds; absent while unknown.
    pub eta_seconds: Option<u64>,
    /// What has been compared so far, in bytes, while the legs are being compared.
    pub compared_bytes: Option<u64>,
    /// The result of the last whole comparison.
    pub verification: Option<Verification>,
    /// The parts that the source could not read; they are zeroes on the target
    /// ([`SessionOptions::accept_unreadable_bytes`]).
    pub unreadable: Vec<UnreadablePart>,
    /// How the leg that is no longer used was made inaccessible, if it was.
    pub retired: Option<RetireHow>,
    /// The last pause that a change of the route caused, in microseconds.
    pub last_pause_us: Option<u64>,
    /// The load of applications, while ublk-target answers.
    pub application: Option<ApplicationRecord>,
    /// While the pair is split: the instant that the target is a copy of, in milliseconds
    /// since 1970.
    pub copy_of_ms: Option<u64>,
    /// The problem of the pair, if it has one.
    pub problem: Option<String>,
}

/// A part of a volume that its source could not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnreadablePart {
    /// The start of the part, in bytes.
    pub offset_bytes: u64,
    /// The length of the part, in bytes.
    pub length_bytes: u64,
}

/// The plan of a pair, as far as a short check can find out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanRecord {
    /// [`JSON_SCHEMA`].
    pub schema: u32,
    /// The volume.
    pub volume: String,
    /// The source.
    pub source: LunPaths,
    /// The target.
    pub target: LunPaths,
    /// The size of the volume, in bytes.
    pub total_bytes: u64,
    /// How fast the source was read, in bytes a second.
    pub source_bytes_per_second: Option<u64>,
    /// How fast the target was read, in bytes a second; the target is not written for the plan.
    pub target_bytes_per_second: Option<u64>,
    /// What applications write, in bytes a second.
    pub write_bytes_per_second: Option<u64>,
    /// How long the copy may take, in seconds.
    pub copy_seconds: Option<u64>,
    /// How long a switch may hold requests, in microseconds.
    pub pause_us: Option<u64>,
    /// The reasons why `create` would refuse this pair; empty if it would accept the pair.
    pub problems: Vec<String>,
    /// Other things that the operator should know.
    pub notes: Vec<String>,
}

/// The load of applications on a volume, in the last second or two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplicationRecord {
    /// What was read, in bytes a second.
    pub read_bytes_per_second: u64,
    /// What was written, in bytes a second.
    pub write_bytes_per_second: u64,
    /// The median latency of reads and writes, in microseconds; absent if there were none.
    pub median_us: Option<u64>,
    /// The 99th percentile of that latency, in microseconds.
    pub p99_us: Option<u64>,
    /// The 99th percentile while nothing is copied, in microseconds, if it was measured
    /// ([`SessionOptions::max_latency_impact_percent`]).
    pub undisturbed_p99_us: Option<u64>,
}

/// A sample of a pair's progress in the seconds before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleRecord {
    /// [`JSON_SCHEMA`].
    pub schema: u32,
    /// When the sample was taken, in milliseconds since 1970.
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

/// An event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventRecord {
    /// [`JSON_SCHEMA`].
    pub schema: u32,
    /// When the event happened, in milliseconds since 1970.
    pub at_ms: u64,
    /// The session, if the event concerns one.
    pub session: Option<String>,
    /// The volume, if the event concerns one.
    pub volume: Option<String>,
    /// What happened.
    pub what: String,
    /// The number of the user who asked for the action; absent if no user did.
    pub who: Option<u32>,
    /// The new state of the pair or of the volume; absent if the event is not a change of state.
    pub state: Option<String>,
}
