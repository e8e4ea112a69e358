//! `hymba run`: the stages of a recipe.

use std::{path::PathBuf, process::ExitCode};

use training::run::RunOptions;

use super::{Outcome, load};
use crate::{args::Run, output};

pub(super) fn run(arguments: &Run) -> Outcome {
    let recipe = load(&arguments.recipe)?;
    let run_dir = arguments.run_dir.clone().unwrap_or_else(|| PathBuf::from("runs").join(recipe.name()));
    let options = RunOptions {
        resume: arguments.resume,
        overwrite: arguments.overwrite,
        force: arguments.force,
        ..RunOptions::new(run_dir, command(arguments))
    };
    match recipes::run(&recipe, options) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(recipes::RunError::Recipe(problems)) => Err(super::rendered(problems)),
        Err(error) => {
            let code = error.exit_code();
            // An interrupted run has said already where it stopped and how to go on.
            if code == 1 {
                output::error(&error.to_string());
            }
            Ok(ExitCode::from(code))
        }
    }
}

/// The command up to its recipe and settings, as a user would type it again.
fn command(arguments: &Run) -> String {
    let program = std::env::args().next().unwrap_or_else(|| "hymba".to_owned());
    let layers = &arguments.recipe.layers;
    let groups = [("--model", &layers.model), ("--data", &layers.data), ("--trainer", &layers.trainer)];
    let groups = groups.into_iter().filter_map(|(flag, name)| Some(format!(" {flag} {}", name.as_ref()?)));
    let set = layers.set.iter().map(|set| format!(" --set '{set}'"));
    let tail: String = groups.chain(set).collect();
    format!("{program} run {}{tail}", arguments.recipe.recipe.display())
}
