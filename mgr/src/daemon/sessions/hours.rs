//! Time limits of a session: copy window, scheduled start, maximum duration.

use std::time::Duration;

use copier::Copier;
use migration_core::pair::{PairState, Verb};
use migration_core::session::{self, SessionDecision};
use migration_proto::manager::{EVERY_SECONDS_MAX, Hours, SessionOptions};

use super::clock::steady_ms;
use super::context::{note, now_ms};
use super::failure::{Answer, Done};
use super::operation::Operation;
use super::schedule::DueAction;
use super::{Busy, Owner};
use crate::moments;
use crate::store::{Change, PairKey, Progress, SessionRow};
use crate::units;

const MINUTES_OF_A_DAY: u16 = 24 * 60;

/// Checks the copy window and the maximum duration. The error is the reason to refuse them.
pub(super) fn check(options: &SessionOptions) -> Result<(), String> {
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
pub(super) fn check_start(at_ms: u64) -> Result<(), String> {
    if at_ms != 0 && at_ms <= now_ms() {
        let at = moments::text(at_ms / 1000);
        return Err(format!("the start time, {at}, has passed"));
    }
    Ok(())
}

/// Describes the copy window.
pub(super) fn text(hours: Hours) -> String {
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

impl Owner {
    /// Starts the sessions whose scheduled start is due.
    pub(super) fn start_due_sessions(&mut self) {
        let now = now_ms();
        let is_due = |row: &SessionRow| {
            let at_ms = row.options.start_at_ms;
            at_ms != 0 && at_ms <= now && row.is_live()
        };
        for row in self.idle_sessions(is_due) {
            let positions = self.positions(&row);
            if session::state(&positions) == Some(PairState::Setup)
                && let SessionDecision::Do(pairs) = session::decide_session(Verb::Start, &positions)
            {
                self.try_automatically(&row, DueAction::start(row.options.start_at_ms, pairs));
            }
        }
    }

    /// Stops the copiers of sessions outside their copy window. The copies continue automatically
    /// when the window opens.
    pub(super) fn keep_hours(&mut self) {
        let minute = moments::minute_now();
        let over = |row: &SessionRow| row.is_live() && !row.options.hours.contains(minute);
        for row in self.idle_sessions(over) {
            let copiers = self.take_copiers(&row);
            if copiers.is_empty() {
                continue;
            }
            if let Some(operation) = self.operation(&row.name, copiers) {
                let busy = vec![Busy::Session(row.name)];
                self.spawn_operation(
                    busy,
                    "the end of its hours",
                    None,
                    operation.stop_outside_hours(),
                );
            }
        }
    }
}

/// Whether one of these running pairs has exceeded the session's maximum duration without reaching
/// sync. `max_seconds` = 0: no maximum.
fn takes_too_long(max_seconds: u64, pairs: impl Iterator<Item = Progress>, now_ms: u64) -> bool {
    let max_ms = max_seconds.saturating_mul(1000);
    let is_late = |progress: Progress| {
        let begun_ms = progress.begun_ms.filter(|_| progress.in_sync_ms.is_none());
        begun_ms.is_some_and(|begun_ms| now_ms.saturating_sub(begun_ms) >= max_ms)
    };
    let mut pairs = pairs;
    max_seconds > 0 && pairs.any(is_late)
}

impl Owner {
    /// The sessions for which `wanted` is true, and on which no operation or cutover is in
    /// progress.
    pub(super) fn idle_sessions(&self, wanted: impl Fn(&SessionRow) -> bool) -> Vec<SessionRow> {
        let is_idle = |row: &&SessionRow| {
            !self.busy.contains_key(&Busy::Session(row.name.clone()))
                && !self.cutovers.is_running(&row.name)
        };
        let rows = self.model.sessions.values();
        rows.filter(|row| wanted(row))
            .filter(is_idle)
            .cloned()
            .collect()
    }

    /// Removes the copiers of a session that copy (not those that compare), so that they can be
    /// stopped.
    fn take_copiers(&mut self, row: &SessionRow) -> Vec<(PairKey, Copier, u64)> {
        let mut copiers = Vec::new();
        for position in 0..row.pairs.len() {
            let key = PairKey {
                session: row.name.clone(),
                position,
            };
            if !self.copies.is_comparing(&key)
                && let Some((copier, copied_bytes)) = self.copies.take(&key)
            {
                copiers.push((key, copier, copied_bytes));
            }
        }
        copiers
    }

    /// Pauses the sessions that have exceeded their maximum duration.
    pub(super) fn pause_overdue_sessions(&mut self) {
        let now = steady_ms();
        let is_late = |row: &SessionRow| {
            let live = row.pairs.iter().filter(|pair| !pair.phase.is_ended());
            let max_seconds = row.options.max_duration_seconds;
            !row.paused && takes_too_long(max_seconds, live.map(|pair| pair.progress), now)
        };
        for row in self.idle_sessions(is_late) {
            let copiers = self.take_copiers(&row);
            if let Some(operation) = self.operation(&row.name, copiers) {
                let busy = vec![Busy::Session(row.name)];
                self.spawn_operation(busy, "the end of its time", None, operation.time_is_up());
            }
        }
    }
}

impl Operation {
    /// Pauses the session and removes its maximum duration, so that the limit acts only once.
    async fn time_is_up(mut self) -> Answer {
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
    async fn stop_outside_hours(mut self) -> Answer {
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
