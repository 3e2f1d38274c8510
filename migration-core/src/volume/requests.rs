//! The life of a request: held by the gate, waiting for its turn, on the legs, answered.

use alloc::vec::Vec;

use super::{Effect, Errno, IoResult, Op, Place, Request, Rule, Slot, Stage, Volume, Write};
use crate::{
    region::RegionState,
    route::Side,
    units::{Range, RegionIndex, Tag, Time},
};

/// "Remote I/O error", as every Linux architecture but Alpha, MIPS, PA-RISC and SPARC numbers it:
/// the device cannot do the operation, and a retry or another path does not help. "Not supported"
/// would not do: the block layer turns it into success.
const EREMOTEIO: Errno = Errno(121);

/// Why a write may not start yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// The marks of its regions are not durable.
    Map,
    /// Writes to this region wait for the copier.
    Claim(RegionIndex),
    /// The authoritative leg still does a write that overlaps.
    Write,
    /// The mirror leg still does a write that overlaps, or all of its places are in use.
    Mirror,
}

impl Volume {
    /// Takes a request of the application. The tag must be free. The range must lie within the
    /// volume and must not be longer than the smallest region (the shell's largest request), except
    /// for a discard.
    pub fn request(&mut self, now: Time, tag: Tag, request: Request, effects: &mut Vec<Effect>) {
        debug_assert_eq!(self.slots[usize::from(tag.0)].stage, Stage::Free);
        self.note_time(now);
        *self.slot(tag) = Slot {
            stage: Stage::Held,
            request,
            fault: self.unreported.filter(|_| request.op == Op::Flush),
            ..Slot::FREE
        };
        if self.gate.is_closed() {
            self.gate.note_held(now);
            self.held.push_back(tag);
        } else {
            self.admit(now, tag, effects);
        }
        self.write_map(effects);
    }

    /// Takes the result of [`Effect::Leg`].
    pub fn leg_done(
        &mut self,
        now: Time,
        tag: Tag,
        side: Side,
        result: IoResult,
        effects: &mut Vec<Effect>,
    ) {
        let slot = *self.slot(tag);
        debug_assert_eq!(slot.stage, Stage::Started);
        self.note_time(now);
        self.started -= 1;
        let is_write = matches!(slot.request.op, Op::Write { .. });
        if is_write {
            self.end_write(|write| {
                let found = write.tag == Some(tag);
                if found {
                    write.tag = None;
                }
                found
            });
        }
        let is_flush = slot.request.op == Op::Flush;
        if let (Err(error), true, Some(_)) = (result, is_flush, &self.regions) {
            self.spoil_flushes(error);
        }
        let may_be_lost = is_flush || slot.request.op == Op::Read;
        match (result, slot.fault) {
            (Ok(()), None) if may_be_lost && self.is_failing_over() => {
                self.slot(tag).stage = Stage::Held;
                self.held.push_back(tag);
            }
            (_, Some(error)) if is_flush => self.authoritative_failed(now, tag, error, effects),
            (Ok(()), Some(_))
                if self.is_clean(slot.request.range) || self.breaks(Rule::MirrorReadsStayClean) =>
            {
                self.counters.mirror_reads += 1;
                self.answer(tag, Ok(()), effects);
            }
            // While the mirror leg was read, it lost data or was given up.
            (Ok(()), Some(error)) => self.answer(tag, Err(error), effects),
            // The error of the authoritative leg counts.
            (Err(_), Some(error)) => self.answer(tag, Err(error), effects),
            (Err(error), None) if self.regions.is_some() => {
                debug_assert_eq!(side, self.record.route.authoritative());
                self.authoritative_failed(now, tag, error, effects);
            }
            (result, None) => self.answer(tag, result, effects),
        }
        self.after_write(is_write, now, effects);
    }

    /// Takes the result of [`Effect::MirrorWrite`].
    pub fn mirror_done(
        &mut self,
        now: Time,
        place: Place,
        result: IoResult,
        effects: &mut Vec<Effect>,
    ) {
        if !self.writes.iter().any(|write| write.place == Some(place)) {
            return;
        }
        if let Err(error) = result {
            self.fail_mirror(error, effects);
        }
        self.end_write(|write| {
            let found = write.place == Some(place);
            if found {
                write.place = None;
            }
            found
        });
        self.free_places.push(place);
        self.after_write(true, now, effects);
    }

