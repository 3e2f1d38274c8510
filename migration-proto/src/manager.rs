//! What `shunt` asks of `shuntd`.

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
        /// Its LUNs, as absolute paths.
        luns: LunPaths,
        /// Accept LUNs that have no name of their own. Of a volume that is attached: what is at
        /// these paths now are its LUNs (of either leg) that were accepted so.
        accept_weak_identity: bool,
    },
    /// Take a volume away; refused while it is open or part of a live session.
    Detach {
        /// The volume.
        volume: String,
    },
    /// Record a session.
    Create {
        /// The name of the session.
        session: String,
        /// Its pairs.
        pairs: Vec<PairSpec>,
        /// How.
        options: SessionOptions,
    },
    /// Begin to mirror and copy.
    Start {
        /// The session.
        session: String,
    },
    /// Stop copying; writes go on to be mirrored where the regions are clean.
    Pause {
        /// The session.
        session: String,
    },
    /// Copy on, also after the mirror leg failed.
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
    /// Leave the targets of all pairs alone, as copies of their sources at one instant.
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
        /// What is to be another.
        limits: SessionLimits,
    },
    /// Change limits of this host.
    SetHost {
        /// How many pairs of all sessions are copied at once, 1 to [`PAIRS_MAX_MAX`].
        pairs_max: u32,
    },
    /// Let the sessions that wait for an event be switched as soon as they are in sync.
    Signal {
        /// The event.
        event: String,
    },
    /// Compare both legs of each pair while applications go on.
    Verify {
        /// The session.
        session: String,
        /// Copy again what differs.
        repair: bool,
    },
    /// Make another map file for a volume whose own is lost or damaged. The volume uses one leg from then on.
    Recover {
        /// The volume.
        volume: String,
        /// The leg whose data is right.
        authoritative: Side,
        /// Also if another leg was authoritative when the volume was last seen.
        against_record: bool,
        /// Change nothing; only say what would be done.
        dry_run: bool,
    },
    /// Free the locks on LUNs whose holder is gone.
    FreeLocks {
        /// Change nothing; only say which these are. `changed` in the answer: there are some.
        dry_run: bool,
    },
    /// Check all that a create would check, and estimate what the session would take. Changes nothing, keeps the estimate. Answer:
    /// [`Response::Records`] of [`Record::Plan`].
    Plan {
        /// The name.
        session: String,
        /// Its pairs.
        pairs: Vec<PairSpec>,
        /// What is chosen for it.
        options: SessionOptions,
    },
    /// Make the legs that an ended session left behind inaccessible.
    Retire {
        /// The session.
        session: String,
        /// How.
        how: RetireHow,
    },
    /// Make them accessible again, as far as that is possible.
    TakeBack {
        /// The session.
        session: String,
    },
    /// The records of all volumes, sessions and pairs, or of one session. Answer: [`Response::Records`].
    Status {
        /// Only this session.
        session: Option<String>,
    },
    /// Who did what when. Answer: [`Response::Records`] of [`Record::Event`].
    History {
        /// Only this session.
        session: Option<String>,
    },
    /// How the pairs of a session went on. Answer: [`Response::Records`] of [`Record::Sample`], in the order of time.
    Samples {
        /// The session.
        session: String,
    },
    /// What is so now, and then what happens. Answer: [`Response::Events`], after [`EVENTS_WAIT_MS`] at the latest.
    Events {
        /// Only this session.
        session: Option<String>,
        /// [`Response::Events::next`] of the last answer; `None` asks for what is so now.
        after: Option<u64>,
    },
}

/// How long an answer to [`Request::Events`] may take while nothing happens, in milliseconds.
pub const EVENTS_WAIT_MS: u64 = 10_000;

/// The priority of a session for which none is chosen.
pub const PRIORITY_DEFAULT: u8 = 50;
/// The highest priority.
pub const PRIORITY_MAX: u8 = 100;

/// How many pairs are copied at once on a host for which nothing is chosen.
pub const PAIRS_MAX_DEFAULT: u32 = 4;
/// The most that can be chosen.
pub const PAIRS_MAX_MAX: u32 = 1024;

/// What can be changed of a session while it lives; what is `None` stays.
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
    /// When the operator says so.
    #[default]
    Manual,
    /// As soon as all pairs are in sync.
    WhenSynced,
    /// As soon as all pairs are in sync, but not before this time, in milliseconds since 1970.
    At(u64),
    /// As soon as all pairs are in sync after this event was signalled.
    OnEvent(String),
}

