//! Handles a request: answers it immediately, refuses it, or starts an operation.

use std::collections::BTreeMap;

use copier::Copier;
use migration_core::operation::recover::Params;
use migration_core::pair::{PairState, Verb};
use migration_core::session::{self, SessionDecision};
use migration_proto::luns::LunPaths;
use migration_proto::manager::{
    Failure, PairSpec, Request, Response, RetireHow, SessionMode, SessionOptions,
};
use tokio::sync::oneshot;

use super::Owner;
use crate::daemon::api::refusal;
use crate::daemon::api::socket::Call;
use crate::daemon::event::Busy;
use crate::daemon::failure::{self, Done};
use crate::daemon::handle::VolumeHandle;
use crate::daemon::luns::weak;
use crate::daemon::repair::locks;
use crate::daemon::repair::recover::Recovery;
use crate::daemon::sessions::create::{self, CreateParams};
use crate::daemon::sessions::operation::{Operation, Terms};
use crate::daemon::sessions::{cutover, plan, retire, split, verify};
use crate::daemon::volumes::{attach, partitions};
use crate::names;
use crate::store::{PairKey, SessionRow, VolumeRow, VolumeState};

/// The longest pause that can be requested, in milliseconds.
const PAUSE_MS_MAX: u64 = 300_000;

type Reply = oneshot::Sender<Response>;

impl Owner {
    /// Answers a request, or defers it while an automatic operation works on its session or volume.
    pub(in crate::daemon) fn take(&mut self, call: Call) {
        if self.deferred.holds_up(&call.request) {
            self.deferred.defer(call);
        } else {
            self.answer_call(call);
        }
    }

    /// Answers the deferred requests that need not wait any longer.
    pub(in crate::daemon) fn answer_deferred(&mut self) {
        for (call, until) in self.deferred.take_waiting() {
            if let Some(call) = self.deferred.defer_again(call, until) {
                self.answer_call(call);
            }
        }
    }

    /// Answers a request. Operations that it starts are recorded for the user of the request.
    fn answer_call(&mut self, call: Call) {
        let Call {
            request,
            who,
            reply,
        } = call;
        self.context.who = Some(who);
        self.answer(request, reply);
        self.context.who = None;
    }

    pub(super) fn answer(&mut self, request: Request, reply: Reply) {
        match request {
            Request::Attach {
                volume,
                luns,
                accept_weak_identity,
            } => self.attach(volume, luns, accept_weak_identity, reply),
            Request::Detach { volume } => self.detach(&volume, reply),
            Request::Create {
                session,
                pairs,
                options,
            } => self.create(session, pairs, options, reply),
            Request::Plan {
                session,
                pairs,
                options,
            } => self.plan(session, pairs, options, reply),
            Request::Retire { session, how } => self.retire(&session, Some(how), reply),
            Request::TakeBack { session } => self.retire(&session, None, reply),
            Request::Start { session } => self.verb(&session, Verb::Start, 0, reply),
            Request::Pause { session } => self.verb(&session, Verb::Pause, 0, reply),
            Request::Resume { session } => self.verb(&session, Verb::Resume, 0, reply),
            Request::Switch {
                session,
                max_pause_ms,
            } => self.verb(&session, Verb::Switch, max_pause_ms, reply),
            Request::Undo {
                session,
                max_pause_ms,
            } => self.verb(&session, Verb::Undo, max_pause_ms, reply),
            Request::Split {
                session,
                max_pause_ms,
            } => self.verb(&session, Verb::Split, max_pause_ms, reply),
            Request::Commit { session } => self.verb(&session, Verb::Commit, 0, reply),
            Request::Cancel { session } => self.verb(&session, Verb::Cancel, 0, reply),
            Request::SetSession { session, limits } => self.set_session(&session, &limits, reply),
            Request::Signal { event } => self.signal(&event, reply),
            Request::SetHost { pairs_max } => self.set_host(pairs_max, reply),
            Request::Status { session } => self.refresh_then_reply(session, false, reply),
            Request::Events { session, after } => self.events(session, after, reply),
            Request::History { session, after } => self.history(session, after, reply),
            Request::Samples { session } => self.samples(&session, reply),
            Request::Verify { session, repair } => self.verify(&session, repair, reply),
            Request::Recover {
                volume,
                authoritative,
                against_record,
                dry_run,
            } => {
                let params = Params {
                    side: authoritative.into(),
                    against_record,
                    dry_run,
                };
                self.recover(&volume, params, reply);
            }
            Request::FreeLocks { dry_run } => {
                let freeing = locks::free(self.context.clone(), dry_run);
                self.spawn_operation(Vec::new(), "recover", Some(reply), freeing);
            }
        }
    }

