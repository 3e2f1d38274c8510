//! The JSON Schemas of the lines of `--json`, made from their types, and the tests that compare
//! them with the files in `docs/schema`.
//!
//! After a change of a type, `SHUNT_WRITE_SCHEMA=1 cargo test -p migration-proto schema` writes the
//! files again.

mod names;
mod page;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use migration_core::cutover::FORCED_HOLD_NANOSECONDS;
use serde_json::{Map, Value, json};
use twox_hash::XxHash3_128;

use super::line::Line;
use super::options::{EVERY_SECONDS_MAX, PRIORITY_MAX};
use super::records::JSON_SCHEMA;
use crate::target::MAP_PARTS;

/// Set to write the files instead of comparing them.
const WRITE: &str = "SHUNT_WRITE_SCHEMA";
/// The command that writes the files.
const COMMAND: &str = "SHUNT_WRITE_SCHEMA=1 cargo test -p migration-proto schema";
/// The file with a digest of the schemas for each number; one number and one digest in each line.
const DIGESTS: &str = "digests.txt";
/// The file that describes all fields.
const PAGE: &str = "records.md";
/// The prefix of a reference to a definition.
const DEFINITIONS: &str = "#/$defs/";

/// The schemas of all types of lines, by the name of the type, without the number of the schema.
fn schemas() -> BTreeMap<String, Value> {
    let settings = schemars::generate::SchemaSettings::draft2020_12().for_serialize();
    let root = settings
        .into_generator()
        .into_root_schema_for::<Line<'static>>();
    let mut root = root.to_value();
    tidy(&mut root);
    let definitions = root["$defs"].as_object().unwrap().clone();
    let lines = root["oneOf"].as_array().unwrap();
    lines
        .iter()
        .map(|line| schema(line, &definitions))
        .collect()
}

/// The name and the schema of a type of line: the definition of its record with the field `type`.
fn schema(line: &Value, definitions: &Map<String, Value>) -> (String, Value) {
    let name = line["properties"]["type"]["const"].as_str().unwrap();
    let mut schema = definitions[referenced(line).unwrap()].clone();
    let tag = json!({ "description": "The type of the line.", "type": "string", "const": name });
    schema["properties"]["type"] = tag;
    let required = schema["required"].as_array_mut().unwrap();
    required.insert(0, "type".into());
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    schema["title"] = name.into();
    let used = used_by(&schema, definitions);
    if !used.is_empty() {
        schema["$defs"] = Value::Object(used);
    }
    close(&mut schema);
    (name.to_owned(), schema)
}

/// The name of the definition that a schema refers to.
fn referenced(schema: &Value) -> Option<&str> {
    schema["$ref"].as_str()?.strip_prefix(DEFINITIONS)
}

/// The definitions that a schema refers to, itself or through others.
fn used_by(schema: &Value, definitions: &Map<String, Value>) -> Map<String, Value> {
    let mut used = Map::new();
    let mut open = vec![schema.clone()];
    while let Some(schema) = open.pop() {
        visit(&schema, &mut |part| {
            let Some(name) = referenced(part) else {
                return;
            };
            if !used.contains_key(name) {
                used.insert(name.to_owned(), definitions[name].clone());
                open.push(definitions[name].clone());
            }
        });
    }
    used
}

/// Calls `look` with a schema and every schema in it.
fn visit(schema: &Value, look: &mut dyn FnMut(&Value)) {
    look(schema);
    for key in ["properties", "$defs"] {
        let parts = schema[key].as_object().into_iter().flatten();
        parts.for_each(|(_, part)| visit(part, look));
    }
    for key in ["oneOf", "anyOf"] {
        let parts = schema[key].as_array().into_iter().flatten();
        parts.for_each(|part| visit(part, look));
    }
    if let Some(items) = schema.get("items") {
        visit(items, look);
    }
}

/// As [`visit`], for changes.
fn visit_mut(schema: &mut Value, change: &mut dyn FnMut(&mut Value)) {
    change(schema);
    for key in ["properties", "$defs"] {
        let parts = schema.get_mut(key).and_then(Value::as_object_mut);
        for (_, part) in parts.into_iter().flatten() {
            visit_mut(part, change);
        }
    }
    for key in ["oneOf", "anyOf"] {
        let parts = schema.get_mut(key).and_then(Value::as_array_mut);
        for part in parts.into_iter().flatten() {
            visit_mut(part, change);
        }
    }
    if let Some(items) = schema.get_mut("items") {
        visit_mut(items, change);
    }
}

