//! The messages to and from `ublk-target`, compared with those of each version of the protocol that
//! is spoken. A `ublk-target` outlives updates of the other programs, so a message that changes
//! needs a new version.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use migration_proto::PROTOCOLS;
use migration_proto::target::{OnAuthoritativeFailure, Refusal, Request, Response, Suspended};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The messages of version 1, one in each line.
const REQUESTS: &str = include_str!("protocol-1/target-requests.jsonl");
const RESPONSES: &str = include_str!("protocol-1/target-responses.jsonl");

const ADVICE: &str = "the protocol to ublk-target has changed: a running ublk-target of an earlier release does not know \
                      that. Give PROTOCOLS a new version, keep speaking the old one, and add the new messages beside \
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
}

#[test]
fn a_leg_with_an_unknown_field_is_never_used() {
    for message in lines(RESPONSES) {
        let Some(leg) = message.get("source") else {
            continue;
        };
        let mut extended = message.clone();
        let mut more = leg.clone();
        more["extents"][0]["stripe_bytes"] = Value::from(65536);
        extended["source"] = more;
        serde_json::from_value::<Response>(extended).unwrap_err();
    }
}
