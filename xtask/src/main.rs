//! The workspace's own commands: `cargo xtask setup | run | test | lint | bench | doctor`.
//!
//! Each command first makes sure that what it needs is there. Nothing outside the checkout is changed, and this crate
//! links no torch, so that it runs before there is one.
#![forbid(unsafe_code)]

mod bench;
mod commands;
mod doctor;
mod failure;
mod lint;
mod progress;
mod setup;
#[cfg(test)]
mod testing;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

use crate::commands::Command;
use crate::failure::Failure;

/// Set-up, build, test and lint of hymba_plus: one command each, each does the set-up it needs first
#[derive(Debug, Parser)]
#[command(
    bin_name = "cargo xtask",
    arg_required_else_help = true,
    after_help = "Examples:\n  \
        cargo xtask run recipes/quickstart.yaml   set up, build and train a small model\n  \
        cargo xtask test                          set up and run every test\n  \
        cargo xtask doctor                        say what this machine has and lacks"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    match Cli::parse().command.execute(&workspace::root()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if matches!(failure, Failure::Told { .. }) {
                eprintln!("{failure}");
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn arguments_after_a_recipe_are_passed_on() {
        let line = ["xtask", "run", "recipes/quickstart.yaml", "--set", "seed=1", "--", "x"];
        let Command::Run { recipe, args, .. } = Cli::parse_from(line).command else { panic!() };
        assert_eq!(recipe.to_str(), Some("recipes/quickstart.yaml"));
        assert_eq!(args, ["--set", "seed=1", "--", "x"]);
    }
}
