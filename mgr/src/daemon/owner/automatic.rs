//! What is due without a request: queued pairs, scheduled starts, automatic switches and splits,
//! the ends of copy windows and of maximum durations.

use std::collections::BTreeMap;

use copier::Copier;
use migration_core::pair::Verb;
use migration_core::schedule::{DueAction, due_start};
use migration_core::units::WallTime;
use migration_proto::manager::{Failure, HistoryEvent};

use super::Owner;
use super::concern::Concern;
use crate::daemon::clock::{steady_ms, time};
use crate::daemon::context::{note, now_ms};
use crate::daemon::event::Busy;
use crate::daemon::sessions::{cutover, hours, schedule, verify};
use crate::moments;
use crate::store::{PairKey, SessionRow};

/// How long an automatic switch may hold requests, in milliseconds.
const MAX_PAUSE_MS: u64 = 5_000;

impl Owner {
    /// Starts queued pairs, as far as there is room.
    pub(super) fn fill_places(&mut self) {
        // Which pairs have a place is known only after all volumes have reported.
        if self.volumes.are_awaited() {
            return;
        }
        let admitted = self
            .sessions
            .places
            .admitted(self.sight(), &self.busy, None);
        let mut begin: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for key in admitted {
            begin.entry(key.session).or_default().push(key.position);
        }
        for (name, pairs) in begin {
            self.sessions.places.take(&name, &pairs);
            let used = self.volumes.used_luns(&self.model, Some(&name));
            if let Some(operation) = self.operation(&name, Vec::new()) {
                let busy = vec![Busy::Session(name)];
                self.spawn_operation(busy, "start", None, operation.start_queued(pairs, used));
            }
        }
    }

    /// Whether one more copier may run.
    pub(super) fn may_copy(&self) -> bool {
        u32::try_from(self.copies.copiers.copying()).unwrap_or(u32::MAX) < self.model.pairs_max
    }

    /// Starts the sessions whose scheduled start is due.
    pub(super) fn start_due_sessions(&mut self, concern: &Concern) {
        // As in `fill_places`: a start gives places to pairs.
        if self.volumes.are_awaited() {
            return;
        }
        let now = WallTime(now_ms());
        let may_be_due = |row: &SessionRow| schedule::start_at(row).is_some() && row.is_live();
        for row in self.idle_sessions(concern, may_be_due) {
            let positions = self.sight().positions(&row);
            let at = schedule::start_at(&row);
            if let Some(action) = at.and_then(|at| due_start(at, &positions, now)) {
                self.try_automatically(&row, action);
            }
        }
    }

    /// Stops the copiers of sessions outside their copy window. The copies continue automatically
    /// when the window opens.
    pub(super) fn keep_hours(&mut self, concern: &Concern) {
        let minute = moments::minute_now();
        let over = |row: &SessionRow| row.is_live() && !row.options.hours.contains(minute);
        for row in self.idle_sessions(concern, over) {
            let copiers = self.take_copiers(&row);
            if copiers.is_empty() {
                continue;
            }
            if let Some(operation) = self.operation(&row.name, copiers) {
                let busy = vec![Busy::Session(row.name)];
                self.spawn_operation(
                    busy,
                    "the end of its hours",
                    None,
                    operation.stop_outside_hours(),
                );
            }
        }
    }

    /// Pauses the sessions that have exceeded their maximum duration.
    pub(super) fn pause_overdue_sessions(&mut self, concern: &Concern) {
        let now = steady_ms();
        let is_late = |row: &SessionRow| !row.paused && hours::takes_too_long(row, now);
        for row in self.idle_sessions(concern, is_late) {
            let copiers = self.take_copiers(&row);
            if let Some(operation) = self.operation(&row.name, copiers) {
                let busy = vec![Busy::Session(row.name)];
                self.spawn_operation(busy, "the end of its time", None, operation.time_is_up());
            }
        }
    }

    /// The sessions of `concern` for which `wanted` is true, and on which no operation or cutover
    /// is in progress.
    pub(super) fn idle_sessions(
        &self,
        concern: &Concern,
        wanted: impl Fn(&SessionRow) -> bool,
    ) -> Vec<SessionRow> {
        let is_idle = |row: &&SessionRow| {
            !self.busy.contains_key(&Busy::Session(row.name.clone()))
                && !self.sessions.cutovers.is_running(&row.name)
        };
        let rows = self.concerned(concern).into_iter();
        rows.filter(|row| wanted(row))
            .filter(is_idle)
            .cloned()
            .collect()
    }

    /// Removes the copiers of a session that copy (not those that compare), so that they can be
    /// stopped.
    fn take_copiers(&mut self, row: &SessionRow) -> Vec<(PairKey, Copier, u64)> {
        let mut copiers = Vec::new();
        for position in 0..row.pairs.len() {
            let key = PairKey {
                session: row.name.clone(),
                position,
            };
            if !self.copies.copiers.is_comparing(&key)
                && let Some((copier, copied_bytes)) = self.copies.copiers.take(&key)
            {
                copiers.push((key, copier, copied_bytes));
            }
        }
        copiers
    }

    /// Starts the automatic switches that are due.
    pub(super) fn run_due_actions(&mut self, concern: &Concern) {
        let now = WallTime(now_ms());
        for row in self.idle_sessions(concern, |row| schedule::is_due(row, now)) {
            let action = schedule::due(&row, &self.sight().positions(&row), now);
            if let Some(action) = action {
                self.try_automatically(&row, action);
            }
        }
    }

    /// Performs an automatic action that is due, unless it was attempted a moment ago.
    pub(super) fn try_automatically(&mut self, row: &SessionRow, action: DueAction) {
        let attempts = self.sessions.attempts.entry(row.name.clone()).or_default();
        if !attempts.begin(&action, time(steady_ms())) {
            return;
        }
        let verb = action.verb;
        if let Err(failure) = self.do_by_itself(row, action) {
            let event = HistoryEvent::DueVerbRefused {
                verb,
                cause: failure.cause,
            };
            self.context
                .record_aside(vec![note(Some(&row.name), None, event)]);
        }
    }

    fn do_by_itself(&mut self, row: &SessionRow, action: DueAction) -> Result<(), Failure> {
        let DueAction { verb, pairs, .. } = action;
        self.sight().require_answering(row, verb, &pairs)?;
        verify::require_compared(row, verb, &pairs)?;
        if verb == Verb::Switch && cutover::is_needed(self.sight(), row, &pairs) {
            self.begin_cutover(row, pairs, MAX_PAUSE_MS, None);
        } else {
            self.begin_verb_on(row, verb, pairs, MAX_PAUSE_MS, None);
        }
        Ok(())
    }
}
