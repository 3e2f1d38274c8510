//! The model: all rows, and the changes to them.
//!
//! A [`Change`] is made twice: durably by the store, and then, with the same meaning, in the
//! [`Model`] on which the owner loop bases its decisions. So the model never runs ahead of the
//! disk.

use std::collections::BTreeMap;
use std::path::PathBuf;

use lun::Seen;
use migration_core::pair::Phase;
use migration_core::route::Side;
use migration_proto::manager::{PAIRS_MAX_DEFAULT, SessionOptions, UnreadablePart, Verification};

use super::rows::{
    CopyOf, Estimate, LegRow, Lock, Note, OpenMapRow, PairKey, PairRow, Retired, SessionRow,
    VolumeRow, VolumeState,
};

/// A change of one field of a pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PairField {
    /// What the operator asked for.
    Phase(Phase),
    /// The side that is authoritative.
    Authoritative(Side),
    /// The bytes that earlier copiers copied.
    CopiedBytes(u64),
    /// The pause that a change of the route caused, in microseconds.
    LastPause(u64),
    /// The current problem, or that there is none.
    Problem(Option<String>),
    /// The result of a comparison of the legs.
    Verification(Verification),
    /// How the leg that is no longer used was made inaccessible.
    Retired(Option<Retired>),
    /// Since when the target is a copy.
    CopyOf(Option<CopyOf>),
    /// All parts that the source could not read.
    Unreadable(Vec<UnreadablePart>),
    /// When the copy began, in milliseconds since 1970.
    Begun(u64),
    /// When nothing was left to copy for the first time, in milliseconds since 1970.
    InSync(Option<u64>),
    /// When the target became authoritative, in milliseconds since 1970.
    Switched(Option<u64>),
}

/// One change to the rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A new volume.
    AddVolume(VolumeRow),
    /// The intended state of a volume.
    SetVolumeState(String, VolumeState),
    /// The leg of a volume.
    SetVolumeLeg(String, LegRow),
    /// The disk and contents of the LUN with a weak identity at a path.
    SetSeen(PathBuf, Seen),
    /// The device that an open of a volume's name gets.
    SetOpenMap(String, OpenMapRow),
    /// The volume is gone.
    RemoveVolume(String),
    /// A new session with its pairs. Replaces an ended session of the same name.
    AddSession(SessionRow),
    /// Whether the operator stopped the copy of a session.
    SetPaused(String, bool),
    /// The options of a session.
    SetOptions(String, SessionOptions),
    /// The number of pairs of all sessions that may be copied at once.
    SetPairsMax(u32),
    /// A field of a pair.
    SetPair(PairKey, PairField),
    /// A LUN is in use from now on; fails if it is in use already. Not kept in the model.
    Lock(Lock),
    /// A LUN that is in use has another holder from now on.
    MoveLock(Lock),
    /// A LUN, by its key, is no longer in use.
    Unlock(String),
    /// A line of the history. Not kept in the model.
    Note(Note),
    /// The estimate for copying a volume to a leg ([`LegRow::key`]). Not kept in the model.
    KeepEstimate {
        /// The volume.
        volume: String,
        /// The leg.
        target: String,
        /// The estimate.
        estimate: Estimate,
    },
    /// A sample of a pair. Not kept in the model.
    Sample(super::samples::Sample),
}

/// Everything that is recorded, except locks, history, samples and estimates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// The volumes by name.
    pub volumes: BTreeMap<String, VolumeRow>,
    /// The sessions by name.
    pub sessions: BTreeMap<String, SessionRow>,
    /// The number of pairs of all sessions that may be copied at once.
    pub pairs_max: u32,
}

impl Default for Model {
    /// The contents of a new database.
    fn default() -> Self {
        Self {
            volumes: BTreeMap::new(),
            sessions: BTreeMap::new(),
            pairs_max: PAIRS_MAX_DEFAULT,
        }
    }
}

/// The leg of a side of a pair.
#[must_use]
pub fn leg_of(row: &PairRow, side: Side) -> &LegRow {
    match side {
        Side::Source => &row.source,
        Side::Target => &row.target,
    }
}

