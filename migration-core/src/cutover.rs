//! The cutover of pairs that track: writes are slowed until the rest fits into the pause that the
//! operator allows.
//!
//! ```text
//!  baseline --all that was dirty has had its turn--> update --does not fit--> administrative
//!                                                      |  ^                        |
//!                                                 fits |  | fallback               | fits
//!                                                      v  |                        v
//!                                     over <--done-- cutover <---------------------+
//! ```
//!
//! *Baseline* and *update* only measure. *Administrative* slows the writes of each pair whose rest
//! does not fit and does not shrink fast enough to fit in time: step by step, never below the
//! floor. In *cutover* requests are held while the rest is copied, and the roles are exchanged. An
//! attempt that fails falls back to *update*: writes are not slowed any more, and the [`Action`]
//! says what follows.
//!
//! Sizes are in bytes, rates in bytes a second. No clock: times are arguments.

use alloc::{vec, vec::Vec};

use crate::units::Time;

/// The interval of measurements and decisions, in nanoseconds.
pub const STEP_NANOSECONDS: u64 = 1_000_000_000;
/// How many steps in a row the rest may fail to shrink with writes at the floor before the attempt
/// fails.
const FLOOR_STEPS: u32 = 5;
/// The rest shrinks fast enough if it will fit after one `TIME_SHARE`th of the time that is left.
const TIME_SHARE: u64 = 2;
/// The share of the highest rate of writes that remains after each step: an application that pauses
/// for a moment is not idle.
const PEAK_SHARE: (u64, u64) = (7, 8);
/// The rest has to fit into this share of the pause: the drain and the flushes take some of it too.
const PAUSE_SHARE: (u128, u128) = (3, 4);
/// The share of the rate of writes that a step leaves.
const STEP_SHARE: (u64, u64) = (3, 4);
/// The first and the longest back-off between two attempts, in nanoseconds.
const BACK_OFF_FIRST: u64 = 5_000_000_000;
const BACK_OFF_MAX: u64 = 300_000_000_000;
/// How long a forced cutover may hold requests, in nanoseconds.
pub const FORCED_HOLD_NANOSECONDS: u64 = 110_000_000_000;

/// What follows when an attempt fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Action {
    /// Try again, up to the number of attempts that is allowed.
    #[default]
    Retry,
    /// Do not slow writes again; cut over when the rest fits without that.
    Defer,
    /// Do nothing more; the operator decides.
    Abort,
    /// As `Retry`; when all attempts have failed, cut over with requests held up to
    /// [`FORCED_HOLD_NANOSECONDS`].
    Force,
    /// As `Retry`, but only measure until the operator asks for the switch once more.
    Wait,
}

/// What the operator allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Policy {
    /// How long requests may be held, in nanoseconds.
    pub max_pause: u64,
    /// How long writes may be slowed in one attempt, in nanoseconds.
    pub duration: u64,
    /// The lowest rate to which writes are slowed.
    pub floor: u64,
    /// What follows when an attempt fails.
    pub action: Action,
    /// How many attempts there may be.
    pub attempts: u32,
}

/// One sample of a pair. All fields but `dirty_bytes` are running counters; they may restart from
/// zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sample {
    /// What is still to be copied.
    pub dirty_bytes: u64,
    /// What was copied.
    pub copied_bytes: u64,
    /// How long the copier was copying, in nanoseconds.
    pub copying_nanoseconds: u64,
    /// What applications wrote.
    pub written_bytes: u64,
}

/// The phase of a cutover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// What was dirty at the beginning is being copied.
    Baseline,
    /// What is written is copied in passes.
    Update,
    /// Writes are being slowed.
    Administrative,
    /// Requests are held while the rest is copied.
    Cutover,
}

impl Phase {
    /// The name that the operator reads.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Update => "update",
            Self::Administrative => "administrative",
            Self::Cutover => "cutover",
        }
    }
}

/// Why an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Misfit {
    /// Writes are at the floor, and the rest still does not fit.
    Floor,
    /// Writes were slowed as long as allowed.
    Duration,
    /// The roles could not be exchanged within the pause.
    Pause,
}

