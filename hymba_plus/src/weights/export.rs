//! Writing a model as a folder that another library reads.

use std::path::Path;

use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};
use torch_bridge::{Result, guards::NoGrad};

use super::{
    Mapping, WeightFormat, WeightsError,
    compare::differences,
    format::weight_format,
    import::understand,
    kinds::float_name,
    mapping::{ForeignTensor, Piece, Role},
    source::{INDEX, SINGLE},
    writer::{NewFolder, Row, write_file},
};
use crate::{
    model::Model,
    plan::ModelPlan,
    registry::{Component, Registry, Slot},
};

pub(super) const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";

/// Tokens that the other library must know by number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenIds {
    /// The token that a text begins with.
    pub bos: Option<i64>,
    /// The tokens that end a text.
    pub eos: Vec<i64>,
    /// The token that fills short rows.
    pub pad: Option<i64>,
}

impl TokenIds {
    /// As the keys of a configuration; a key that is not known is `null`, so that no foreign default takes its place.
    fn keys(&self) -> [(String, Value); 3] {
        let eos = match self.eos.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            several => json!(several),
        };
        [
            ("bos_token_id".to_owned(), json!(self.bos)),
            ("eos_token_id".to_owned(), eos),
            ("pad_token_id".to_owned(), json!(self.pad)),
        ]
    }
}

/// How a model is written.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// The format with its settings; left out, the first that can express the model.
    pub format: Option<Component<weight_format>>,
    /// Type of the weights in the files; left out, the model's.
    pub kind: Option<Kind>,
    /// Most bytes of tensors in one file.
    pub max_shard_bytes: u64,
    /// Tokens by number.
    pub tokens: TokenIds,
    /// Further files of the folder: name and content.
    pub files: Vec<(String, Vec<u8>)>,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self {
            format: None,
            kind: None,
            max_shard_bytes: 5_000_000_000,
            tokens: TokenIds::default(),
            files: Vec::new(),
        }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Kind of the format.
    pub format: String,
    /// Files of tensors.
    pub files: Vec<String>,
    /// Bytes of all tensors.
    pub bytes: u64,
}

/// Writes a model as a new folder: its configuration, its weights, what else `options` names. The folder appears when all
/// of it is on the disk.
///
/// # Errors
/// When the format cannot express the model, the folder is in use, or writing fails.
pub fn export(model: &Model, folder: &Path, options: &ExportOptions) -> Result<Exported, WeightsError> {
    let _guard = NoGrad::new();
    let Expressed { format, mut config, mapping } = express(model.plan(), options)?;
    let element = options.kind.unwrap_or(model.options().kind);
    let dtype = float_name(element)
        .ok_or_else(|| torch_bridge::Error::other(format!("weights cannot be written as {element:?}")))?;
    config.insert("torch_dtype".to_owned(), json!(dtype));
    config.extend(options.tokens.keys());
    let new = NewFolder::begin(folder)?;
    new.write(CONFIG, &pretty(&Value::Object(config))?)?;
    if options.tokens != TokenIds::default() {
        let known = options.tokens.keys().into_iter().filter(|(_, value)| !value.is_null());
        new.write(GENERATION, &pretty(&Value::Object(known.collect()))?)?;
    }
    for (name, bytes) in &options.files {
        new.write(name, bytes)?;
    }
    let (files, bytes) = write_tensors(&new, model, &mapping, element, options.max_shard_bytes)?;
    new.finish()?;
    Ok(Exported { format, files, bytes })
}

/// A model in the words of a format.
struct Expressed {
    format: String,
    config: Map<String, Value>,
    mapping: Mapping,
}

/// The plan in the words of the format that is asked for, or of the first that can express it.
fn express(plan: &ModelPlan, options: &ExportOptions) -> Result<Expressed, WeightsError> {
    let try_format = |kind: &str, format: &dyn WeightFormat| -> Result<Expressed, Vec<String>> {
        let config = configuration(kind, format, plan)?;
        let mapping = format.mapping(plan);
        let problems = mapping.problems();
        if problems.is_empty() {
            Ok(Expressed { format: kind.to_owned(), config, mapping })
        } else {
            Err(problems)
        }
    };
    if let Some(format) = &options.format {
        let object = format.make()?;
        return try_format(&format.kind, object.as_ref())
            .map_err(|reasons| WeightsError::Inexpressible { format: format.kind.clone(), reasons });
    }
    let mut formats = Vec::new();
    for entry in Registry::global()?.in_slot(weight_format::NAME) {
        let object = Component::<weight_format>::of(entry.kind).make()?;
        match try_format(entry.kind, object.as_ref()) {
            Ok(expressed) => return Ok(expressed),
            Err(reasons) => formats.push((entry.kind.to_owned(), reasons)),
        }
    }
    Err(WeightsError::NoFormat { formats })
}

