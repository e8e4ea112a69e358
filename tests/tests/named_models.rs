//! The models in `configs/models/`: how many parameters each has, and that each trains when its widths are small.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

use std::path::{Path, PathBuf};

use components as _;
use hymba_plus::{
    config::{LoadOptions, Recipe},
    model::{BuildOptions, Model, ModelConfig, Observers, Statistics},
    plan::{Axis, ModelPlan},
    registry::{Component, parse_config},
    state::SpanInput,
};
use recipes as _;
use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};
use training::{loss::cross_entropy_sum, slot::optimizer};

/// Every model and its parameters. `hymba-1.5b` is the released model's number; `mamba-350m` and `mamba_baseline`
/// with the released 50,280 tokens are the 371,516,416 of mamba-370m and the 1,372,178,432 of mamba-1.4b.
const MODELS: &[(&str, u64)] = &[
    ("hybrid_1_3b", 1_332_777_024),
    ("hybrid_350m", 360_204_352),
    ("hybrid_7b", 6_754_279_504),
    ("hymba-1.5b", 1_522_797_824),
    ("hymba-125m", 129_944_064),
    ("hymba-350m", 353_701_888),
    ("hymba-tiny", 2_188_656),
    ("mamba-350m", 352_798_720),
    ("mamba2-350m", 349_620_736),
    ("mamba_baseline", 1_372_131_328),
    ("samba-350m", 351_889_408),
    ("small_hybrid", 68_835_840),
    ("small_hybrid_half", 55_607_808),
    ("small_mamba", 62_874_112),
    ("small_transformer_global", 49_249_792),
    ("small_transformer_local", 49_249_792),
    ("study_hybrid", 30_755_712),
    ("study_hybrid_no_kv_sharing", 23_089_536),
    ("study_hybrid_no_meta", 30_731_136),
    ("study_mamba", 19_906_944),
    ("study_official", 29_478_376),
    ("study_official_no_meta", 29_453_800),
    ("study_transformer", 15_341_952),
    ("time_series_small", 7_737_984),
    ("transformer-350m", 341_100_544),
    ("vision_hybrid_small", 21_472_024),
    ("xlstm_baseline", 1_319_440_768),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("configs/models")
}

fn section(name: &str) -> Value {
    let path = folder().join(format!("{name}.yaml"));
    let recipe = Recipe::load(path, &LoadOptions::default()).unwrap_or_else(|error| panic!("{error}"));
    recipe.values()["model"].clone()
}

fn plan(section: Value) -> ModelPlan {
    let config: ModelConfig = parse_config(section).unwrap();
    // A model that leaves its vocabulary to a tokenizer is planned with 4,096 tokens.
    ModelPlan::resolve(&config, Some(4096)).unwrap_or_else(|findings| panic!("{findings:#?}"))
}

#[test]
fn every_model_has_its_parameters() {
    let mut names: Vec<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    names.sort();
    let mut wrong = Vec::new();
    for name in &names {
        let count = plan(section(name)).parameter_count();
        println!("{name}: {count}");
        if !MODELS.contains(&(name.as_str(), count)) {
            wrong.push(format!("{name}: {count}"));
        }
    }
    assert!(wrong.is_empty(), "not in the list: {wrong:#?}");
    for (name, _) in MODELS {
        assert!(names.iter().any(|known| known == name), "{name} is listed and not there");
    }
}

