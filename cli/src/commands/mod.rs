//! The commands, a file each.

mod components;
mod config;
mod conformance;
mod doctor;
mod evaluate;
mod export;
mod generate;
mod import;
mod logits;
mod plan;
mod profile;
mod run;
mod validate;

use std::{error::Error, process::ExitCode};

use clap::CommandFactory;
use hymba_plus::config::{Diagnostics, LoadOptions, Recipe};

use crate::{
    args::{Arguments, Command, Layers, RecipeArguments},
    output,
};

/// What a command ends with: an exit code, or an error to show.
pub type Outcome = Result<ExitCode, Box<dyn Error>>;

/// Runs a command.
pub fn dispatch(command: Command) -> Outcome {
    match command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Profile(arguments) => profile::run(&arguments),
        Command::Validate(arguments) => validate::run(&arguments),
        Command::Plan(arguments) => plan::run(&arguments),
        Command::Components(arguments) => components::run(&arguments),
        Command::Conformance(arguments) => conformance::run(&arguments),
        Command::Config(arguments) => config::run(&arguments.command),
        Command::Schema => {
            output::line(&serde_json::to_string_pretty(&hymba_plus::config::json_schema())?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Import(arguments) => import::run(&arguments.from),
        Command::Export(arguments) => export::run(&arguments.to),
        Command::Logits(arguments) => logits::run(&arguments),
        Command::Evaluate(arguments) => evaluate::run(&arguments),
        Command::Doctor => doctor::run(),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "hymba", &mut script);
            output::print(&String::from_utf8_lossy(&script));
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// How a recipe is loaded: the process's environment, and what the command line lays over it.
fn load_options(layers: &Layers) -> LoadOptions {
    let groups = [("model", &layers.model), ("data", &layers.data), ("trainer", &layers.trainer)];
    let groups = groups.into_iter().filter_map(|(group, name)| Some((group.to_owned(), name.clone()?)));
    LoadOptions { groups: groups.collect(), set: layers.set.clone(), ..LoadOptions::from_process() }
}

/// Loads a recipe; its problems as one error, rendered for this terminal.
fn load(arguments: &RecipeArguments) -> Result<Recipe, Box<dyn Error>> {
    Recipe::load(&arguments.recipe, &load_options(&arguments.layers)).map_err(rendered)
}

/// Diagnostics as text: coloured on a terminal.
#[allow(clippy::needless_pass_by_value)] // `map_err` hands them over
fn rendered(problems: Diagnostics) -> Box<dyn Error> {
    problems.render(output::colour(), 110).into()
}
