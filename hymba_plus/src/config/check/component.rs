//! Components: a kind, and the keys of that kind.

use serde_json::Value;

use super::{At, Checker, mapping::Owner, nearest, value::described as described_value};
use crate::config::{
    Diagnostic,
    schema::{self, component_schema},
    yaml::{Node, Yaml},
};
use crate::registry::{Entry, Registry};

/// `an optimizer (a name, or a mapping with `kind`)`.
pub(super) fn described(slot: &str) -> String {
    format!("{} (a name, or a mapping with `kind`)", with_article(slot))
}

fn with_article(word: &str) -> String {
    format!("{} {word}", if word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" })
}

impl Checker<'_> {
    pub(super) fn component(&mut self, node: &Node, slot: &'static str, at: &At<'_>) -> Value {
        match &node.yaml {
            Yaml::Text(kind) => match self.kind(kind, node, slot, at) {
                Some(entry) => self.config(&[], node, entry, at),
                None => Value::Null,
            },
            Yaml::Map(map) => {
                let entries: Vec<_> = map.entries.iter().filter(|entry| entry.key != "kind").collect();
                let Some(kind) = map.entry("kind") else { return self.no_kind(&entries, node, slot, at) };
                let inner = at.key("kind", &kind.key_span);
                let Yaml::Text(name) = &kind.value.yaml else {
                    let message = format!("`kind` is {}, expected a name", described_value(&kind.value));
                    let problem =
                        Diagnostic::new("wrong-type", &kind.value.span, message).label("expected a name");
                    return self.report(&inner, problem.rule(kinds(slot)).help(kind_help(&kind.value, slot)));
                };
                match self.kind(name, &kind.value, slot, &inner) {
                    Some(entry) => self.config(&entries, node, entry, at),
                    None => Value::Null,
                }
            }
            _ => Value::Null, // only texts and mappings come here
        }
    }

    fn config(
        &mut self,
        entries: &[&crate::config::yaml::Entry],
        node: &Node,
        entry: &'static Entry,
        at: &At<'_>,
    ) -> Value {
        let owner = Owner::Component { slot: entry.slot, kind: entry.kind };
        let mut object = self.keys(entries.iter().copied(), node, component_schema(entry), at, owner);
        object.insert("kind".into(), Value::from(entry.kind));
        Value::Object(object)
    }

    /// The component of a name; what is wrong with the name is reported.
    fn kind(&mut self, name: &str, node: &Node, slot: &'static str, at: &At<'_>) -> Option<&'static Entry> {
        if let Some(entry) = schema::component(slot, name) {
            return Some(entry);
        }
        let entries = schema::components(slot);
        let names =
            entries.iter().flat_map(|entry| std::iter::once(&entry.kind).chain(entry.aliases)).copied();
        let near = nearest::nearest(name, names);
        let label = near.map_or_else(String::new, |near| format!("did you mean `{near}`?"));
        let plugin = format!(
            "a component of a plugin exists only in a program that its crate is linked into; `hymba components {slot}` lists those of this one"
        );
        let help = match (near, other_slot(slot, name)) {
            // A longer name is hardly a slip: `decay_attention` for `attention`.
            (Some(near), _) if name != near && name.split('_').any(|part| part == near) => {
                format!("write `{near}` if that is meant; {plugin}")
            }
            (Some(near), _) => {
                match schema::component(slot, near).map(Entry::doc).filter(|doc| !doc.is_empty()) {
                    Some(doc) => format!("write `{near}`: {doc}"),
                    None => format!("write `{near}`"),
                }
            }
            (None, Some(other)) => format!("`{name}` is {}, which does not go here", with_article(other)),
            (None, None) => plugin,
        };
        let message = if name.is_empty() {
            format!("the {slot} has no name")
        } else {
            format!("there is no {slot} named `{}`", node.brief())
        };
        self.report(
            at,
            Diagnostic::new("unknown-kind", &node.span, message).label(label).rule(kinds(slot)).help(help),
        );
        None
    }

    fn no_kind(
        &mut self,
        entries: &[&crate::config::yaml::Entry],
        node: &Node,
        slot: &'static str,
        at: &At<'_>,
    ) -> Value {
        if !self.complete {
            return Value::Null;
        }
        let takes = |entry: &&'static Entry| {
            let schema = component_schema(entry);
            entries.iter().all(|one| schema.property(&one.key).is_some())
        };
        let fitting: Vec<_> =
            schema::components(slot).into_iter().filter(takes).map(|entry| entry.kind).collect();
        let help = match fitting.as_slice() {
            [only] if !entries.is_empty() => format!("these keys are those of `{only}`: add `kind: {only}`"),
            _ => "add `kind: NAME`".to_owned(),
        };
        let place = if at.path.ends_with(']') { &node.span } else { at.key };
        let problem = Diagnostic::new("missing-key", place, format!("this {slot} has no `kind`"));
        let inner = at.key("kind", at.key);
        self.report(&inner, problem.label("`kind` is missing here").rule(kinds(slot)).help(help))
    }
}

/// The rule of a slot: what it takes.
pub(in crate::config) fn kinds(slot: &str) -> String {
    let entries = schema::components(slot);
    if entries.is_empty() {
        return format!("this program has no {slot} at all");
    }
    format!("{} is one of: {}", with_article(slot), nearest::list(entries.iter().map(|entry| entry.kind)))
}

fn kind_help(node: &Node, slot: &str) -> String {
    match node.yaml {
        Yaml::Null if schema::component(slot, "none").is_some() => {
            "write `kind: none` to leave it empty".into()
        }
        Yaml::Null => "write a name after `kind:`".into(),
        _ => "write a name".into(),
    }
}

/// Another slot that has a component of that name.
fn other_slot(slot: &str, name: &str) -> Option<&'static str> {
    let registry = Registry::global().ok()?;
    Registry::slots()
        .into_iter()
        .map(|info| info.name)
        .find(|other| *other != slot && registry.get(other, name).is_some())
}
