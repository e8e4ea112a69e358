//! The resolved recipe as YAML: the same bytes for the same recipe, wherever it lies.

use std::path::Path;

use serde_json::Value;
use serde_yaml::{Mapping, Value as Yaml};

use super::{normalise::visit, schema};

/// Keys that come first, in this order; the others follow by name.
const FIRST: [&str; 6] = ["schema", "name", "description", "seed", "base", "kind"];

/// A value as YAML, its keys in a fixed order.
pub(super) fn yaml(values: &Value) -> String {
    // Only keys that are no text make this fail, and JSON has none.
    serde_yaml::to_string(&ordered(values)).unwrap_or_default()
}

fn ordered(value: &Value) -> Yaml {
    match value {
        Value::Object(object) => {
            let mut keys: Vec<_> = object.keys().collect();
            // Sorted here, because whether the map keeps the order of insertion depends on who else links serde_json.
            keys.sort_by_key(|key| {
                (FIRST.iter().position(|first| first == key).unwrap_or(FIRST.len()), key.as_str())
            });
            let entry = |key: &String| (Yaml::from(key.as_str()), ordered(&object[key]));
            Yaml::Mapping(keys.into_iter().map(entry).collect::<Mapping>())
        }
        Value::Array(list) => Yaml::Sequence(list.iter().map(ordered).collect()),
        Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(number), ..) => Yaml::from(number),
            (_, Some(number), _) => Yaml::from(number),
            (_, _, number) => Yaml::from(number.unwrap_or_default()),
        },
        Value::String(text) => Yaml::from(text.as_str()),
        Value::Bool(value) => Yaml::from(*value),
        Value::Null => Yaml::Null,
    }
}

/// The values without what belongs to this machine: of an absolute path only the file's name stays.
pub(super) fn portable(values: &Value) -> Value {
    let mut values = values.clone();
    let Some(object) = values.as_object_mut() else { return values };
    for (key, value) in object.iter_mut() {
        let Some(schema) = schema::top_level(key) else { continue };
        // The visitor never fails.
        let _ = visit(value, schema, &mut String::new(), &mut |value, schema, _| {
            if let (true, Some(path)) = (schema.has("x-path"), value.as_str().map(Path::new))
                && path.is_absolute()
            {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                *value = Value::from(name);
            }
            Ok(())
        });
    }
    values
}
