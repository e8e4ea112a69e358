//! Mappings: keys that are missing and keys that do not belong.

use serde_json::{Map as Object, Value};

use super::{At, Checker, nearest};
use crate::config::{
    Diagnostic, Span,
    schema::{self, Others, Schema},
    yaml::{Entry, Map, Node, Yaml},
};

/// Code of the problem that a key is missing.
const MISSING: &str = "missing-key";

/// A mapping that was seen, and the keys that it takes.
#[derive(Debug)]
pub(super) struct Visited {
    pub path: String,
    pub keys: Vec<&'static str>,
}

/// A key that its mapping does not take.
#[derive(Debug)]
pub(super) struct Unknown {
    key: String,
    path: String,
    parent: String,
    span: Span,
    owner: Owner,
    keys: Vec<&'static str>,
}

/// What a mapping configures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// The recipe itself.
    Recipe,
    /// A part of a section.
    Part,
    /// A component of a slot.
    Component { slot: &'static str, kind: &'static str },
}

impl Unknown {
    pub fn section(key: &str, at: &At<'_>, keys: Vec<&'static str>) -> Self {
        let (path, span) = (at.path.clone(), at.key.clone());
        Self { key: key.to_owned(), path, parent: String::new(), span, owner: Owner::Recipe, keys }
    }

    /// The path of another key of the same mapping.
    fn path_of(&self, key: &str) -> String {
        if self.parent.is_empty() { key.to_owned() } else { format!("{}.{key}", self.parent) }
    }
}

