//! Reacts to the report of a volume: settles phases that a crash interrupted, starts copiers, makes
//! stable names.

use std::time::{Duration, Instant};

use copier::{Config, Outcome, Task};
use migration_core::pair::{PairState, Phase, Seen, Settlement, Verb, has_switched, settle};
use migration_core::route::Side;
use migration_core::schedule::is_to_be_switched;
use migration_core::session;
use migration_core::verify::Comparison;
use migration_proto::manager::{HistoryEvent, VerifyPolicy};
use migration_proto::target::{OnAuthoritativeFailure, Request};
use tracing::{info, warn};

use super::Owner;
use crate::daemon::clock::steady_ms;
use crate::daemon::context::{note, now_ms};
use crate::daemon::event::Busy;
use crate::daemon::failure::{self, Done};
use crate::daemon::handle::{View, VolumeHandle};
use crate::daemon::luns::sealed::set_read_only;
use crate::daemon::luns::{unreadable, weak};
use crate::daemon::sessions::operation::ended_changes;
use crate::daemon::sessions::{schedule, verify};
use crate::daemon::volumes::attach;
use crate::daemon::volumes::position;
use crate::daemon::volumes::truth::Truth;
use crate::history;
use crate::store::{
    Change, PairField, PairKey, PairRow, Progress, SessionRow, VolumeRow, VolumeState,
};

/// How long a ublk-target may take to answer a request that sets a policy.
const SET_POLICY_MAX: Duration = Duration::from_secs(10);

/// What becomes of a commit or a cancel that a crash interrupted.
enum Finish {
    /// Not all volumes of the session answer, or one is changing its route.
    Waits,
    /// It continues.
    Begun,
    /// The session does not allow it any more.
    TakenBack,
}

/// What is recorded when the route of a pair shows what became of an interrupted verb.
fn interrupted(key: &PairKey, pair: &PairRow, seen: &Seen, phase: Phase) -> Vec<Change> {
    let side = seen.mirrored().unwrap_or(Side::Source);
    let event = HistoryEvent::VerbInterrupted {
        from: pair.phase,
        to: phase,
        authoritative: side.into(),
    };
    let set = |field| Change::SetPair(key.clone(), field);
    vec![
        set(PairField::Phase(phase)),
        set(PairField::Authoritative(side)),
        // A problem such as an unknown outcome is solved now.
        set(PairField::Problem(None)),
        note(Some(&key.session), Some(&pair.volume), event),
    ]
}

impl Owner {
    pub(super) fn volume_reported(&mut self, name: &str) {
        let Some(view) = self.volumes.handle(name).map(VolumeHandle::view) else {
            return;
        };
        if view.connected || view.failures > 0 {
            self.volumes.heard(name);
        }
        let Some(row) = self.model.volumes.get(name).cloned() else {
            return;
        };
        if view.connected {
            crash_point::here("start-connected");
            self.volumes
                .make_names(&self.context, &self.model, &row, &view);
            if let Some(status) = view.status.as_deref() {
                self.volumes.note_luns(&self.context, &row, status);
                weak::record_served_disks(&self.context, &self.model, name, status);
            }
            self.finish_volume(&row);
        }
        let mut copying = false;
        if let Some((session, position)) = self.model.live_pair_of(name) {
            let key = PairKey {
                session: session.name.clone(),
                position,
            };
            self.pair_reported(&key, &view);
            copying = self.copies.copiers.is_running(&key);
        }
        self.volumes.watch(name, copying);
    }

    /// Finishes an attach or a detach that a crash of shuntd interrupted.
    fn finish_volume(&mut self, row: &VolumeRow) {
        let busy = Busy::Volume(row.name.clone());
        if self.is_busy(&busy) {
            return;
        }
        let context = self.context.clone();
        match row.state {
            VolumeState::Attached => {}
            VolumeState::Attaching => {
                let (name, object) = (row.name.clone(), failure::volume(&row.name));
                self.spawn_operation(vec![busy], "attach", None, async move {
                    let changes = vec![
                        Change::SetVolumeState(name.clone(), VolumeState::Attached),
                        note(None, Some(&name), HistoryEvent::AttachFinished),
                    ];
                    context.record(&object, changes).await?;
                    Ok(Done::changed(Vec::new()))
                });
            }
            VolumeState::Detaching => {
                let handle = self.volumes.handle(&row.name).cloned();
                self.spawn_operation(
                    vec![busy],
                    "detach",
                    None,
                    attach::detach(context, row.clone(), handle),
                );
            }
        }
    }

