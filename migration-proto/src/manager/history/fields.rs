//! The types of the fields of events.

use serde::{Deserialize, Serialize};

use super::super::options::{CutoverOptions, Hours, SessionMode, SwitchPairs, SwitchPolicy};
use crate::target::OnAuthoritativeFailure;

/// The task of a copier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum CopierTask {
    /// To make the legs equal.
    Copy,
    /// To compare the legs.
    Compare,
}

/// Why an attempt of a cutover failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum CutoverMisfit {
    /// Writes were slowed to the lowest rate, and the rest did not fit the pause.
    Floor,
    /// Writes were slowed for as long as allowed, and the rest did not fit the pause.
    Duration,
    /// The rest was not copied while requests were held.
    Pause,
}

/// A limit of a session that was changed, with its new value; the limits are those of
/// [`SessionOptions`](super::super::SessionOptions).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum LimitChange {
    /// The highest rate of the copy, in bytes a second; 0: unlimited.
    RateBytesPerSecond(u64),
    /// The priority of the session.
    Priority(u8),
    /// What to do when an authoritative leg fails.
    OnAuthoritativeFailure(OnAuthoritativeFailure),
    /// When the session is switched or split.
    Switch {
        /// The new policy.
        policy: SwitchPolicy,
        /// The mode of the session, with which it is switched or split.
        mode: SessionMode,
    },
    /// By how much the copy may raise the latency of applications, in percent; 0: unlimited.
    MaxLatencyImpactPercent(u32),
    /// How many bytes of a source may be unreadable.
    AcceptUnreadableBytes(u64),
    /// The purpose of the targets.
    Mode(SessionMode),
    /// The interval from a split to the next one, in seconds; 0: no next one.
    EverySeconds(u64),
    /// The hours of the day in which pairs are copied.
    Hours(Hours),
    /// When the session starts automatically, in milliseconds since the Unix epoch; 0: it does not.
    StartAtMs(u64),
    /// Which pairs are switched together.
    SwitchPairs(SwitchPairs),
    /// The maximum duration until all pairs are in sync, in seconds; 0: unlimited.
    MaxDurationSeconds(u64),
    /// How the session is switched while it tracks.
    Cutover(CutoverOptions),
}

/// Makes a module by which serde writes a value of a core type as its name.
macro_rules! by_name {
    ($module:ident, $named:ty, $schema:ident) => {
        /// The schema of such a name.
        #[cfg(test)]
        pub(super) struct $schema;

        #[cfg(test)]
        impl schemars::JsonSchema for $schema {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($schema).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let names = <$named>::ALL.map(|value| value.name());
                schemars::json_schema!({ "type": "string", "enum": names })
            }
        }

        pub(super) mod $module {
            use serde::de::Error;
            use serde::{Deserialize, Deserializer, Serializer};

            pub(in super::super) fn serialize<S: Serializer>(
                value: &$named,
                serializer: S,
            ) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(value.name())
            }

            pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
                deserializer: D,
            ) -> Result<$named, D::Error> {
                let name = String::deserialize(deserializer)?;
                let found = <$named>::ALL.into_iter().find(|value| value.name() == name);
                found.ok_or_else(|| D::Error::custom(format!("unknown name {name:?}")))
            }
        }
    };
}

by_name!(verb, migration_core::pair::Verb, VerbName);
by_name!(phase, migration_core::pair::Phase, PhaseName);
by_name!(pair_state, migration_core::pair::PairState, PairStateName);
