//! Comparing the legs while the application continues.
//!
//! The copier reads a region from both legs and compares it. The result counts only if the region
//! was clean and nothing was written to it meanwhile: the volume *watches* the region. No write
//! waits for a watched region, unless the caller asks to hold the writes of a region that it never
//! finds quiet.

use alloc::vec::Vec;

use super::{ClaimError, CopierId, Effect, RESERVED_REGIONS_MAX, Volume};
use crate::{
    region::RegionState,
    units::{Epoch, RegionIndex},
};

/// The most regions that are watched at once, those whose writes are held included.
pub const WATCHED_REGIONS_MAX: usize = 64;

/// A region that is being compared, or is about to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Watch {
    region: RegionIndex,
    /// Whether nothing was written to the region since the watch began; false also before it began.
    quiet: bool,
    /// Whether writes to the region wait.
    holds: bool,
}

/// The regions that are being compared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Watches(Vec<Watch>);

impl Watches {
    pub(super) fn holds_writes(&self, region: RegionIndex) -> bool {
        self.0
            .iter()
            .any(|watch| watch.holds && watch.region == region)
    }

    /// Notes that a write to the region starts.
    pub(super) fn note_write(&mut self, region: RegionIndex) {
        for watch in &mut self.0 {
            if watch.region == region {
                watch.quiet = false;
            }
        }
    }

    /// Ends the waiting of writes to the region `only`, or to all regions.
    pub(super) fn let_writes_go(&mut self, only: Option<RegionIndex>) {
        for watch in &mut self.0 {
            if only.is_none_or(|only| only == watch.region) {
                watch.holds = false;
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    fn holding(&self) -> usize {
        self.0.iter().filter(|watch| watch.holds).count()
    }

    fn take(&mut self, region: RegionIndex) -> Option<Watch> {
        let index = self.0.iter().position(|watch| watch.region == region)?;
        Some(self.0.swap_remove(index))
    }
}

/// The answer to [`Volume::watch`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Watched {
    /// Regions that are watched from now on: to be read and compared.
    pub watched: Vec<RegionIndex>,
    /// Regions that are not clean: the legs may differ there.
    pub dirty: Vec<RegionIndex>,
}

/// The result of comparing regions that were watched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Regions that have the same data on both legs.
    pub same: Vec<RegionIndex>,
    /// Regions that do not; they become dirty.
    pub differing: Vec<RegionIndex>,
    /// Regions that could not be read.
    pub unread: Vec<RegionIndex>,
}

impl Volume {
    /// Watches regions that the copier is about to compare. Regions that are being written now, or
    /// that exceed [`WATCHED_REGIONS_MAX`], are in neither list of the answer. With `hold`, further
    /// writes to a few regions wait, so that the next attempt finds them quiet.
    ///
    /// # Errors
    /// [`ClaimError`]; nothing has changed then.
    pub fn watch(
        &mut self,
        copier: CopierId,
        epoch: Epoch,
        regions: &[RegionIndex],
        hold: bool,
    ) -> Result<Watched, ClaimError> {
        self.check_comparing(copier, epoch)?;
        let mut answer = Watched::default();
        for region in regions {
            if self.region_state(*region) != Some(RegionState::Clean) {
                let _ = self.watches.take(*region);
                answer.dirty.push(*region);
                continue;
            }
            let written = self.is_written(*region);
            let holds = self.watches.take(*region).is_some_and(|old| old.holds)
                || hold && self.watches.holding() < RESERVED_REGIONS_MAX;
            if (written && !holds) || self.watches.0.len() >= WATCHED_REGIONS_MAX {
                continue;
            }
            self.watches.0.push(Watch {
                region: *region,
                quiet: !written,
                holds,
            });
            if !written {
                answer.watched.push(*region);
            }
        }
        Ok(answer)
    }

    /// Takes the copier's result for regions that were watched. Returns the regions whose result
    /// does not count, because they were written meanwhile or are not clean any more.
    ///
    /// # Errors
    /// [`ClaimError`]; nothing has changed then.
    pub fn compared(
        &mut self,
        copier: CopierId,
        epoch: Epoch,
        found: &Comparison,
        effects: &mut Vec<Effect>,
    ) -> Result<Vec<RegionIndex>, ClaimError> {
        self.check_comparing(copier, epoch)?;
        let of = |list: &[RegionIndex]| {
            let is_watched = |region| self.watches.0.iter().any(|watch| watch.region == region);
            list.iter().copied().all(is_watched)
        };
        if !(of(&found.same) && of(&found.differing) && of(&found.unread)) {
            return Err(ClaimError::NotCopier);
        }
        // After a failure, the role is moving to a leg that was in sync until now.
        if self.writes_role() {
            return Err(ClaimError::RouteChanging);
        }
        if !found.differing.is_empty() {
            self.flush_again();
        }
        let mut unknown = Vec::new();
        for region in &found.same {
            if !self.end_watch(*region) {
                unknown.push(*region);
            }
        }
        for region in &found.differing {
            if !self.end_watch(*region) {
                unknown.push(*region);
            } else {
                self.intent.mark(*region);
                self.intent.keep_mark(*region);
                if let Some(regions) = &mut self.regions {
                    regions.set(*region, RegionState::Dirty);
                }
            }
        }
        for region in &found.unread {
            self.end_watch(*region);
        }
        self.retry_waiting(effects);
        self.write_map(effects);
        Ok(unknown)
    }

    /// Ends the watch of a region. Returns whether what was read meanwhile counts.
    fn end_watch(&mut self, region: RegionIndex) -> bool {
        let watch = self.watches.take(region);
        let quiet = watch.is_some_and(|watch| watch.quiet);
        quiet && self.region_state(region) == Some(RegionState::Clean)
    }

    fn check_comparing(&self, copier: CopierId, epoch: Epoch) -> Result<(), ClaimError> {
        if self.record.route.mirror().is_none() {
            return Err(ClaimError::NotMirrored);
        }
        if self.copier() != Some(copier) {
            return Err(ClaimError::NotCopier);
        }
        if self.record.epoch != epoch {
            return Err(ClaimError::StaleEpoch);
        }
        if self.mirror_fault.is_some() {
            return Err(ClaimError::MirrorFailed);
        }
        Ok(())
    }

    fn region_state(&self, region: RegionIndex) -> Option<RegionState> {
        self.regions.as_ref().map(|regions| regions.get(region))
    }
}
