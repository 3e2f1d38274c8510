//! What clients read: the state, the history, the stream of events.

use std::collections::BTreeMap;
use std::time::Duration;

use migration_proto::manager::{
    ApplicationRecord, Cursor, EVENTS_WAIT_MS, EventRecord, Failure, HistoryEvent, JSON_SCHEMA,
    PairRecord, Record, Response,
};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::Owner;
use super::concern::Concern;
use crate::daemon::api::feed::Watched;
use crate::daemon::api::{page, records};
use crate::daemon::context::now_ms;
use crate::daemon::copies::gauge;
use crate::daemon::event::Event;
use crate::daemon::failure;
use crate::store::{Note, PairKey, SessionRow};

/// The most lines of history in one answer.
const HISTORY_LINES_MAX: u32 = 2_000;
/// The most lines of history after a place in one answer; the client asks again for the rest.
const HISTORY_LINES_AFTER_MAX: u32 = 500;

type Reply = oneshot::Sender<Response>;

impl Owner {
    /// Answers with the current state: asks the volumes for their status first.
    pub(super) fn refresh_then_reply(
        &self,
        session: Option<String>,
        as_events: bool,
        reply: Reply,
    ) {
        let shown = |name: &String| match &session {
            None => true,
            Some(session) => {
                let row = self.model.sessions.get(session);
                row.is_some_and(|row| row.pairs.iter().any(|pair| pair.volume == *name))
            }
        };
        let mut asked = JoinSet::new();
        for (_, handle) in self.volumes.handles().filter(|(name, _)| shown(name)) {
            let handle = handle.clone();
            asked.spawn(async move { handle.refresh().await });
        }
        let events = self.context.events.clone();
        tokio::spawn(async move {
            asked.join_all().await;
            let refreshed = Event::Refreshed {
                session,
                events: as_events,
                reply,
            };
            // The owner is gone only when shuntd ends.
            let _ = events.send(refreshed).await;
        });
    }

    pub(super) fn reply_with_status(&self, session: Option<&str>, as_events: bool, reply: Reply) {
        let response = match self.status(session) {
            Ok(records) if as_events => self.events_begin(records),
            Ok(records) => Response::Records { records },
            Err(failure) => Response::Failed(failure),
        };
        // The client may have disconnected.
        let _ = reply.send(response);
    }

    fn status(&self, only: Option<&str>) -> Result<Vec<Record>, Failure> {
        let mut records = Vec::new();
        if only.is_none() {
            let host = records::host(
                self.model.pairs_max,
                self.sessions.places.occupancy(self.sight()),
                &self.problems,
            );
            records.push(host);
            for row in self.model.volumes.values() {
                records.push(records::volume(
                    &self.model,
                    &self.context.config,
                    row,
                    self.volumes.view(&row.name).as_ref(),
                    self.standing
                        .problem(&row.name)
                        .or_else(|| self.volumes.name_problem(&row.name)),
                ));
            }
        }
        let named = only
            .map(|name| {
                self.model
                    .sessions
                    .get(name)
                    .ok_or_else(|| failure::no_session(name))
            })
            .transpose()?;
        let sessions: Vec<&SessionRow> = match named {
            Some(session) => vec![session],
            None => self.model.sessions.values().collect(),
        };
        for session in sessions {
            let positions = self.sight().positions(session);
            let cutover = self.sessions.cutovers.record(&session.name);
            records.push(records::session(session, &positions, cutover));
            for (index, (pair, position)) in session.pairs.iter().zip(positions).enumerate() {
                let key = PairKey {
                    session: session.name.clone(),
                    position: index,
                };
                let view = self.volumes.view(&pair.volume);
                let is_ended = position.state.is_ended();
                let stands_on_itself = self.standing.problem(&pair.volume);
                let record = records::pair(
                    session,
                    pair,
                    position,
                    view.as_ref(),
                    self.copies.copiers.copied(&key),
                    self.sessions.to_compare.get(&key),
                    self.copies
                        .gauges
                        .application(&key)
                        .map(|application| ApplicationRecord {
                            undisturbed_p99_us: self.copies.copiers.undisturbed_p99_us(&key),
                            ..application
                        }),
                );
                records.push(Record::Pair(PairRecord {
                    problem: record
                        .problem
                        .or_else(|| stands_on_itself.filter(|_| !is_ended).cloned()),
                    ..record
                }));
            }
        }
        Ok(records)
    }

