//! A folder of another library becomes a run.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use hymba_plus::{
    config::{LoadOptions, Recipe},
    model::{BuildOptions, Model},
    registry::Section,
    weights::{Foreign, ImportOptions, TokenIds},
};
use serde_json::{Map, Value, json};
use tch::{Device, Kind};
use training::{
    checkpoint::{Contents, FORMAT, TrainingState},
    data::Fingerprint,
    environment::{Environment, Execution},
    run_dir::{Existing, RunDir},
    trainer::{Precision, TokenizerSection, TrainerConfig},
};

use super::{IMPORT, tokenizer};
use crate::context::StageError;

/// What to import, and where to.
#[derive(Debug, Clone)]
pub struct ImportRun {
    /// The folder: `config.json`, safetensors, perhaps a `tokenizer.json`.
    pub source: PathBuf,
    /// The run directory to make.
    pub run: PathBuf,
    /// Name of the run; left out, that of the source.
    pub name: Option<String>,
    /// How the folder is read.
    pub options: ImportOptions,
    /// Whether the tokenizer comes along.
    pub with_tokenizer: bool,
    /// The token between documents; left out, the tokenizer's own.
    pub end_of_text: Option<String>,
}

/// What was imported.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// Kind of the format.
    pub format: String,
    /// Elements of all parameters.
    pub parameters: u64,
    /// Type of the weights in the files.
    pub dtype: String,
    /// Whether the run has a tokenizer.
    pub has_tokenizer: bool,
    /// Readings that were chosen.
    pub notes: Vec<String>,
    /// Keys of the configuration that have no effect on what the model computes.
    pub without_effect: Vec<String>,
}

/// Makes a run of a foreign folder: the recipe with model and tokenizer, one checkpoint, and where it all came from. The
/// run opens like any other.
///
/// # Errors
/// When the folder is not understood, or the run directory cannot be made; then nothing is left of it.
pub fn import_run(request: &ImportRun) -> Result<Imported, StageError> {
    let foreign = Foreign::open(&request.source, &request.options)?;
    let existed = request.run.exists();
    let directory = RunDir::open(&request.run, Existing::Refuse)?;
    let imported = fill(&directory, &foreign, request);
    if imported.is_err() && !existed {
        let _ = fs::remove_dir_all(&request.run); // the first error is the one to report
    }
    imported
}

fn fill(directory: &RunDir, foreign: &Foreign, request: &ImportRun) -> Result<Imported, StageError> {
    let tokens = token_ids(&request.source, &foreign.config)?;
    let tokenizer = if request.with_tokenizer {
        tokenizer::read(&request.source, request.end_of_text.as_deref(), &tokens)?
    } else {
        None
    };
    if let Some(read) = &tokenizer {
        read.tokenizer.save(&directory.tokenizer())?;
        // Byte for byte what it was; the file beside it has our own part besides.
        let source = request.source.join(tokenizer::TOKENIZER);
        fs::copy(&source, directory.tokenizer())
            .map_err(|error| StageError::Other(format!("{}: {error}", source.display())))?;
    }
    let precision = if foreign.dtype() == "float64" { Precision::Float64 } else { Precision::Float32 };
    let end_of_text = tokenizer.as_ref().map(|tokenizer| tokenizer.end_of_text.as_str());
    let recipe = recipe(request, foreign, end_of_text, precision)?;
    directory.write_beginning(recipe.name(), &recipe.hash())?;
    directory.write_recipe(&recipe.resolved_yaml())?;
    let execution = Execution::now(Device::Cpu, precision, true)?;
    directory.write_environment(&Environment::collect(execution.clone(), &request.source))?;
    let provenance = provenance(request, foreign, &tokens)?;
    directory.write_import(&provenance)?;

    let kind = precision.parameter_kind();
    let model = foreign.model(BuildOptions { device: Device::Cpu, kind, seed: 0 })?;
    let state = TrainingState {
        format: FORMAT,
        stage: IMPORT.to_owned(),
        step: 0,
        total_steps: 0,
        tokens: 0,
        elapsed_seconds: 0.0,
        data: Value::Null,
        fingerprint: Fingerprint::default(),
        task: Value::Null,
        best_metric: String::new(),
        best: Vec::new(),
        evaluation: Vec::new(),
        metrics_bytes: 0,
        settings: provenance,
        recipe_hash: recipe.hash(),
        execution,
    };
    let contents = Contents { model: named(&model), optimizer: Vec::new(), rng: Vec::new(), state: &state };
    directory.checkpoint_store(IMPORT)?.write(&contents, 1)?;
    Ok(Imported {
        format: foreign.format.kind.clone(),
        parameters: foreign.plan.parameter_count(),
        dtype: foreign.dtype().to_owned(),
        has_tokenizer: tokenizer.is_some(),
        notes: foreign.notes.clone(),
        without_effect: foreign.without_effect.keys().cloned().collect(),
    })
}