    pub(super) fn refuse(reply: Reply, failure: Failure) {
        // The client may have disconnected.
        let _ = reply.send(Response::Failed(failure));
    }

    fn attach(&mut self, name: String, luns: LunPaths, accept_weak_identity: bool, reply: Reply) {
        let object = failure::volume(&name);
        if let Err(error) = names::check(&name) {
            return Self::refuse(
                reply,
                failure::refused(object, error.to_string(), "choose another name"),
            );
        }
        if partitions::is_partition_name(&name) {
            let cause = "its name is that of a partition of another volume";
            return Self::refuse(
                reply,
                failure::refused(object, cause, "choose another name"),
            );
        }
        if let Some(lun) = luns.paths().iter().find(|path| !path.is_absolute()) {
            let cause = format!("the path of the lun, {}, is not absolute", lun.display());
            return Self::refuse(
                reply,
                failure::refused(object, cause, "name the lun by its absolute path"),
            );
        }
        let busy = vec![Busy::Volume(name.clone())];
        if let Err(failure) = self.require_free(&busy) {
            return Self::refuse(reply, failure);
        }
        match self.model.volumes.get(&name).cloned() {
            Some(row) => {
                let weak = weak::luns_of(&self.model, &name);
                let named = luns.paths().iter().map(|path| weak.get(path).cloned());
                match named.collect::<Option<Vec<_>>>() {
                    Some(named) if accept_weak_identity => {
                        let accepting = weak::accept(self.context.clone(), name, named);
                        self.spawn_operation(busy, "attach", Some(reply), accepting);
                    }
                    Some(_) | None => {
                        self.spawn_operation(
                            busy,
                            "attach",
                            Some(reply),
                            attach::attach_again(row, luns),
                        );
                    }
                }
            }
            None => {
                let operation = attach::attach(
                    self.context.clone(),
                    name,
                    luns,
                    accept_weak_identity,
                    self.volumes.used_luns(&self.model, None),
                );
                self.spawn_operation(busy, "attach", Some(reply), operation);
            }
        }
    }

    fn detach(&mut self, name: &str, reply: Reply) {
        let Some(row) = self.model.volumes.get(name).cloned() else {
            return Self::refuse(reply, failure::no_volume(name));
        };
        let busy = vec![Busy::Volume(name.to_owned())];
        if let Err(failure) = self.require_free(&busy) {
            return Self::refuse(reply, failure);
        }
        if let Some((session, _)) = self.model.live_pair_of(name) {
            let cause = format!(
                "it is part of session {}, which has not ended",
                session.name
            );
            let failure = failure::refused(
                failure::volume(name),
                cause,
                self.sight().end_first(session),
            );
            return Self::refuse(reply, failure);
        }
        let handle = self.volumes.handle(name).cloned();
        self.spawn_operation(
            busy,
            "detach",
            Some(reply),
            attach::detach(self.context.clone(), row, handle),
        );
    }

    fn recover(&mut self, name: &str, params: Params, reply: Reply) {
        let Some(row) = self.model.volumes.get(name).cloned() else {
            return Self::refuse(reply, failure::no_volume(name));
        };
        let pair = self.model.live_pair_of(name).map(|(session, position)| {
            let key = PairKey {
                session: session.name.clone(),
                position,
            };
            (key, session.pairs[position].clone())
        });
        let mut busy = vec![Busy::Volume(name.to_owned())];
        if let Some((key, _)) = &pair {
            busy.push(Busy::Session(key.session.clone()));
        }
        if let Err(failure) = self.require_free(&busy) {
            return Self::refuse(reply, failure);
        }
        let recovery = Recovery {
            context: self.context.clone(),
            row,
            pair,
            handle: self.volumes.handle(name).cloned(),
            params,
        };
        self.spawn_operation(busy, "recover", Some(reply), recovery.run());
    }

    /// Retires the legs that an ended session no longer uses, or takes them back (`how` is `None`).
    fn retire(&mut self, session: &str, how: Option<RetireHow>, reply: Reply) {
        let Some(row) = self.model.sessions.get(session) else {
            return Self::refuse(reply, failure::no_session(session));
        };
        let busy = vec![Busy::Session(session.to_owned())];
        if let Err(failure) = self.require_free(&busy) {
            return Self::refuse(reply, failure);
        }
        let legs = how.map_or_else(
            || Ok(retire::legs(row)),
            |how| retire::legs_to_retire(self.sight(), row, how),
        );
        let legs = match legs {
            Ok(legs) => legs,
            Err(failure) => return Self::refuse(reply, failure),
        };
        let work = retire::work(self.context.clone(), session.to_owned(), legs, how);
        self.spawn_operation(busy, "retire", Some(reply), work);
    }

