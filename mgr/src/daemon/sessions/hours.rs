//! Time limits of a session: copy window, scheduled start, maximum duration.
//! [`migration_core::hours`] and [`migration_core::schedule`] decide; this module checks what the
//! operator asks for, and pauses sessions.

use std::time::Duration;

use migration_core::hours::{self, FirstCopy, MINUTES_OF_A_DAY};
use migration_proto::manager::{EVERY_SECONDS_MAX, HistoryEvent, Hours, SessionOptions};

use super::operation::Operation;
use crate::daemon::clock::time;
use crate::daemon::context::{note, now_ms};
use crate::daemon::failure::{Answer, Done};
use crate::moments;
use crate::store::{Change, SessionRow};

/// Checks the copy window and the maximum duration. The error is the reason to refuse them.
pub(crate) fn check(options: &SessionOptions) -> Result<(), String> {
    let Hours {
        from_minute,
        to_minute,
    } = options.hours;
    if !hours::Hours::from(options.hours).are_valid() {
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

/// Whether a session has exceeded its maximum duration without reaching sync. `now_ms`: the current
/// time of the steady clock.
pub(crate) fn takes_too_long(row: &SessionRow, now_ms: u64) -> bool {
    let pairs = row.pairs.iter().map(|pair| FirstCopy {
        phase: pair.phase,
        begun: pair.progress.begun_ms.map(time),
        in_sync: pair.progress.in_sync_ms.is_some(),
    });
    let max = Duration::from_secs(row.options.max_duration_seconds);
    hours::takes_too_long(max, pairs, time(now_ms))
}

impl Operation {
    /// Pauses the session and removes its maximum duration, so that the limit acts only once.
    pub(crate) async fn time_is_up(mut self) -> Answer {
        let mut changes = self.stop_copiers().await?;
        let name = &self.session.name;
        let event = HistoryEvent::MaxDurationOver {
            max_duration_seconds: self.session.options.max_duration_seconds,
        };
        let options = SessionOptions {
            max_duration_seconds: 0,
            ..self.session.options.clone()
        };
        changes.push(Change::SetPaused(name.clone(), true));
        changes.push(Change::SetOptions(name.clone(), options));
        changes.push(note(Some(name), None, event));
        self.record(changes).await?;
        Ok(Done::changed(Vec::new()))
    }

    /// Stops the copiers until the copy window of the session opens again.
    pub(crate) async fn stop_outside_hours(mut self) -> Answer {
        let mut changes = self.stop_copiers().await?;
        let Hours {
            from_minute,
            to_minute,
        } = self.session.options.hours;
        let event = HistoryEvent::HoursOver {
            from_minute,
            to_minute,
        };
        changes.push(note(Some(&self.session.name), None, event));
        self.record(changes).await?;
        Ok(Done::changed(Vec::new()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_that_no_day_has_and_a_start_that_has_passed_are_refused() {
        let options = |to_minute| SessionOptions {
            hours: Hours {
                from_minute: 0,
                to_minute,
            },
            ..SessionOptions::default()
        };
        check(&options(1439)).unwrap();
        check(&options(1440)).unwrap_err();
        check_start(1).unwrap_err();
        check_start(0).unwrap();
        check_start(u64::MAX).unwrap();
    }
}
