//! The steps of a change, and what each result of an effect leads to.

use alloc::vec::Vec;

use super::{
    Change, ChangeError, Step,
    gate::{Suspended, Suspension},
};
use crate::{
    region::RegionMap,
    route::{Route, Side},
    units::Time,
    volume::{Effect, FlushId, Flushed, IoResult, Reply, Rule, Volume},
};

impl Volume {
    /// Takes the result of [`Effect::WriteDescriptor`].
    pub fn descriptor_written(&mut self, now: Time, result: IoResult, effects: &mut Vec<Effect>) {
        self.descriptor_write_in_flight = false;
        let Some(change) = &mut self.change else {
            return;
        };
        if let Step::Prepare { descriptor_written } = &mut change.step {
            *descriptor_written = true;
            match result {
                Ok(()) => self.map_settled(now, effects),
                Err(error) => self.fail_change(now, ChangeError::Map(error), effects),
            }
        }
    }

    /// Takes the result of [`Effect::WriteRole`].
    pub fn role_written(
        &mut self,
        now: Time,
        slot: usize,
        result: IoResult,
        effects: &mut Vec<Effect>,
    ) {
        self.role_write_in_flight = false;
        let changing = matches!(&self.change, Some(change) if change.step == Step::Role);
        match (result, changing) {
            (Ok(()), true) => self.finish_change(now, slot, effects),
            (Err(error), true) => effects.push(Effect::Die { error }),
            (Ok(()), false) => {
                self.stale_role_slot = None;
                self.map_fault = None;
                self.role_slots_settled(now, effects);
            }
            // The next tick tries again.
            (Err(error), false) => self.map_fault = Some(error),
        }
    }

    /// Whether a flush is under way: of any leg, or only of the mirror leg.
    fn is_flushing(&self, only_mirror: bool) -> bool {
        self.flushes.iter().any(|flush| match flush.of {
            Flushed::Authoritative => !only_mirror,
            Flushed::Mirror => true,
            Flushed::Former => false,
        })
    }

    pub(super) fn flush_both(&mut self, effects: &mut Vec<Effect>) -> [Option<FlushId>; 2] {
        [
            Some(self.flush(Side::Source, effects)),
            Some(self.flush(Side::Target, effects)),
        ]
    }

    fn flush_mirror(&mut self, effects: &mut Vec<Effect>) -> [Option<FlushId>; 2] {
        let mirror = self.record.route.mirror();
        [mirror.map(|side| self.flush(side, effects)), None]
    }

    /// Ends the preparation of a new mirror leg if the map file holds all that it needs.
    pub(in crate::volume) fn map_settled(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let written = self.intent.is_written() || self.breaks(Rule::DirtyBeforeMirror);
        if let Some(change) = &mut self.change {
            let prepared = Step::Prepare {
                descriptor_written: true,
            };
            if change.step == prepared && written {
                change.step = Step::RoleSlots;
                self.role_slots_settled(now, effects);
            }
        }
    }

    /// Begins the drain if both role slots hold the same record.
    pub(in crate::volume) fn role_slots_settled(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if self.stale_role_slot.is_some() {
            return;
        }
        if let Some(change) = &mut self.change
            && change.step == Step::RoleSlots
        {
            change.step = Step::Drain;
            change.deadline = now.plus(change.hold_nanoseconds_max);
            self.gate.changing = true;
            self.note_waiting_held(now);
            self.drained_if_quiet(now, effects);
        }
    }

    /// Ends the drain if nothing is in flight. A mirror leg that was given up is not waited for.
    pub(in crate::volume) fn drained_if_quiet(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let mirror_quiet = self.writes.is_empty() || self.healthy_mirror().is_none();
        let quiet =
            self.started == 0 && (mirror_quiet || self.breaks(Rule::MirrorDrainBeforeRoles));
        if quiet || self.breaks(Rule::DrainBeforeRoles) {
            self.drained(now, effects);
        }
    }

    /// Whether what is dirty is being copied while requests are held.
    pub(in crate::volume) fn copies_rest(&self) -> bool {
        let copies = |change: &Change| change.copies_rest && change.step == Step::Drain;
        self.change.as_ref().is_some_and(copies)
    }

    /// Re-checks the drain: the rest may be copied by now, or the copier may have disconnected.
    pub(in crate::volume) fn rest_copied(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if self.copies_rest() {
            self.drained_if_quiet(now, effects);
        }
    }

    /// Continues after the drain: nothing of the application is in flight.
    fn drained(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if let Some(suspension) = &mut self.gate.suspension
            && let Some(call) = suspension.call.take()
        {
            let reply = Reply::Suspended;
            effects.push(Effect::Reply { call, reply });
        }
        let Some(change) = &self.change else {
            return;
        };
        if change.step != Step::Drain {
            return;
        }
        match change.next.route {
            Route::Mirrored { .. } if self.is_split() => self.write_role(effects),
            // A flush that fails would make regions dirty while the role record is being written.
            Route::Mirrored { .. } | Route::Split if self.is_flushing(change.is_fail_over()) => {}
            Route::Mirrored { .. } | Route::Split if self.regions.is_some() => match self
                .may_exchange_roles()
            {
                Ok(()) if self.breaks(Rule::FlushBeforeRoles) => self.write_role(effects),
                Ok(()) => {
                    let step = Step::Flush(if change.is_fail_over() {
                        self.flush_mirror(effects)
                    } else {
                        self.flush_both(effects)
                    });
                    self.set_step(step);
                }
                Err(ChangeError::NotInSync(_)) if change.copies_rest && self.claims_copier() => {
                    self.retry_claim(effects);
                }
                Err(error) => self.fail_change(now, error, effects),
            },
            Route::Mirrored { .. } | Route::Split | Route::Single(_) => self.write_role(effects),
        }
    }

