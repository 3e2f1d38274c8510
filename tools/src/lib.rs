//! Code that the tools share: runs of indexes, sizes for people, output.
//!
//! Code that only one tool needs is beside that tool, in `src/bin`.

use std::{
    fmt,
    io::{self, Write},
};

/// The schema number of every record that `--json` prints.
pub const JSON_SCHEMA: u32 = 1;

/// A run of consecutive indexes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The first index.
    pub first: u64,
    /// The number of indexes; at least 1.
    pub count: u64,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count {
            1 => write!(f, "{}", self.first),
            count => write!(f, "{}-{}", self.first, self.first + count - 1),
        }
    }
}

/// Collects ascending indexes into runs; counts all runs and keeps the first few.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runs {
    kept: Vec<Run>,
    kept_max: usize,
    last: Option<Run>,
    indexes: u64,
    runs: u64,
}

impl Runs {
    /// An empty collection that keeps up to `kept_max` runs.
    #[must_use]
    pub const fn new(kept_max: usize) -> Self {
        Self {
            kept: Vec::new(),
            kept_max,
            last: None,
            indexes: 0,
            runs: 0,
        }
    }

    /// Adds an index, which must be larger than all indexes before.
    pub fn add(&mut self, index: u64) {
        self.indexes += 1;
        match &mut self.last {
            Some(run) if run.first + run.count == index => run.count += 1,
            _ => {
                self.runs += 1;
                self.last = Some(Run {
                    first: index,
                    count: 1,
                });
            }
        }
        let (Some(run), Ok(number)) = (self.last, usize::try_from(self.runs)) else {
            return;
        };
        match self.kept.get_mut(number - 1) {
            Some(kept) => *kept = run,
            None if number <= self.kept_max => self.kept.push(run),
            None => {}
        }
    }

    /// The number of indexes that were added.
    #[must_use]
    pub const fn indexes(&self) -> u64 {
        self.indexes
    }

    /// The runs that were kept, ascending.
    #[must_use]
    pub fn kept(&self) -> &[Run] {
        &self.kept
    }

    /// The number of runs that were not kept.
    #[must_use]
    pub const fn left_off(&self) -> u64 {
        self.runs - self.kept.len() as u64
    }
}

impl fmt::Display for Runs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, run) in self.kept.iter().enumerate() {
            write!(f, "{}{run}", if index == 0 { "" } else { ", " })?;
        }
        match self.left_off() {
            0 => Ok(()),
            more => write!(f, " and {more} more ranges"),
        }
    }
}

/// Formats a number of bytes in the largest binary unit that fits, with one decimal if it is not a
/// whole number of them.
#[must_use]
pub fn size_text(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = None;
    let mut scale = 1_u64;
    for name in UNITS {
        if bytes / 1024 >= scale {
            scale *= 1024;
            unit = Some(name);
        }
    }
    match unit {
        None => format!("{bytes} bytes"),
        Some(unit) if bytes.is_multiple_of(scale) => format!("{} {unit}", bytes / scale),
        Some(unit) => format!("{:.1} {unit}", bytes as f64 / scale as f64),
    }
}

/// Parses a number of bytes: `4096`, `64K`, `10M`, `2G`, `1T` (powers of 1024).
///
/// # Errors
/// A message that describes the mistake.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, scale) = match text.char_indices().last() {
        Some((end, 'K' | 'k')) => (&text[..end], 1 << 10),
        Some((end, 'M' | 'm')) => (&text[..end], 1 << 20),
        Some((end, 'G' | 'g')) => (&text[..end], 1 << 30),
        Some((end, 'T' | 't')) => (&text[..end], 1 << 40),
        _ => (text, 1_u64),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "not a number of bytes, such as 4096, 64K or 2G")?;
    match number.checked_mul(scale) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        Some(_) | None => Err("must be from 1 byte to 16 EiB".to_owned()),
    }
}

/// Writes data to standard output. A reader that has ended (`| head`) is not an error.
///
/// # Errors
/// Any other error of the write.
pub fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(kept_max: usize, indexes: &[u64]) -> Runs {
        let mut runs = Runs::new(kept_max);
        indexes.iter().for_each(|index| runs.add(*index));
        runs
    }

    #[test]
    fn neighbours_become_one_run() {
        let some = runs(9, &[0, 1, 2, 5, 7, 8]);
        assert_eq!(some.to_string(), "0-2, 5, 7-8");
        assert_eq!((some.indexes(), some.left_off()), (6, 0));
        assert_eq!(runs(9, &[]).to_string(), "");
    }

    #[test]
    fn runs_above_the_limit_are_counted_only() {
        let some = runs(2, &[1, 3, 4, 6, 7, 9]);
        assert_eq!(some.to_string(), "1, 3-4 and 2 more ranges");
        assert_eq!(some.indexes(), 6);
        assert_eq!(runs(0, &[1, 3]).left_off(), 2);
    }

    #[test]
    fn sizes_are_read_and_written() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1 << 20, "1 MiB"),
            (1536, "1.5 KiB"),
            (5 << 40, "5 TiB"),
        ] {
            assert_eq!(size_text(bytes), text);
        }
        assert_eq!(size_text(u64::MAX), "16384.0 PiB");
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("64K"), Ok(65536));
        assert_eq!(parse_size("2G"), Ok(2 << 30));
        for wrong in ["", "K", "0", "-1", "1.5G", "99999999T", "4096é", "1KB"] {
            parse_size(wrong).unwrap_err();
        }
    }
}