    fn create(
        &mut self,
        session: String,
        specs: Vec<PairSpec>,
        options: SessionOptions,
        reply: Reply,
    ) {
        match self.wanted(session, specs, options) {
            Ok((busy, wanted)) => {
                let operation = create::create(self.context.clone(), wanted);
                self.spawn_operation(busy, "create", Some(reply), operation);
            }
            Err(failure) => Self::refuse(reply, failure),
        }
    }

    fn plan(&self, session: String, specs: Vec<PairSpec>, options: SessionOptions, reply: Reply) {
        let (_, wanted) = match self.wanted(session, specs, options) {
            Ok(wanted) => wanted,
            Err(failure) => return Self::refuse(reply, failure),
        };
        let volumes = wanted.pairs.iter().map(|(volume, _)| &volume.name);
        let handles = volumes
            .map(|name| self.volumes.handle(name).cloned())
            .collect();
        let context = self.context.clone();
        tokio::spawn(async move {
            let planned = plan::plan(context, wanted, handles).await;
            // The client may have disconnected.
            let _ = reply.send(planned);
        });
    }

    fn wanted(
        &self,
        session: String,
        specs: Vec<PairSpec>,
        options: SessionOptions,
    ) -> Result<(Vec<Busy>, CreateParams), Failure> {
        let volumes: Vec<&str> = specs.iter().map(|spec| spec.volume.as_str()).collect();
        create::check_request(&session, &volumes, &options)?;
        retire::require_nothing_retired(&self.model, &session)?;
        let object = failure::session(&session);
        let before = self.model.sessions.get(&session);
        if let Some(before) = before.filter(|before| before.is_live()) {
            let next = format!(
                "see `shunt status {session}`, choose another name, or {}",
                self.sight().end_first(before)
            );
            return Err(failure::refused(
                object,
                "there is a session of this name, and it has not ended",
                next,
            ));
        }
        let mut pairs = Vec::new();
        for spec in specs {
            let row = self
                .model
                .volumes
                .get(&spec.volume)
                .ok_or_else(|| failure::no_volume(&spec.volume))?;
            self.require_usable(&object, row)?;
            pairs.push((row.clone(), spec.target));
        }
        let mut busy = vec![Busy::Session(session.clone())];
        busy.extend(pairs.iter().map(|(row, _)| Busy::Volume(row.name.clone())));
        self.require_free(&busy)?;
        Ok((
            busy,
            CreateParams {
                session,
                pairs,
                options,
                used: self.volumes.used_luns(&self.model, None),
            },
        ))
    }

    fn require_usable(&self, object: &str, row: &VolumeRow) -> Result<(), Failure> {
        if row.state != VolumeState::Attached {
            let cause = format!("volume {} is {}", row.name, row.state.name());
            return Err(failure::refused(
                object,
                cause,
                "wait for it, see `shunt status`",
            ));
        }
        match self.model.live_pair_of(&row.name) {
            Some((session, _)) => {
                let cause = format!(
                    "volume {} is part of session {}, which has not ended",
                    row.name, session.name
                );
                Err(failure::refused(
                    object,
                    cause,
                    self.sight().end_first(session),
                ))
            }
            None => Ok(()),
        }
    }

    pub(super) fn require_free(&self, wanted: &[Busy]) -> Result<(), Failure> {
        for busy in wanted {
            if let Some(what) = self.busy.get(busy) {
                let object = match busy {
                    Busy::Volume(name) => failure::volume(name),
                    Busy::Session(name) => failure::session(name),
                };
                let cause = format!("it is busy: another command ({what}) is under way");
                return Err(failure::refused(
                    object,
                    cause,
                    "wait until that is done, then give the command again",
                ));
            }
        }
        Ok(())
    }