/// Which pairs of a session are switched together when it is switched by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SwitchPairs {
    /// All of them, or none.
    #[default]
    Together,
    /// Each one as soon as it is in sync.
    Each,
}

/// How a session that tracks is switched: writes are slowed until what is left fits the pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CutoverOptions {
    /// What follows when an attempt fails.
    pub action: CutoverAction,
    /// How many attempts there may be.
    pub attempts: u32,
    /// How long writes may be slowed in one attempt, in seconds.
    pub duration_seconds: u64,
    /// Writes are not made slower than that.
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
    /// The kernel refuses writes to it. Until the next boot.
    ReadOnly,
    /// The kernel refuses every request to it. SCSI disks only; until the next boot.
    Offline,
    /// shuntd keeps it open for itself alone: it cannot be mounted. While shuntd runs.
    Hold,
    /// What a program would recognise on it is taken away, and kept, so that it can be put back.
    WipeSignatures,
    /// All of its blocks are given back. Cannot be taken back.
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

/// Hours of the day, in local time: from one minute after midnight until another one, over midnight if that is earlier. Two equal
/// ones are the whole day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Hours {
    /// The first minute.
    pub from_minute: u16,
    /// The first minute after.
    pub to_minute: u16,
}

impl Hours {
    /// Whether that is the whole day.
    #[must_use]
    pub const fn is_always(self) -> bool {
        self.from_minute == self.to_minute
    }

    /// Whether a minute of the day is one of them.
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

/// The longest time from a split to the next one, in seconds: a year.
pub const EVERY_SECONDS_MAX: u64 = 366 * 24 * 3600;

/// What the targets of a session are for, and what writes of applications do to them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SessionMode {
    /// To move there: writes are done there too, where the legs are equal.
    #[default]
    Mirror,
    /// To move there: before the switch what was written is copied in passes.
    Track,
    /// To be copies at an instant: it is split, and never switched. Writes as in `Mirror`.
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
    /// Another attempt, as often as is allowed.
    #[default]
    Retry,
    /// Writes are not slowed again; it is cut over when it fits without that.
    Defer,
    /// Nothing; the operator decides.
    Abort,
    /// As `retry`; when all attempts have failed, it is cut over however long requests are held.
    Force,
    /// As `retry`, but it is only measured until the operator says so once more.
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

/// What is chosen for a session when it is created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionOptions {
    /// Accept targets that hold a signature.
    pub overwrite: bool,
    /// Accept targets that have no name of their own.
    pub accept_weak_identity: bool,
    /// Find zeroes while copying and deallocate them on the target where it can.
    pub detect_zeroes: bool,
    /// What to do when an authoritative leg fails.
    pub on_authoritative_failure: OnAuthoritativeFailure,
    /// What a copy has to prove.
    pub verify: VerifyPolicy,
    /// The most that its pairs copy together in a second, in bytes; 0 = unlimited.
    pub rate_bytes_per_second: u64,
    /// Pairs that wait for their turn start in the order of this, the highest first; at most [`PRIORITY_MAX`].
    pub priority: u8,
    /// When it is switched, or split in [`SessionMode::Copy`]. A switch that was done, and an undo, make it
    /// [`SwitchPolicy::Manual`]; so does a split, unless another one follows.
    pub switch: SwitchPolicy,
    /// Which of its pairs are switched together then.
    pub switch_pairs: SwitchPairs,
    /// By how much the copy may make the 99th percentile of the applications' latency grow, in percent of what it is without
    /// the copy; 0 = as much as it does.
    pub max_latency_impact_percent: u32,
    /// The most of a source that may be unreadable, in bytes: on the target that becomes zeroes; 0: a copy goes past nothing.
    pub accept_unreadable_bytes: u64,
    /// What its targets are for.
    pub mode: SessionMode,
    /// In [`SessionMode::Copy`]: so long after a split another one is made, in seconds; 0: none. At most [`EVERY_SECONDS_MAX`].
    pub every_seconds: u64,
    /// When its pairs are copied.
    pub hours: Hours,
    /// When it is started by itself, in milliseconds since 1970; 0: not at all.
    pub start_at_ms: u64,
    /// How long it may take from the start until its pairs are in sync, in seconds; 0: as long as it takes. At most [`EVERY_SECONDS_MAX`].
    /// Then it is paused, and this is 0.
    pub max_duration_seconds: u64,
    /// How it is switched while it tracks.
    pub cutover: CutoverOptions,
    /// How the source is made inaccessible as soon as the session is committed; `None`: not by itself.
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
    /// That the LUN took it.
    #[default]
    None,
    /// That it reads back as it was written.
    ReadBack,
    /// The same, and before a switch the whole volume is compared once.
    Full,
}

