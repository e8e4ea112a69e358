//! `state.json`: all that resuming needs besides tensors.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::CheckpointError;
use crate::{data::Fingerprint, environment::Execution};

/// Version of the checkpoint format.
pub const FORMAT: u32 = 1;

/// An evaluation that was among the best so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Step after which it was made.
    pub step: u64,
    /// Its value; lower is better.
    pub value: f64,
}

/// Where a stage stands after `step` steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingState {
    /// Version of the checkpoint format, [`FORMAT`].
    pub format: u32,
    /// Name of the stage.
    pub stage: String,
    /// Steps that are done.
    pub step: u64,
    /// Steps that the stage has.
    pub total_steps: u64,
    /// Targets that were learnt from.
    pub tokens: u64,
    /// Time spent in steps over all runs, in seconds.
    pub elapsed_seconds: f64,
    /// Position of the loader (see [`Loader::state`](crate::data::Loader::state)).
    pub data: Value,
    /// What the data is.
    pub fingerprint: Fingerprint,
    /// State of the task besides its parameters (see [`Task::state`](crate::Task::state)).
    pub task: Value,
    /// The metric by which `best` is chosen.
    pub best_metric: String,
    /// Best evaluations, the best first.
    pub best: Vec<Best>,
    /// The last evaluation, by name; a value that is no finite number is `null`.
    pub evaluation: Vec<(String, Option<f64>)>,
    /// Bytes of `metrics.jsonl` up to here.
    pub metrics_bytes: u64,
    /// The loop's settings, schedule and optimizer included, as the recipe gives them.
    pub settings: Value,
    /// Hash of the resolved recipe.
    pub recipe_hash: String,
    /// What the bits of the result depend on: threads, CPU capability, device, versions.
    pub execution: Execution,
}

impl TrainingState {
    /// Reads the file, and refuses another version of the format before looking at anything else.
    pub(super) fn read(path: &Path) -> Result<Self, CheckpointError> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let bytes =
            std::fs::read(path).map_err(|source| CheckpointError::Read { path: path.to_owned(), source })?;
        let format_error = |error: serde_json::Error| CheckpointError::Format {
            path: path.to_owned(),
            message: error.to_string(),
        };
        let found = serde_json::from_slice::<Version>(&bytes).map_err(format_error)?.format;
        if found != FORMAT {
            return Err(CheckpointError::Version { path: path.to_owned(), found, known: FORMAT });
        }
        serde_json::from_slice(&bytes).map_err(format_error)
    }
}
