//! The copier's claims. There is one copier at a time; its claims end with its connection.

use alloc::vec::Vec;

use super::{Call, Effect, Errno, PASS_NANOSECONDS, Reply, Rule, Volume, Write};
use crate::{
    region::{RegionMap, RegionState},
    units::{Epoch, RegionIndex, Time},
};

/// The most regions that may be claimed at once.
pub const CLAIMED_REGIONS_MAX: usize = 1024;

/// The most regions for which writes wait at once: those that are reserved until writes in flight
/// are done, and those that are copied exclusively.
pub const RESERVED_REGIONS_MAX: usize = 4;

/// How often the patience of writes with the copier is doubled at most: from 2 s to 16 s.
const PATIENCE_DOUBLINGS_MAX: u32 = 3;

/// The caller's id for the connection of a copier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CopierId(pub u64);

/// Why a copier is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClaimError {
    /// There is no mirror leg.
    NotMirrored,
    /// Another copier is connected.
    OtherCopier,
    /// The caller is not the copier, or has not claimed what it reports.
    NotCopier,
    /// The epoch is not the current one.
    StaleEpoch,
    /// The mirror leg has failed and was not retried yet.
    MirrorFailed,
    /// The copier already waits for an answer to a claim.
    ClaimPending,
    /// The route is being changed.
    RouteChanging,
}

/// What happened to regions that a copier had claimed.
#[derive(Debug, Clone, Copy)]
pub struct Report<'a> {
    /// The epoch of the claim.
    pub epoch: Epoch,
    /// Regions that are the same on the mirror leg now.
    pub copied: &'a [RegionIndex],
    /// Regions that were not copied.
    pub failed: &'a [RegionIndex],
    /// The error of the mirror leg, if it failed.
    pub mirror_error: Option<Errno>,
}

