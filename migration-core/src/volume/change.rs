//! Suspension, drain and change of the route.
//!
//! ```text
//!   start:                Prepare -> Drain ----------> Role
//!   switch, undo, split: PreFlush -> Drain -> Flush -> Role   (in sync before and after the drain)
//!   commit, cancel,
//!   mirrored again:                  Drain ----------> Role
//! ```
//!
//! Requests are held from `Drain` on. After a split they are held until somebody resumes the volume
//! or the deadline passes, so that several volumes are split at one instant. Until the role record
//! is being written, the deadline or an error brings the old route back. Once the record is being
//! written, only the outcome of that write counts: durable means the new route; an error means that
//! nobody knows, and the process ends so that its successor reads what is there.

use alloc::vec::Vec;

use super::{
    Call, Effect, FlushId, Flushed, IoResult, Reply, Rule, Volume,
    failure::FAIL_OVER_NANOSECONDS_MAX,
};
use crate::{
    map::RoleRecord,
    region::RegionMap,
    route::{Route, Side},
    units::{Epoch, Time},
};

/// How long the steps before the drain may take, in nanoseconds. Requests are not held meanwhile.
pub const PREPARE_NANOSECONDS_MAX: u64 = 60_000_000_000;

/// The descriptor that names a new mirror leg.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NewMirror {
    /// The length of the descriptor, in bytes.
    pub descriptor_bytes: u32,
    /// The CRC-32C of the descriptor.
    pub descriptor_crc: u32,
}

/// The goal of a change of the route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// `Single` to `Mirrored{source}`, every region dirty.
    AddMirror(NewMirror),
    /// Exchange of the roles, split, mirroring again, commit, or cancel.
    Route(Route),
    /// Exchange of the roles that makes this side authoritative. What is dirty is copied while
    /// requests are held; without a copier, dirty regions refuse the change as
    /// [`ChangeError::NotInSync`].
    CopyRest(Side),
}

/// Why the route was not changed. The old route holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChangeError {
    /// The caller's epoch is not the current one.
    StaleEpoch,
    /// The current route cannot become the requested one.
    WrongRoute,
    /// This number of bytes is dirty.
    NotInSync(u64),
    /// The mirror leg has failed and was not retried yet.
    MirrorFailed,
    /// Another change or suspension is under way.
    Busy,
    /// A copier is connected.
    CopierConnected,
    /// Drain and flush took longer than allowed.
    Deadline,
    /// A leg could not be flushed.
    Flush(super::Errno),
    /// The map file could not be written.
    Map(super::Errno),
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Gate {
    suspension: Option<Suspension>,
    /// Whether a change of the route has closed the gate.
    pub(super) changing: bool,
    first_held: Option<Time>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Suspension {
    /// The call to answer after the drain.
    call: Option<Call>,
    deadline: Time,
    why: Suspended,
}

/// Why requests are held until somebody resumes the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Suspended {
    /// A caller asked for the suspension.
    Asked,
    /// The volume was split; requests have been held ever since.
    SinceSplit,
}

impl Gate {
    pub(super) const fn is_closed(&self) -> bool {
        self.suspension.is_some() || self.changing
    }

