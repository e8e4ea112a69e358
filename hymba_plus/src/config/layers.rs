//! Layers of a recipe, and the one rule of laying one over another; figment does the merging.

use figment::{
    Error, Figment, Metadata, Profile, Provider,
    value::{Dict, Empty, Map as Profiles, Value},
};

use super::yaml::{Entry, Map, Node, Yaml};
use crate::registry::Registry;

/// One layer: a file, a variable of the environment, a group choice, a `--set`.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    /// What `hymba config explain` calls it.
    pub name: String,
    /// Its keys.
    pub root: Node,
    /// The section that a group choice replaces as a whole.
    pub replaces: Option<String>,
}

/// Lays `upper` over `lower`: mappings merge key by key, everything else is replaced, lists too.
///
/// A component that gets another kind is replaced as a whole, so that keys of the old kind never meet the new one; and
/// where one of the two writes a component by its name alone, it counts as `kind: NAME`.
pub(super) fn lay_over(lower: &Node, upper: &Node) -> Node {
    let (mut lower, mut upper) = (lower.clone(), upper.clone());
    agree_on_kinds(&mut lower, &mut upper);
    let figment = Figment::from(Tree { name: LOWER, root: &lower }).merge(Tree { name: UPPER, root: &upper });
    let Ok(mut profiles) = figment.data() else { return upper }; // our providers do not fail
    let merged = Value::from(profiles.remove(&Profile::Default).unwrap_or_default());
    let upper_wins = |value: &Value| figment.get_metadata(value.tag()).is_some_and(|from| from.name == UPPER);
    rebuild(&merged, &lower, &upper, &upper_wins)
}

const LOWER: &str = "lower";
const UPPER: &str = "upper";

/// A tree as figment takes it.
struct Tree<'a> {
    name: &'static str,
    root: &'a Node,
}

impl Provider for Tree<'_> {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name)
    }

    fn data(&self) -> Result<Profiles<Profile, Dict>, Error> {
        let dict = self.root.map().map(dict).unwrap_or_default();
        Ok(Profile::Default.collect(dict))
    }
}

fn dict(map: &Map) -> Dict {
    map.entries.iter().map(|entry| (entry.key.clone(), value(&entry.value))).collect()
}

fn value(node: &Node) -> Value {
    match &node.yaml {
        Yaml::Null => Value::from(Empty::None),
        Yaml::Bool(value) => Value::from(*value),
        Yaml::Int(value) => Value::from(*value),
        Yaml::Float(value) => Value::from(*value),
        Yaml::Text(value) => Value::from(value.as_str()),
        Yaml::List(list) => Value::from(list.iter().map(value).collect::<Vec<_>>()),
        Yaml::Map(map) => Value::from(dict(map)),
    }
}

/// The tree that figment merged, with the places of the values that won.
fn rebuild(merged: &Value, lower: &Node, upper: &Node, upper_wins: &dyn Fn(&Value) -> bool) -> Node {
    let (Value::Dict(_, dict), Yaml::Map(below), Yaml::Map(above)) = (merged, &lower.yaml, &upper.yaml)
    else {
        return if upper_wins(merged) { upper.clone() } else { lower.clone() };
    };
    let keys =
        below.entries.iter().chain(above.entries.iter().filter(|entry| below.get(&entry.key).is_none()));
    let entry = |key: &str| {
        Some(match (below.entry(key), above.entry(key)) {
            (Some(old), Some(new)) => {
                Entry { value: rebuild(dict.get(key)?, &old.value, &new.value, upper_wins), ..new.clone() }
            }
            (Some(one), None) | (None, Some(one)) => one.clone(),
            (None, None) => return None,
        })
    };
    let entries = keys.filter_map(|one| entry(&one.key)).collect();
    Node::new(Yaml::Map(Map { entries }), &upper.span)
}

/// Prepares two trees for the merge: drops what another kind replaces, and writes out the short form of components.
fn agree_on_kinds(lower: &mut Node, upper: &mut Node) {
    match (&lower.yaml, &upper.yaml) {
        (Yaml::Text(kind), Yaml::Map(_)) if is_kind(kind) => write_out(lower),
        (Yaml::Map(map), Yaml::Text(_)) if map.get("kind").is_some() => write_out(upper),
        _ => {}
    }
    let (Yaml::Map(below), Yaml::Map(above)) = (&mut lower.yaml, &mut upper.yaml) else { return };
    let kind = |map: &Map| map.get("kind").and_then(Node::text).map(str::to_owned);
    if let (Some(old), Some(new)) = (kind(below), kind(above))
        && !same_kind(&old, &new)
    {
        below.entries.clear();
        return;
    }
    for entry in &mut above.entries {
        if let Some(old) = below.entries.iter_mut().find(|old| old.key == entry.key) {
            agree_on_kinds(&mut old.value, &mut entry.value);
        }
    }
}

/// `NAME` as `{ kind: NAME }`, every part of it at the same place.
fn write_out(node: &mut Node) {
    let kind = Entry { key: "kind".into(), key_span: node.span.clone(), value: node.clone() };
    node.yaml = Yaml::Map(Map { entries: vec![kind] });
}

/// Whether some slot has a component of that name.
fn is_kind(name: &str) -> bool {
    Registry::global()
        .is_ok_and(|registry| Registry::slots().iter().any(|slot| registry.get(slot.name, name).is_some()))
}

/// Whether two names are one component: equal, or a kind and its alias.
fn same_kind(old: &str, new: &str) -> bool {
    let one = |registry: &Registry, slot: &str| {
        let kinds = (registry.get(slot, old), registry.get(slot, new));
        matches!(kinds, (Some(old), Some(new)) if old.kind == new.kind)
    };
    old == new
        || Registry::global()
            .is_ok_and(|registry| Registry::slots().iter().any(|slot| one(registry, slot.name)))
}
