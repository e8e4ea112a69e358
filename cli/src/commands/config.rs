//! `hymba config`: a recipe as it resolves, and where its values come from.

use std::process::ExitCode;

use super::{Outcome, load, rendered};
use crate::{args::ConfigCommand, output};

pub(super) fn run(command: &ConfigCommand) -> Outcome {
    match command {
        ConfigCommand::Show(arguments) => output::print(&load(arguments)?.resolved_yaml()),
        ConfigCommand::Explain { key, recipe } => {
            let explanation = load(recipe)?.explain(key).map_err(rendered)?;
            output::print(&explanation.to_string());
        }
    }
    Ok(ExitCode::SUCCESS)
}
