//! Handles a request: answers it immediately, refuses it, or starts an operation.

use std::collections::BTreeMap;

use copier::Copier;
use migration_core::pair::{Facts, PairState, Phase, Position, Reason, Verb};
use migration_core::session::{self, SessionDecision};
use migration_proto::luns::LunPaths;
use migration_proto::manager::{
    ApplicationRecord, Failure, PairRecord, PairSpec, Record, Request, Response, SessionMode,
    SessionOptions,
};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::attach;
use super::create::{self, CreateParams};
use super::failure::{self, Done};
use super::locks;
use super::operation::{Operation, Terms};
use super::partitions;
use super::records;
use super::recover::{RecoverParams, Recovery};
use super::split;
use super::volume::{View, VolumeHandle};
use super::weak;
use super::{Busy, Event, Owner};
use crate::names;
use crate::store::{PairKey, SessionRow, VolumeRow, VolumeState};

/// The most lines of history in one answer.
const HISTORY_LINES_MAX: u32 = 2_000;
/// The longest pause that can be requested, in milliseconds.
const PAUSE_MS_MAX: u64 = 300_000;

type Reply = oneshot::Sender<Response>;

impl Owner {
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
            Request::History { session } => self.history(session, reply),
            Request::Samples { session } => self.samples(session, reply),
            Request::Verify { session, repair } => self.verify(&session, repair, reply),
            Request::Recover {
                volume,
                authoritative,
                against_record,
                dry_run,
            } => {
                let params = RecoverParams {
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
                let weak = self.weak_luns(&name);
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
                    self.used_luns(None),
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
            let failure = failure::refused(failure::volume(name), cause, self.end_first(session));
            return Self::refuse(reply, failure);
        }
        let handle = self.handles.get(name).cloned();
        self.spawn_operation(
            busy,
            "detach",
            Some(reply),
            attach::detach(self.context.clone(), row, handle),
        );
    }

