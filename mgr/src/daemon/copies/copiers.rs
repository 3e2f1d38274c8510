//! The running copiers, their rates, and when a copier may be started or restarted.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use copier::compare::Found;
use copier::{AcceptUnreadable, Config, Copier, Limits, Outcome, Task};
use migration_core::impact::{Impact, WINDOW_NANOSECONDS};
use migration_core::latency::Histogram;
use migration_core::units::Time;
use migration_proto::manager::{CopierTask, HistoryEvent};
use migration_proto::target::{Refusal, Status};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::daemon::event::Event;
use crate::history;
use crate::store::PairKey;

/// The window over which the latency of applications is measured.
const WINDOW: Duration = Duration::from_nanos(WINDOW_NANOSECONDS);
/// The window over which the rate of a copier is measured.
const RATE_WINDOW: Duration = Duration::from_secs(5);
/// Minimum time for a meaningful rate.
const RATE_WINDOW_MIN: Duration = Duration::from_millis(200);
/// Maximum number of samples in the window.
const RATE_SAMPLES_MAX: usize = 64;
/// The first and the longest back-off before a copier is restarted.
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A copier that runs at least this long is steady: the problem of the one before is over, and the
/// back-off starts at its first delay again. Before, the copier may be at a region that can be
/// copied, on its way to the one that cannot.
const STEADY_AFTER: Duration = Duration::from_secs(10);
/// A locked mirror leg is reported when the back-off has reached this delay: udev locks a disk for
/// a moment whenever the disk has changed.
const LOCKED_REPORTED_FROM: Duration = Duration::from_secs(2);
/// Interval at which the number of copied bytes is made durable.
const PERSIST_EVERY: Duration = Duration::from_secs(30);

/// The copiers of all pairs: at most one for each pair.
#[derive(Debug)]
pub(crate) struct Copiers {
    events: mpsc::Sender<Event>,
    running: BTreeMap<PairKey, Running>,
    pauses: BTreeMap<PairKey, Pause>,
    /// The number of the next copier: a late report of an end must not be taken for the end of a
    /// newer copier.
    next_run: u64,
}

#[derive(Debug)]
struct Running {
    copier: Copier,
    limits: Arc<Limits>,
    task: Task,
    run: u64,
    started: Instant,
    persisted: Instant,
    /// The bytes that earlier copiers of the pair copied.
    base_bytes: u64,
    rate: Rate,
    /// The copier's share of the session's rate limit, in bytes a second; 0 = unlimited.
    share: u64,
    /// The impact of the copier on applications, while the impact is limited.
    felt: Option<LatencyGuard>,
}

/// The impact of a copier on applications.
#[derive(Debug)]
struct LatencyGuard {
    impact: Impact,
    /// The start of the current window.
    since: Instant,
    pid: u32,
    latency: Histogram,
}

impl Running {
    /// Sets the limits of the copier: the lower of the two rates, and the queue depth.
    fn limit(&self) {
        let felt = self.felt.as_ref().map_or(0, |felt| felt.impact.rate());
        let limit = match (self.share, felt) {
            (0, other) | (other, 0) => other,
            (share, felt) => share.min(felt),
        };
        self.limits.bytes_per_second.store(limit, Ordering::Relaxed);
        let depth = self.felt.as_ref().map_or(0, |felt| felt.impact.depth());
        self.limits.depth.store(depth, Ordering::Relaxed);
    }

    fn copied_bytes(&self) -> u64 {
        self.base_bytes
            .saturating_add(self.copier.progress().copied_bytes.load(Ordering::Relaxed))
    }

