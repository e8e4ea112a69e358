//! Texts: names out of a list, paths, identifiers; and the rule of a key in words.

use std::path::Path;

use serde_json::Value;

use super::{At, Checker, Schema, expected, nearest};
use crate::config::{
    Diagnostic, Origin,
    path::{normal, portable, relative},
    yaml::Node,
};

impl Checker<'_> {
    /// A word out of a list.
    pub(super) fn choice(&mut self, word: &str, node: &Node, schema: Schema, at: &At<'_>) -> Value {
        let choices = schema.choices().unwrap_or_default();
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        if names.contains(&word) {
            return Value::from(word);
        }
        let message = format!("`{}` cannot be `{}`", at.name(), node.brief());
        let near = nearest::nearest(word, names.iter().copied());
        let label = near.map_or_else(
            || "not one of the allowed names".to_owned(),
            |near| format!("did you mean `{near}`?"),
        );
        let meaning =
            |name: &str| choices.iter().find(|(one, _)| *one == name).and_then(|(_, doc)| doc.clone());
        let help = match near {
            Some(near) => match meaning(near) {
                Some(doc) => format!("write `{near}`: {doc}"),
                None => format!("write `{near}`"),
            },
            None => "write one of these names".to_owned(),
        };
        let rule = format!("`{}` is one of: {}", at.name(), nearest::list(names));
        self.report(at, Diagnostic::new("bad-value", &node.span, message).label(label).rule(rule).help(help))
    }

    pub(super) fn text(&mut self, text: &str, node: &Node, schema: Schema, at: &At<'_>) -> Value {
        if schema.has("x-identifier") && !is_identifier(text) {
            let message = format!("`{}` cannot be the {}", node.brief(), at.name());
            let problem =
                Diagnostic::new("bad-value", &node.span, message).label("not a name for files and folders");
            let help = format!("write `{}`", identifier(text));
            return self
                .report(at, problem.rule("a name has small letters, digits, `_` and `-` only").help(help));
        }
        let length = |keyword: &str| schema.get(keyword).and_then(Value::as_u64).map(|bound| bound as usize);
        let count = text.chars().count();
        if length("minLength").is_some_and(|least| count < least) {
            let message = if text.is_empty() {
                format!("`{}` is empty", at.name())
            } else {
                format!("`{}` is too short", at.name())
            };
            let problem = Diagnostic::new("length", &node.span, message)
                .label(format!("expected {} that is not empty", expected(schema)));
            return self.report(at, problem.rule(rule(at, schema)).help("write a value, or remove the key"));
        }
        if let Some(most) = length("maxLength").filter(|most| count > *most) {
            let message = format!("`{}` has {count} characters, at most {most} are allowed", at.name());
            return self.report(
                at,
                Diagnostic::new("length", &node.span, message).rule(rule(at, schema)).help("shorten it"),
            );
        }
        if schema.has("x-path") {
            return self.path(text, node, schema, at);
        }
        Value::from(text)
    }

    /// A path: from the folder of the file that names it to one from the recipe's folder.
    fn path(&mut self, text: &str, node: &Node, schema: Schema, at: &At<'_>) -> Value {
        let written = Path::new(text);
        let absolute = normal(&node.span.source.folder().join(written));
        if schema.has("x-exists") && !absolute.exists() {
            let message = format!("there is no file {text}");
            let from = if written.is_absolute() {
                ""
            } else {
                ", taken from the folder of the recipe file that says so"
            };
            let problem = Diagnostic::new("missing-file", &node.span, message).label("does not exist");
            let help = crate::config::files::beside_it(&absolute, text);
            return self.report(
                at,
                problem.rule(format!("`{}` names a file or folder that exists{from}", at.name())).help(help),
            );
        }
        if written.is_absolute() {
            return Value::from(portable(&normal(written)));
        }
        let kept = relative(&absolute, self.folder);
        // From the command line, a path that leaves the recipe's folder is this machine's business.
        let elsewhere = node.span.source.origin() != Origin::File && kept.starts_with("..");
        Value::from(portable(if elsewhere { &absolute } else { &kept }))
    }
}

fn is_identifier(text: &str) -> bool {
    !text.is_empty()
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-')
}

/// The nearest name to a text: small letters, and `_` for whatever else stands between.
pub(in crate::config) fn identifier(text: &str) -> String {
    let lower = text.to_lowercase();
    let words: Vec<&str> = lower
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
        .filter(|word| !word.is_empty())
        .collect();
    if words.is_empty() { "recipe".to_owned() } else { words.join("_") }
}

/// What a key takes, in words: type, range, what it is for.
pub(in crate::config) fn rule_of(name: &str, schema: Schema) -> String {
    let here = schema.resolve();
    let range = here.alternatives().into_iter().find_map(super::number::range_words);
    let what = match (here.choices(), range) {
        (Some(choices), _) => format!("one of {}", nearest::list(choices.iter().map(|(name, _)| *name))),
        (None, Some(range)) => format!("{}, {range}", expected(here)),
        (None, None) => expected(here),
    };
    let doc = schema.brief().map(|doc| format!(": {doc}")).unwrap_or_default();
    format!("`{name}` takes {what}{doc}")
}

pub(super) fn rule(at: &At<'_>, schema: Schema) -> String {
    rule_of(at.name(), schema)
}

/// A default as it would be written in YAML.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("`{text}`"),
        Value::Object(map) => match map.get("kind").and_then(Value::as_str) {
            Some(kind) => format!("`{kind}`"),
            None => value.to_string(),
        },
        other => format!("`{other}`"),
    }
}
