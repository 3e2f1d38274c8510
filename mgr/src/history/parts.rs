//! Parts of the sentences for events.

use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use migration_core::route::Side;
use migration_proto::luns::LunPaths;
use migration_proto::manager::{
    CopierTask, CutoverMisfit, HistoryEvent, Hours, LimitChange, SessionMode, SwitchPairs,
    SwitchPolicy,
};
use migration_proto::route::Route;
use migration_proto::target::OnAuthoritativeFailure;

use crate::moments;
use crate::units;

/// Why a cutover ended without success, and the next command; empty for other events.
#[must_use]
pub fn cutover_end(event: &HistoryEvent, session: &str) -> (String, String) {
    if let HistoryEvent::CutoverGaveUp {
        misfit,
        max_pause_us,
        floor_bytes_per_second,
        duration_seconds,
    } = event
    {
        let cause = misfit.map(|misfit| {
            cutover_misfit(
                misfit,
                *max_pause_us,
                *floor_bytes_per_second,
                *duration_seconds,
            )
        });
        let next =
            format!("`shunt switch {session}` with another --max-pause, or at a quieter time");
        return (cause.unwrap_or_default(), next);
    }
    if let HistoryEvent::CutoverStopped {
        pair_volume,
        pair_state,
    } = event
    {
        let cause = format!("the pair of volume {pair_volume} is {pair_state}");
        return (cause, format!("`shunt status {session}`"));
    }
    (String::new(), String::new())
}

/// Why an attempt of a cutover failed.
#[must_use]
pub fn cutover_misfit(
    misfit: CutoverMisfit,
    max_pause_us: u64,
    floor_bytes_per_second: u64,
    duration_seconds: u64,
) -> String {
    let pause = units::pause(max_pause_us);
    match misfit {
        CutoverMisfit::Floor => format!(
            "writes were slowed down to the floor of {}, and what was left did not fit a pause of {pause}",
            units::rate(floor_bytes_per_second)
        ),
        CutoverMisfit::Duration => format!(
            "writes were slowed for {}, and what was left did not fit a pause of {pause}",
            seconds(duration_seconds)
        ),
        CutoverMisfit::Pause => {
            format!("what was left could not be copied while requests were held, at most {pause}")
        }
    }
}

/// Describes the route of a volume.
#[must_use]
pub fn route_words(route: Route, source: Option<&LunPaths>, target: Option<&LunPaths>) -> String {
    let name = |leg: Option<&LunPaths>| leg.map_or("no LUN".to_owned(), LunPaths::to_string);
    let authoritative = Side::from(route.authoritative());
    let alone = match authoritative {
        Side::Source => name(source),
        Side::Target => name(target),
    };
    let (source, target) = (name(source), name(target));
    match route {
        Route::Single { .. } => format!("uses {alone} alone"),
        Route::Mirrored { .. } => {
            format!("is mirrored, {source} to {target}, and the {authoritative} is authoritative")
        }
        Route::Split => format!("is on {source}, and split from its target {target}"),
    }
}

/// How the route of a volume contradicts an older database. `found`: the route in words;
/// `recorded`: the LUNs in the database.
#[must_use]
pub fn older_database(found: &str, recorded: &LunPaths) -> String {
    format!(
        "the volume {found}, but the database has recorded {recorded} alone: the database is older than the map file"
    )
}

/// Describes when a session is switched or split.
#[must_use]
pub fn switch_policy(policy: &SwitchPolicy, mode: SessionMode) -> String {
    let done = match mode {
        SessionMode::Mirror | SessionMode::Track => "switched",
        SessionMode::Copy => "split",
    };
    match policy {
        SwitchPolicy::Manual => format!("it is {done} when the operator says so"),
        SwitchPolicy::WhenSynced => format!("it is {done} as soon as it is in sync"),
        SwitchPolicy::At(at_ms) => format!(
            "it is {done} as soon as it is in sync, not before {}",
            moments::text(at_ms / 1000)
        ),
        SwitchPolicy::OnEvent(event) => {
            format!("it is {done} as soon as it is in sync, after `shunt signal {event}`")
        }
    }
}

/// Describes the copy window of a session.
#[must_use]
pub fn copy_window(hours: Hours) -> String {
    let clock = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
    match hours.is_always() {
        true => "it is copied at any hour".to_owned(),
        false => format!(
            "it is copied from {} to {} only",
            clock(hours.from_minute),
            clock(hours.to_minute)
        ),
    }
}

/// Describes changed limits of a session.
#[must_use]
pub fn limits(changes: &[LimitChange]) -> String {
    let changes: Vec<String> = changes.iter().map(limit).collect();
    changes.join(", ")
}