/// What came of comparing both legs of a pair. All bytes in whole regions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verification {
    /// When it ended, in milliseconds since 1970.
    pub at_ms: u64,
    /// Compared, and either the same or not.
    pub compared_bytes: u64,
    /// The part of it that was not the same.
    pub differing_bytes: u64,
    /// The first region that was not, as an address of the volume.
    pub first_difference_bytes: Option<u64>,
    /// Not compared: written all the time, dirty, or unreadable.
    pub unknown_bytes: u64,
    /// Whether what differed was to be copied again.
    pub repaired: bool,
}

impl Verification {
    /// Whether the whole volume was compared, and nothing differs any more.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.unknown_bytes == 0 && !self.is_different()
    }

    /// Whether the legs are known to differ, and nothing was done about it.
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
    /// Where to, as absolute paths.
    pub target: LunPaths,
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Response {
    /// Done.
    Done {
        /// False: it was so already.
        changed: bool,
        /// What happened, for people; one line each.
        messages: Vec<String>,
    },
    /// What was asked for.
    Records {
        /// In the order in which they are to be printed.
        records: Vec<Record>,
    },
    /// What happened after the last answer, or what is so now.
    Events {
        /// To be given in the next question.
        next: u64,
        /// Whether the records are those of the present state: at the beginning, and when events were missed.
        present: bool,
        /// In the order in which they are to be printed; none if nothing happened.
        records: Vec<Record>,
    },
    /// Refused or failed.
    Failed(Failure),
}

/// An error as the operator reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Failure {
    /// The kind; decides the exit code.
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
    /// Something broke on the way.
    Failed,
    /// A safety check or the present state forbids it; nothing changed.
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
    /// Something that happened.
    Event(EventRecord),
    /// How a pair went on.
    Sample(SampleRecord),
    /// What a pair would be.
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
    /// How many are being copied.
    pub pairs_copied: u32,
    /// How many wait for their turn.
    pub pairs_queued: u32,
    /// What is wrong with shuntd's own folders, each with what to do next.
    pub problems: Vec<String>,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeRecord {
    /// [`JSON_SCHEMA`].
    pub schema: u32,
    /// The name.
    pub volume: String,
    /// `attached`, `recovering` (its ublk-target is being started again) or `failed`.
    pub state: String,
    /// The stable name, `/dev/shunt/NAME`.
    pub device: PathBuf,
    /// `/dev/ublkbN`, while there is one.
    pub kernel_device: Option<PathBuf>,
    /// The LUNs that are authoritative.
    pub lun: LunPaths,
    /// The size, in bytes.
    pub size_bytes: u64,
    /// The process id of its ublk-target.
    pub pid: Option<u32>,
    /// How often its ublk-target was started again.
    pub restarts: u64,
    /// The route, if ublk-target answers.
    pub route: Option<Route>,
    /// Those of its LUNs (of both legs, in a session that has not ended) that have no name of their
    /// own and were accepted all the same.
    pub weak_identity: Vec<PathBuf>,
    /// Those of its LUNs that are larger than when they were recorded.
    pub grown: Vec<PathBuf>,
    /// What is wrong, if something is.
    pub problem: Option<String>,
}

