//! Parses and formats times as people write them.

use jiff::civil::{DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, Zoned};

/// Formats a time in UTC, such as `2026-11-21 01:17:05Z`.
#[must_use]
pub fn text(seconds_since_1970: u64) -> String {
    let seconds = i64::try_from(seconds_since_1970).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).map_or_else(
        |_| format!("{seconds_since_1970} s after 1970"),
        |moment| moment.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
    )
}

/// Parses a duration such as `30m` or `1h 30m`, in seconds.
#[must_use]
pub fn seconds(text: &str) -> Option<u64> {
    let time: SignedDuration = text.parse().ok()?;
    u64::try_from(time.as_secs()).ok()
}

/// Parses a time of the day such as `22:00`, in minutes after midnight.
#[must_use]
pub fn minute(text: &str) -> Option<u16> {
    // The parser would accept an offset from UTC and ignore it.
    let plain = |byte: u8| byte.is_ascii_digit() || byte == b':';
    let time: Time = text.parse().ok().filter(|_| text.bytes().all(plain))?;
    let whole = time.second() == 0 && time.subsec_nanosecond() == 0;
    whole.then(|| minutes_of(time))
}

/// The current minute of the day in local time.
#[must_use]
pub fn minute_now() -> u16 {
    minutes_of(Zoned::now().time())
}

fn minutes_of(time: Time) -> u16 {
    u16::from(time.hour().unsigned_abs()) * 60 + u16::from(time.minute().unsigned_abs())
}

/// Parses a time, in milliseconds since 1970: with a zone (`2026-11-21T22:00:00Z`), in local time
/// (`2026-11-21 22:00`), or the next occurrence of a time of the day in local time (`22:00`).
///
/// # Errors
/// `text` is none of these, or before 1970.
pub fn parse(text: &str) -> Result<u64, String> {
    moment(text, &Zoned::now())
        .and_then(|moment| u64::try_from(moment.as_millisecond()).ok())
        .ok_or_else(|| {
            format!(
                "{text:?} is no time such as 2026-11-21T22:00:00Z, \"2026-11-21 22:00\" or 22:00"
            )
        })
}

fn moment(text: &str, now: &Zoned) -> Option<Timestamp> {
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Some(moment);
    }
    if let Ok(time) = text.parse::<Time>() {
        let today = now.with().time(time).build().ok()?;
        let next = match today > *now {
            true => today,
            false => now.tomorrow().ok()?.with().time(time).build().ok()?,
        };
        return Some(next.timestamp());
    }
    let local: DateTime = text.parse().ok()?;
    let zone: TimeZone = now.time_zone().clone();
    Some(local.to_zoned(zone).ok()?.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_utc() {
        assert_eq!(text(0), "1970-01-01 00:00:00Z");
        assert_eq!(text(951_782_400), "2000-02-29 00:00:00Z");
        assert_eq!(text(1_763_687_825), "2025-11-21 01:17:05Z");
        assert_eq!(text(4_107_542_400), "2100-03-01 00:00:00Z");
        assert!(text(u64::MAX).contains("1970"));
    }

    #[test]
    fn a_time_has_a_zone_or_is_that_of_here() {
        let now: Zoned = "2026-11-21T21:30:00+02:00[+02:00]".parse().unwrap();
        let at = |text: &str| moment(text, &now).map(|moment| moment.to_string());
        let is = |text: &str| Some(text.to_owned());
        assert_eq!(at("2026-11-22T01:00:00Z"), is("2026-11-22T01:00:00Z"));
        assert_eq!(at("2026-11-22 01:00:00Z"), is("2026-11-22T01:00:00Z"));
        assert_eq!(at("2026-11-22T01:00:00+01:00"), is("2026-11-22T00:00:00Z"));
        assert_eq!(at("2026-11-22 01:00"), is("2026-11-21T23:00:00Z"));
        assert_eq!(at("22:00"), is("2026-11-21T20:00:00Z"));
        assert_eq!(at("06:15"), is("2026-11-22T04:15:00Z"));
        for wrong in ["", "noon", "25:00", "2026-02-30 10:00"] {
            assert_eq!(at(wrong), None, "{wrong}");
        }
        parse("soon").unwrap_err();
        parse("1969-12-31T00:00:00Z").unwrap_err();
        assert_eq!(parse(&text(1_763_687_825)), Ok(1_763_687_825_000));
    }
}