    /// The bytes compared so far; `None` for a copier that copies.
    fn compared_bytes(&self) -> Option<u64> {
        match self.task {
            Task::Copy { .. } => None,
            Task::Compare => Some(
                self.copier
                    .progress()
                    .compared_bytes
                    .load(Ordering::Relaxed),
            ),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Pause {
    not_before: Instant,
    delay: Duration,
}

/// The progress of a pair's copier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Copied {
    /// Bytes copied since the start of the session.
    pub(crate) bytes: u64,
    /// Bytes compared, while the legs are being compared.
    pub(crate) compared_bytes: Option<u64>,
    /// The rate of the copy or of the comparison.
    pub(crate) bytes_per_second: Option<u64>,
}

/// A copier that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) copied_bytes: u64,
    /// The problem to report to the operator.
    pub(crate) problem: Option<HistoryEvent>,
    pub(crate) in_sync: bool,
    /// The result of a comparison of the legs.
    pub(crate) found: Option<Found>,
    /// The copier compared the legs, and no other copier is to continue the comparison.
    pub(crate) compares_no_more: bool,
    /// The copier, to be dropped where blocking is allowed.
    pub(crate) copier: Copier,
}

impl Copiers {
    pub(crate) fn new(events: mpsc::Sender<Event>) -> Self {
        Self {
            events,
            running: BTreeMap::new(),
            pauses: BTreeMap::new(),
            next_run: 0,
        }
    }

    pub(crate) fn is_comparing(&self, key: &PairKey) -> bool {
        let running = self.running.get(key);
        running.is_some_and(|running| matches!(running.task, Task::Compare))
    }

    pub(crate) fn is_running(&self, key: &PairKey) -> bool {
        self.running.contains_key(key)
    }

    /// The number of copiers that copy, without those that compare.
    pub(crate) fn copying(&self) -> usize {
        let copies = |running: &&Running| matches!(running.task, Task::Copy { .. });
        self.running.values().filter(copies).count()
    }

    /// Divides the session's rate limit, in bytes a second (0 = unlimited), among its running
    /// copiers.
    pub(crate) fn share_rate(&mut self, session: &str, bytes_per_second: u64) {
        let is_of = |key: &PairKey| key.session == session;
        let copiers = self.running.keys().filter(|key| is_of(key)).count() as u64;
        let share = match bytes_per_second {
            0 => 0,
            all => (all / copiers.max(1)).max(1),
        };
        for (_, running) in self.running.iter_mut().filter(|(key, _)| is_of(key)) {
            running.share = share;
            running.limit();
        }
    }

    /// Removes the limits of a session's copiers, so that they finish as soon as possible.
    pub(crate) fn hurry(&mut self, session: &str) {
        for (_, running) in self
            .running
            .iter_mut()
            .filter(|(key, _)| key.session == session)
        {
            running.felt = None;
            running.share = 0;
            running.limit();
        }
    }

    /// Updates the impact limit of a copier from the latencies in `status`: the copier may raise
    /// the latency of applications by `percent` at most (0 = no limit).
    pub(crate) fn guard_latency(
        &mut self,
        key: &PairKey,
        percent: u32,
        status: &Status,
        now: Instant,
    ) {
        let Some(running) = self.running.get_mut(key) else {
            return;
        };
        let copies = matches!(running.task, Task::Copy { .. });
        if percent == 0 || !copies {
            if running.felt.take().is_some() {
                running.limit();
            }
            return;
        }
        let time =
            Time(u64::try_from(now.duration_since(running.started).as_nanos()).unwrap_or(u64::MAX));
        let reads = Histogram::from_counts(&status.read_latency);
        let latency = reads.with(&Histogram::from_counts(&status.write_latency));
        let known = running
            .felt
            .take()
            .filter(|felt| felt.impact.allowed_percent() == percent && felt.pid == status.pid);
        let felt = match known {
            None => LatencyGuard {
                impact: Impact::new(time, percent),
                since: now,
                pid: status.pid,
                latency,
            },
            Some(felt) if now.duration_since(felt.since) < WINDOW => felt,
            Some(mut felt) => {
                felt.impact.observe(time, &latency.since(&felt.latency));
                LatencyGuard {
                    since: now,
                    latency,
                    ..felt
                }
            }
        };
        running.felt = Some(felt);
        running.limit();
    }

    /// The 99th percentile of request latency without the copy, in microseconds; `None` if it is
    /// not measured.
    pub(crate) fn undisturbed_p99_us(&self, key: &PairKey) -> Option<u64> {
        let felt = self.running.get(key)?.felt.as_ref()?;
        felt.impact.baseline().map(|time| time / 1000)
    }

    /// Whether the running copier copies without a problem: it has copied something, and has run
    /// for [`STEADY_AFTER`], unlike a copier that fails each time at the same region.
    pub(crate) fn is_steady(&self, key: &PairKey, now: Instant) -> bool {
        self.running.get(key).is_some_and(|running| {
            running.copied_bytes() > running.base_bytes
                && now.duration_since(running.started) >= STEADY_AFTER
        })
    }

