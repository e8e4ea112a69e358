//! `hymba validate`: every mistake of every file.

use std::process::ExitCode;

use hymba_plus::config::Recipe;
use serde_json::{Value, json};

use super::{Outcome, load_options};
use crate::{args::Validate, output};

pub(super) fn run(arguments: &Validate) -> Outcome {
    let options = load_options(&arguments.layers);
    let (mut wrong, mut reports) = (0, Vec::new());
    for file in &arguments.files {
        let name = file.display().to_string();
        match Recipe::load(file, &options) {
            Ok(recipe) if arguments.json => {
                reports.push(json!({ "file": name, "valid": true, "hash": recipe.hash(), "problems": [] }));
            }
            Ok(recipe) => output::line(&format!("{name}: ok (hash {})", &recipe.hash()[..12])),
            Err(problems) => {
                wrong += 1;
                if arguments.json {
                    reports.push(json!({ "file": name, "valid": false, "problems": problems.to_json() }));
                } else {
                    output::error(&problems.render(output::colour(), 110));
                }
            }
        }
    }
    if arguments.json {
        output::line(&serde_json::to_string_pretty(&Value::Array(reports))?);
    } else if wrong > 0 && arguments.files.len() > 1 {
        output::error(&format!("{wrong} of {} files are not valid", arguments.files.len()));
    }
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