    /// Removes a leg from a write in flight. The write ends with its last leg.
    fn end_write(&mut self, mut take: impl FnMut(&mut Write) -> bool) {
        if let Some(index) = self.writes.iter_mut().position(&mut take) {
            let write = self.writes[index];
            if write.tag.is_none() && write.place.is_none() {
                self.writes.swap_remove(index);
            }
        }
    }

    /// Starts what may start after a request or a write to the mirror leg has ended.
    fn after_write(&mut self, is_write: bool, now: Time, effects: &mut Vec<Effect>) {
        if is_write && self.regions.is_some() {
            self.retry_waiting(effects);
            self.retry_claim(effects);
        }
        self.settle_sweep();
        self.drained_if_quiet(now, effects);
        self.write_map(effects);
    }

    /// Starts a request that the gate lets pass, or makes it wait for its turn.
    pub(super) fn admit(&mut self, now: Time, tag: Tag, effects: &mut Vec<Effect>) {
        let Slot { request, fault, .. } = *self.slot(tag);
        if let Some(error) = fault {
            // The exchange of the roles for this request has failed, or the request is a flush that
            // has the error of an earlier one.
            return self.answer(tag, Err(error), effects);
        }
        let mirrored_route = self.regions.is_some();
        match request.op {
            Op::Write { .. } if mirrored_route => {
                self.mark_intent(request.range);
                let behind = self.waiting.iter();
                if self.overlaps_any(request.range, behind) || !self.try_start_write(tag, effects) {
                    self.wait(now, tag);
                }
            }
            // After a discard the legs may read differently. It is refused, so that nobody believes
            // that it was done.
            Op::Discard if mirrored_route => {
                effects.push(Effect::Answer {
                    tag,
                    result: Err(EREMOTEIO),
                });
                *self.slot(tag) = Slot::FREE;
            }
            Op::Flush if self.breaks(Rule::FlushIsDone) => self.answer(tag, Ok(()), effects),
            Op::Read | Op::Write { .. } | Op::Flush | Op::Discard => {
                self.start(tag, effects);
            }
        }
    }

    pub(super) fn wait(&mut self, now: Time, tag: Tag) {
        let slot = self.slot(tag);
        slot.stage = Stage::Waiting;
        slot.since = now;
        self.waiting.push_back(tag);
        self.counters.waited += 1;
    }

    /// Starts the waiting requests that may start now. A later write never overtakes an earlier one
    /// that it overlaps.
    pub(super) fn retry_waiting(&mut self, effects: &mut Vec<Effect>) {
        if self.gate.is_closed() {
            return;
        }
        let mut index = 0;
        while let Some(&tag) = self.waiting.get(index) {
            let request = self.slot(tag).request;
            let gone = if matches!(request.op, Op::Write { .. }) {
                let behind = self.waiting.iter().take(index);
                !self.overlaps_any(request.range, behind) && self.try_start_write(tag, effects)
            } else {
                self.try_read_elsewhere(tag, effects)
            };
            if gone {
                self.waiting.remove(index);
            } else {
                index += 1;
            }
        }
    }

