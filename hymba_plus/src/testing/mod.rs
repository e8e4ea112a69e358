//! Help for tests of recipes and components, for users of the library as for the library itself.
//!
//! ```no_run
//! use hymba_plus::testing;
//!
//! testing::assert_valid("recipes/*.yaml");
//! testing::assert_rejects("schema: 1\nmodle: {}\n", "2:1", "did you mean `model`?");
//! ```

mod golden;

use std::path::{Path, PathBuf};

use crate::{
    config::{Diagnostic, Diagnostics, LoadOptions, Recipe},
    registry::{Component, Slot},
};

pub use golden::golden;

/// Width of rendered problems in tests: that of golden texts.
pub const WIDTH: usize = 100;

/// Checks that every recipe that matches a glob loads without a problem, and that there is such a recipe.
///
/// # Panics
/// With every problem of every recipe.
#[track_caller]
pub fn assert_valid(pattern: &str) {
    let (mut count, mut report) = (0, String::new());
    for path in matching(pattern) {
        count += 1;
        if let Err(problems) = Recipe::load(&path, &LoadOptions::default()) {
            report.push_str(&problems.render(false, WIDTH));
            report.push('\n');
        }
    }
    assert!(count > 0, "no file matches {pattern} in {}", here().display());
    assert!(report.is_empty(), "not every recipe of {pattern} is valid:\n\n{report}");
}

/// Checks that a recipe (its text) is refused at a place, with a text that says so.
///
/// `at` is `line:column` or the dotted path of a key; `text` is a part of the message, label, rule or help.
///
/// # Panics
/// When the recipe is accepted, or refused elsewhere or otherwise; with the problems it has.
#[track_caller]
pub fn assert_rejects(yaml: &str, at: &str, text: &str) {
    let Err(problems) = Recipe::from_yaml(yaml, &LoadOptions::default()) else {
        panic!("this recipe is accepted, it should be refused at {at} with \"{text}\":\n\n{yaml}");
    };
    let here: Vec<&Diagnostic> = problems.iter().filter(|problem| lies_at(problem, at)).collect();
    let shown = problems.render(false, WIDTH);
    assert!(!here.is_empty(), "the recipe is refused, but not at {at}:\n\n{shown}");
    assert!(here.iter().any(|problem| says(problem, text)), "no problem at {at} says \"{text}\":\n\n{shown}");
}

fn lies_at(problem: &Diagnostic, at: &str) -> bool {
    problem.path == at || format!("{}:{}", problem.line(), problem.column()) == at
}

fn says(problem: &Diagnostic, text: &str) -> bool {
    let help = problem.help.as_deref().unwrap_or_default();
    [&problem.message, &problem.label, &problem.rule, help].iter().any(|part| part.contains(text))
}

/// A component from the YAML of its place in a recipe: a name, or a mapping with `kind`.
///
/// # Panics
/// When the text is no YAML, or the component does not exist or does not take such a configuration.
#[track_caller]
pub fn component<S: Slot>(yaml: &str) -> Component<S> {
    let component: Component<S> = match serde_yaml::from_str(yaml) {
        Ok(component) => component,
        Err(error) => panic!("no {}: {error}\n\n{yaml}", S::NAME),
    };
    if let Err(error) = component.make() {
        panic!("{error}\n\n{yaml}");
    }
    component
}

/// The recipe of a text.
///
/// # Panics
/// With every problem that it has.
#[track_caller]
pub fn recipe(yaml: &str) -> Recipe {
    Recipe::from_yaml(yaml, &LoadOptions::default()).unwrap_or_else(|problems: Diagnostics| {
        panic!("the recipe is not valid:\n\n{}", problems.render(false, WIDTH));
    })
}

/// Files that match a glob, sorted.
#[track_caller]
fn matching(pattern: &str) -> Vec<PathBuf> {
    let paths = match glob::glob(pattern) {
        Ok(paths) => paths,
        Err(error) => panic!("{pattern} is no glob: {error}"),
    };
    let mut paths: Vec<PathBuf> = paths.filter_map(Result::ok).collect();
    paths.sort();
    paths
}

fn here() -> PathBuf {
    std::env::current_dir().unwrap_or_else(|_| Path::new(".").to_owned())
}
