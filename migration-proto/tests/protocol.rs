//! The messages to and from `ublk-target`, compared with those of each version of the protocol that
//! is spoken. A `ublk-target` outlives updates of the other programs, so a message that changes
//! needs a new version.
//!
//! The messages to and from `shuntd` are compared in the same way, without the records in the
//! answers: these have a number of their own (`JSON_SCHEMA`), and a table of digests.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use lun::{Identity, Kind};
use migration_proto::PROTOCOLS;
use migration_proto::manager::{
    self, CutoverAction, FailureKind, RetireHow, SessionLimits, SessionMode, SessionOptions,
    SwitchPairs, SwitchPolicy, VerifyPolicy,
};
use migration_proto::route::{Route, Side};
use migration_proto::target::{
    CopyMode, OnAuthoritativeFailure, Refusal, Request, Response, Suspended,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The messages of version 1, one in each line.
const REQUESTS: &str = include_str!("protocol-1/target-requests.jsonl");
const RESPONSES: &str = include_str!("protocol-1/target-responses.jsonl");

/// The messages of the protocol to `shuntd`, as above.
const MANAGER_REQUESTS: &str = include_str!("protocol-1/manager-requests.jsonl");
const MANAGER_RESPONSES: &str = include_str!("protocol-1/manager-responses.jsonl");

const ADVICE: &str = "the protocol has changed: a running ublk-target or shuntd of an earlier release does not know that. \
                      Give PROTOCOLS a new version, keep speaking the old one, and add the new messages beside \
                      the old ones";

fn lines(text: &str) -> impl Iterator<Item = Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap())
}

/// A message is read, and written again, as it was.
fn assert_unchanged<T: Serialize + DeserializeOwned>(frozen: &Value) {
    let message: T = serde_json::from_value(frozen.clone())
        .unwrap_or_else(|error| panic!("{frozen}: {error}; {ADVICE}"));
    let written = serde_json::to_value(&message).unwrap();
    assert_eq!(written, *frozen, "{ADVICE}");
}