    /// Whether one of `tags` is a write that overlaps `range`.
    fn overlaps_any<'a>(&self, range: Range, mut tags: impl Iterator<Item = &'a Tag>) -> bool {
        tags.any(|tag| {
            let request = self.slots[usize::from(tag.0)].request;
            matches!(request.op, Op::Write { .. }) && request.range.overlaps(range)
        })
    }

    /// Whether a write may start now; if so, whether on both legs.
    pub(super) fn may_start(&self, range: Range) -> Result<bool, Obstacle> {
        let Some(regions) = &self.regions else {
            return Ok(false);
        };
        let mut any_clean = false;
        for region in self.record.geometry.touched(range) {
            let state = regions.get(region);
            let held = state.holds_writes() || self.watches.holds_writes(region);
            if held && !self.breaks(Rule::ExclusiveClaimHoldsWrites) {
                return Err(Obstacle::Claim(region));
            }
            if !self.intent.is_covered(region) && !self.breaks(Rule::IntentBeforeWrite) {
                return Err(Obstacle::Map);
            }
            any_clean |= state == RegionState::Clean;
        }
        let mirrored = any_clean && self.healthy_mirror().is_some() && !self.tracks();
        for write in &self.writes {
            if !write.range.overlaps(range) || self.breaks(Rule::OverlappingWritesWait) {
                continue;
            }
            if write.tag.is_some() {
                return Err(Obstacle::Write);
            }
            if mirrored && !self.breaks(Rule::TrailingWritesAreWaitedFor) {
                return Err(Obstacle::Mirror);
            }
        }
        if mirrored && self.free_places.is_empty() {
            return Err(Obstacle::Mirror);
        }
        Ok(mirrored)
    }

    /// Starts a write in `Mirrored` or `Split` if nothing is in its way. Returns whether it did.
    fn try_start_write(&mut self, tag: Tag, effects: &mut Vec<Effect>) -> bool {
        let range = self.slot(tag).request.range;
        let mirrored = match self.may_start(range) {
            Ok(mirrored) => mirrored,
            Err(Obstacle::Map) => {
                // The intent may have been cleared since the write was admitted.
                self.mark_intent(range);
                return false;
            }
            Err(Obstacle::Claim(_) | Obstacle::Write | Obstacle::Mirror) => return false,
        };
        if self.regions.is_some() && !self.passes_throttle(tag) {
            return false;
        }
        self.start(tag, effects);
        if self.regions.is_some() {
            self.take_from_throttle(range.length);
            self.touch_regions(range, mirrored);
            let place = self.free_places.pop_if(|_| mirrored);
            self.writes.push(Write {
                range,
                tag: Some(tag),
                place,
                is_awaited: false,
            });
            if let Some(place) = place {
                let side = self.record.route.authoritative().other();
                effects.push(Effect::MirrorWrite { tag, place, side });
            }
        }
        true
    }

    /// Changes the states of the regions that a write touches when it starts.
    fn touch_regions(&mut self, range: Range, mirrored: bool) {
        let spoils = !self.breaks(Rule::WriteSpoilsCopy);
        let keeps_mark = !self.breaks(Rule::WriteDuringSweepKeepsMark);
        let forgets = self.tracks() && self.breaks(Rule::TrackedWriteIsDirty);
        let Some(regions) = &mut self.regions else {
            return;
        };
        for region in self.record.geometry.touched(range) {
            if keeps_mark {
                self.intent.note_write(region);
            }
            self.watches.note_write(region);
            match regions.get(region) {
                RegionState::Clean if !mirrored && !forgets => {
                    regions.set(region, RegionState::Dirty)
                }
                RegionState::Copying if spoils => {
                    regions.set(region, RegionState::CopyingDirty);
                }
                RegionState::Clean
                | RegionState::Copying
                | RegionState::Dirty
                | RegionState::DirtyAgain
                | RegionState::CopyingDirty
                | RegionState::Reserved
                | RegionState::CopyingExclusive => {}
            }
        }
    }

    /// Starts a request on the authoritative leg.
    pub(super) fn start(&mut self, tag: Tag, effects: &mut Vec<Effect>) {
        let side = self.record.route.authoritative();
        self.start_on(tag, side, effects);
    }

    pub(super) fn start_on(&mut self, tag: Tag, side: Side, effects: &mut Vec<Effect>) {
        let slot = self.slot(tag);
        slot.stage = Stage::Started;
        let op = slot.request.op;
        self.started += 1;
        effects.push(Effect::Leg { tag, side, op });
    }

    /// Answers the application.
    pub(super) fn answer(&mut self, tag: Tag, result: IoResult, effects: &mut Vec<Effect>) {
        let request = core::mem::replace(self.slot(tag), Slot::FREE).request;
        self.count(request, result);
        if result.is_err() && request.op == Op::Flush {
            self.error_reported();
        }
        effects.push(Effect::Answer { tag, result });
    }

    /// Whether the mirror leg holds the same data as the authoritative leg, but for writes in
    /// flight.
    pub(super) fn is_clean(&self, range: Range) -> bool {
        self.regions.as_ref().is_some_and(|regions| {
            let mut touched = self.record.geometry.touched(range);
            touched.all(|region| regions.get(region) == RegionState::Clean)
                || self.breaks(Rule::MirrorReadsAreClean)
        })
    }

    /// Makes the clean regions of `range` dirty: a write did not do the same on both legs.
    pub(super) fn differ(&mut self, range: Range) {
        let Some(regions) = &mut self.regions else {
            return;
        };
        for region in self.record.geometry.touched(range) {
            if regions.get(region) == RegionState::Clean {
                regions.set(region, RegionState::Dirty);
            }
        }
    }

    fn count(&mut self, request: Request, result: IoResult) {
        let counters = &mut self.counters;
        if result.is_err() {
            counters.failed += 1;
            return;
        }
        match request.op {
            Op::Read => {
                counters.reads += 1;
                counters.read_bytes += request.range.length;
            }
            Op::Write { .. } => {
                counters.writes += 1;
                counters.written_bytes += request.range.length;
            }
            Op::Flush => counters.flushes += 1,
            Op::Discard => {}
        }
    }
}