/// Makes descriptions of the doc comments, and moves the description of a variant with one value to
/// the field of the value.
fn tidy(schema: &mut Value) {
    visit_mut(schema, &mut |part| {
        if let Some(text) = part["description"].as_str().map(described) {
            part["description"] = text.into();
        }
        let Some(description) = part.get("description").cloned() else {
            return;
        };
        let properties = part.get_mut("properties").and_then(Value::as_object_mut);
        let only = properties.filter(|properties| properties.len() == 1);
        for (_, property) in only.into_iter().flatten() {
            if property.get("description").is_none() && property.get("const").is_none() {
                property["description"] = description.clone();
            }
        }
    });
}

/// A doc comment as a description: one line, names in the spelling of JSON, no links.
fn described(comment: &str) -> String {
    let constants = [
        ("PRIORITY_MAX", PRIORITY_MAX.to_string()),
        ("EVERY_SECONDS_MAX", EVERY_SECONDS_MAX.to_string()),
        ("MAP_PARTS", MAP_PARTS.to_string()),
        (
            "FORCED_HOLD_NANOSECONDS",
            format!("{} seconds", FORCED_HOLD_NANOSECONDS / 1_000_000_000),
        ),
    ];
    let comment = comment.replace('\n', " ");
    let mut text = String::new();
    let mut parts = comment.split("[`");
    text.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let (link, rest) = part.split_once("`]").unwrap();
        let rest = match rest.strip_prefix('(') {
            Some(target) => target.split_once(')').unwrap().1,
            None => rest,
        };
        let name = link.rsplit("::").next().unwrap();
        match constants.iter().find(|(constant, _)| *constant == name) {
            Some((_, value)) => text.push_str(value),
            None if name != link && name.starts_with(char::is_uppercase) => {
                text.push_str(&format!("`{}`", kebab(name)));
            }
            None => text.push_str(&format!("`{name}`")),
        }
        text.push_str(rest);
    }
    text
}

/// The name of a variant as serde writes it.
fn kebab(name: &str) -> String {
    let mut text = String::new();
    for (at, c) in name.char_indices() {
        if c.is_uppercase() && at > 0 {
            text.push('-');
        }
        text.extend(c.to_lowercase());
    }
    text
}

/// Lets an object have no other fields than those of its schema.
fn close(schema: &mut Value) {
    // The forms of an object that has common fields too are closed with the object itself.
    let mut forms = BTreeSet::new();
    visit(schema, &mut |part| {
        if part.get("properties").is_some() {
            let parts = part["oneOf"].as_array().into_iter().flatten();
            forms.extend(parts.map(ToString::to_string));
        }
    });
    visit_mut(schema, &mut |part| {
        if part.get("properties").is_none() || forms.contains(&part.to_string()) {
            return;
        }
        let key = match part.get("oneOf") {
            Some(_) => "unevaluatedProperties",
            None => "additionalProperties",
        };
        part[key] = false.into();
    });
}

/// A digest of what the schemas accept: descriptions do not count.
fn digest(schemas: &BTreeMap<String, Value>) -> String {
    let mut shapes = json!(schemas);
    for (_, shape) in shapes.as_object_mut().unwrap() {
        visit_mut(shape, &mut |part| {
            let part = part.as_object_mut().unwrap();
            part.retain(|key, _| !["title", "description"].contains(&key.as_str()));
        });
    }
    let mut text = String::new();
    write_sorted(&shapes, &mut text);
    format!("{:032x}", XxHash3_128::oneshot(text.as_bytes()))
}

/// Writes JSON with the fields in alphabetical order, whatever the features of `serde_json` are.
fn write_sorted(value: &Value, text: &mut String) {
    match value {
        Value::Object(fields) => {
            let fields: BTreeMap<&String, &Value> = fields.iter().collect();
            for (name, value) in fields {
                text.push_str(&format!("{{{name}:"));
                write_sorted(value, text);
                text.push('}');
            }
        }
        Value::Array(items) => {
            text.push('[');
            items.iter().for_each(|item| write_sorted(item, text));
            text.push(']');
        }
        _ => text.push_str(&value.to_string()),
    }
}

