//! `hymba evaluate`: what can be said.

use std::{num::NonZeroUsize, path::PathBuf};

use clap::Args;
use training::{checkpoint::Which, trainer::DeviceChoice};

use super::generate::checkpoint;

/// Shown below the options.
pub(super) const EXAMPLES: &str = "\
Examples:
  hymba evaluate runs/shakespeare
  hymba evaluate runs/shakespeare --call-length 1 --tokens 20000
  hymba evaluate runs/shakespeare --call-length 1 --set 'model.block_pattern.layer.mixers[0].cache=int8'";

/// `hymba evaluate`.
#[derive(Debug, Args)]
pub struct Evaluate {
    /// Folder of a run
    pub run: PathBuf,
    /// Change a key of the model, as `model.norm.eps=1e-5`; refused when parameters would change; may be given often
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Tokens of a call, which hands its state on to the next; left out, whole sequences at once
    #[arg(long, value_name = "N")]
    pub call_length: Option<NonZeroUsize>,
    /// Stop after so many tokens, rounded up to whole sequences; left out, all of the text
    #[arg(long, value_name = "N")]
    pub tokens: Option<NonZeroUsize>,
    /// Tokens of a sequence, each read from the initial state; left out, those of the recipe's last stage that says so
    #[arg(long, value_name = "N")]
    pub sequence_length: Option<NonZeroUsize>,
    /// Sequences at a time; left out, those of that stage
    #[arg(long, value_name = "N")]
    pub batch_size: Option<NonZeroUsize>,
    /// Where to compute: auto (the first GPU if there is one), cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Which weights: last, best (lowest validation loss of the kept ones), or the step of a checkpoint
    #[arg(long, value_name = "WHICH", default_value = "last", value_parser = checkpoint)]
    pub checkpoint: Which,
}
