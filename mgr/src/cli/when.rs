//! The times of a session: options of the command line.

use clap::Args;
use migration_proto::manager::{Hours, SessionLimits, SwitchPairs};

use crate::options::forms::{every, hours, start_at};

/// Options for the times of a session: start, hours of the copy, limit of its duration, the
/// interval of splits, and which pairs are switched together.
#[derive(Debug, Clone, Args)]
pub(super) struct ScheduleOptions {
    /// With --mode copy: interval between copies, such as 1h, or never [default: never]
    #[arg(long, requires = "session", value_name = "TIME", value_parser = every)]
    pub every: Option<u64>,
    /// Copy only within these hours, in local time, such as 22:00-06:00, or always
    /// [default: always]
    #[arg(long, requires = "session", value_name = "FROM-TO", value_parser = hours)]
    pub window_hours: Option<Hours>,
    /// Start the session automatically at this time, such as 22:00 or 2026-11-21T22:00:00Z, or
    /// by-hand [default: by-hand]
    #[arg(long, requires = "session", value_name = "TIME", value_parser = start_at)]
    pub start_at: Option<u64>,
    /// Pause the session if it is not in sync within this time of its start, such as 8h, or never
    /// [default: never]
    #[arg(long, requires = "session", value_name = "TIME", value_parser = every)]
    pub max_duration: Option<u64>,
    /// For an automatic switch: all pairs together, or each as soon as it is in sync
    /// [default: together]
    #[arg(long, requires = "session", value_name = "WHICH", value_enum)]
    pub switch_pairs: Option<SwitchScope>,
}

impl ScheduleOptions {
    /// `limits` with the times that are given.
    pub(in crate::cli) fn limits(&self, limits: SessionLimits) -> SessionLimits {
        SessionLimits {
            every_seconds: self.every,
            hours: self.window_hours,
            start_at_ms: self.start_at,
            max_duration_seconds: self.max_duration,
            switch_pairs: self.switch_pairs.map(Into::into),
            ..limits
        }
    }
}

/// Which pairs an automatic switch switches together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum SwitchScope {
    /// All pairs, or none
    Together,
    /// Each pair alone, as soon as it is in sync
    Each,
}

impl From<SwitchScope> for SwitchPairs {
    fn from(which: SwitchScope) -> Self {
        match which {
            SwitchScope::Together => Self::Together,
            SwitchScope::Each => Self::Each,
        }
    }
}