/// A plan as a foreign configuration: written, read back, and compared, so that nothing is lost in silence.
fn configuration(
    kind: &str,
    format: &dyn WeightFormat,
    plan: &ModelPlan,
) -> Result<Map<String, Value>, Vec<String>> {
    let mut config = format.config(plan)?;
    let signature = format.signature();
    config.insert("model_type".to_owned(), json!(signature.model_type));
    config.insert("architectures".to_owned(), json!([signature.architectures[0]]));
    let back = understand(kind, format, &config, Path::new("the written config.json"), &[]);
    let lost = match back {
        Ok(back) => differences(plan, &back.plan, format.silent_keys()),
        Err(WeightsError::Config { problems, .. }) => problems,
        Err(error) => vec![error.to_string()],
    };
    if lost.is_empty() { Ok(config) } else { Err(lost) }
}

fn pretty(value: &Value) -> Result<Vec<u8>, WeightsError> {
    let mut bytes =
        serde_json::to_vec_pretty(value).map_err(|error| torch_bridge::Error::other(error.to_string()))?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Writes the tensors in as many files as their size asks for; gives the files and the bytes of all tensors.
fn write_tensors(
    folder: &NewFolder,
    model: &Model,
    mapping: &Mapping,
    kind: Kind,
    max_shard_bytes: u64,
) -> Result<(Vec<String>, u64), WeightsError> {
    let written = mapping.theirs.iter().filter(|tensor| matches!(tensor.role, Role::Weights | Role::Idle(_)));
    let pieces = mapping.pieces();
    let (mut shards, mut size, mut total) = (vec![Vec::new()], 0, 0);
    for tensor in written {
        let parts = pieces.get(tensor.name.as_str()).map_or(&[][..], Vec::as_slice);
        let row = Row {
            name: &tensor.name,
            shape: tensor.shape.iter().map(|&size| size as usize).collect(),
            kind,
            make: Box::new(move || assemble(model, tensor, parts, kind)),
        };
        let bytes = row.bytes() as u64;
        if size > 0 && size + bytes > max_shard_bytes {
            shards.push(Vec::new());
            size = 0;
        }
        size += bytes;
        total += bytes;
        if let Some(shard) = shards.last_mut() {
            shard.push(row);
        }
    }
    if let [one] = shards.as_slice() {
        write_file(&folder.hidden_path().join(SINGLE), one)?;
        return Ok((vec![SINGLE.to_owned()], total));
    }
    let (count, mut files, mut places) = (shards.len(), Vec::new(), Map::new());
    for (i, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{count:05}.safetensors", i + 1);
        write_file(&folder.hidden_path().join(&file), shard)?;
        places.extend(shard.iter().map(|row| (row.name.to_owned(), json!(file))));
        files.push(file);
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": places });
    folder.write(INDEX, &pretty(&index)?)?;
    Ok((files, total))
}

/// A foreign tensor from our parameters.
fn assemble(model: &Model, tensor: &ForeignTensor, pieces: &[&Piece], kind: Kind) -> Result<Tensor> {
    let _guard = NoGrad::new();
    let options = (kind, tch::Device::Cpu);
    if let Role::Idle(value) = tensor.role {
        return Ok(Tensor::f_full(tensor.shape.as_slice(), value, options)?);
    }
    let theirs = Tensor::f_empty(tensor.shape.as_slice(), options)?;
    for piece in pieces {
        let name = &piece.ours.name;
        let ours = model.parameters().get(name);
        let ours =
            ours.ok_or_else(|| torch_bridge::Error::other(format!("the model has no parameter {name}")))?;
        piece.copy_out(&ours.tensor, &theirs)?;
    }
    Ok(theirs)
}