/// What the caller has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Measure again. The throttles may have changed.
    Watch,
    /// Hold requests for at most `hold_nanoseconds_max`, copy the rest and exchange the roles. If
    /// that fails, call [`Cutover::not_cut_over`].
    CutOver {
        /// The limit.
        hold_nanoseconds_max: u64,
    },
    /// Stop: the cutover is over without success, and writes are not slowed any more.
    GiveUp,
}

/// The measurements of one pair.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Pace {
    last: Option<(Time, Sample)>,
    /// The rate of the copy while there is enough to copy.
    copy_rate: u64,
    write_rate: u64,
    /// The highest recent rate of writes.
    write_peak: u64,
    /// How much less is dirty than in the sample before.
    shrunk: u64,
    /// The rate to which writes are slowed; 0: writes are not slowed.
    throttle: u64,
    /// What is left of the baseline; `None` before the first sample.
    left: Option<u64>,
}

impl Pace {
    const NEW: Self = Self {
        last: None,
        copy_rate: 0,
        write_rate: 0,
        write_peak: 0,
        shrunk: 0,
        throttle: 0,
        left: None,
    };

    fn observe(&mut self, now: Time, sample: Sample) {
        let last = self.last.replace((now, sample));
        let left = self.left.get_or_insert(sample.dirty_bytes);
        let Some((then, before)) = last else {
            return;
        };
        self.shrunk = before.dirty_bytes.saturating_sub(sample.dirty_bytes);
        let copied = sample.copied_bytes.checked_sub(before.copied_bytes);
        let copying = sample
            .copying_nanoseconds
            .checked_sub(before.copying_nanoseconds);
        if let (Some(copied), Some(copying @ 1..)) = (copied, copying) {
            *left = left.saturating_sub(copied);
            let rate = per_second(copied, copying);
            self.copy_rate = match self.copy_rate {
                0 => rate,
                known => known / 2 + rate / 2,
            };
        }
        if let (Some(written), elapsed @ 1..) = (
            sample.written_bytes.checked_sub(before.written_bytes),
            now.since(then),
        ) {
            self.write_rate = per_second(written, elapsed);
            let lately = self.write_peak / PEAK_SHARE.1 * PEAK_SHARE.0;
            self.write_peak = self.write_rate.max(lately);
        }
    }

    fn dirty_bytes(&self) -> u64 {
        self.last.map_or(0, |(_, sample)| sample.dirty_bytes)
    }

    /// How long the copy of the rest would take, in nanoseconds; `None` if that is not known.
    fn pause(&self) -> Option<u64> {
        match (self.dirty_bytes(), self.copy_rate) {
            _ if self.last.is_none() => None,
            (0, _) => Some(0),
            (_, 0) => None,
            (dirty, rate) => {
                let nanoseconds = u128::from(dirty) * 1_000_000_000 / u128::from(rate);
                Some(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
            }
        }
    }

    fn fits(&self, max_pause: u64) -> bool {
        let allowed = u128::from(max_pause) * PAUSE_SHARE.0 / PAUSE_SHARE.1;
        self.pause()
            .is_some_and(|pause| u128::from(pause) <= allowed)
    }

    /// Whether the rest fits in time if it continues to shrink at this rate.
    fn will_fit(&self, max_pause: u64, steps_left: u64) -> bool {
        let allowed = u128::from(max_pause) * PAUSE_SHARE.0 / PAUSE_SHARE.1;
        let fits = allowed * u128::from(self.copy_rate) / 1_000_000_000;
        let too_much = u128::from(self.dirty_bytes()).saturating_sub(fits);
        u128::from(self.shrunk) * u128::from(steps_left / TIME_SHARE) >= too_much
    }

    /// Slows writes more, but not below `floor`. Returns whether the throttle has changed.
    fn slow(&mut self, floor: u64) -> bool {
        let rate = match self.throttle {
            0 => self.write_peak,
            throttle => throttle,
        };
        let slower = (rate / STEP_SHARE.1 * STEP_SHARE.0).max(floor);
        let changed = self.throttle == 0 || slower < self.throttle;
        if changed {
            self.throttle = slower;
        }
        changed
    }
}

fn per_second(bytes: u64, nanoseconds: u64) -> u64 {
    let rate = u128::from(bytes) * 1_000_000_000 / u128::from(nanoseconds.max(1));
    u64::try_from(rate).unwrap_or(u64::MAX)
}

/// The cutover of all pairs of a session. See the module.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Cutover {
    policy: Policy,
    paces: Vec<Pace>,
    phase: Phase,
    /// When the slowing of writes began.
    slowed_since: Time,
    next_step: Time,
    steps_at_floor: u32,
    failed: u32,
    misfit: Option<Misfit>,
    not_before: Time,
    back_off: u64,
    /// Whether the operator allows the cutover ([`Action::Wait`]).
    released: bool,
}

