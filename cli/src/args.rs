//! The command line: what can be said, and the help that teaches it.

mod evaluate;
mod generate;
mod weights;

use std::{
    num::{NonZeroU64, NonZeroUsize},
    path::PathBuf,
};

use clap::{Args, Parser, Subcommand};

pub use evaluate::Evaluate;
pub use generate::Generate;
pub use weights::{ExportHf, ExportTo, ImportFrom, ImportHf, Logits};

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
  hymba generate runs/quickstart --prompt 'fn '    continue a text with a trained model
  hymba import hf models/llama --out runs/llama    weights of another library as a run"
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
    /// Train a few steps and say what each operation costs: a table and a Chrome trace
    #[command(after_help = "\
The steps run operation by operation (a CUDA graph does not tell which operation a kernel belongs to). Nothing is kept
of the training; table and trace go to the folder.

Examples:
  hymba profile recipe.yaml
  hymba profile recipe.yaml --steps 5 --set trainer.device=cuda
  hymba profile recipe.yaml --json | jq '.table.rows[:5]'
  hymba profile recipe.yaml --decode --batch 64 --prompt-length 512 --new-tokens 128")]
    Profile(Profile),
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
    /// Continue texts with a trained model
    #[command(after_help = generate::EXAMPLES)]
    Generate(Box<Generate>),
    /// Measure a trained model on its validation text: in calls of any length, with other settings of the model
    #[command(after_help = evaluate::EXAMPLES)]
    Evaluate(Box<Evaluate>),
    /// Make a run of another library's weights
    Import(weights::Import),
    /// Write a run as another library's weights
    Export(weights::Export),
    /// Compute what a model says of given tokens, to compare it with anything
    #[command(after_help = weights::LOGITS_EXAMPLES)]
    Logits(Box<weights::Logits>),
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

/// `hymba profile`.
#[derive(Debug, Args)]
pub struct Profile {
    #[command(flatten)]
    pub recipe: RecipeArguments,
    /// Folder of trace and table, made anew; left out, runs/NAME-profile with the recipe's name
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Steps that are watched
    #[arg(long, value_name = "N", default_value = "3")]
    pub steps: NonZeroU64,
    /// Steps before them; the second half of these says how fast a step is without the profiler
    #[arg(long, value_name = "N", default_value = "6")]
    pub warm_up: NonZeroU64,
    /// Make tokens instead, with the recipe's model as it begins (in 16 bits under `precision: bfloat16`), the likeliest ones
    #[arg(long)]
    pub decode: bool,
    /// Sequences at a time
    #[arg(long, value_name = "N", default_value = "1", requires = "decode")]
    pub batch: NonZeroUsize,
    /// Tokens of a prompt
    #[arg(long, value_name = "N", default_value = "512", requires = "decode")]
    pub prompt_length: NonZeroUsize,
    /// Tokens that follow it
    #[arg(long, value_name = "N", default_value = "128", requires = "decode")]
    pub new_tokens: NonZeroUsize,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
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