    /// Starts a copier, unless one is running or the back-off has not ended.
    pub(crate) fn start(
        &mut self,
        key: &PairKey,
        config: Config,
        accept_unreadable: Option<AcceptUnreadable>,
        base_bytes: u64,
        now: Instant,
    ) {
        let early = self
            .pauses
            .get(key)
            .is_some_and(|pause| now < pause.not_before);
        if self.is_running(key) || early {
            return;
        }
        let run = self.next_run;
        self.next_run += 1;
        let events = self.events.clone();
        let ended_key = key.clone();
        let on_end = move |outcome| {
            // The owner is gone only when shuntd ends.
            let _ = events.blocking_send(Event::CopierEnded {
                key: ended_key,
                run,
                outcome,
            });
        };
        let task = config.task;
        let limits = Arc::new(Limits::default());
        match Copier::start(config, Arc::clone(&limits), accept_unreadable, on_end) {
            Ok(copier) => {
                debug!(
                    session = key.session,
                    position = key.position,
                    "copier started"
                );
                let rate = Rate::default();
                self.running.insert(
                    key.clone(),
                    Running {
                        copier,
                        limits,
                        task,
                        run,
                        started: now,
                        persisted: now,
                        base_bytes,
                        rate,
                        share: 0,
                        felt: None,
                    },
                );
            }
            Err(error) => {
                warn!(session = key.session, position = key.position, %error, "the copier cannot be started");
                self.hold_back(key, now, Duration::ZERO);
            }
        }
    }

    /// Takes a sample of the rate. Returns the copied bytes when it is time to make them durable.
    pub(crate) fn sample(&mut self, key: &PairKey, now: Instant) -> Option<u64> {
        let running = self.running.get_mut(key)?;
        let copied_bytes = running.copied_bytes();
        let compared_bytes = running.compared_bytes();
        running
            .rate
            .sample(now, compared_bytes.unwrap_or(copied_bytes));
        if compared_bytes.is_some() || now.duration_since(running.persisted) < PERSIST_EVERY {
            return None;
        }
        running.persisted = now;
        Some(copied_bytes)
    }

    pub(crate) fn copied(&self, key: &PairKey) -> Option<Copied> {
        let running = self.running.get(key)?;
        Some(Copied {
            bytes: running.copied_bytes(),
            compared_bytes: running.compared_bytes(),
            bytes_per_second: running.rate.bytes_per_second(),
        })
    }

    /// The bytes that the running copier of a pair has copied, and the time during which something
    /// was being copied, in nanoseconds.
    pub(crate) fn pace(&self, key: &PairKey) -> (u64, u64) {
        let Some(running) = self.running.get(key) else {
            return (0, 0);
        };
        let progress = running.copier.progress();
        (
            progress.copied_bytes.load(Ordering::Relaxed),
            progress.copying_nanoseconds.load(Ordering::Relaxed),
        )
    }

    /// Ends the back-off of a pair: its cause is gone.
    pub(super) fn need_not_wait(&mut self, key: &PairKey) {
        self.pauses.remove(key);
    }

    /// Ends the back-off of all pairs of a session: its cause is gone.
    pub(crate) fn need_not_wait_of(&mut self, session: &str) {
        self.pauses.retain(|key, _| key.session != session);
    }

    /// Removes a copier and returns it with its copied bytes. The caller stops the copier where
    /// blocking is allowed.
    pub(crate) fn take(&mut self, key: &PairKey) -> Option<(Copier, u64)> {
        self.pauses.remove(key);
        let running = self.running.remove(key)?;
        let copied_bytes = running.copied_bytes();
        Some((running.copier, copied_bytes))
    }

    /// Removes all copiers, as [`Self::take`] does.
    pub(crate) fn take_all(&mut self) -> Vec<(PairKey, Copier, u64)> {
        let keys: Vec<PairKey> = self.running.keys().cloned().collect();
        keys.into_iter()
            .filter_map(|key| {
                let (copier, copied_bytes) = self.take(&key)?;
                Some((key, copier, copied_bytes))
            })
            .collect()
    }

