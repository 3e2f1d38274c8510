//! Limits the rate of a copy so that applications hardly notice it. The latency of applications is
//! measured while nothing is copied; then the rate of the copy follows what it does to the latency.
//!
//! *Measuring*: nothing is copied for a moment, so that the latency is that without the copy. This
//! is repeated from time to time, because applications change. *Copying*: the rate is doubled until
//! the latency has grown too much for the first time; from then on the rate goes down quickly and
//! up slowly. While applications make too few requests for a measurement, nothing can be disturbed,
//! and the rate grows too.
//!
//! Rates are in bytes a second, times in nanoseconds. No clock: times are arguments.

use crate::latency::Histogram;
use crate::units::Time;

/// The length of a window, in nanoseconds. The requests of a window are evaluated together.
pub const WINDOW_NANOSECONDS: u64 = 1_000_000_000;
/// How long the copy stops for a measurement: the first time and later.
const MEASURE_FIRST: u64 = 3_000_000_000;
const MEASURE_AGAIN: u64 = 2_000_000_000;
/// The interval between measurements.
const MEASURE_EVERY: u64 = 120_000_000_000;
/// The fewest requests that give a quantile.
const REQUESTS_MIN: u64 = 100;
/// The quantile that is compared, in thousandths.
const QUANTILE: u64 = 990;

/// The first rate and the lowest rate. The copy never stops for good, so it always ends.
const RATE_FIRST: u64 = 8 << 20;
const RATE_MIN: u64 = 1 << 20;
/// From this rate on the copy is not limited.
const RATE_MAX: u64 = 1 << 40;
/// The rate for each request in flight. Many requests at once are a burst, and a burst is what
/// delays the slowest requests of applications.
const RATE_OF_ONE: u64 = 128 << 20;
/// The rate while measuring: practically nothing is copied.
const RATE_NOTHING: u64 = 1;

/// What the control does at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing is copied until the measurement ends.
    Measuring { until: Time },
    /// The copy runs until the next measurement.
    Copying { until: Time },
}

/// The control of the rate of one copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Impact {
    /// By how much the latency may grow, in percent of what it is without the copy.
    allowed_percent: u32,
    stage: Stage,
    /// The requests of the measurement in progress.
    measured: Histogram,
    /// The latency without the copy, in nanoseconds; `None` if it is not known.
    baseline: Option<u64>,
    rate: u64,
    /// Whether the rate is still doubled: the latency has not grown too much yet.
    doubling: bool,
}

impl Impact {
    /// The control of a copy that begins now.
    #[must_use]
    pub fn new(now: Time, allowed_percent: u32) -> Self {
        Self {
            allowed_percent,
            stage: Stage::Measuring {
                until: now.plus(MEASURE_FIRST),
            },
            measured: Histogram::default(),
            baseline: None,
            rate: RATE_FIRST,
            doubling: true,
        }
    }

    /// Takes the latencies of the last window. To be called once for each window.
    pub fn observe(&mut self, now: Time, window: &Histogram) {
        match self.stage {
            Stage::Measuring { until } => {
                self.measured = self.measured.with(window);
                if now < until {
                    return;
                }
                if self.measured.total() >= REQUESTS_MIN {
                    self.baseline = self.measured.quantile(QUANTILE);
                }
                self.measured = Histogram::default();
                self.stage = Stage::Copying {
                    until: now.plus(MEASURE_EVERY),
                };
            }
            Stage::Copying { until } => {
                self.adapt(window);
                if now >= until {
                    self.stage = Stage::Measuring {
                        until: now.plus(MEASURE_AGAIN),
                    };
                }
            }
        }
    }

    fn adapt(&mut self, window: &Histogram) {
        let latency = window.quantile(QUANTILE);
        let latency = latency.filter(|_| window.total() >= REQUESTS_MIN);
        let disturbs = match (latency, self.baseline) {
            (Some(latency), Some(baseline)) => {
                let allowed = u128::from(baseline) * u128::from(100 + self.allowed_percent) / 100;
                u128::from(latency) > allowed
            }
            (None, _) | (_, None) => false,
        };
        self.rate = if disturbs {
            self.doubling = false;
            self.rate / 10 * 7
        } else if self.doubling {
            self.rate * 2
        } else {
            self.rate + self.rate / 10
        }
        .clamp(RATE_MIN, RATE_MAX);
    }

