//! The rules for the names of fields, which `docs/schema/README.md` states.

use serde_json::Value;

use super::{schemas, visit};

/// The ends of the names of numbers: their units.
const UNITS: [&str; 7] = [
    "_bytes",
    "_bytes_per_second",
    "_us",
    "_ms",
    "_seconds",
    "_percent",
    // Of the day.
    "_minute",
];

/// The numbers without a unit: counts, numbers of things, and the priority.
const WITHOUT_UNIT: [&str; 13] = [
    "attempts",
    "blocks",
    "epoch",
    "failures",
    "pairs",
    "pairs_copied",
    "pairs_max",
    "pairs_queued",
    "pid",
    "priority",
    "restarts",
    "schema",
    "who",
];

/// The words for a moment in a description.
const MOMENT: &str = "since the Unix epoch";

/// Calls `look` with the name and the schema of every field of every line.
fn each_field(look: &mut dyn FnMut(&str, &Value)) {
    for schema in schemas().values() {
        visit(schema, &mut |part| {
            for (name, field) in part["properties"].as_object().into_iter().flatten() {
                look(name, field);
            }
        });
    }
}

/// Whether a field has no value at times.
fn may_be_null(field: &Value) -> bool {
    let null = Value::from("null");
    let types = field["type"].as_array().into_iter().flatten();
    let forms = field["anyOf"].as_array().into_iter().flatten();
    types
        .chain(forms.map(|form| &form["type"]))
        .any(|name| *name == null)
}

/// Whether a field is a number, or a list of numbers.
fn is_number(field: &Value) -> bool {
    let types = match &field["type"] {
        Value::String(name) => vec![name.as_str()],
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    types
        .iter()
        .any(|name| *name == "integer" || *name == "number")
        || types.contains(&"array") && is_number(&field["items"])
}

#[test]
fn every_field_is_snake_case_and_described_and_a_number_has_its_unit_and_null_has_a_meaning() {
    let mut fields = 0;
    each_field(&mut |name, field| {
        fields += 1;
        let is_snake_case = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        assert!(name.chars().all(is_snake_case), "{name}");
        let described = field.get("description").is_some() || field.get("const").is_some();
        assert!(described, "{name} has no description");
        let says_null = field["description"].to_string().contains("`null`");
        assert_eq!(says_null, may_be_null(field), "{name}: say what null means");
        if is_number(field) && name != "at_ms" {
            let has_unit = UNITS.iter().any(|unit| name.ends_with(unit));
            let is_known = WITHOUT_UNIT.contains(&name);
            assert!(
                has_unit != is_known,
                "{name}: say the unit in the name, or add it to the list"
            );
        }
    });
    assert!(fields > 100, "{fields}");
}

#[test]
fn a_moment_is_in_milliseconds_since_the_unix_epoch_and_its_name_says_so() {
    each_field(&mut |name, field| {
        let named = name == "at_ms" || name.ends_with("_at_ms");
        let description = field["description"].as_str().unwrap_or_default();
        assert_eq!(description.contains(MOMENT), named, "{name}: {description}");
        assert!(!named || is_number(field), "{name}");
        let looks_like_one = ["_at", "_time", "_date", "_since"];
        assert!(
            !looks_like_one.iter().any(|end| name.ends_with(end)),
            "{name}"
        );
    });
}
