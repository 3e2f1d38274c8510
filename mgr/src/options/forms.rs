//! The forms of the values of session options: how a value is read from the command line and from a
//! session file, and how it is printed.
//!
//! On the command line every value is text, and clap calls the parsers. In a session file a value
//! is a flag, a number, or a text that the same parsers read.

use std::fmt::Display;

use migration_proto::manager::{
    CutoverAction, EVERY_SECONDS_MAX, Hours, PRIORITY_MAX, RetireHow, SessionMode, SwitchPairs,
    SwitchPolicy, VerifyPolicy,
};
use migration_proto::target::OnAuthoritativeFailure;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::moments;

/// The word for a rate without a limit.
const UNLIMITED: &str = "unlimited";

/// The word for no limit of the impact that the copy has on applications.
const NO_IMPACT_LIMIT: &str = "none";

/// The word for a copy that accepts no unreadable part of a source.
const NOTHING_ACCEPTED: &str = "none";

/// The lowest rate that can be given, in bytes a second.
const RATE_MIN: u64 = 1 << 10;

/// A value in a session file, as it is printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum FileValue {
    /// A flag.
    Flag(bool),
    /// A number without a unit.
    Number(u64),
    /// A word, or a number with a unit.
    Text(String),
}

/// The form of an option in a session file.
pub(super) struct Form<T> {
    /// Reads the value. The error is the reason to refuse it.
    pub(super) read: fn(toml::Value) -> Result<T, String>,
    /// The value that `read` reads; `None`: the default, which the file does not name.
    pub(super) write: fn(&T) -> Option<FileValue>,
}

/// A form that serde reads and prints: a flag, or one of the words of an enumeration.
macro_rules! plain {
    ($name:ident, $value:ty, $write:expr) => {
        pub(super) const $name: Form<$value> = Form {
            read: plain::<$value>,
            write: $write,
        };
    };
}

plain!(FLAG, bool, |flag| Some(FileValue::Flag(*flag)));
plain!(RARE_FLAG, bool, |flag| flag
    .then_some(FileValue::Flag(true)));
plain!(VERIFY, VerifyPolicy, |value| Some(word(value)));
plain!(ON_FAILURE, OnAuthoritativeFailure, |value| Some(word(
    value
)));
plain!(MODE, SessionMode, |value| Some(word(value)));
plain!(SWITCH_PAIRS, SwitchPairs, |value| Some(word(value)));
plain!(CUTOVER_ACTION, CutoverAction, |value| Some(word(value)));
plain!(SECONDS, u64, |seconds| Some(FileValue::Number(*seconds)));

pub(super) const RETIRE: Form<Option<RetireHow>> = Form {
    read: |value| plain(value).map(Some),
    write: |how| how.as_ref().map(word),
};

pub(super) const PRIORITY: Form<u8> = Form {
    read: |value| {
        let priority = plain(value)?;
        match priority <= PRIORITY_MAX {
            true => Ok(priority),
            false => Err(format!("{priority} is not within 0 to {PRIORITY_MAX}")),
        }
    },
    write: |priority| Some(FileValue::Number((*priority).into())),
};

pub(super) const ATTEMPTS: Form<u32> = Form {
    read: |value| {
        let attempts = plain(value)?;
        match attempts > 0 {
            true => Ok(attempts),
            false => Err("there is at least 1 attempt".to_owned()),
        }
    },
    write: |attempts| Some(FileValue::Number((*attempts).into())),
};

pub(super) const RATE: Form<u64> = Form {
    read: |value| rate(&text(value)?),
    write: |rate| written(*rate == 0, UNLIMITED, rate),
};

pub(super) const FLOOR: Form<u64> = Form {
    read: |value| floor(&text(value)?),
    write: RATE.write,
};

pub(super) const SWITCH: Form<SwitchPolicy> = Form {
    read: |value| switch_policy(&text(value)?),
    write: |policy| Some(FileValue::Text(switch_policy_text(policy))),
};

pub(super) const PERCENT: Form<u32> = Form {
    read: |value| percent(&text(value)?),
    write: |percent| written(*percent == 0, NO_IMPACT_LIMIT, format_args!("{percent}%")),
};

pub(super) const ACCEPTED: Form<u64> = Form {
    read: |value| accepted(&text(value)?),
    write: |bytes| (*bytes > 0).then(|| FileValue::Text(bytes.to_string())),
};

pub(super) const INTERVAL: Form<u64> = Form {
    read: |value| every(&text(value)?),
    write: |seconds| (*seconds > 0).then(|| FileValue::Text(format!("{seconds}s"))),
};

pub(super) const HOURS: Form<Hours> = Form {
    read: |value| hours(&text(value)?),
    write: |hours| (!hours.is_always()).then(|| FileValue::Text(hours_text(*hours))),
};

pub(super) const START_AT: Form<u64> = Form {
    read: |value| start_at(&text(value)?),
    write: |at_ms| (*at_ms > 0).then(|| FileValue::Text(moments::text(at_ms / 1000))),
};

fn plain<T: DeserializeOwned>(value: toml::Value) -> Result<T, String> {
    // From its text: a `toml::Value` that is a date would be taken for a string.
    let text = value.to_string();
    toml::de::ValueDeserializer::parse(&text)
        .and_then(T::deserialize)
        .map_err(|error| error.message().to_owned())
}

