//! The owner of all state, above all rooms: what an event or a request leads to.
//!
//! | file | what it does |
//! |---|---|
//! | `requests` | handles a request, or defers it |
//! | `limits` | limits of sessions and of the host that are changed while copies run |
//! | `status` | what clients read: the state, the history, the stream of events |
//! | `reconcile` | reacts to the report of a volume, and to the end of a copier |
//! | `automatic` | what is due without a request |
//! | `concern` | the sessions and volumes that an event concerns |
//! | `cutover` | performs the steps of cutovers |
//! | `verify` | begins and ends comparisons |
//! | `end` | the end of shuntd |

mod automatic;
mod concern;
mod cutover;
mod end;
mod limits;
mod reconcile;
mod requests;
mod status;
mod verify;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use migration_core::route::Side;
use migration_proto::manager::{Cursor, Failure, FailureKind, Response};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::api::deferred::Deferred;
use super::api::feed::{Feed, Published};
use super::context::Context;
use super::copies::Copies;
use super::event::{Busy, Event};
use super::failure::{self, Answer};
use super::luns::standing::Standing;
use super::luns::{sealed, weak};
use super::sessions::sight::Sight;
use super::sessions::{Sessions, retire};
use super::volumes::Volumes;
use crate::store::{Change, Model, PairField, PairKey, PairRow, SessionRow};
use concern::Concern;

/// How often every session is visited without an event that concerns it.
const EVERYTHING_EVERY: Duration = Duration::from_secs(1);

/// The owner of all state: what is recorded, and the state of each room.
pub(super) struct Owner {
    context: Context,
    model: Model,
    volumes: Volumes,
    copies: Copies,
    sessions: Sessions,
    /// The volumes that stand on themselves.
    standing: Standing,
    busy: BTreeMap<Busy, &'static str>,
    /// The automatic operations, and the requests that wait for them.
    deferred: Deferred,
    /// The stream of events.
    feed: Feed,
    /// The states that were published last.
    published: Published,
    /// The problems of the state folder and the socket folder.
    problems: Vec<String>,
    /// When everything is visited, whatever the next event concerns.
    everything_at: Instant,
}

impl Owner {
    /// `history_end`: the end of the history at the start.
    pub(super) fn new(context: Context, model: Model, history_end: Cursor) -> Self {
        let copies = Copies::new(context.events.clone());
        Self {
            context,
            model,
            volumes: Volumes::default(),
            copies,
            sessions: Sessions::default(),
            standing: Standing::default(),
            busy: BTreeMap::new(),
            deferred: Deferred::default(),
            feed: Feed::new(history_end),
            published: Published::default(),
            problems: Vec::new(),
            everything_at: Instant::now(),
        }
    }

    /// Supervises the recorded volumes, and restores what a boot or the end of shuntd has undone.
    pub(super) fn bring_up(&mut self) {
        self.volumes.bring_up(&self.context, &self.model);
        self.forget_unfinished_volumes();
        retire::retire_again(&self.context, &self.model);
        sealed::seal_again(&self.context, &self.model);
        self.check_standing();
    }

    /// Whether requests wait until every volume has reported after the start of shuntd.
    pub(super) fn is_waiting(&self) -> bool {
        self.volumes.are_awaited()
    }

    /// Requests wait no longer.
    pub(super) fn wait_no_longer(&mut self) {
        self.volumes.wait_no_longer();
    }

    /// When the request that has waited longest must be answered.
    pub(super) fn deferred_until(&self) -> Option<Instant> {
        self.deferred.until()
    }

