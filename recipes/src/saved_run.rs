//! A run that was made before, opened to use its model.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use hymba_plus::{
    model::{BuildOptions, Model, ModelConfig},
    params::ParameterPlan,
    plan::ModelPlan,
    registry::{Section, parse_config},
};
use serde_json::Value;
use tch::Device;
pub use training::checkpoint::Which;
use training::{
    checkpoint::Found,
    run_dir::{saved_checkpoints, saved_recipe, saved_tokenizer},
    tokenizer::Tokenizer,
    trainer::{TokenizerSection, TrainerConfig},
};

use crate::{
    context::{StageError, StagesSection},
    weights::IMPORT,
};

/// The tokenizer and a model of a run directory.
#[derive(Debug)]
pub struct SavedRun {
    /// The tokenizer that the run trained or read; none when its weights were imported without one.
    pub tokenizer: Option<Tokenizer>,
    /// The model with the weights of the checkpoint.
    pub model: Model,
    /// How the run computed.
    pub trainer: TrainerConfig,
    /// The checkpoint.
    pub checkpoint: PathBuf,
    /// Why not one that was wanted more.
    pub passed_over: Vec<String>,
}

impl SavedRun {
    /// Opens a run directory, of a run that has ended or one that is under way. Nothing in it is changed, and nothing
    /// besides it is needed.
    ///
    /// # Errors
    /// When it is no run, has no such checkpoint, or its files do not fit together.
    pub fn open(folder: &Path, which: Which, device: Device) -> Result<Self, StageError> {
        Self::open_as(folder, which, device, None)
    }

    /// [`open`](Self::open) with another configuration of the model, which has the same parameters.
    ///
    /// # Errors
    /// As `open`, and when parameters differ.
    pub fn open_as(
        folder: &Path,
        which: Which,
        device: Device,
        changed: Option<&ModelConfig>,
    ) -> Result<Self, StageError> {
        let other = |message: String| StageError::Other(format!("{}{message}", folder.display()));
        let recipe = saved_recipe(folder)?;
        let recipe =
            recipe.ok_or_else(|| other(" is not a run directory: it has no recipe.yaml".to_owned()))?;
        let has_tokenizer = section::<TokenizerSection>(&recipe)?.is_some();
        let tokenizer = has_tokenizer.then(|| Tokenizer::load(&saved_tokenizer(folder))).transpose()?;
        let model: ModelConfig =
            section(&recipe)?.ok_or_else(|| other("/recipe.yaml: the recipe has no model".to_owned()))?;
        let vocab_size = tokenizer.as_ref().map(|t| t.planned_vocab_size() as i64);
        let resolve = |model: &ModelConfig| {
            ModelPlan::resolve(model, vocab_size).map_err(|wrong| {
                let wrong: Vec<String> = wrong.iter().map(ToString::to_string).collect();
                other(format!("/recipe.yaml: {}", wrong.join("; ")))
            })
        };
        let mut plan = resolve(&model)?;
        if let Some(changed) = changed {
            let changed = resolve(changed)?;
            let differences = differences(&plan.parameters, &changed.parameters);
            if !differences.is_empty() {
                let message = format!(": the changed model has other parameters: {}", differences.join("; "));
                return Err(other(message));
            }
            plan = changed;
        }
        let trainer = match section::<TrainerConfig>(&recipe)? {
            Some(trainer) => trainer,
            None => read(Value::Object(serde_json::Map::new()), TrainerConfig::KEY)?,
        };
        trainer.kernels.apply();
        let (stages, tokenizer) = match section::<StagesSection>(&recipe)? {
            Some(stages) => (stages.names(), tokenizer),
            // Nothing was trained here: the weights were imported.
            None => (vec![IMPORT.to_owned()], tokenizer.map(Tokenizer::beginning_as_elsewhere)),
        };
        let model =
            Model::build(&plan, BuildOptions { device, kind: trainer.precision.parameter_kind(), seed: 0 })?;
        let tensors: Vec<_> =
            model.parameters().iter().map(|p| (p.plan.name.clone(), p.tensor.shallow_clone())).collect();
        let mut missing = None;
        // The last stage that has checkpoints holds the newest weights.
        for stage in stages.iter().rev() {
            let reader = saved_checkpoints(folder, stage);
            if !reader.exists() {
                continue;
            }
            match reader.find(which, |checkpoint| checkpoint.model()?.load_into(&tensors)) {
                Ok(Some(Found { checkpoint, damaged, .. })) => {
                    let passed_over = damaged.iter().map(ToString::to_string).collect();
                    let checkpoint = checkpoint.path().to_owned();
                    return Ok(Self { tokenizer, model, trainer, checkpoint, passed_over });
                }
                Ok(None) => {}
                Err(error @ training::checkpoint::CheckpointError::NotThere { .. }) => {
                    missing.get_or_insert(error);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(missing.map_or_else(|| other(" has no checkpoint yet".to_owned()), StageError::from))
    }

    /// The tokenizer, for those who cannot do without.
    ///
    /// # Errors
    /// When the run has none.
    pub fn tokenizer(&self) -> Result<&Tokenizer, StageError> {
        self.tokenizer.as_ref().ok_or_else(|| {
            let message = "this run has no tokenizer: its weights were imported without one, so it reads token ids only \
                           (`hymba logits`); import them again from a folder with a tokenizer.json";
            StageError::Other(message.to_owned())
        })
    }
}

/// What is to be loaded differently: parameters by name and shape.
fn differences(saved: &[ParameterPlan], changed: &[ParameterPlan]) -> Vec<String> {
    let shapes = |plans: &[ParameterPlan]| -> BTreeMap<String, Vec<i64>> {
        plans.iter().map(|plan| (plan.name.clone(), plan.shape.clone())).collect()
    };
    let (saved, changed) = (shapes(saved), shapes(changed));
    let mut all = Vec::new();
    for (name, shape) in &saved {
        match changed.get(name) {
            None => all.push(format!("`{name}` is gone")),
            Some(other) if other != shape => all.push(format!("`{name}` is {other:?} instead of {shape:?}")),
            Some(_) => {}
        }
    }
    all.extend(
        changed.keys().filter(|name| !saved.contains_key(*name)).map(|name| format!("`{name}` is new")),
    );
    all
}

/// A section of a resolved recipe.
fn section<T: Section>(recipe: &Value) -> Result<Option<T>, StageError> {
    let value = recipe.get(T::KEY).filter(|value| !value.is_null()).cloned();
    value.map(|value| read(value, T::KEY)).transpose()
}

fn read<T: Section>(value: Value, key: &str) -> Result<T, StageError> {
    parse_config(value).map_err(|error| StageError::Other(format!("recipe.yaml: {key}: {error}")))
}
