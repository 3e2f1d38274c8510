//! The state of every region while both legs are in use.
//!
//! ```text
//!            write only on the authoritative leg, or the mirror leg failed
//!        +------------------------------------------------------------+
//!        |                                                            |
//!      Clean <---copied--- Copying <---claim--- Dirty <---------------+
//!        ^                   |                    ^
//!        |                 write                  | failed, copier gone
//!        |                   v                    |
//!        |             CopyingDirty --copied--> DirtyAgain
//!        |                                        |  claim (after Reserved, if it is busy)
//!        +----------copied------ CopyingExclusive <+
//! ```
//!
//! When a leg fails, what was written to it since its last flush may be lost: `Clean` regions that
//! are marked become `Dirty`, and claimed ones `CopyingDirty`.
//!
//! While the volume tracks, no claim is exclusive: `CopyingDirty` becomes `Dirty`, and `DirtyAgain`
//! becomes `Copying`.
//!
//! Invariants: `Clean` implies that the two legs are equal there but for writes in flight. A region
//! of a volume that mirrors is copied at most twice: the second claim is exclusive, and writes to
//! the region wait for the copy.

use alloc::{vec, vec::Vec};

use crate::{
    bits::Bits,
    units::{Geometry, RegionIndex},
};

/// The state of one region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RegionState {
    /// The legs are equal here.
    Clean,
    /// The mirror leg may differ.
    Dirty,
    /// The mirror leg may differ, and the next claim is exclusive unless the volume tracks: a write
    /// came during the copy, an exclusive copy failed, or a reservation ended without a claim.
    DirtyAgain,
    /// Dirty, and about to be claimed: new writes wait until those in flight are done.
    Reserved,
    /// The copier copies the region.
    Copying,
    /// The copier copies the region in vain: a write or a failure of a leg came meanwhile.
    CopyingDirty,
    /// The copier copies the region, and writes to it wait.
    CopyingExclusive,
}

impl RegionState {
    /// Whether a write to the region has to wait.
    #[must_use]
    pub const fn holds_writes(self) -> bool {
        matches!(self, Self::Reserved | Self::CopyingExclusive)
    }

    /// Whether the copier has claimed the region.
    #[must_use]
    pub const fn is_claimed(self) -> bool {
        matches!(
            self,
            Self::Copying | Self::CopyingDirty | Self::CopyingExclusive
        )
    }

    /// Whether the transition table above has an arrow from `self` to `next`.
    const fn may_become(self, next: Self) -> bool {
        use RegionState::{
            Clean, Copying, CopyingDirty, CopyingExclusive, Dirty, DirtyAgain, Reserved,
        };
        match self {
            Clean => matches!(next, Dirty),
            Dirty => matches!(next, Copying | Reserved),
            DirtyAgain => matches!(next, CopyingExclusive | Reserved | Copying),
            Reserved => matches!(next, CopyingExclusive | DirtyAgain),
            Copying => matches!(next, Clean | CopyingDirty | Dirty),
            CopyingDirty => matches!(next, DirtyAgain | Dirty),
            CopyingExclusive => matches!(next, Clean | DirtyAgain | CopyingDirty),
        }
    }
}

/// The states of all regions.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RegionMap {
    geometry: Geometry,
    states: Vec<RegionState>,
    /// The regions that are not `Clean`, to find them fast.
    not_clean: Bits,
    /// The regions that were not copied since all were made dirty: the mirror leg holds no useful
    /// data there.
    never_copied: Bits,
    claimed: usize,
}

impl RegionMap {
    /// A map with all regions dirty.
    #[must_use]
    pub fn all_dirty(geometry: Geometry) -> Self {
        let mut not_clean = Bits::new(geometry.regions(), 1);
        not_clean.fill();
        Self {
            geometry,
            states: vec![RegionState::Dirty; geometry.regions()],
            never_copied: not_clean.clone(),
            not_clean,
            claimed: 0,
        }
    }

    /// A map in which the regions of `dirty` are dirty and the others clean.
    #[must_use]
    pub fn from_dirty(geometry: Geometry, dirty: impl Iterator<Item = RegionIndex>) -> Self {
        let mut map = Self {
            geometry,
            states: vec![RegionState::Clean; geometry.regions()],
            not_clean: Bits::new(geometry.regions(), 1),
            never_copied: Bits::new(geometry.regions(), 1),
            claimed: 0,
        };
        for region in dirty {
            map.states[region.0] = RegionState::Dirty;
            map.not_clean.insert(region);
        }
        map
    }

