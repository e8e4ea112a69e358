//! One value against its schema: picks what applies, reports wrong types.

use serde_json::Value;

use super::{At, Checker, Schema, expected};
use crate::config::{
    Diagnostic,
    yaml::{Node, Yaml},
};

impl Checker<'_> {
    /// Checks a value and gives its JSON; `null` where it was refused.
    pub(super) fn value(&mut self, node: &Node, schema: Schema, at: &At<'_>) -> Value {
        let here = schema.resolve();
        if let Yaml::Null = node.yaml
            && !anything(here)
        {
            return if here.nullable() { Value::Null } else { self.no_value(node, schema, at) };
        }
        let alternatives = here.alternatives();
        let mut fitting = alternatives.iter().copied().filter(|one| fits(node, *one));
        match (fitting.next(), fitting.next()) {
            (None, _) => self.wrong_type(node, schema, at),
            (Some(only), None) => self.one(node, only, at),
            (Some(_), Some(_)) => {
                self.best(node, alternatives.into_iter().filter(|one| fits(node, *one)), at)
            }
        }
    }

    /// Of several schemas that could be meant, the one with the fewest problems.
    fn best(&mut self, node: &Node, schemas: impl Iterator<Item = Schema>, at: &At<'_>) -> Value {
        let attempts: Vec<_> =
            schemas.map(|schema| self.attempt(|checker| checker.one(node, schema, at))).collect();
        match attempts.into_iter().min_by_key(|(_, attempt)| attempt.cost()) {
            Some((value, attempt)) => {
                self.accept(attempt);
                value
            }
            None => Value::Null,
        }
    }

    fn one(&mut self, node: &Node, schema: Schema, at: &At<'_>) -> Value {
        if let Some(slot) = schema.slot() {
            return self.component(node, slot, at);
        }
        match &node.yaml {
            Yaml::Text(text) if schema.choices().is_some() => self.choice(text, node, schema, at),
            Yaml::Text(text) => self.text(text, node, schema, at),
            Yaml::Int(value) if is_a(schema, "integer") => self.integer(*value, node, schema, at),
            Yaml::Int(value) => self.number(*value as f64, node, schema, at),
            Yaml::Float(value) => self.number(*value, node, schema, at),
            Yaml::List(list) => self.list(list, node, schema, at),
            Yaml::Map(map) => self.mapping(map, node, schema, at),
            Yaml::Bool(value) => Value::Bool(*value),
            Yaml::Null => Value::Null,
        }
    }

    fn list(&mut self, list: &[Node], node: &Node, schema: Schema, at: &At<'_>) -> Value {
        let bound = |keyword: &str| schema.get(keyword).and_then(Value::as_u64).map(|bound| bound as usize);
        let (least, most) = (bound("minItems").unwrap_or(0), bound("maxItems").unwrap_or(usize::MAX));
        if list.len() < least || list.len() > most {
            let rule = match (least, most) {
                (least, most) if least == most => format!("exactly {}", items(least)),
                (least, usize::MAX) => format!("at least {}", items(least)),
                (0, most) => format!("at most {}", items(most)),
                (least, most) => format!("{least} to {}", items(most)),
            };
            let message = format!("`{}` has {}", at.name(), items(list.len()));
            let help = if list.len() < least {
                format!("add {} more", least - list.len())
            } else {
                format!("remove {}", list.len() - most)
            };
            self.report(
                at,
                Diagnostic::new("length", &node.span, message)
                    .rule(format!("`{}` has {rule}", at.name()))
                    .help(help),
            );
        }
        let item = |(index, node): (usize, &Node)| match schema.item(index) {
            Some(schema) => self.value(node, schema, &at.item(index, &node.span)),
            None => json(node),
        };
        Value::Array(list.iter().enumerate().map(item).collect())
    }

    fn no_value(&mut self, node: &Node, schema: Schema, at: &At<'_>) -> Value {
        let written = node.span != *at.key && !node.span.text().is_empty();
        let message = if written {
            format!("`{}` cannot be null", at.name())
        } else {
            format!("`{}` has no value", at.name())
        };
        let has_none = schema
            .resolve()
            .slot()
            .is_some_and(|slot| crate::config::schema::component(slot, "none").is_some());
        let help = match schema.default() {
            _ if has_none => "write `none` to leave it empty".to_owned(),
            Some(default) => {
                format!("write a value, or remove the key: its default is {}", super::text::shown(default))
            }
            None => {
                keys_below(&schema.alternatives()).unwrap_or_else(|| "write a value after the `:`".to_owned())
            }
        };
        let problem =
            Diagnostic::new("no-value", &node.span, message).label(format!("expected {}", expected(schema)));
        self.report(at, problem.rule(super::text::rule(at, schema)).help(help))
    }

    fn wrong_type(&mut self, node: &Node, schema: Schema, at: &At<'_>) -> Value {
        let wanted = expected(schema);
        let message = format!("`{}` is {}, expected {wanted}", at.name(), described(node));
        let problem = Diagnostic::new("wrong-type", &node.span, message).label(format!("expected {wanted}"));
        let help = remedy(node, schema).unwrap_or_default();
        self.report(at, problem.rule(super::text::rule(at, schema)).help(help))
    }
}

fn items(count: usize) -> String {
    format!("{count} item{}", if count == 1 { "" } else { "s" })
}

