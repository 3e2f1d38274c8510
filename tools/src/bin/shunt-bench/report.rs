//! The report at the end of a run.

use std::fmt::Write;

use serde_json::json;
use tools::JSON_SCHEMA;

use crate::{
    contestant::Contestant,
    fio::{Sample, WORKLOADS, Workload},
    redirect::Pauses,
};

/// All measurements of a run.
#[derive(Debug)]
pub(crate) struct Report {
    json: bool,
    samples: Vec<Measured>,
    copies: Vec<Copy>,
    pauses: Vec<Pauses>,
}

#[derive(Debug, Clone, Copy)]
struct Measured {
    round: u32,
    contestant: Contestant,
    workload: Workload,
    sample: Sample,
}

/// A whole copy, by dd and by Shunt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Copy {
    /// The round, from 1.
    pub(crate) round: u32,
    /// The direction of the copy.
    pub(crate) way: &'static str,
    /// The rate of dd.
    pub(crate) dd_bytes_per_second: f64,
    /// The rate of Shunt.
    pub(crate) shunt_bytes_per_second: f64,
}

/// The title of a table, and the figure of a sample that it shows.
type Figure = (&'static str, fn(&Sample) -> Option<f64>);

const FIGURES: [Figure; 3] = [
    (
        "requests a second, as ratio to raw (more is better)",
        |sample| Some(sample.iops),
    ),
    (
        "median latency, as ratio to raw (less is better)",
        |sample| Some(sample.latency_us),
    ),
    (
        "CPU time of the machine for a request, as ratio to raw (less is better)",
        |sample| Some(sample.cpu_us),
    ),
];

impl Report {
    /// An empty report; `json` is its format.
    pub(crate) const fn new(json: bool) -> Self {
        Self {
            json,
            samples: Vec::new(),
            copies: Vec::new(),
            pauses: Vec::new(),
        }
    }

    /// Adds a measurement.
    pub(crate) fn add(
        &mut self,
        round: u32,
        contestant: Contestant,
        workload: &Workload,
        sample: Sample,
    ) {
        self.samples.push(Measured {
            round,
            contestant,
            workload: *workload,
            sample,
        });
    }

    /// Adds a copy.
    pub(crate) fn add_copy(&mut self, copy: Copy) {
        self.copies.push(copy);
    }

    /// Adds the pauses of redirects.
    pub(crate) fn add_pauses(&mut self, pauses: Pauses) {
        self.pauses.push(pauses);
    }

    /// Renders the tables, or all measurements as JSON.
    pub(crate) fn finish(&self) -> String {
        if self.json {
            self.json_lines()
        } else {
            self.tables()
        }
    }

    fn tables(&self) -> String {
        let mut out = String::new();
        if !self.pauses.is_empty() {
            self.pause_table(&mut out);
            return out;
        }
        for (title, figure) in FIGURES {
            self.table(&mut out, title, |contestant, workload| {
                self.ratio(contestant, Contestant::Raw, workload, figure)
            });
        }
        self.table(
            &mut out,
            "requests a second, in thousands (of this machine only)",
            |contestant, workload| {
                median(self.figures(contestant, workload, |sample| Some(sample.iops / 1e3)))
            },
        );
        self.table(
            &mut out,
            "CPU time of the serving process for a request, in microseconds",
            |contestant, workload| {
                median(self.figures(contestant, workload, |sample| sample.server_cpu_us))
            },
        );
        self.rublk_table(&mut out);
        self.copy_table(&mut out);
        out
    }

    fn table(
        &self,
        out: &mut String,
        title: &str,
        cell: impl Fn(Contestant, &Workload) -> Option<f64>,
    ) {
        let contestants = self.contestants();
        let names: String = contestants
            .iter()
            .map(|contestant| format!("{:>10}", contestant.name()))
            .collect();
        row(out, &format!("{title}\n{:<22}{names}", ""));
        for workload in &WORKLOADS {
            let cells: String = contestants
                .iter()
                .map(|contestant| cell_text(cell(*contestant, workload)))
                .collect();
            row(out, &format!("{:<22}{cells}", workload.name()));
        }
        out.push('\n');
    }

    fn rublk_table(&self, out: &mut String) {
        let contestants = self.contestants();
        if ![Contestant::Rublk, Contestant::Single]
            .iter()
            .all(|needed| contestants.contains(needed))
        {
            return;
        }
        row(
            out,
            &format!(
                "{:<22}{:>10}{:>10}",
                "Single to rublk, ratio", "requests", "latency"
            ),
        );
        for workload in &WORKLOADS {
            let ratio = |figure| {
                cell_text(self.ratio(Contestant::Single, Contestant::Rublk, workload, figure))
            };
            let (requests, latency) = (ratio(FIGURES[0].1), ratio(FIGURES[1].1));
            row(out, &format!("{:<22}{requests}{latency}", workload.name()));
        }
        out.push('\n');
    }

    fn copy_table(&self, out: &mut String) {
        if self.copies.is_empty() {
            return;
        }
        row(
            out,
            &format!(
                "{:<22}{:>10}{:>10}{:>10}",
                "whole copy, MiB/s", "dd", "shunt", "ratio"
            ),
        );
        let mut ways: Vec<&str> = self.copies.iter().map(|copy| copy.way).collect();
        ways.sort_unstable();
        ways.dedup();
        for way in ways {
            let cell = |figure: fn(&Copy) -> f64| {
                cell_text(median(
                    self.copies
                        .iter()
                        .filter(|copy| copy.way == way)
                        .map(figure)
                        .collect(),
                ))
            };
            let mib = [
                cell(|copy| copy.dd_bytes_per_second / f64::from(1 << 20)),
                cell(|copy| copy.shunt_bytes_per_second / f64::from(1 << 20)),
            ];
            let ratio = cell(|copy| copy.shunt_bytes_per_second / copy.dd_bytes_per_second);
            row(out, &format!("{way:<22}{}{}{ratio}", mib[0], mib[1]));
        }
    }

    fn pause_table(&self, out: &mut String) {
        row(
            out,
            &format!(
                "{:<38}{:>10}{:>10}{:>10}{:>10}",
                "pause of a redirect, in ms", "count", "median", "p99", "longest"
            ),
        );
        for Pauses { name, pauses_us } in &self.pauses {
            let cells: String = [0.5, 0.99, 1.0]
                .map(|part| cell_text(quantile(pauses_us, part).map(|pause| pause / 1000.0)))
                .concat();
            row(out, &format!("{name:<38}{:>10}{cells}", pauses_us.len()));
        }
    }

    fn contestants(&self) -> Vec<Contestant> {
        let mut contestants: Vec<_> = self
            .samples
            .iter()
            .map(|measured| measured.contestant)
            .collect();
        contestants.sort_unstable();
        contestants.dedup();
        contestants
    }

    fn figures(
        &self,
        contestant: Contestant,
        workload: &Workload,
        figure: fn(&Sample) -> Option<f64>,
    ) -> Vec<f64> {
        let of = |measured: &&Measured| {
            measured.contestant == contestant && measured.workload == *workload
        };
        self.samples
            .iter()
            .filter(of)
            .filter_map(|measured| figure(&measured.sample))
            .collect()
    }

    /// The median, over the rounds, of the ratio within a round. Every round measures each
    /// contestant once, so figures with the same index are of the same round.
    fn ratio(
        &self,
        contestant: Contestant,
        to: Contestant,
        workload: &Workload,
        figure: fn(&Sample) -> Option<f64>,
    ) -> Option<f64> {
        let (ours, theirs) = (
            self.figures(contestant, workload, figure),
            self.figures(to, workload, figure),
        );
        median(
            ours.iter()
                .zip(&theirs)
                .map(|(ours, theirs)| ours / theirs)
                .collect(),
        )
    }

    fn json_lines(&self) -> String {
        let mut out = String::new();
        for Measured {
            round,
            contestant,
            workload,
            sample,
        } in &self.samples
        {
            let record = json!({
                "type": "measurement",
                "schema": JSON_SCHEMA,
                "round": round,
                "contestant": contestant.name(),
                "workload": workload.name(),
                "requests_per_second": sample.iops,
                "latency_median_us": sample.latency_us,
                "cpu_us_per_request": sample.cpu_us,
                "server_cpu_us_per_request": sample.server_cpu_us,
            });
            row(&mut out, &record.to_string());
        }
        for Pauses { name, pauses_us } in &self.pauses {
            let record = json!({
                "type": "pauses",
                "schema": JSON_SCHEMA,
                "name": name,
                "pauses_us": pauses_us,
            });
            row(&mut out, &record.to_string());
        }
        for copy in &self.copies {
            let record = json!({
                "type": "copy",
                "schema": JSON_SCHEMA,
                "round": copy.round,
                "way": copy.way,
                "dd_bytes_per_second": copy.dd_bytes_per_second,
                "shunt_bytes_per_second": copy.shunt_bytes_per_second,
            });
            row(&mut out, &record.to_string());
        }
        out
    }
}

fn row(out: &mut String, text: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{text}");
}

fn cell_text(value: Option<f64>) -> String {
    value.map_or_else(|| format!("{:>10}", "-"), |value| format!("{value:>10.2}"))
}

/// The smallest value that at least this part of the values does not exceed.
fn quantile(values: &[f64], part: f64) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    let rank = (values.len() as f64 * part).ceil() as usize;
    values.get(rank.max(1) - 1).copied()
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.retain(|value| value.is_finite());
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(json: bool) -> Report {
        let mut report = Report::new(json);
        for (round, factor) in [(1, 1.0), (2, 3.0), (3, 1.0)] {
            for (contestant, iops) in [
                (Contestant::Raw, 1000.0),
                (Contestant::Rublk, 500.0),
                (Contestant::Single, 600.0),
            ] {
                let sample = Sample {
                    iops: iops * factor,
                    latency_us: 1.0,
                    cpu_us: 0.0,
                    server_cpu_us: None,
                };
                report.add(round, contestant, &WORKLOADS[0], sample);
            }
        }
        report.add_copy(Copy {
            round: 1,
            way: "there",
            dd_bytes_per_second: 1e9,
            shunt_bytes_per_second: 2e9,
        });
        report
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![f64::NAN, 3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
    }

    #[test]
    fn quantiles() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(quantile(&values, 0.5), Some(100.0));
        assert_eq!(quantile(&values, 0.99), Some(198.0));
        assert_eq!(quantile(&values, 1.0), Some(200.0));
        assert_eq!(quantile(&values[..1], 0.5), Some(200.0));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn pauses_are_a_table_of_their_own() {
        let mut report = Report::new(false);
        report.add_pauses(Pauses {
            name: "x",
            pauses_us: vec![1000.0, 2000.0, 9500.0],
        });
        let text = report.finish();
        let last = text.lines().last().unwrap();
        assert!(
            last.starts_with("x ") && last.ends_with("         3      2.00      9.50      9.50"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let tables = report(false).finish();
        let line = |beginning: &str| {
            tables
                .lines()
                .find(|line| line.starts_with(beginning))
                .unwrap()
                .to_owned()
        };
        assert_eq!(
            line("4k randread depth 1 "),
            "4k randread depth 1         1.00      0.50      0.60"
        );
        assert_eq!(
            line("there"),
            "there                     953.67   1907.35      2.00"
        );
        assert!(
            tables.contains("Single to rublk, ratio") && tables.contains("      1.20      1.00"),
            "{tables}"
        );
    }

    #[test]
    fn json_has_every_measurement() {
        let text = report(true).finish();
        assert_eq!(text.lines().count(), 10);
        assert!(
            text.lines().all(
                |line| serde_json::from_str::<serde_json::Value>(line).unwrap()["schema"] == 1
            )
        );
    }
}