/// The schemas as the files have them: with the number.
fn numbered(mut schemas: BTreeMap<String, Value>) -> BTreeMap<String, Value> {
    for schema in schemas.values_mut() {
        schema["properties"]["schema"]["const"] = JSON_SCHEMA.into();
    }
    schemas
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/schema")
}

/// The digests that are checked in, by the number of the schema.
fn digests() -> BTreeMap<u32, String> {
    let text = std::fs::read_to_string(folder().join(DIGESTS)).unwrap_or_default();
    let parse = |line: &str| {
        let (number, digest) = line.split_once(' ').unwrap();
        (number.parse().unwrap(), digest.to_owned())
    };
    text.lines().map(parse).collect()
}

/// The names of the schema files in the folder.
fn files() -> BTreeSet<String> {
    let names = std::fs::read_dir(folder()).unwrap().map(|entry| {
        let name = entry.unwrap().file_name();
        name.into_string().unwrap()
    });
    let of_schema = |name: String| Some(name.strip_suffix(".json")?.to_owned());
    names.filter_map(of_schema).collect()
}

fn write(schemas: &BTreeMap<String, Value>) {
    for name in files() {
        std::fs::remove_file(folder().join(name + ".json")).unwrap();
    }
    for (name, schema) in schemas {
        let text = serde_json::to_string_pretty(schema).unwrap() + "\n";
        std::fs::write(folder().join(format!("{name}.json")), text).unwrap();
    }
    std::fs::write(folder().join(PAGE), page::page(schemas)).unwrap();
}

#[test]
fn the_schema_files_are_those_of_the_types_and_a_changed_type_has_a_new_number() {
    let schemas = schemas();
    let digest = digest(&schemas);
    let known = digests().get(&JSON_SCHEMA).cloned();
    let writes = std::env::var_os(WRITE).is_some();
    if writes && known.is_none() {
        let line = format!("{JSON_SCHEMA} {digest}\n");
        let path = folder().join(DIGESTS);
        let text = std::fs::read_to_string(&path).unwrap_or_default() + &line;
        std::fs::write(path, text).unwrap();
    } else {
        let advice = match known {
            None => format!("docs/schema/{DIGESTS} lacks the number: run `{COMMAND}`"),
            Some(_) => format!(
                "a type of a line of --json has changed. Raise JSON_SCHEMA in migration-proto/src/manager/records.rs \
                 (programs read the number to know what to expect), say in CHANGELOG.md what has changed, and run \
                 `{COMMAND}`"
            ),
        };
        assert_eq!(
            known.as_ref(),
            Some(&digest),
            "schema {JSON_SCHEMA}: {advice}"
        );
    }
    let schemas = numbered(schemas);
    if writes {
        return write(&schemas);
    }
    let advice = format!("docs/schema differs from the types: run `{COMMAND}`");
    let names: BTreeSet<String> = schemas.keys().cloned().collect();
    assert_eq!(files(), names, "{advice}");
    for (name, schema) in &schemas {
        let text = std::fs::read_to_string(folder().join(format!("{name}.json"))).unwrap();
        let file: Value = serde_json::from_str(&text).unwrap();
        // Not `assert_eq`: a schema is too long to be read in a message.
        assert!(file == *schema, "{name}: {advice}");
    }
    let text = std::fs::read_to_string(folder().join(PAGE)).unwrap_or_default();
    assert!(text == page::page(&schemas), "{PAGE}: {advice}");
}

#[test]
fn a_digest_depends_on_fields_and_not_on_descriptions() {
    let of = |field: &str, description: &str, kind: &str| {
        let field = json!({ field: { "description": description, "type": kind } });
        let schema = json!({ "properties": field, "required": [] });
        digest(&BTreeMap::from([("a".to_owned(), schema)]))
    };
    let first = of("size_bytes", "The size.", "integer");
    assert_eq!(of("size_bytes", "The length.", "integer"), first);
    assert_ne!(of("size", "The size.", "integer"), first);
    assert_ne!(of("size_bytes", "The size.", "string"), first);
    // A field may be called as a keyword is.
    assert_ne!(
        of("title", "The size.", "integer"),
        of("description", "The size.", "integer")
    );
}
