//! Cutovers of sessions that track: measures the volumes, slows writes, and exchanges the roles
//! when the rest fits the pause. `migration_core::cutover` makes the decisions; this module carries
//! them out.
//!
//! Only this process knows a cutover that is in progress. If the process ends, ublk-target stops
//! slowing writes (after [`THROTTLE_MS`]), and the session continues to track. A session that is
//! switched automatically starts a new cutover.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use migration_core::cutover::{Action, Cutover, Misfit, Phase, Policy, Sample, Step};
use migration_core::pair::PairState;
use migration_core::units::Time;
use migration_proto::manager::{
    CUTOVER_OVER, CutoverAction, CutoverOptions, CutoverRecord, Response, SessionMode,
    SessionOptions, VerifyPolicy,
};
use migration_proto::target::Request;
use tokio::sync::oneshot;

use super::context::note;
use super::failure::{self, Done};
use super::{Busy, Event, Owner};
use crate::store::{PairKey, SessionRow};
use crate::units;

/// How long ublk-target slows writes after one request, in milliseconds.
const THROTTLE_MS: u64 = 5_000;
/// Interval at which the request is repeated.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// How long a ublk-target may take to answer a throttle request.
const TELL_MAX: Duration = Duration::from_secs(4);
const NANOSECONDS_PER_MILLISECOND: u64 = 1_000_000;

/// The upper bounds of the options.
pub(super) const ATTEMPTS_MAX: u32 = 100;
pub(super) const DURATION_SECONDS_MAX: u64 = 86_400;

/// The cutovers by session, including the last one that ended without success.
#[derive(Debug)]
pub(super) struct Cutovers {
    begun: Instant,
    running: BTreeMap<String, Running>,
}

#[derive(Debug)]
struct Running {
    decisions: Cutover,
    /// The positions of the pairs to switch.
    pairs: Vec<usize>,
    /// The throttle last sent to each volume, in bytes a second (0 = none), and when it was sent.
    told: Vec<u64>,
    told_at: Option<Instant>,
    /// The rate of writes before they were slowed, in bytes a second.
    write_rate_before: Option<u64>,
    /// The step to perform as soon as the session is free.
    next: Option<Step>,
    /// Why the cutover ended without success.
    over: Option<String>,
}

impl Cutovers {
    pub(super) fn new() -> Self {
        Self {
            begun: Instant::now(),
            running: BTreeMap::new(),
        }
    }

