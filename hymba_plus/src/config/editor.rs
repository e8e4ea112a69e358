//! One JSON Schema for editors: every section, every slot, every component of this program.

use serde_json::{Map as Object, Value, json};

use super::schema;
use crate::registry::{Entry, Registry};

/// JSON Schema (draft 2020-12) of a recipe for this program, for `# yaml-language-server: $schema=...`.
///
/// It asks for no key besides `schema`: what a file must have depends on what it extends, which an editor does not see.
/// `hymba validate` asks for the rest.
pub fn json_schema() -> Value {
    let mut definitions = Object::new();
    let mut properties = Object::new();
    let builtin = schema::builtin();
    for key in builtin.keys() {
        if let Some(property) = builtin.get("properties").and_then(|properties| properties.get(key)) {
            properties.insert(key.to_owned(), property.clone());
        }
    }
    for section in schema::sections() {
        define(&mut definitions, section.key, section.schema().to_value());
        properties.insert(section.key.to_owned(), reference(section.key));
    }
    for slot in Registry::slots() {
        let entries = schema::components(slot.name);
        for entry in &entries {
            let mut own = entry.schema().to_value();
            add_kind(&mut own, entry);
            define(&mut definitions, &format!("{}.{}", slot.name, entry.kind), own);
        }
        definitions.insert(slot.name.to_owned(), slot_schema(slot.name, slot.doc, &entries));
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "hymba_plus recipe",
        "type": "object",
        "additionalProperties": false,
        "required": ["schema"],
        "properties": properties,
        "$defs": definitions,
    })
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/$defs/{name}") })
}

/// A slot: the name of a component, or a mapping whose `kind` says which schema holds.
fn slot_schema(slot: &str, doc: &str, entries: &[&'static Entry]) -> Value {
    let names: Vec<&str> =
        entries.iter().flat_map(|entry| std::iter::once(&entry.kind).chain(entry.aliases)).copied().collect();
    let branch = |entry: &&'static Entry| {
        json!({
            "if": { "properties": { "kind": { "enum": names_of(entry) } }, "required": ["kind"] },
            "then": reference(&format!("{slot}.{}", entry.kind)),
        })
    };
    json!({
        "description": doc.trim(),
        "anyOf": [
            { "enum": names },
            {
                "type": "object",
                "properties": { "kind": { "enum": names } },
                "allOf": entries.iter().map(branch).collect::<Vec<_>>(),
            },
        ],
    })
}

fn names_of(entry: &Entry) -> Vec<&'static str> {
    std::iter::once(&entry.kind).chain(entry.aliases).copied().collect()
}

/// A component's own schema knows no `kind`, yet its mapping has one.
fn add_kind(schema: &mut Value, entry: &Entry) {
    let Some(object) = schema.as_object_mut() else { return };
    let properties = object.entry("properties").or_insert_with(|| json!({}));
    if let Some(properties) = properties.as_object_mut() {
        let kind = json!({ "description": entry.doc(), "enum": names_of(entry) });
        properties.insert("kind".into(), kind);
    }
}

/// Adds a schema under a name; its own definitions move beside it, so that equal names of two crates do not meet.
fn define(definitions: &mut Object<String, Value>, name: &str, mut schema: Value) {
    if let Some(object) = schema.as_object_mut() {
        object.remove("$schema");
        if let Some(Value::Object(own)) = object.remove("$defs") {
            for (inner, mut schema) in own {
                point(&mut schema, name);
                definitions.insert(format!("{name}.{inner}"), schema);
            }
        }
    }
    point(&mut schema, name);
    definitions.insert(name.to_owned(), schema);
}

/// Makes references point to where the definitions have moved, and slots to their schema; asks for no key.
fn point(schema: &mut Value, name: &str) {
    match schema {
        Value::Object(object) => {
            if object.get("required").is_some_and(Value::is_array) {
                object.remove("required");
            }
            if let Some(Value::String(slot)) = object.remove("x-slot") {
                let null = object
                    .remove("type")
                    .is_some_and(|types| types.as_array().is_some_and(|list| list.contains(&json!("null"))));
                let mut branches = vec![json!({ "$ref": format!("#/$defs/{slot}") })];
                branches.extend(null.then(|| json!({ "type": "null" })));
                object.insert("anyOf".into(), Value::Array(branches));
                return;
            } else if let Some(Value::String(target)) = object.get_mut("$ref") {
                *target = match target.strip_prefix("#/$defs/") {
                    Some(inner) => format!("#/$defs/{name}.{inner}"),
                    None => format!("#/$defs/{name}"),
                };
            }
            // A default is a value, not a schema: nothing in it points anywhere.
            object.iter_mut().filter(|(key, _)| *key != "default").for_each(|(_, inner)| point(inner, name));
        }
        Value::Array(list) => list.iter_mut().for_each(|inner| point(inner, name)),
        _ => {}
    }
}
