//! A model from a run or straight from a folder of another library.

use std::path::Path;

use hymba_plus::{
    model::{BuildOptions, Model},
    weights::{Foreign, ImportOptions},
};
use tch::{Device, Kind};
use training::{checkpoint::Which, run_dir::saved_recipe};

use super::import::kind_of_run;
use crate::{context::StageError, saved_run::SavedRun};

/// A model and what its user should know of how it was found.
#[derive(Debug)]
pub struct OpenedModel {
    /// The model.
    pub model: Model,
    /// Readings that were chosen, checkpoints that were passed over.
    pub notes: Vec<String>,
}

/// Opens a run directory, or a folder with a foreign `config.json`, which is read with `import`. `kind` is the type to
/// compute in; left out, that of the run, for a foreign folder 32 bits (64 where the files have them).
///
/// # Errors
/// When it is neither, or cannot be read.
pub fn open_model(
    path: &Path,
    which: Which,
    device: Device,
    kind: Option<Kind>,
    import: &ImportOptions,
) -> Result<OpenedModel, StageError> {
    if saved_recipe(path)?.is_some() {
        let saved = SavedRun::open(path, which, device)?;
        return Ok(OpenedModel { model: recast(saved.model, kind)?, notes: saved.passed_over });
    }
    if !path.join("config.json").exists() {
        let message = "is neither a run (recipe.yaml) nor a folder with a config.json and safetensors";
        return Err(StageError::Other(format!("{} {message}", path.display())));
    }
    let foreign = Foreign::open(path, import)?;
    let kind = kind.unwrap_or_else(|| kind_of_run(foreign.dtype()));
    let model = foreign.model(BuildOptions { device, kind, seed: 0 })?;
    Ok(OpenedModel { model, notes: foreign.notes })
}

/// The same model in another type.
fn recast(model: Model, kind: Option<Kind>) -> Result<Model, StageError> {
    let options = model.options();
    let Some(kind) = kind.filter(|kind| *kind != options.kind) else { return Ok(model) };
    let other = Model::build(model.plan(), BuildOptions { kind, ..options })?;
    for parameter in model.parameters() {
        other.parameters().set(&parameter.plan.name, &parameter.tensor)?;
    }
    Ok(other)
}