    /// Handles the end of a copier. `None` if the copier was removed before.
    pub(crate) fn ended(
        &mut self,
        key: &PairKey,
        run: u64,
        outcome: &Outcome,
        now: Instant,
    ) -> Option<Ended> {
        if self
            .running
            .get(key)
            .is_none_or(|running| running.run != run)
        {
            return None;
        }
        let running = self.running.remove(key)?;
        let copied_bytes = running.copied_bytes();
        let problem = problem_of(outcome, running.task)
            .filter(|_| !self.is_locked_for_a_moment(key, outcome));
        let found = match outcome {
            Outcome::Compared(found) => Some(found.clone()),
            _ => None,
        };
        match &problem {
            Some(problem) => warn!(
                session = key.session,
                position = key.position,
                problem = history::sentence(problem, Some(&key.session), None),
                "the copier ended"
            ),
            None => debug!(
                session = key.session,
                position = key.position,
                copied_bytes,
                ?outcome,
                "the copier ended"
            ),
        }
        let in_sync = *outcome == Outcome::InSync;
        let compares = matches!(running.task, Task::Compare);
        let compares_no_more = compares && !is_tried_again(outcome, running.task);
        let lived = now.duration_since(running.started);
        // After an end in sync the last known status may be older than the end: it must not start a
        // new copier.
        self.hold_back(key, now, if in_sync { STEADY_AFTER } else { lived });
        Some(Ended {
            copied_bytes,
            problem,
            in_sync,
            found,
            compares_no_more,
            copier: running.copier,
        })
    }

    fn is_locked_for_a_moment(&self, key: &PairKey, outcome: &Outcome) -> bool {
        let is_locked = matches!(
            outcome,
            Outcome::Refused {
                reason: Refusal::CopierBusy,
                ..
            }
        );
        let pause = self.pauses.get(key);
        is_locked && pause.is_none_or(|pause| pause.delay < LOCKED_REPORTED_FROM)
    }

    fn hold_back(&mut self, key: &PairKey, now: Instant, lived: Duration) {
        let before = self
            .pauses
            .get(key)
            .map_or(Duration::ZERO, |pause| pause.delay);
        let delay = if lived >= STEADY_AFTER {
            BACKOFF_FIRST
        } else {
            (before * 2).clamp(BACKOFF_FIRST, BACKOFF_MAX)
        };
        self.pauses.insert(
            key.clone(),
            Pause {
                not_before: now + delay,
                delay,
            },
        );
    }
}

/// Whether a new copier continues the work of the ended one.
fn is_tried_again(outcome: &Outcome, task: Task) -> bool {
    match outcome {
        Outcome::InSync | Outcome::Compared(_) => false,
        Outcome::Stopped | Outcome::Disconnected { .. } => true,
        // An earlier copier is still ending.
        Outcome::Refused {
            reason: Refusal::CopierBusy,
            ..
        } => true,
        Outcome::Refused { .. } | Outcome::Failed { .. } | Outcome::Broken { .. } => {
            matches!(task, Task::Copy { .. })
        }
    }
}

/// The problem to report to the operator about the end of a copier. A lost ublk-target is reported
/// with the volume instead.
fn problem_of(outcome: &Outcome, running: Task) -> Option<HistoryEvent> {
    let retried = is_tried_again(outcome, running);
    let task = match running {
        Task::Copy { .. } => CopierTask::Copy,
        Task::Compare => CopierTask::Compare,
    };
    match outcome {
        Outcome::InSync
        | Outcome::Compared(_)
        | Outcome::Stopped
        | Outcome::Disconnected { .. } => None,
        // The roles have changed: there is a different copy to be made, or none.
        Outcome::Refused {
            reason: Refusal::StaleEpoch,
            ..
        } if task == CopierTask::Copy => None,
        // The mirror leg has failed. The copy continues when the leg is accepted again: by
        // `shunt resume`, or automatically after a stall.
        Outcome::Refused {
            reason: Refusal::Failed,
            cause,
        } => Some(HistoryEvent::CopierBlocked {
            task,
            retried: None,
            cause: cause.clone(),
        }),
        Outcome::Refused { cause, .. } => Some(HistoryEvent::CopierBlocked {
            task,
            retried: Some(retried),
            cause: cause.clone(),
        }),
        Outcome::Failed { side, cause } => Some(HistoryEvent::CopierLegFailed {
            task,
            leg: *side,
            retried,
            cause: cause.clone(),
        }),
        Outcome::Broken { cause } => Some(HistoryEvent::CopierFailed {
            task,
            retried,
            cause: cause.clone(),
        }),
    }
}

/// Bytes a second over a sliding window.
#[derive(Debug, Clone, Default)]
struct Rate {
    samples: VecDeque<(Instant, u64)>,
}

impl Rate {
    fn sample(&mut self, now: Instant, bytes: u64) {
        self.samples.push_back((now, bytes));
        while self.samples.len() > RATE_SAMPLES_MAX
            || self
                .samples
                .front()
                .is_some_and(|(at, _)| now.duration_since(*at) > RATE_WINDOW)
        {
            self.samples.pop_front();
        }
    }

