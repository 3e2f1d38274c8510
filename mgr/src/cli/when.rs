//! The times of a session: options of the command line, and the same values in a session file.

use clap::Args;
use migration_proto::manager::{EVERY_SECONDS_MAX, Hours, SwitchPairs};

use crate::moments;

/// Options for the times of a session: start, hours of the copy, limit of its duration, the
/// interval of splits, and which pairs are switched together.
#[derive(Debug, Clone, Args)]
pub struct ScheduleOptions {
    /// With --mode copy: interval between copies, such as 1h, or never [default: never]
    #[arg(long, requires = "session", value_name = "TIME", value_parser = every)]
    pub every: Option<u64>,
    /// Copy only within these hours, in local time, such as 22:00-06:00, or always
    /// [default: always]
    #[arg(long, requires = "session", value_name = "FROM-TO", value_parser = hours)]
    pub window_hours: Option<Hours>,
    /// Start the session automatically at this time, such as 22:00 or 2026-11-21T22:00:00Z, or
    /// by-hand [default: by-hand]
    #[arg(long, requires = "session", value_name = "TIME", value_parser = start_at)]
    pub start_at: Option<u64>,
    /// Pause the session if it is not in sync within this time of its start, such as 8h, or never
    /// [default: never]
    #[arg(long, requires = "session", value_name = "TIME", value_parser = every)]
    pub max_duration: Option<u64>,
    /// For an automatic switch: all pairs together, or each as soon as it is in sync
    /// [default: together]
    #[arg(long, requires = "session", value_name = "WHICH", value_enum)]
    pub switch_pairs: Option<SwitchScope>,
}

/// Which pairs an automatic switch switches together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum SwitchScope {
    /// All pairs, or none
    Together,
    /// Each pair alone, as soon as it is in sync
    Each,
}

impl From<SwitchScope> for SwitchPairs {
    fn from(which: SwitchScope) -> Self {
        match which {
            SwitchScope::Together => Self::Together,
            SwitchScope::Each => Self::Each,
        }
    }
}

/// Reads an interval such as `1h`, in seconds; 0: never.
pub(super) fn every(text: &str) -> Result<u64, String> {
    match text {
        "never" => Ok(0),
        _ => moments::seconds(text)
            .filter(|seconds| (1..=EVERY_SECONDS_MAX).contains(seconds))
            .ok_or_else(|| "not never, or a time such as 30m or 1h, up to a year".to_owned()),
    }
}

/// Reads hours of a day, such as `22:00-06:00`.
pub(super) fn hours(text: &str) -> Result<Hours, String> {
    if text == "always" {
        return Ok(Hours::default());
    }
    let (from, to) = text.split_once('-').unwrap_or_default();
    let hours = moments::minute(from)
        .zip(moments::minute(to))
        .map(|(from_minute, to_minute)| Hours {
            from_minute,
            to_minute,
        });
    hours
        .filter(|hours| !hours.is_always())
        .ok_or_else(|| "not always, or two different times such as 22:00-06:00".to_owned())
}

/// The text that [`hours`] reads.
pub(super) fn hours_text(hours: Hours) -> String {
    let clock = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
    match hours.is_always() {
        true => "always".to_owned(),
        false => format!("{}-{}", clock(hours.from_minute), clock(hours.to_minute)),
    }
}

/// Reads a time to start, in milliseconds since 1970; 0: none.
pub(super) fn start_at(text: &str) -> Result<u64, String> {
    match text {
        "by-hand" => Ok(0),
        _ => moments::parse(text),
    }
}

/// The text that [`start_at`] reads.
pub(super) fn start_at_text(at_ms: u64) -> String {
    match at_ms {
        0 => "by-hand".to_owned(),
        _ => moments::text(at_ms / 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_between_copies_are_written_as_people_do() {
        for (text, seconds) in [("never", 0), ("90s", 90), ("1h", 3600), ("1h 30m", 5400)] {
            assert_eq!(every(text), Ok(seconds), "{text}");
        }
        for wrong in ["", "0s", "-1h", "1h ago", "soon", "400d", "1.5"] {
            every(wrong).unwrap_err();
        }
    }

    #[test]
    fn hours_are_two_times_of_a_day() {
        for text in ["22:00-06:00", "00:00-12:30", "always"] {
            assert_eq!(hours_text(hours(text).unwrap()), text);
        }
        for wrong in [
            "",
            "22:00",
            "22:00-22:00",
            "25:00-06:00",
            "22:00-06:00-07:00",
            "-",
        ] {
            hours(wrong).unwrap_err();
        }
    }
}
