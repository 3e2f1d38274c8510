//! Begins and ends comparisons of the legs.

use copier::compare::Found;
use migration_core::session::may_be_compared;
use migration_core::verify::Comparison;
use migration_proto::manager::{Failure, HistoryEvent, Response};
use tokio::sync::oneshot;
use tracing::warn;

use super::Owner;
use crate::daemon::context::note;
use crate::daemon::event::{Busy, Event};
use crate::daemon::failure::{self, Done};
use crate::daemon::sessions::verify;
use crate::store::{Change, PairKey, PairRow};

impl Owner {
    /// Begins to compare the legs of every pair that has not ended.
    pub(super) fn verify(&mut self, name: &str, repair: bool, reply: oneshot::Sender<Response>) {
        let answer = self.begin_to_compare(name, repair);
        // The client may have disconnected.
        let _ = reply.send(failure::response(answer));
    }

    fn begin_to_compare(&mut self, name: &str, repair: bool) -> Result<Done, Failure> {
        let session = self
            .model
            .sessions
            .get(name)
            .cloned()
            .ok_or_else(|| failure::no_session(name))?;
        self.require_free(&[Busy::Session(name.to_owned())])?;
        let positions = self.sight().positions(&session);
        if let Err(pair) = may_be_compared(&positions) {
            return Err(verify::not_comparable(&session, pair, positions[pair]));
        }
        let keys: Vec<PairKey> = (0..session.pairs.len())
            .filter(|position| !session.pairs[*position].phase.is_ended())
            .map(|position| PairKey {
                session: name.to_owned(),
                position,
            })
            .collect();
        let asked = Comparison::new(repair);
        let wanted = |key: &PairKey| {
            let pair = &session.pairs[key.position];
            self.sight().comparing(&session, pair, key) == Some(asked)
        };
        if keys.iter().all(wanted) {
            let what = format!("the legs of session {name} are being compared already");
            return Ok(Done::already(what));
        }
        let mut notes = Vec::new();
        for key in keys {
            let volume = &session.pairs[key.position].volume;
            notes.push(note(Some(name), Some(volume), HistoryEvent::CompareBegun));
            self.sessions.to_compare.insert(key.clone(), asked);
            if self.copies.copiers.is_comparing(&key) {
                self.stop_comparing(&key);
            }
        }
        self.context.record_aside(notes);
        // What follows is automatic: the history must not name a user.
        self.context.who = None;
        for pair in &session.pairs {
            self.volume_reported(&pair.volume);
        }
        let messages = vec![format!(
            "the legs of session {name} are being compared; see `shunt status {name}`"
        )];
        Ok(Done::changed(messages))
    }

    /// Stops a running comparison; it starts again with the latest options.
    fn stop_comparing(&mut self, key: &PairKey) {
        if let Some((copier, _)) = self.copies.copiers.take(key) {
            tokio::task::spawn_blocking(move || drop(copier));
        }
    }

    /// The result of a comparison is recorded, or could not be: the request for it is done.
    pub(super) fn comparison_settled(&mut self, key: &PairKey) {
        if self
            .sessions
            .to_compare
            .get(key)
            .is_some_and(|found| found.over)
        {
            self.sessions.to_compare.remove(key);
        }
    }

    /// Changes that record the result of a comparison.
    pub(super) fn compared(&mut self, key: &PairKey, pair: &PairRow, found: &Found) -> Vec<Change> {
        let asked = self.sessions.to_compare.get(key);
        let repair = asked.is_some_and(|asked| asked.repair);
        let over = Comparison { repair, over: true };
        self.sessions.to_compare.insert(key.clone(), over);
        verify::compared(key, pair, found, repair)
    }

    /// Makes the result of a comparison durable in the background.
    pub(super) fn record_comparison(&self, key: PairKey, changes: Vec<Change>) {
        let context = self.context.clone();
        tokio::spawn(async move {
            if let Err(error) = context.commit(changes).await {
                warn!(%error, "the result of a comparison could not be recorded");
            }
            context.notify(Event::ComparisonSettled(key)).await;
        });
    }
}