    pub(super) fn history(&self, session: Option<String>, after: Option<Cursor>, reply: Reply) {
        if let Some(after) = after {
            return self.history_after(session, after, reply);
        }
        let known = session
            .as_ref()
            .is_none_or(|name| self.model.sessions.contains_key(name));
        let (store, end) = (self.context.store.clone(), self.feed.cursor());
        tokio::spawn(async move {
            let name = session.clone();
            let notes = store
                .call(move |store| store.history(name.as_deref(), HISTORY_LINES_MAX))
                .await;
            let response = match (notes, session) {
                (Ok(notes), Some(name)) if notes.is_empty() && !known => {
                    Response::Failed(failure::no_session(&name))
                }
                (Ok(notes), _) => {
                    let notes = notes.into_iter();
                    let events = notes.map(|note| records::event(note, &end)).collect();
                    records_of(page::last(events))
                }
                (Err(error), _) => Response::Failed(failure::store("history", &error)),
            };
            // The client may have disconnected.
            let _ = reply.send(response);
        });
    }

    /// Answers with the lines of the history after a place in it.
    fn history_after(&self, session: Option<String>, after: Cursor, reply: Reply) {
        let store = self.context.store.clone();
        tokio::spawn(async move {
            let place = after.clone();
            let notes = store.call(move |store| {
                store.history_after(&place, session.as_deref(), HISTORY_LINES_AFTER_MAX)
            });
            let response = match notes.await {
                Ok(Ok(notes)) => {
                    let notes = notes.into_iter();
                    let events = notes.map(|note| records::event(note, &after)).collect();
                    records_of(page::first(events))
                }
                Ok(Err(lost)) => Response::Failed(failure::refused(
                    format!("cursor {after}"),
                    format!("what happened after it is not known: {lost}"),
                    "`shunt events` for the current state and a new cursor; `shunt history` has the last lines",
                )),
                Err(error) => Response::Failed(failure::store("history", &error)),
            };
            // The client may have disconnected.
            let _ = reply.send(response);
        });
    }

    pub(super) fn events(&self, session: Option<String>, after: Option<u64>, reply: Reply) {
        let Some(after) = after else {
            return self.refresh_then_reply(session, true, reply);
        };
        let (feed, events) = (self.feed.clone(), self.context.events.clone());
        tokio::spawn(async move {
            let limit = Duration::from_millis(EVENTS_WAIT_MS);
            match feed.wait(after, session.clone(), limit).await {
                // The client may have disconnected.
                Some(response) => drop(reply.send(response)),
                None => {
                    let refreshed = Event::Refreshed {
                        session,
                        events: true,
                        reply,
                    };
                    // The owner is gone only when shuntd ends.
                    let _ = events.send(refreshed).await;
                }
            }
        });
    }

    /// The current state, as the beginning of the event stream.
    pub(super) fn events_begin(&self, records: Vec<Record>) -> Response {
        Response::Events {
            next: self.feed.next(),
            cursor: self.feed.cursor(),
            present: true,
            records,
        }
    }

    pub(super) fn on_note(&self, note: &Note) {
        let event = records::event(note.clone(), &self.feed.cursor());
        self.feed.push(event);
    }

    /// Publishes an event for every state of `concern` that has changed.
    pub(super) fn tell_states(&mut self, concern: &Concern) {
        let mut states: BTreeMap<Watched, &'static str> = BTreeMap::new();
        for row in self.concerned_volumes(concern) {
            let view = self.volumes.view(&row.name).unwrap_or_default();
            let state = records::volume_state(row, &view);
            states.insert(Watched::Volume(row.name.clone()), state);
        }
        for session in self.concerned(concern) {
            for (position, found) in self.sight().positions(session).into_iter().enumerate() {
                let key = PairKey {
                    session: session.name.clone(),
                    position,
                };
                states.insert(Watched::Pair(key), found.state.name());
            }
        }
        for (watched, state) in &states {
            if !self.published.changed(watched, state) {
                continue;
            }
            let (session, volume) = match watched {
                Watched::Volume(volume) => (None, Some(volume.clone())),
                Watched::Pair(key) => (
                    Some(key.session.clone()),
                    self.model.pair(key).map(|pair| pair.volume.clone()),
                ),
            };
            self.feed.push(EventRecord {
                schema: JSON_SCHEMA,
                cursor: self.feed.cursor(),
                at_ms: now_ms(),
                session,
                volume,
                who: None,
                event: HistoryEvent::StateChanged {
                    state: (*state).to_owned(),
                },
            });
        }
        if *concern == Concern::Everything {
            self.published.keep(&states.into_keys().collect());
        }
    }

    /// Answers with the samples of a session.
    pub(super) fn samples(&self, session: &str, reply: Reply) {
        match self.model.sessions.get(session) {
            Some(row) => gauge::send_samples(&self.context, row, reply),
            None => Self::refuse(reply, failure::no_session(session)),
        }
    }
}

fn records_of(events: Vec<EventRecord>) -> Response {
    Response::Records {
        records: events.into_iter().map(Record::Event).collect(),
    }
}