impl Cutover {
    /// A cutover of `pairs` pairs.
    #[must_use]
    pub fn new(policy: Policy, pairs: usize) -> Self {
        Self {
            policy,
            paces: vec![Pace::NEW; pairs],
            phase: Phase::Baseline,
            slowed_since: Time(0),
            next_step: Time(0),
            steps_at_floor: 0,
            failed: 0,
            misfit: None,
            not_before: Time(0),
            back_off: BACK_OFF_FIRST,
            released: policy.action != Action::Wait,
        }
    }

    /// Takes a repeated request of the operator: with a new policy, and without the back-off. The
    /// failed attempts no longer count.
    pub fn ask_again(&mut self, policy: Policy) {
        self.policy = policy;
        self.released = true;
        self.not_before = Time(0);
        self.failed = 0;
    }

    /// Takes one sample of each pair, in the order of the session. Returns what the caller has to
    /// do.
    pub fn observe(&mut self, now: Time, samples: &[Sample]) -> Step {
        if self.phase == Phase::Cutover || now < self.next_step {
            return Step::Watch;
        }
        self.next_step = now.plus(STEP_NANOSECONDS);
        for (pace, sample) in self.paces.iter_mut().zip(samples) {
            pace.observe(now, *sample);
        }
        match self.phase {
            Phase::Baseline => {
                if self.paces.iter().all(|pace| pace.left == Some(0)) || self.fits() {
                    self.phase = Phase::Update;
                }
                Step::Watch
            }
            Phase::Update => self.update(now),
            Phase::Administrative => self.administrate(now),
            Phase::Cutover => Step::Watch,
        }
    }

    /// Takes the failure of an attempt: the roles were not exchanged.
    pub fn not_cut_over(&mut self, now: Time) -> Step {
        self.fall_back(now, Misfit::Pause)
    }

