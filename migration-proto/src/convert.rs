//! From the options of a session, as they are sent and stored, to those of the core.

use migration_core::hours::{self, Minute};
use migration_core::units::WallTime;
use migration_core::{retire, schedule};

use crate::manager::{Hours, RetireHow, SessionMode, SwitchPairs, SwitchPolicy};

impl From<SessionMode> for schedule::Mode {
    fn from(mode: SessionMode) -> Self {
        match mode {
            SessionMode::Mirror => Self::Mirror,
            SessionMode::Track => Self::Track,
            SessionMode::Copy => Self::Copy,
        }
    }
}

impl From<&SwitchPolicy> for schedule::Policy {
    fn from(policy: &SwitchPolicy) -> Self {
        match policy {
            SwitchPolicy::Manual => Self::Manual,
            SwitchPolicy::WhenSynced => Self::WhenSynced,
            SwitchPolicy::At(at_ms) => Self::At(WallTime(*at_ms)),
            SwitchPolicy::OnEvent(_) => Self::OnEvent,
        }
    }
}

impl From<SwitchPairs> for schedule::Scope {
    fn from(pairs: SwitchPairs) -> Self {
        match pairs {
            SwitchPairs::Together => Self::Together,
            SwitchPairs::Each => Self::Each,
        }
    }
}

impl From<Hours> for hours::Hours {
    fn from(hours: Hours) -> Self {
        Self {
            from: Minute(hours.from_minute),
            to: Minute(hours.to_minute),
        }
    }
}

impl From<RetireHow> for retire::How {
    fn from(how: RetireHow) -> Self {
        match how {
            RetireHow::ReadOnly => Self::ReadOnly,
            RetireHow::Offline => Self::Offline,
            RetireHow::Hold => Self::Hold,
            RetireHow::WipeSignatures => Self::WipeSignatures,
            RetireHow::Discard => Self::Discard,
        }
    }
}

impl From<retire::How> for RetireHow {
    fn from(how: retire::How) -> Self {
        match how {
            retire::How::ReadOnly => Self::ReadOnly,
            retire::How::Offline => Self::Offline,
            retire::How::Hold => Self::Hold,
            retire::How::WipeSignatures => Self::WipeSignatures,
            retire::How::Discard => Self::Discard,
        }
    }
}
