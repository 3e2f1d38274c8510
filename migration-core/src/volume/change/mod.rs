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

mod gate;
mod steps;

pub(super) use gate::Gate;
pub use gate::Suspended;

use alloc::vec::Vec;

use crate::{
    map::RoleRecord,
    region::RegionMap,
    route::{Route, Side},
    units::{Epoch, Time},
    volume::{Call, Effect, FlushId, Flushed, Rule, Volume, failure::FAIL_OVER_NANOSECONDS_MAX},
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
    /// Begins to change the route. The outcome comes as a [`Reply`](crate::volume::Reply).
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

    fn claims_copier(&self) -> bool {
        self.copier().is_some()
    }
}