    fn now(&self) -> Time {
        let nanoseconds = self.begun.elapsed().as_nanos();
        Time(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    /// Whether a cutover is in progress.
    pub(super) fn is_running(&self, session: &str) -> bool {
        let running = self.running.get(session);
        running.is_some_and(|running| running.over.is_none())
    }

    /// Forgets the last cutover if it ended without success.
    pub(super) fn forget_last(&mut self, session: &str) {
        if !self.is_running(session) {
            self.running.remove(session);
        }
    }

    /// The state of the cutover, for the operator.
    pub(super) fn record(&self, session: &str) -> Option<CutoverRecord> {
        let running = self.running.get(session)?;
        let decisions = &running.decisions;
        let (failures, misfit) = decisions.failures();
        let throttle: u64 = decisions.throttles().sum();
        Some(CutoverRecord {
            phase: match running.over {
                Some(_) => CUTOVER_OVER.to_owned(),
                None => decisions.phase().name().to_owned(),
            },
            failures,
            cause: running
                .over
                .clone()
                .or_else(|| misfit.map(|misfit| misfit_text(decisions, misfit))),
            max_pause_ms: decisions.policy().max_pause / NANOSECONDS_PER_MILLISECOND,
            predicted_pause_ms: decisions
                .predicted_pause()
                .map(|pause| pause / NANOSECONDS_PER_MILLISECOND),
            write_bytes_per_second: decisions.write_rate(),
            copy_bytes_per_second: decisions.copy_rate(),
            throttle_bytes_per_second: (throttle > 0).then_some(throttle),
        })
    }
}

/// Checks the cutover options of a session. The error is the reason to refuse them.
pub(super) fn check(session: &SessionOptions) -> Result<(), String> {
    let options = session.cutover;
    if session.mode == SessionMode::Track && session.verify == VerifyPolicy::Full {
        return Err("legs that track are never equal for long enough to be compared before a switch: choose --verify read-back with --mode track".to_owned());
    }
    if !(1..=ATTEMPTS_MAX).contains(&options.attempts) {
        let attempts = options.attempts;
        return Err(format!(
            "{attempts} attempts are not within 1 to {ATTEMPTS_MAX}"
        ));
    }
    if !(1..=DURATION_SECONDS_MAX).contains(&options.duration_seconds) {
        let seconds = options.duration_seconds;
        return Err(format!(
            "a cutover duration of {seconds} s is not within 1 to {DURATION_SECONDS_MAX} s"
        ));
    }
    Ok(())
}

fn policy(options: &CutoverOptions, max_pause_ms: u64) -> Policy {
    Policy {
        max_pause: max_pause_ms.saturating_mul(NANOSECONDS_PER_MILLISECOND),
        duration: options.duration_seconds.saturating_mul(1_000_000_000),
        floor: options.floor_bytes_per_second,
        action: match options.action {
            CutoverAction::Retry => Action::Retry,
            CutoverAction::Defer => Action::Defer,
            CutoverAction::Abort => Action::Abort,
            CutoverAction::Force => Action::Force,
            CutoverAction::Wait => Action::Wait,
        },
        attempts: options.attempts,
    }
}

fn misfit_text(decisions: &Cutover, misfit: Misfit) -> String {
    let Policy {
        max_pause,
        duration,
        floor,
        ..
    } = *decisions.policy();
    let pause = units::pause(max_pause / 1000);
    match misfit {
        Misfit::Floor => format!(
            "writes were slowed down to the floor of {}, and what was left did not fit a pause of {pause}",
            units::rate(floor)
        ),
        Misfit::Duration => format!(
            "writes were slowed for {}, and what was left did not fit a pause of {pause}",
            units::duration(Duration::from_nanos(duration))
        ),
        Misfit::Pause => {
            format!("what was left could not be copied while requests were held, at most {pause}")
        }
    }
}

impl Owner {
    /// Whether a switch of these pairs needs a cutover.
    pub(super) fn needs_cutover(&self, row: &SessionRow, pairs: &[usize]) -> bool {
        let positions = self.positions(row);
        let tracks = |pair: &usize| positions[*pair].state == PairState::Tracking;
        pairs.iter().any(tracks)
    }

    /// Begins a cutover. If one is in progress, it continues immediately with the new policy.
    pub(super) fn begin_cutover(
        &mut self,
        row: &SessionRow,
        pairs: Vec<usize>,
        max_pause_ms: u64,
        reply: Option<oneshot::Sender<Response>>,
    ) {
        let name = &row.name;
        let policy = policy(&row.options.cutover, max_pause_ms);
        let under_way = self.cutovers.is_running(name);
        let what = match self.cutovers.running.get_mut(name) {
            Some(running) if under_way => {
                running.decisions.ask_again(policy);
                "the cutover is requested again"
            }
            Some(_) | None => {
                let running = Running {
                    decisions: Cutover::new(policy, pairs.len()),
                    told: vec![0; pairs.len()],
                    told_at: None,
                    pairs,
                    write_rate_before: None,
                    next: None,
                    over: None,
                };
                self.cutovers.running.insert(name.clone(), running);
                "the cutover begins"
            }
        };
        let pause = units::pause(max_pause_ms.saturating_mul(1000));
        let what = format!("{what}: requests will be held for {pause} at most");
        self.record_aside(vec![note(Some(name), None, what.clone())]);
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

    /// Advances every cutover whose session is free. To be called after every event.
    pub(super) fn pace_cutovers(&mut self) {
        let under_way = self.cutovers.running.iter();
        let names: Vec<String> = under_way
            .filter(|(_, running)| running.over.is_none())
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            if !self.busy.contains_key(&Busy::Session(name.clone())) {
                self.pace_cutover(&name);
            }
        }
    }

    fn pace_cutover(&mut self, name: &str) {
        let Some(row) = self.model.sessions.get(name).filter(|row| row.is_live()) else {
            self.cutovers.running.remove(name);
            return;
        };
        let positions = self.positions(row);
        let Some(running) = self.cutovers.running.get(name) else {
            return;
        };
        let mut samples = Vec::new();
        for pair in &running.pairs {
            match positions[*pair].state {
                PairState::Tracking | PairState::SourceSelected => {}
                state @ (PairState::Setup
                | PairState::Queued
                | PairState::Syncing
                | PairState::Paused
                | PairState::Splitting
                | PairState::Split
                | PairState::TargetSelected
                | PairState::Committing
                | PairState::Committed
                | PairState::Retired
                | PairState::Cancelled) => {
                    let volume = &row.pairs[*pair].volume;
                    let cause = format!("the pair of volume {volume} is {state}");
                    return self.end_cutover(name, cause, &format!("`shunt status {name}`"));
                }
                PairState::Failed
                | PairState::NeedsRecovery
                | PairState::Degraded
                | PairState::Verifying
                | PairState::Switching => return,
            }
            let key = PairKey {
                session: name.to_owned(),
                position: *pair,
            };
            let view = self.view(&row.pairs[*pair].volume);
            let Some(status) = view.and_then(|view| view.status) else {
                return;
            };
            let (copied_bytes, copying_nanoseconds) = self.copies.pace(&key);
            samples.push(Sample {
                dirty_bytes: status.dirty_bytes,
                copied_bytes,
                copying_nanoseconds,
                written_bytes: status.counters.written_bytes,
            });
        }
        let now = self.cutovers.now();
        let Some(running) = self.cutovers.running.get_mut(name) else {
            return;
        };
        let before = running.decisions.phase();
        let step = match running.next.take() {
            Some(step) => step,
            // The operation ended without reporting a result.
            None if before == Phase::Cutover => running.decisions.not_cut_over(now),
            None => running.decisions.observe(now, &samples),
        };
        let write_rate = running.decisions.write_rate();
        if before != Phase::Administrative && running.decisions.phase() == Phase::Administrative {
            running.write_rate_before = Some(write_rate);
            let what = format!(
                "the cutover slows writes: applications write {}, the copier can copy {}, and requests would be held for {}",
                units::rate(write_rate),
                units::rate(running.decisions.copy_rate()),
                running.decisions.predicted_pause().map_or_else(
                    || "an unknown time".to_owned(),
                    |pause| units::pause(pause / 1000)
                ),
            );
            self.record_aside(vec![note(Some(name), None, what)]);
        }
        self.cutover_step(name, step);
    }

    fn cutover_step(&mut self, name: &str, step: Step) {
        match step {
            Step::Watch => {}
            Step::CutOver {
                hold_nanoseconds_max,
            } => self.cut_over(name, hold_nanoseconds_max / NANOSECONDS_PER_MILLISECOND),
            Step::GiveUp => {
                let running = self.cutovers.running.get(name);
                let cause = running.and_then(|running| {
                    let (_, misfit) = running.decisions.failures();
                    misfit.map(|misfit| misfit_text(&running.decisions, misfit))
                });
                let next =
                    format!("`shunt switch {name}` with another --max-pause, or at a quieter time");
                self.end_cutover(name, cause.unwrap_or_default(), &next);
            }
        }
        self.renew_throttles(name);
    }

    fn cut_over(&mut self, name: &str, hold_ms: u64) {
        let Some(running) = self.cutovers.running.get(name) else {
            return;
        };
        let decisions = &running.decisions;
        let write_rate = decisions.write_rate();
        let slowed = match running.write_rate_before {
            Some(before) => format!(" ({} before)", units::rate(before)),
            None => String::new(),
        };
        let what = format!(
            "the cutover holds requests for {} at most; applications write {}{slowed}, the copier can copy {}",
            units::pause(hold_ms.saturating_mul(1000)),
            units::rate(write_rate),
            units::rate(decisions.copy_rate()),
        );
        let pairs = running.pairs.clone();
        let Some(operation) = self.operation(name, Vec::new()) else {
            return;
        };
        self.record_aside(vec![note(Some(name), None, what)]);
        self.copies.hurry(name);
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
        let now = self.cutovers.now();
        self.limits_changed(name);
        if failed {
            let Some(running) = self.cutovers.running.get_mut(name) else {
                return;
            };
            // The session is still busy: the operation itself ends later.
            running.next = Some(running.decisions.not_cut_over(now));
        } else if let Some(mut running) = self.cutovers.running.remove(name) {
            self.send_throttles(name, &mut running, &[]);
        }
    }

    fn end_cutover(&mut self, name: &str, cause: String, next: &str) {
        let Some(mut running) = self.cutovers.running.remove(name) else {
            return;
        };
        let what =
            format!("the cutover is over, the source stays authoritative: {cause}; next: {next}");
        self.record_aside(vec![note(Some(name), None, what)]);
        self.send_throttles(name, &mut running, &[]);
        running.over = Some(cause);
        self.cutovers.running.insert(name.to_owned(), running);
    }

    fn renew_throttles(&mut self, name: &str) {
        let Some(mut running) = self.cutovers.running.remove(name) else {
            return;
        };
        if running.over.is_none() {
            let rates: Vec<u64> = running.decisions.throttles().collect();
            self.send_throttles(name, &mut running, &rates);
        }
        self.cutovers.running.insert(name.to_owned(), running);
    }

    /// Sends each volume its throttle from `rates`, in bytes a second, if it has changed or must be
    /// repeated. A volume without a rate is no longer slowed.
    fn send_throttles(&self, name: &str, running: &mut Running, rates: &[u64]) {
        let Some(row) = self.model.sessions.get(name) else {
            return;
        };
        let again = running.told_at.is_none_or(|at| at.elapsed() >= TELL_EVERY);
        for (index, (pair, told)) in running.pairs.iter().zip(&mut running.told).enumerate() {
            let rate = rates.get(index).copied().unwrap_or(0);
            if rate == *told && (rate == 0 || !again) {
                continue;
            }
            *told = rate;
            running.told_at = Some(Instant::now());
            if let Some(handle) = self.handles.get(&row.pairs[*pair].volume).cloned() {
                let request = Request::SetThrottle {
                    bytes_per_second: rate,
                    for_ms: THROTTLE_MS,
                };
                // A lost request is repeated, or the throttle expires.
                tokio::spawn(async move { handle.ask(request, TELL_MAX).await });
            }
        }
    }
}
