//! Limits of sessions and of the host that are changed while copies run, and signals.

use migration_proto::manager::{
    HistoryEvent, PAIRS_MAX_MAX, PRIORITY_MAX, Response, SessionLimits, SwitchPolicy,
};
use tokio::sync::oneshot;

use super::Owner;
use crate::daemon::context::note;
use crate::daemon::event::Busy;
use crate::daemon::failure::{self, Done};
use crate::daemon::sessions::{cutover, hours, schedule, set, split};
use crate::history;
use crate::store::{Change, SessionRow};

type Reply = oneshot::Sender<Response>;

impl Owner {
    pub(super) fn set_session(&mut self, name: &str, limits: &SessionLimits, reply: Reply) {
        let Some(row) = self.model.sessions.get(name) else {
            return Self::refuse(reply, failure::no_session(name));
        };
        let object = failure::session(name);
        if !row.is_live() {
            let next = "`shunt create` makes another session";
            return Self::refuse(reply, failure::refused(object, "it has ended", next));
        }
        if let Some(priority) = limits.priority.filter(|priority| *priority > PRIORITY_MAX) {
            let cause = format!("a priority of {priority} is not within 0 to {PRIORITY_MAX}");
            return Self::refuse(
                reply,
                failure::refused(object, cause, "give another --priority"),
            );
        }
        if let Err(cause) = limits.switch.as_ref().map_or(Ok(()), schedule::check) {
            return Self::refuse(
                reply,
                failure::refused(object, cause, "give another --switch"),
            );
        }
        if let Err(cause) = limits.start_at_ms.map_or(Ok(()), hours::check_start) {
            let next = "give another --start-at";
            return Self::refuse(reply, failure::refused(object, cause, next));
        }
        let (options, limits) = set::changed(row, limits);
        if let Err(cause) = cutover::check(&options)
            .and_then(|()| split::check(&options))
            .and_then(|()| hours::check(&options))
        {
            let next = "give other limits";
            return Self::refuse(reply, failure::refused(object, cause, next));
        }
        let busy = vec![Busy::Session(name.to_owned())];
        if let Err(failure) = self.require_free(&busy) {
            return Self::refuse(reply, failure);
        }
        if limits.is_empty() {
            let done = Done::already(format!("session {name} has these limits already"));
            // The client may have disconnected.
            let _ = reply.send(failure::response(Ok(done)));
            return;
        }
        let (context, name) = (self.context.clone(), name.to_owned());
        self.spawn_operation(busy, "set", Some(reply), async move {
            let said = history::limits(&limits);
            let event = HistoryEvent::LimitsSet { changes: limits };
            let changes = vec![
                Change::SetOptions(name.clone(), options),
                note(Some(&name), None, event),
            ];
            context.record(&object, changes).await?;
            Ok(Done::changed(vec![format!("session {name}: {said}")]))
        });
    }

    pub(super) fn set_host(&mut self, pairs_max: u32, reply: Reply) {
        const OBJECT: &str = "this host";
        if !(1..=PAIRS_MAX_MAX).contains(&pairs_max) {
            let cause = format!("{pairs_max} pairs at once are not within 1 to {PAIRS_MAX_MAX}");
            let next = "give another --max-pairs; `shunt pause` stops the copy of a session";
            return Self::refuse(reply, failure::refused(OBJECT, cause, next));
        }
        let said = format!("at most {pairs_max} pairs are copied at once");
        if pairs_max == self.model.pairs_max {
            // The client may have disconnected.
            let _ = reply.send(failure::response(Ok(Done::already(said))));
            return;
        }
        let context = self.context.clone();
        self.spawn_operation(Vec::new(), "set", Some(reply), async move {
            let changes = vec![
                Change::SetPairsMax(pairs_max),
                note(None, None, HistoryEvent::PairsMaxSet { pairs_max }),
            ];
            context.record(OBJECT, changes).await?;
            Ok(Done::changed(vec![said]))
        });
    }

    /// Applies the rate limit of a session to its running copiers.
    pub(super) fn limits_changed(&mut self, session: &str) {
        if let Some(row) = self.model.sessions.get(session) {
            let rate = row.options.rate_bytes_per_second;
            self.copies.copiers.share_rate(session, rate);
        }
    }

    /// Handles `shunt signal`: the sessions that wait for the event are switched as soon as they
    /// are in sync.
    pub(super) fn signal(&mut self, event: &str, reply: oneshot::Sender<Response>) {
        let object = format!("event {event}");
        let waits = |row: &&SessionRow| {
            row.is_live() && row.options.switch == SwitchPolicy::OnEvent(event.to_owned())
        };
        let rows: Vec<SessionRow> = self
            .model
            .sessions
            .values()
            .filter(waits)
            .cloned()
            .collect();
        if rows.is_empty() {
            let next = "see `shunt status`; `shunt set SESSION --switch event:NAME` lets one wait";
            let failure = failure::refused(object, "no session waits for it", next);
            return Self::refuse(reply, failure);
        }
        let busy: Vec<Busy> = rows
            .iter()
            .map(|row| Busy::Session(row.name.clone()))
            .collect();
        if let Err(failure) = self.require_free(&busy) {
            return Self::refuse(reply, failure);
        }
        let (context, signal) = (self.context.clone(), event.to_owned());
        self.spawn_operation(busy, "signal", Some(reply), async move {
            let mut changes = Vec::new();
            let mut messages = Vec::new();
            for row in &rows {
                messages.push(format!(
                    "session {}: {}",
                    row.name,
                    history::switch_policy(&SwitchPolicy::WhenSynced, row.options.mode)
                ));
                changes.extend(schedule::signalled(row, &signal));
            }
            context.record(&object, changes).await?;
            Ok(Done::changed(messages))
        });
    }
}