    /// Removes the records of volumes whose attach was interrupted before there was a map file, or
    /// whose detach was interrupted after the map file was removed.
    pub(super) fn forget_unfinished_volumes(&mut self) {
        let rows: Vec<VolumeRow> = self
            .model
            .volumes
            .values()
            .filter(|row| self.volumes.handle(&row.name).is_none())
            .cloned()
            .collect();
        for row in rows {
            let context = self.context.clone();
            info!(
                volume = row.name,
                "an interrupted {} left nothing but a record, which is removed",
                row.state.name()
            );
            self.spawn_operation(
                vec![Busy::Volume(row.name.clone())],
                "detach",
                None,
                async move {
                    attach::forget(&context, &row).await?;
                    Ok(Done::changed(Vec::new()))
                },
            );
        }
    }

    fn pair_reported(&mut self, key: &PairKey, view: &View) {
        let now = Instant::now();
        let copying = self.copies.copiers.is_running(key);
        self.copies
            .gauges
            .reported(&self.context, key, view, copying);
        if let Some(copied_bytes) = self.copies.copiers.sample(key, now) {
            self.context.record_aside(vec![Change::SetPair(
                key.clone(),
                PairField::CopiedBytes(copied_bytes),
            )]);
        }
        if let Some(pair) = self.model.pair(key) {
            self.volumes.note_doubt(&self.context, key, pair, view);
        }
        let had_problem = self
            .model
            .pair(key)
            .is_some_and(|pair| pair.problem.is_some());
        if had_problem && self.copies.copiers.is_steady(key, now) {
            self.context
                .record_aside(vec![Change::SetPair(key.clone(), PairField::Problem(None))]);
        }
        let busy = Busy::Session(key.session.clone());
        if self.is_busy(&busy) || !view.connected {
            return;
        }
        if self.settle_pair(key, view) {
            return;
        }
        let Some((session, _)) = self.session_and_pair(key) else {
            return;
        };
        let percent = session.options.max_latency_impact_percent;
        self.send_policy(session, key, view);
        if let Some(status) = view.status.as_deref() {
            if let Some(session) = self.model.sessions.get(&key.session)
                && let Some(pair) = session.pairs.get(key.position)
                && let Some(handle) = self.volumes.handle(&pair.volume)
            {
                self.copies.come_backs.reported(
                    &self.context,
                    (session, pair),
                    handle,
                    key,
                    status,
                );
            }
            self.copies.copiers.guard_latency(key, percent, status, now);
        }
        let Some((session, pair)) = self.session_and_pair(key) else {
            return;
        };
        let (verify, detect_zeroes) = (session.options.verify, session.options.detect_zeroes);
        let comparing = self.sight().comparing(session, pair, key);
        let facts = position::facts(session, pair, Some(view), comparing.is_some());
        let in_sync = matches!(
            facts.position().state,
            PairState::SourceSelected | PairState::TargetSelected | PairState::Verifying
        );
        if in_sync && pair.progress.in_sync_ms.is_none() && !self.copies.copiers.is_running(key) {
            // A shuntd that died after the last report of its copier did not record that the pair
            // is in sync.
            let field = PairField::InSync(Some(steady_ms()));
            self.context
                .record_aside(vec![Change::SetPair(key.clone(), field)]);
            return;
        }
        let task = match (facts.position().state, comparing) {
            // The pair gets its copier when another copier has ended.
            _ if facts.wants_copier() && !self.may_copy() => return,
            _ if facts.wants_copier() => Task::Copy {
                read_back: verify != VerifyPolicy::None,
            },
            (PairState::Verifying, Some(Comparison { over: false, .. })) => Task::Compare,
            _ => return,
        };
        let (socket, base_bytes) = (
            self.context.config.volume_socket(&pair.volume),
            pair.copied_bytes,
        );
        let volume_id = self
            .model
            .volumes
            .get(&pair.volume)
            .map(|row| row.volume_id.clone());
        let config = Config {
            volume_id,
            detect_zeroes,
            task,
            ..Config::new(socket)
        };
        let accept = unreadable::accept(&self.context, key, session, pair);
        self.copies
            .copiers
            .start(key, config, accept, base_bytes, now);
        self.limits_changed(&key.session);
    }

