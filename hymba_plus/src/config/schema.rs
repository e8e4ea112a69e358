//! JSON schemas of sections and components, as the checker and the reference read them.

use std::{
    collections::BTreeMap,
    sync::{Mutex, OnceLock, PoisonError},
};

use serde_json::{Value, json};

use super::SCHEMA;
use crate::registry::{Entry, Registry, SectionEntry};

/// A place in a schema, and the schema that its references point into.
///
/// The schemas of a program are made once and live as long as it does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schema {
    root: &'static Value,
    here: &'static Value,
}

/// What a mapping may hold besides its named keys.
#[derive(Debug, Clone, Copy)]
pub(super) enum Others {
    /// Nothing.
    None,
    /// Any key, with such a value.
    Such(Schema),
    /// Anything.
    Any,
}

impl Schema {
    fn of(root: &'static Value) -> Self {
        Self { root, here: root }
    }

    fn at(self, here: &'static Value) -> Self {
        Self { root: self.root, here }
    }

    /// The schema that stands here once references are followed.
    pub fn resolve(self) -> Self {
        let mut here = self;
        // A chain of references ends; the bound only keeps a malformed schema from hanging the program.
        for _ in 0..16 {
            let Some(Value::String(reference)) = here.here.get("$ref") else { break };
            let Some(target) = reference.strip_prefix('#').and_then(|pointer| here.root.pointer(pointer))
            else {
                break;
            };
            here = here.at(target);
        }
        here
    }

    /// A keyword of it.
    pub fn get(self, keyword: &str) -> Option<&'static Value> {
        self.here.get(keyword)
    }

    /// A keyword that is a text.
    pub fn text(self, keyword: &str) -> Option<&'static str> {
        self.get(keyword).and_then(Value::as_str)
    }

    /// A keyword that is a number.
    pub fn number(self, keyword: &str) -> Option<f64> {
        self.get(keyword).and_then(Value::as_f64)
    }

    /// Whether a keyword is `true`.
    pub fn has(self, keyword: &str) -> bool {
        self.get(keyword) == Some(&Value::Bool(true))
    }

    /// The slot whose component stands here.
    pub fn slot(self) -> Option<&'static str> {
        self.text("x-slot")
    }

    /// The doc comment, its lines joined; that of the place before that of the type.
    pub fn doc(self) -> Option<String> {
        let text = self.text("description").or_else(|| self.resolve().text("description"))?;
        Some(text.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect::<Vec<_>>().join("\n"))
    }

    /// The first sentence or paragraph of the doc comment.
    pub fn brief(self) -> Option<String> {
        self.doc().and_then(|doc| doc.lines().next().map(str::to_owned))
    }

    /// The value when the key is not there.
    pub fn default(self) -> Option<&'static Value> {
        self.get("default")
    }

    /// The schema of a named key.
    pub fn property(self, key: &str) -> Option<Self> {
        self.get("properties")?.get(key).map(|here| self.at(here))
    }

    /// Names of all named keys, sorted.
    pub fn keys(self) -> Vec<&'static str> {
        let properties = self.get("properties").and_then(Value::as_object);
        let mut keys: Vec<_> =
            properties.into_iter().flat_map(|map| map.keys().map(String::as_str)).collect();
        keys.sort_unstable();
        keys
    }

    /// Names of the keys that must be there.
    pub fn required(self) -> Vec<&'static str> {
        self.get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect()
    }

    /// What a mapping may hold besides its named keys; one with named keys is closed unless it says otherwise.
    pub fn others(self) -> Others {
        match self.get("additionalProperties") {
            Some(Value::Bool(false)) => Others::None,
            Some(Value::Bool(true)) => Others::Any,
            Some(schema) => Others::Such(self.at(schema)),
            None if self.get("properties").is_some() => Others::None,
            None => Others::Any,
        }
    }

    /// The schema of an item of a list.
    pub fn item(self, index: usize) -> Option<Self> {
        let fixed = self.get("prefixItems").and_then(|items| items.get(index));
        fixed.or_else(|| self.get("items").filter(|items| !items.is_boolean())).map(|here| self.at(here))
    }

    /// The names of JSON types that fit, without `null`.
    pub fn types(self) -> Vec<&'static str> {
        let types = match self.get("type") {
            Some(Value::String(one)) => vec![one.as_str()],
            Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
            _ if self.get("properties").is_some() => vec!["object"],
            _ => Vec::new(),
        };
        types.into_iter().filter(|name| *name != "null").collect()
    }

    /// Whether `null` fits.
    pub fn nullable(self) -> bool {
        let null = |value: &Value| value.as_str() == Some("null");
        match self.get("type") {
            Some(Value::Array(several)) => several.iter().any(null),
            Some(one) => null(one),
            None => self.branches().into_iter().flatten().any(|branch| branch.resolve().nullable()),
        }
    }

    fn branches(self) -> Option<Vec<Self>> {
        let list = self.get("anyOf").or_else(|| self.get("oneOf"))?.as_array()?;
        Some(list.iter().map(|here| self.at(here)).collect())
    }

    /// The schemas of which one must fit, without that of `null`: mostly only this one.
    pub fn alternatives(self) -> Vec<Self> {
        let here = self.resolve();
        let Some(branches) = here.branches() else { return vec![here] };
        if here.choices().is_some() {
            return vec![here];
        }
        let some =
            branches.into_iter().map(Self::resolve).filter(|branch| branch.text("type") != Some("null"));
        some.flat_map(Self::alternatives).collect()
    }

    /// The words that fit, each with its doc comment, if the schema is a list of words.
    pub fn choices(self) -> Option<Vec<(&'static str, Option<String>)>> {
        if let Some(Value::Array(words)) = self.get("enum") {
            return Some(words.iter().filter_map(Value::as_str).map(|word| (word, None)).collect());
        }
        if let Some(word) = self.text("const") {
            return Some(vec![(word, self.brief())]);
        }
        let branches = self.branches()?;
        let some =
            branches.into_iter().map(Self::resolve).filter(|branch| branch.text("type") != Some("null"));
        let lists: Option<Vec<_>> = some.map(Self::choices).collect();
        lists.map(|lists| lists.into_iter().flatten().collect()).filter(|words: &Vec<_>| !words.is_empty())
    }
}