    pub(super) fn note_held(&mut self, now: Time) {
        self.first_held.get_or_insert(now);
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Change {
    /// The call to answer; `None` if the volume itself asked, because the authoritative leg failed.
    call: Option<Call>,
    next: RoleRecord,
    step: Step,
    deadline: Time,
    hold_nanoseconds_max: u64,
    /// Whether what is dirty is copied after the drain.
    copies_rest: bool,
}

impl Change {
    /// The exchange of the roles after a failure of the authoritative leg.
    pub(super) const fn fail_over(next: RoleRecord, deadline: Time) -> Self {
        Self {
            call: None,
            next,
            step: Step::RoleSlots,
            deadline,
            hold_nanoseconds_max: FAIL_OVER_NANOSECONDS_MAX,
            copies_rest: false,
        }
    }

    pub(super) const fn is_fail_over(&self) -> bool {
        self.call.is_none()
    }

    pub(super) const fn next_route(&self) -> Route {
        self.next.route
    }

    /// Whether the change waits for this flush.
    pub(super) fn waits_for(&self, flush: FlushId) -> bool {
        match &self.step {
            Step::PreFlush(waited_for) | Step::Flush(waited_for) => {
                waited_for.contains(&Some(flush))
            }
            Step::Prepare { .. } | Step::RoleSlots | Step::Drain | Step::Role => false,
        }
    }

    pub(super) const fn step(&self) -> Step {
        self.step
    }
}

#[cfg(feature = "seeded-bugs")]
impl Gate {
    /// See [`Volume::expire`].
    pub(super) fn expire(&mut self, now: Time) {
        if let Some(suspension) = &mut self.suspension {
            suspension.deadline = now;
        }
    }
}

#[cfg(feature = "seeded-bugs")]
impl Change {
    /// See [`Volume::expire`].
    pub(super) const fn expire(&mut self, now: Time) {
        self.deadline = now;
    }

    /// See [`Volume::forget_history`].
    pub(super) fn rename_flushes(&mut self, rename: impl Fn(FlushId) -> FlushId) {
        if let Step::PreFlush(waited_for) | Step::Flush(waited_for) = &mut self.step {
            for flush in waited_for.iter_mut().flatten() {
                *flush = rename(*flush);
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Step {
    /// The descriptor and the bitmaps of a new mirror are being written.
    Prepare { descriptor_written: bool },
    /// Both legs are being flushed, so that the flush after the drain has little to do.
    PreFlush([Option<FlushId>; 2]),
    /// The last change is being copied to the other role slot.
    RoleSlots,
    /// Requests are held, and those on the legs end.
    Drain,
    /// Both legs are being flushed.
    Flush([Option<FlushId>; 2]),
    /// The role record is being written: the point of no return.
    Role,
}

impl Volume {
    /// Holds new requests; [`Reply::Suspended`] comes when nothing is in flight. The suspension
    /// ends automatically at the deadline.
    ///
    /// # Errors
    /// [`ChangeError::Busy`] while another suspension or a change is under way.
    pub fn suspend(
        &mut self,
        now: Time,
        call: Call,
        deadline: Time,
        effects: &mut Vec<Effect>,
    ) -> Result<(), ChangeError> {
        if self.gate.is_closed() || self.change.is_some() {
            return Err(ChangeError::Busy);
        }
        self.gate.suspension = Some(Suspension {
            call: Some(call),
            deadline,
            why: Suspended::Asked,
        });
        self.note_waiting_held(now);
        self.drained_if_quiet(now, effects);
        Ok(())
    }

    /// Begins the pause if requests wait for their turn when the gate closes: they are held too.
    fn note_waiting_held(&mut self, now: Time) {
        if !self.waiting.is_empty() {
            self.gate.note_held(now);
        }
    }

    /// Ends a suspension. Returns why requests were held, if they were.
    pub fn resume(&mut self, now: Time, effects: &mut Vec<Effect>) -> Option<Suspended> {
        self.end_suspension(now, effects)
    }

    /// Begins to change the route. The outcome comes as a [`Reply`].
    ///
    /// # Errors
    /// [`ChangeError`] if the change is refused before it begins.
    pub fn change_route(
        &mut self,
        now: Time,
        call: Call,
        epoch: Epoch,
        target: Target,
        hold_nanoseconds_max: u64,
        effects: &mut Vec<Effect>,
    ) -> Result<(), ChangeError> {
        let next = self.next_record(target);
        self.may_change(epoch, target, next.route)?;
        let copies_rest = matches!(target, Target::CopyRest(_));
        let step = match target {
            Target::AddMirror(_) => {
                self.intent.fill_dirty();
                let slot = next.descriptor_slot;
                self.descriptor_write_in_flight = true;
                effects.push(Effect::WriteDescriptor { slot });
                self.write_map(effects);
                Step::Prepare {
                    descriptor_written: false,
                }
            }
            Target::Route(Route::Mirrored { .. }) if self.is_split() => Step::RoleSlots,
            Target::Route(Route::Mirrored { .. } | Route::Split) | Target::CopyRest(_) => {
                Step::PreFlush(self.flush_both(effects))
            }
            Target::Route(Route::Single(_)) => Step::RoleSlots,
        };
        self.change = Some(Change {
            call: Some(call),
            next,
            step,
            deadline: now.plus(PREPARE_NANOSECONDS_MAX),
            hold_nanoseconds_max,
            copies_rest,
        });
        self.role_slots_settled(now, effects);
        Ok(())
    }

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

    /// The latest time of the next [`Volume::tick`], if something has a deadline.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        let suspension = self.gate.suspension.map(|suspension| suspension.deadline);
        let change = self
            .change
            .as_ref()
            .filter(|change| change.step != Step::Role)
            .map(|change| change.deadline);
        let throttle = self.throttle_deadline();
        [suspension, change, throttle].into_iter().flatten().min()
    }

    pub(super) fn next_record(&self, target: Target) -> RoleRecord {
        let mut next = self.record;
        next.epoch.0 += 1;
        match target {
            Target::AddMirror(descriptor) => {
                next.route = Route::Mirrored {
                    authoritative: crate::route::Side::Source,
                };
                next.descriptor_slot = 1 - self.record.descriptor_slot;
                next.descriptor_bytes = descriptor.descriptor_bytes;
                next.descriptor_crc = descriptor.descriptor_crc;
            }
            Target::Route(route) => next.route = route,
            Target::CopyRest(authoritative) => next.route = Route::Mirrored { authoritative },
        }
        next
    }

    const fn is_split(&self) -> bool {
        matches!(self.record.route, Route::Split)
    }

    fn may_change(&self, epoch: Epoch, target: Target, next: Route) -> Result<(), ChangeError> {
        if epoch != self.record.epoch {
            return Err(ChangeError::StaleEpoch);
        }
        if self.change.is_some() {
            return Err(ChangeError::Busy);
        }
        let adds = matches!(target, Target::AddMirror(_));
        let needs_new_leg = self.regions.is_none() && matches!(next, Route::Mirrored { .. });
        if !self.record.route.may_become(next) || adds != needs_new_leg {
            return Err(ChangeError::WrongRoute);
        }
        let copies_rest = matches!(target, Target::CopyRest(_)) && self.claims_copier();
        // I/O of the former mirror leg is still in flight; it would be taken for that of the new
        // mirror leg.
        let flushes_old = self.flushes.iter().any(|flush| flush.of == Flushed::Former);
        let is_written = (!self.writes.is_empty() || flushes_old)
            && !self.breaks(Rule::NewMirrorAwaitsOldWrites);
        // A change that is over still writes its descriptor. The next one goes to the same slot,
        // and either may land last.
        let describes = self.descriptor_write_in_flight && !self.breaks(Rule::OneDescriptorWrite);
        match (&self.regions, next) {
            (None, Route::Mirrored { .. }) if is_written || describes => Err(ChangeError::Busy),
            (None, _) => Ok(()),
            (Some(_), Route::Single(_)) if self.claims_copier() => {
                Err(ChangeError::CopierConnected)
            }
            (Some(_), Route::Single(_)) => Ok(()),
            (Some(_), Route::Mirrored { .. }) if self.is_split() => Ok(()),
            (Some(_), Route::Mirrored { .. } | Route::Split) => match self.may_exchange_roles() {
                Err(ChangeError::NotInSync(_)) if copies_rest => Ok(()),
                outcome => outcome,
            },
        }
    }

    /// Checks invariant 6: the mirror leg is a full copy and can be written.
    pub(super) fn may_exchange_roles(&self) -> Result<(), ChangeError> {
        if self.healthy_mirror().is_none() {
            return Err(ChangeError::MirrorFailed);
        }
        match self.regions.as_ref().map_or(0, RegionMap::dirty_bytes) {
            0 => Ok(()),
            _ if self.breaks(Rule::InSyncBeforeRoles) => Ok(()),
            dirty => Err(ChangeError::NotInSync(dirty)),
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

    fn claims_copier(&self) -> bool {
        self.copier().is_some()
    }

    fn flush_both(&mut self, effects: &mut Vec<Effect>) -> [Option<FlushId>; 2] {
        use crate::route::Side;
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
    pub(super) fn map_settled(&mut self, now: Time, effects: &mut Vec<Effect>) {
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
    pub(super) fn role_slots_settled(&mut self, now: Time, effects: &mut Vec<Effect>) {
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
    pub(super) fn drained_if_quiet(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let mirror_quiet = self.writes.is_empty() || self.healthy_mirror().is_none();
        let quiet =
            self.started == 0 && (mirror_quiet || self.breaks(Rule::MirrorDrainBeforeRoles));
        if quiet || self.breaks(Rule::DrainBeforeRoles) {
            self.drained(now, effects);
        }
    }

    /// Whether what is dirty is being copied while requests are held.
    pub(super) fn copies_rest(&self) -> bool {
        let copies = |change: &Change| change.copies_rest && change.step == Step::Drain;
        self.change.as_ref().is_some_and(copies)
    }

    /// Re-checks the drain: the rest may be copied by now, or the copier may have disconnected.
    pub(super) fn rest_copied(&mut self, now: Time, effects: &mut Vec<Effect>) {
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

    pub(super) fn change_flushed(
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
    pub(super) fn writes_role(&self) -> bool {
        matches!(&self.change, Some(change) if change.step == Step::Role)
    }

    /// Repeats the flushes of a change: a leg may have lost what it has just been flushed for, so
    /// the flushes that the change waits for prove nothing any more.
    pub(super) fn flush_again(&mut self) {
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

    pub(super) fn fail_change(&mut self, now: Time, error: ChangeError, effects: &mut Vec<Effect>) {
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
    pub(super) fn end_change(&mut self, error: ChangeError, effects: &mut Vec<Effect>) {
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

    fn end_suspension(&mut self, now: Time, effects: &mut Vec<Effect>) -> Option<Suspended> {
        let suspension = self.gate.suspension.take()?;
        if let Some(call) = suspension.call {
            let reply = Reply::SuspendDeadline;
            effects.push(Effect::Reply { call, reply });
        }
        self.open_gate(now, effects);
        Some(suspension.why)
    }

    /// Starts the held requests, if nothing closes the gate any more.
    pub(super) fn open_gate(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if self.gate.is_closed() || self.breaks(Rule::HeldGoesOn) {
            return;
        }
        if let Some(since) = self.gate.first_held.take() {
            self.counters.last_pause = now.since(since);
        }
        self.retry_waiting(effects);
        while let Some(tag) = self.held.pop_front() {
            self.admit(now, tag, effects);
        }
        self.write_map(effects);
    }

    pub(super) fn check_deadlines(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if matches!(&self.change, Some(change) if change.step != Step::Role && change.deadline <= now)
        {
            self.fail_change(now, ChangeError::Deadline, effects);
        }
        if matches!(&self.gate.suspension, Some(suspension) if suspension.deadline <= now) {
            self.end_suspension(now, effects);
        }
    }

    /// Copies the role record to the slot that does not have it yet.
    pub(super) fn refresh_role_slot(&mut self, effects: &mut Vec<Effect>) {
        if let (Some(slot), false) = (self.stale_role_slot, self.role_write_in_flight) {
            self.role_write_in_flight = true;
            let record = self.record;
            effects.push(Effect::WriteRole { record, slot });
        }
    }
}
