//! A run that was made before, opened to use its model.

use std::path::{Path, PathBuf};

use hymba_plus::{
    config::{LoadOptions, Recipe},
    model::{BuildOptions, Model},
};
use tch::{Device, Kind};
use training::{checkpoint::CheckpointStore, tokenizer::Tokenizer};

use crate::{
    context::{StageError, StagesSection},
    plan_model,
};

/// The recipe, the tokenizer and the newest weights of a run directory.
#[derive(Debug)]
pub struct SavedRun {
    /// The recipe that the run resolved.
    pub recipe: Recipe,
    /// The tokenizer that the run trained or read.
    pub tokenizer: Tokenizer,
    /// The model with the newest weights.
    pub model: Model,
    /// The checkpoint they came from.
    pub checkpoint: PathBuf,
}

impl SavedRun {
    /// Opens a run directory; nothing in it is changed.
    ///
    /// # Errors
    /// When it is no run, has no checkpoint yet, or its files do not fit together.
    pub fn open(folder: &Path, device: Device) -> Result<Self, StageError> {
        let recipe_file = folder.join("recipe.yaml");
        if !recipe_file.is_file() {
            let message = format!("{} is not a run directory: it has no recipe.yaml", folder.display());
            return Err(StageError::Other(message));
        }
        let recipe = Recipe::load(&recipe_file, &LoadOptions::default())?;
        let plan = plan_model(&recipe).map_err(|findings| recipe.diagnose(findings))?;
        let plan = plan.ok_or_else(|| StageError::Other("the run's recipe has no model".to_owned()))?;
        let stages: StagesSection = recipe.require("to find the run's checkpoints")?;
        // The last stage that has checkpoints holds the newest weights.
        for stage in stages.names().iter().rev() {
            let place = folder.join("checkpoints").join(stage);
            if !place.is_dir() {
                continue;
            }
            let store = CheckpointStore::open(&place).map_err(training::TrainError::from)?;
            let (newest, _) = store.newest_good().map_err(training::TrainError::from)?;
            let Some(checkpoint) = newest else { continue };
            let model = Model::build(&plan, BuildOptions { device, kind: Kind::Float, seed: 0 })?;
            let tensors: Vec<_> =
                model.parameters().iter().map(|p| (p.plan.name.clone(), p.tensor.shallow_clone())).collect();
            checkpoint
                .model()
                .and_then(|file| file.load_into(&tensors))
                .map_err(training::TrainError::from)?;
            let tokenizer = Tokenizer::load(&folder.join("tokenizer.json"))?;
            let checkpoint = checkpoint.path().to_owned();
            return Ok(Self { recipe, tokenizer, model, checkpoint });
        }
        Err(StageError::Other(format!("{} has no checkpoint yet", folder.display())))
    }
}