/// What a value is, in words.
pub(super) fn described(node: &Node) -> String {
    let brief = node.brief();
    match &node.yaml {
        Yaml::Null => "null".into(),
        Yaml::Bool(_) => format!("`{brief}`"),
        Yaml::Int(_) => format!("the whole number {brief}"),
        Yaml::Float(_) => format!("the number {}", node.span.text().trim()),
        Yaml::Text(text) if text.is_empty() => "an empty text".into(),
        Yaml::Text(_) if node.quoted => format!("the text \"{brief}\""),
        Yaml::Text(_) => format!("the text `{brief}`"),
        Yaml::List(_) => "a list".into(),
        Yaml::Map(_) => "a mapping".into(),
    }
}

fn is_a(schema: Schema, name: &str) -> bool {
    schema.types().contains(&name)
}

/// Whether a schema takes whatever there is.
fn anything(schema: Schema) -> bool {
    schema.slot().is_none()
        && schema.types().is_empty()
        && schema.choices().is_none()
        && schema.alternatives().len() == 1
        && !schema.nullable()
}

/// Whether a value is of a kind that the schema takes, whatever is inside it.
fn fits(node: &Node, schema: Schema) -> bool {
    if schema.slot().is_some() {
        return matches!(node.yaml, Yaml::Text(_) | Yaml::Map(_));
    }
    if schema.choices().is_some() {
        return matches!(node.yaml, Yaml::Text(_));
    }
    anything(schema)
        || match node.yaml {
            Yaml::Text(_) => is_a(schema, "string"),
            Yaml::Bool(_) => is_a(schema, "boolean"),
            Yaml::Int(_) => is_a(schema, "integer") || is_a(schema, "number"),
            Yaml::Float(_) => is_a(schema, "number"),
            Yaml::List(_) => is_a(schema, "array"),
            Yaml::Map(_) => is_a(schema, "object"),
            Yaml::Null => false,
        }
}

/// What to write instead of a value of the wrong type, if that can be told.
fn remedy(node: &Node, schema: Schema) -> Option<String> {
    let alternatives = schema.alternatives();
    let wants = |name: &str| alternatives.iter().any(|one| is_a(*one, name));
    let (number, text) = (wants("integer") || wants("number"), wants("string"));
    Some(match &node.yaml {
        Yaml::Text(word) if wants("boolean") => match word.to_lowercase().as_str() {
            "true" | "false" if node.quoted => format!("remove the quotes: {}", word.to_lowercase()),
            "yes" | "on" | "y" | "true" => "write `true`: YAML 1.2 has only `true` and `false`".into(),
            "no" | "off" | "n" | "false" => "write `false`: YAML 1.2 has only `true` and `false`".into(),
            _ => "write `true` or `false`".into(),
        },
        Yaml::Text(word) if number => return super::number::meant(word, node.quoted, wants("number")),
        Yaml::Float(value) if wants("integer") && value.fract() == 0.0 && value.abs() < 1e15 => {
            format!("write {} (a whole number has neither point nor exponent)", *value as i64)
        }
        Yaml::Float(value) if wants("integer") && value.is_finite() => {
            format!("the nearest whole number is {}", value.round())
        }
        Yaml::Int(_) | Yaml::Float(_) | Yaml::Bool(_) if text => {
            format!("put it in quotes: \"{}\"", node.span.text().trim())
        }
        Yaml::Int(0) if wants("boolean") => "write `false`".into(),
        Yaml::Int(1) if wants("boolean") => "write `true`".into(),
        Yaml::Int(_) | Yaml::Float(_) | Yaml::Text(_) | Yaml::Bool(_) | Yaml::Map(_) if wants("array") => {
            match node.yaml {
                Yaml::Map(_) => "begin each item with `- `".into(),
                _ => format!("write a list: [{}]", node.span.text().trim()),
            }
        }
        Yaml::List(list) if list.len() == 1 => "write the value without the list".into(),
        Yaml::List(_) if !alternatives.iter().any(|one| one.slot().is_some()) => {
            "write a single value".into()
        }
        _ => {
            let slot = alternatives.iter().find_map(|one| one.slot()).map(super::component::kinds);
            let choices = alternatives.iter().find_map(|one| one.choices());
            let names = choices.map(|names| super::nearest::list(names.iter().map(|(name, _)| *name)));
            let named = names.map(|names| format!("write one of: {names}"));
            return slot.or_else(|| keys_below(&alternatives)).or(named);
        }
    })
}

/// Where the keys of a mapping go, if one is wanted.
fn keys_below(alternatives: &[Schema]) -> Option<String> {
    let mapping = alternatives.iter().find(|one| is_a(**one, "object"))?;
    Some(match mapping.keys().as_slice() {
        [] => "write `key: value` lines below it, indented".into(),
        keys => format!("its keys go below it, indented: {}", super::nearest::list(keys.iter().copied())),
    })
}

/// A value as it is, without a schema.
pub(super) fn json(node: &Node) -> Value {
    match &node.yaml {
        Yaml::Null => Value::Null,
        Yaml::Bool(value) => Value::Bool(*value),
        Yaml::Int(value) => integer(*value),
        Yaml::Float(value) => Value::from(*value),
        Yaml::Text(text) => Value::from(text.as_str()),
        Yaml::List(list) => Value::Array(list.iter().map(json).collect()),
        Yaml::Map(map) => {
            Value::Object(map.entries.iter().map(|entry| (entry.key.clone(), json(&entry.value))).collect())
        }
    }
}

/// A whole number as JSON; one that no 64 bits hold as the nearest real number.
pub(super) fn integer(value: i128) -> Value {
    if let Ok(value) = i64::try_from(value) {
        return Value::from(value);
    }
    u64::try_from(value).map_or_else(|_| Value::from(value as f64), Value::from)
}