    /// Sends the policies of a session to a ublk-target that does not have them, such as a
    /// restarted one: what happens when the authoritative leg fails, and the copy mode.
    fn send_policy(&self, session: &SessionRow, key: &PairKey, view: &View) {
        let mode = self.copies.come_backs.copy_mode(session, key);
        // A failure must not move a role that a command may not move either.
        let movable = session.pairs.get(key.position).is_some_and(|pair| {
            let verb = match pair.authoritative {
                Side::Source => Verb::Switch,
                Side::Target => Verb::Undo,
            };
            verify::not_compared(session, pair, verb).is_none()
        });
        let policy = if movable {
            session.options.on_authoritative_failure
        } else {
            OnAuthoritativeFailure::Error
        };
        let Some(status) = &view.status else {
            return;
        };
        let mut requests = Vec::new();
        if status.on_authoritative_failure != policy {
            requests.push(Request::SetOnAuthoritativeFailure { policy });
        }
        if status.copy_mode != mode {
            requests.push(Request::SetCopyMode { mode });
        }
        for request in requests {
            if let Some(handle) = self.volumes.handle(&status.volume).cloned() {
                // A request that fails here is sent again at the next status.
                tokio::spawn(async move { handle.ask(request, SET_POLICY_MAX).await });
            }
        }
    }

    /// Settles the phase of a pair from the status of its volume. Returns whether an operation was
    /// started.
    fn settle_pair(&mut self, key: &PairKey, view: &View) -> bool {
        let Some((_, pair)) = self.session_and_pair(key) else {
            return false;
        };
        let pair = &pair.clone();
        let Some(status) = &view.status else {
            return false;
        };
        let seen = position::seen(status, pair);
        let volume = pair.volume.clone();
        let set = |field| Change::SetPair(key.clone(), field);
        let tell = |event| note(Some(&key.session), Some(&volume), event);
        let changes = match settle(pair.phase, &seen) {
            Settlement::Nothing => {
                let Some(side) = seen
                    .mirrored()
                    .filter(|side| *side != pair.authoritative && !pair.phase.is_ended())
                else {
                    return false;
                };
                let to = side.into();
                let event = match &status.degraded {
                    Some(failed) if status.counters.fail_overs > 0 => HistoryEvent::FailedOver {
                        from: side.other().into(),
                        to,
                        cause: failed.clone(),
                    },
                    Some(_) | None => HistoryEvent::AuthoritativeFound { to },
                };
                vec![set(PairField::Authoritative(side)), tell(event)]
            }
            Settlement::Becomes(Phase::Committed) => {
                let mut changes = ended_changes(&key.session, key.position, pair, Side::Target);
                let retires = |session: &SessionRow| session.options.retire.is_some();
                if self.model.sessions.get(&key.session).is_some_and(retires) {
                    let lun = pair.source.paths().clone();
                    changes.push(tell(HistoryEvent::RetireInterrupted { lun }));
                }
                changes
            }
            Settlement::Becomes(Phase::Cancelled) => {
                let mut changes = ended_changes(&key.session, key.position, pair, Side::Source);
                let target = pair.target.paths().clone();
                changes.push(tell(HistoryEvent::CopyUnknown { target }));
                let target = pair.target.clone();
                if pair.copy_of.is_some() {
                    tokio::spawn(async move {
                        if let Err(cause) = set_read_only(&target, false).await {
                            warn!(%target, "it stays read-only: {cause}");
                        }
                    });
                }
                changes
            }
            Settlement::Becomes(phase) => {
                let mut changes = interrupted(key, pair, &seen, phase);
                changes.extend(self.switched(key, pair.phase, &seen));
                changes
            }
            Settlement::Finish(verb) => match self.finish_verb(&key.session.clone(), verb) {
                Finish::Waits => return false,
                Finish::Begun => return true,
                Finish::TakenBack => interrupted(key, pair, &seen, Phase::Active),
            },
            Settlement::Contradiction => {
                let truth = Truth::of_status(status);
                let event = HistoryEvent::RouteContradicts {
                    phase: pair.phase,
                    route: status.route,
                    source: truth.luns(Side::Source),
                    target: truth.luns(Side::Target),
                    is_own: seen.ours,
                };
                let problem = history::sentence(&event, Some(&key.session), Some(&volume));
                if pair.problem.as_ref() == Some(&problem) {
                    return false;
                }
                let mut changes = vec![tell(event), set(PairField::Problem(Some(problem)))];
                // The route takes precedence over the recorded side too.
                if seen.ours {
                    changes.push(set(PairField::Authoritative(seen.route.authoritative())));
                }
                changes
            }
        };
        let (context, object) = (self.context.clone(), failure::pair(&key.session, &volume));
        self.spawn_operation(
            vec![Busy::Session(key.session.clone())],
            "settle",
            None,
            async move {
                crash_point::here("settled-before-recorded");
                context.record(&object, changes).await?;
                crash_point::here("settled-recorded");
                Ok(Done::changed(Vec::new()))
            },
        );
        true
    }