    fn recover(&mut self, name: &str, params: RecoverParams, reply: Reply) {
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
            handle: self.handles.get(name).cloned(),
            params,
        };
        self.spawn_operation(busy, "recover", Some(reply), recovery.run());
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
            .map(|name| self.handles.get(name).cloned())
            .collect();
        let context = self.context.clone();
        tokio::spawn(async move {
            let planned = super::plan::plan(context, wanted, handles).await;
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
        self.require_nothing_retired(&session)?;
        let object = failure::session(&session);
        let before = self.model.sessions.get(&session);
        if let Some(before) = before.filter(|before| before.is_live()) {
            let next = format!(
                "see `shunt status {session}`, choose another name, or {}",
                self.end_first(before)
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
                used: self.used_luns(None),
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
                Err(failure::refused(object, cause, self.end_first(session)))
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
        let positions = self.positions(row);
        match session::decide_session(verb, &positions) {
            SessionDecision::Do(pairs) => match self
                .require_answering(row, verb, &pairs)
                .and_then(|()| self.require_compared(row, verb, &pairs))
            {
                Ok(()) if verb == Verb::Switch && self.needs_cutover(row, &pairs) => {
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
                let failure = self.refusal(row, verb, pair, reason, &positions);
                Self::refuse(reply, failure);
            }
        }
    }

    /// Refuses a verb that needs the ublk-target of a pair while that process cannot be started. An
    /// operation waits for a process that is just being restarted.
    pub(super) fn require_answering(
        &self,
        session: &SessionRow,
        verb: Verb,
        pairs: &[usize],
    ) -> Result<(), Failure> {
        for position in pairs {
            let pair = &session.pairs[*position];
            let needs_volume = match verb {
                Verb::Pause => false,
                Verb::Cancel => !matches!(pair.phase, Phase::Setup | Phase::Queued),
                Verb::Start
                | Verb::Resume
                | Verb::Switch
                | Verb::Undo
                | Verb::Split
                | Verb::Commit => true,
            };
            let view = self.view(&pair.volume).unwrap_or_default();
            let ends = matches!(verb, Verb::Commit | Verb::Cancel);
            if needs_volume && ends && view.failures == 0 && view.status.is_none() {
                // Its role may have moved: the other pairs must not end where it is not.
                let cause = "the volume has not reported its route since shuntd began";
                let object = failure::pair(&session.name, &pair.volume);
                let next = format!(
                    "`shunt status {0}` shows when it has, then `shunt {verb} {0}`",
                    session.name
                );
                return Err(failure::refused(object, cause, next));
            }
            if needs_volume && view.failures > 0 {
                let problem = view.problem.unwrap_or_default();
                let cause = format!(
                    "the volume's ublk-target does not answer: {problem}; the {} is authoritative",
                    pair.authoritative
                );
                let next = format!(
                    "correct the cause (it is restarted automatically), then `shunt {verb} {}`",
                    session.name
                );
                return Err(failure::refused(
                    failure::pair(&session.name, &pair.volume),
                    cause,
                    next,
                ));
            }
        }
        Ok(())
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
        let positions = self.positions(&session);
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
        let positions = self.positions(session);
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
                self.to_compare.remove(&key);
            }
            if let Some((copier, copied_bytes)) = stops.then(|| self.copies.take(&key)).flatten() {
                copiers.push((key, copier, copied_bytes));
            }
        }
        let (pairs, later) = match verb {
            Verb::Start => self.turns(session, pairs),
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
            terms.used = self.used_luns(Some(name));
            self.take_places(name, &pairs);
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
            .filter_map(|name| Some((name.clone(), self.handles.get(name)?.clone())))
            .collect();
        Some(Operation {
            context: self.context.clone(),
            session,
            volumes,
            handles,
            copiers,
        })
    }

    pub(super) fn view(&self, volume: &str) -> Option<View> {
        self.handles.get(volume).map(VolumeHandle::view)
    }

    pub(super) fn positions(&self, session: &SessionRow) -> Vec<Position> {
        let position = |position| {
            let key = PairKey {
                session: session.name.clone(),
                position,
            };
            self.facts(session, &key).position()
        };
        (0..session.pairs.len()).map(position).collect()
    }

    pub(super) fn facts(&self, session: &SessionRow, key: &PairKey) -> Facts {
        let pair = &session.pairs[key.position];
        let comparing = self.comparing(session, pair, key);
        let view = self.view(&pair.volume);
        records::facts(session, pair, view.as_ref(), comparing.is_some())
    }

    /// The command that ends a session, as the first step before something else.
    pub(super) fn end_first(&self, session: &SessionRow) -> String {
        let name = &session.name;
        let verbs = session::allowed(&self.positions(session));
        let ends = [Verb::Commit, Verb::Cancel].into_iter();
        let ends: Vec<String> = ends
            .filter(|verb| verbs.contains(verb))
            .map(|verb| format!("`shunt {verb} {name}`"))
            .collect();
        match ends.is_empty() {
            true => format!("end it when `shunt status {name}` allows that"),
            false => format!("{} first", ends.join(" or ")),
        }
    }

    /// The refusal of a verb: the reason, and what can be done.
    fn refusal(
        &self,
        session: &SessionRow,
        verb: Verb,
        pair: usize,
        reason: Reason,
        positions: &[Position],
    ) -> Failure {
        let name = &session.name;
        let (row, position) = (&session.pairs[pair], positions[pair]);
        let view = self.view(&row.volume);
        let status = view.as_ref().and_then(|view| view.status.as_deref());
        let mut cause = format!(
            "{verb} is not allowed while it is {}: {reason}",
            position.state
        );
        if let Some(status) =
            status.filter(|status| reason == Reason::NotInSync && status.dirty_bytes > 0)
        {
            cause.push_str(&format!(
                ", {} bytes are still to be copied",
                status.dirty_bytes
            ));
        }
        if let Some(problem) = view
            .as_ref()
            .and_then(|view| view.problem.clone())
            .or_else(|| row.problem.clone())
        {
            cause.push_str(&format!(" ({problem})"));
        }
        cause.push_str(&format!(
            "; the {} is authoritative",
            position.authoritative
        ));
        let verbs = session::allowed(positions);
        let first = first_step(name, reason, &position, session.paused, &verbs);
        let allowed: Vec<&str> = verbs.into_iter().map(Verb::name).collect();
        let allowed = if allowed.is_empty() {
            "nothing but status and history".to_owned()
        } else {
            allowed.join(", ")
        };
        let next = format!("{first} (allowed now: {allowed})");
        failure::refused(failure::pair(name, &row.volume), cause, next)
    }

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
        for (_, handle) in self.handles.iter().filter(|(name, _)| shown(name)) {
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
            let host = records::host(self.model.pairs_max, self.occupancy(), &self.problems);
            records.push(host);
            for row in self.model.volumes.values() {
                records.push(records::volume(
                    &self.model,
                    &self.context.config,
                    row,
                    self.view(&row.name).as_ref(),
                    self.standing
                        .get(&row.name)
                        .or_else(|| self.unnamed.get(&row.name)),
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
            let positions = self.positions(session);
            let cutover = self.cutovers.record(&session.name);
            records.push(records::session(session, &positions, cutover));
            for (index, (pair, position)) in session.pairs.iter().zip(positions).enumerate() {
                let key = PairKey {
                    session: session.name.clone(),
                    position: index,
                };
                let view = self.view(&pair.volume);
                let is_ended = position.state.is_ended();
                let stands_on_itself = self.standing.get(&pair.volume);
                let record = records::pair(
                    session,
                    pair,
                    position,
                    view.as_ref(),
                    self.copies.copied(&key),
                    self.to_compare.get(&key),
                    self.gauges
                        .application(&key)
                        .map(|application| ApplicationRecord {
                            undisturbed_p99_us: self.copies.undisturbed_p99_us(&key),
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

    fn history(&self, session: Option<String>, reply: Reply) {
        let known = session
            .as_ref()
            .is_none_or(|name| self.model.sessions.contains_key(name));
        let store = self.context.store.clone();
        tokio::spawn(async move {
            let name = session.clone();
            let notes = store
                .call(move |store| store.history(name.as_deref(), HISTORY_LINES_MAX))
                .await;
            let response = match (notes, session) {
                (Ok(notes), Some(name)) if notes.is_empty() && !known => {
                    Response::Failed(failure::no_session(&name))
                }
                (Ok(notes), _) => Response::Records {
                    records: notes
                        .into_iter()
                        .map(|note| Record::Event(records::event(note)))
                        .collect(),
                },
                (Err(error), _) => Response::Failed(failure::store("history", &error)),
            };
            // The client may have disconnected.
            let _ = reply.send(response);
        });
    }
}

/// What the operator can do about a refusal, given what the state of the session allows.
fn first_step(
    name: &str,
    reason: Reason,
    position: &Position,
    paused: bool,
    allowed: &[Verb],
) -> String {
    let command = |verb: Verb| format!("`shunt {verb} {name}`");
    let may = |verb: Verb| allowed.contains(&verb);
    let status = format!("see `shunt status {name}`");
    let in_sync = match paused && may(Verb::Resume) {
        true => command(Verb::Resume),
        false => format!(
            "`shunt wait {name} --for {}-selected`",
            position.authoritative
        ),
    };
    // The role has to move first, or the session ends on the leg that is authoritative.
    let move_or_end = |moves: Verb, ends: Verb| {
        let first = match position.state {
            _ if may(moves) => format!("{} first", command(moves)),
            PairState::Degraded => {
                format!(
                    "repair the leg, then {}, then {}",
                    command(Verb::Resume),
                    command(moves)
                )
            }
            PairState::Syncing | PairState::Paused => format!("{in_sync}, then {}", command(moves)),
            PairState::Setup
            | PairState::Queued
            | PairState::Tracking
            | PairState::SourceSelected
            | PairState::Splitting
            | PairState::Split
            | PairState::Switching
            | PairState::TargetSelected
            | PairState::Committing
            | PairState::Committed
            | PairState::Retired
            | PairState::Cancelled
            | PairState::Failed
            | PairState::NeedsRecovery
            | PairState::Verifying => status.clone(),
        };
        match may(ends) {
            true => format!("{first}, or {}", command(ends)),
            false => first,
        }
    };
    match reason {
        Reason::NotInSync => in_sync,
        Reason::NotStarted if may(Verb::Start) => command(Verb::Start),
        Reason::Queued => format!(
            "`shunt wait {name} --for source-selected`, or `shunt set --max-pairs` to copy more pairs at once"
        ),
        Reason::MirrorFailed if may(Verb::Resume) => {
            format!("repair the leg, then {}", command(Verb::Resume))
        }
        Reason::Split if may(Verb::Resume) => {
            format!("{} mirrors onto it again", command(Verb::Resume))
        }
        Reason::SourceRules => move_or_end(Verb::Switch, Verb::Cancel),
        Reason::TargetRules => move_or_end(Verb::Undo, Verb::Commit),
        Reason::NotStarted
        | Reason::MirrorFailed
        | Reason::Split
        | Reason::UnderWay
        | Reason::NeedsRecovery => status,
        Reason::Ended => "`shunt create` makes another session".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use migration_core::route::Side;

    use super::*;

    /// The first command that a refusal names is allowed in that state.
    #[test]
    fn a_refusal_names_a_command_that_is_allowed() {
        let states = PairState::ALL.into_iter();
        for (state, side) in states.flat_map(|state| [(state, Side::Source), (state, Side::Target)])
        {
            let position = Position {
                state,
                authoritative: side,
            };
            let allowed = session::allowed(&[position]);
            for verb in Verb::ALL {
                let SessionDecision::Refuse { reason, .. } =
                    session::decide_session(verb, &[position])
                else {
                    continue;
                };
                for paused in [false, true] {
                    let text = first_step("s1", reason, &position, paused, &allowed);
                    let command = text.split("`shunt ").nth(1).unwrap_or_default();
                    let word = command.split([' ', '`']).next().unwrap_or_default();
                    let named = Verb::ALL.into_iter().find(|verb| verb.name() == word);
                    let reads = ["status", "wait", "create"].contains(&word);
                    assert!(
                        reads || named.is_some_and(|named| allowed.contains(&named)),
                        "{verb} in {state} on the {side}: {text}"
                    );
                }
            }
        }
    }
}