    /// The current phase.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// The current policy.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The rate to which the writes of each pair are slowed; 0: they are not slowed.
    pub fn throttles(&self) -> impl Iterator<Item = u64> + '_ {
        self.paces.iter().map(|pace| pace.throttle)
    }

    /// How long requests would be held now, in nanoseconds: the time of the pair that takes
    /// longest. `None` if it is not known.
    #[must_use]
    pub fn predicted_pause(&self) -> Option<u64> {
        let pauses = self.paces.iter().map(Pace::pause);
        pauses.collect::<Option<Vec<u64>>>()?.into_iter().max()
    }

    /// What applications write in a second, in all pairs.
    #[must_use]
    pub fn write_rate(&self) -> u64 {
        self.paces.iter().map(|pace| pace.write_rate).sum()
    }

    /// What can be copied in a second, in all pairs.
    #[must_use]
    pub fn copy_rate(&self) -> u64 {
        self.paces.iter().map(|pace| pace.copy_rate).sum()
    }

    /// How many attempts have failed, and why the last one did.
    #[must_use]
    pub const fn failures(&self) -> (u32, Option<Misfit>) {
        (self.failed, self.misfit)
    }

    fn fits(&self) -> bool {
        let max_pause = self.policy.max_pause;
        self.paces.iter().all(|pace| pace.fits(max_pause))
    }

    fn update(&mut self, now: Time) -> Step {
        if !self.released || now < self.not_before {
            return Step::Watch;
        }
        if self.fits() {
            return self.cut_over(self.policy.max_pause);
        }
        if self.policy.action == Action::Defer && self.failed > 0 {
            return Step::Watch;
        }
        self.phase = Phase::Administrative;
        self.slowed_since = now;
        self.steps_at_floor = 0;
        self.slow(now)
    }

    fn administrate(&mut self, now: Time) -> Step {
        if self.fits() {
            return self.cut_over(self.policy.max_pause);
        }
        if now.since(self.slowed_since) >= self.policy.duration {
            return self.fall_back(now, Misfit::Duration);
        }
        self.slow(now)
    }

    fn slow(&mut self, now: Time) -> Step {
        let Policy {
            max_pause, floor, ..
        } = self.policy;
        let slowed_for = now.since(self.slowed_since);
        let steps_left = self.policy.duration.saturating_sub(slowed_for) / STEP_NANOSECONDS;
        let mut stuck = true;
        for pace in &mut self.paces {
            if !pace.fits(max_pause) {
                let gets_there = pace.will_fit(max_pause, steps_left) || pace.slow(floor);
                stuck &= !gets_there && pace.shrunk == 0;
            }
        }
        self.steps_at_floor = if stuck { self.steps_at_floor + 1 } else { 0 };
        if self.steps_at_floor > FLOOR_STEPS {
            return self.fall_back(now, Misfit::Floor);
        }
        Step::Watch
    }

    fn cut_over(&mut self, hold_nanoseconds_max: u64) -> Step {
        self.phase = Phase::Cutover;
        Step::CutOver {
            hold_nanoseconds_max,
        }
    }

    fn fall_back(&mut self, now: Time, misfit: Misfit) -> Step {
        self.failed += 1;
        self.misfit = Some(misfit);
        self.phase = Phase::Update;
        for pace in &mut self.paces {
            pace.throttle = 0;
        }
        self.not_before = now.plus(self.back_off);
        self.back_off = (self.back_off * 2).min(BACK_OFF_MAX);
        let all_used = self.failed >= self.policy.attempts;
        match self.policy.action {
            Action::Abort => Step::GiveUp,
            Action::Retry | Action::Wait if all_used => Step::GiveUp,
            Action::Force if self.failed == self.policy.attempts => {
                self.cut_over(FORCED_HOLD_NANOSECONDS)
            }
            Action::Force if all_used => Step::GiveUp,
            Action::Retry | Action::Wait | Action::Force | Action::Defer => Step::Watch,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const MEGABYTE: u64 = 1_000_000;

    const POLICY: Policy = Policy {
        max_pause: SECOND,
        duration: 60 * SECOND,
        floor: MEGABYTE,
        action: Action::Retry,
        attempts: 2,
    };

    /// A pair that is copied and written at fixed rates. What is written is dirty until the next
    /// second.
    struct World {
        cutover: Cutover,
        sample: Sample,
        copy_rate: u64,
        write_rate: u64,
        second: u64,
    }

    impl World {
        fn new(policy: Policy, dirty_bytes: u64, copy_rate: u64, write_rate: u64) -> Self {
            let (copied_bytes, written_bytes) = (0, 0);
            Self {
                cutover: Cutover::new(policy, 1),
                sample: Sample {
                    dirty_bytes,
                    copied_bytes,
                    copying_nanoseconds: 0,
                    written_bytes,
                },
                copy_rate,
                write_rate,
                second: 0,
            }
        }

        fn throttle(&self) -> u64 {
            self.cutover.throttles().next().unwrap()
        }

        fn now(&self) -> Time {
            Time(self.second * SECOND)
        }

        fn second(&mut self) -> Step {
            let step = self.cutover.observe(self.now(), &[self.sample]);
            self.second += 1;
            let written = match self.throttle() {
                0 => self.write_rate,
                throttle => self.write_rate.min(throttle),
            };
            let copied = self.copy_rate.min(self.sample.dirty_bytes);
            self.sample.dirty_bytes = self.sample.dirty_bytes + written - copied;
            self.sample.copied_bytes += copied;
            self.sample.copying_nanoseconds += copied * 1000 / (self.copy_rate / MEGABYTE);
            self.sample.written_bytes += written;
            step
        }

        /// The first step but `Watch`, and after how many seconds it came.
        fn until_step(&mut self, seconds: u64) -> (Step, u64) {
            for second in 0..seconds {
                match self.second() {
                    Step::Watch => {}
                    step => return (step, second),
                }
            }
            (Step::Watch, seconds)
        }
    }

    const CUT_OVER: Step = Step::CutOver {
        hold_nanoseconds_max: SECOND,
    };

    #[test]
    fn what_fits_is_cut_over_after_the_baseline_and_no_write_is_slowed() {
        let mut world = World::new(POLICY, 100 * MEGABYTE, 10 * MEGABYTE, MEGABYTE);
        for _ in 0..9 {
            assert_eq!(world.second(), Step::Watch);
            assert_eq!(world.throttle(), 0);
        }
        assert_eq!(world.cutover.phase(), Phase::Baseline);
        let (step, seconds) = world.until_step(10);
        assert_eq!(step, CUT_OVER);
        assert!(seconds < 5, "{seconds}");
        assert_eq!(
            (world.throttle(), world.cutover.phase()),
            (0, Phase::Cutover)
        );
    }

    #[test]
    fn writes_that_are_too_fast_are_slowed_until_the_rest_fits() {
        let mut world = World::new(POLICY, 20 * MEGABYTE, 10 * MEGABYTE, 15 * MEGABYTE);
        let (step, _) = world.until_step(60);
        assert_eq!(step, CUT_OVER);
        assert!(world.throttle() >= POLICY.floor);
        assert!(world.throttle() < 10 * MEGABYTE, "{}", world.throttle());
        assert!(world.cutover.predicted_pause().unwrap() <= SECOND);
    }

    #[test]
    fn writes_are_not_slowed_more_than_the_time_that_is_left_needs() {
        let mut world = World::new(POLICY, 100 * MEGABYTE, 10 * MEGABYTE, 15 * MEGABYTE);
        while world.throttle() == 0 {
            assert_eq!(world.second(), Step::Watch);
        }
        // The application pauses for a moment; this must not slow it for ever.
        world.write_rate = 0;
        world.second();
        world.write_rate = 15 * MEGABYTE;
        let (step, seconds) = world.until_step(100);
        assert_eq!(step, CUT_OVER);
        assert!(seconds > 10, "{seconds}");
        assert!(world.throttle() > 3 * MEGABYTE, "{}", world.throttle());
    }

    #[test]
    fn a_rest_that_shrinks_slowly_at_the_floor_is_waited_for() {
        let policy = Policy {
            max_pause: 2 * SECOND,
            duration: 120 * SECOND,
            floor: 9 * MEGABYTE,
            action: Action::Abort,
            ..POLICY
        };
        let mut world = World::new(policy, 80 * MEGABYTE, 10 * MEGABYTE, 12 * MEGABYTE);
        let (step, seconds) = world.until_step(200);
        assert!(
            matches!(step, Step::CutOver { .. }),
            "{step:?} after {seconds} s"
        );
        assert_eq!(world.throttle(), policy.floor);
        assert!(seconds > 60, "{seconds}");
    }

    #[test]
    fn an_impossible_window_ends_as_the_action_says_and_slows_no_write_any_more() {
        let floor = 20 * MEGABYTE;
        let outcome = |action| {
            let policy = Policy {
                action,
                floor,
                ..POLICY
            };
            let mut world = World::new(policy, 20 * MEGABYTE, 10 * MEGABYTE, 40 * MEGABYTE);
            let (step, seconds) = world.until_step(1000);
            assert_eq!(world.throttle(), 0, "{action:?}");
            assert_eq!(
                world.cutover.failures().1,
                (action != Action::Wait).then_some(Misfit::Floor)
            );
            (step, seconds, world.cutover.failures().0)
        };
        let (abort, abort_seconds, failed) = outcome(Action::Abort);
        assert_eq!((abort, failed), (Step::GiveUp, 1));
        let (retry, retry_seconds, failed) = outcome(Action::Retry);
        assert_eq!((retry, failed), (Step::GiveUp, 2));
        assert!(retry_seconds > abort_seconds + BACK_OFF_FIRST / SECOND);
        let (force, _, failed) = outcome(Action::Force);
        let hold_nanoseconds_max = FORCED_HOLD_NANOSECONDS;
        assert_eq!(
            (force, failed),
            (
                Step::CutOver {
                    hold_nanoseconds_max
                },
                2
            )
        );
        assert_eq!(outcome(Action::Defer), (Step::Watch, 1000, 1));
        assert_eq!(outcome(Action::Wait), (Step::Watch, 1000, 0));
    }

    #[test]
    fn what_is_deferred_is_cut_over_when_it_fits_by_itself() {
        let policy = Policy {
            action: Action::Defer,
            floor: 20 * MEGABYTE,
            ..POLICY
        };
        let mut world = World::new(policy, 20 * MEGABYTE, 10 * MEGABYTE, 40 * MEGABYTE);
        assert_eq!(world.until_step(60).0, Step::Watch);
        world.write_rate = MEGABYTE;
        let (step, _) = world.until_step(1000);
        assert_eq!((step, world.throttle()), (CUT_OVER, 0));
    }

    #[test]
    fn what_waits_is_cut_over_when_it_is_asked_for_again() {
        let policy = Policy {
            action: Action::Wait,
            ..POLICY
        };
        let mut world = World::new(policy, 20 * MEGABYTE, 10 * MEGABYTE, MEGABYTE);
        assert_eq!(world.until_step(30).0, Step::Watch);
        assert_eq!(world.cutover.phase(), Phase::Update);
        world.cutover.ask_again(policy);
        assert_eq!(world.until_step(3).0, CUT_OVER);
    }

    #[test]
    fn a_pause_that_was_too_short_is_tried_again_and_forced_in_the_end() {
        let policy = Policy {
            action: Action::Force,
            ..POLICY
        };
        let mut world = World::new(policy, 0, 10 * MEGABYTE, MEGABYTE);
        assert_eq!(world.until_step(30).0, CUT_OVER);
        let now = world.now();
        assert_eq!(world.cutover.not_cut_over(now), Step::Watch);
        assert_eq!(world.until_step(30).0, CUT_OVER);
        let now = world.now();
        let hold_nanoseconds_max = FORCED_HOLD_NANOSECONDS;
        let forced = Step::CutOver {
            hold_nanoseconds_max,
        };
        assert_eq!(world.cutover.not_cut_over(now), forced);
        let now = world.now();
        assert_eq!(world.cutover.not_cut_over(now), Step::GiveUp);
        assert_eq!(world.cutover.failures(), (3, Some(Misfit::Pause)));
    }

    #[test]
    fn writes_are_not_slowed_longer_than_allowed() {
        let policy = Policy {
            duration: 3 * SECOND,
            action: Action::Abort,
            floor: 1,
            ..POLICY
        };
        let mut world = World::new(policy, 20 * MEGABYTE, MEGABYTE, 900 * MEGABYTE);
        assert_eq!(world.until_step(1000).0, Step::GiveUp);
        assert_eq!(world.cutover.failures(), (1, Some(Misfit::Duration)));
    }

    #[test]
    fn counters_that_begin_anew_are_no_rate() {
        let mut pace = Pace::NEW;
        let sample = |copied_bytes, copying_nanoseconds, written_bytes| Sample {
            dirty_bytes: 9 * MEGABYTE,
            copied_bytes,
            copying_nanoseconds,
            written_bytes,
        };
        pace.observe(Time(0), sample(0, 0, 0));
        // Half of the second there was nothing to copy.
        pace.observe(Time(SECOND), sample(MEGABYTE, SECOND / 2, 2 * MEGABYTE));
        pace.observe(Time(2 * SECOND), sample(0, 0, MEGABYTE));
        assert_eq!(
            (pace.copy_rate, pace.write_rate),
            (2 * MEGABYTE, 2 * MEGABYTE)
        );
        assert_eq!(pace.pause(), Some(9 * SECOND / 2));
    }
}
