//! The way of a request: held by the gate, waiting for its turn, on the legs, answered.

use alloc::vec::Vec;

use super::{Effect, Errno, IoResult, Op, Request, Slot, Stage, Volume};
use crate::{
    region::RegionState,
    route::Side,
    units::{Range, Tag, Time},
};

impl Volume {
    /// The application asks for something. The tag must be free; the range lies within the volume and is not
    /// longer than the smallest region (the shell's largest request), except for a discard.
    pub fn request(&mut self, now: Time, tag: Tag, request: Request, effects: &mut Vec<Effect>) {
        debug_assert_eq!(self.slots[usize::from(tag.0)].stage, Stage::Free);
        *self.slot(tag) = Slot {
            stage: Stage::Held,
            request,
            ..Slot::FREE
        };
        if self.gate.is_closed() {
            self.gate.note_held(now);
            self.held.push_back(tag);
        } else {
            self.admit(tag, effects);
        }
        self.write_map(effects);
    }

    /// A leg has done (or failed) what [`Effect::Leg`] asked.
    pub fn leg_done(
        &mut self,
        now: Time,
        tag: Tag,
        side: Side,
        result: IoResult,
        effects: &mut Vec<Effect>,
    ) {
        let authoritative = self.record.route.authoritative();
        let slot = self.slot(tag);
        debug_assert_eq!(slot.stage, Stage::Started);
        if side == authoritative {
            slot.authoritative_result = result;
        } else {
            slot.mirror_result = result;
        }
        slot.legs_pending -= 1;
        if slot.legs_pending == 0 {
            self.finish(now, tag, effects);
        }
    }

    /// Gives a request that the gate lets pass its place.
    pub(super) fn admit(&mut self, tag: Tag, effects: &mut Vec<Effect>) {
        let request = self.slot(tag).request;
        let mirrored_route = self.regions.is_some();
        match request.op {
            Op::Write { .. } if mirrored_route => {
                self.mark_intent(request.range);
                let behind = self.waiting.iter();
                if self.overlaps_any(request.range, behind) || !self.try_start_write(tag, effects) {
                    self.slot(tag).stage = Stage::Waiting;
                    self.waiting.push_back(tag);
                    self.counters.waited += 1;
                }
            }
            // A discard may do nothing, and nothing is the one result that both legs share.
            Op::Discard if mirrored_route => {
                effects.push(Effect::Answer {
                    tag,
                    result: Ok(()),
                });
                *self.slot(tag) = Slot::FREE;
            }
            Op::Read | Op::Write { .. } | Op::Flush | Op::Discard => {
                self.start(tag, false, effects);
            }
        }
    }

    /// Starts the waiting writes that may start now. A later one never overtakes an earlier one that it
    /// overlaps.
    pub(super) fn retry_waiting(&mut self, effects: &mut Vec<Effect>) {
        if self.gate.is_closed() {
            return;
        }
        let mut index = 0;
        while let Some(&tag) = self.waiting.get(index) {
            let range = self.slot(tag).request.range;
            let behind = self.waiting.iter().take(index);
            if !self.overlaps_any(range, behind) && self.try_start_write(tag, effects) {
                self.waiting.remove(index);
            } else {
                index += 1;
            }
        }
    }

