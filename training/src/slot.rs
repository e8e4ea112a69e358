//! The slots of training: tokenizer, dataset, optimizer and schedule, and what fills them.

use std::path::PathBuf;

use hymba_plus::{config::RecipePath, define_slot, params::Parameters};

use crate::{
    data::{DataError, Dataset, Description},
    optimizer::{Optimizer, OptimizerError},
    schedule::ScheduleError,
    tokenizer::{Tokenizer, TokenizerError},
};

define_slot!(/** How text becomes token ids: trained on the run's own text, or read from a file. */ tokenizer: dyn TokenizerSpec);
define_slot!(/** Where text, images or series come from, and how they are split. */ dataset: dyn DatasetSpec);
define_slot!(/** How gradients change parameters. */ optimizer: dyn OptimizerSpec);
define_slot!(/** How the learning rate moves over the steps of a stage. */ schedule: dyn ScheduleSpec);

/// Turns a path as the recipe wrote it into one that can be opened (`|path| recipe.path(path)`).
pub type Resolve<'a> = &'a dyn Fn(&RecipePath) -> PathBuf;

/// What a component of the slot `tokenizer` can do.
pub trait TokenizerSpec {
    /// Size of the vocabulary that a model must plan for, special tokens included.
    ///
    /// # Errors
    /// When it stands in a file that cannot be read.
    fn vocab_size(&self, resolve: Resolve<'_>) -> Result<usize, TokenizerError>;

    /// Whether [`build`](Self::build) looks at the texts at all.
    fn needs_training(&self) -> bool;

    /// Trains or reads the tokenizer. `texts` are the documents of the training split only; equal texts give an
    /// equal tokenizer, byte for byte, whatever the number of threads.
    ///
    /// # Errors
    /// When the file cannot be read, or the texts do not suffice.
    fn build(&self, texts: &[&str], resolve: Resolve<'_>) -> Result<Tokenizer, TokenizerError>;
}

/// What a component of the slot `dataset` can do.
pub trait DatasetSpec {
    /// What it gives, known without making it: for the checks of a recipe. May look into small files.
    ///
    /// # Errors
    /// When such a file is missing or is not what it should be.
    fn describe(&self, resolve: Resolve<'_>) -> Result<Description, DataError>;

    /// Reads or makes the data, and splits it.
    ///
    /// # Errors
    /// When a file is missing, is not what it should be, or leaves one of the splits empty.
    fn load(&self, resolve: Resolve<'_>) -> Result<Dataset, DataError>;

    /// Whether it gives something to validate on, known without reading anything.
    fn holds_out(&self) -> bool;
}

/// What a component of the slot `optimizer` can do.
pub trait OptimizerSpec {
    /// The learning rate that the schedule's factor multiplies.
    fn lr(&self) -> f64;

    /// An optimizer over all parameters, its state zero.
    ///
    /// # Errors
    /// When a setting is out of range, or libtorch refuses (out of memory).
    fn build(&self, parameters: &Parameters) -> Result<Box<dyn Optimizer>, OptimizerError>;
}

/// What a component of the slot `schedule` can do.
pub trait ScheduleSpec {
    /// Refuses settings that contradict the number of steps.
    ///
    /// # Errors
    /// When, for example, the warm-up is longer than the stage.
    fn check(&self, total_steps: u64) -> Result<(), ScheduleError>;

    /// Factor on the learning rate for step `step` of `0..total_steps`, in `[0, 1]`. A pure function.
    fn factor(&self, step: u64, total_steps: u64) -> f64;
}
