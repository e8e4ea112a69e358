//! Loading: layers, one over the other, then checks, then types, then the checks that look across sections.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::{Map as Object, Value};

use super::{
    Diagnostic, Diagnostics, LoadOptions, Recipe, SCHEMA, Source, Span,
    check::{self, text::identifier},
    files::{Files, Header},
    groups,
    layers::{Layer, lay_over},
    normalise,
    overrides::{self, Override},
    schema,
    yaml::{Map, Node, Yaml},
};
use crate::registry::{Check, Finding, Registry};

/// Layers, and what they make together.
struct Stack {
    layers: Vec<Layer>,
    merged: Node,
}

impl Stack {
    fn push(&mut self, layer: Layer) {
        if let (Some(section), Some(map)) = (&layer.replaces, self.merged.map_mut()) {
            map.remove(section);
        }
        self.merged = lay_over(&self.merged, &layer.root);
        self.layers.push(layer);
    }

    fn push_all(&mut self, layers: &mut Vec<Layer>) {
        for layer in layers.drain(..) {
            self.push(layer);
        }
    }

    fn push_overrides(&mut self, overrides: Vec<Override>, problems: &mut Vec<Diagnostic>) {
        for one in overrides {
            match one.over(&self.merged) {
                Ok(layer) => self.push(layer),
                Err(problem) => problems.push(*problem),
            }
        }
    }
}

/// A recipe from its file.
pub(super) fn file(path: &Path, options: &LoadOptions) -> Result<Recipe, Diagnostics> {
    let absolute = options.absolute(path);
    let shown = super::path::portable(path);
    let mut files = Files::new(options);
    let (source, header) = files.read_first(&absolute, &shown)?;
    assemble(files, &source, absolute, header)
}

/// A recipe from a text in place of a file.
pub(super) fn text(source: &Arc<Source>, options: &LoadOptions) -> Result<Recipe, Diagnostics> {
    let mut files = Files::new(options);
    let path = options.folder().join("recipe.yaml");
    let header = files.read(source, &path, None);
    assemble(files, source, path, header)
}

fn assemble(
    mut files: Files<'_>,
    source: &Arc<Source>,
    path: PathBuf,
    header: Header,
) -> Result<Recipe, Diagnostics> {
    if let Err(error) = Registry::global() {
        let problem = Diagnostic::new("registry", &Span::start_of(source), error.to_string());
        return Err(Diagnostics::one(problem.help("this is a mistake of the program, not of the recipe")));
    }
    let own_folder = path.parent().unwrap_or(Path::new("/")).to_owned();
    let nothing = Node::new(Yaml::Map(Map::default()), &Span::start_of(source));
    let mut stack = Stack { layers: Vec::new(), merged: nothing };
    let mut problems = Vec::new();

    stack.push_all(&mut files.layers);
    stack.push_overrides(overrides::environment(files.options, &mut problems), &mut problems);
    groups::choose(&mut files, &own_folder);
    stack.push_all(&mut files.layers);
    stack.push_overrides(overrides::assignments(files.options, &mut problems), &mut problems);
    problems.append(&mut files.problems);

    let folder = header.base.unwrap_or(own_folder);
    let checked = check::check(&stack.merged, &folder, files.complete);
    problems.extend(checked.problems);
    Diagnostics::check(source.name(), problems)?;

    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let mut recipe = Recipe {
        values: Value::Object(defaults(checked.values, &stem)),
        tree: stack.merged,
        layers: stack.layers,
        source: Arc::clone(source),
        source_path: path,
        folder,
    };
    type_sections(&mut recipe)?;
    let mut checks: Vec<&Check> = inventory::iter::<Check>.into_iter().collect();
    checks.sort_by_key(|check| check.name);
    let findings: Vec<Finding> = checks.iter().flat_map(|check| (check.run)(&recipe)).collect();
    if findings.is_empty() { Ok(recipe) } else { Err(recipe.diagnose(findings)) }
}

/// The top-level keys that every recipe has.
fn defaults(mut values: Object<String, Value>, stem: &str) -> Object<String, Value> {
    values.insert("schema".into(), Value::from(SCHEMA));
    values.entry("name").or_insert_with(|| Value::from(identifier(stem)));
    values.entry("seed").or_insert_with(|| Value::from(0));
    values
}

/// Every section read as its type and written again.
fn type_sections(recipe: &mut Recipe) -> Result<(), Diagnostics> {
    let mut findings = Vec::new();
    let mut typed = Object::new();
    for (key, value) in recipe.values.as_object().into_iter().flatten() {
        let value = match schema::section(key) {
            None => value.clone(),
            Some(section) => normalise::section(section, value.clone()).unwrap_or_else(|error| {
                findings.push(recipe.finding(key, &error));
                Value::Null
            }),
        };
        typed.insert(key.clone(), value);
    }
    if !findings.is_empty() {
        return Err(recipe.diagnose(findings));
    }
    recipe.values = Value::Object(typed);
    Ok(())
}
