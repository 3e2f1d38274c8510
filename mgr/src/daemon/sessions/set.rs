//! Limits that are changed while the copy runs.

use std::time::Duration;

use migration_proto::manager::{CutoverOptions, SessionLimits, SessionMode, SwitchPairs};

use super::hours;
use super::schedule;
use crate::moments;
use crate::store::SessionRow;
use crate::units;

/// Applies the limits to the options. Returns them with a description of each change.
pub(crate) fn changed(
    row: &SessionRow,
    limits: &SessionLimits,
) -> (migration_proto::manager::SessionOptions, Vec<String>) {
    let mut options = row.options.clone();
    let mut said = Vec::new();
    if let Some(rate) = limits
        .rate_bytes_per_second
        .filter(|rate| *rate != options.rate_bytes_per_second)
    {
        options.rate_bytes_per_second = rate;
        said.push(match rate {
            0 => "the copy has no limit".to_owned(),
            rate => format!("at most {rate} bytes are copied in a second"),
        });
    }
    if let Some(priority) = limits
        .priority
        .filter(|priority| *priority != options.priority)
    {
        options.priority = priority;
        said.push(format!("its priority is {priority}"));
    }
    if let Some(policy) = limits
        .on_authoritative_failure
        .filter(|policy| *policy != options.on_authoritative_failure)
    {
        options.on_authoritative_failure = policy;
        said.push(format!(
            "when the authoritative leg fails: {}",
            match policy {
                migration_proto::target::OnAuthoritativeFailure::Auto => "auto",
                migration_proto::target::OnAuthoritativeFailure::Error => "error",
                migration_proto::target::OnAuthoritativeFailure::Switch => "switch",
            }
        ));
    }
    if let Some(policy) = limits
        .switch
        .as_ref()
        .filter(|policy| **policy != options.switch)
    {
        options.switch = policy.clone();
        said.push(schedule::text(policy, limits.mode.unwrap_or(options.mode)));
    }
    if let Some(percent) = limits
        .max_latency_impact_percent
        .filter(|percent| *percent != options.max_latency_impact_percent)
    {
        options.max_latency_impact_percent = percent;
        said.push(match percent {
            0 => "the impact of the copy on applications is not limited".to_owned(),
            percent => format!("the copy may make the latency of applications grow by {percent} %"),
        });
    }
    if let Some(bytes) = limits
        .accept_unreadable_bytes
        .filter(|bytes| *bytes != options.accept_unreadable_bytes)
    {
        options.accept_unreadable_bytes = bytes;
        said.push(match bytes {
            0 => "a copy skips no blocks that the source cannot read".to_owned(),
            bytes => format!(
                "{bytes} bytes of each source may be unreadable, and become zeroes on the target"
            ),
        });
    }
    if let Some(mode) = limits.mode.filter(|mode| *mode != options.mode) {
        options.mode = mode;
        said.push(
            match mode {
                SessionMode::Mirror => "writes are done on both legs where they are equal",
                SessionMode::Track => "writes are done on the source, and copied in passes",
                SessionMode::Copy => "its targets become copies at an instant",
            }
            .to_owned(),
        );
    }
    if let Some(seconds) = limits
        .every_seconds
        .filter(|seconds| *seconds != options.every_seconds)
    {
        options.every_seconds = seconds;
        said.push(match seconds {
            0 => "no further copy is made automatically".to_owned(),
            seconds => format!("another copy is made {seconds} s after each"),
        });
    }
    if let Some(hours) = limits.hours.filter(|hours| *hours != options.hours) {
        options.hours = hours;
        said.push(hours::text(hours));
    }
    if let Some(at_ms) = limits
        .start_at_ms
        .filter(|at_ms| *at_ms != options.start_at_ms)
    {
        options.start_at_ms = at_ms;
        said.push(match at_ms {
            0 => "it is started by hand".to_owned(),
            at_ms => format!("it is started at {}", moments::text(at_ms / 1000)),
        });
    }
    if let Some(pairs) = limits
        .switch_pairs
        .filter(|pairs| *pairs != options.switch_pairs)
    {
        options.switch_pairs = pairs;
        said.push(match pairs {
            SwitchPairs::Together => "its pairs are switched together".to_owned(),
            SwitchPairs::Each => "each pair is switched as soon as it is in sync".to_owned(),
        });
    }
    if let Some(seconds) = limits
        .max_duration_seconds
        .filter(|seconds| *seconds != options.max_duration_seconds)
    {
        options.max_duration_seconds = seconds;
        said.push(match seconds {
            0 => "it may take as long as it takes".to_owned(),
            seconds => format!(
                "it is paused if it is not in sync {} after its start",
                units::duration(Duration::from_secs(seconds))
            ),
        });
    }
    let cutover = CutoverOptions {
        action: limits.cutover_action.unwrap_or(options.cutover.action),
        attempts: limits.attempts.unwrap_or(options.cutover.attempts),
        duration_seconds: limits
            .cutover_duration_seconds
            .unwrap_or(options.cutover.duration_seconds),
        floor_bytes_per_second: limits
            .throttle_floor_bytes_per_second
            .unwrap_or(options.cutover.floor_bytes_per_second),
    };
    if cutover != options.cutover {
        options.cutover = cutover;
        said.push(format!(
            "from the next `shunt switch` on: {} attempts, writes are slowed for {} s at most and not below {} bytes a \
             second, then {}",
            cutover.attempts,
            cutover.duration_seconds,
            cutover.floor_bytes_per_second,
            cutover.action.name()
        ));
    }
    (options, said)
}