    fn verb(&mut self, session: &str, verb: Verb, max_pause_ms: u64, reply: Reply) {
        let Some(row) = self.model.sessions.get(session) else {
            return Self::refuse(reply, failure::no_session(session));
        };
        let object = failure::session(session);
        let takes_pause = matches!(verb, Verb::Switch | Verb::Undo | Verb::Split);
        if takes_pause && !(1..=PAUSE_MS_MAX).contains(&max_pause_ms) {
            let cause =
                format!("a pause of {max_pause_ms} ms is not within 1 to {PAUSE_MS_MAX} ms");
            return Self::refuse(
                reply,
                failure::refused(object, cause, "give another --max-pause"),
            );
        }
        if let Err(failure) = self.require_free(&[Busy::Session(session.to_owned())]) {
            return Self::refuse(reply, failure);
        }
        if let (Verb::Switch, SessionMode::Copy) = (verb, row.options.mode) {
            return Self::refuse(reply, split::never_switched(session));
        }
        let positions = self.sight().positions(row);
        match session::decide_session(verb, &positions) {
            SessionDecision::Do(pairs) => match self
                .sight()
                .require_answering(row, verb, &pairs)
                .and_then(|()| verify::require_compared(row, verb, &pairs))
            {
                Ok(()) if verb == Verb::Switch && cutover::is_needed(self.sight(), row, &pairs) => {
                    let row = row.clone();
                    self.begin_cutover(&row, pairs, max_pause_ms, Some(reply));
                }
                Ok(()) => self.begin_verb(session, verb, max_pause_ms, Some(reply)),
                Err(failure) => Self::refuse(reply, failure),
            },
            SessionDecision::Already => {
                let state = session::state(&positions).map_or("", |state| state.name());
                let done = Done::already(format!("session {session} is {state} already"));
                // The client may have disconnected.
                let _ = reply.send(failure::response(Ok(done)));
            }
            SessionDecision::Refuse { pair, reason } => {
                let view = self.volumes.view(&row.pairs[pair].volume);
                let failure = refusal::of_verb(row, verb, pair, reason, &positions, view.as_ref());
                Self::refuse(reply, failure);
            }
        }
    }

    /// Performs a verb on the pairs that it concerns. The session must not be busy.
    pub(super) fn begin_verb(
        &mut self,
        name: &str,
        verb: Verb,
        max_pause_ms: u64,
        reply: Option<Reply>,
    ) {
        let Some(session) = self.model.sessions.get(name).cloned() else {
            return;
        };
        let positions = self.sight().positions(&session);
        if let SessionDecision::Do(pairs) = session::decide_session(verb, &positions) {
            self.begin_verb_on(&session, verb, pairs, max_pause_ms, reply);
        }
    }

    /// Performs a verb on some pairs of a session. The caller has decided that this is allowed.
    pub(super) fn begin_verb_on(
        &mut self,
        session: &SessionRow,
        verb: Verb,
        pairs: Vec<usize>,
        max_pause_ms: u64,
        reply: Option<Reply>,
    ) {
        let name = session.name.as_str();
        let positions = self.sight().positions(session);
        let stops = matches!(
            verb,
            Verb::Pause | Verb::Switch | Verb::Undo | Verb::Split | Verb::Commit | Verb::Cancel
        );
        let mut copiers = Vec::new();
        for position in 0..session.pairs.len() {
            let key = PairKey {
                session: name.to_owned(),
                position,
            };
            if stops {
                self.sessions.to_compare.remove(&key);
            }
            if let Some((copier, copied_bytes)) =
                stops.then(|| self.copies.copiers.take(&key)).flatten()
            {
                copiers.push((key, copier, copied_bytes));
            }
        }
        let (pairs, later) = match verb {
            Verb::Start => self
                .sessions
                .places
                .turns(self.sight(), &self.busy, session, pairs),
            _ => (pairs, Vec::new()),
        };
        let Some(operation) = self.operation(name, copiers) else {
            return;
        };
        let mut terms = Terms {
            max_pause_ms,
            pairs_max: self.model.pairs_max,
            ..Terms::default()
        };
        if verb == Verb::Start {
            terms.used = self.volumes.used_luns(&self.model, Some(name));
            self.sessions.places.take(name, &pairs);
        }
        let states: Vec<PairState> = positions.iter().map(|position| position.state).collect();
        let busy = vec![Busy::Session(name.to_owned())];
        self.spawn_operation(busy, verb.name(), reply, async move {
            operation.verb(verb, &pairs, later, &states, terms).await
        });
    }

    /// An operation on some pairs of a session, with the copiers that it stops.
    pub(super) fn operation(
        &self,
        name: &str,
        copiers: Vec<(PairKey, Copier, u64)>,
    ) -> Option<Operation> {
        let session = self.model.sessions.get(name)?.clone();
        let volumes = session
            .pairs
            .iter()
            .filter_map(|pair| self.model.volumes.get(&pair.volume));
        let volumes: BTreeMap<String, VolumeRow> =
            volumes.map(|row| (row.name.clone(), row.clone())).collect();
        let handles: BTreeMap<String, VolumeHandle> = volumes
            .keys()
            .filter_map(|name| Some((name.clone(), self.volumes.handle(name)?.clone())))
            .collect();
        Some(Operation {
            context: self.context.clone(),
            session,
            volumes,
            handles,
            copiers,
        })
    }
}
