//! The rate of a whole copy: Shunt's copier compared with dd.

use std::{path::Path, time::Duration};

use anyhow::Context;

use crate::{
    disks::Disks,
    process::{Until, run},
    report::{Copy, Report},
    shunt::Daemon,
};

/// Copies the disks onto each other once in each direction, with dd and with Shunt.
pub(crate) fn measure(
    disks: &Disks,
    daemon: &Daemon,
    work: &Path,
    round: u32,
    report: &mut Report,
) -> anyhow::Result<()> {
    let ways = [
        ("source to target", &disks.source, &disks.target),
        ("target to source", &disks.target, &disks.source),
    ];
    for (way, from, to) in ways {
        let rate = |time: Duration| disks.size_bytes as f64 / time.as_secs_f64();
        let dd = rate(dd(from, to, work)?);
        let mut volume = daemon.attach(from)?;
        let shunt = rate(volume.mirror_onto(to)?);
        volume.take_away()?;
        report.add_copy(Copy {
            round,
            way,
            dd_bytes_per_second: dd,
            shunt_bytes_per_second: shunt,
        });
    }
    Ok(())
}

/// Copies with dd; returns the time that dd reports.
fn dd(from: &Path, to: &Path, work: &Path) -> anyhow::Result<Duration> {
    let (from, to) = (
        format!("if={}", from.display()),
        format!("of={}", to.display()),
    );
    let said = run(
        &["dd", &from, &to, "bs=1M", "iflag=direct", "oflag=direct"],
        work,
        Until::Interrupted,
    )?;
    dd_time(&said).with_context(|| format!("dd reported no time: {said}"))
}

/// The time in dd's line `536870912 bytes (537 MB, 512 MiB) copied, 1.234 s, 435 MB/s`.
fn dd_time(said: &str) -> Option<Duration> {
    let (_, rest) = said.split_once(" copied, ")?;
    let seconds: f64 = rest.split_once(" s")?.0.trim().parse().ok()?;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|time| !time.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_dd_is_read() {
        let said = "512+0 records in\n512+0 records out\n536870912 bytes (537 MB, 512 MiB) copied, 1.25 s, 429 MB/s\n";
        assert_eq!(dd_time(said), Some(Duration::from_millis(1250)));
        for wrong in ["", "dd: error", "1 copied, x s", "1 copied, 0 s"] {
            assert_eq!(dd_time(wrong), None);
        }
    }
}