impl<'a> Report<'a> {
    /// A report that all `regions` were copied.
    #[must_use]
    pub const fn copied(epoch: Epoch, regions: &'a [RegionIndex]) -> Self {
        Self {
            epoch,
            copied: regions,
            failed: &[],
            mirror_error: None,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Claims {
    copier: Option<CopierId>,
    claimed: Vec<RegionIndex>,
    /// The claimed regions whose report a sweep waits for.
    awaited: Vec<RegionIndex>,
    reserved: Vec<RegionIndex>,
    pending: Option<Pending>,
    /// Where the search for the next region begins.
    cursor: usize,
    /// How often a write has lost its patience with the copy of a region, since the copier
    /// connected.
    shared: u32,
    /// How many regions may be granted before the next pass, while the volume tracks.
    pass: usize,
    next_pass: Time,
}

impl Claims {
    /// Notes that the copy of a region took longer than writes wait for it.
    pub(super) const fn note_shared(&mut self) {
        self.shared = self.shared.saturating_add(1);
    }

    pub(super) fn claimed(&self) -> &[RegionIndex] {
        &self.claimed
    }

    /// Makes a sweep wait for the report of all that is claimed now.
    pub(super) fn await_all(&mut self) {
        self.awaited.clone_from(&self.claimed);
    }

    pub(super) fn is_awaited(&self) -> bool {
        !self.awaited.is_empty()
    }
}

#[cfg(feature = "seeded-bugs")]
impl Claims {
    /// See [`Volume::expire`].
    pub(super) const fn expire_pass(&mut self) {
        self.next_pass = Time(0);
    }

    /// See [`Volume::forget_history`].
    pub(super) fn forget(&mut self) {
        self.claimed.sort_unstable();
        self.awaited.sort_unstable();
        self.shared = 0;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Pending {
    call: Call,
    regions_max: usize,
}

impl Volume {
    /// The connected copier, if there is one.
    #[must_use]
    pub const fn copier(&self) -> Option<CopierId> {
        self.claims.copier
    }

    /// Accepts a copier. The shell has made sure that no I/O of an earlier copier is in flight.
    ///
    /// # Errors
    /// [`ClaimError`]
    pub fn open_copier(&mut self, copier: CopierId) -> Result<Epoch, ClaimError> {
        if self.record.route.mirror().is_none() {
            return Err(ClaimError::NotMirrored);
        }
        if self.mirror_fault.is_some() {
            return Err(ClaimError::MirrorFailed);
        }
        if self.change.is_some() {
            return Err(ClaimError::RouteChanging);
        }
        match self.claims.copier {
            Some(other) if other != copier => Err(ClaimError::OtherCopier),
            Some(_) | None => {
                self.claims.copier = Some(copier);
                Ok(self.record.epoch)
            }
        }
    }

    /// Takes the copier's request for regions. The answer is [`Reply::Claimed`] or
    /// [`Reply::ClaimRefused`], perhaps later.
    pub fn claim(
        &mut self,
        copier: CopierId,
        call: Call,
        regions_max: usize,
        effects: &mut Vec<Effect>,
    ) {
        let error = if self.claims.copier != Some(copier) {
            Some(ClaimError::NotCopier)
        } else if self.mirror_fault.is_some() {
            Some(ClaimError::MirrorFailed)
        } else if self.claims.pending.is_some() {
            Some(ClaimError::ClaimPending)
        } else {
            None
        };
        if let Some(error) = error {
            let reply = Reply::ClaimRefused(error);
            effects.push(Effect::Reply { call, reply });
            return;
        }
        self.claims.pending = Some(Pending { call, regions_max });
        self.retry_claim(effects);
    }

    /// Takes the copier's report about regions that it had claimed.
    ///
    /// # Errors
    /// [`ClaimError`]; nothing has changed then.
    pub fn report(
        &mut self,
        now: Time,
        copier: CopierId,
        report: &Report<'_>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), ClaimError> {
        let Report {
            epoch,
            copied,
            failed,
            mirror_error,
        } = *report;
        if self.claims.copier != Some(copier) && !self.breaks(Rule::ReportsFromCopierOnly) {
            return Err(ClaimError::NotCopier);
        }
        if self.record.epoch != epoch && !self.breaks(Rule::ReportsOfThisEpochOnly) {
            return Err(ClaimError::StaleEpoch);
        }
        // Nothing is claimed while the role moves, and an error would make regions dirty meanwhile.
        if self.writes_role() {
            return Err(ClaimError::RouteChanging);
        }
        let known = |region: &RegionIndex| self.claims.claimed.contains(region);
        if !copied.iter().chain(failed).all(known) {
            return Err(ClaimError::NotCopier);
        }
        for region in copied {
            self.release(*region, true);
        }
        for region in failed {
            self.release(*region, false);
        }
        if let Some(error) = mirror_error {
            self.fail_mirror(error, effects);
        }
        self.settle_sweep();
        self.retry_waiting(effects);
        self.retry_claim(effects);
        self.rest_copied(now, effects);
        self.write_map(effects);
        Ok(())
    }

    /// Ends the copier's connection: what the copier had claimed is dirty again.
    pub fn close_copier(&mut self, copier: CopierId, now: Time, effects: &mut Vec<Effect>) {
        if self.claims.copier != Some(copier) {
            return;
        }
        while let Some(region) = self.claims.claimed.last().copied() {
            self.release(region, self.breaks(Rule::ClaimsDieWithCopier));
        }
        self.unreserve(None);
        self.watches.clear();
        self.claims.copier = None;
        self.claims.pending = None;
        self.claims.shared = 0;
        self.settle_sweep();
        self.rest_copied(now, effects);
        self.retry_waiting(effects);
        self.write_map(effects);
    }

    /// Ends the connection of the copier because the route has changed. Nothing is claimed then;
    /// the copier has to connect again.
    pub(super) fn dismiss_copier(&mut self, effects: &mut Vec<Effect>) {
        debug_assert!(self.claims.claimed.is_empty());
        if let Some(Pending { call, .. }) = self.claims.pending {
            let reply = Reply::ClaimRefused(ClaimError::StaleEpoch);
            effects.push(Effect::Reply { call, reply });
        }
        self.claims = Claims::default();
        self.watches.clear();
    }

    /// Tries the mirror leg again. Returns whether it had failed.
    ///
    /// # Errors
    /// [`ClaimError::NotMirrored`]
    pub fn retry_mirror(&mut self) -> Result<bool, ClaimError> {
        if self.record.route.mirror().is_none() {
            return Err(ClaimError::NotMirrored);
        }
        Ok(self.mirror_fault.take().is_some())
    }

    fn release(&mut self, region: RegionIndex, copied: bool) {
        let tracks = self.tracks();
        let (Some(regions), Some(index)) = (
            &mut self.regions,
            self.claims
                .claimed
                .iter()
                .position(|other| *other == region),
        ) else {
            return;
        };
        self.claims.claimed.swap_remove(index);
        self.claims.awaited.retain(|awaited| *awaited != region);
        let next = match (regions.get(region), copied) {
            (RegionState::Copying | RegionState::CopyingExclusive, true) => RegionState::Clean,
            (RegionState::Copying, false) => RegionState::Dirty,
            (RegionState::CopyingDirty, _) if tracks => RegionState::Dirty,
            (RegionState::CopyingDirty, _) | (RegionState::CopyingExclusive, false) => {
                RegionState::DirtyAgain
            }
            (
                state @ (RegionState::Clean
                | RegionState::Dirty
                | RegionState::DirtyAgain
                | RegionState::Reserved),
                _,
            ) => state,
        };
        regions.set(region, next);
        if copied {
            regions.was_copied(region);
            self.counters.copied_bytes += self.record.geometry.range(region).length;
        }
    }

    /// How long a write waits for the copier. A region that is written all the time has to be
    /// copied while writes wait. If the patience was too short for that, it is doubled for the next
    /// writes, up to a limit.
    pub(super) fn claim_patience(&self) -> u64 {
        let doublings = self.claims.shared.min(PATIENCE_DOUBLINGS_MAX);
        self.patience.saturating_mul(1 << doublings)
    }

    /// The regions that the copier has claimed.
    pub(super) fn claimed(&self) -> &[RegionIndex] {
        &self.claims.claimed
    }

    /// Ends the reservation of the region `only`, or of all regions.
    pub(super) fn unreserve(&mut self, only: Option<RegionIndex>) {
        let ended = |region: &mut RegionIndex| only.is_none_or(|only| only == *region);
        for region in self.claims.reserved.extract_if(.., ended) {
            if let Some(regions) = &mut self.regions
                && regions.get(region) == RegionState::Reserved
            {
                regions.set(region, RegionState::DirtyAgain);
            }
        }
    }

    /// Answers the copier's claim: with regions; or with none if nothing is dirty, or if the copier
    /// holds regions that it could report (the answer frees its only connection for that).
    pub(super) fn retry_claim(&mut self, effects: &mut Vec<Effect>) {
        let Some(Pending { call, regions_max }) = self.claims.pending else {
            return;
        };
        let waits_for_pass = self.tracks() && !self.copies_rest();
        let granted = self.grant(regions_max);
        let all_clean = self
            .regions
            .as_ref()
            .is_none_or(|regions| regions.dirty_regions() == 0);
        let nothing_to_wait_for = all_clean && !waits_for_pass;
        if !granted.is_empty() || nothing_to_wait_for || !self.claims.claimed.is_empty() {
            self.claims.pending = None;
            let reply = Reply::Claimed(granted);
            effects.push(Effect::Reply { call, reply });
        } else if !waits_for_pass {
            self.reserve();
        }
    }

    /// Whether a pass is due. If it is, the next one is scheduled.
    pub(super) fn take_pass_timer(&mut self, now: Time) -> bool {
        let due = self.claims.next_pass <= now;
        if due {
            self.claims.next_pass = now.plus(PASS_NANOSECONDS);
        }
        due
    }

    /// Sets how many regions may be granted until the next pass.
    pub(super) const fn set_pass(&mut self, regions: usize) {
        self.claims.pass = regions;
    }

    pub(super) fn refuse_claim(&mut self, effects: &mut Vec<Effect>) {
        self.unreserve(None);
        self.retry_waiting(effects);
        if let Some(Pending { call, .. }) = self.claims.pending.take() {
            let reply = Reply::ClaimRefused(ClaimError::MirrorFailed);
            effects.push(Effect::Reply { call, reply });
        }
    }

    /// Grants dirty regions that are not being written, the reserved ones first.
    fn grant(&mut self, regions_max: usize) -> Vec<RegionIndex> {
        let room = CLAIMED_REGIONS_MAX.saturating_sub(self.claims.claimed.len());
        let mut wanted = regions_max.min(room);
        let tracks = self.tracks();
        if tracks && !self.copies_rest() {
            wanted = wanted.min(self.claims.pass);
        }
        let mut exclusive = self.exclusive_regions();
        let mut granted = Vec::new();
        let mut index = 0;
        while let (Some(region), true) = (
            self.claims.reserved.get(index).copied(),
            granted.len() < wanted && exclusive < RESERVED_REGIONS_MAX,
        ) {
            if self.is_written(region) {
                index += 1;
            } else {
                self.claims.reserved.swap_remove(index);
                granted.push(region);
                exclusive += 1;
            }
        }
        if let Some(regions) = &self.regions {
            let mut next = wrapping_next(regions, self.claims.cursor);
            let mut seen = 0;
            let dirty = regions.dirty_regions();
            while let (Some(region), true) = (next, granted.len() < wanted && seen < dirty) {
                let state = regions.get(region);
                let again = state == RegionState::DirtyAgain && !tracks;
                let turn = tracks || !self.comes_last(region);
                let allowed =
                    is_claimable(state) && turn && (!again || exclusive < RESERVED_REGIONS_MAX);
                if allowed && !self.is_written(region) && self.may_be_copied(region) {
                    granted.push(region);
                    exclusive += usize::from(again);
                }
                seen += 1;
                self.claims.cursor = region.0 + 1;
                next = wrapping_next(regions, self.claims.cursor);
            }
        }
        if let Some(regions) = &mut self.regions {
            for region in &granted {
                regions.set(*region, claimed_state(regions.get(*region), tracks));
            }
        }
        self.claims.pass = self.claims.pass.saturating_sub(granted.len());
        granted.sort_unstable();
        self.claims.claimed.extend_from_slice(&granted);
        granted
    }

    /// Reserves a few regions when all dirty regions are being written: new writes to them wait, so
    /// that the copier gets a turn.
    fn reserve(&mut self) {
        let mut from = 0;
        while let (Some(regions), true) = (
            &self.regions,
            self.claims.reserved.len() < RESERVED_REGIONS_MAX,
        ) {
            let Some(region) = regions.not_clean().next_from(from) else {
                return;
            };
            let reserves = is_claimable(regions.get(region))
                && !self.comes_last(region)
                && self.may_be_copied(region);
            if let (true, Some(regions)) = (reserves, &mut self.regions) {
                regions.set(region, RegionState::Reserved);
                self.claims.reserved.push(region);
            }
            from = region.0 + 1;
        }
    }

    /// Whether other regions are copied before this one. Both ends of the volume come last:
    /// programs look there for what a disk holds, and a target that is not yet a copy must not be
    /// taken for one.
    fn comes_last(&self, region: RegionIndex) -> bool {
        let last = self.record.geometry.regions() - 1;
        let is_end = |region: RegionIndex| region.0 == 0 || region.0 == last;
        let Some(regions) = &self.regions else {
            return false;
        };
        let not_clean = regions.not_clean();
        let ends = [0, last].map(RegionIndex);
        let ends_not_clean = ends.iter().filter(|end| not_clean.contains(**end)).count();
        is_end(region) && last > 0 && not_clean.count() > ends_not_clean
    }

    /// Whether the region is marked durably, so that the next process would find it dirty too.
    /// Otherwise I/O of a dead copier could land on a region that counts as clean again.
    fn may_be_copied(&self, region: RegionIndex) -> bool {
        self.intent.is_covered(region) || self.breaks(Rule::CopiedIsMarked)
    }

    fn exclusive_regions(&self) -> usize {
        let is_exclusive = |region: &&RegionIndex| {
            let regions = self.regions.as_ref();
            regions.is_some_and(|map| map.get(**region) == RegionState::CopyingExclusive)
        };
        self.claims.claimed.iter().filter(is_exclusive).count()
    }

    /// Whether a write to the region is in flight.
    pub(super) fn is_written(&self, region: RegionIndex) -> bool {
        let range = self.record.geometry.range(region);
        let counts = |write: &&Write| {
            !self.breaks(Rule::NoClaimWhileWritten)
                && (write.tag.is_some() || !self.breaks(Rule::NoClaimWhileTrailing))
        };
        let mut writes = self.writes.iter().filter(counts);
        writes.any(|write| write.range.overlaps(range))
    }
}

const fn is_claimable(state: RegionState) -> bool {
    matches!(state, RegionState::Dirty | RegionState::DirtyAgain)
}

const fn claimed_state(state: RegionState, tracks: bool) -> RegionState {
    match state {
        RegionState::DirtyAgain if tracks => RegionState::Copying,
        RegionState::DirtyAgain | RegionState::Reserved => RegionState::CopyingExclusive,
        RegionState::Dirty
        | RegionState::Clean
        | RegionState::Copying
        | RegionState::CopyingDirty
        | RegionState::CopyingExclusive => RegionState::Copying,
    }
}

fn wrapping_next(regions: &RegionMap, from: usize) -> Option<RegionIndex> {
    let not_clean = regions.not_clean();
    not_clean.next_from(from).or_else(|| not_clean.next_from(0))
}
