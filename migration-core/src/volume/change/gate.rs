//! The gate: while it is closed, requests are held. A suspension, and the end of any hold.

use alloc::vec::Vec;

use super::{ChangeError, Step};
use crate::{
    units::Time,
    volume::{Call, Effect, Reply, Rule, Volume},
};

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(in crate::volume) struct Gate {
    pub(super) suspension: Option<Suspension>,
    /// Whether a change of the route has closed the gate.
    pub(in crate::volume) changing: bool,
    pub(super) first_held: Option<Time>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Suspension {
    /// The call to answer after the drain.
    pub(super) call: Option<Call>,
    pub(super) deadline: Time,
    pub(super) why: Suspended,
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
    pub(in crate::volume) const fn is_closed(&self) -> bool {
        self.suspension.is_some() || self.changing
    }

    pub(in crate::volume) fn note_held(&mut self, now: Time) {
        self.first_held.get_or_insert(now);
    }
}

#[cfg(feature = "seeded-bugs")]
impl Gate {
    /// See [`Volume::expire`].
    pub(in crate::volume) fn expire(&mut self, now: Time) {
        if let Some(suspension) = &mut self.suspension {
            suspension.deadline = now;
        }
    }
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
    pub(super) fn note_waiting_held(&mut self, now: Time) {
        if !self.waiting.is_empty() {
            self.gate.note_held(now);
        }
    }

    /// Ends a suspension. Returns why requests were held, if they were.
    pub fn resume(&mut self, now: Time, effects: &mut Vec<Effect>) -> Option<Suspended> {
        self.end_suspension(now, effects)
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
    pub(in crate::volume) fn open_gate(&mut self, now: Time, effects: &mut Vec<Effect>) {
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

    pub(in crate::volume) fn check_deadlines(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if matches!(&self.change, Some(change) if change.step != Step::Role && change.deadline <= now)
        {
            self.fail_change(now, ChangeError::Deadline, effects);
        }
        if matches!(&self.gate.suspension, Some(suspension) if suspension.deadline <= now) {
            self.end_suspension(now, effects);
        }
    }
}
