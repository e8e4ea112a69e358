//! The fields of a component's configuration, in words: for help and the reference page.

use serde_json::Value;

use super::Entry;

/// What stands for a field that a recipe leaves out.
#[derive(Debug, Clone, PartialEq)]
pub enum FieldDefault {
    /// Nothing: the recipe must give it.
    Required,
    /// Nothing: the field says what that means.
    Optional,
    /// This value.
    Value(Value),
}

/// A field of a configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// Its key.
    pub name: String,
    /// Its type in words: `integer`, `one of none, rms`, `component of slot norm`.
    pub kind: String,
    /// What stands for it when it is left out.
    pub default: FieldDefault,
    /// Its doc comment, on one line.
    pub doc: String,
}

impl Entry {
    /// The fields of the configuration, sorted by name.
    pub fn fields(&self) -> Vec<Field> {
        let schema = self.schema();
        let required: Vec<&str> = schema
            .get("required")
            .and_then(Value::as_array)
            .map(|names| names.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return Vec::new() };
        let field = |(name, property): (&String, &Value)| Field {
            name: name.clone(),
            kind: kind_of(property, schema.get("$defs")),
            default: match property.get("default") {
                Some(Value::Null) | None if required.contains(&name.as_str()) => FieldDefault::Required,
                Some(Value::Null) | None => FieldDefault::Optional,
                Some(value) => FieldDefault::Value(value.clone()),
            },
            doc: property.get("description").and_then(Value::as_str).unwrap_or_default().replace('\n', " "),
        };
        properties.iter().map(field).collect()
    }
}

/// The type of a field in words.
fn kind_of(property: &Value, definitions: Option<&Value>) -> String {
    if let Some(slot) = property.get("x-slot").and_then(Value::as_str) {
        return format!("component of slot {slot}");
    }
    if let Some(name) = property.get("$ref").and_then(Value::as_str).and_then(|path| path.rsplit('/').next())
    {
        return definitions
            .and_then(|all| all.get(name))
            .map_or(name.to_owned(), |found| kind_of(found, definitions));
    }
    for key in ["anyOf", "oneOf"] {
        if let Some(options) = property.get(key).and_then(Value::as_array) {
            let each =
                options.iter().filter(|option| option.get("type").and_then(Value::as_str) != Some("null"));
            return each.map(|option| kind_of(option, definitions)).collect::<Vec<_>>().join(" | ");
        }
    }
    if let Some(value) = property.get("const").and_then(Value::as_str) {
        return value.to_owned();
    }
    if let Some(values) = property.get("enum").and_then(Value::as_array) {
        return values.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" | ");
    }
    match property.get("type") {
        Some(Value::String(name)) if name == "array" => {
            let items =
                property.get("items").map_or("anything".to_owned(), |items| kind_of(items, definitions));
            format!("list of {items}")
        }
        Some(Value::String(name)) => name.clone(),
        Some(Value::Array(names)) => names
            .iter()
            .filter_map(Value::as_str)
            .filter(|name| *name != "null")
            .collect::<Vec<_>>()
            .join(" | "),
        _ => "anything".to_owned(),
    }
}
