//! Reading a foreign folder: its configuration as a plan, its tensors as parameters.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};
use tch::Kind;
use torch_bridge::{Error, guards::NoGrad};

use super::{
    ForeignConfig, Mapping, TensorFolder, TensorProblems, WeightFormat, WeightsError,
    format::weight_format,
    json::read_object,
    kinds::float_name,
    mapping::{ForeignTensor, Role},
};
use crate::{
    model::{BuildOptions, Model, ModelConfig},
    plan::ModelPlan,
    registry::{Component, Registry, Slot, parse_config},
};

/// How a folder is read.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// Kind of the format; left out, the configuration says it.
    pub format: Option<String>,
    /// Settings of the format.
    pub settings: Map<String, Value>,
    /// Keys of the configuration that shall not matter although the format does not know them.
    pub ignored_keys: Vec<String>,
}

/// A folder of another library, understood: its model is planned, and every tensor has its place.
#[derive(Debug)]
pub struct Foreign {
    /// The format and its settings.
    pub format: Component<weight_format>,
    /// The foreign configuration, as it was written.
    pub config: Map<String, Value>,
    /// The `model` section that computes the same.
    pub model_section: Value,
    /// Its plan.
    pub plan: ModelPlan,
    /// Keys of the configuration that have no effect on what the model computes.
    pub without_effect: BTreeMap<String, Value>,
    /// Readings that were chosen.
    pub notes: Vec<String>,
    tensors: TensorFolder,
    mapping: Mapping,
}

impl Foreign {
    /// Understands a folder with a `config.json` and safetensors files. No weight is read yet, but every name, shape and
    /// type is checked.
    ///
    /// # Errors
    /// When no format reads it, and everything that is wrong with it.
    pub fn open(folder: &Path, options: &ImportOptions) -> Result<Self, WeightsError> {
        let Configured { format, object, config, understood } =
            Configured::read(&folder.join(super::export::CONFIG), options)?;
        let mapping = table(&format.kind, object.as_ref(), &understood.plan)?;
        let tensors = TensorFolder::open(folder)?;
        check(&tensors, &mapping)?;
        Ok(Self {
            format,
            config,
            model_section: understood.section,
            plan: understood.plan,
            without_effect: understood.without_effect,
            notes: understood.notes,
            tensors,
            mapping,
        })
    }

    /// The table between our parameters and the foreign tensors.
    pub fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// Files of the weights.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.tensors.files()
    }

    /// The type of the weights by name (`bfloat16`); the widest where they are of several.
    pub fn dtype(&self) -> &'static str {
        let kinds = self.tensors.names().filter_map(|name| self.tensors.info(name)?.1);
        let kinds: Vec<Kind> = kinds.filter(|kind| float_name(*kind).is_some()).collect();
        let first = kinds.first().copied().unwrap_or(Kind::Float);
        let widest = kinds.into_iter().fold(first, |widest, kind| match (widest, kind) {
            (a, b) if a == b => a,
            (Kind::Double, _) | (_, Kind::Double) => Kind::Double,
            _ => Kind::Float,
        });
        float_name(widest).unwrap_or("float32")
    }

    /// The model with the foreign weights.
    ///
    /// # Errors
    /// When libtorch refuses, or a copy of a tensor (a tied head) is none.
    pub fn model(&self, options: BuildOptions) -> Result<Model, WeightsError> {
        let model = Model::build(&self.plan, options)?;
        self.load_into(&model)?;
        Ok(model)
    }

    /// Copies the foreign weights into a model of the same plan, one tensor at a time.
    ///
    /// # Errors
    /// When libtorch refuses, a parameter is not the plan's, or a copy of a tensor (a tied head) is none.
    pub fn load_into(&self, model: &Model) -> Result<(), WeightsError> {
        let _guard = NoGrad::new();
        for (name, pieces) in self.mapping.pieces() {
            let tensor = self.tensors.read(name)?;
            for piece in pieces {
                let parameter = model.parameters().get(&piece.ours.name);
                let parameter = parameter
                    .ok_or_else(|| Error::other(format!("the model has no parameter {}", piece.ours.name)))?;
                piece.copy_in(&tensor, &parameter.tensor)?;
            }
        }
        self.check_copies()
    }

    /// Tensors that repeat others must be equal to them, or the model is another one than its configuration says.
    fn check_copies(&self) -> Result<(), WeightsError> {
        let mut problems = TensorProblems::default();
        for tensor in &self.mapping.theirs {
            let Role::CopyOf(original) = &tensor.role else { continue };
            if self.tensors.info(&tensor.name).is_none() {
                continue;
            }
            let (copy, original_tensor) = (self.tensors.read(&tensor.name)?, self.tensors.read(original)?);
            let same = copy.kind() == original_tensor.kind()
                && copy.f_equal(&original_tensor).map_err(torch_bridge::Error::from)?;
            if !same {
                problems.copies.push(format!("{} differs from {original}, to which it is tied", tensor.name));
            }
        }
        fail_with(&self.tensors, problems)
    }
}

/// The `model` section that a foreign `config.json` becomes, and its plan; weights are not looked at.
///
/// # Errors
/// When no format reads it, and everything that is wrong with it.
pub fn plan_of(config: &Path, options: &ImportOptions) -> Result<(Value, ModelPlan), WeightsError> {
    let understood = Configured::read(config, options)?.understood;
    Ok((understood.section, understood.plan))
}

/// A configuration with the format that understands it.
struct Configured {
    format: Component<weight_format>,
    object: Box<dyn WeightFormat>,
    config: Map<String, Value>,
    understood: Understood,
}

