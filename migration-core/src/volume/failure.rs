//! What happens when a leg fails, or keeps the application waiting.
//!
//! The mirror leg is given up, and no request waits for it. What it acknowledged since its last
//! flush may have been in a cache that is gone: every region that is marked becomes dirty, and so
//! does every region that is written from now on. The leg may still be doing earlier writes. These
//! keep their places until they end, and their regions are not copied before.
//!
//! An error of the authoritative leg is reported to the application, with two exceptions. A read of
//! clean regions is done on the mirror leg. And if the policy says so and the legs are equal, a
//! write or flush that failed is held, the roles are exchanged as in a switch, and the request is
//! done on the new authoritative leg. The failed leg becomes the mirror leg and is given up.

use alloc::vec::Vec;

use super::{
    Effect, Errno, FlushId, Op, Rule, Stage, Volume,
    change::{Change, Step},
    requests::Obstacle,
};
use crate::{
    region::RegionState,
    route::{Route, Side},
    units::{RegionIndex, Tag, Time},
};

/// How long requests may be held for an exchange of the roles after a failure, in nanoseconds.
pub(super) const FAIL_OVER_NANOSECONDS_MAX: u64 = 20_000_000_000;

/// "Connection timed out", as every Linux architecture but MIPS and SPARC numbers it.
pub(super) const ETIMEDOUT: Errno = Errno(110);

/// "No such device".
const ENODEV: Errno = Errno(19);

/// What to do when the authoritative leg fails to write or to flush while the legs are equal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum OnAuthoritativeFailure {
    /// Exchange the roles if the target fails; report the error to the application if the source
    /// fails.
    #[default]
    Auto,
    /// Report the error to the application.
    Error,
    /// Exchange the roles.
    Switch,
}

impl Volume {
    /// What to do when the authoritative leg fails.
    #[must_use]
    pub const fn on_authoritative_failure(&self) -> OnAuthoritativeFailure {
        self.on_authoritative_failure
    }

    /// Sets what to do when the authoritative leg fails.
    pub const fn set_on_authoritative_failure(&mut self, policy: OnAuthoritativeFailure) {
        self.on_authoritative_failure = policy;
    }

    /// Gives the mirror leg up: it is not written before [`Self::retry_mirror`], and what it may
    /// have lost becomes dirty.
    pub(super) fn fail_mirror(&mut self, error: Errno, effects: &mut Vec<Effect>) {
        if self.healthy_mirror().is_none() {
            return;
        }
        self.mirror_fault = Some(error);
        if self.breaks(Rule::LostMirrorCacheIsDirty) {
            for index in 0..self.writes.len() {
                let write = self.writes[index];
                if write.place.is_some() {
                    self.differ(write.range);
                }
            }
            self.abandon_sweep();
        } else if !self.breaks(Rule::MirrorFailureIsDirty) {
            self.distrust_marked();
        }
        self.share_claims();
        self.refuse_claim(effects);
    }

    /// Makes every clean region that is marked dirty, and every copy in progress void: one leg may
    /// have lost what it acknowledged since its last flush, while the other leg still has it. Only
    /// a region that was flushed on both legs, and has lost its mark since, is still equal.
    pub(super) fn distrust_marked(&mut self) {
        let Some(regions) = &mut self.regions else {
            return;
        };
        self.intent.for_each_marked(|region| {
            if regions.get(region) == RegionState::Clean {
                regions.set(region, RegionState::Dirty);
            }
        });
        for region in self.claims.claimed() {
            if regions.get(*region).is_claimed() {
                regions.set(*region, RegionState::CopyingDirty);
            }
        }
        self.abandon_sweep();
        self.flush_again();
    }

    /// Notes that the mirror leg is missing. To be called before [`Self::begin`].
    pub fn mirror_missing(&mut self) {
        if self.record.route.mirror().is_some() {
            self.mirror_fault = Some(ENODEV);
        }
    }

    /// Makes every region dirty: the mirror leg was closed for a while, and others could write to
    /// it.
    pub fn doubt_mirror(&mut self, effects: &mut Vec<Effect>) {
        for region in (0..self.record.geometry.regions()).map(RegionIndex) {
            self.intent.mark(region);
        }
        self.distrust_marked();
        self.write_map(effects);
    }

