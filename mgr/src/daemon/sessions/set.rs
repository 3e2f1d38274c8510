//! Limits that are changed while the copy runs.

use migration_proto::manager::{CutoverOptions, LimitChange, SessionLimits, SessionOptions};

use crate::store::SessionRow;

/// Applies the limits to the options. Returns them with each change.
pub(crate) fn changed(
    row: &SessionRow,
    limits: &SessionLimits,
) -> (SessionOptions, Vec<LimitChange>) {
    let SessionLimits {
        rate_bytes_per_second,
        priority,
        on_authoritative_failure,
        switch,
        switch_pairs,
        max_latency_impact_percent,
        accept_unreadable_bytes,
        mode,
        every_seconds,
        hours,
        start_at_ms,
        max_duration_seconds,
        cutover_action,
        attempts,
        cutover_duration_seconds,
        throttle_floor_bytes_per_second,
    } = limits.clone();
    let options = &row.options;
    let cutover = CutoverOptions {
        action: cutover_action.unwrap_or(options.cutover.action),
        attempts: attempts.unwrap_or(options.cutover.attempts),
        duration_seconds: cutover_duration_seconds.unwrap_or(options.cutover.duration_seconds),
        floor_bytes_per_second: throttle_floor_bytes_per_second
            .unwrap_or(options.cutover.floor_bytes_per_second),
    };
    let mut options = options.clone();
    let mode_then = mode.unwrap_or(options.mode);
    let switch_change = |policy| LimitChange::Switch {
        policy,
        mode: mode_then,
    };
    let changes = [
        set(
            &mut options.rate_bytes_per_second,
            rate_bytes_per_second,
            LimitChange::RateBytesPerSecond,
        ),
        set(&mut options.priority, priority, LimitChange::Priority),
        set(
            &mut options.on_authoritative_failure,
            on_authoritative_failure,
            LimitChange::OnAuthoritativeFailure,
        ),
        set(&mut options.switch, switch, switch_change),
        set(
            &mut options.max_latency_impact_percent,
            max_latency_impact_percent,
            LimitChange::MaxLatencyImpactPercent,
        ),
        set(
            &mut options.accept_unreadable_bytes,
            accept_unreadable_bytes,
            LimitChange::AcceptUnreadableBytes,
        ),
        set(&mut options.mode, mode, LimitChange::Mode),
        set(
            &mut options.every_seconds,
            every_seconds,
            LimitChange::EverySeconds,
        ),
        set(&mut options.hours, hours, LimitChange::Hours),
        set(
            &mut options.start_at_ms,
            start_at_ms,
            LimitChange::StartAtMs,
        ),
        set(
            &mut options.switch_pairs,
            switch_pairs,
            LimitChange::SwitchPairs,
        ),
        set(
            &mut options.max_duration_seconds,
            max_duration_seconds,
            LimitChange::MaxDurationSeconds,
        ),
        set(&mut options.cutover, Some(cutover), LimitChange::Cutover),
    ];
    (options, changes.into_iter().flatten().collect())
}

/// Sets an option to the value that is asked for. Returns the change, if it is one.
fn set<T: Clone + PartialEq>(
    option: &mut T,
    asked: Option<T>,
    change: impl FnOnce(T) -> LimitChange,
) -> Option<LimitChange> {
    let value = asked.filter(|value| value != option)?;
    *option = value.clone();
    Some(change(value))
}
