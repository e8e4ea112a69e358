//! The command line: what can be said, and the help that teaches it.

use std::{ops::RangeInclusive, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use training::{checkpoint::Which, trainer::DeviceChoice};

/// Research on language models that mix attention, state-space models, xLSTM and experts in one network.
#[derive(Debug, Parser)]
#[command(
    name = "hymba",
    version,
    arg_required_else_help = true,
    after_help = "\
Examples:
  hymba validate recipes/*.yaml                    check recipes: every mistake in one pass
  hymba plan recipes/quickstart.yaml               layers, parameters, FLOPs, memory; allocates nothing
  hymba run recipes/quickstart.yaml                train, evaluate, sample
  hymba run recipes/quickstart.yaml --resume       go on where a stopped run was
  hymba components sequence_mixer                  what a layer can be made of, with every field
  hymba generate runs/quickstart --prompt 'fn '    continue a text with a trained model"
)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the stages of a recipe in order
    #[command(after_help = "\
Examples:
  hymba run recipes/tiny_shakespeare_cpu.yaml
  hymba run recipe.yaml --model hymba-1.5b --set seed=7 --set 'stages[0].steps=100'
  HYMBA__TRAINER__THREADS=1 hymba run recipe.yaml --run-dir runs/one-thread
  hymba run recipe.yaml --run-dir runs/one-thread --resume")]
    Run(Run),
    /// Check recipes: keys, types, ranges, shapes; every mistake in one pass
    #[command(after_help = "\
Exit code 0: all are right; 1: at least one is not.

Examples:
  hymba validate recipes/*.yaml
  hymba validate my.yaml --json | jq '.problems[].path'")]
    Validate(Validate),
    /// Show what a recipe's model is: shapes, parameters, FLOPs, state, memory; allocates nothing
    #[command(after_help = "\
Examples:
  hymba plan configs/models/hymba-1.5b.yaml
  hymba plan recipe.yaml --tokens 32768
  hymba plan recipe.yaml --svg model.svg
  hymba plan recipe.yaml --json | jq .totals.parameters")]
    Plan(Plan),
    /// List the components of this binary with their fields, docs and defaults
    #[command(after_help = "\
Examples:
  hymba components
  hymba components norm
  hymba components sequence_mixer --json
  hymba components --markdown > docs/components.md")]
    Components(Components),
    /// Prove that sequence mixers keep the laws of states: splits, batches, padding, packing, gradients, ...
    #[command(after_help = "\
Exit code 0: every law holds or is declared exempt; 1: a law is broken.

Examples:
  hymba conformance --list
  hymba conformance attention
  hymba conformance attention --config '{ n_heads: 4, window: 7, position: rope }'
  hymba conformance --all --json | jq '.reports[].laws[] | select(.outcome == \"broken\")'")]
    Conformance(Conformance),
    /// Show a recipe as it resolves, or where a value comes from
    Config(Config),
    /// Print the JSON Schema of recipes, for editors
    #[command(after_help = "\
Example:
  hymba schema > hymba.schema.json
  and in a recipe's first line:  # yaml-language-server: $schema=hymba.schema.json")]
    Schema,
    /// Continue a text with a trained model
    #[command(after_help = "\
Examples:
  hymba generate runs/quickstart --prompt 'pub fn '
  hymba generate runs/quickstart --prompt 'impl ' --checkpoint best --device cpu
  hymba generate runs/quickstart --prompt 'ROMEO:' --temperature 0.8 --top-k 40 --seed 3
  echo -n 'To be' | hymba generate runs/shakespeare --prompt -")]
    Generate(Generate),
    /// Show what this binary finds: libtorch, processor, GPU
    Doctor,
    /// Print a completion script for a shell
    #[command(
        after_help = "Example:\n  hymba completions bash > ~/.local/share/bash-completion/completions/hymba"
    )]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// A recipe and what the command line lays over it.
#[derive(Debug, Args)]
pub struct RecipeArguments {
    /// The recipe, a YAML file
    pub recipe: PathBuf,
    #[command(flatten)]
    pub layers: Layers,
}

/// What the command line lays over a recipe: later ones win.
#[derive(Debug, Args, Default)]
pub struct Layers {
    /// Take the section `model` from configs/models/NAME.yaml
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Take the section `data` from configs/data/NAME.yaml
    #[arg(long, value_name = "NAME")]
    pub data: Option<String>,
    /// Take the section `trainer` from configs/trainer/NAME.yaml
    #[arg(long, value_name = "NAME")]
    pub trainer: Option<String>,
    /// Set one value, as `trainer.threads=1` or `stages[0].steps=100`; may be given often
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// `hymba run`.
#[derive(Debug, Args)]
#[allow(clippy::struct_field_names)] // a field is its flag
pub struct Run {
    #[command(flatten)]
    pub recipe: RecipeArguments,
    /// Folder of the run; left out, runs/NAME with the recipe's name
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Go on from the newest checkpoint in the run's folder
    #[arg(long)]
    pub resume: bool,
    /// Resume although threads, processor or recipe differ from the checkpoint's
    #[arg(long, requires = "resume")]
    pub force: bool,
    /// Delete an earlier run in the same folder first
    #[arg(long, conflicts_with = "resume")]
    pub overwrite: bool,
}

/// `hymba validate`.
#[derive(Debug, Args)]
pub struct Validate {
    /// Recipes or configuration fragments
    #[arg(required = true, value_name = "FILES")]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    pub layers: Layers,
    /// Print the problems as JSON
    #[arg(long)]
    pub json: bool,
}

/// `hymba plan`.
#[derive(Debug, Args)]
pub struct Plan {
    #[command(flatten)]
    pub recipe: RecipeArguments,
    /// Tokens of a document in the totals; left out, the recipe's sequence length, else 2048
    #[arg(long, value_parser = clap::value_parser!(i64).range(1..))]
    pub tokens: Option<i64>,
    /// Print the plan as JSON
    #[arg(long, conflicts_with = "svg")]
    pub json: bool,
    /// Draw the architecture into FILE, or `-` for the terminal's output, instead of printing the table
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// `hymba components`.
#[derive(Debug, Args)]
pub struct Components {
    /// Only the components of this slot, with every field
    pub slot: Option<String>,
    /// Print the list as JSON, schemas included
    #[arg(long, conflicts_with = "markdown")]
    pub json: bool,
    /// Print the reference page: every component with its fields, shapes and costs, as Markdown
    #[arg(long)]
    pub markdown: bool,
}

/// `hymba conformance`.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub struct Conformance {
    /// Kind of a sequence mixer
    #[arg(conflicts_with_all = ["all", "list"])]
    pub kind: Option<String>,
    /// Prove every registered case of this binary
    #[arg(long, conflicts_with = "list")]
    pub all: bool,
    /// List the registered cases and the laws
    #[arg(long)]
    pub list: bool,
    /// Prove this configuration (YAML) instead of the registered ones
    #[arg(long, value_name = "YAML", requires = "kind")]
    pub config: Option<String>,
    /// Print the reports as JSON
    #[arg(long)]
    pub json: bool,
}

/// `hymba config`.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub struct Config {
    #[command(subcommand)]
    pub command: ConfigCommand,
}

/// The commands below `hymba config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the recipe as it resolves: every layer applied, every default filled in
    Show(RecipeArguments),
    /// Say what a key is, which value it has and where that comes from
    #[command(after_help = "Example:\n  hymba config explain model.d_model recipes/quickstart.yaml")]
    Explain {
        /// Dotted path, as `model.block_pattern.layer.mixers[0].n_heads`
        key: String,
        #[command(flatten)]
        recipe: RecipeArguments,
    },
}

/// `hymba generate`.
#[derive(Debug, Args)]
pub struct Generate {
    /// Folder of a run
    pub run: PathBuf,
    /// The text to continue; `-` reads it from standard input
    #[arg(long, default_value = "")]
    pub prompt: String,
    /// Most new tokens
    #[arg(long, default_value_t = 200)]
    pub max_new_tokens: usize,
    /// Divides the logits; 0 takes the likeliest token always
    #[arg(long, default_value_t = 0.8, value_parser = temperature, allow_negative_numbers = true)]
    pub temperature: f64,
    /// Only the likeliest tokens, this many
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub top_k: Option<u64>,
    /// Only the likeliest tokens that together have this probability
    #[arg(long, value_parser = probability, allow_negative_numbers = true)]
    pub top_p: Option<f64>,
    /// Seed of the choice
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Where to compute: auto (the first GPU if there is one), cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Which weights: last, best (lowest validation loss of the kept ones), or the step of a checkpoint
    #[arg(long, value_name = "WHICH", default_value = "last", value_parser = checkpoint)]
    pub checkpoint: Which,
}

fn checkpoint(text: &str) -> Result<Which, String> {
    match text {
        "last" => Ok(Which::Last),
        "best" => Ok(Which::Best),
        _ => text.parse().map(Which::Step).map_err(|_| "expected last, best or a step".to_owned()),
    }
}

fn temperature(text: &str) -> Result<f64, String> {
    number_in(text, 0.0..=f64::MAX, "a number, 0 or more")
}

fn probability(text: &str) -> Result<f64, String> {
    number_in(text, f64::MIN_POSITIVE..=1.0, "a number above 0, at most 1")
}

fn number_in(text: &str, range: RangeInclusive<f64>, expected: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("expected {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generate(words: &[&str]) -> Result<Generate, clap::Error> {
        let words = ["hymba", "generate", "runs/a"].iter().chain(words);
        Arguments::try_parse_from(words).map(|arguments| match arguments.command {
            Command::Generate(generate) => generate,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn which_weights_and_where() {
        let plain = generate(&[]).unwrap();
        assert_eq!((plain.checkpoint, plain.device), (Which::Last, DeviceChoice::Auto));
        let told = generate(&["--checkpoint", "best", "--device", "cuda:1"]).unwrap();
        assert_eq!((told.checkpoint, told.device), (Which::Best, DeviceChoice::Cuda(1)));
        assert_eq!(generate(&["--checkpoint", "00000012"]).unwrap().checkpoint, Which::Step(12));
    }

    #[test]
    fn numbers_out_of_range_are_mistakes_of_the_command_line() {
        for words in [
            ["--temperature", "-1"],
            ["--temperature", "nan"],
            ["--temperature", "inf"],
            ["--top-p", "0"],
            ["--top-p", "1.1"],
            ["--top-k", "0"],
            ["--checkpoint", "newest"],
            ["--device", "gpu"],
        ] {
            assert_eq!(generate(&words).unwrap_err().exit_code(), 2, "{words:?}");
        }
        assert!(generate(&["--temperature", "0", "--top-p", "1"]).is_ok());
    }
}