    fn sight(&self) -> Sight<'_> {
        Sight::new(&self.model, &self.volumes, &self.sessions.to_compare)
    }

    fn session_and_pair(&self, key: &PairKey) -> Option<(&SessionRow, &PairRow)> {
        let session = self.model.sessions.get(&key.session)?;
        Some((session, session.pairs.get(key.position)?))
    }

    fn is_busy(&self, busy: &Busy) -> bool {
        self.busy.contains_key(busy)
    }

    fn check_standing(&self) {
        Standing::check(&self.context, &self.model, |volume| {
            let status = self.volumes.view(volume)?.status?;
            Some(status.device.clone())
        });
    }

    /// Applies an event, and starts what follows from it.
    pub(super) fn apply(&mut self, event: Event) {
        let concern = Concern::of(&event, &self.model);
        match event {
            Event::Volume(name) => self.volume_reported(&name),
            Event::KnowDisks { volume, reply } => {
                weak::know_disks(&self.context, &self.model, &volume, reply);
            }
            Event::Changed(changes) => {
                for change in changes {
                    self.changed(change);
                }
            }
            Event::Supervised(handle) => {
                let name = handle.name.clone();
                self.volumes.add(handle);
                self.volume_reported(&name);
            }
            Event::Unsupervised(name) => self.volumes.remove(&name),
            Event::CheckStanding => self.check_standing(),
            Event::Standing(found) => self.standing.checked(&self.context, found),
            Event::ComparisonSettled(key) => self.comparison_settled(&key),
            Event::Refreshed {
                session,
                events,
                reply,
            } => self.reply_with_status(session.as_deref(), events, reply),
            Event::Held { key, luns } => self.sessions.held.keep(key, luns),
            Event::Folders(problems) => self.problems = problems,
            Event::CameBack { key, well } => self.copies.came_back(&key, well),
            Event::CutOver { session, failed } => self.cut_over_ended(&session, failed),
            Event::CopierEnded { key, run, outcome } => self.copier_ended(&key, run, &outcome),
            Event::Finished {
                busy,
                answer,
                reply,
            } => self.finished(&busy, answer, reply),
        }
        self.follow_up(concern);
    }

    /// When everything is to be visited; `None` if there is nothing that could become due.
    pub(super) fn everything_at(&self) -> Option<Instant> {
        (!self.model.sessions.is_empty()).then_some(self.everything_at)
    }

    /// Starts what has become due by the clock.
    pub(super) fn visit_everything(&mut self) {
        self.follow_up(Concern::Everything);
    }

    /// Starts what follows from an event in the sessions that it concerns. Once a second that is
    /// every session: what is due depends on the clock too.
    fn follow_up(&mut self, concern: Concern) {
        let concern = if Instant::now() >= self.everything_at {
            Concern::Everything
        } else {
            concern
        };
        self.fill_places();
        self.start_due_sessions(&concern);
        self.run_due_actions(&concern);
        self.keep_hours(&concern);
        self.pause_overdue_sessions(&concern);
        self.pace_cutovers(&concern);
        self.answer_deferred();
        self.tell_states(&concern);
        if concern == Concern::Everything {
            // Counted from the end of the visit, so that requests are always accepted in between.
            self.everything_at = Instant::now() + EVERYTHING_EVERY;
        }
    }

    fn changed(&mut self, change: Change) {
        if let Change::Note(note) = &change {
            self.on_note(note);
        }
        match &change {
            Change::SetPair(key, PairField::Phase(phase)) if phase.is_ended() => {
                self.copies.forget(key);
            }
            Change::SetPair(key, PairField::Authoritative(Side::Target)) => {
                self.sessions.cutovers.forget_last(&key.session);
            }
            Change::AddSession(row) => self.sessions.cutovers.forget_last(&row.name),
            _ => {}
        }
        let limits_of = match &change {
            Change::SetOptions(session, _) => Some(session.clone()),
            _ => None,
        };
        self.model.apply(change);
        if let Some(session) = limits_of {
            self.copies.copiers.need_not_wait_of(&session);
            self.limits_changed(&session);
        }
    }

    fn finished(
        &mut self,
        busy: &[Busy],
        answer: Answer,
        reply: Option<oneshot::Sender<Response>>,
    ) {
        self.deferred.ended(busy);
        for busy in busy {
            self.busy.remove(busy);
            if let Busy::Session(name) = busy {
                self.sessions.places.release(name);
            }
        }
        if let Err(Failure {
            kind,
            object,
            cause,
            ..
        }) = &answer
        {
            match kind {
                FailureKind::Refused | FailureKind::NotFound => info!(object, cause, "refused"),
                FailureKind::Failed => warn!(object, cause, "failed"),
            }
        }
        match reply {
            // The client may have disconnected.
            Some(reply) => drop(reply.send(failure::response(answer))),
            None => drop(answer),
        }
        let volumes: Vec<String> = self
            .volumes
            .handles()
            .map(|(name, _)| name.clone())
            .collect();
        for volume in volumes {
            self.volume_reported(&volume);
        }
    }

    /// Starts an operation that works on `busy`. The caller has checked that these objects are
    /// free.
    fn spawn_operation(
        &mut self,
        busy: Vec<Busy>,
        what: &'static str,
        reply: Option<oneshot::Sender<Response>>,
        operation: impl Future<Output = Answer> + Send + 'static,
    ) {
        for busy in &busy {
            self.busy.insert(busy.clone(), what);
        }
        if reply.is_none() {
            self.deferred.begun(&busy);
        }
        let events = self.context.events.clone();
        tokio::spawn(async move {
            // A panic must not leave its objects busy for ever.
            let answer = tokio::spawn(operation).await.unwrap_or_else(|error| {
                Err(failure::failed(
                    what,
                    format!("internal error: {error}"),
                    "see the log of shuntd and `shunt status`",
                ))
            });
            // The owner is gone only when shuntd ends.
            let _ = events
                .send(Event::Finished {
                    busy,
                    answer,
                    reply,
                })
                .await;
        });
    }
}
