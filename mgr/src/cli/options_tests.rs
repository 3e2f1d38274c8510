//! Walks the table of session options: each option has its argument, its key in a session file, and
//! its change by `set`, or a reason against one.

use clap::Parser;
use clap::error::ErrorKind;
use migration_proto::manager::{
    CutoverAction, CutoverOptions, Hours, JSON_SCHEMA, Request, RetireHow, SessionLimits,
    SessionMode, SessionOptions, SessionRecord, SwitchPairs, SwitchPolicy, VerifyPolicy,
};
use migration_proto::target::OnAuthoritativeFailure;

use super::args::{Arguments, Command, SessionCommand};
use super::session_file;
use crate::history;
use crate::options::forms::FileValue;
use crate::options::{self, SessionOption, Setting, TABLE};

/// Options of which each has another value than the default.
fn every_option() -> SessionOptions {
    SessionOptions {
        overwrite: true,
        accept_weak_identity: true,
        detect_zeroes: true,
        on_authoritative_failure: OnAuthoritativeFailure::Switch,
        verify: VerifyPolicy::ReadBack,
        rate_bytes_per_second: 10 << 20,
        priority: 70,
        switch: SwitchPolicy::OnEvent("backup-done".to_owned()),
        switch_pairs: SwitchPairs::Each,
        max_latency_impact_percent: 20,
        accept_unreadable_bytes: 1 << 20,
        mode: SessionMode::Copy,
        every_seconds: 5400,
        hours: Hours {
            from_minute: 22 * 60,
            to_minute: 6 * 60,
        },
        start_at_ms: 1_893_553_445_000,
        max_duration_seconds: 8 * 3600,
        cutover: CutoverOptions {
            action: CutoverAction::Abort,
            attempts: 7,
            duration_seconds: 60,
            floor_bytes_per_second: 2 << 20,
        },
        retire: Some(RetireHow::WipeSignatures),
    }
}

/// The options with their keys, and their values in [`every_option`] as a session file has them.
fn values() -> impl Iterator<Item = (&'static str, &'static SessionOption, FileValue)> {
    options::with_keys().map(|(key, option)| {
        let value = (option.write)(&every_option());
        (key, option, value.expect("it is not the default"))
    })
}

/// The argument with the value.
fn argument(key: &str, value: &FileValue) -> Vec<String> {
    let name = format!("--{key}");
    match value {
        FileValue::Flag(_) => vec![name],
        FileValue::Number(number) => vec![name, number.to_string()],
        FileValue::Text(text) => vec![name, text.clone()],
    }
}

fn parsed(words: &[&str], arguments: &[String]) -> Result<SessionCommand, clap::Error> {
    let words = ["shunt"].iter().chain(words).copied();
    let words = words.chain(arguments.iter().map(String::as_str));
    match Arguments::try_parse_from(words)?.command {
        Command::Session(command) => Ok(command),
        other => panic!("{other:?}"),
    }
}

fn created(arguments: &[String]) -> SessionOptions {
    match parsed(&["create", "s1", "db:/dev/b"], arguments).unwrap() {
        SessionCommand::Create { options, .. } => options.into_options(),
        other => panic!("{other:?}"),
    }
}

fn read(text: &str) -> SessionOptions {
    match session_file::parse(text).unwrap() {
        Request::Create { options, .. } => options,
        other => panic!("{other:?}"),
    }
}

fn shown(options: SessionOptions) -> String {
    let session = SessionRecord {
        schema: JSON_SCHEMA,
        session: "s1".to_owned(),
        id: "4711".to_owned(),
        state: "setup".to_owned(),
        pairs: 0,
        allowed: Vec::new(),
        options,
        cutover: None,
        created_at_ms: 0,
    };
    session_file::show(&session, &[])
}

#[test]
fn every_option_has_its_argument_of_create_beside_which_there_is_no_file() {
    let mut all = Vec::new();
    for (key, option, value) in values() {
        let argument = argument(key, &value);
        let options = created(&argument);
        assert_eq!((option.write)(&options), Some(value), "{key}");
        for other in TABLE.iter().filter(|other| other.id != option.id) {
            let default = (other.write)(&SessionOptions::default());
            assert_eq!((other.write)(&options), default, "{key} sets {}", other.id);
        }
        let error = parsed(&["create", "-f", "s1.toml"], &argument).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ArgumentConflict, "{key}");
        all.extend(argument);
    }
    assert_eq!(created(&all), every_option());
    assert_eq!(created(&[]), SessionOptions::default());
}

#[test]
fn every_option_is_read_from_a_file_as_it_is_shown() {
    for options in [every_option(), SessionOptions::default()] {
        assert_eq!(read(&shown(options.clone())), options);
    }
    let shown = shown(every_option());
    for (key, option, value) in values() {
        let line = format!("{key} = {}", toml::Value::try_from(&value).unwrap());
        assert!(shown.lines().any(|shown| shown == line), "{line}: {shown}");
        let options = read(&format!("session = \"s1\"\npair = []\n{line}\n"));
        assert_eq!((option.write)(&options), Some(value), "{key}");
    }
}

#[test]
fn a_date_is_no_value_of_an_option() {
    for (key, _) in options::with_keys() {
        let file = format!("session = \"s1\"\npair = []\n{key} = 2040-01-01\n");
        let cause = session_file::parse(&file).unwrap_err();
        assert!(cause.starts_with(&format!("line 3, {key}: ")), "{cause}");
    }
}

#[test]
fn set_changes_an_option_once_or_refuses_it_with_a_reason() {
    let mut limits_found = 0;
    for (key, option, value) in values() {
        let set = parsed(&["set", "s1"], &argument(key, &value));
        match option.set {
            Setting::Fixed(reason) => {
                assert_eq!(set.unwrap_err().kind(), ErrorKind::UnknownArgument, "{key}");
                assert!(!reason.is_empty(), "{key}");
            }
            Setting::Limit { .. } => {
                let Ok(SessionCommand::Set { limits, .. }) = set else {
                    panic!("{key}: {set:?}");
                };
                let limits = limits.into_limits();
                let mut options = SessionOptions::default();
                let changes = options::apply(&limits, &mut options);
                assert_eq!((option.write)(&options), Some(value), "{key}");
                assert_eq!(changes.len(), 1, "{key}: {changes:?}");
                assert!(!history::limits(&changes).is_empty(), "{key}");
                assert_eq!(options::apply(&limits, &mut options), [], "{key}");
                limits_found += 1;
            }
        }
    }
    let limits = serde_json::to_value(SessionLimits::default()).unwrap();
    assert_eq!(limits.as_object().unwrap().len(), limits_found);
}
