//! `hymba config explain KEY`: a value, where it came from, and what it means.

use std::fmt;

use serde_json::Value;

use super::{
    Diagnostic, Diagnostics, Location, Origin, Recipe, Source, Span,
    check::{component::kinds, nearest, text::rule_of},
    normalise::{fits, inside},
    schema::{self, Others, Schema},
    yaml::{Step, parse_path},
};

/// What is known about a key of a recipe.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// The key, as a dotted path.
    pub key: String,
    /// Its value in the resolved recipe; `None` if it has none.
    pub value: Option<Value>,
    /// Every layer that sets it, the one that wins last; empty when it has its default.
    pub layers: Vec<Setting>,
    /// What its owner says of it.
    pub doc: Option<String>,
    /// Its default, where the key has one.
    pub default: Option<Value>,
    /// What it takes, in words.
    pub rule: String,
}

/// One layer that sets a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The file, `environment variable ...` or `--set ...`.
    pub layer: String,
    /// Where in it.
    pub location: Location,
    /// The value that it sets, in one line.
    pub value: String,
}

pub(super) fn explain(recipe: &Recipe, key: &str) -> Result<Explanation, Diagnostics> {
    let steps = match parse_path(key) {
        Ok(steps) => steps,
        Err(at) => {
            let source = ask(key);
            let span = Span::new(&source, at, key.len());
            let problem = Diagnostic::new("unknown-key", &span, format!("`{key}` is no path to a key"));
            return Err(Diagnostics::one(problem.help("as in trainer.optimizer.lr or stages[0].steps")));
        }
    };
    let (mut schema, mut value, mut above) = (None, Some(recipe.values()), None);
    for (index, (step, range)) in steps.iter().enumerate() {
        match next(schema, value, step) {
            Ok((inner, found)) => (above, schema, value) = (schema, inner, found),
            Err(keys) => {
                let source = ask(key);
                let above = if index == 0 {
                    "a recipe".to_owned()
                } else {
                    format!("`{}`", &key[..steps[index - 1].1.end])
                };
                let name = step.key();
                let span = Span::new(&source, range.start, range.end);
                let problem =
                    Diagnostic::new("unknown-key", &span, format!("{above} has no key `{name}`")).at(key);
                let near =
                    nearest::suggestion("did you mean", &name, keys.iter().copied()).unwrap_or_default();
                let rule = if keys.is_empty() {
                    String::new()
                } else {
                    format!("{above} has the keys: {}", nearest::list(keys))
                };
                return Err(Diagnostics::one(problem.rule(rule).help(near)));
            }
        }
    }
    let steps: Vec<Step> = steps.into_iter().map(|(step, _)| step).collect();
    let name = steps.last().map(Step::key).unwrap_or_default();
    // `kind` stands in no component's schema: the slot says what it takes.
    let slots = above.into_iter().flat_map(Schema::alternatives).find_map(Schema::slot);
    let slot = slots.filter(|_| name == "kind");
    let setting = |layer: &super::layers::Layer| {
        let (node, key) = layer.root.find(&steps)?;
        Some(Setting { layer: layer.name.clone(), location: key.location(), value: node.brief() })
    };
    Ok(Explanation {
        key: key.to_owned(),
        value: value.cloned(),
        layers: recipe.layers.iter().filter_map(setting).collect(),
        doc: schema.and_then(Schema::doc),
        default: schema.and_then(Schema::default).cloned(),
        rule: match slot {
            Some(slot) => kinds(slot),
            None => schema.map(|schema| rule_of(&name, schema)).unwrap_or_default(),
        },
    })
}

fn ask(key: &str) -> std::sync::Arc<Source> {
    Source::new("key", key, std::path::Path::new("."), Origin::CommandLine)
}

type Place<'a> = (Option<Schema>, Option<&'a Value>);

/// One step down in schema and value; the keys there are if there is no such step.
fn next<'a>(
    schema: Option<Schema>,
    value: Option<&'a Value>,
    step: &Step,
) -> Result<Place<'a>, Vec<&'static str>> {
    let key = step.key();
    let Some(schema) = schema else {
        let mut keys = schema::builtin().keys();
        keys.extend(schema::sections().iter().map(|section| section.key));
        let inner = schema::top_level(&key).ok_or(keys)?;
        return Ok((Some(inner), value.and_then(|value| value.get(&key))));
    };
    let alternatives = schema.alternatives();
    let chosen = value.and_then(|value| alternatives.iter().copied().find(|one| fits(value, *one)));
    let here = chosen.or(alternatives.first().copied()).unwrap_or(schema);
    if let (Step::Index(index), Some(item)) = (step, here.item(0)) {
        let found = value.and_then(|value| value.get(*index));
        return if found.is_some() {
            Ok((Some(here.item(*index).unwrap_or(item)), found))
        } else {
            Err(Vec::new())
        };
    }
    let here = match value.and_then(Value::as_object) {
        Some(object) => inside(object, here).unwrap_or(here),
        None => here,
    };
    let found = value.and_then(|value| value.get(&key));
    match (here.property(&key), here.others()) {
        (Some(inner), _) | (None, Others::Such(inner)) => Ok((Some(inner), found)),
        // `kind` stands in no component's own schema, and everything goes where anything goes.
        (None, _) if found.is_some() => Ok((Some(schema::anything()), found)),
        _ => Err(here.keys()),
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown =
            |value: &Option<Value>| value.as_ref().map_or_else(|| "(none)".to_owned(), ToString::to_string);
        writeln!(f, "{} = {}", self.key, shown(&self.value))?;
        match self.layers.split_last() {
            None => writeln!(f, "  its default; nothing sets it")?,
            Some((last, lower)) => {
                writeln!(f, "  set by {} ({})", last.layer, last.location)?;
                for setting in lower.iter().rev() {
                    writeln!(
                        f,
                        "  over   {} ({}), which says {}",
                        setting.layer, setting.location, setting.value
                    )?;
                }
            }
        }
        if let Some(doc) = &self.doc {
            writeln!(f, "  doc: {doc}")?;
        }
        if let Some(default) = &self.default {
            writeln!(f, "  default: {default}")?;
        }
        if !self.rule.is_empty() {
            writeln!(f, "  rule: {}", self.rule)?;
        }
        Ok(())
    }
}
