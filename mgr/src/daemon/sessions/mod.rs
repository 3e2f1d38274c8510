//! The room of the sessions: their verbs, their options, and what they do automatically.

pub(super) mod create;
pub(super) mod cutover;
pub(super) mod hours;
pub(super) mod operation;
pub(super) mod plan;
pub(super) mod queue;
pub(super) mod retire;
pub(super) mod schedule;
pub(super) mod set;
pub(super) mod sight;
pub(super) mod split;
pub(super) mod verify;

use std::collections::BTreeMap;

use migration_core::schedule::Attempts;
use migration_core::verify::Comparison;

use crate::store::PairKey;
use cutover::Cutovers;
use queue::Places;
use retire::HeldLuns;

/// The state of the sessions beside what is recorded.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    /// The pairs whose legs are to be compared.
    pub(super) to_compare: BTreeMap<PairKey, Comparison>,
    /// The places of pairs that are about to be copied.
    pub(super) places: Places,
    /// For each session, the automatic start, switch or split that was attempted last, with its
    /// back-off.
    pub(super) attempts: BTreeMap<String, Attempts>,
    /// The cutovers of sessions that track.
    pub(super) cutovers: Cutovers,
    /// The legs that are kept open.
    pub(super) held: HeldLuns,
}
