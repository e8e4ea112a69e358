//! Checking a recipe's tree against the schemas, everything in one pass.
//!
//! The walk also makes the JSON that the typed readers take: components by their own kind and in their long form, paths
//! from the recipe's folder. That JSON only counts when there was no problem.

pub(super) mod component;
mod mapping;
pub(super) mod nearest;
mod number;
pub(super) mod text;
mod value;

use std::path::Path;

use serde_json::{Map as Object, Value};

use self::mapping::{Unknown, Visited};
use super::{
    Diagnostic,
    schema::{self, Schema},
    source::Span,
    yaml::Node,
};

/// Everything that is wrong with a tree, and its JSON.
#[derive(Debug)]
pub(super) struct Checked {
    /// What is wrong.
    pub problems: Vec<Diagnostic>,
    /// The top-level keys that were there, as JSON.
    pub values: Object<String, Value>,
}

/// Where the walk is.
#[derive(Debug, Clone)]
struct At<'a> {
    /// Dotted path.
    path: String,
    /// What to mark when the value itself has no place: its key.
    key: &'a Span,
}

impl<'a> At<'a> {
    fn key(&self, name: &str, key: &'a Span) -> At<'a> {
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        At { path, key }
    }

    fn item(&self, index: usize, key: &'a Span) -> At<'a> {
        At { path: format!("{}[{index}]", self.path), key }
    }

    /// The last key of the path, for messages.
    fn name(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or(&self.path)
    }
}

struct Checker<'a> {
    /// Whether all files were read to their end; if not, a key may be missing for that reason alone.
    complete: bool,
    /// The recipe's folder, absolute, from which its paths are kept.
    folder: &'a Path,
    problems: Vec<Diagnostic>,
    /// Keys that fit nowhere; what was meant is only known when every mapping has been seen.
    unknown: Vec<Unknown>,
    visited: Vec<Visited>,
}

/// Checks the merged tree of a recipe whose paths are kept from `folder`.
pub(super) fn check(root: &Node, folder: &Path, complete: bool) -> Checked {
    let (problems, unknown, visited) = (Vec::new(), Vec::new(), Vec::new());
    let mut checker = Checker { complete, folder, problems, unknown, visited };
    let values = checker.root(root);
    checker.resolve_unknown();
    Checked { problems: checker.problems, values }
}

impl Checker<'_> {
    fn root(&mut self, root: &Node) -> Object<String, Value> {
        let mut values = Object::new();
        let Some(map) = root.map() else { return values };
        let start = At { path: String::new(), key: &root.span };
        let mut keys = schema::builtin().keys();
        keys.extend(schema::sections().iter().map(|section| section.key));
        keys.sort_unstable();
        for entry in &map.entries {
            let at = start.key(&entry.key, &entry.key_span);
            match schema::top_level(&entry.key) {
                // The version has its own words, said where the file was read.
                Some(_) if entry.key == "schema" => {}
                Some(schema) => {
                    let value = self.value(&entry.value, schema, &at);
                    values.insert(entry.key.clone(), value);
                }
                None => self.unknown.push(Unknown::section(&entry.key, &at, keys.clone())),
            }
        }
        self.visited.push(Visited { path: String::new(), keys });
        values
    }

    fn report(&mut self, at: &At<'_>, problem: Diagnostic) -> Value {
        self.problems.push(problem.at(&at.path));
        Value::Null
    }

    /// Runs a check and takes back what it reported; gives its value and the number of its problems.
    fn attempt(&mut self, check: impl FnOnce(&mut Self) -> Value) -> (Value, Attempt) {
        let (problems, unknown, visited) = (self.problems.len(), self.unknown.len(), self.visited.len());
        let value = check(self);
        let attempt = Attempt {
            problems: self.problems.split_off(problems),
            unknown: self.unknown.split_off(unknown),
            visited: self.visited.split_off(visited),
        };
        (value, attempt)
    }

    fn accept(&mut self, attempt: Attempt) {
        self.problems.extend(attempt.problems);
        self.unknown.extend(attempt.unknown);
        self.visited.extend(attempt.visited);
    }
}

/// What a check reported that may still be taken back.
struct Attempt {
    problems: Vec<Diagnostic>,
    unknown: Vec<Unknown>,
    visited: Vec<Visited>,
}

impl Attempt {
    fn cost(&self) -> usize {
        self.problems.len() + self.unknown.len()
    }
}

/// What a schema asks for, in words: `a whole number`, `a text`, `an optimizer (a name, or a mapping with \`kind\`)`.
fn expected(schema: Schema) -> String {
    let mut words: Vec<String> = schema.alternatives().into_iter().flat_map(expected_one).collect();
    words.dedup();
    if words.len() > 1
        && let Some(word) = words.iter_mut().find(|word| *word == "true or false")
    {
        "true, false".clone_into(word);
    }
    let last = words.pop().unwrap_or_else(|| "any value".into());
    if words.is_empty() { last } else { format!("{} or {last}", words.join(", ")) }
}

fn expected_one(schema: Schema) -> Vec<String> {
    if let Some(slot) = schema.slot() {
        return vec![component::described(slot)];
    }
    if schema.choices().is_some() {
        return vec!["a name".into()];
    }
    let word = |name: &str| match name {
        "integer" => "a whole number",
        "number" => "a number",
        "boolean" => "true or false",
        "string" if schema.has("x-path") => "a path",
        "string" => "a text",
        "array" => "a list",
        _ => "a mapping",
    };
    schema.types().into_iter().map(|name| word(name).to_owned()).collect()
}
