//! Comparing the legs while the application goes on.
//!
//! The copier's connection reads a region from both legs and compares. What it saw counts only if the region was clean and
//! nothing was written to it meanwhile: the volume *watches* it. Nobody waits for a watched region, unless the caller asks
//! to hold the writes of one that it never finds quiet.

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
    /// Nothing was written to it since the watch began; false also before it began.
    quiet: bool,
    /// Writes to it wait.
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

    /// A write to the region starts.
    pub(super) fn note_write(&mut self, region: RegionIndex) {
        for watch in &mut self.0 {
            if watch.region == region {
                watch.quiet = false;
            }
        }
    }

    /// Writes to the region, or to any, wait no longer.
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

/// What became of a wish to watch regions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Watched {
    /// Watched from now on: to be read and compared.
    pub watched: Vec<RegionIndex>,
    /// Not clean: the legs may differ there.
    pub dirty: Vec<RegionIndex>,
}

/// What came of comparing regions that were watched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// They have the same on both legs.
    pub same: Vec<RegionIndex>,
    /// They do not: dirty from now on.
    pub differing: Vec<RegionIndex>,
    /// They could not be read.
    pub unread: Vec<RegionIndex>,
}

impl Volume {
    /// The copier is about to compare regions. Those that are being written at this moment are in neither list of the
    /// answer; if `hold`, further writes to a few of them wait, so that the next try finds them quiet.
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

    /// The copier has compared regions that were watched. Returns those of which nothing is known, because they were
    /// written meanwhile.
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
        // The role moves, after a failure, to a leg that was in sync until now.
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

    /// Whether what was read while the region was watched counts.
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