    /// Ends the waiting of writes whose patience is over. A mirror leg that such a write waits for
    /// is given up; a claim that it waits for no longer holds writes.
    pub(super) fn check_patience(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let mut retry = false;
        for index in 0..self.waiting.len() {
            let slot = *self.slot(self.waiting[index]);
            if now.since(slot.since) < self.patience || self.gate.is_closed() {
                break;
            }
            match self.may_start(slot.request.range) {
                Err(Obstacle::Mirror) if !self.breaks(Rule::StalledMirrorIsGivenUp) => {
                    self.fail_mirror(ETIMEDOUT, effects);
                    self.fail_exchange(now, effects);
                    return;
                }
                Err(Obstacle::Claim(region)) => {
                    let copied = self.regions.as_ref().map(|regions| regions.get(region));
                    let is_copied = copied == Some(RegionState::CopyingExclusive);
                    let waited = now.since(slot.since);
                    if is_copied && waited < self.claim_patience() {
                        continue;
                    }
                    if is_copied {
                        self.claims.note_shared();
                    }
                    self.share_claim(region);
                    retry = true;
                }
                Err(Obstacle::Map | Obstacle::Write | Obstacle::Mirror) | Ok(_) => {}
            }
        }
        if retry {
            self.retry_waiting(effects);
        }
    }

    /// Handles a request that the authoritative leg could not do.
    pub(super) fn authoritative_failed(
        &mut self,
        now: Time,
        tag: Tag,
        error: Errno,
        effects: &mut Vec<Effect>,
    ) {
        self.authoritative_fault = Some(error);
        let op = self.slot(tag).request.op;
        if op == Op::Read {
            self.slot(tag).fault = Some(error);
            if !self.try_read_elsewhere(tag, effects) {
                self.wait(now, tag);
            }
        } else if op == Op::Flush && self.error_is_due {
            self.answer(tag, Err(error), effects);
        } else if self.may_fail_over() {
            let slot = self.slot(tag);
            slot.stage = Stage::Held;
            slot.fault = Some(error);
            self.gate.note_held(now);
            self.held.push_back(tag);
            self.fail_over(now, effects);
        } else {
            self.distrust_authoritative();
            self.answer(tag, Err(error), effects);
        }
    }

    /// Handles an authoritative leg that keeps its role although it failed a write or a flush: it
    /// may have lost what the mirror leg has. A failed read says nothing about the cache of a leg.
    pub(super) fn distrust_authoritative(&mut self) {
        if !self.breaks(Rule::LostCacheIsDirty) {
            self.distrust_marked();
        }
        self.error_is_due = self.owes_error();
    }

    /// Whether a flush has still to be answered with an error.
    fn owes_error(&self) -> bool {
        let mut slots = self.slots.iter();
        self.unreported.is_some()
            || slots.any(|slot| slot.request.op == Op::Flush && slot.fault.is_some())
    }

    /// Notes that a flush of the application was answered with an error.
    pub(super) fn error_reported(&mut self) {
        self.unreported = None;
        self.error_is_due &= self.owes_error();
    }

    /// Gives the error of a failed flush of the authoritative leg to every flush that the
    /// application waits for.
    pub(super) fn spoil_flushes(&mut self, error: Errno) {
        let spoils = !self.breaks(Rule::FailedFlushIsOfAll);
        for slot in &mut self.slots {
            if slot.request.op == Op::Flush && slot.stage != Stage::Free && spoils {
                slot.fault = Some(error);
            }
        }
    }

    /// Notes that a flush of the authoritative leg that the volume asked for has failed. Without
    /// the volume, the leg would have reported the error to the application. So the flushes that
    /// the application waits for get the error, and so does every new one until one was answered
    /// with it.
    pub(super) fn note_lost_flush(&mut self, error: Errno) {
        self.authoritative_fault = Some(error);
        self.spoil_flushes(error);
        if !self.breaks(Rule::FailedFlushIsReported) {
            self.unreported = Some(error);
        }
    }

    /// Handles a failed flush of the authoritative leg that the volume asked for: exchanges the
    /// roles if the policy says so, or makes dirty what the leg may have lost.
    pub(super) fn authoritative_flush_failed(
        &mut self,
        now: Time,
        flush: FlushId,
        error: Errno,
        effects: &mut Vec<Effect>,
    ) {
        let waits = |change: &Change| change.waits_for(flush);
        if self.change.as_ref().is_some_and(waits) {
            self.end_change(super::ChangeError::Flush(error), effects);
        }
        if self.may_fail_over() {
            self.fail_over(now, effects);
        } else {
            self.distrust_authoritative();
        }
        self.open_gate(now, effects);
    }

