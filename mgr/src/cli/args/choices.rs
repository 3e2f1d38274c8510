//! Options that several commands have, and options with a fixed set of values.

use clap::{Args, ValueEnum};
use migration_proto::manager::{
    CutoverAction, RetireHow, SessionLimits, SessionMode, VerifyPolicy,
};
use migration_proto::target::OnAuthoritativeFailure;

use crate::options::forms::floor;

/// What to do when the authoritative LUN fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum OnFailure {
    /// error before the switch; after it, go back to the source
    #[default]
    Auto,
    /// applications see the error
    Error,
    /// the other LUN becomes authoritative, and applications continue
    Switch,
}

impl From<OnFailure> for OnAuthoritativeFailure {
    fn from(what: OnFailure) -> Self {
        match what {
            OnFailure::Auto => Self::Auto,
            OnFailure::Error => Self::Error,
            OnFailure::Switch => Self::Switch,
        }
    }
}

/// How writes of applications reach the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// each write also goes to the target, where both LUNs are equal
    Mirror,
    /// writes go to the source alone, and what they change is copied in passes; for slow or distant
    /// targets
    Track,
    /// as mirror, but without a switch: the target becomes a copy of one instant (shunt split)
    Copy,
}

/// What to do after a failed attempt to cut over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnMisfit {
    /// try again, up to --attempts attempts in all
    Retry,
    /// do not slow writes again; switch when the rest fits the pause without that
    Defer,
    /// give up; the source stays authoritative
    Abort,
    /// as retry; after the last attempt switch even if that holds requests for up to 110 seconds
    Force,
    /// only measure; begin the attempts at a second shunt switch
    Wait,
}

/// Options for the copy mode of a session, and for the cutover of a session that tracks.
#[derive(Debug, Clone, Args)]
pub struct CutoverChoice {
    /// How writes of applications reach the target [default: mirror]
    #[arg(long, requires = "session", value_enum, value_name = "HOW")]
    mode: Option<Mode>,
    /// With --mode track: what to do if the rest to copy does not fit the pause of a switch
    /// [default: retry]
    #[arg(long, requires = "session", value_enum, value_name = "WHAT")]
    cutover_action: Option<OnMisfit>,
    /// With --mode track: the number of attempts of a switch [default: 3]
    #[arg(long, requires = "session", value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=100))]
    attempts: Option<u32>,
    /// With --mode track: how long an attempt may slow writes, in seconds [default: 120]
    #[arg(long, requires = "session", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    cutover_duration: Option<u64>,
    /// With --mode track: the lowest rate to which writes are slowed, in bytes a second
    /// [default: 1MiB]
    #[arg(long, requires = "session", value_name = "BYTES", value_parser = floor)]
    throttle_floor: Option<u64>,
}

impl CutoverChoice {
    pub(in crate::cli) fn limits(&self) -> SessionLimits {
        SessionLimits {
            mode: self.mode.map(|mode| match mode {
                Mode::Mirror => SessionMode::Mirror,
                Mode::Track => SessionMode::Track,
                Mode::Copy => SessionMode::Copy,
            }),
            cutover_action: self.cutover_action.map(|action| match action {
                OnMisfit::Retry => CutoverAction::Retry,
                OnMisfit::Defer => CutoverAction::Defer,
                OnMisfit::Abort => CutoverAction::Abort,
                OnMisfit::Force => CutoverAction::Force,
                OnMisfit::Wait => CutoverAction::Wait,
            }),
            attempts: self.attempts,
            cutover_duration_seconds: self.cutover_duration,
            throttle_floor_bytes_per_second: self.throttle_floor,
            ..SessionLimits::default()
        }
    }
}

/// How a leg is made inaccessible.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum RetireMethod {
    /// the kernel refuses writes to it
    ReadOnly,
    /// the kernel refuses every request to it; SCSI disks only
    Offline,
    /// shuntd keeps it open, so that it cannot be mounted
    #[default]
    Hold,
    /// the signatures by which programs recognise its contents are removed, and saved
    WipeSignatures,
    /// all of its blocks are discarded; cannot be taken back
    Discard,
}

impl From<RetireMethod> for RetireHow {
    fn from(how: RetireMethod) -> Self {
        match how {
            RetireMethod::ReadOnly => Self::ReadOnly,
            RetireMethod::Offline => Self::Offline,
            RetireMethod::Hold => Self::Hold,
            RetireMethod::WipeSignatures => Self::WipeSignatures,
            RetireMethod::Discard => Self::Discard,
        }
    }
}

/// How a copy is verified.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum VerifyLevel {
    /// the target reported success; verify compares everything on demand
    #[default]
    None,
    /// what was written is read back and compared
    ReadBack,
    /// as read-back, and the whole volume is compared once it is in sync; switch is refused before
    /// that
    Full,
}

impl From<VerifyLevel> for VerifyPolicy {
    fn from(proof: VerifyLevel) -> Self {
        match proof {
            VerifyLevel::None => Self::None,
            VerifyLevel::ReadBack => Self::ReadBack,
            VerifyLevel::Full => Self::Full,
        }
    }
}