impl Checker<'_> {
    /// A mapping that is no component.
    pub(super) fn mapping(&mut self, map: &Map, node: &Node, schema: Schema, at: &At<'_>) -> Value {
        let object = self.keys(map.entries.iter(), node, schema, at, Owner::Part);
        Value::Object(object)
    }

    /// Keys of a mapping against their schema; those of a component come without `kind`.
    pub(super) fn keys<'n>(
        &mut self,
        entries: impl Iterator<Item = &'n Entry>,
        node: &Node,
        schema: Schema,
        at: &At<'_>,
        owner: Owner,
    ) -> Object<String, Value> {
        let mut object = Object::new();
        let keys = schema.keys();
        for entry in entries {
            let inner = at.key(&entry.key, &entry.key_span);
            let value = match (schema.property(&entry.key), schema.others()) {
                (Some(schema), _) | (None, Others::Such(schema)) => self.value(&entry.value, schema, &inner),
                (None, Others::Any) => super::value::json(&entry.value),
                (None, Others::None) => {
                    self.unknown.push(Unknown {
                        key: entry.key.clone(),
                        path: inner.path,
                        parent: at.path.clone(),
                        span: entry.key_span.clone(),
                        owner,
                        keys: keys.clone(),
                    });
                    continue;
                }
            };
            object.insert(entry.key.clone(), value);
        }
        if self.complete {
            for key in schema.required().into_iter().filter(|key| !object.contains_key(*key)) {
                self.missing(key, node, schema, at, owner);
            }
        }
        // Parts that are not written out could still be where a misplaced key belongs.
        for key in keys.iter().filter(|key| !object.contains_key(**key)) {
            let inner = schema.property(key).map(Schema::alternatives).unwrap_or_default();
            let keys = inner.into_iter().find(|one| one.get("properties").is_some()).map(Schema::keys);
            self.visited.extend(keys.map(|keys| Visited { path: at.key(key, at.key).path, keys }));
        }
        self.visited.push(Visited { path: at.path.clone(), keys });
        object
    }

    fn missing(&mut self, key: &str, node: &Node, schema: Schema, at: &At<'_>, owner: Owner) {
        let who = match owner {
            Owner::Component { kind, .. } => kind.to_owned(),
            _ => at.name().to_owned(),
        };
        // The key of the mapping, where it has one; an item of a list has only itself.
        let place = if at.path.ends_with(']') { &node.span } else { at.key };
        let problem = Diagnostic::new(MISSING, place, format!("`{who}` has no `{key}`"))
            .label(format!("`{key}` is missing here"))
            .rule(
                schema
                    .property(key)
                    .map_or_else(|| format!("`{key}` is required"), |one| super::text::rule_of(key, one)),
            )
            .help(match (&node.yaml, owner) {
                (Yaml::Text(_), Owner::Component { kind, .. }) => {
                    format!("write it out: `{{kind: {kind}, {key}: ...}}`")
                }
                _ => format!("add `{key}: ...`; it has no default"),
            });
        let path = if at.path.is_empty() { key.to_owned() } else { format!("{}.{key}", at.path) };
        self.problems.push(problem.at(path));
    }

    /// Says of each key that does not belong what was probably meant, now that every mapping has been seen.
    pub(super) fn resolve_unknown(&mut self) {
        for unknown in std::mem::take(&mut self.unknown) {
            if let Some(near) = nearest::nearest(&unknown.key, unknown.keys.iter().copied()) {
                // A key that is there, only misspelt, is not missing too.
                let path = unknown.path_of(near);
                self.problems.retain(|problem| problem.code != MISSING || problem.path != path);
            }
            let problem = self.unknown(&unknown);
            self.problems.push(problem);
        }
    }

    fn unknown(&self, unknown: &Unknown) -> Diagnostic {
        let Unknown { key, owner, keys, .. } = unknown;
        let keys = keys.iter().copied().filter(|key| *key != "base");
        let rule = match owner {
            Owner::Recipe => format!("a recipe has the keys: {}", nearest::list(keys.clone())),
            Owner::Component { kind, .. } if keys.clone().next().is_none() => {
                format!("`{kind}` has no keys besides `kind`")
            }
            Owner::Component { kind, .. } => {
                format!("`{kind}` has the keys: {}", nearest::list(keys.clone()))
            }
            Owner::Part => {
                let name = unknown.parent.rsplit('.').next().unwrap_or_default();
                format!("`{name}` has the keys: {}", nearest::list(keys.clone()))
            }
        };
        let near = nearest::nearest(key, keys);
        let elsewhere = self.elsewhere(unknown);
        let (mut message, mut label, mut help) =
            (format!("unknown key `{key}`"), String::new(), String::new());
        if let (Owner::Component { kind, .. }, Some(other)) = (owner, other_kind(unknown)) {
            message = format!("`{key}` belongs to `{other}`, not to `{kind}`");
            label = format!("not a key of `{kind}`");
            help = format!("remove it, or choose `kind: {other}`");
            if let Some(near) = near {
                help = format!("{help}, or did you mean `{near}`?");
            }
        } else if let Some(near) = near {
            label = format!("did you mean `{near}`?");
            help = format!("write `{near}`");
        } else if let Some(place) = elsewhere {
            label = "not here".into();
            help = if place.is_empty() {
                format!("`{key}` is a top-level key: move it to the left edge")
            } else {
                format!("`{key}` is a key of `{place}`: move it there")
            };
        } else if *owner == Owner::Recipe {
            help = "remove it; a section of a plugin exists only in a program that its crate is linked into"
                .into();
        } else {
            help.push_str(if unknown.keys.is_empty() {
                "remove it"
            } else {
                "remove it, or write one of these keys"
            });
        }
        Diagnostic::new("unknown-key", &unknown.span, message)
            .at(&unknown.path)
            .label(label)
            .rule(rule)
            .help(help)
    }

    /// Another mapping of this recipe that takes the key, the nearest one above or below.
    fn elsewhere(&self, unknown: &Unknown) -> Option<&str> {
        let takes = |visited: &&Visited| {
            visited.path != unknown.parent && visited.keys.contains(&unknown.key.as_str())
        };
        let shared =
            |path: &str| path.bytes().zip(unknown.parent.bytes()).take_while(|(a, b)| a == b).count();
        let best = self.visited.iter().filter(takes).max_by_key(|visited| shared(&visited.path))?;
        Some(best.path.as_str())
    }
}

/// Another component of the same slot that has the key.
fn other_kind(unknown: &Unknown) -> Option<&'static str> {
    let Owner::Component { slot, kind } = unknown.owner else { return None };
    let has = |entry: &&'static crate::registry::Entry| {
        entry.kind != kind && schema::component_schema(entry).property(&unknown.key).is_some()
    };
    schema::components(slot).into_iter().find(|entry| has(entry)).map(|entry| entry.kind)
}
