//! Reacts to the report of a volume: settles phases that a crash interrupted, starts copiers, makes
//! stable names.

use std::time::{Duration, Instant};

use copier::{Config, Outcome, Task};
use migration_core::pair::{PairState, Phase, Seen, Settlement, Verb, settle};
use migration_core::route::Side;
use migration_core::session;
use migration_core::verify::Comparison;
use migration_proto::manager::VerifyPolicy;
use migration_proto::target::{OnAuthoritativeFailure, Request};
use tracing::{info, warn};

use super::Owner;
use crate::daemon::clock::steady_ms;
use crate::daemon::context::note;
use crate::daemon::event::Busy;
use crate::daemon::failure::{self, Done};
use crate::daemon::handle::{View, VolumeHandle};
use crate::daemon::luns::sealed::set_read_only;
use crate::daemon::luns::{unreadable, weak};
use crate::daemon::sessions::operation::{ended_changes, expected_text};
use crate::daemon::sessions::verify;
use crate::daemon::volumes::attach;
use crate::daemon::volumes::position;
use crate::daemon::volumes::truth::Truth;
use crate::store::{
    Change, PairField, PairKey, PairRow, Progress, SessionRow, VolumeRow, VolumeState,
};
use crate::units;

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
    let what = format!(
        "{} was interrupted; found: {}, the {side} is authoritative",
        pair.phase.name(),
        phase.name()
    );
    let set = |field| Change::SetPair(key.clone(), field);
    vec![
        set(PairField::Phase(phase)),
        set(PairField::Authoritative(side)),
        // A problem such as an unknown outcome is solved now.
        set(PairField::Problem(None)),
        note(Some(&key.session), Some(&pair.volume), what),
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
                        note(
                            None,
                            Some(&name),
                            "the attach that was interrupted is finished",
                        ),
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
        if had_problem && self.copies.copiers.has_copied(key) {
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
        let tell = |what: String| note(Some(&key.session), Some(&volume), what);
        let changes = match settle(pair.phase, &seen) {
            Settlement::Nothing => {
                let Some(side) = seen
                    .mirrored()
                    .filter(|side| *side != pair.authoritative && !pair.phase.is_ended())
                else {
                    return false;
                };
                let what = match &status.degraded {
                    Some(failed) if status.counters.fail_overs > 0 => format!(
                        "the {} failed, and the {side} has become authoritative automatically; now {failed}",
                        side.other()
                    ),
                    Some(_) | None => format!("found: the {side} is authoritative"),
                };
                vec![set(PairField::Authoritative(side)), tell(what)]
            }
            Settlement::Becomes(Phase::Committed) => {
                let mut changes = ended_changes(&key.session, key.position, pair, Side::Target);
                let retires = |session: &SessionRow| session.options.retire.is_some();
                if self.model.sessions.get(&key.session).is_some_and(retires) {
                    changes.push(tell(format!(
                        "{} was not retired, because the commit was interrupted; next: `shunt retire {}`",
                        pair.source, key.session
                    )));
                }
                changes
            }
            Settlement::Becomes(Phase::Cancelled) => {
                let mut changes = ended_changes(&key.session, key.position, pair, Side::Source);
                changes.push(tell(format!(
                    "whether {} is a copy is not known, because the cancel was interrupted: take it for none",
                    pair.target
                )));
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
            Settlement::Becomes(phase) => interrupted(key, pair, &seen, phase),
            Settlement::Finish(verb) => match self.finish_verb(&key.session.clone(), verb) {
                Finish::Waits => return false,
                Finish::Begun => return true,
                Finish::TakenBack => interrupted(key, pair, &seen, Phase::Active),
            },
            Settlement::Contradiction => {
                let next = match (seen.ours, seen.route.authoritative()) {
                    (true, Side::Source) => format!("`shunt cancel {}` ends it", key.session),
                    (true, Side::Target) => format!("`shunt commit {}` ends it", key.session),
                    // No verb of this session can do anything with those LUNs.
                    (false, _) => failure::REBUILD.to_owned(),
                };
                let problem = format!(
                    "it is recorded as {}, but the volume {}: {next}",
                    pair.phase.name(),
                    Truth::of_status(status).text()
                );
                if pair.problem.as_ref() == Some(&problem) {
                    return false;
                }
                let mut changes = vec![
                    tell(problem.clone()),
                    set(PairField::Problem(Some(problem))),
                ];
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
        let other_problem =
            ended.problem != pair.problem && (ended.in_sync || ended.problem.is_some());
        if other_problem {
            changes.push(Change::SetPair(
                key.clone(),
                PairField::Problem(ended.problem.clone()),
            ));
            if let Some(problem) = ended.problem {
                changes.push(note(Some(&key.session), Some(&volume), problem));
            }
        }
        if ended.in_sync {
            let now_ms = steady_ms();
            let took = took(pair.progress, now_ms);
            if pair.progress.in_sync_ms.is_none() {
                let field = PairField::InSync(Some(now_ms));
                changes.push(Change::SetPair(key.clone(), field));
            }
            let what = format!(
                "in sync; {} bytes were copied since the start{took}",
                ended.copied_bytes
            );
            changes.push(note(Some(&key.session), Some(&volume), what));
        }
        if ended.found.is_some() {
            self.record_comparison(key.clone(), changes);
        } else {
            self.context.record_aside(changes);
        }
        self.volumes.poll(&volume);
    }
}

/// The text that says how long the first complete copy took, and how long was expected; empty if
/// this was not the first one.
fn took(progress: Progress, now_ms: u64) -> String {
    let (Some(begun_ms), None) = (progress.begun_ms, progress.in_sync_ms) else {
        return String::new();
    };
    let took = units::duration(Duration::from_millis(now_ms.saturating_sub(begun_ms)));
    let expected = progress.estimate.map_or_else(String::new, |estimate| {
        expected_text(units::duration(Duration::from_secs(estimate.copy_seconds)))
    });
    format!(", in {took}{expected}")
}
