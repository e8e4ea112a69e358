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
    let mut words = vec![program, "run".to_owned(), arguments.recipe.recipe.display().to_string()];
    for (flag, name) in [("--model", &layers.model), ("--data", &layers.data), ("--trainer", &layers.trainer)]
    {
        words.extend(name.iter().flat_map(|name| [flag.to_owned(), name.clone()]));
    }
    words.extend(layers.set.iter().flat_map(|set| ["--set".to_owned(), set.clone()]));
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

/// A word as a shell reads it back.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:@%,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::args::{Arguments, Command};

    #[test]
    fn a_command_can_be_typed_again() {
        let words = [
            "hymba",
            "run",
            "my recipe.yaml",
            "--model",
            "tiny",
            "--set",
            "stages[0].steps=1",
            "--set",
            "name=it's",
        ];
        let Command::Run(run) = Arguments::parse_from(words).command else { panic!("`run`") };
        let command = super::command(&run);
        let typed = "run 'my recipe.yaml' --model tiny --set 'stages[0].steps=1' --set 'name=it'\\''s'";
        assert!(command.ends_with(typed), "{command}");
    }
}
