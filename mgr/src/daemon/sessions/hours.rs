//! Time limits of a session: copy window, scheduled start, maximum duration.

use std::time::Duration;

use migration_proto::manager::{EVERY_SECONDS_MAX, Hours, SessionOptions};

use super::operation::Operation;
use crate::daemon::context::{note, now_ms};
use crate::daemon::failure::{Answer, Done};
use crate::moments;
use crate::store::{Change, Progress};
use crate::units;

const MINUTES_OF_A_DAY: u16 = 24 * 60;

/// Checks the copy window and the maximum duration. The error is the reason to refuse them.
pub(crate) fn check(options: &SessionOptions) -> Result<(), String> {
    let Hours {
        from_minute,
        to_minute,
    } = options.hours;
    if from_minute.max(to_minute) >= MINUTES_OF_A_DAY {
        return Err(format!(
            "the hours are from minute {from_minute} to minute {to_minute}, and a day has {MINUTES_OF_A_DAY}"
        ));
    }
    if options.max_duration_seconds > EVERY_SECONDS_MAX {
        return Err(format!(
            "--max-duration of {} s is more than a year",
            options.max_duration_seconds
        ));
    }
    Ok(())
}

/// Checks the time of a scheduled start, in milliseconds since 1970 (0 = none). The error is the
/// reason to refuse it.
pub(crate) fn check_start(at_ms: u64) -> Result<(), String> {
    if at_ms != 0 && at_ms <= now_ms() {
        let at = moments::text(at_ms / 1000);
        return Err(format!("the start time, {at}, has passed"));
    }
    Ok(())
}

/// Describes the copy window.
pub(crate) fn text(hours: Hours) -> String {
    let clock = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
    match hours.is_always() {
        true => "it is copied at any hour".to_owned(),
        false => format!(
            "it is copied from {} to {} only",
            clock(hours.from_minute),
            clock(hours.to_minute)
        ),
    }
}

/// Whether one of these running pairs has exceeded the session's maximum duration without reaching
/// sync. `max_seconds` = 0: no maximum.
pub(crate) fn takes_too_long(
    max_seconds: u64,
    pairs: impl Iterator<Item = Progress>,
    now_ms: u64,
) -> bool {
    let max_ms = max_seconds.saturating_mul(1000);
    let is_late = |progress: Progress| {
        let begun_ms = progress.begun_ms.filter(|_| progress.in_sync_ms.is_none());
        begun_ms.is_some_and(|begun_ms| now_ms.saturating_sub(begun_ms) >= max_ms)
    };
    let mut pairs = pairs;
    max_seconds > 0 && pairs.any(is_late)
}

impl Operation {
    /// Pauses the session and removes its maximum duration, so that the limit acts only once.
    pub(crate) async fn time_is_up(mut self) -> Answer {
        let mut changes = self.stop_copiers().await?;
        let name = &self.session.name;
        let took = Duration::from_secs(self.session.options.max_duration_seconds);
        let what = format!(
            "paused: it is not in sync after {}, its --max-duration; `shunt resume {name}` continues",
            units::duration(took)
        );
        let options = SessionOptions {
            max_duration_seconds: 0,
            ..self.session.options.clone()
        };
        changes.push(Change::SetPaused(name.clone(), true));
        changes.push(Change::SetOptions(name.clone(), options));
        changes.push(note(Some(name), None, what));
        self.record(changes).await?;
        Ok(Done::changed(Vec::new()))
    }

    /// Stops the copiers until the copy window of the session opens again.
    pub(crate) async fn stop_outside_hours(mut self) -> Answer {
        let mut changes = self.stop_copiers().await?;
        let what = format!("its hours are over: {}", text(self.session.options.hours));
        changes.push(note(Some(&self.session.name), None, what));
        self.record(changes).await?;
        Ok(Done::changed(Vec::new()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_go_over_midnight_and_equal_ones_are_always() {
        let hours = |from_minute, to_minute| Hours {
            from_minute,
            to_minute,
        };
        let night = hours(22 * 60, 6 * 60);
        assert!(night.contains(23 * 60) && night.contains(0) && night.contains(22 * 60));
        assert!(!night.contains(6 * 60) && !night.contains(12 * 60));
        let day = hours(8 * 60, 18 * 60);
        assert!(day.contains(8 * 60) && !day.contains(18 * 60) && !day.contains(0));
        assert!(Hours::default().contains(0) && Hours::default().contains(1439));
        let options = SessionOptions {
            hours: hours(0, 1440),
            ..SessionOptions::default()
        };
        check(&options).unwrap_err();
        check_start(1).unwrap_err();
        check_start(0).unwrap();
        check_start(u64::MAX).unwrap();
    }

    #[test]
    fn a_session_takes_too_long_until_it_is_in_sync_only() {
        let begun = Progress {
            begun_ms: Some(1000),
            ..Progress::default()
        };
        let in_sync = Progress {
            in_sync_ms: Some(2000),
            ..begun
        };
        let late = |max_seconds, courses: &[Progress]| {
            [3999, 4000].map(|now| takes_too_long(max_seconds, courses.iter().copied(), now))
        };
        assert_eq!(late(3, &[in_sync, begun]), [false, true]);
        assert_eq!(late(0, &[begun]), [false, false]);
        assert_eq!(late(3, &[in_sync, Progress::default()]), [false, false]);
    }
}
