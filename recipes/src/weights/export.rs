//! A run becomes a folder of another library.

use std::path::PathBuf;

use hymba_plus::{
    registry::Component,
    weights::{ExportOptions, Exported, TokenIds, export, parse_kind, weight_format},
};
use serde_json::{Map, Value};
use tch::{Device, Kind};
use training::{checkpoint::Which, run_dir::saved_import};

use super::tokenizer;
use crate::{context::StageError, saved_run::SavedRun};

/// What to export, and where to.
#[derive(Debug, Clone)]
pub struct ExportRun {
    /// The run directory.
    pub run: PathBuf,
    /// The folder to make.
    pub to: PathBuf,
    /// Which weights.
    pub which: Which,
    /// Kind of the format; left out, the one that the run was imported from, else the first that can express the model.
    pub format: Option<String>,
    /// Settings of the format.
    pub settings: Map<String, Value>,
    /// Type of the weights in the files; left out, that of the files that the run was imported from, else the run's.
    pub kind: Option<Kind>,
    /// Most bytes of tensors in one file.
    pub max_shard_bytes: u64,
}

/// Writes a run's model and tokenizer as a new folder that another library reads.
///
/// # Errors
/// When the run cannot be opened, the format cannot express its model, or the folder cannot be written.
pub fn export_run(request: &ExportRun) -> Result<Exported, StageError> {
    let saved = SavedRun::open(&request.run, request.which, Device::Cpu)?;
    let imported = saved_import(&request.run)?;
    let came = |key: &str| imported.as_ref().and_then(|import| import.get(key)).cloned();
    let tokens = match (came("tokens"), &saved.tokenizer) {
        (Some(tokens), _) => read_tokens(&tokens),
        (None, Some(tokenizer)) => tokenizer::ids(tokenizer),
        (None, None) => TokenIds::default(),
    };
    let before = came("dtype").and_then(|dtype| parse_kind(dtype.as_str()?));
    let options = ExportOptions {
        format: format(request, came("format"))?,
        kind: request.kind.or(before),
        max_shard_bytes: request.max_shard_bytes,
        tokens,
        files: tokenizer::files(&request.run, saved.tokenizer.as_ref())?,
    };
    Ok(export(&saved.model, &request.to, &options)?)
}

/// The format with its settings; those of an import hold unless others are given.
fn format(
    request: &ExportRun,
    before: Option<Value>,
) -> Result<Option<Component<weight_format>>, StageError> {
    let before: Option<Component<weight_format>> = before
        .map(serde_json::from_value)
        .transpose()
        .map_err(|error| StageError::Other(format!("{}: its import.json: {error}", request.run.display())))?;
    let mut format = match (&request.format, before) {
        (Some(kind), Some(before)) if before.kind == *kind => before,
        (Some(kind), _) => Component::of(kind),
        (None, Some(before)) => before,
        (None, None) if request.settings.is_empty() => return Ok(None),
        (None, None) => {
            let message = "settings belong to a format: name it with --format";
            return Err(StageError::Other(message.to_owned()));
        }
    };
    format.config.extend(request.settings.clone());
    Ok(Some(format))
}

fn read_tokens(tokens: &Value) -> TokenIds {
    let one = |key: &str| tokens.get(key).and_then(Value::as_i64);
    let eos = tokens.get("eos").and_then(Value::as_array);
    TokenIds {
        bos: one("bos"),
        eos: eos.into_iter().flatten().filter_map(Value::as_i64).collect(),
        pad: one("pad"),
    }
}
