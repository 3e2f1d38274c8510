//! The options and limits of a session.

use migration_core::hours::{self, Minute};
use serde::{Deserialize, Serialize};

use crate::target::{CopyMode, OnAuthoritativeFailure};

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
#[serde(deny_unknown_fields)]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum SwitchPolicy {
    /// Only when the operator asks for it.
    #[default]
    Manual,
    /// As soon as all pairs are in sync.
    WhenSynced,
    /// As soon as all pairs are in sync, but not before this time, in milliseconds since the Unix
    /// epoch.
    #[serde(rename = "at_ms")]
    At(u64),
    /// As soon as all pairs are in sync after this event was signalled.
    #[serde(rename = "on_event")]
    OnEvent(String),
}

/// Which pairs of a session are switched together when the switch is automatic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Hours {
    /// The first minute of the hours, counted from midnight.
    pub from_minute: u16,
    /// The first minute after the hours, counted from midnight.
    pub to_minute: u16,
}

impl Hours {
    /// Whether the hours are the whole day.
    #[must_use]
    pub fn is_always(self) -> bool {
        hours::Hours::from(self).is_always()
    }

    /// Whether `minute` of the day is within the hours.
    #[must_use]
    pub fn contains(self, minute: u16) -> bool {
        hours::Hours::from(self).contains(Minute(minute))
    }
}

/// The longest interval between splits, and the longest maximum duration: a year, in seconds.
pub const EVERY_SECONDS_MAX: u64 = 366 * 24 * 3600;

/// The purpose of the targets of a session, and what writes of applications do to the targets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum SessionMode {
    /// The data moves to the targets. Writes are done there too, where the legs are equal.
    #[default]
    Mirror,
    /// The data moves to the targets. Before the switch, what was written is copied in passes.
    Track,
    /// The targets become copies at an instant: the session is split, and never switched. Writes as
    /// in `mirror`.
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
    /// When the session starts automatically, in milliseconds since the Unix epoch; 0: it does not.
    pub start_at_ms: u64,
    /// The maximum duration from the start until all pairs are in sync, in seconds; 0: unlimited.
    /// At most [`EVERY_SECONDS_MAX`]. When the time is over, the session is paused and this is set
    /// to 0.
    pub max_duration_seconds: u64,
    /// How the session is switched while it tracks.
    pub cutover: CutoverOptions,
    /// How the source is automatically made inaccessible when the session is committed; `null`: it
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum VerifyPolicy {
    /// The LUN acknowledged it.
    #[default]
    None,
    /// It reads back as it was written.
    ReadBack,
    /// As `read-back`, and the whole volume is compared once before a switch.
    Full,
}
