//! The rows as values.

use std::fmt;
use std::path::{Path, PathBuf};

use lun::{Identity, Seen};
use migration_core::pair::Phase;
use migration_core::route::Side;
use migration_proto::luns::LunPaths;
use migration_proto::manager::{
    Cursor, HistoryEvent, RetireHow, SessionOptions, UnreadablePart, Verification,
};
use migration_proto::route::{Extent, Leg};
use serde::{Deserialize, Serialize};

use super::model::Change;
use crate::history;

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
#[serde(deny_unknown_fields)]
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
    pub event: HistoryEvent,
    /// The number of the user who asked for it; `None` if shuntd acted automatically.
    pub who: Option<u32>,
    /// The place in the history after the line; `None` until the line is stored.
    pub cursor: Option<Cursor>,
}

impl Note {
    /// The sentence for the line.
    #[must_use]
    pub fn sentence(&self) -> String {
        history::sentence(&self.event, self.session.as_deref(), self.volume.as_deref())
    }
}