    /// Tries a read that the authoritative leg failed to do on the mirror leg, if the mirror leg
    /// holds the same data; otherwise the read has failed. Returns false if the read has to wait,
    /// because a write to its range is still in flight.
    pub(super) fn try_read_elsewhere(&mut self, tag: Tag, effects: &mut Vec<Effect>) -> bool {
        let slot = *self.slot(tag);
        let Some(error) = slot.fault else {
            // The roles were exchanged while the read waited.
            self.start(tag, effects);
            return true;
        };
        let range = slot.request.range;
        let Some(mirror) = self.healthy_mirror().filter(|_| self.is_clean(range)) else {
            self.answer(tag, Err(error), effects);
            return true;
        };
        let on_its_way = self.writes.iter().any(|write| write.range.overlaps(range));
        if on_its_way && !self.breaks(Rule::MirrorReadsWait) {
            return false;
        }
        self.start_on(tag, mirror, effects);
        true
    }

    /// Whether the roles are being exchanged because the authoritative leg failed. The results of
    /// that leg for flushes and reads no longer count: these requests are done again.
    pub(super) fn is_failing_over(&self) -> bool {
        self.change.as_ref().is_some_and(Change::is_fail_over)
            && !self.breaks(Rule::FailedLegIsNotBelieved)
    }

    fn may_fail_over(&self) -> bool {
        let wanted = match self.on_authoritative_failure {
            OnAuthoritativeFailure::Error => false,
            OnAuthoritativeFailure::Switch => true,
            OnAuthoritativeFailure::Auto => self.record.route.authoritative() == Side::Target,
        };
        let free = self.change.as_ref().is_none_or(Change::is_fail_over);
        wanted && free && self.may_exchange_roles().is_ok()
    }

    /// Begins to exchange the roles. Flushes of the failing leg are not waited for.
    fn fail_over(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if self.change.is_some() {
            return;
        }
        // The results of flushes of the failing leg no longer count, so the marks stay.
        self.abandon_sweep();
        let authoritative = self.record.route.authoritative().other();
        let next = self.next_record(super::Target::Route(Route::Mirrored { authoritative }));
        self.change = Some(Change::fail_over(next, now.plus(FAIL_OVER_NANOSECONDS_MAX)));
        self.gate.changing = true;
        self.role_slots_settled(now, effects);
    }

    /// Ends an exchange of the roles after a failure: the former authoritative leg is not written
    /// any more, what it may have lost becomes dirty, and the requests that failed are done again.
    pub(super) fn failed_over(&mut self) {
        self.mirror_fault = self.authoritative_fault;
        self.counters.fail_overs += 1;
        // The new authoritative leg has all data, and was flushed.
        self.unreported = self.unreported.filter(|_| self.error_is_due);
        if !self.breaks(Rule::LostFormerCacheIsDirty) {
            self.distrust_marked();
        }
    }

    /// Forgets the errors of the former authoritative leg. The errors of failed flushes stay,
    /// unless the leg has lost its role because of them.
    pub(super) fn forget_faults(&mut self, failed_over: bool) {
        self.authoritative_fault = None;
        for tag in self.held.iter().chain(&self.waiting) {
            let slot = &mut self.slots[usize::from(tag.0)];
            if slot.request.op != Op::Flush || failed_over && !self.error_is_due {
                slot.fault = None;
            }
        }
    }

    /// Ends the waiting of writes for a region that the copier copies or compares. The copy or
    /// comparison continues, but has to be repeated.
    fn share_claim(&mut self, region: RegionIndex) {
        self.watches.let_writes_go(Some(region));
        if let Some(regions) = &mut self.regions {
            match regions.get(region) {
                RegionState::CopyingExclusive => regions.set(region, RegionState::CopyingDirty),
                RegionState::Reserved => self.unreserve(Some(region)),
                RegionState::Clean
                | RegionState::Dirty
                | RegionState::DirtyAgain
                | RegionState::Copying
                | RegionState::CopyingDirty => {}
            }
        }
    }

    pub(super) fn share_claims(&mut self) {
        self.watches.let_writes_go(None);
        for index in 0..self.claimed().len() {
            self.share_claim(self.claimed()[index]);
        }
    }

    /// Ends a change that needs the mirror leg.
    fn fail_exchange(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let waits = |change: &Change| {
            !matches!(change.next_route(), Route::Single(_)) && change.step() != Step::Role
        };
        if self.change.as_ref().is_some_and(waits) {
            self.fail_change(now, super::ChangeError::MirrorFailed, effects);
        }
    }
}
