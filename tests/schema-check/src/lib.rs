//! Compares the lines that `shunt --json` prints with the schema files in `docs/schema`, for tests.
//!
//! The check knows the keywords that these files use, and refuses any other one. A validator for
//! all of JSON Schema (the crate `jsonschema`) would bring forty more crates, and would switch on
//! features of crates that the programs use too, so that they would be compiled twice.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Map, Value};

/// The schema of each type of line.
const SCHEMAS: [(&str, &str); 10] = [
    ("done", include_str!("../../../docs/schema/done.json")),
    ("error", include_str!("../../../docs/schema/error.json")),
    ("event", include_str!("../../../docs/schema/event.json")),
    ("host", include_str!("../../../docs/schema/host.json")),
    ("live", include_str!("../../../docs/schema/live.json")),
    ("pair", include_str!("../../../docs/schema/pair.json")),
    ("plan", include_str!("../../../docs/schema/plan.json")),
    ("sample", include_str!("../../../docs/schema/sample.json")),
    ("session", include_str!("../../../docs/schema/session.json")),
    ("volume", include_str!("../../../docs/schema/volume.json")),
];

/// Parses lines of `--json`.
///
/// # Panics
/// If a line is not what the schema of its type says.
#[must_use]
#[track_caller]
pub fn parse_lines(text: &str) -> Vec<Value> {
    let parse = |line| match parse_line(line) {
        Ok(value) => value,
        Err(cause) => panic!("{cause}, which docs/schema does not allow: {line}"),
    };
    text.lines().map(parse).collect()
}

/// Parses a line of `--json`.
///
/// # Errors
/// The line is not what the schema of its type says; the text names the place.
pub fn parse_line(line: &str) -> Result<Value, String> {
    let value: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let name = value["type"].as_str().ok_or("the line has no type")?;
    let root = SCHEMAS_PARSED.get(name);
    let root = root.ok_or_else(|| format!("the line has the type {name:?}"))?;
    Check { root }.value(root, &value, name)?;
    Ok(value)
}

/// The schemas as JSON, by the type of line.
static SCHEMAS_PARSED: LazyLock<BTreeMap<&str, Value>> = LazyLock::new(|| {
    let parse = |(name, text)| (name, serde_json::from_str(text).expect("a schema is JSON"));
    SCHEMAS.into_iter().map(parse).collect()
});

/// A check against the definitions of one file.
struct Check<'a> {
    root: &'a Value,
}

impl Check<'_> {
    /// Checks a value that is at `place`.
    fn value(&self, schema: &Value, value: &Value, place: &str) -> Result<(), String> {
        let keywords = schema.as_object().ok_or("a schema is no object")?;
        for (keyword, argument) in keywords {
            self.keyword(keyword, argument, keywords, value, place)?;
        }
        Ok(())
    }

    fn keyword(
        &self,
        keyword: &str,
        argument: &Value,
        schema: &Map<String, Value>,
        value: &Value,
        place: &str,
    ) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("{place} is {value}: {what} {argument}"));
        match keyword {
            "$schema" | "$defs" | "title" | "description" | "format" => Ok(()),
            "type" if !has_type(value, argument) => wrong("the type is to be"),
            "const" if value != argument => wrong("the value is to be"),
            "enum" if !list(argument).contains(value) => wrong("the value is to be one of"),
            "minimum" if value.as_u64() < argument.as_u64() && !value.is_null() => {
                wrong("the least is")
            }
            "maximum" if value.as_u64() > argument.as_u64() && !value.is_null() => {
                wrong("the most is")
            }
            "type" | "const" | "enum" | "minimum" | "maximum" => Ok(()),
            "$ref" => {
                let name = argument.as_str().unwrap_or_default();
                let found = self.root.pointer(name.trim_start_matches('#'));
                let found = found.ok_or_else(|| format!("no definition {name}"))?;
                self.value(found, value, place)
            }
            "items" => {
                let mut items = list(value).iter().enumerate();
                let check = |(at, item)| self.value(argument, item, &format!("{place}[{at}]"));
                items.try_for_each(check)
            }
            "required" => {
                let missing = list(argument).iter().filter_map(Value::as_str);
                match missing.into_iter().find(|name| value.get(name).is_none()) {
                    Some(name) => Err(format!("{place} has no field {name}")),
                    None => Ok(()),
                }
            }
            "properties" => {
                let properties = argument.as_object().into_iter().flatten();
                let found =
                    properties.filter_map(|(name, schema)| Some((name, schema, value.get(name)?)));
                found.into_iter().try_for_each(|(name, schema, value)| {
                    self.value(schema, value, &format!("{place}.{name}"))
                })
            }
            "oneOf" | "anyOf" => self.form(argument, value, place).map(drop),
            "additionalProperties" | "unevaluatedProperties" if *argument == Value::Bool(false) => {
                let form = match schema.get("oneOf") {
                    Some(forms) => Some(self.form(forms, value, place)?),
                    None => None,
                };
                only_known(schema, form, value, place)
            }
            _ => Err(format!("the check does not know the keyword {keyword}")),
        }
    }

    /// The one form that a value has.
    fn form<'f>(&self, forms: &'f Value, value: &Value, place: &str) -> Result<&'f Value, String> {
        let mut errors = Vec::new();
        let mut found = Vec::new();
        for form in list(forms) {
            match self.value(form, value, place) {
                Ok(()) => found.push(form),
                // The cause is in the form that the value was to have.
                Err(error) if is_meant(form, value) => errors.insert(0, error),
                Err(error) => errors.push(error),
            }
        }
        match found[..] {
            [form] => Ok(form),
            [] => Err(errors.swap_remove(0)),
            _ => Err(format!("{place} has several forms")),
        }
    }
}

/// Whether a value was to have a form: the constant fields of the form are those of the value, or
/// if there are none, the value has all its fields.
fn is_meant(form: &Value, value: &Value) -> bool {
    let properties = form["properties"].as_object().into_iter().flatten();
    let constants = properties.filter_map(|(name, schema)| Some((name, schema.get("const")?)));
    let constants: Vec<_> = constants.collect();
    let mut required = list(&form["required"]).iter().filter_map(Value::as_str);
    match constants.is_empty() {
        true => required.all(|name| value.get(name).is_some()),
        false => constants
            .iter()
            .all(|(name, constant)| value.get(*name) == Some(*constant)),
    }
}

/// Checks that an object has no field that neither its schema nor its form names.
fn only_known(
    schema: &Map<String, Value>,
    form: Option<&Value>,
    value: &Value,
    place: &str,
) -> Result<(), String> {
    let known = |name: &String| {
        schema["properties"].get(name).is_some()
            || form.is_some_and(|form| form["properties"].get(name).is_some())
    };
    let mut fields = value
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, _)| name);
    match fields.find(|name| !known(name)) {
        Some(name) => Err(format!("{place} has the field {name}")),
        None => Ok(()),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn has_type(value: &Value, types: &Value) -> bool {
    let is = |name: &Value| match name.as_str().unwrap_or_default() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    };
    match types {
        Value::Array(types) => types.iter().any(is),
        one => is(one),
    }
}

#[cfg(test)]
mod tests;
