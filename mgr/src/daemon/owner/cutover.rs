//! Performs the steps of cutovers.

use migration_core::cutover::Step;
use migration_proto::manager::{HistoryEvent, Response};
use tokio::sync::oneshot;

use super::Owner;
use super::concern::Concern;
use crate::daemon::context::note;
use crate::daemon::event::{Busy, Event};
use crate::daemon::failure::{self, Done};
use crate::daemon::sessions::cutover::Next;
use crate::daemon::sessions::sight::Sight;
use crate::history;
use crate::store::SessionRow;

const NANOSECONDS_PER_MILLISECOND: u64 = 1_000_000;

impl Owner {
    /// Begins a cutover. If one is in progress, it continues immediately with the new policy.
    pub(super) fn begin_cutover(
        &mut self,
        row: &SessionRow,
        pairs: Vec<usize>,
        max_pause_ms: u64,
        reply: Option<oneshot::Sender<Response>>,
    ) {
        let name = &row.name;
        let event = self.sessions.cutovers.begin(row, pairs, max_pause_ms);
        let what = history::sentence(&event, Some(name), None);
        self.context
            .record_aside(vec![note(Some(name), None, event)]);
        if let Some(reply) = reply {
            let done = Done::changed(vec![
                format!("session {name}: {what}"),
                format!(
                    "`shunt wait {name} --for target-selected` waits for it, `shunt pause {name}` ends it"
                ),
            ]);
            // The client may have disconnected.
            let _ = reply.send(failure::response(Ok(done)));
        }
    }

    /// Advances every cutover whose session is free.
    pub(super) fn pace_cutovers(&mut self, concern: &Concern) {
        for name in self.sessions.cutovers.under_way() {
            if concern.has_session(&name) && !self.is_busy(&Busy::Session(name.clone())) {
                self.pace_cutover(&name);
            }
        }
    }

    fn pace_cutover(&mut self, name: &str) {
        let sight = Sight::new(&self.model, &self.volumes, &self.sessions.to_compare);
        let copiers = &self.copies.copiers;
        match self.sessions.cutovers.observe(sight, copiers, name) {
            Next::Waits => {}
            Next::Over(event) => self.end_cutover(name, event),
            Next::Step { step, event } => {
                if let Some(event) = event {
                    self.context
                        .record_aside(vec![note(Some(name), None, event)]);
                }
                self.cutover_step(name, step);
            }
        }
    }

    fn cutover_step(&mut self, name: &str, step: Step) {
        match step {
            Step::Watch => {}
            Step::CutOver {
                hold_nanoseconds_max,
            } => self.cut_over(name, hold_nanoseconds_max / NANOSECONDS_PER_MILLISECOND),
            Step::GiveUp => {
                if let Some(event) = self.sessions.cutovers.gave_up(name) {
                    self.end_cutover(name, event);
                }
            }
        }
        let sight = Sight::new(&self.model, &self.volumes, &self.sessions.to_compare);
        self.sessions.cutovers.renew_throttles(sight, name);
    }

    fn cut_over(&mut self, name: &str, hold_ms: u64) {
        let Some((pairs, event)) = self.sessions.cutovers.hold(name, hold_ms) else {
            return;
        };
        let Some(operation) = self.operation(name, Vec::new()) else {
            return;
        };
        self.context
            .record_aside(vec![note(Some(name), None, event)]);
        self.copies.copiers.hurry(name);
        let (context, session) = (self.context.clone(), name.to_owned());
        let busy = vec![Busy::Session(name.to_owned())];
        self.spawn_operation(busy, "switch", None, async move {
            let answer = operation.cut_over(&pairs, hold_ms).await;
            let cut_over = Event::CutOver {
                session,
                failed: answer.is_err(),
            };
            context.notify(cut_over).await;
            answer
        });
    }

    /// Handles the result of the operation that exchanges the roles.
    pub(super) fn cut_over_ended(&mut self, name: &str, failed: bool) {
        self.limits_changed(name);
        let sight = Sight::new(&self.model, &self.volumes, &self.sessions.to_compare);
        self.sessions.cutovers.cut_over(sight, name, failed);
    }

    fn end_cutover(&mut self, name: &str, event: HistoryEvent) {
        let sight = Sight::new(&self.model, &self.volumes, &self.sessions.to_compare);
        let context = &self.context;
        self.sessions.cutovers.end(context, sight, name, event);
    }
}
