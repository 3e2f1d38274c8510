//! Formats numbers and text for people.

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

/// The part of `total` that is done if `left` is not, in percent, rounded down: 100 means all.
#[must_use]
pub fn percent_done(total: u64, left: u64) -> u8 {
    let done = u128::from(total.saturating_sub(left));
    if total == 0 {
        return if left == 0 { 100 } else { 0 };
    }
    u8::try_from(done * 100 / u128::from(total)).expect("done is at most total")
}

/// A progress bar with `width` characters between its brackets.
#[must_use]
pub fn bar(percent: u8, width: usize) -> String {
    let full = width * usize::from(percent.min(100)) / 100;
    format!("[{}{}]", "#".repeat(full), "-".repeat(width - full))
}

/// Escapes the control characters of text from elsewhere, so that it cannot move the cursor.
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

/// Formats rows as a table with aligned columns, indented by `indent` spaces; no line ends with a
/// space.
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
    fn tables_are_aligned() {
        let rows = [
            vec!["A".to_owned(), "B".to_owned()],
            vec!["long".to_owned(), String::new()],
        ];
        assert_eq!(table(&rows, 1), " A     B\n long\n");
    }
}
