//! The page about the fields of all lines, made from the schemas.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::Value;

use super::{COMMAND, referenced};

/// The lines in the order of the page.
const ORDER: [&str; 10] = [
    "host", "volume", "session", "pair", "event", "live", "sample", "plan", "done", "error",
];

/// The page.
pub(super) fn page(schemas: &BTreeMap<String, Value>) -> String {
    let mut text = format!(
        "# The records of `--json`\n\n<!-- Made by `{COMMAND}`. -->\n\nOne section for each `type` of a line, then the types of their fields. \
         [README.md](README.md) has the rules that hold for all of them.\n"
    );
    let mut types = BTreeMap::new();
    assert_eq!(
        schemas.len(),
        ORDER.len(),
        "a type of line is not on the page"
    );
    for name in ORDER {
        let schema = &schemas[name];
        section(&mut text, name, schema);
        if name == "event" {
            text.push_str(
                "\nAn event also has a `code` and the fields of that code: see [history.md](../history.md).\n",
            );
        }
        let definitions = schema["$defs"].as_object().into_iter().flatten();
        types.extend(definitions.map(|(name, schema)| (name.clone(), schema.clone())));
    }
    for (name, schema) in &types {
        section(&mut text, name, schema);
    }
    text
}

fn section(text: &mut String, name: &str, schema: &Value) {
    let description = schema["description"].as_str().unwrap_or_default();
    let _ = write!(text, "\n## {name}\n\n{description}\n");
    if schema.get("properties").is_some() {
        table(text, schema);
    } else if let Some(forms) = schema["oneOf"].as_array() {
        text.push_str("\n| value | meaning |\n|---|---|\n");
        for form in forms {
            let meaning = form["description"].as_str().unwrap_or_default();
            let _ = writeln!(text, "| {} | {meaning} |", value(form));
        }
    }
}

fn table(text: &mut String, schema: &Value) {
    text.push_str("\n| field | type | meaning |\n|---|---|---|\n");
    for name in schema["required"].as_array().into_iter().flatten() {
        let name = name.as_str().unwrap_or_default();
        let field = &schema["properties"][name];
        let meaning = field["description"].as_str().unwrap_or_default();
        let _ = writeln!(text, "| `{name}` | {} | {meaning} |", kind(field));
    }
}

/// The value of a form: a name, or an object with its fields.
fn value(form: &Value) -> String {
    if let Some(name) = form["const"].as_str() {
        return format!("`\"{name}\"`");
    }
    let fields = form["required"].as_array().into_iter().flatten();
    let fields = fields.map(|name| {
        let name = name.as_str().unwrap_or_default();
        format!("`{name}`: {}", kind(&form["properties"][name]))
    });
    format!("object: {}", fields.collect::<Vec<_>>().join(", "))
}

fn kind(field: &Value) -> String {
    if let Some(name) = referenced(field) {
        return format!("[{name}](#{})", name.to_lowercase());
    }
    if let Some(value) = field.get("const") {
        return format!("`{value}`");
    }
    if let Some(forms) = field["anyOf"].as_array() {
        let forms: Vec<String> = forms.iter().map(kind).collect();
        return forms.join(" or ");
    }
    let one = |name: &str| match name {
        "array" => format!("list of {}", kind(&field["items"])),
        "object" => value(field),
        name => name.to_owned(),
    };
    match &field["type"] {
        Value::String(name) => one(name),
        Value::Array(names) => {
            let names: Vec<String> = names.iter().filter_map(Value::as_str).map(one).collect();
            names.join(" or ")
        }
        _ => String::new(),
    }
}
