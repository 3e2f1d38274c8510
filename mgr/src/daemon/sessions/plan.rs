//! The plan of a session before it is created: all reasons to refuse it, and an estimate of its
//! duration. The estimate comes from a short read test of both legs and from the write rate of
//! applications. No LUN is written. The estimate is kept, so that the history can compare it with
//! the result.

use std::time::{Duration, Instant};

use migration_proto::luns::LunPaths;
use migration_proto::manager::{JSON_SCHEMA, PlanRecord, Record, Response};
use tracing::warn;

use super::create::CreateParams;
use crate::daemon::context::{Context, blocking, now_ms};
use crate::daemon::handle::VolumeHandle;
use crate::daemon::luns::checks::{self, Accepted, Used, check_target};
use crate::daemon::luns::pace::{Pace, pace};
use crate::daemon::luns::twice;
use crate::store::{Change, Estimate, VolumeRow};

/// How long the write rate of applications is measured.
const WRITES_OVER: Duration = Duration::from_secs(1);
/// How long a volume may take to report its status.
const STATUS_MAX: Duration = Duration::from_secs(2);
/// Minimum free space for the state, in bytes; less is a problem.
const STATE_BYTES_MIN: u64 = 16 << 20;

/// Plans every pair. `handles` belong to the volumes, in the order of the pairs.
pub(crate) async fn plan(
    context: Context,
    wanted: CreateParams,
    handles: Vec<Option<VolumeHandle>>,
) -> Response {
    let (mut records, mut kept) = (Vec::new(), Vec::new());
    let mut used = wanted.used.clone();
    for ((volume, target), handle) in wanted.pairs.iter().zip(handles) {
        let checked = check_target(
            &context,
            volume,
            target,
            Accepted::by(&wanted.options),
            &used,
            None,
        );
        let (mut problems, mut notes) = (Vec::new(), Vec::new());
        let mut accepted = None;
        match checked.await {
            Ok(leg) => {
                accepted = checks::leg_row(&leg).ok().map(|target| target.key());
                notes.extend(leg.iter().filter_map(|lun| lun.name_note.clone()));
                let lost = leg.iter().flat_map(checks::contents);
                notes.extend(lost.map(|found| format!("will be overwritten: {found}")));
                used.extend(leg.iter().map(|candidate| Used {
                    lun: candidate.lun.clone(),
                    holder: format!("the target of {} in this session", volume.name),
                }));
            }
            Err(reasons) => problems = reasons,
        }
        notes.extend(twice::warnings(volume, Some(target)).await);
        problems.extend(state_problem(&context).await);
        let source = pace(volume.leg.paths()).await;
        let goal = pace(target).await;
        let written = writes(handle.as_ref()).await;
        if written.is_none() {
            problems.push("its ublk-target does not answer".to_owned());
        }
        for (side, pace) in [("source", &source), ("target", &goal)] {
            if let Err(cause) = pace {
                problems.push(format!("the {side} cannot be read: {cause}"));
            }
        }
        let planned = record(
            volume,
            target,
            (source.ok(), goal.ok()),
            written,
            (problems, notes),
        );
        kept.extend(accepted.and_then(|target| kept_estimate(&planned, target)));
        records.push(Record::Plan(planned));
    }
    if let Err(error) = context.commit(kept).await {
        // Continue: the estimate is only used to compare it with the result later.
        warn!(%error, "an estimate is not kept");
    }
    Response::Records { records }
}

fn kept_estimate(planned: &PlanRecord, target: String) -> Option<Change> {
    let estimate = Estimate {
        at_ms: now_ms(),
        copy_seconds: planned.copy_seconds?,
        pause_us: planned.pause_us?,
    };
    Some(Change::KeepEstimate {
        volume: planned.volume.clone(),
        target,
        estimate,
    })
}

fn record(
    volume: &VolumeRow,
    target: &LunPaths,
    (source, goal): (Option<Pace>, Option<Pace>),
    written: Option<u64>,
    (problems, notes): (Vec<String>, Vec<String>),
) -> PlanRecord {
    let slower = source.zip(goal).map(|(source, goal)| {
        let rate = source.bytes_per_second.min(goal.bytes_per_second);
        rate.saturating_sub(written.unwrap_or(0)).max(1)
    });
    // A drain waits for one request on each leg, and then each leg is flushed.
    let pause = source
        .zip(goal)
        .map(|(source, goal)| (source.answer + goal.answer) * 2);
    PlanRecord {
        schema: JSON_SCHEMA,
        volume: volume.name.clone(),
        source: volume.leg.paths().clone(),
        target: target.clone(),
        size_bytes: volume.size_bytes,
        source_bytes_per_second: source.map(|pace| pace.bytes_per_second),
        target_bytes_per_second: goal.map(|pace| pace.bytes_per_second),
        write_bytes_per_second: written,
        copy_seconds: slower.map(|rate| volume.size_bytes.div_ceil(rate)),
        pause_us: pause.map(|pause| u64::try_from(pause.as_micros()).unwrap_or(u64::MAX)),
        problems,
        notes,
    }
}

/// Describes a lack of free space for the state; `None` if there is enough.
async fn state_problem(context: &Context) -> Option<String> {
    let directory = context.config.state_directory.clone();
    let left = blocking(move || {
        let status = nix::sys::statvfs::statvfs(&directory).map_err(|error| error.to_string())?;
        Ok(status.blocks_available() * status.fragment_size())
    })
    .await
    .and_then(|left| left);
    match left {
        Ok(left) if left >= STATE_BYTES_MIN => None,
        Ok(left) => Some(format!(
            "{} bytes are free for the state in {}, less than {STATE_BYTES_MIN}",
            left,
            context.config.state_directory.display()
        )),
        Err(cause) => Some(format!("the free space for the state is unknown: {cause}")),
    }
}

/// The write rate of applications, in bytes a second; `None` if the volume does not answer.
async fn writes(handle: Option<&VolumeHandle>) -> Option<u64> {
    let handle = handle?;
    handle.refresh().await;
    let before = handle.status(STATUS_MAX).await.ok()?;
    let begun = Instant::now();
    tokio::time::sleep(WRITES_OVER).await;
    handle.refresh().await;
    let after = handle.status(STATUS_MAX).await.ok()?;
    let bytes = after
        .counters
        .written_bytes
        .saturating_sub(before.counters.written_bytes);
    let milliseconds = u64::try_from(begun.elapsed().as_millis()).ok()?.max(1);
    Some(bytes.saturating_mul(1000) / milliseconds)
}
