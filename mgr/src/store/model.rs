//! The rows as values, and the changes to them.
//!
//! A [`Change`] is made twice: durably by the store, and then, with the same meaning, in the
//! [`Model`] on which the owner loop bases its decisions. So the model never runs ahead of the
//! disk.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use lun::{Identity, Seen};
use migration_core::pair::Phase;
use migration_core::route::Side;
use migration_proto::luns::LunPaths;
use migration_proto::manager::{
    PAIRS_MAX_DEFAULT, RetireHow, SessionOptions, UnreadablePart, Verification,
};
use migration_proto::route::{Extent, Leg};
use serde::{Deserialize, Serialize};

/// A LUN that was accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LunRow {
    /// The path by which it was named.
    pub path: PathBuf,
    /// Its identity when it was accepted.
    pub identity: Identity,
    /// For a LUN with a weak identity: its disk and contents when it was accepted or last found to
    /// be the same. Absent also when the operator has not accepted the LUN since the database was
    /// rebuilt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<Seen>,
}

/// A leg that was accepted: whole LUNs, end to end. The last LUN may be longer than the volume
/// needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<LunRow>", into = "Vec<LunRow>")]
pub struct LegRow {
    luns: Vec<LunRow>,
    paths: LunPaths,
}

impl LegRow {
    /// A leg of at least one LUN.
    ///
    /// # Errors
    /// What is wrong with the paths of the LUNs.
    pub fn new(luns: Vec<LunRow>) -> Result<Self, String> {
        let paths = LunPaths::new(luns.iter().map(|lun| lun.path.clone()).collect())?;
        Ok(Self { luns, paths })
    }

    /// The LUNs, in the order of the volume's addresses.
    #[must_use]
    pub fn luns(&self) -> &[LunRow] {
        &self.luns
    }

    /// The paths by which the operator names the LUNs.
    #[must_use]
    pub const fn paths(&self) -> &LunPaths {
        &self.paths
    }

    /// The identities of all LUNs, in words.
    #[must_use]
    pub fn describe(&self) -> String {
        let luns = self.luns.iter().map(|lun| lun.identity.describe());
        luns.collect::<Vec<_>>().join("; ")
    }

    /// The LUNs with a weak identity.
    pub fn weak(&self) -> impl Iterator<Item = &LunRow> {
        self.luns.iter().filter(|lun| !lun.identity.is_distinct())
    }

    /// Records `seen` for the LUN of the leg at `path`, if its identity is weak. Returns whether
    /// the leg has such a LUN.
    pub(super) fn set_seen(&mut self, path: &Path, seen: &Seen) -> bool {
        let mut changed = false;
        for lun in &mut self.luns {
            if lun.path == path && !lun.identity.is_distinct() {
                lun.seen = Some(seen.clone());
                changed = true;
            }
        }
        changed
    }

    /// Whether `leg`, as a volume reports it, is this leg.
    #[must_use]
    pub fn is(&self, leg: &Leg) -> bool {
        let same = |(lun, extent): (&LunRow, &Extent)| {
            lun.path == extent.path && lun.identity == extent.identity
        };
        self.luns.len() == leg.extents.len() && self.luns.iter().zip(&leg.extents).all(same)
    }

    /// The locks of all LUNs of the leg, for `holder`.
    #[must_use]
    pub fn locks(&self, holder: &str) -> Vec<Lock> {
        let lock = |lun: &LunRow| Lock {
            key: super::lock_key(lun),
            path: lun.path.clone(),
            holder: holder.to_owned(),
        };
        self.luns.iter().map(lock).collect()
    }

    /// Changes that release the locks on all LUNs of the leg.
    pub fn unlock(&self) -> impl Iterator<Item = Change> + '_ {
        self.luns
            .iter()
            .map(|lun| Change::Unlock(super::lock_key(lun)))
    }

    /// A text that differs from that of every other leg.
    #[must_use]
    pub fn key(&self) -> String {
        let keys: Vec<String> = self.luns.iter().map(super::lock_key).collect();
        keys.join(" ")
    }

    /// The first `size_bytes` bytes of the leg, as a volume uses them.
    #[must_use]
    pub fn layout(&self, size_bytes: u64) -> Leg {
        let mut left = size_bytes;
        let extents = self.luns.iter().map(|lun| {
            let length_bytes = left.min(lun.identity.size_bytes);
            left -= length_bytes;
            Extent {
                path: lun.path.clone(),
                identity: lun.identity.clone(),
                start_bytes: 0,
                length_bytes,
            }
        });
        Leg {
            extents: extents.collect(),
        }
    }

    /// The row of a leg; `None` if the leg does not consist of whole LUNs.
    #[must_use]
    pub fn of(leg: &Leg) -> Option<Self> {
        let last = leg.extents.len().checked_sub(1)?;
        let is_whole = |(index, extent): (usize, &Extent)| {
            let whole = extent.length_bytes == extent.identity.size_bytes;
            extent.start_bytes == 0 && (whole || index == last)
        };
        if !leg.extents.iter().enumerate().all(is_whole) {
            return None;
        }
        let luns = leg.extents.iter().map(|extent| LunRow {
            path: extent.path.clone(),
            identity: extent.identity.clone(),
            seen: None,
        });
        Self::new(luns.collect()).ok()
    }
}

impl fmt::Display for LegRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.paths.fmt(f)
    }
}

impl TryFrom<Vec<LunRow>> for LegRow {
    type Error = String;

    fn try_from(luns: Vec<LunRow>) -> Result<Self, String> {
        Self::new(luns)
    }
}

impl From<LegRow> for Vec<LunRow> {
    fn from(leg: LegRow) -> Self {
        leg.luns
    }
}