    /// What is recorded if the route of a pair shows that a switch has happened. If no other pair
    /// is left to be switched, the session is switched by hand from now on.
    fn switched(&self, key: &PairKey, phase: Phase, seen: &Seen) -> Vec<Change> {
        let session = self.model.sessions.get(&key.session);
        let Some(session) = session.filter(|_| has_switched(phase, seen)) else {
            return Vec::new();
        };
        let switched = PairField::Switched(Some(now_ms()));
        let mut changes = vec![Change::SetPair(key.clone(), switched)];
        let mut others = session.pairs.iter().enumerate();
        let is_last = others.all(|(position, pair)| {
            let switched = pair.progress.switched_ms.is_some();
            position == key.position || !is_to_be_switched(pair.phase, pair.authoritative, switched)
        });
        if is_last {
            changes.extend(schedule::by_hand_from_now_on(session, Verb::Switch));
        }
        changes
    }

    /// Continues a commit or a cancel that a crash interrupted, as soon as all volumes of the
    /// session answer and none of them is changing its route.
    fn finish_verb(&mut self, session: &str, verb: Verb) -> Finish {
        let Some(row) = self.model.sessions.get(session) else {
            return Finish::Waits;
        };
        // What a volume in the middle of a change leads to is not known yet.
        let answers = |volume: &String| {
            self.volumes.handle(volume).is_some_and(|handle| {
                let view = handle.view();
                view.connected && view.status.is_some_and(|status| !status.changing)
            })
        };
        if !row
            .pairs
            .iter()
            .all(|pair| pair.phase.is_ended() || answers(&pair.volume))
        {
            return Finish::Waits;
        }
        if !session::can_finish(verb, &self.sight().positions(row)) {
            return Finish::TakenBack;
        }
        info!(session, "the {verb} that was interrupted continues");
        self.begin_verb(session, verb, 0, None);
        Finish::Begun
    }

    pub(super) fn copier_ended(&mut self, key: &PairKey, run: u64, outcome: &Outcome) {
        let Some(ended) = self.copies.copiers.ended(key, run, outcome, Instant::now()) else {
            return;
        };
        self.limits_changed(&key.session);
        // Dropping the copier joins its thread.
        tokio::task::spawn_blocking(move || drop(ended.copier));
        let Some((_, pair)) = self.session_and_pair(key) else {
            return;
        };
        let volume = pair.volume.clone();
        let mut changes = vec![Change::SetPair(
            key.clone(),
            PairField::CopiedBytes(ended.copied_bytes),
        )];
        if let Some(found) = &ended.found {
            let pair = pair.clone();
            changes.extend(self.compared(key, &pair, found));
        } else if ended.compares_no_more {
            self.sessions.to_compare.remove(key);
        }
        let Some((_, pair)) = self.session_and_pair(key) else {
            return;
        };
        let problem = ended.problem.as_ref();
        let problem =
            problem.map(|event| history::sentence(event, Some(&key.session), Some(&volume)));
        if problem != pair.problem && (ended.in_sync || problem.is_some()) {
            changes.push(Change::SetPair(key.clone(), PairField::Problem(problem)));
            if let Some(event) = ended.problem {
                changes.push(note(Some(&key.session), Some(&volume), event));
            }
        }
        if ended.in_sync {
            let now_ms = steady_ms();
            let event = in_sync(ended.copied_bytes, pair.progress, now_ms);
            if pair.progress.in_sync_ms.is_none() {
                let field = PairField::InSync(Some(now_ms));
                changes.push(Change::SetPair(key.clone(), field));
            }
            changes.push(note(Some(&key.session), Some(&volume), event));
        }
        if ended.found.is_some() {
            self.record_comparison(key.clone(), changes);
        } else {
            self.context.record_aside(changes);
        }
        self.volumes.poll(&volume);
    }
}

/// The event that a pair is in sync. Only for the first complete copy it says how long the copy
/// took, and how long was expected.
fn in_sync(copied_bytes: u64, progress: Progress, now_ms: u64) -> HistoryEvent {
    let begun_ms = progress.begun_ms.filter(|_| progress.in_sync_ms.is_none());
    let expected = progress.estimate.filter(|_| begun_ms.is_some());
    HistoryEvent::InSync {
        copied_bytes,
        took_ms: begun_ms.map(|begun_ms| now_ms.saturating_sub(begun_ms)),
        expected_seconds: expected.map(|estimate| estimate.copy_seconds),
    }
}
