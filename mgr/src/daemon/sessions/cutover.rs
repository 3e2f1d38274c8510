//! Cutovers of sessions that track: measures the volumes, slows writes, and exchanges the roles
//! when the rest fits the pause. `migration_core::cutover` makes the decisions; `owner/cutover.rs`
//! starts what they need.
//!
//! Only this process knows a cutover that is in progress. If the process ends, ublk-target stops
//! slowing writes (after [`THROTTLE_MS`]), and the session continues to track. A session that is
//! switched automatically starts a new cutover.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use migration_core::cutover::{Action, Cutover, Misfit, Phase, Policy, Sample, Step};
use migration_core::pair::PairState;
use migration_core::units::Time;
use migration_proto::manager::{
    CUTOVER_OVER, CutoverAction, CutoverMisfit, CutoverOptions, CutoverRecord, HistoryEvent,
    SessionMode, SessionOptions, VerifyPolicy,
};
use migration_proto::target::{Request, Status};

use super::sight::Sight;
use crate::daemon::context::{Context, note};
use crate::daemon::copies::copiers::Copiers;
use crate::history;
use crate::store::{PairKey, SessionRow};

/// How long ublk-target slows writes after one request, in milliseconds.
const THROTTLE_MS: u64 = 5_000;
/// Interval at which the request is repeated.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// How long a ublk-target may take to answer a throttle request.
const TELL_MAX: Duration = Duration::from_secs(4);
const NANOSECONDS_PER_MICROSECOND: u64 = 1000;
const NANOSECONDS_PER_MILLISECOND: u64 = 1_000_000;
const NANOSECONDS_PER_SECOND: u64 = 1_000_000_000;

/// The upper bounds of the options.
pub(crate) const ATTEMPTS_MAX: u32 = 100;
pub(super) const DURATION_SECONDS_MAX: u64 = 86_400;

/// The cutovers by session, including the last one that ended without success.
#[derive(Debug)]
pub(crate) struct Cutovers {
    begun: Instant,
    running: BTreeMap<String, Running>,
}

#[derive(Debug)]
struct Running {
    decisions: Cutover,
    /// The positions of the pairs to switch.
    pairs: Vec<usize>,
    /// The last report of each of their volumes that was observed.
    observed: Vec<Arc<Status>>,
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

/// What a cutover does next.
pub(crate) enum Next {
    /// Nothing: the state of a volume is not known.
    Waits,
    /// It ends without success, by this event.
    Over(HistoryEvent),
    /// A step, and the event that it is.
    Step {
        step: Step,
        event: Option<HistoryEvent>,
    },
}

impl Default for Cutovers {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            running: BTreeMap::new(),
        }
    }
}

impl Cutovers {
    fn now(&self) -> Time {
        let nanoseconds = self.begun.elapsed().as_nanos();
        Time(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    /// Whether a cutover is in progress.
    pub(crate) fn is_running(&self, session: &str) -> bool {
        let running = self.running.get(session);
        running.is_some_and(|running| running.over.is_none())
    }

    /// Forgets the last cutover if it ended without success.
    pub(crate) fn forget_last(&mut self, session: &str) {
        if !self.is_running(session) {
            self.running.remove(session);
        }
    }

    /// The state of the cutover, for the operator.
    pub(crate) fn record(&self, session: &str) -> Option<CutoverRecord> {
        let running = self.running.get(session)?;
        let decisions = &running.decisions;
        let (policy, (failures, misfit)) = (decisions.policy(), decisions.failures());
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
                .or_else(|| misfit.map(|misfit| misfit_words(policy, misfit))),
            max_pause_ms: policy.max_pause / NANOSECONDS_PER_MILLISECOND,
            predicted_pause_us: decisions
                .predicted_pause()
                .map(|pause| pause / NANOSECONDS_PER_MICROSECOND),
            write_bytes_per_second: decisions.write_rate(),
            copy_bytes_per_second: decisions.copy_rate(),
            throttle_bytes_per_second: (throttle > 0).then_some(throttle),
        })
    }