/// Top-level keys that every recipe has, whatever is registered.
pub(super) fn builtin() -> Schema {
    static BUILTIN: OnceLock<Value> = OnceLock::new();
    Schema::of(BUILTIN.get_or_init(|| {
        json!({
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "schema": {
                    "description": "Version of the recipe language.",
                    "type": "integer", "minimum": SCHEMA, "maximum": SCHEMA,
                },
                "extends": {
                    "description": "Files that this one builds on, from its own folder; later ones win over earlier \
                        ones, and this file over all.",
                    "anyOf": [{ "type": "string", "minLength": 1 }, { "type": "array", "items": { "type": "string", "minLength": 1 } }],
                },
                "base": {
                    "description": "Folder from which relative paths are taken. Resolved recipes have it; others leave \
                        it out, and their own folder is meant.",
                    "type": "string", "minLength": 1,
                },
                "name": {
                    "description": "Name of the run, the stem of the file if it is not given: small letters, digits, \
                        `_` and `-`.",
                    "type": "string", "pattern": "^[a-z0-9_-]+$", "x-identifier": true,
                },
                "description": {
                    "description": "What the recipe is for, in words.",
                    "type": "string",
                },
                "seed": {
                    "description": "Seed of everything random: starting values, shuffling, dropout, sampling.",
                    "type": "integer", "format": "uint64", "minimum": 0, "default": 0,
                },
            },
        })
    }))
}

/// The schema that takes everything.
pub(super) fn anything() -> Schema {
    static ANYTHING: Value = Value::Bool(true);
    Schema::of(&ANYTHING)
}

/// Registered sections, sorted by key.
pub(super) fn sections() -> Vec<&'static SectionEntry> {
    let mut sections: Vec<_> = inventory::iter::<SectionEntry>.into_iter().collect();
    sections.sort_by_key(|section| section.key);
    sections
}

/// The registered section of a top-level key.
pub(super) fn section(key: &str) -> Option<&'static SectionEntry> {
    inventory::iter::<SectionEntry>.into_iter().find(|section| section.key == key)
}

/// The schema of a top-level key.
pub(super) fn top_level(key: &str) -> Option<Schema> {
    builtin().property(key).or_else(|| section(key).map(section_schema))
}

/// The schema of a section.
pub(super) fn section_schema(section: &'static SectionEntry) -> Schema {
    cached(("", section.key), || section.schema().to_value())
}

/// The schema of a component's configuration, without `kind`.
pub(super) fn component_schema(entry: &'static Entry) -> Schema {
    cached((entry.slot, entry.kind), || entry.schema().to_value())
}

/// Components of a slot, sorted by kind; none if the registry itself is broken, which is reported elsewhere.
pub(super) fn components(slot: &str) -> Vec<&'static Entry> {
    Registry::global().map(|registry| registry.in_slot(slot).collect()).unwrap_or_default()
}

/// The component of a kind or alias.
pub(super) fn component(slot: &str, kind: &str) -> Option<&'static Entry> {
    Registry::global().ok().and_then(|registry| registry.get(slot, kind))
}

fn cached(name: (&'static str, &'static str), make: impl FnOnce() -> Value) -> Schema {
    static SCHEMAS: Mutex<BTreeMap<(&str, &str), &Value>> = Mutex::new(BTreeMap::new());
    let known = SCHEMAS.lock().unwrap_or_else(PoisonError::into_inner).get(&name).copied();
    // Made outside the lock; two threads that make the same one agree on the first.
    Schema::of(known.unwrap_or_else(|| {
        let new: &'static Value = Box::leak(Box::new(make()));
        *SCHEMAS.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_insert(new)
    }))
}
