//! Golden error texts: broken recipes beside the text that each of them must give.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use super::{WIDTH, here, matching};
use crate::config::{LoadOptions, Recipe};

/// Checks that every broken recipe `DIR/NAME.yaml` gives exactly the text of `DIR/NAME.txt`.
///
/// Comments at the top of a recipe stand for the rest of the command line: `# set: a.b=c`, `# env: HYMBA__A=b`,
/// `# group: model tiny`. With `UPDATE_GOLDEN=1` in the environment the texts are written instead of compared. Gives the
/// number of recipes, so that a test can say how many there should be.
///
/// # Panics
/// When a recipe is accepted, when a text differs (with both), or when there is no recipe.
#[track_caller]
pub fn golden(dir: &str) -> usize {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let recipes = matching(&format!("{dir}/*.yaml"));
    assert!(!recipes.is_empty(), "no broken recipe in {dir} (from {})", here().display());
    let mut report = String::new();
    for recipe in &recipes {
        let expected = recipe.with_extension("txt");
        match text(recipe) {
            None => _ = writeln!(report, "== {} is accepted", recipe.display()),
            Some(text) if update => {
                if let Err(error) = std::fs::write(&expected, text) {
                    _ = writeln!(report, "== {} cannot be written: {error}", expected.display());
                }
            }
            Some(text) => {
                let wanted = std::fs::read_to_string(&expected).unwrap_or_default();
                if wanted != text {
                    let name = recipe.display();
                    _ = writeln!(report, "== {name} should give\n\n{wanted}\n== but gives\n\n{text}");
                }
            }
        }
    }
    assert!(
        report.is_empty(),
        "{report}\nUPDATE_GOLDEN=1 writes the texts anew; read them before you keep them"
    );
    recipes.len()
}

/// What is wrong with a recipe, as text; nothing if it is accepted.
fn text(recipe: &Path) -> Option<String> {
    let folder = recipe.parent().unwrap_or(Path::new("."));
    let name = PathBuf::from(recipe.file_name()?);
    let lines = String::from_utf8_lossy(&std::fs::read(recipe).unwrap_or_default()).into_owned();
    let mut options = LoadOptions { cwd: Some(here().join(folder)), ..LoadOptions::default() };
    for line in lines.lines().map_while(|line| line.strip_prefix("# ")) {
        if let Some(set) = line.strip_prefix("set: ") {
            options.set.push(set.to_owned());
        } else if let Some((name, value)) = line.strip_prefix("env: ").and_then(|line| line.split_once('=')) {
            options.environment.push((name.to_owned(), value.to_owned()));
        } else if let Some((section, name)) =
            line.strip_prefix("group: ").and_then(|line| line.split_once(' '))
        {
            options.groups.push((section.to_owned(), name.to_owned()));
        }
    }
    Recipe::load(&name, &options).err().map(|problems| problems.render(false, WIDTH))
}