    fn overlaps_any<'a>(&self, range: Range, mut tags: impl Iterator<Item = &'a Tag>) -> bool {
        tags.any(|tag| self.slots[usize::from(tag.0)].request.range.overlaps(range))
    }

    /// Starts a write in `Mirrored` if nothing is in its way.
    fn try_start_write(&mut self, tag: Tag, effects: &mut Vec<Effect>) -> bool {
        let range = self.slot(tag).request.range;
        let Some(regions) = &self.regions else {
            self.start(tag, false, effects);
            return true;
        };
        let mut any_clean = false;
        for region in self.record.geometry.touched(range) {
            let state = regions.get(region);
            if state.holds_writes() || !self.intent.is_covered(region) {
                // The intent may have been cleared since it was asked for.
                self.mark_intent(range);
                return false;
            }
            any_clean |= state == RegionState::Clean;
        }
        if self.overlaps_any(range, self.writing.iter()) {
            return false;
        }
        let mirrored = any_clean && self.healthy_mirror().is_some();
        self.touch_regions(range, mirrored);
        self.writing.push(tag);
        self.start(tag, mirrored, effects);
        true
    }

    /// What the start of a write does to the regions that it touches.
    fn touch_regions(&mut self, range: Range, mirrored: bool) {
        let Some(regions) = &mut self.regions else {
            return;
        };
        for region in self.record.geometry.touched(range) {
            self.intent.note_write(region);
            match regions.get(region) {
                RegionState::Clean if !mirrored => regions.set(region, RegionState::Dirty),
                RegionState::Copying => regions.set(region, RegionState::CopyingDirty),
                RegionState::Clean
                | RegionState::Dirty
                | RegionState::DirtyAgain
                | RegionState::CopyingDirty
                | RegionState::Reserved
                | RegionState::CopyingExclusive => {}
            }
        }
    }

    fn start(&mut self, tag: Tag, mirrored: bool, effects: &mut Vec<Effect>) {
        let side = self.record.route.authoritative();
        let slot = self.slot(tag);
        slot.stage = Stage::Started;
        slot.mirrored = mirrored;
        slot.legs_pending = 1 + u8::from(mirrored);
        let op = slot.request.op;
        self.started += 1;
        effects.push(Effect::Leg { tag, side, op });
        if mirrored {
            // Its intent stays set until this leg was flushed, so the mirror need not force anything.
            let op = Op::Write {
                force_unit_access: false,
            };
            effects.push(Effect::Leg {
                tag,
                side: side.other(),
                op,
            });
        }
    }

    /// Both legs have answered.
    fn finish(&mut self, now: Time, tag: Tag, effects: &mut Vec<Effect>) {
        let slot = core::mem::replace(self.slot(tag), Slot::FREE);
        self.started -= 1;
        self.count(&slot);
        effects.push(Effect::Answer {
            tag,
            result: slot.authoritative_result,
        });
        let is_write = matches!(slot.request.op, Op::Write { .. });
        if is_write && self.regions.is_some() {
            if let Some(index) = self.writing.iter().position(|other| *other == tag) {
                self.writing.swap_remove(index);
            }
            let both_wrote = slot.authoritative_result.is_ok() && slot.mirror_result.is_ok();
            if slot.mirrored && !both_wrote {
                self.differ(slot.request.range);
            }
            if let (true, Err(error)) = (slot.mirrored, slot.mirror_result) {
                self.fail_mirror(error, effects);
            }
            self.retry_waiting(effects);
            self.retry_claim(effects);
        }
        if self.started == 0 {
            self.drained(now, effects);
        }
        self.write_map(effects);
    }

    /// A write did not do the same on both legs.
    fn differ(&mut self, range: Range) {
        let Some(regions) = &mut self.regions else {
            return;
        };
        for region in self.record.geometry.touched(range) {
            if regions.get(region) == RegionState::Clean {
                regions.set(region, RegionState::Dirty);
            }
        }
    }

    /// The mirror leg is not written any more until the operator says so; what it misses is dirty.
    pub(super) fn fail_mirror(&mut self, error: Errno, effects: &mut Vec<Effect>) {
        if self.mirror_fault.is_none() {
            self.mirror_fault = Some(error);
            self.abandon_sweep();
            self.refuse_claim(effects);
        }
    }

    fn count(&mut self, slot: &Slot) {
        let counters = &mut self.counters;
        if slot.authoritative_result.is_err() {
            counters.failed += 1;
            return;
        }
        match slot.request.op {
            Op::Read => {
                counters.reads += 1;
                counters.read_bytes += slot.request.range.length;
            }
            Op::Write { .. } => {
                counters.writes += 1;
                counters.written_bytes += slot.request.range.length;
            }
            Op::Flush => counters.flushes += 1,
            Op::Discard => {}
        }
    }
}
