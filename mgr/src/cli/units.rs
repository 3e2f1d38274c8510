//! Numbers and text as people read them.

use std::time::Duration;

use indicatif::HumanBytes;

/// Bytes with an IEC prefix, such as `1.50 GiB`.
#[must_use]
pub fn bytes(count: u64) -> String {
    HumanBytes(count).to_string()
}

/// A rate in bytes a second, such as `120.00 MiB/s`.
#[must_use]
pub fn rate(bytes_per_second: u64) -> String {
    format!("{}/s", bytes(bytes_per_second))
}

/// A duration with its two largest units, such as `2h 05m` or `12s`.
#[must_use]
pub fn duration(length: Duration) -> String {
    let seconds = length.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    if days > 0 {
        format!("{days}d {:02}h", hours % 24)
    } else if hours > 0 {
        format!("{hours}h {:02}m", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes}m {:02}s", seconds % 60)
    } else {
        format!("{seconds}s")
    }
}

/// A short pause, such as `12.3 ms`.
#[must_use]
pub fn pause(microseconds: u64) -> String {
    format!("{:.1} ms", microseconds as f64 / 1000.0)
}

/// How much of `total` is done when `left` is not, in percent, rounded down: 100 means all.
#[must_use]
pub fn percent_done(total: u64, left: u64) -> u8 {
    let done = u128::from(total.saturating_sub(left));
    if total == 0 {
        return if left == 0 { 100 } else { 0 };
    }
    u8::try_from(done * 100 / u128::from(total)).expect("done is at most total")
}

/// A bar of `width` characters.
#[must_use]
pub fn bar(percent: u8, width: usize) -> String {
    let full = width * usize::from(percent.min(100)) / 100;
    format!("[{}{}]", "#".repeat(full), "-".repeat(width - full))
}

/// A moment in UTC, such as `2026-11-21 01:17:05Z`.
#[must_use]
pub fn moment(seconds_since_1970: u64) -> String {
    let (days, of_day) = (seconds_since_1970 / 86_400, seconds_since_1970 % 86_400);
    let (year, month, day) = civil_date(days);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

/// The date of a day counted from 1970-01-01 (Howard Hinnant, "chrono-compatible low-level date
/// algorithms", `civil_from_days`).
fn civil_date(days_since_1970: u64) -> (u64, u64, u64) {
    let days = days_since_1970 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

/// Text from elsewhere, with its control characters spelt out: it cannot move the cursor.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            safe.extend(character.escape_default());
        } else {
            safe.push(character);
        }
    }
    safe
}

/// Rows with aligned columns; the first row is the heading. No space at the end of a line.
#[must_use]
pub fn table(rows: &[Vec<String>], indent: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = " ".repeat(indent);
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_iec() {
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(1 << 20), "1.00 MiB");
        assert_eq!(bytes(3 << 29), "1.50 GiB");
        assert_eq!(rate(1 << 20), "1.00 MiB/s");
    }

    #[test]
    fn durations_have_two_units() {
        let text = |seconds| duration(Duration::from_secs(seconds));
        assert_eq!(text(0), "0s");
        assert_eq!(text(59), "59s");
        assert_eq!(text(200), "3m 20s");
        assert_eq!(text(7500), "2h 05m");
        assert_eq!(text(90_000), "1d 01h");
    }

    #[test]
    fn only_all_is_a_hundred_percent() {
        assert_eq!(percent_done(1000, 1), 99);
        assert_eq!(percent_done(1000, 0), 100);
        assert_eq!(percent_done(u64::MAX, u64::MAX), 0);
        assert_eq!(percent_done(0, 0), 100);
        assert_eq!(percent_done(10, 11), 0);
    }

    #[test]
    fn moments_are_utc() {
        assert_eq!(moment(0), "1970-01-01 00:00:00Z");
        assert_eq!(moment(951_782_400), "2000-02-29 00:00:00Z");
        assert_eq!(moment(1_763_687_825), "2025-11-21 01:17:05Z");
        assert_eq!(moment(4_107_542_399), "2100-02-28 23:59:59Z");
        assert_eq!(moment(4_107_542_400), "2100-03-01 00:00:00Z");
    }

    #[test]
    fn tables_are_aligned() {
        let rows = [
            vec!["A".to_owned(), "B".to_owned()],
            vec!["long".to_owned(), String::new()],
        ];
        assert_eq!(table(&rows, 1), " A     B\n long\n");
    }
}