    /// How much may be copied in a second, in bytes; 0: unlimited.
    #[must_use]
    pub const fn rate(&self) -> u64 {
        match self.stage {
            Stage::Measuring { .. } => RATE_NOTHING,
            Stage::Copying { .. } if self.rate >= RATE_MAX => 0,
            Stage::Copying { .. } => self.rate,
        }
    }

    /// How many requests the copy may have in flight; 0: unlimited.
    #[must_use]
    pub fn depth(&self) -> u32 {
        match self.rate() {
            0 => 0,
            rate => u32::try_from(rate.div_ceil(RATE_OF_ONE)).unwrap_or(0),
        }
    }

    /// The 99th percentile of the latency without the copy, in nanoseconds; `None` if it is not
    /// known.
    #[must_use]
    pub const fn baseline(&self) -> Option<u64> {
        self.baseline
    }

    /// By how much the latency may grow, in percent.
    #[must_use]
    pub const fn allowed_percent(&self) -> u32 {
        self.allowed_percent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Requests that take a millisecond, and a fifth more for each 20 MiB a second that are copied.
    fn window(rate: u64, requests: u64) -> Histogram {
        let mut window = Histogram::default();
        let disturbed = 1_000_000 + rate * 200_000 / (20 << 20);
        for _ in 0..requests {
            window.note(disturbed);
        }
        window
    }

    fn run(impact: &mut Impact, from: u64, seconds: u64, requests: u64) -> u64 {
        let (mut sum, mut measuring) = (0, 0);
        for second in from..from + seconds {
            let rate = impact.rate();
            measuring += u64::from(rate == RATE_NOTHING);
            sum += rate;
            impact.observe(Time(second * SECOND), &window(rate, requests));
        }
        sum / (seconds - measuring).max(1)
    }

    #[test]
    fn the_copy_is_as_fast_as_the_latency_allows() {
        let mut impact = Impact::new(Time(0), 20);
        assert_eq!(impact.rate(), RATE_NOTHING);
        run(&mut impact, 1, 20, 1000);
        let baseline = impact.baseline().unwrap();
        assert!((1_000_000..1_050_000).contains(&baseline), "{baseline}");
        assert_eq!(impact.depth(), 1);
        let mut last = impact.rate();
        for second in 21..30 {
            run(&mut impact, second, 1, 1000);
            assert!(
                impact.rate() <= last + last / 10,
                "it is found, not doubled"
            );
            last = impact.rate();
        }
        let mean = run(&mut impact, 30, 71, 1000);
        assert!((12 << 20..26 << 20).contains(&mean), "{mean}");
        // Twice as much may be disturbed, and twice as much is copied.
        let mut impact = Impact::new(Time(0), 40);
        run(&mut impact, 1, 20, 1000);
        let more = run(&mut impact, 21, 80, 1000);
        assert!((26 << 20..52 << 20).contains(&more), "{more}");
    }

    #[test]
    fn without_applications_there_is_no_limit_and_with_slow_ones_there_is_an_end() {
        let mut impact = Impact::new(Time(0), 20);
        run(&mut impact, 1, 60, 3);
        assert_eq!(
            (impact.rate(), impact.depth(), impact.baseline()),
            (0, 0, None)
        );
        let mut impact = Impact::new(Time(0), 0);
        run(&mut impact, 1, 4, 1000);
        for second in 5..60 {
            let mut slow = Histogram::default();
            (0..1000).for_each(|_| slow.note(9_000_000));
            impact.observe(Time(second * SECOND), &slow);
        }
        assert_eq!(impact.rate(), RATE_MIN);
    }

    #[test]
    fn it_is_measured_again_from_time_to_time() {
        let mut impact = Impact::new(Time(0), 20);
        run(&mut impact, 1, 10, 1000);
        let nothing = (11..400).filter(|second| {
            impact.observe(Time(second * SECOND), &window(impact.rate(), 1000));
            impact.rate() == RATE_NOTHING
        });
        let nothing = nothing.count();
        assert!((4..12).contains(&nothing), "{nothing} s of 389");
    }
}
