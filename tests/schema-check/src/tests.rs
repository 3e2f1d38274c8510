use serde_json::json;

use super::*;

fn event() -> Value {
    json!({
        "type": "event",
        "schema": schema_number(),
        "at_ms": 1,
        "cursor": "a-7-1",
        "session": null,
        "volume": "db",
        "who": 0,
        "what": "a sentence",
        "code": "role_moved",
        "from": "source",
        "to": "target",
        "epoch": null,
        "held_us": 3034,
        "expected_us": null,
    })
}

fn schema_number() -> Value {
    let schema: Value = serde_json::from_str(SCHEMAS[0].1).unwrap();
    schema["properties"]["schema"]["const"].clone()
}

fn cause(line: &Value) -> String {
    parse_line(&line.to_string()).unwrap_err()
}

#[test]
fn a_line_is_accepted_as_the_schema_says() {
    let line = event();
    assert_eq!(parse_line(&line.to_string()), Ok(line));
    let done =
        json!({"type": "done", "schema": schema_number(), "changed": true, "messages": ["a"]});
    assert_eq!(parse_lines(&format!("{done}\n{done}\n")).len(), 2);
}

#[test]
fn every_missing_field_and_an_unknown_one_are_refused() {
    let line = event();
    for field in line.as_object().unwrap().keys() {
        let mut cut = line.clone();
        cut.as_object_mut().unwrap().remove(field);
        assert!(
            cause(&cut).contains(field.as_str()) || field == "type",
            "{field}"
        );
    }
    let mut more = line.clone();
    more["held_ms"] = 3.into();
    assert_eq!(cause(&more), "event has the field held_ms");
    // A field of another event.
    more = line;
    more["copied_bytes"] = 3.into();
    assert_eq!(cause(&more), "event has the field copied_bytes");
}

#[test]
fn a_wrong_value_is_refused() {
    for (field, value) in [
        ("schema", json!(1)),
        ("at_ms", json!("now")),
        ("at_ms", json!(-1)),
        ("at_ms", json!(1.5)),
        ("who", json!("root")),
        ("code", json!("teleported")),
        ("to", json!("elsewhere")),
        ("type", json!("weather")),
    ] {
        let mut line = event();
        line[field] = value;
        assert!(!cause(&line).is_empty(), "{line}");
    }
    assert!(parse_line("[]").is_err() && parse_line("nothing").is_err());
}

#[test]
fn an_object_in_an_object_is_checked_as_well() {
    let mut line = event();
    line["code"] = "limits_set".into();
    for field in ["from", "to", "epoch", "held_us", "expected_us"] {
        line.as_object_mut().unwrap().remove(field);
    }
    let hours = |hours: Value| {
        let mut line = line.clone();
        line["changes"] = json!([{"priority": 5}, {"hours": hours}]);
        parse_line(&line.to_string())
    };
    hours(json!({"from_minute": 0, "to_minute": 60})).unwrap();
    let error = hours(json!({"from_minute": 0})).unwrap_err();
    assert_eq!(error, "event.changes[1].hours has no field to_minute");
    let error = hours(json!({"from_minute": 0, "to_minute": 60, "night": true})).unwrap_err();
    assert_eq!(error, "event.changes[1].hours has the field night");
    hours(json!({"from_minute": 0, "to_minute": 70000})).unwrap_err();
}

#[test]
fn an_unknown_keyword_is_an_error() {
    let schema = json!({"type": "string", "pattern": "^a"});
    let error = Check { root: &schema }.value(&schema, &"a".into(), "it");
    assert_eq!(
        error,
        Err("the check does not know the keyword pattern".to_owned())
    );
}
