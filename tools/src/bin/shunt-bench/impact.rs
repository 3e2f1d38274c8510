//! The effect of a copy on an application: its latency without a copy, with a copy at full speed,
//! and with a copy that `--max-latency-impact` limits.
//!
//! The application (fio) sends requests at a fixed rate, as applications do, and not as many as
//! possible: the measurement is how long it waits, not how much throughput is left for it.

use std::{fs, path::Path, thread, time::Duration};

use anyhow::Context;
use serde_json::{Value, json};

use crate::{
    disks::Disks,
    process::{Until, run, say},
    shunt::{Daemon, Volume},
};

/// How long a limited copy may measure and then take to find its rate.
const SETTLE: Duration = Duration::from_secs(15);
/// The application's reads and writes in a second, as an option of fio.
const RATE: &str = "--rate_iops=150,150";

/// The copy during a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copy {
    None,
    Full,
    Bounded,
}

impl Copy {
    const ALL: [Self; 3] = [Self::None, Self::Full, Self::Bounded];

    const fn name(self) -> &'static str {
        match self {
            Self::None => "no copy",
            Self::Full => "copy at full speed",
            Self::Bounded => "bounded copy",
        }
    }
}

/// The latency of the application, and the rate of the copy at the same time.
#[derive(Debug, Clone, Copy)]
struct Measured {
    copy: Copy,
    median_us: f64,
    p99_us: f64,
    copied_bytes_per_second: f64,
}

/// Measures `rounds` rounds; returns the result as text or as JSON lines.
pub(crate) fn measure(
    disks: &Disks,
    daemon: &Daemon,
    work: &Path,
    percent: u32,
    (rounds, seconds): (u32, u64),
    as_json: bool,
) -> anyhow::Result<String> {
    let mut volume = daemon.attach(&disks.source)?;
    let mut all = Vec::new();
    for round in 1..=rounds {
        for copy in Copy::ALL {
            say(&format!("round {round} of {rounds}: {}", copy.name()));
            all.push(one(&mut volume, disks, work, copy, percent, seconds)?);
        }
    }
    volume.take_away()?;
    Ok(match as_json {
        true => all.iter().map(|measured| line(measured) + "\n").collect(),
        false => table(&all, percent),
    })
}

fn one(
    volume: &mut Volume<'_>,
    disks: &Disks,
    work: &Path,
    copy: Copy,
    percent: u32,
    seconds: u64,
) -> anyhow::Result<Measured> {
    let bound = format!("{percent}%");
    match copy {
        Copy::None => {}
        Copy::Full => volume.begin_copy(&disks.target, &[])?,
        Copy::Bounded => volume.begin_copy(&disks.target, &["--max-latency-impact", &bound])?,
    }
    if copy == Copy::Bounded {
        // The copy must find its rate under the same load as in the measurement.
        application(&volume.device, work, SETTLE.as_secs())?;
    } else {
        thread::sleep(Duration::from_secs(1));
    }
    let before = volume.copied_bytes(copy != Copy::None)?;
    let [median_us, p99_us] = application(&volume.device, work, seconds)?;
    let after = volume.copied_bytes(copy != Copy::None)?;
    if copy != Copy::None {
        volume
            .end_copy()
            .context("the copy must outlast the measurement: larger disks, or fewer --seconds")?;
    }
    Ok(Measured {
        copy,
        median_us,
        p99_us,
        copied_bytes_per_second: (after - before) / seconds as f64,
    })
}

/// Runs the application; returns the median and the 99th percentile of its latency, in
/// microseconds.
fn application(device: &Path, work: &Path, seconds: u64) -> anyhow::Result<[f64; 2]> {
    let options = [
        format!("--filename={}", device.display()),
        format!("--runtime={seconds}"),
    ];
    let mut words = vec![
        "fio",
        "--name=application",
        "--output-format=json",
        "--output=impact.json",
        "--unified_rw_reporting=1",
        "--rw=randrw",
        "--bs=4k",
        "--iodepth=4",
        RATE,
        "--ioengine=io_uring",
        "--direct=1",
        "--time_based",
        "--norandommap",
        "--randrepeat=0",
    ];
    words.extend(options.iter().map(String::as_str));
    run(&words, work, Until::Interrupted)?;
    let text = fs::read_to_string(work.join("impact.json")).context("output of fio")?;
    percentiles(&text).context("output of fio")
}

fn percentiles(text: &str) -> anyhow::Result<[f64; 2]> {
    // fio writes notes before its JSON.
    let start = text.find('{').context("it has no JSON")?;
    let report: Value = serde_json::from_str(&text[start..])?;
    let number = |percentile: &str| {
        let found = &report["jobs"][0]["mixed"]["clat_ns"]["percentile"][percentile];
        found.as_f64().map(|nanoseconds| nanoseconds / 1e3)
    };
    let both = number("50.000000").zip(number("99.000000"));
    let (median, p99) = both.context("it has no percentiles")?;
    Ok([median, p99])
}

fn line(measured: &Measured) -> String {
    json!({
        "type": "impact",
        "schema": 1,
        "copy": measured.copy.name(),
        "median_us": measured.median_us,
        "p99_us": measured.p99_us,
        "copied_bytes_per_second": measured.copied_bytes_per_second,
    })
    .to_string()
}

/// The medians over the rounds as a table, with the ratio of the 99th percentile to that without a
/// copy.
fn table(all: &[Measured], percent: u32) -> String {
    let of = |copy: Copy, value: fn(&Measured) -> f64| {
        let mut values: Vec<f64> = all
            .iter()
            .filter(|measured| measured.copy == copy)
            .map(value)
            .collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    };
    let mut text = format!(
        "latency of an application, limited to {percent} % more\n{:24}{:>12}{:>12}{:>12}{:>16}\n",
        "", "median ms", "p99 ms", "p99 ratio", "copied MiB/s"
    );
    for copy in Copy::ALL {
        let p99 = of(copy, |measured| measured.p99_us);
        text.push_str(&format!(
            "{:24}{:12.2}{:12.2}{:12.2}{:16.1}\n",
            copy.name(),
            of(copy, |measured| measured.median_us) / 1e3,
            p99 / 1e3,
            p99 / of(Copy::None, |measured| measured.p99_us),
            of(copy, |measured| measured.copied_bytes_per_second) / f64::from(1 << 20),
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_ratios_of_medians() {
        let measured = |copy, p99_us| Measured {
            copy,
            median_us: 1000.0,
            p99_us,
            copied_bytes_per_second: 3.0 * 1024.0 * 1024.0,
        };
        let all: Vec<Measured> = [
            (Copy::None, 2000.0),
            (Copy::Full, 6000.0),
            (Copy::Bounded, 2200.0),
        ]
        .into_iter()
        .flat_map(|(copy, p99)| [1.0, 1.0, 9.0].map(|noise| measured(copy, p99 * noise)))
        .collect();
        let text = table(&all, 20);
        let ratios: Vec<&str> = text
            .lines()
            .skip(2)
            .filter_map(|line| line.split_whitespace().rev().nth(1))
            .collect();
        assert_eq!(ratios, ["1.00", "3.00", "1.10"], "{text}");
    }

    #[test]
    fn percentiles_are_those_of_reads_and_writes_together() {
        let text = r#"note
            {"jobs":[{"mixed":{"clat_ns":{"percentile":{"50.000000":1500,"99.000000":2500}}}}]}"#;
        assert_eq!(percentiles(text).unwrap(), [1.5, 2.5]);
        percentiles("{}").unwrap_err();
    }
}