impl Configured {
    fn read(path: &Path, options: &ImportOptions) -> Result<Self, WeightsError> {
        let config = read_object(path)?;
        let (format, object) = choose(path, &config, options)?;
        let understood = understand(&format.kind, object.as_ref(), &config, path, &options.ignored_keys)?;
        Ok(Self { format, object, config, understood })
    }
}

/// A configuration as a plan.
#[derive(Debug)]
pub(super) struct Understood {
    section: Value,
    pub(super) plan: ModelPlan,
    without_effect: BTreeMap<String, Value>,
    notes: Vec<String>,
}

/// What a configuration means; `path` is where it stands, for messages.
pub(super) fn understand(
    kind: &str,
    format: &dyn WeightFormat,
    config: &Map<String, Value>,
    path: &Path,
    ignored_keys: &[String],
) -> Result<Understood, WeightsError> {
    let refused =
        |problems| WeightsError::Config { path: path.to_owned(), format: kind.to_owned(), problems };
    let mut reader = ForeignConfig::new(config.clone());
    reader.without_effect(&["model_type", "architectures"]); // they chose the format
    let section = format.model_section(&mut reader);
    let read = reader.finish(ignored_keys).map_err(refused)?;
    let model: ModelConfig =
        parse_config(section.clone()).map_err(|error| refused(vec![error.to_string()]))?;
    let plan = ModelPlan::resolve(&model, None)
        .map_err(|findings| refused(findings.iter().map(ToString::to_string).collect()))?;
    let mut without_effect = read.without_effect;
    without_effect.retain(|key, _| key != "model_type" && key != "architectures");
    Ok(Understood { section, plan, without_effect, notes: read.notes })
}

/// A format's table for a plan, checked.
fn table(kind: &str, format: &dyn WeightFormat, plan: &ModelPlan) -> Result<Mapping, WeightsError> {
    let mapping = format.mapping(plan);
    let problems = mapping.problems();
    if problems.is_empty() {
        Ok(mapping)
    } else {
        Err(WeightsError::Table { format: kind.to_owned(), problems })
    }
}

type Chosen = (Component<weight_format>, Box<dyn WeightFormat>);

/// The format that is asked for, or that the configuration names.
fn choose(path: &Path, config: &Map<String, Value>, options: &ImportOptions) -> Result<Chosen, WeightsError> {
    let registry = Registry::global()?;
    let make = |kind: &str, settings: Map<String, Value>| -> Result<Chosen, WeightsError> {
        let format = Component::<weight_format>::new(kind, settings);
        let object = format.make()?;
        Ok((format, object))
    };
    if let Some(kind) = &options.format {
        return make(kind, options.settings.clone());
    }
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    let classes: Vec<&str> = match config.get("architectures") {
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let (mut known, mut fitting, mut other_class) = (Vec::new(), Vec::new(), None);
    for entry in registry.in_slot(weight_format::NAME) {
        let (_, object) = make(entry.kind, Map::new())?;
        let signature = object.signature();
        known.push(format!("{} (model_type {})", entry.kind, signature.model_type));
        if text("model_type") != Some(signature.model_type) {
            continue;
        }
        if classes.is_empty() || classes.iter().any(|class| signature.architectures.contains(class)) {
            fitting.push(entry.kind);
        } else {
            other_class = Some(signature.architectures.join(", "));
        }
    }
    let unknown = |message: String| WeightsError::Unknown { path: PathBuf::from(path), message, known };
    match (fitting.as_slice(), other_class) {
        ([kind], _) => make(kind, options.settings.clone()),
        ([], Some(expected)) => Err(unknown(format!(
            "the weights are of {}, and only those of {expected} can be read",
            classes.join(", ")
        ))),
        ([], None) => Err(unknown(match text("model_type") {
            Some(model_type) => format!("no format for model_type {model_type}"),
            None => "it has no model_type".to_owned(),
        })),
        (several, _) => Err(unknown(format!("several formats read it: {}; name one", several.join(", ")))),
    }
}

/// Compares the tensors of a folder with the table, name by name.
fn check(tensors: &TensorFolder, mapping: &Mapping) -> Result<(), WeightsError> {
    let mut problems = TensorProblems::default();
    let known: BTreeMap<&str, &ForeignTensor> =
        mapping.theirs.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    for tensor in &mapping.theirs {
        let Some((shape, kind)) = tensors.info(&tensor.name) else {
            if tensor.role == Role::Weights {
                problems.missing.push(format!("{} {:?}", tensor.name, tensor.shape));
            }
            continue;
        };
        if shape != tensor.shape {
            problems.shapes.push(format!("{} is {shape:?}, expected {:?}", tensor.name, tensor.shape));
        }
        if kind.and_then(float_name).is_none() {
            let found = tensors.type_name(&tensor.name);
            problems.kinds.push(format!("{} is {found}, expected a float of 16 to 64 bits", tensor.name));
        }
    }
    for name in tensors.names().filter(|name| !known.contains_key(name)) {
        let shape = tensors.info(name).map(|(shape, _)| shape).unwrap_or_default();
        let like = mapping
            .theirs
            .iter()
            .filter(|tensor| tensor.shape == shape && tensors.info(&tensor.name).is_none())
            .map(|tensor| (strsim::jaro_winkler(name, &tensor.name), &tensor.name))
            .filter(|(score, _)| *score > 0.85)
            .max_by(|a, b| a.0.total_cmp(&b.0));
        let hint = like.map_or(String::new(), |(_, like)| format!(" (is it {like}, renamed?)"));
        problems.unexpected.push(format!("{name} {shape:?}{hint}"));
    }
    fail_with(tensors, problems)
}

fn fail_with(tensors: &TensorFolder, problems: TensorProblems) -> Result<(), WeightsError> {
    if problems.is_empty() {
        return Ok(());
    }
    Err(WeightsError::Tensors { path: tensors.path().to_owned(), problems: Box::new(problems) })
}
