//! A session as a file: `create -f` reads it, and `show` prints it with the current state.
//!
//! Both use the same format. `show` adds the state in tables named `status`, which `create`
//! ignores, so `create` accepts the output of `show`.

use std::io::Read;
use std::path::Path;

use migration_proto::luns::LunPaths;
use migration_proto::manager::{
    CutoverAction, CutoverOptions, Hours, JSON_SCHEMA, PRIORITY_DEFAULT, PRIORITY_MAX, PairRecord,
    PairSpec, Record, Request, RetireHow, SessionMode, SessionOptions, SessionRecord, SwitchPairs,
    SwitchPolicy, UnreadablePart, Verification, VerifyPolicy,
};
use migration_proto::route::Side;
use migration_proto::target::OnAuthoritativeFailure;
use serde::de::{Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::problem::Problem;
use super::{render, values, when};
use crate::moments;

/// The largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The path that stands for standard input.
const STANDARD_INPUT: &str = "-";

/// The word for a rate without a limit.
pub(super) const UNLIMITED: &str = "unlimited";

/// The word for no limit of the impact that the copy has on applications.
pub(super) const NO_IMPACT_LIMIT: &str = "none";

/// The word for a copy that accepts no unreadable part of a source.
pub(super) const NOTHING_ACCEPTED: &str = "none";

/// A session in the file. `S` is the status of the session, `P` that of a pair.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct SessionFile<S, P> {
    session: String,
    #[serde(default)]
    overwrite: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    accept_weak_identity: bool,
    #[serde(default)]
    detect_zeroes: bool,
    #[serde(default)]
    verify: VerifyPolicy,
    #[serde(default)]
    on_authoritative_failure: OnAuthoritativeFailure,
    #[serde(default, serialize_with = "write_rate", deserialize_with = "read_rate")]
    rate: u64,
    #[serde(default = "priority_default", deserialize_with = "read_priority")]
    priority: u8,
    #[serde(
        default,
        serialize_with = "write_policy",
        deserialize_with = "read_policy"
    )]
    switch: SwitchPolicy,
    #[serde(
        default,
        serialize_with = "write_percent",
        deserialize_with = "read_percent"
    )]
    max_latency_impact: u32,
    #[serde(
        default,
        skip_serializing_if = "is_never",
        serialize_with = "write_accepted",
        deserialize_with = "read_accepted"
    )]
    accept_unreadable: u64,
    #[serde(default)]
    mode: SessionMode,
    #[serde(
        default,
        skip_serializing_if = "is_never",
        serialize_with = "write_every",
        deserialize_with = "read_every"
    )]
    every: u64,
    #[serde(
        default,
        skip_serializing_if = "is_always",
        serialize_with = "write_hours",
        deserialize_with = "read_hours"
    )]
    window_hours: Hours,
    #[serde(
        default,
        skip_serializing_if = "is_never",
        serialize_with = "write_start_at",
        deserialize_with = "read_start_at"
    )]
    start_at: u64,
    #[serde(
        default,
        skip_serializing_if = "is_never",
        serialize_with = "write_every",
        deserialize_with = "read_every"
    )]
    max_duration: u64,
    #[serde(default)]
    switch_pairs: SwitchPairs,
    #[serde(default)]
    cutover_action: CutoverAction,
    #[serde(default = "attempts_default", deserialize_with = "read_attempts")]
    attempts: u32,
    #[serde(default = "cutover_duration_default")]
    cutover_duration: u64,
    #[serde(
        default = "throttle_floor_default",
        serialize_with = "write_rate",
        deserialize_with = "read_floor"
    )]
    throttle_floor: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retire: Option<RetireHow>,
    // `Option::default` by name, so that serde does not demand `S: Default`.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    status: Option<S>,
    #[serde(rename = "pair")]
    pairs: Vec<PairEntry<P>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct PairEntry<P> {
    volume: String,
    #[serde(deserialize_with = "read_target")]
    target: LunPaths,
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    status: Option<P>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct SessionStatus {
    schema: u32,
    id: String,
    state: String,
    created: String,
    allowed: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct PairStatus {
    state: String,
    source: LunPaths,
    authoritative: Side,
    total_bytes: u64,
    dirty_bytes: u64,
    copied_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_bytes_per_second: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    eta_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_pause_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verification: Option<Verification>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unreadable: Vec<UnreadablePart>,
}

fn read_percent<'a, D: Deserializer<'a>>(deserializer: D) -> Result<u32, D::Error> {
    values::percent(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

// serde requires this signature.
#[expect(clippy::trivially_copy_pass_by_ref)]
fn write_percent<S: Serializer>(percent: &u32, serializer: S) -> Result<S::Ok, S::Error> {
    match percent {
        0 => serializer.serialize_str(NO_IMPACT_LIMIT),
        percent => serializer.serialize_str(&format!("{percent}%")),
    }
}

#[expect(clippy::trivially_copy_pass_by_ref)]
fn is_false(value: &bool) -> bool {
    !value
}

#[expect(clippy::trivially_copy_pass_by_ref)]
fn is_never(seconds: &u64) -> bool {
    *seconds == 0
}

fn read_every<'a, D: Deserializer<'a>>(deserializer: D) -> Result<u64, D::Error> {
    when::every(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

#[expect(clippy::trivially_copy_pass_by_ref)]
fn write_every<S: Serializer>(seconds: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format!("{seconds}s"))
}

#[expect(clippy::trivially_copy_pass_by_ref)]
fn is_always(hours: &Hours) -> bool {
    hours.is_always()
}

fn read_hours<'a, D: Deserializer<'a>>(deserializer: D) -> Result<Hours, D::Error> {
    when::hours(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

#[expect(clippy::trivially_copy_pass_by_ref)]
fn write_hours<S: Serializer>(hours: &Hours, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&when::hours_text(*hours))
}

fn read_start_at<'a, D: Deserializer<'a>>(deserializer: D) -> Result<u64, D::Error> {
    when::start_at(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

#[expect(clippy::trivially_copy_pass_by_ref)]
fn write_start_at<S: Serializer>(at_ms: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&when::start_at_text(*at_ms))
}

fn attempts_default() -> u32 {
    CutoverOptions::default().attempts
}

fn cutover_duration_default() -> u64 {
    CutoverOptions::default().duration_seconds
}

fn throttle_floor_default() -> u64 {
    CutoverOptions::default().floor_bytes_per_second
}

fn read_attempts<'a, D: Deserializer<'a>>(deserializer: D) -> Result<u32, D::Error> {
    let attempts = u32::deserialize(deserializer)?;
    if attempts > 0 {
        return Ok(attempts);
    }
    Err(D::Error::custom("there is at least 1 attempt"))
}

fn read_floor<'a, D: Deserializer<'a>>(deserializer: D) -> Result<u64, D::Error> {
    values::floor(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

const fn priority_default() -> u8 {
    PRIORITY_DEFAULT
}

fn read_priority<'a, D: Deserializer<'a>>(deserializer: D) -> Result<u8, D::Error> {
    let priority = u8::deserialize(deserializer)?;
    if priority <= PRIORITY_MAX {
        return Ok(priority);
    }
    let text = format!("{priority} is not within 0 to {PRIORITY_MAX}");
    Err(D::Error::custom(text))
}

fn read_rate<'a, D: Deserializer<'a>>(deserializer: D) -> Result<u64, D::Error> {
    values::rate(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

fn write_rate<S: Serializer>(bytes_per_second: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    match bytes_per_second {
        0 => serializer.serialize_str(UNLIMITED),
        rate => serializer.serialize_str(&rate.to_string()),
    }
}

fn read_accepted<'a, D: Deserializer<'a>>(deserializer: D) -> Result<u64, D::Error> {
    values::accepted(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

// serde requires this signature.
#[expect(clippy::trivially_copy_pass_by_ref)]
fn write_accepted<S: Serializer>(bytes: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&bytes.to_string())
}

fn read_policy<'a, D: Deserializer<'a>>(deserializer: D) -> Result<SwitchPolicy, D::Error> {
    values::switch_policy(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

fn write_policy<S: Serializer>(policy: &SwitchPolicy, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&values::switch_policy_text(policy))
}

fn read_target<'a, D: Deserializer<'a>>(deserializer: D) -> Result<LunPaths, D::Error> {
    let target = LunPaths::deserialize(deserializer)?;
    match target.paths().iter().find(|path| !path.is_absolute()) {
        None => Ok(target),
        Some(path) => {
            let text = format!("the path {} is not absolute", path.display());
            Err(D::Error::custom(text))
        }
    }
}

/// Reads the request to create a session from a file; `-` is standard input.
///
/// # Errors
/// The file cannot be read, or has a wrong value: the problem names the line and the key.
pub(super) fn request(path: &Path) -> Result<Request, Problem> {
    let problem = |cause: String| {
        Problem::failed(
            path.display().to_string(),
            cause,
            "correct the file, then shunt create -f again; shunt create --help has an example",
        )
        .with_exit(super::exit::Exit::Usage)
    };
    let text = read(path).map_err(|error| problem(format!("it cannot be read: {error}")))?;
    parse(&text).map_err(problem)
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let size = if path == Path::new(STANDARD_INPUT) {
        let input = std::io::stdin().lock();
        input.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?
    } else {
        let input = std::fs::File::open(path)?;
        input.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?
    };
    if size as u64 > FILE_BYTES_MAX {
        return Err(std::io::ErrorKind::FileTooLarge.into());
    }
    Ok(text)
}

fn parse(text: &str) -> Result<Request, String> {
    let file: SessionFile<IgnoredAny, IgnoredAny> =
        toml::from_str(text).map_err(|error| located(text, &error))?;
    let pairs = file.pairs.into_iter().map(|pair| PairSpec {
        volume: pair.volume,
        target: pair.target,
    });
    Ok(Request::Create {
        session: file.session,
        pairs: pairs.collect(),
        options: SessionOptions {
            overwrite: file.overwrite,
            accept_weak_identity: file.accept_weak_identity,
            detect_zeroes: file.detect_zeroes,
            on_authoritative_failure: file.on_authoritative_failure,
            verify: file.verify,
            rate_bytes_per_second: file.rate,
            priority: file.priority,
            switch: file.switch,
            max_latency_impact_percent: file.max_latency_impact,
            accept_unreadable_bytes: file.accept_unreadable,
            mode: file.mode,
            every_seconds: file.every,
            hours: file.window_hours,
            start_at_ms: file.start_at,
            max_duration_seconds: file.max_duration,
            switch_pairs: file.switch_pairs,
            cutover: CutoverOptions {
                action: file.cutover_action,
                attempts: file.attempts,
                duration_seconds: file.cutover_duration,
                floor_bytes_per_second: file.throttle_floor,
            },
            retire: file.retire,
        },
    })
}

/// The message of an error with its place, such as `line 3, priority: invalid value`.
fn located(text: &str, error: &toml::de::Error) -> String {
    let message = error.message();
    let Some(span) = error.span() else {
        return message.to_owned();
    };
    let before = &text[..span.start.min(text.len())];
    let number = before.matches('\n').count();
    let line = text.lines().nth(number).unwrap_or_default();
    match line.split_once('=') {
        Some((key, _)) => format!("line {}, {}: {message}", number + 1, key.trim()),
        None => format!("line {}: {message}", number + 1),
    }
}

/// The file of a session with its current state, as text.
#[must_use]
pub(super) fn show(session: &SessionRecord, records: &[Record]) -> String {
    let file = SessionFile {
        session: session.session.clone(),
        overwrite: session.options.overwrite,
        accept_weak_identity: session.options.accept_weak_identity,
        detect_zeroes: session.options.detect_zeroes,
        verify: session.options.verify,
        on_authoritative_failure: session.options.on_authoritative_failure,
        rate: session.options.rate_bytes_per_second,
        priority: session.options.priority,
        switch: session.options.switch.clone(),
        max_latency_impact: session.options.max_latency_impact_percent,
        accept_unreadable: session.options.accept_unreadable_bytes,
        mode: session.options.mode,
        every: session.options.every_seconds,
        window_hours: session.options.hours,
        start_at: session.options.start_at_ms,
        max_duration: session.options.max_duration_seconds,
        switch_pairs: session.options.switch_pairs,
        cutover_action: session.options.cutover.action,
        attempts: session.options.cutover.attempts,
        cutover_duration: session.options.cutover.duration_seconds,
        throttle_floor: session.options.cutover.floor_bytes_per_second,
        retire: session.options.retire,
        status: Some(SessionStatus {
            schema: JSON_SCHEMA,
            id: session.id.clone(),
            state: session.state.clone(),
            created: moments::text(session.created_at_ms / 1000),
            allowed: session.allowed.clone(),
        }),
        pairs: render::pairs(records, &session.session)
            .into_iter()
            .map(pair_entry)
            .collect(),
    };
    toml::to_string(&file).expect("numbers, names and paths that were text")
}

fn pair_entry(pair: &PairRecord) -> PairEntry<PairStatus> {
    PairEntry {
        volume: pair.volume.clone(),
        target: pair.target.clone(),
        status: Some(PairStatus {
            state: pair.state.clone(),
            source: pair.source.clone(),
            authoritative: pair.authoritative,
            total_bytes: pair.size_bytes,
            dirty_bytes: pair.dirty_bytes,
            copied_bytes: pair.copied_bytes,
            rate_bytes_per_second: pair.rate_bytes_per_second,
            eta_seconds: pair.eta_seconds,
            last_pause_us: pair.last_pause_us,
            problem: pair.problem.clone(),
            verification: pair.verification.clone(),
            unreadable: pair.unreadable.clone(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
session = "night"
verify = "read-back"
rate = "10MiB"
priority = 70
switch = "event:backup-done"
mode = "copy"
every = "1h 30m"
window-hours = "22:00-06:00"
start-at = "2030-01-02 03:04:05Z"
cutover-action = "abort"
throttle-floor = "2MiB"
max-latency-impact = "20%"
accept-unreadable = "1MiB"
max-duration = "8h"
switch-pairs = "each"

[status]
anything = "is left out of account"

[[pair]]
volume = "db"
target = "/dev/b"

[[pair]]
volume = "logs"
target = "/dev/c"
[pair.status]
state = "syncing"
"#;

    #[test]
    fn a_file_is_the_same_as_a_command_line() {
        let pair = |volume: &str, target: &str| PairSpec {
            volume: volume.to_owned(),
            target: target.parse().unwrap(),
        };
        let expected = Request::Create {
            session: "night".to_owned(),
            pairs: vec![pair("db", "/dev/b"), pair("logs", "/dev/c")],
            options: SessionOptions {
                verify: VerifyPolicy::ReadBack,
                rate_bytes_per_second: 10 << 20,
                priority: 70,
                switch: SwitchPolicy::OnEvent("backup-done".to_owned()),
                mode: SessionMode::Copy,
                every_seconds: 5400,
                hours: Hours {
                    from_minute: 22 * 60,
                    to_minute: 6 * 60,
                },
                start_at_ms: 1_893_553_445_000,
                cutover: CutoverOptions {
                    action: CutoverAction::Abort,
                    floor_bytes_per_second: 2 << 20,
                    ..CutoverOptions::default()
                },
                max_latency_impact_percent: 20,
                accept_unreadable_bytes: 1 << 20,
                max_duration_seconds: 8 * 3600,
                switch_pairs: SwitchPairs::Each,
                ..SessionOptions::default()
            },
        };
        assert_eq!(parse(WHOLE), Ok(expected));
    }

    #[test]
    fn what_is_wrong_is_named_by_line_and_key() {
        for (change, instead, words) in [
            ("priority = 70", "priority = 700", ["line 5", "priority"]),
            ("priority = 70", "priority = 101", ["line 5", "0 to 100"]),
            ("priority = 70", "priorty = 70", ["line 5", "priorty"]),
            ("10MiB", "fast", ["line 4, rate", "100MiB"]),
            ("read-back", "perhaps", ["line 3, verify", "perhaps"]),
            ("/dev/c", "c", ["line 27, target", "not absolute"]),
            ("volume = \"db\"", "", ["line 21", "volume"]),
            ("[[pair]]", "[[pair]", ["line 21", ""]),
            (
                "event:backup-done",
                "soon",
                ["line 6, switch", "when-synced"],
            ),
            ("1h 30m", "soon", ["line 8, every", "30m"]),
            ("22:00-06:00", "night", ["line 9, window-hours", "06:00"]),
            ("8h", "long", ["line 15, max-duration", "30m"]),
            ("\"each\"", "\"one\"", ["line 16, switch-pairs", "together"]),
            ("20%", "much", ["line 13, max-latency-impact", "20%"]),
            ("1MiB", "some", ["line 14, accept-unreadable", "none"]),
            ("2MiB", "unlimited", ["line 12, throttle-floor", "4MiB"]),
            ("session = \"night\"", "", ["session", "missing"]),
            ("priority = 70", "rate = \"1MiB\"", ["line 5", "duplicate"]),
        ] {
            let text = WHOLE.replacen(change, instead, 1);
            let cause = parse(&text).unwrap_err();
            for word in words {
                assert!(cause.contains(word), "{instead}: no {word:?} in {cause}");
            }
        }
        assert!(parse("").unwrap_err().contains("session"));
    }
}