/// A session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionRecord {
    /// [`JSON_SCHEMA`].
    pub schema: u32,
    /// The name.
    pub session: String,
    /// A UUID: no other session, before or after it, has it.
    pub id: String,
    /// The state: that of the pair which is furthest behind.
    pub state: String,
    /// The number of pairs.
    pub pairs: u32,
    /// What the operator may do now, as verbs.
    pub allowed: Vec<String>,
    /// What is chosen for it.
    pub options: SessionOptions,
    /// The cutover that is under way, or the last one if it ended without success.
    pub cutover: Option<CutoverRecord>,
    /// When it was created, in seconds since 1970.
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
    /// Why it is over, or why the last attempt failed.
    pub cause: Option<String>,
    /// How long requests may be held, in milliseconds.
    pub max_pause_ms: u64,
    /// How long they would be held now, in milliseconds, if that is known.
    pub predicted_pause_ms: Option<u64>,
    /// What applications write, in bytes a second.
    pub write_bytes_per_second: u64,
    /// What can be copied, in bytes a second.
    pub copy_bytes_per_second: u64,
    /// To what writes are slowed, in bytes a second, if they are.
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
    /// The state, as in the design's list.
    pub state: String,
    /// The source.
    pub source: LunPaths,
    /// The target.
    pub target: LunPaths,
    /// The authoritative leg.
    pub authoritative: Side,
    /// Those of its LUNs that have no name of their own and were accepted all the same.
    pub weak_identity: Vec<PathBuf>,
    /// The size, in bytes.
    pub total_bytes: u64,
    /// What is still to be copied, in bytes.
    pub dirty_bytes: u64,
    /// How much of each part of the volume is still to be copied, in percent, rounded up: at most [`MAP_PARTS`](crate::target::MAP_PARTS) equal parts.
    /// Absent while ublk-target does not answer, and before the start.
    pub dirty_percent: Option<Vec<u8>>,
    /// What has been copied since the start of the session, in bytes.
    pub copied_bytes: u64,
    /// The present rate of the copy or of the comparison; absent while there is none.
    pub rate_bytes_per_second: Option<u64>,
    /// How long that still takes at that rate; absent while unknown.
    pub eta_seconds: Option<u64>,
    /// What has been compared so far, in bytes, while the legs are being compared.
    pub compared_bytes: Option<u64>,
    /// What came of the last whole comparison.
    pub verification: Option<Verification>,
    /// What the source could not read: zeroes on the target ([`SessionOptions::accept_unreadable_bytes`]).
    pub unreadable: Vec<UnreadablePart>,
    /// How the leg that is no longer used was made inaccessible, if it was.
    pub retired: Option<RetireHow>,
    /// The last pause that a change of the route caused, in microseconds.
    pub last_pause_us: Option<u64>,
    /// What applications do, while ublk-target answers.
    pub application: Option<ApplicationRecord>,
    /// While it is split: of when the target is a copy, in milliseconds since 1970.
    pub copy_of_ms: Option<u64>,
    /// What is wrong, if something is.
    pub problem: Option<String>,
}

/// A part of a volume that its source could not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnreadablePart {
    /// Where it begins, in bytes.
    pub offset_bytes: u64,
    /// Its length, in bytes.
    pub length_bytes: u64,
}

/// What a pair would be, as far as a short look can tell.
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
    /// The size, in bytes.
    pub total_bytes: u64,
    /// How fast the source was read, in bytes a second.
    pub source_bytes_per_second: Option<u64>,
    /// How fast the target was read; it is not written for this.
    pub target_bytes_per_second: Option<u64>,
    /// What applications write, in bytes a second.
    pub write_bytes_per_second: Option<u64>,
    /// How long the copy may take.
    pub copy_seconds: Option<u64>,
    /// How long a switch may hold requests, in microseconds.
    pub pause_us: Option<u64>,
    /// What speaks against it: none of them, and `create` accepts the pair.
    pub problems: Vec<String>,
    /// What else is to be known.
    pub notes: Vec<String>,
}

/// What applications do with a volume: in the last second or two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplicationRecord {
    /// Read, in bytes a second.
    pub read_bytes_per_second: u64,
    /// Written, in bytes a second.
    pub write_bytes_per_second: u64,
    /// Half of the reads and writes took no longer, in microseconds; absent without any.
    pub median_us: Option<u64>,
    /// 99 of a hundred took no longer, in microseconds.
    pub p99_us: Option<u64>,
    /// The same while nothing is copied, if that was measured ([`SessionOptions::max_latency_impact_percent`]).
    pub undisturbed_p99_us: Option<u64>,
}

/// How a pair went on in the seconds before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleRecord {
    /// [`JSON_SCHEMA`].
    pub schema: u32,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// The volume.
    pub volume: String,
    /// What was still to be copied, in bytes.
    pub dirty_bytes: u64,
    /// Copied, in bytes a second.
    pub copy_bytes_per_second: u64,
    /// What applications did.
    pub application: ApplicationRecord,
    /// To what writes were slowed, in bytes a second; 0: they were not.
    pub throttle_bytes_per_second: u64,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventRecord {
    /// [`JSON_SCHEMA`].
    pub schema: u32,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// The session, if it concerns one.
    pub session: Option<String>,
    /// The volume, if it concerns one.
    pub volume: Option<String>,
    /// What happened.
    pub what: String,
    /// The number of the user who asked for it; absent if nobody did.
    pub who: Option<u32>,
    /// The state that the pair, or the volume, is in from then on; absent if the state is not what happened.
    pub state: Option<String>,
}