/// The intended state of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeState {
    /// Its device is being made for the first time.
    Attaching,
    /// The volume is to exist.
    Attached,
    /// The volume is to be removed.
    Detaching,
}

impl VolumeState {
    /// The name that is stored.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Attaching => "attaching",
            Self::Attached => "attached",
            Self::Detaching => "detaching",
        }
    }

    /// The state with the stored name `name`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Attaching, Self::Attached, Self::Detaching]
            .into_iter()
            .find(|state| state.name() == name)
    }
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeRow {
    /// The name that the operator gave.
    pub name: String,
    /// The UUID.
    pub volume_id: String,
    /// The intended state.
    pub state: VolumeState,
    /// The leg in use while no session is live; the source of a live session.
    pub leg: LegRow,
    /// The size, in bytes.
    pub size_bytes: u64,
    /// The logical block size that the volume offers, in bytes.
    pub logical_block_bytes: u32,
    /// The device that an open of the volume's name gets, once it had one.
    pub open_map: Option<OpenMapRow>,
}

/// The device that an open of a volume's name gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenMapRow {
    /// `/dev/ublkbN`.
    pub kernel_device: PathBuf,
    /// The boot in which the device was that of this volume.
    pub boot_id: String,
    /// The LUNs whose data an open reads.
    pub leg: LunPaths,
}

/// A session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRow {
    /// The name that the operator gave.
    pub name: String,
    /// The UUID.
    pub id: String,
    /// When it was created, in milliseconds since 1970.
    pub created_at_ms: u64,
    /// The options.
    pub options: SessionOptions,
    /// Whether the operator stopped the copy.
    pub paused: bool,
    /// The pairs, in the order in which the operator named them.
    pub pairs: Vec<PairRow>,
}

impl SessionRow {
    /// Whether any pair of the session has not ended.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.pairs.iter().any(|pair| !pair.phase.is_ended())
    }
}

/// A pair of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairRow {
    /// The volume.
    pub volume: String,
    /// Where the data was when the session was created.
    pub source: LegRow,
    /// Where the data is copied to.
    pub target: LegRow,
    /// The word that stands for this target with what was found on it when it was accepted.
    pub target_contents: String,
    /// The size of the volume, in bytes.
    pub size_bytes: u64,
    /// What the operator asked for.
    pub phase: Phase,
    /// The side that was authoritative in the last status of the volume.
    pub authoritative: Side,
    /// The bytes that earlier copiers copied.
    pub copied_bytes: u64,
    /// The last pause that a change of the route caused, in microseconds.
    pub last_pause_us: Option<u64>,
    /// The current problem, if there is one.
    pub problem: Option<String>,
    /// The result of the last whole comparison of the legs.
    pub verification: Option<Verification>,
    /// How the leg that is no longer used was made inaccessible.
    pub retired: Option<Retired>,
    /// Since when the target is a copy of the source; valid in [`Phase::Split`] only.
    pub copy_of: Option<CopyOf>,
    /// The parts that the source could not read, ascending; they are zeroes on the target.
    pub unreadable: Vec<UnreadablePart>,
    /// The progress of the first copy, with the estimate of it.
    pub progress: Progress,
}

/// The copy on the target of a split pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyOf {
    /// The instant of which the target is a copy, in milliseconds since 1970.
    pub at_ms: u64,
    /// The state of the target when it was sealed; `None`: whether it was written to since the
    /// split is unknown.
    pub sealed: Option<Sealed>,
}

/// The state of a target's LUNs when they were made read-only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sealed {
    /// The boot in which that was.
    pub boot_id: String,
    /// The changes that the kernel had counted on all LUNs; `None` if it does not count them.
    pub changes: Option<u64>,
    /// Checksum of the parts of the LUNs that a mount, a volume manager or a partitioning changes.
    pub fingerprint: u64,
}

/// The progress of the first copy of a pair, with the estimate of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// The estimate that was made before the session was created.
    pub estimate: Option<Estimate>,
    /// When the copy began, in milliseconds since 1970.
    pub begun_ms: Option<u64>,
    /// When nothing was left to copy for the first time, in milliseconds since 1970.
    pub in_sync_ms: Option<u64>,
    /// When the target became authoritative, in milliseconds since 1970, unless the operator has
    /// taken that back.
    pub switched_ms: Option<u64>,
}

/// An estimate of `shunt plan`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Estimate {
    /// When it was made, in milliseconds since 1970.
    pub at_ms: u64,
    /// The duration of the copy, in seconds.
    pub copy_seconds: u64,
    /// How long a switch holds requests, in microseconds.
    pub pause_us: u64,
}

/// What was done to a leg to make it inaccessible.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Retired {
    /// How.
    pub how: RetireHow,
    /// The blocks that were wiped on each LUN, to be restored.
    pub saved: Vec<Vec<lun::Saved>>,
}

/// Identifies a pair of a session.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PairKey {
    /// The session.
    pub session: String,
    /// The position of the pair in the session, from 0.
    pub position: usize,
}

/// A LUN in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    /// What identifies the LUN ([`super::lock_key`]).
    pub key: String,
    /// The path by which it was named.
    pub path: PathBuf,
    /// The user of the LUN, in words: `volume db`, `the target of db in session s1`.
    pub holder: String,
}

/// One line of the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// The session, if it concerns one.
    pub session: Option<String>,
    /// The volume, if it concerns one.
    pub volume: Option<String>,
    /// What happened.
    pub what: String,
    /// The number of the user who asked for it; `None` if shuntd acted automatically.
    pub who: Option<u32>,
}

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