impl Model {
    /// The leg of a volume, and those of its live pair.
    pub fn legs_of<'a>(&'a self, row: &'a VolumeRow) -> impl Iterator<Item = &'a LegRow> {
        let pair = self.live_pair_of(&row.name);
        let pair = pair.map(|(session, position)| &session.pairs[position]);
        std::iter::once(&row.leg).chain(
            pair.into_iter()
                .flat_map(|pair| [&pair.source, &pair.target]),
        )
    }

    /// Makes a change that the store has made durable. The rows that the change names exist:
    /// otherwise the store would have refused the change.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::AddVolume(row) => {
                self.volumes.insert(row.name.clone(), row);
            }
            Change::SetVolumeState(name, state) => {
                if let Some(row) = self.volumes.get_mut(&name) {
                    row.state = state;
                }
            }
            Change::SetVolumeLeg(name, leg) => {
                if let Some(row) = self.volumes.get_mut(&name) {
                    row.leg = leg;
                }
            }
            Change::SetSeen(path, seen) => {
                for row in self.volumes.values_mut() {
                    row.leg.set_seen(&path, &seen);
                }
                let sessions = self.sessions.values_mut();
                for pair in sessions.flat_map(|session| &mut session.pairs) {
                    pair.source.set_seen(&path, &seen);
                    pair.target.set_seen(&path, &seen);
                }
            }
            Change::SetOpenMap(name, open_map) => {
                if let Some(row) = self.volumes.get_mut(&name) {
                    row.open_map = Some(open_map);
                }
            }
            Change::RemoveVolume(name) => {
                self.volumes.remove(&name);
            }
            Change::AddSession(row) => {
                self.sessions.insert(row.name.clone(), row);
            }
            Change::SetPaused(name, paused) => {
                if let Some(row) = self.sessions.get_mut(&name) {
                    row.paused = paused;
                }
            }
            Change::SetOptions(name, options) => {
                if let Some(row) = self.sessions.get_mut(&name) {
                    row.options = options;
                }
            }
            Change::SetPairsMax(pairs_max) => self.pairs_max = pairs_max,
            Change::SetPair(key, field) => {
                if let Some(row) = self.pair_mut(&key) {
                    match field {
                        PairField::Phase(phase) => row.phase = phase,
                        PairField::Authoritative(side) => row.authoritative = side,
                        PairField::CopiedBytes(bytes) => row.copied_bytes = bytes,
                        PairField::LastPause(pause_us) => row.last_pause_us = Some(pause_us),
                        PairField::Problem(problem) => row.problem = problem,
                        PairField::Verification(found) => row.verification = Some(found),
                        PairField::Retired(retired) => row.retired = retired,
                        PairField::Unreadable(parts) => row.unreadable = parts,
                        PairField::CopyOf(copy_of) => row.copy_of = copy_of,
                        PairField::Begun(at_ms) => row.progress.begun_ms = Some(at_ms),
                        PairField::InSync(at_ms) => row.progress.in_sync_ms = at_ms,
                        PairField::Switched(at_ms) => row.progress.switched_ms = at_ms,
                    }
                }
            }
            Change::Lock(_)
            | Change::MoveLock(_)
            | Change::Unlock(_)
            | Change::Note(_)
            | Change::KeepEstimate { .. }
            | Change::Sample(_) => {}
        }
    }

    /// The pair with the key `key`.
    #[must_use]
    pub fn pair(&self, key: &PairKey) -> Option<&PairRow> {
        self.sessions.get(&key.session)?.pairs.get(key.position)
    }

    /// The live session that a volume belongs to, and the position of the volume's pair there.
    #[must_use]
    pub fn live_pair_of(&self, volume: &str) -> Option<(&SessionRow, usize)> {
        self.sessions.values().find_map(|session| {
            session
                .pairs
                .iter()
                .position(|pair| pair.volume == volume && !pair.phase.is_ended())
                .map(|position| (session, position))
        })
    }

    fn pair_mut(&mut self, key: &PairKey) -> Option<&mut PairRow> {
        self.sessions
            .get_mut(&key.session)?
            .pairs
            .get_mut(key.position)
    }
}