fn named(model: &Model) -> Vec<(String, tch::Tensor)> {
    let parameters = model.parameters().iter();
    parameters.map(|parameter| (parameter.plan.name.clone(), parameter.tensor.shallow_clone())).collect()
}

/// The recipe of the run; it is a base that other recipes extend with data and stages.
fn recipe(
    request: &ImportRun,
    foreign: &Foreign,
    end_of_text: Option<&str>,
    precision: Precision,
) -> Result<Recipe, StageError> {
    let source = request.source.canonicalize().unwrap_or_else(|_| request.source.clone());
    let name = request.name.clone().unwrap_or_else(|| identifier(&source));
    let mut values = json!({
        "schema": 1,
        "name": name,
        "description": format!("Weights of format {}, imported.", foreign.format.kind),
        "model": foreign.model_section,
        TrainerConfig::KEY: { "precision": precision },
    });
    if let Some(end_of_text) = end_of_text {
        let component = tokenizer::component(Path::new(tokenizer::TOKENIZER), end_of_text, None);
        values[TokenizerSection::KEY] =
            serde_json::to_value(component).map_err(|error| StageError::Other(error.to_string()))?;
    }
    // JSON is YAML.
    let options = LoadOptions { cwd: Some(request.run.clone()), ..LoadOptions::default() };
    Ok(Recipe::from_yaml(&values.to_string(), &options)?)
}

/// A name for a recipe from that of a folder.
fn identifier(folder: &Path) -> String {
    let stem = folder.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let words: Vec<&str> = stem
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
        .filter(|word| !word.is_empty())
        .collect();
    if words.is_empty() { IMPORT.to_owned() } else { words.join("_") }
}

/// Tokens by number: those that generation stops at, else those of the configuration.
fn token_ids(source: &Path, config: &Map<String, Value>) -> Result<TokenIds, StageError> {
    let generation = tokenizer::object(&source.join("generation_config.json"))?.unwrap_or_default();
    let find = |key: &str| {
        let known = |object: &Map<String, Value>| object.get(key).filter(|value| !value.is_null()).cloned();
        known(&generation).or_else(|| known(config))
    };
    let eos = match find("eos_token_id") {
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_i64).collect(),
        Some(one) => one.as_i64().into_iter().collect(),
        None => Vec::new(),
    };
    let one = |key: &str| find(key).and_then(|value| value.as_i64());
    Ok(TokenIds { bos: one("bos_token_id"), eos, pad: one("pad_token_id") })
}

/// Where the weights came from: the folder, the hash of every file, the configuration as it was, how it was read.
fn provenance(request: &ImportRun, foreign: &Foreign, tokens: &TokenIds) -> Result<Value, StageError> {
    let source = request.source.canonicalize().unwrap_or_else(|_| request.source.clone());
    let configuration = request.source.join("config.json");
    let mut files = BTreeMap::new();
    for path in foreign.files().chain([configuration.as_path()]) {
        let (size, sha256) = training::file_digest(path)
            .map_err(|error| StageError::Other(format!("{}: {error}", path.display())))?;
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        files.insert(name, json!({ "size": size, "sha256": sha256 }));
    }
    Ok(json!({
        "source": source,
        "format": foreign.format,
        "dtype": foreign.dtype(),
        "files": files,
        "config": foreign.config,
        "without_effect": foreign.without_effect,
        "ignored_keys": request.options.ignored_keys,
        "notes": foreign.notes,
        "tokens": { "bos": tokens.bos, "eos": tokens.eos, "pad": tokens.pad },
    }))
}

/// The type that weights are kept in while they are read, by the name of a configuration.
pub(super) fn kind_of_run(dtype: &str) -> Kind {
    if dtype == "float64" { Kind::Double } else { Kind::Float }
}