    /// The sessions whose cutover is in progress.
    pub(crate) fn under_way(&self) -> Vec<String> {
        let under_way = self.running.iter();
        under_way
            .filter(|(_, running)| running.over.is_none())
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Begins a cutover. If one is in progress, it continues immediately with the new policy.
    pub(crate) fn begin(
        &mut self,
        row: &SessionRow,
        pairs: Vec<usize>,
        max_pause_ms: u64,
    ) -> HistoryEvent {
        let name = &row.name;
        let policy = policy(&row.options.cutover, max_pause_ms);
        let under_way = self.is_running(name);
        match self.running.get_mut(name) {
            Some(running) if under_way => {
                running.decisions.ask_again(policy);
                HistoryEvent::CutoverRequestedAgain { max_pause_ms }
            }
            Some(_) | None => {
                let running = Running {
                    decisions: Cutover::new(policy, pairs.len()),
                    told: vec![0; pairs.len()],
                    told_at: None,
                    pairs,
                    observed: Vec::new(),
                    write_rate_before: None,
                    next: None,
                    over: None,
                };
                self.running.insert(name.clone(), running);
                HistoryEvent::CutoverBegun { max_pause_ms }
            }
        }
    }

    /// Observes the volumes of a session, and decides on the next step of its cutover.
    pub(crate) fn observe(&mut self, sight: Sight<'_>, copiers: &Copiers, name: &str) -> Next {
        let Some(row) = sight.model.sessions.get(name).filter(|row| row.is_live()) else {
            self.running.remove(name);
            return Next::Waits;
        };
        let positions = sight.positions(row);
        let Some(running) = self.running.get(name) else {
            return Next::Waits;
        };
        // In a session that was cancelled in part, all pairs are to end on the source.
        let mut pairs = row.pairs.iter().zip(&positions);
        if let Some((pair, found)) = pairs.find(|(pair, _)| pair.phase.is_cancelled()) {
            return Next::Over(HistoryEvent::CutoverStopped {
                pair_volume: pair.volume.clone(),
                pair_state: found.state,
            });
        }
        let (mut samples, mut reports) = (Vec::new(), Vec::new());
        for pair in &running.pairs {
            match positions[*pair].state {
                PairState::Tracking | PairState::SourceSelected => {}
                pair_state @ (PairState::Setup
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
                    return Next::Over(HistoryEvent::CutoverStopped {
                        pair_volume: row.pairs[*pair].volume.clone(),
                        pair_state,
                    });
                }
                PairState::Failed
                | PairState::NeedsRecovery
                | PairState::Degraded
                | PairState::Verifying
                | PairState::Switching => return Next::Waits,
            }
            let key = PairKey {
                session: name.to_owned(),
                position: *pair,
            };
            let view = sight.volumes.view(&row.pairs[*pair].volume);
            let Some(status) = view.and_then(|view| view.status) else {
                return Next::Waits;
            };
            let (copied_bytes, copying_nanoseconds) = copiers.pace(&key);
            samples.push(Sample {
                dirty_bytes: status.dirty_bytes,
                copied_bytes,
                copying_nanoseconds,
                written_bytes: status.counters.written_bytes,
            });
            reports.push(status);
        }
        let now = self.now();
        let Some(running) = self.running.get_mut(name) else {
            return Next::Waits;
        };
        let before = running.decisions.phase();
        let is_due = running.next.is_some() || before == Phase::Cutover;
        if !is_due && !are_new(&reports, &running.observed) {
            return Next::Waits;
        }
        running.observed = reports;
        let step = match running.next.take() {
            Some(step) => step,
            // The operation ended without reporting a result.
            None if before == Phase::Cutover => running.decisions.not_cut_over(now),
            None => running.decisions.observe(now, &samples),
        };
        let write_rate = running.decisions.write_rate();
        let mut event = None;
        if before != Phase::Administrative && running.decisions.phase() == Phase::Administrative {
            running.write_rate_before = Some(write_rate);
            let predicted = running.decisions.predicted_pause();
            event = Some(HistoryEvent::CutoverSlowsWrites {
                write_bytes_per_second: write_rate,
                copy_bytes_per_second: running.decisions.copy_rate(),
                predicted_pause_us: predicted.map(|pause| pause / NANOSECONDS_PER_MICROSECOND),
            });
        }
        Next::Step { step, event }
    }

    /// The event by which a cutover ends whose attempts have all failed.
    pub(crate) fn gave_up(&self, name: &str) -> Option<HistoryEvent> {
        let running = self.running.get(name)?;
        let (_, misfit) = running.decisions.failures();
        let policy = running.decisions.policy();
        Some(HistoryEvent::CutoverGaveUp {
            misfit: misfit.map(misfit_of),
            max_pause_us: policy.max_pause / NANOSECONDS_PER_MICROSECOND,
            floor_bytes_per_second: policy.floor,
            duration_seconds: policy.duration / NANOSECONDS_PER_SECOND,
        })
    }

    /// The pairs of a cutover that holds requests now, for `hold_ms` at most, and the event that
    /// this is.
    pub(crate) fn hold(&self, name: &str, hold_ms: u64) -> Option<(Vec<usize>, HistoryEvent)> {
        let running = self.running.get(name)?;
        let event = HistoryEvent::CutoverHoldsRequests {
            hold_max_ms: hold_ms,
            write_bytes_per_second: running.decisions.write_rate(),
            unslowed_bytes_per_second: running.write_rate_before,
            copy_bytes_per_second: running.decisions.copy_rate(),
        };
        Some((running.pairs.clone(), event))
    }

    /// Handles the result of the operation that exchanges the roles.
    pub(crate) fn cut_over(&mut self, sight: Sight<'_>, name: &str, failed: bool) {
        let now = self.now();
        if failed {
            let Some(running) = self.running.get_mut(name) else {
                return;
            };
            // The session is still busy: the operation itself ends later.
            running.next = Some(running.decisions.not_cut_over(now));
        } else if let Some(mut running) = self.running.remove(name) {
            send_throttles(sight, name, &mut running, &[]);
        }
    }

    /// Ends a cutover without success, by `event`.
    pub(crate) fn end(
        &mut self,
        context: &Context,
        sight: Sight<'_>,
        name: &str,
        event: HistoryEvent,
    ) {
        let Some(mut running) = self.running.remove(name) else {
            return;
        };
        let (cause, _) = history::cutover_end(&event, name);
        context.record_aside(vec![note(Some(name), None, event)]);
        send_throttles(sight, name, &mut running, &[]);
        running.over = Some(cause);
        self.running.insert(name.to_owned(), running);
    }

    /// Sends the volumes of a session their throttles again.
    pub(crate) fn renew_throttles(&mut self, sight: Sight<'_>, name: &str) {
        let Some(mut running) = self.running.remove(name) else {
            return;
        };
        if running.over.is_none() {
            let rates: Vec<u64> = running.decisions.throttles().collect();
            send_throttles(sight, name, &mut running, &rates);
        }
        self.running.insert(name.to_owned(), running);
    }
}

/// Checks the cutover options of a session. The error is the reason to refuse them.
pub(crate) fn check(session: &SessionOptions) -> Result<(), String> {
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
        duration: options
            .duration_seconds
            .saturating_mul(NANOSECONDS_PER_SECOND),
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

fn misfit_words(policy: &Policy, misfit: Misfit) -> String {
    history::cutover_misfit(
        misfit_of(misfit),
        policy.max_pause / NANOSECONDS_PER_MICROSECOND,
        policy.floor,
        policy.duration / NANOSECONDS_PER_SECOND,
    )
}

const fn misfit_of(misfit: Misfit) -> CutoverMisfit {
    match misfit {
        Misfit::Floor => CutoverMisfit::Floor,
        Misfit::Duration => CutoverMisfit::Duration,
        Misfit::Pause => CutoverMisfit::Pause,
    }
}

/// Whether every volume has reported since the last observation. Without a new report there is
/// nothing to measure: it would look as if applications wrote nothing and nothing was copied.
fn are_new<T>(reports: &[Arc<T>], observed: &[Arc<T>]) -> bool {
    let mut pairs = reports.iter().zip(observed);
    !pairs.any(|(report, observed)| Arc::ptr_eq(report, observed))
}

/// Whether a switch of these pairs needs a cutover.
pub(crate) fn is_needed(sight: Sight<'_>, row: &SessionRow, pairs: &[usize]) -> bool {
    let positions = sight.positions(row);
    let tracks = |pair: &usize| positions[*pair].state == PairState::Tracking;
    pairs.iter().any(tracks)
}

/// Sends each volume its throttle from `rates`, in bytes a second, if it has changed or must be
/// repeated. A volume without a rate is no longer slowed.
fn send_throttles(sight: Sight<'_>, name: &str, running: &mut Running, rates: &[u64]) {
    let Some(row) = sight.model.sessions.get(name) else {
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
        if let Some(handle) = sight.volumes.handle(&row.pairs[*pair].volume).cloned() {
            let request = Request::SetThrottle {
                bytes_per_second: rate,
                for_ms: THROTTLE_MS,
            };
            // A lost request is repeated, or the throttle expires.
            tokio::spawn(async move { handle.ask(request, TELL_MAX).await });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_observation_needs_a_new_report_of_every_volume() {
        let [one, other, later] = [Arc::new(1), Arc::new(2), Arc::new(1)];
        let observed = [one.clone(), other.clone()];
        assert!(are_new(&observed, &[]), "the first observation");
        assert!(!are_new(&observed, &observed));
        assert!(!are_new(&[later.clone(), other], &observed));
        assert!(are_new(&[later, Arc::new(2)], &observed));
    }
}
