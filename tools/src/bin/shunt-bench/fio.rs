//! One measurement with fio.

use std::{fs, path::Path};

use anyhow::{Context, bail};
use nix::unistd::{SysconfVar, sysconf};
use serde_json::Value;

use crate::process::{Until, run};

/// A pattern of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Workload {
    /// The pattern, as fio's option `rw` names it.
    rw: &'static str,
    /// The size of a request, in KiB.
    block_kib: u32,
    /// The number of requests in progress.
    depth: u32,
}

impl Workload {
    const fn new(rw: &'static str, block_kib: u32, depth: u32) -> Self {
        Self {
            rw,
            block_kib,
            depth,
        }
    }

    /// The name of the workload in tables and JSON.
    pub(crate) fn name(&self) -> String {
        format!("{}k {} depth {}", self.block_kib, self.rw, self.depth)
    }

    /// The key of the workload's figures in the report of fio.
    fn direction(&self) -> &'static str {
        if self.rw.ends_with("read") {
            "read"
        } else {
            "write"
        }
    }
}

/// All workloads that are measured.
pub(crate) const WORKLOADS: [Workload; 6] = [
    Workload::new("randread", 4, 1),
    Workload::new("randwrite", 4, 1),
    Workload::new("randread", 4, 32),
    Workload::new("randwrite", 4, 32),
    Workload::new("read", 256, 8),
    Workload::new("write", 256, 8),
];

/// The figures of one measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample {
    /// Requests a second.
    pub(crate) iops: f64,
    /// The median time from submission to completion, in microseconds.
    pub(crate) latency_us: f64,
    /// CPU time of the whole machine for a request, in microseconds.
    pub(crate) cpu_us: f64,
    /// The part of `cpu_us` in the process that serves the device, in microseconds.
    pub(crate) server_cpu_us: Option<f64>,
}

/// Measures a device for `seconds`. `server` is the process that serves the device.
pub(crate) fn measure(
    device: &Path,
    workload: &Workload,
    seconds: u64,
    server: Option<u32>,
    work: &Path,
) -> anyhow::Result<Sample> {
    let proc_files = match server {
        Some(pid) => format!("cat /proc/stat /proc/{pid}/stat"),
        None => "cat /proc/stat".to_owned(),
    };
    let options = [
        format!("--filename={}", device.display()),
        format!("--rw={}", workload.rw),
        format!("--bs={}k", workload.block_kib),
        format!("--iodepth={}", workload.depth),
        format!("--runtime={seconds}"),
        // fio runs these right before and after the job, so that the start of fio does not count.
        format!("--exec_prerun={proc_files}"),
        format!("--exec_postrun={proc_files}"),
    ];
    let mut words = vec![
        "fio",
        "--name=job",
        "--output-format=json",
        "--output=job.json",
    ];
    words.extend([
        "--ioengine=io_uring",
        "--direct=1",
        "--time_based",
        "--norandommap",
        "--randrepeat=0",
    ]);
    words.extend(options.iter().map(String::as_str));
    run(&words, work, Until::Interrupted)?;
    let text = fs::read_to_string(work.join("job.json")).context("output of fio")?;
    let cpu = [
        cpu_at(work, "prerun", server)?,
        cpu_at(work, "postrun", server)?,
    ];
    sample(&text, workload.direction(), cpu).context("output of fio")
}

/// The CPU time used so far, in microseconds: by the machine, and by the server.
type Cpu = (f64, Option<f64>);

fn sample(text: &str, direction: &str, cpu: [Cpu; 2]) -> anyhow::Result<Sample> {
    // fio writes notes before its JSON.
    let start = text.find('{').context("it has no JSON")?;
    let report: Value = serde_json::from_str(&text[start..])?;
    let job = &report["jobs"][0];
    if job["error"] != 0 {
        bail!("error {} of the job", job["error"]);
    }
    let number = |path: &str| {
        job[direction]
            .pointer(path)
            .and_then(Value::as_f64)
            .with_context(|| format!("no {path}"))
    };
    let requests = number("/total_ios")?.max(1.0);
    let [before, after] = cpu;
    Ok(Sample {
        iops: number("/iops")?,
        latency_us: number("/clat_ns/percentile/50.000000")? / 1e3,
        cpu_us: (after.0 - before.0) / requests,
        server_cpu_us: after
            .1
            .zip(before.1)
            .map(|(after, before)| (after - before) / requests),
    })
}

fn cpu_at(work: &Path, when: &str, server: Option<u32>) -> anyhow::Result<Cpu> {
    let path = work.join(format!("job.{when}.txt"));
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let tick_us = 1e6 / sysconf(SysconfVar::CLK_TCK)?.context("no clock tick")? as f64;
    let machine = machine_ticks(&text).context("no CPU time in /proc/stat")?;
    let server = match server {
        Some(_) => {
            Some(server_ticks(&text).context("the server of the device has ended")? * tick_us)
        }
        None => None,
    };
    Ok((machine * tick_us, server))
}

/// The sum of user, nice, system, irq, softirq and steal in the first line of /proc/stat, without
/// idle and iowait (proc(5)).
fn machine_ticks(text: &str) -> Option<f64> {
    let fields: Vec<f64> = text
        .lines()
        .next()?
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    Some(
        [0, 1, 2, 5, 6, 7]
            .iter()
            .filter_map(|index| fields.get(*index))
            .sum(),
    )
}

/// The sum of utime and stime of /proc/PID/stat, which is the last line. The name in parentheses
/// may contain any character.
fn server_ticks(text: &str) -> Option<f64> {
    let (_, fields) = text.lines().last()?.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<f64>().ok();
    Some(next()? + next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  100 1 50 9000 77 3 4 2 0 0\ncpu0 1 2 3\nbtime 5\n42 (a) b) S 1 1 1 0 -1 0 0 0 0 0 30 12 0 0 20 0\n";

    #[test]
    fn cpu_time_is_read_from_proc() {
        assert_eq!(machine_ticks(STAT), Some(160.0));
        assert_eq!(server_ticks(STAT), Some(42.0));
        assert_eq!(server_ticks("cpu 1 2\n"), None);
    }

    #[test]
    fn the_report_of_fio_is_read() {
        let text = r#"fio: note
{"jobs": [{"error": 0, "read": {"iops": 0, "total_ios": 0}, "write":
  {"iops": 2000.5, "total_ios": 4000, "clat_ns": {"percentile": {"50.000000": 12345}}}}]}"#;
        let sample = sample(text, "write", [(0.0, Some(0.0)), (8000.0, Some(2000.0))]).unwrap();
        assert_eq!(
            (
                sample.iops,
                sample.latency_us,
                sample.cpu_us,
                sample.server_cpu_us
            ),
            (2000.5, 12.345, 2.0, Some(0.5))
        );
    }

    #[test]
    fn a_report_without_numbers_is_an_error() {
        for text in [
            "",
            "{",
            "{}",
            r#"{"jobs": [{"error": 5}]}"#,
            r#"{"jobs": [{"error": 0}]}"#,
        ] {
            sample(text, "read", [(0.0, None); 2]).unwrap_err();
        }
    }
}
