//! From checked JSON to typed values and back: every default filled in, in every section and component.

use std::fmt::Write as _;

use serde_json::{Map as Object, Value};

use super::schema::{self, Others, Schema};
use crate::registry::{ConfigError, SectionEntry};

/// A section with every default filled in, its components included.
pub(super) fn section(section: &'static SectionEntry, value: Value) -> Result<Value, ConfigError> {
    let mut value = section.normalise(value)?;
    visit(&mut value, schema::section_schema(section), &mut String::new(), &mut fill)?;
    Ok(value)
}

/// Reads a component as its type and writes it again. What is inside it comes after it, so that components that only its
/// defaults name are filled in too.
fn fill(value: &mut Value, schema: Schema, path: &str) -> Result<(), ConfigError> {
    let Some(slot) = schema.slot() else { return Ok(()) };
    let mut config = match value.take() {
        Value::Object(config) => config,
        Value::String(kind) => Object::from_iter([("kind".to_owned(), Value::String(kind))]),
        other => {
            *value = other;
            return Ok(());
        }
    };
    let kind = config.remove("kind");
    let Some(entry) = kind.as_ref().and_then(Value::as_str).and_then(|kind| schema::component(slot, kind))
    else {
        let message = format!("there is no {slot} named {}", kind.unwrap_or_default());
        return Err(ConfigError { path: path.to_owned(), message });
    };
    let filled = entry
        .normalise(Value::Object(config))
        .map_err(|error| ConfigError { path: join(path, &error.path), message: error.message })?;
    let mut filled = match filled {
        Value::Object(filled) => filled,
        _ => Object::new(), // a component without any key
    };
    filled.insert("kind".into(), Value::from(entry.kind));
    *value = Value::Object(filled);
    Ok(())
}

fn join(path: &str, inner: &str) -> String {
    match (path, inner) {
        (path, "." | "") => path.to_owned(),
        ("", inner) => inner.to_owned(),
        (path, inner) if inner.starts_with('[') => format!("{path}{inner}"),
        (path, inner) => format!("{path}.{inner}"),
    }
}

/// What is done at each place of a value: the value, its schema, its path.
pub(super) type Visitor<'a> = dyn FnMut(&mut Value, Schema, &str) -> Result<(), ConfigError> + 'a;

/// Visits every place of a value with the schema that applies there, outer places first.
pub(super) fn visit(
    value: &mut Value,
    schema: Schema,
    path: &mut String,
    visitor: &mut Visitor<'_>,
) -> Result<(), ConfigError> {
    let Some(schema) = schema.alternatives().into_iter().find(|one| fits(value, *one)) else { return Ok(()) };
    visitor(value, schema, path)?;
    let length = path.len();
    match value {
        Value::Array(list) => {
            for (index, item) in list.iter_mut().enumerate() {
                if let Some(schema) = schema.item(index) {
                    let _ = write!(path, "[{index}]");
                    visit(item, schema, path, visitor)?;
                    path.truncate(length);
                }
            }
        }
        Value::Object(object) => {
            let Some(schema) = inside(object, schema) else { return Ok(()) };
            for (key, item) in object.iter_mut() {
                let ((Some(schema), _) | (None, Others::Such(schema))) =
                    (schema.property(key), schema.others())
                else {
                    continue;
                };
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(key);
                visit(item, schema, path, visitor)?;
                path.truncate(length);
            }
        }
        _ => {}
    }
    Ok(())
}

/// The schema of an object's keys: that of its kind where it is a component.
pub(super) fn inside(object: &Object<String, Value>, schema: Schema) -> Option<Schema> {
    match schema.slot() {
        None => Some(schema),
        Some(slot) => {
            let kind = object.get("kind").and_then(Value::as_str)?;
            schema::component(slot, kind).map(schema::component_schema)
        }
    }
}

/// Whether a value, known to be right, may be meant by a schema.
pub(super) fn fits(value: &Value, schema: Schema) -> bool {
    let types = schema.types();
    let is = |name: &str| types.is_empty() || types.contains(&name);
    match value {
        Value::Null => false,
        Value::String(text) => match (schema.slot(), schema.choices()) {
            (Some(slot), _) => schema::component(slot, text).is_some(),
            (None, Some(choices)) => choices.iter().any(|(choice, _)| choice == text),
            (None, None) => is("string"),
        },
        Value::Object(object) => {
            if schema.slot().is_some() {
                inside(object, schema).is_some()
            } else {
                let closed = matches!(schema.others(), Others::None);
                is("object") && (!closed || object.keys().all(|key| schema.property(key).is_some()))
            }
        }
        _ if schema.slot().is_some() => false,
        Value::Bool(_) => is("boolean"),
        Value::Number(number) => is("number") || (is("integer") && !number.is_f64()),
        Value::Array(_) => is("array"),
    }
}

/// A typed reader's words without the names of the program's types.
pub(super) fn plain_words(message: &str) -> String {
    let mut text = message.split(" at line ").next().unwrap_or(message).to_owned();
    let whole = ["i8", "i16", "i32", "i64", "isize", "u8", "u16", "u32", "u64", "usize"];
    let words = whole.iter().map(|name| (*name, "a whole number")).chain([
        ("f32", "a number"),
        ("f64", "a number"),
        ("a boolean", "true or false"),
        ("a string", "a text"),
    ]);
    for (name, word) in words {
        for before in ["expected ", "a nonzero "] {
            if let Some(rest) = text.strip_suffix(&format!("{before}{name}")) {
                text = format!("{rest}{before}{word}").replace("a nonzero a ", "a ");
            }
        }
    }
    for (from, to) in [
        ("invalid type: ", "not "),
        ("invalid value: ", "not "),
        ("integer `", "the number `"),
        ("floating point `", "the number `"),
        ("string \"", "the text \""),
    ] {
        text = text.replace(from, to);
    }
    text
}