    pub(in crate::volume) fn change_flushed(
        &mut self,
        now: Time,
        flush: FlushId,
        result: IoResult,
        effects: &mut Vec<Effect>,
    ) {
        let Some(change) = &mut self.change else {
            return;
        };
        let (Step::PreFlush(waited_for) | Step::Flush(waited_for)) = &mut change.step else {
            return;
        };
        for waited in waited_for.iter_mut() {
            if *waited == Some(flush) {
                *waited = None;
                if let Err(error) = result {
                    self.fail_change(now, ChangeError::Flush(error), effects);
                    return;
                }
            }
        }
        if waited_for.iter().any(Option::is_some) {
            return;
        }
        match change.step {
            Step::PreFlush(_) => {
                change.step = Step::RoleSlots;
                self.role_slots_settled(now, effects);
            }
            Step::Flush(_) => self.write_role(effects),
            Step::Prepare { .. } | Step::RoleSlots | Step::Drain | Step::Role => {}
        }
    }

    /// Whether the role record of a change is being written.
    pub(in crate::volume) fn writes_role(&self) -> bool {
        matches!(&self.change, Some(change) if change.step == Step::Role)
    }

    /// Repeats the flushes of a change: a leg may have lost what it has just been flushed for, so
    /// the flushes that the change waits for prove nothing any more.
    pub(in crate::volume) fn flush_again(&mut self) {
        if let Some(change) = &mut self.change
            && matches!(change.step, Step::Flush(_))
        {
            change.step = Step::Drain;
        }
    }

    fn set_step(&mut self, step: Step) {
        if let Some(change) = &mut self.change {
            change.step = step;
        }
    }

    fn write_role(&mut self, effects: &mut Vec<Effect>) {
        if let Some(change) = &mut self.change {
            change.step = Step::Role;
            let record = change.next;
            let slot = record.first_slot();
            self.role_write_in_flight = true;
            effects.push(Effect::WriteRole { record, slot });
            if self.breaks(Rule::DurableBeforeAnswer) {
                self.finish_change(Time(0), slot, effects);
            }
        }
    }

    /// Finishes the change: the new record is durable, so it holds.
    fn finish_change(&mut self, now: Time, slot: usize, effects: &mut Vec<Effect>) {
        let Some(change) = self.change.take() else {
            return;
        };
        let before = self.record.route;
        self.record = change.next;
        let exchanged = before.mirror().is_some() && self.record.route.mirror().is_some();
        for flush in &mut self.flushes {
            flush.of = match flush.of {
                Flushed::Authoritative if exchanged => Flushed::Mirror,
                Flushed::Mirror if exchanged => Flushed::Authoritative,
                Flushed::Mirror | Flushed::Former => Flushed::Former,
                Flushed::Authoritative => Flushed::Authoritative,
            };
        }
        if change.is_fail_over() {
            self.failed_over();
        }
        self.forget_faults(change.is_fail_over());
        // A copier that is still connected would copy in the old direction.
        self.dismiss_copier(effects);
        match (self.record.route, before) {
            (Route::Mirrored { .. }, Route::Single(_)) => {
                self.regions = Some(RegionMap::all_dirty(self.record.geometry));
                self.intent.cover_all();
            }
            (Route::Mirrored { .. }, Route::Split | Route::Mirrored { .. }) => {}
            (Route::Split, _) if self.breaks(Rule::SplitHolds) => {}
            (Route::Split, _) => {
                // Perhaps no request will be held.
                self.counters.last_pause = 0;
                self.gate.suspension = Some(Suspension {
                    call: None,
                    deadline: change.deadline,
                    why: Suspended::SinceSplit,
                });
            }
            (Route::Single(_), _) => {
                self.regions = None;
                self.mirror_fault = None;
                self.intent.forget();
            }
        }
        self.stale_role_slot = Some(1 - slot);
        let held_since = self.gate.first_held;
        if let Some(call) = change.call {
            let reply = Reply::RouteChanged {
                epoch: self.record.epoch,
                route: self.record.route,
                pause: held_since.map_or(0, |since| now.since(since)),
            };
            effects.push(Effect::Reply { call, reply });
        }
        self.gate.changing = false;
        self.open_gate(now, effects);
        self.refresh_role_slot(effects);
    }

    pub(in crate::volume) fn fail_change(
        &mut self,
        now: Time,
        error: ChangeError,
        effects: &mut Vec<Effect>,
    ) {
        let Some(change) = &self.change else {
            return;
        };
        if change.is_fail_over() {
            self.distrust_authoritative();
        }
        self.end_change(error, effects);
        self.open_gate(now, effects);
    }

    /// Gives the change up. The caller has to open the gate.
    pub(in crate::volume) fn end_change(&mut self, error: ChangeError, effects: &mut Vec<Effect>) {
        let Some(change) = self.change.take() else {
            return;
        };
        if self.regions.is_none() {
            self.intent.forget();
        }
        if let Some(call) = change.call {
            let reply = Reply::ChangeFailed(error);
            effects.push(Effect::Reply { call, reply });
        }
        self.gate.changing = false;
    }

    /// Copies the role record to the slot that does not have it yet.
    pub(in crate::volume) fn refresh_role_slot(&mut self, effects: &mut Vec<Effect>) {
        if let (Some(slot), false) = (self.stale_role_slot, self.role_write_in_flight) {
            self.role_write_in_flight = true;
            let record = self.record;
            effects.push(Effect::WriteRole { record, slot });
        }
    }
}
