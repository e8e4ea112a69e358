//! Tests that cross crates, and the helpers they share.

use std::{collections::BTreeMap, path::Path};

use components as _;
use hymba_plus::{
    model::{BuildOptions, Model, ModelConfig},
    plan::ModelPlan,
    registry::parse_config,
};
use tch::{Device, Kind, Tensor};

pub mod naive;
pub mod official;

/// A model section written in YAML, as its plan.
///
/// # Panics
/// When it is not a model, with everything that is wrong.
pub fn plan(yaml: &str) -> ModelPlan {
    let value: serde_json::Value =
        serde_yaml::from_str(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    let config: ModelConfig = parse_config(value).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    ModelPlan::resolve(&config, None).unwrap_or_else(|findings| panic!("{findings:#?}\n{yaml}"))
}

/// A model on the CPU from a model section written in YAML.
///
/// # Panics
/// When it is not a model.
pub fn model(yaml: &str, kind: Kind, seed: u64) -> Model {
    let options = BuildOptions { device: Device::Cpu, kind, seed };
    Model::build(&plan(yaml), options).unwrap_or_else(|error| panic!("{error}"))
}

/// Every tensor of a safetensors file.
///
/// # Panics
/// When the file cannot be read.
pub fn read_safetensors(path: &Path) -> BTreeMap<String, Tensor> {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap_or_else(|error| panic!("{error}"));
    let tensor = |view: &safetensors::tensor::TensorView<'_>| {
        let shape: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
        let kind = hymba_plus::weights::kind_of(view.dtype()).unwrap_or_else(|| panic!("{:?}", view.dtype()));
        torch_bridge::tensors::from_bytes(view.data(), &shape, kind).unwrap_or_else(|error| panic!("{error}"))
    };
    file.tensors().iter().map(|(name, view)| (name.clone(), tensor(view))).collect()
}

/// Relative root-mean-square difference: `|a - b| / |b|`, in 64 bits.
///
/// # Panics
/// When the shapes differ.
pub fn relative_rms(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size(), "shapes differ");
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    let norm = |t: &Tensor| t.square().sum(Kind::Double).double_value(&[]).sqrt();
    norm(&(&a - &b)) / norm(&b).max(1e-300)
}

/// Largest absolute difference.
///
/// # Panics
/// When the shapes differ.
pub fn max_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size(), "shapes differ");
    if a.numel() == 0 { 0.0 } else { (a - b).abs().max().double_value(&[]) }
}