/// The same architecture, every layer of it, with small widths.
fn shrink(value: &mut Value, d_model: &Value) {
    let small: Map<String, Value> = serde_json::from_str(
        r#"{ "d_model": 32, "vocab_size": 40, "meta_tokens": 3, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8,
             "v_head_dim": 16, "window": 5, "d_inner": 64, "d_state": 4, "dt_rank": 3, "d_hidden": 48, "n_groups": 1 }"#,
    )
    .unwrap();
    match value {
        Value::Object(keys) => {
            for (key, value) in keys {
                match small.get(key) {
                    // What is left out or 0 stays so: it is another architecture with it.
                    Some(_) if *value == *d_model => *value = small["d_model"].clone(),
                    Some(size) if value.as_i64().is_some_and(|given| given > 0) => *value = size.clone(),
                    _ => shrink(value, d_model),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| shrink(item, d_model)),
        _ => {}
    }
}

/// Inputs of a model, two of them, and what it learns from them.
enum Example {
    /// Packed documents.
    Tokens { ids: Tensor, targets: Tensor, resets: Tensor },
    /// Images or windows of a series, and the gradient of the loss by its outputs.
    Other { inputs: Tensor, weights: Tensor },
}

impl Example {
    fn of(plan: &ModelPlan) -> Self {
        let axes = |axes: &[Axis]| -> Vec<i64> {
            std::iter::once(2).chain(axes.iter().map(|axis| axis.size)).collect()
        };
        let float = (Kind::Float, Device::Cpu);
        tch::manual_seed(3);
        if !plan.embedding.module.input_axes.is_empty() {
            return Self::Other {
                inputs: Tensor::randn(axes(&plan.embedding.module.input_axes), float),
                weights: Tensor::randn(axes(&plan.head.module.output_axes), float),
            };
        }
        let ids = (Tensor::arange(36, (Kind::Int64, Device::Cpu)) * 7).remainder(40).view([2, 18]);
        let targets = ids.roll([-1], [1]);
        let mut starts = vec![false; 36];
        (starts[0], starts[11], starts[18]) = (true, true, true);
        Self::Tokens { ids, targets, resets: Tensor::from_slice(&starts).view([2, 18]) }
    }

    fn loss(&self, model: &Model) -> Tensor {
        tch::manual_seed(5); // the same dropout each time
        let statistics = Statistics::default();
        let observers = Observers::statistics(&statistics);
        let loss = match self {
            Self::Tokens { ids, targets, resets } => {
                let initial = model.initial_state_observed(true, observers).unwrap();
                let input = SpanInput { resets: Some(resets), training: true, ..SpanInput::default() };
                let (hidden, _) = model.forward_observed(ids, &initial, &initial, input, observers).unwrap();
                cross_entropy_sum(&model.head(&hidden).unwrap(), targets, 0.0).unwrap()
            }
            Self::Other { inputs, weights } => {
                let outputs = model.outputs_observed(inputs, true, observers).unwrap();
                (outputs * weights).sum(Kind::Float)
            }
        };
        let auxiliary = model.auxiliary_losses(&statistics).unwrap();
        auxiliary.into_iter().fold(loss, |sum, loss| sum + loss.value * (loss.weight * 36.0))
    }
}

#[test]
fn every_model_trains_when_it_is_small() {
    for &(name, _) in MODELS {
        let mut section = section(name);
        let (layers, d_model) = (section["n_layers"].clone(), section["d_model"].clone());
        shrink(&mut section, &d_model);
        let plan = plan(section);
        assert_eq!(layers, plan.layers.len());
        let options = BuildOptions { device: Device::Cpu, kind: Kind::Float, seed: 1 };
        let model = Model::build(&plan, options).unwrap();
        let before: Vec<Tensor> =
            model.parameters().iter().map(|parameter| parameter.tensor.copy()).collect();
        let example = Example::of(&plan);
        let loss = || example.loss(&model);
        let adamw = Component::<optimizer>::new(
            "adamw",
            serde_json::from_str::<Map<String, Value>>(r#"{ "lr": 0.001 }"#).unwrap(),
        );
        let mut adamw = adamw.make().unwrap().build(model.parameters()).unwrap();
        let first = loss();
        first.backward();
        for parameter in model.parameters().trained() {
            let gradient = parameter.tensor.grad();
            assert!(gradient.defined(), "{name}: {} takes no part", parameter.plan.name);
            assert!(
                gradient.abs().sum(Kind::Double).double_value(&[]).is_finite(),
                "{}",
                parameter.plan.name
            );
        }
        adamw.step(1.0).unwrap();
        for (parameter, before) in model.parameters().iter().zip(&before) {
            let moved = hymba_tests::max_difference(&parameter.tensor.detach(), before) > 0.0;
            assert_eq!(moved, parameter.plan.trained, "{name}: {}", parameter.plan.name);
        }
        let (first, second) = (first.double_value(&[]), loss().double_value(&[]));
        println!("{name}: {:.3}, then {:.3}", first / 36.0, second / 36.0);
        assert!(second < first, "{name}: {first} became {second}");
    }
}