fn text(value: toml::Value) -> Result<String, String> {
    plain(value)
}

/// The word of a value of an enumeration.
fn word<T: Serialize>(value: &T) -> FileValue {
    match toml::Value::try_from(value) {
        Ok(toml::Value::String(word)) => FileValue::Text(word),
        Ok(_) | Err(_) => unreachable!("an enumeration without fields is a word"),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "`Form::write` requires it")]
fn written(is_zero: bool, zero: &str, value: impl Display) -> Option<FileValue> {
    Some(FileValue::Text(match is_zero {
        true => zero.to_owned(),
        false => value.to_string(),
    }))
}

/// Reads a rate in bytes a second; 0 stands for unlimited.
pub(crate) fn rate(text: &str) -> Result<u64, String> {
    if text == UNLIMITED {
        return Ok(0);
    }
    let wrong = "not a number of bytes such as 100MiB, at least 1KiB, or unlimited";
    let bytes = parse_size::parse_size(text).map_err(|_| wrong.to_owned())?;
    if bytes < RATE_MIN {
        return Err(wrong.to_owned());
    }
    Ok(bytes)
}

/// Reads the lowest rate of a throttle, in bytes a second; it cannot be unlimited.
pub(crate) fn floor(text: &str) -> Result<u64, String> {
    match rate(text) {
        Ok(0) | Err(_) => Err("not a number of bytes such as 4MiB, at least 1KiB".to_owned()),
        floor => floor,
    }
}

/// Reads how many bytes of a source may be unreadable; 0 stands for none.
pub(crate) fn accepted(text: &str) -> Result<u64, String> {
    if text == NOTHING_ACCEPTED {
        return Ok(0);
    }
    parse_size::parse_size(text)
        .map_err(|_| "not a number of bytes such as 1MiB, or none".to_owned())
}

/// Reads a share such as `20%`; 0 stands for none.
pub(crate) fn percent(text: &str) -> Result<u32, String> {
    if text == NO_IMPACT_LIMIT {
        return Ok(0);
    }
    let number = text.trim_end_matches('%').trim_end().parse();
    let wrong = "not a share such as 20%, from 1% to 1000%, or none";
    number
        .ok()
        .filter(|percent| (1..=1000).contains(percent))
        .ok_or_else(|| wrong.to_owned())
}

/// Reads when a session is switched.
pub(crate) fn switch_policy(text: &str) -> Result<SwitchPolicy, String> {
    match text.split_once(':') {
        None if text == "manual" => Ok(SwitchPolicy::Manual),
        None if text == "when-synced" => Ok(SwitchPolicy::WhenSynced),
        Some(("at", time)) => moments::parse(time).map(SwitchPolicy::At),
        Some(("event", name)) if !name.is_empty() => Ok(SwitchPolicy::OnEvent(name.to_owned())),
        _ => Err("not manual, when-synced, at:TIME or event:NAME".to_owned()),
    }
}

/// The text that [`switch_policy`] reads.
pub(crate) fn switch_policy_text(policy: &SwitchPolicy) -> String {
    match policy {
        SwitchPolicy::Manual => "manual".to_owned(),
        SwitchPolicy::WhenSynced => "when-synced".to_owned(),
        SwitchPolicy::At(at_ms) => format!("at:{}", moments::text(at_ms / 1000)),
        SwitchPolicy::OnEvent(event) => format!("event:{event}"),
    }
}

/// Reads an interval such as `1h`, in seconds; 0: never.
pub(crate) fn every(text: &str) -> Result<u64, String> {
    match text {
        "never" => Ok(0),
        _ => moments::seconds(text)
            .filter(|seconds| (1..=EVERY_SECONDS_MAX).contains(seconds))
            .ok_or_else(|| "not never, or a time such as 30m or 1h, up to a year".to_owned()),
    }
}

/// Reads hours of a day, such as `22:00-06:00`.
pub(crate) fn hours(text: &str) -> Result<Hours, String> {
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
pub(crate) fn hours_text(hours: Hours) -> String {
    let clock = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
    match hours.is_always() {
        true => "always".to_owned(),
        false => format!("{}-{}", clock(hours.from_minute), clock(hours.to_minute)),
    }
}

/// Reads a time to start, in milliseconds since 1970; 0: none.
pub(crate) fn start_at(text: &str) -> Result<u64, String> {
    match text {
        "by-hand" => Ok(0),
        _ => moments::parse(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_has_a_unit_and_is_not_nothing() {
        assert_eq!(rate("100MiB"), Ok(100 << 20));
        assert_eq!(rate("5 MB"), Ok(5_000_000));
        assert_eq!(rate("65536"), Ok(65_536));
        assert_eq!(rate("unlimited"), Ok(0));
        for wrong in ["0", "1", "-1MiB", "fast", "", "1Xi"] {
            rate(wrong).unwrap_err();
        }
    }

    #[test]
    fn a_policy_is_read_as_it_is_shown() {
        for text in [
            "manual",
            "when-synced",
            "event:backup-done",
            "at:2030-01-02 03:04:05Z",
        ] {
            let policy = switch_policy(text).unwrap();
            assert_eq!(switch_policy_text(&policy), text);
        }
        for wrong in ["", "at", "at:", "at:soon", "event:", "later", "manual:x"] {
            switch_policy(wrong).unwrap_err();
        }
    }

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
