//! Checkpoints: directories of safetensors and JSON, written whole or not at all.
//!
//! ```text
//! checkpoints/pretrain/step-00000200/
//!   model.safetensors       the parameters
//!   optimizer.safetensors   the optimizer's state, `exp_avg.NAME` and the like
//!   rng.safetensors         states of the random number generators, one per device
//!   state.json              everything else that resuming needs (see `TrainingState`)
//!   checksums.json          size and SHA-256 of each file above
//! ```

mod error;
mod manifest;
mod reader;
mod state;
mod store;
mod tensors;
#[cfg(test)]
mod tests;
mod write;

pub use error::CheckpointError;
pub use reader::{CheckpointReader, Found, Which};
pub use state::{Best, FORMAT, TrainingState};
pub use store::{CheckpointStore, Damaged};
pub use tensors::{NamedTensors, TensorFile, write_tensors};
pub use write::Contents;

use std::path::{Path, PathBuf};

pub(crate) const MODEL: &str = "model.safetensors";
pub(crate) const OPTIMIZER: &str = "optimizer.safetensors";
pub(crate) const RNG: &str = "rng.safetensors";
const STATE: &str = "state.json";

/// A checkpoint whose checksums were verified.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    path: PathBuf,
    state: TrainingState,
}

impl Checkpoint {
    /// Opens a checkpoint after reading every byte of it.
    ///
    /// # Errors
    /// When a file is missing, torn or altered, or its format is of another version.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        manifest::verify(path)?;
        let state = TrainingState::read(&path.join(STATE))?;
        Ok(Self { path: path.to_owned(), state })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What `state.json` holds.
    pub fn state(&self) -> &TrainingState {
        &self.state
    }

    /// The parameters.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn model(&self) -> Result<TensorFile, CheckpointError> {
        TensorFile::open(&self.path.join(MODEL))
    }

    /// The optimizer's state.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn optimizer(&self) -> Result<TensorFile, CheckpointError> {
        TensorFile::open(&self.path.join(OPTIMIZER))
    }

    /// The states of the random number generators.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn rng(&self) -> Result<TensorFile, CheckpointError> {
        TensorFile::open(&self.path.join(RNG))
    }
}