    /// The state of a region.
    #[must_use]
    pub fn get(&self, region: RegionIndex) -> RegionState {
        self.states[region.0]
    }

    /// Changes the state of a region.
    ///
    /// # Panics
    /// If the transition table has no such arrow. Continuing after such a bug would cost data.
    pub fn set(&mut self, region: RegionIndex, next: RegionState) {
        let state = self.states[region.0];
        if state == next {
            return;
        }
        assert!(
            state.may_become(next),
            "region {} cannot go from {state:?} to {next:?}",
            region.0
        );
        self.claimed =
            self.claimed + usize::from(next.is_claimed()) - usize::from(state.is_claimed());
        self.states[region.0] = next;
        if next == RegionState::Clean {
            self.not_clean.remove(region);
        } else {
            self.not_clean.insert(region);
        }
    }

    /// Notes that the copier has copied a region, whatever was written to it meanwhile.
    pub(crate) fn was_copied(&mut self, region: RegionIndex) {
        self.never_copied.remove(region);
    }

    /// Whether the region is known never to have been copied since the mirror leg was added. After
    /// a restart of ublk-target this is known of no region.
    #[must_use]
    pub fn is_never_copied(&self, region: RegionIndex) -> bool {
        self.never_copied.contains(region)
    }

    /// The regions that are not clean.
    #[must_use]
    pub fn not_clean(&self) -> &Bits {
        &self.not_clean
    }

    /// The number of regions that are not clean.
    #[must_use]
    pub fn dirty_regions(&self) -> usize {
        self.not_clean.count()
    }

    /// The number of regions that the copier has claimed.
    #[must_use]
    pub const fn claimed_regions(&self) -> usize {
        self.claimed
    }

    /// How much of each of `parts` equal parts of the volume is not clean, in percent, rounded up.
    /// There are fewer parts if there are fewer regions.
    #[must_use]
    pub fn dirty_percent(&self, parts: usize) -> Vec<u8> {
        let regions = self.geometry.regions();
        let parts = parts.clamp(1, regions);
        let begin = |part: usize| part * regions / parts;
        (0..parts)
            .map(|part| {
                let (from, to) = (begin(part), begin(part + 1));
                let dirty = self.not_clean.count_within(from, to);
                (dirty * 100).div_ceil(to - from) as u8
            })
            .collect()
    }

    /// The size of the regions that are not clean, in bytes.
    #[must_use]
    pub fn dirty_bytes(&self) -> u64 {
        let last = RegionIndex(self.geometry.regions() - 1);
        let all = self.not_clean.count() as u64 * self.geometry.region_bytes();
        if self.not_clean.contains(last) {
            all - (self.geometry.region_bytes() - self.geometry.range(last).length)
        } else {
            all
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dirty_bytes_counts_the_short_last_region_as_short() {
        let geometry = Geometry::new((2 << 20) + 4096, 1 << 20).unwrap();
        let mut map = RegionMap::all_dirty(geometry);
        assert_eq!(map.dirty_bytes(), geometry.size_bytes());
        map.set(RegionIndex(2), RegionState::Copying);
        assert_eq!(map.claimed_regions(), 1);
        map.set(RegionIndex(2), RegionState::Clean);
        assert_eq!((map.dirty_bytes(), map.claimed_regions()), (2 << 20, 0));
    }

    #[test]
    fn a_region_is_known_to_be_copied_for_the_first_time_until_it_was_copied() {
        let geometry = Geometry::new(2 << 20, 1 << 20).unwrap();
        let mut map = RegionMap::all_dirty(geometry);
        map.was_copied(RegionIndex(0));
        let known = [0, 1].map(|region| map.is_never_copied(RegionIndex(region)));
        assert_eq!(known, [false, true]);
        // An earlier process left the region dirty: it may have been copied before.
        let loaded = RegionMap::from_dirty(geometry, [RegionIndex(1)].into_iter());
        assert!(!loaded.is_never_copied(RegionIndex(1)));
    }

    #[test]
    #[should_panic(expected = "cannot go from Clean to Copying")]
    fn a_clean_region_is_not_copied() {
        let geometry = Geometry::new(1 << 20, 1 << 20).unwrap();
        let mut map = RegionMap::from_dirty(geometry, core::iter::empty());
        map.set(RegionIndex(0), RegionState::Copying);
    }
}
