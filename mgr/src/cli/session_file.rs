//! A session as a file: `create -f` reads it, and `show` prints it with the current state.
//!
//! Both use the same format: the name, the options in the order of their table (`crate::options`),
//! and the pairs. `show` adds the state in tables named `status`, which `create` ignores, so
//! `create` accepts the output of `show`.

use std::fmt::Formatter;
use std::io::Read;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::LazyLock;

use migration_proto::luns::LunPaths;
use migration_proto::manager::{
    JSON_SCHEMA, PairRecord, PairSpec, Record, Request, SessionOptions, SessionRecord,
    UnreadablePart, Verification,
};
use migration_proto::route::Side;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::problem::Problem;
use super::render;
use crate::moments;
use crate::options::{self, SessionOption};

/// The largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The path that stands for standard input.
const STANDARD_INPUT: &str = "-";

/// The key of the name of the session.
const SESSION: &str = "session";

/// The key of the state of the session.
const STATUS: &str = "status";

/// The key of the pairs.
const PAIR: &str = "pair";

/// All keys of the file, for the message about an unknown one.
static KEYS: LazyLock<Vec<&'static str>> = LazyLock::new(|| {
    let options = options::with_keys().map(|(key, _)| key);
    [SESSION]
        .into_iter()
        .chain(options)
        .chain([STATUS, PAIR])
        .collect()
});

/// A session in the file. `S` is the status of the session, `P` that of a pair.
#[derive(Debug)]
struct SessionFile<S, P> {
    session: String,
    options: SessionOptions,
    status: Option<S>,
    pairs: Vec<PairEntry<P>>,
}

impl<S: Serialize, P: Serialize> Serialize for SessionFile<S, P> {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        let mut file = serializer.serialize_map(None)?;
        file.serialize_entry(SESSION, &self.session)?;
        for (key, option) in options::with_keys() {
            if let Some(value) = (option.write)(&self.options) {
                file.serialize_entry(key, &value)?;
            }
        }
        if let Some(status) = &self.status {
            file.serialize_entry(STATUS, status)?;
        }
        file.serialize_entry(PAIR, &self.pairs)?;
        file.end()
    }
}

impl<'de, S: Deserialize<'de>, P: Deserialize<'de>> Deserialize<'de> for SessionFile<S, P> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FileVisitor(PhantomData))
    }
}

struct FileVisitor<S, P>(PhantomData<(S, P)>);

impl<'de, S: Deserialize<'de>, P: Deserialize<'de>> Visitor<'de> for FileVisitor<S, P> {
    type Value = SessionFile<S, P>;

    fn expecting(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a session")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut session, mut status, mut pairs) = (None, None, None);
        let mut options = SessionOptions::default();
        while let Some(key) = map.next_key::<Key>()? {
            match key {
                Key::Session => session = Some(map.next_value()?),
                Key::Status => status = Some(map.next_value()?),
                Key::Pairs => pairs = Some(map.next_value()?),
                Key::Option(option) => map.next_value_seed(OptionValue(option, &mut options))?,
            }
        }
        Ok(SessionFile {
            session: session.ok_or_else(|| A::Error::missing_field(SESSION))?,
            options,
            status,
            pairs: pairs.ok_or_else(|| A::Error::missing_field(PAIR))?,
        })
    }
}

/// A key of the file.
enum Key {
    Session,
    Option(&'static SessionOption),
    Status,
    Pairs,
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let key = String::deserialize(deserializer)?;
        match key.as_str() {
            SESSION => Ok(Self::Session),
            STATUS => Ok(Self::Status),
            PAIR => Ok(Self::Pairs),
            key => options::with_keys()
                .find(|(known, _)| *known == key)
                .map(|(_, option)| Self::Option(option))
                .ok_or_else(|| D::Error::unknown_field(key, &KEYS)),
        }
    }
}

/// Reads the value of an option into the options.
struct OptionValue<'a>(&'static SessionOption, &'a mut SessionOptions);

impl<'de> DeserializeSeed<'de> for OptionValue<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let value = toml::Value::deserialize(deserializer)?;
        (self.0.read)(value, self.1).map_err(D::Error::custom)
    }
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

pub(super) fn parse(text: &str) -> Result<Request, String> {
    let file: SessionFile<IgnoredAny, IgnoredAny> =
        toml::from_str(text).map_err(|error| located(text, &error))?;
    let pairs = file.pairs.into_iter().map(|pair| PairSpec {
        volume: pair.volume,
        target: pair.target,
    });
    Ok(Request::Create {
        session: file.session,
        pairs: pairs.collect(),
        options: file.options,
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
        options: session.options.clone(),
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
    use migration_proto::manager::{
        CutoverAction, CutoverOptions, Hours, SessionMode, SwitchPairs, SwitchPolicy, VerifyPolicy,
    };

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