    fn bytes_per_second(&self) -> Option<u64> {
        let (first_at, first) = self.samples.front()?;
        let (last_at, last) = self.samples.back()?;
        let elapsed = last_at.duration_since(*first_at);
        if elapsed < RATE_WINDOW_MIN {
            return None;
        }
        let per_second = u128::from(last.saturating_sub(*first)) * 1_000_000 / elapsed.as_micros();
        u64::try_from(per_second).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let start = Instant::now();
        let mut rate = Rate::default();
        assert_eq!(rate.bytes_per_second(), None);
        rate.sample(start, 0);
        assert_eq!(rate.bytes_per_second(), None);
        // 1000 bytes a second for 20 s, then nothing for 10 s.
        for quarter in 1..=80 {
            rate.sample(
                start + Duration::from_millis(250) * quarter,
                u64::from(quarter) * 250,
            );
        }
        assert_eq!(rate.bytes_per_second(), Some(1000));
        for second in 21..=30 {
            rate.sample(start + Duration::from_secs(second), 20_000);
        }
        assert_eq!(rate.bytes_per_second(), Some(0));
        assert!(rate.samples.len() <= RATE_SAMPLES_MAX);
    }

    #[test]
    fn after_a_change_of_the_roles_a_copy_is_begun_again_and_a_comparison_is_over() {
        let outcome = Outcome::Refused {
            reason: Refusal::StaleEpoch,
            cause: "the epoch is 4".to_owned(),
        };
        assert_eq!(problem_of(&outcome, Task::Copy { read_back: false }), None);
        let over = HistoryEvent::CopierBlocked {
            task: CopierTask::Compare,
            retried: Some(false),
            cause: "the epoch is 4".to_owned(),
        };
        assert_eq!(problem_of(&outcome, Task::Compare), Some(over));
    }

    #[test]
    fn a_mirror_leg_that_is_locked_is_reported_when_that_lasts() {
        let (events, _received) = mpsc::channel(1);
        let mut copies = Copiers::new(events);
        let key = PairKey {
            session: "s1".into(),
            position: 0,
        };
        let refused = |reason| Outcome::Refused {
            reason,
            cause: "locked".to_owned(),
        };
        let mut said = Vec::new();
        for _ in 0..6 {
            let outcome = refused(Refusal::CopierBusy);
            said.push(!copies.is_locked_for_a_moment(&key, &outcome));
            assert!(!copies.is_locked_for_a_moment(&key, &refused(Refusal::BadLeg)));
            copies.hold_back(&key, Instant::now(), Duration::ZERO);
        }
        assert_eq!(said, [false, false, false, false, true, true]);
    }

    #[test]
    fn a_copier_that_ends_again_and_again_is_started_later_and_later() {
        let (events, _received) = mpsc::channel(1);
        let mut copies = Copiers::new(events);
        let key = PairKey {
            session: "s1".into(),
            position: 0,
        };
        let now = Instant::now();
        let mut delays = Vec::new();
        for _ in 0..9 {
            copies.hold_back(&key, now, Duration::ZERO);
            delays.push(copies.pauses[&key].delay.as_millis());
        }
        assert_eq!(
            delays,
            [250, 500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]
        );
        copies.hold_back(&key, now, STEADY_AFTER);
        assert_eq!(copies.pauses[&key].delay, BACKOFF_FIRST);
    }
}