/// The names of all variants of an enum, as serde knows them. `json`: a value of it, with `?` in
/// place of the name of the variant.
fn variants<T: DeserializeOwned>(json: &str) -> BTreeSet<String> {
    let Err(error) = serde_json::from_str::<T>(json) else {
        panic!("{json} is accepted");
    };
    let error = error.to_string();
    let names = error.split_once("expected").unwrap().1;
    names
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// The fields of an identity that each LUN has.
const OF_EVERY_LUN: [&str; 3] = ["kind", "size_bytes", "logical_block_bytes"];

/// The values of a field in all messages that have it.
fn values(text: &str, field: &str) -> BTreeSet<String> {
    lines(text)
        .filter_map(|message| Some(message.get(field)?.as_str()?.to_owned()))
        .collect()
}

#[test]
fn all_messages_of_version_1_are_as_they_were() {
    assert!(PROTOCOLS.contains(1), "remove the messages of version 1");
    lines(REQUESTS).for_each(|message| assert_unchanged::<Request>(&message));
    lines(RESPONSES).for_each(|message| assert_unchanged::<Response>(&message));
}

#[test]
fn all_messages_of_version_1_to_shuntd_are_as_they_were() {
    assert!(PROTOCOLS.contains(1), "remove the messages of version 1");
    lines(MANAGER_REQUESTS).for_each(|message| assert_unchanged::<manager::Request>(&message));
    lines(MANAGER_RESPONSES).for_each(|message| assert_unchanged::<manager::Response>(&message));
}

#[test]
fn every_variant_is_among_the_messages_to_shuntd() {
    let known = variants::<manager::Request>(r#"{"request":"?"}"#);
    assert_eq!(values(MANAGER_REQUESTS, "request"), known, "{ADVICE}");
    let known = variants::<manager::Response>(r#"{"response":"?"}"#);
    assert_eq!(values(MANAGER_RESPONSES, "response"), known, "{ADVICE}");
    let known = variants::<FailureKind>(r#""?""#);
    assert_eq!(values(MANAGER_RESPONSES, "kind"), known, "{ADVICE}");
    for (known, field) in [
        (
            variants::<OnAuthoritativeFailure>(r#""?""#),
            "on_authoritative_failure",
        ),
        (variants::<VerifyPolicy>(r#""?""#), "verify"),
        (variants::<SwitchPairs>(r#""?""#), "switch_pairs"),
        (variants::<SessionMode>(r#""?""#), "mode"),
        (variants::<CutoverAction>(r#""?""#), "action"),
        (variants::<RetireHow>(r#""?""#), "how"),
    ] {
        for name in known {
            let text = format!("\"{field}\":\"{name}\"");
            assert!(MANAGER_REQUESTS.contains(&text), "{text}; {ADVICE}");
        }
    }
    for name in variants::<SwitchPolicy>(r#""?""#) {
        let [alone, with_value] =
            ["\"switch\":", "\"switch\":{"].map(|start| format!("{start}\"{name}\""));
        let found = MANAGER_REQUESTS.contains(&alone) || MANAGER_REQUESTS.contains(&with_value);
        assert!(found, "{alone}; {ADVICE}");
    }
}

/// A request without one of its options, or with an unknown option, is refused: so a change of
/// these fields is a change of the protocol.
#[test]
fn every_option_and_limit_is_among_the_messages_to_shuntd() {
    let fields = |key: &str| -> BTreeSet<String> {
        let all = lines(MANAGER_REQUESTS);
        let objects = all.filter_map(|message| message.get(key)?.as_object().cloned());
        objects
            .flat_map(|object| object.into_iter().map(|(name, _)| name))
            .collect()
    };
    assert_eq!(
        fields("options"),
        variants::<SessionOptions>(r#"{"?":1}"#),
        "{ADVICE}"
    );
    assert_eq!(
        fields("limits"),
        variants::<SessionLimits>(r#"{"?":1}"#),
        "{ADVICE}"
    );
}

#[test]
fn every_variant_is_among_the_messages() {
    let known = variants::<Request>(r#"{"request":"?"}"#);
    assert_eq!(values(REQUESTS, "request"), known, "{ADVICE}");
    let known = variants::<Response>(r#"{"response":"?"}"#);
    assert_eq!(values(RESPONSES, "response"), known, "{ADVICE}");
    let known = variants::<Refusal>(r#""?""#);
    assert_eq!(values(RESPONSES, "reason"), known, "{ADVICE}");
    let known = variants::<OnAuthoritativeFailure>(r#""?""#);
    assert_eq!(values(REQUESTS, "policy"), known, "{ADVICE}");
    let known = variants::<Suspended>(r#""?""#);
    assert_eq!(values(RESPONSES, "ended"), known, "{ADVICE}");
    let known = variants::<CopyMode>(r#""?""#);
    assert_eq!(values(REQUESTS, "mode"), known, "{ADVICE}");
    for (known, field) in [
        (variants::<Route>(r#"{"kind":"?"}"#), r#""route":{"kind":"#),
        (variants::<Kind>(r#""?""#), r#""identity":{"kind":"#),
        (variants::<Side>(r#""?""#), r#""side":"#),
    ] {
        for name in known {
            assert!(
                REQUESTS.contains(&format!("{field}\"{name}\"")),
                "{field}{name}; {ADVICE}"
            );
        }
    }
}

/// A request may set a condition in the field that is not known. An answer may only say more.
#[test]
fn an_unknown_field_is_refused_in_a_request_and_ignored_in_an_answer() {
    let with_more = |mut message: Value| {
        let fields = message.as_object_mut().unwrap();
        fields.insert("more".to_owned(), Value::from(1));
        message
    };
    for message in lines(REQUESTS).map(with_more) {
        // Serde accepts any fields beside a variant that has none.
        let has_fields = message.as_object().unwrap().len() > 2;
        let read = serde_json::from_value::<Request>(message.clone());
        assert!(read.is_err() || !has_fields, "{message}");
    }
    for message in lines(RESPONSES) {
        let read: Response = serde_json::from_value(with_more(message.clone())).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), message);
    }
    for message in lines(MANAGER_REQUESTS).map(with_more) {
        let read = serde_json::from_value::<manager::Request>(message.clone());
        assert!(read.is_err(), "{message}");
    }
    for message in lines(MANAGER_RESPONSES) {
        let read: manager::Response = serde_json::from_value(with_more(message.clone())).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), message);
    }
}

/// A field that is missing would mean "no problem" if it were read as null.
#[test]
fn an_answer_without_one_of_its_fields_is_refused() {
    for message in lines(RESPONSES) {
        for place in places(&message, "") {
            let mut cut = message.clone();
            let (object, field) = place.rsplit_once('/').unwrap();
            let object = cut.pointer_mut(object).unwrap().as_object_mut().unwrap();
            object.remove(field).unwrap();
            let read = serde_json::from_value::<Response>(cut);
            assert!(read.is_err(), "without {place}: {message}");
        }
    }
}

/// The JSON pointers of all fields of a message, except those of an identity that may be absent.
fn places(message: &Value, above: &str) -> Vec<String> {
    let inner = |(name, value): (String, &Value)| {
        let place = format!("{above}/{name}");
        let is_optional = above.ends_with("/identity") && !OF_EVERY_LUN.contains(&name.as_str());
        let own = (message.is_object() && !is_optional).then(|| place.clone());
        own.into_iter().chain(places(value, &place))
    };
    match message {
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| (name.clone(), value));
            fields.flat_map(inner).collect()
        }
        Value::Array(items) => {
            let items = items.iter().enumerate();
            items
                .map(|(at, item)| (at.to_string(), item))
                .flat_map(inner)
                .collect()
        }
        _ => Vec::new(),
    }
}

/// What says where data lies is read whole or not at all.
#[test]
fn an_unknown_field_in_a_leg_or_an_open_lun_is_refused() {
    let mut found = 0;
    for message in lines(RESPONSES) {
        let places = places(&message, "");
        let of_lun = [
            "extents/0/path",
            "identity/kind",
            "open/0/path",
            "source_open/0/path",
        ];
        for place in places
            .iter()
            .filter(|place| of_lun.iter().any(|end| place.ends_with(end)))
        {
            let mut extended = message.clone();
            let (object, _) = place.rsplit_once('/').unwrap();
            extended.pointer_mut(object).unwrap()["stripe_bytes"] = Value::from(65536);
            let read = serde_json::from_value::<Response>(extended);
            assert!(read.is_err(), "{place}: {message}");
            found += 1;
        }
    }
    assert!(found > 10, "{found}");
}

/// An identity that an older program refuses makes every request with a leg fail, so a field that
/// is new in it needs a new version, also if it may be absent.
#[test]
fn every_field_of_an_identity_is_among_the_messages() {
    let known = variants::<Identity>(r#"{"?":1}"#);
    let mut found = BTreeSet::new();
    for message in lines(REQUESTS) {
        let extents = message.pointer("/target/extents").and_then(Value::as_array);
        for extent in extents.into_iter().flatten() {
            found.extend(extent["identity"].as_object().unwrap().keys().cloned());
        }
    }
    assert_eq!(found, known, "{ADVICE}");
}