fn limit(change: &LimitChange) -> String {
    match change {
        LimitChange::RateBytesPerSecond(0) => "the copy has no limit".to_owned(),
        LimitChange::RateBytesPerSecond(rate) => {
            format!("at most {rate} bytes are copied in a second")
        }
        LimitChange::Priority(priority) => format!("its priority is {priority}"),
        LimitChange::OnAuthoritativeFailure(policy) => format!(
            "when the authoritative leg fails: {}",
            match policy {
                OnAuthoritativeFailure::Auto => "auto",
                OnAuthoritativeFailure::Error => "error",
                OnAuthoritativeFailure::Switch => "switch",
            }
        ),
        LimitChange::Switch { policy, mode } => switch_policy(policy, *mode),
        LimitChange::MaxLatencyImpactPercent(0) => {
            "the impact of the copy on applications is not limited".to_owned()
        }
        LimitChange::MaxLatencyImpactPercent(percent) => {
            format!("the copy may make the latency of applications grow by {percent} %")
        }
        LimitChange::AcceptUnreadableBytes(0) => {
            "a copy skips no blocks that the source cannot read".to_owned()
        }
        LimitChange::AcceptUnreadableBytes(bytes) => format!(
            "{bytes} bytes of each source may be unreadable, and become zeroes on the target"
        ),
        LimitChange::Mode(mode) => match mode {
            SessionMode::Mirror => "writes are done on both legs where they are equal",
            SessionMode::Track => "writes are done on the source, and copied in passes",
            SessionMode::Copy => "its targets become copies at an instant",
        }
        .to_owned(),
        LimitChange::EverySeconds(0) => "no further copy is made automatically".to_owned(),
        LimitChange::EverySeconds(seconds) => {
            format!("another copy is made {seconds} s after each")
        }
        LimitChange::Hours(hours) => copy_window(*hours),
        LimitChange::StartAtMs(0) => "it is started by hand".to_owned(),
        LimitChange::StartAtMs(at_ms) => {
            format!("it is started at {}", moments::text(at_ms / 1000))
        }
        LimitChange::SwitchPairs(pairs) => match pairs {
            SwitchPairs::Together => "its pairs are switched together",
            SwitchPairs::Each => "each pair is switched as soon as it is in sync",
        }
        .to_owned(),
        LimitChange::MaxDurationSeconds(0) => "it may take as long as it takes".to_owned(),
        LimitChange::MaxDurationSeconds(max) => format!(
            "it is paused if it is not in sync {} after its start",
            seconds(*max)
        ),
        LimitChange::Cutover(cutover) => format!(
            "from the next `shunt switch` on: {} attempts, writes are slowed for {} s at most and not below {} bytes a second, \
             then {}",
            cutover.attempts,
            cutover.duration_seconds,
            cutover.floor_bytes_per_second,
            cutover.action.name()
        ),
    }
}

pub(super) fn side(side: migration_proto::route::Side) -> Side {
    side.into()
}

pub(super) fn seconds(seconds: u64) -> String {
    units::duration(Duration::from_secs(seconds))
}

pub(super) fn milliseconds(pause_ms: u64) -> String {
    units::pause(pause_ms.saturating_mul(1000))
}

pub(super) fn window(from_minute: u16, to_minute: u16) -> String {
    copy_window(Hours {
        from_minute,
        to_minute,
    })
}

/// What `shunt plan` expected, beside what happened.
pub(super) fn planned(expected: Option<impl Display>) -> String {
    expected.map_or_else(String::new, |expected| {
        format!(" (`shunt plan` said {expected})")
    })
}

/// How long requests were held.
pub(crate) fn pause(held_us: Option<u64>) -> String {
    held_us.map_or_else(String::new, |held_us| {
        format!(
            ", requests were held for {}.{:03} ms",
            held_us / 1000,
            held_us % 1000
        )
    })
}

pub(super) const fn task_words(task: CopierTask) -> &'static str {
    match task {
        CopierTask::Copy => "the copy",
        CopierTask::Compare => "the comparison",
    }
}

pub(super) const fn outcome(retried: bool) -> &'static str {
    match retried {
        true => "is retried",
        false => "is over",
    }
}

pub(super) const fn since(older_database: bool) -> &'static str {
    match older_database {
        true => "the database is older than the map file: ",
        false => "",
    }
}

/// The LUNs that were accepted with a weak identity.
pub(super) fn weak(luns: &[PathBuf]) -> String {
    let paths: Vec<String> = luns.iter().map(|lun| lun.display().to_string()).collect();
    match paths.is_empty() {
        true => String::new(),
        false => format!(", with the weak identity of {}", paths.join(", ")),
    }
}
