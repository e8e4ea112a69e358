//! Our models against transformers 5.23: tiny random models that it saved, and the logits that it computed.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use hymba_plus::{
    model::{BuildOptions, Model, Observers, Statistics},
    state::SpanInput,
    weights::{Foreign, ImportOptions},
};
use hymba_tests::{max_difference, read_safetensors, relative_rms};
use tch::{Kind, Tensor};
use torch_bridge::guards::NoGrad;

/// Largest difference of a logit, absolute.
const BOUND: f64 = 1e-4;
/// Tokens that are decoded one by one at the end.
const STEPS: i64 = 16;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/transformers").join(name)
}

/// The model of a fixture, by the registered format, and the tensors of its reference.
fn fixture(name: &str) -> (Model, BTreeMap<String, Tensor>) {
    let foreign =
        Foreign::open(&folder(name), &ImportOptions::default()).unwrap_or_else(|error| panic!("{error}"));
    let model = foreign.model(BuildOptions { kind: Kind::Float, ..BuildOptions::default() }).unwrap();
    (model, read_safetensors(&folder(name).join("io.safetensors")))
}

/// Logits of a text that is handed over in chunks of these lengths.
fn logits(model: &Model, ids: &Tensor, chunks: impl IntoIterator<Item = i64>) -> Tensor {
    let _guard = NoGrad::new();
    let initial = model.initial_state(false).unwrap();
    let (mut state, mut logits, mut start) = (initial.share(), Vec::new(), 0);
    for length in chunks {
        let chunk = ids.narrow(1, start, length);
        let (hidden, next) = model.forward(&chunk, &state, &initial, SpanInput::default()).unwrap();
        logits.push(model.head(&hidden).unwrap());
        (state, start) = (next, start + length);
    }
    assert_eq!(start, ids.size()[1]);
    Tensor::cat(&logits, 1)
}

fn parity(name: &str) {
    let (model, io) = fixture(name);
    let ids = &io["input_ids"];
    let time = ids.size()[1];
    let full = logits(&model, ids, [time]);
    let steps = std::iter::once(time - STEPS).chain(std::iter::repeat_n(1, STEPS as usize));
    let decoded = logits(&model, ids, steps).narrow(1, time - STEPS, STEPS);
    let full = max_difference(&full, &io["logits_full"]);
    let decoded = max_difference(&decoded, &io["logits_decode"]);
    println!("{name}: full forward {full:.1e}, {STEPS} decoding steps {decoded:.1e}");
    assert!(full <= BOUND, "{name}: logits of the full forward differ by {full:.1e}");
    assert!(decoded <= BOUND, "{name}: logits of decoding differ by {decoded:.1e}");
    every_weight_matters(name, &model, &io);
}

/// The comparison sees every parameter: each, with its elements a little larger or smaller, leaves the bound. (By a
/// factor that is the same for all of them it might not: a norm takes that away.)
fn every_weight_matters(name: &str, model: &Model, io: &BTreeMap<String, Tensor>) {
    for parameter in model.parameters() {
        let before = parameter.tensor.detach().copy();
        let wave = Tensor::arange(before.numel() as i64, (Kind::Float, before.device())).sin() * 0.1 + 1.0;
        model.parameters().set(&parameter.plan.name, &(&before * wave.view_as(&before))).unwrap();
        let changed = logits(model, &io["input_ids"], [io["input_ids"].size()[1]]);
        model.parameters().set(&parameter.plan.name, &before).unwrap();
        let difference = max_difference(&changed, &io["logits_full"]);
        assert!(
            difference > 10.0 * BOUND,
            "{name}: {} hardly matters, a change by tenths moves logits by {difference:.1e}",
            parameter.plan.name
        );
    }
}

#[test]
fn llama() {
    parity("llama");
}

#[test]
fn llama_with_scaled_positions_and_a_tied_head() {
    parity("llama3_tied");
}

#[test]
fn mistral_with_a_window() {
    parity("mistral");
}

#[test]
fn mamba() {
    parity("mamba");
}

#[test]
fn jamba_with_norms_inside_mamba() {
    parity("jamba");
}

#[test]
fn mamba2_with_groups() {
    parity("mamba2");
}

#[test]
fn xlstm_with_soft_caps() {
    parity("xlstm");
}

#[test]
fn mixtral() {
    parity("mixtral");
}

/// What its router costs: the balance loss of each layer, that of both together (the class takes means over layers before
/// it multiplies), a training loss with it, and the router's gradients.
#[test]
fn what_the_router_of_mixtral_costs() {
    let (model, io) = fixture("mixtral");
    let ids = &io["input_ids"];
    let statistics = Statistics::default();
    let initial = model.initial_state(false).unwrap();
    let observers = Observers::statistics(&statistics);
    let (hidden, _) =
        model.forward_observed(ids, &initial, &initial, SpanInput::default(), observers).unwrap();
    let logits = model.head(&hidden).unwrap();
    let losses = model.auxiliary_losses(&statistics).unwrap();
    let layers: Vec<_> = losses.iter().filter(|loss| loss.name == "aux_loss").collect();
    assert_eq!(layers.len(), 2);
    for (layer, loss) in layers.iter().enumerate() {
        let difference = max_difference(&loss.value, &io[&format!("aux_loss.{layer}")]);
        println!("mixtral: balance loss of layer {layer} differs by {difference:.1e}");
        assert!(difference <= 1e-5, "layer {layer}: {difference:.1e}");
        assert!((loss.weight - 0.001 / 2.0).abs() < 1e-12, "the coefficient, shared by two layers");
    }
    let sum = |name: &str| {
        let of = |layer: usize| statistics.get(&format!("layers.{layer}.channel_mixer"), name).unwrap();
        of(0) + of(1)
    };
    let used = sum("counts") * sum("probabilities") / sum("tokens").square();
    let balance = used.sum(Kind::Float) * 4.0;
    let vocabulary = logits.size()[2];
    let loss = logits
        .slice(1, 0, -1, 1)
        .reshape([-1, vocabulary])
        .cross_entropy_for_logits(&ids.slice(1, 1, None, 1).reshape([-1]))
        + &balance * 0.001;
    for (name, value) in [("aux_loss", balance), ("loss", loss)] {
        let difference = max_difference(&value, &io[name]);
        println!("mixtral: {name} differs by {difference:.1e}");
        assert!(difference <= 1e-5, "{name}: {difference:.1e}");
        let routers = [0, 1].map(|layer| {
            let name = format!("layers.{layer}.channel_mixer.router");
            model.parameters().get(&name).unwrap().tensor.shallow_clone()
        });
        let gradients = Tensor::run_backward(&[&value], &[&routers[0], &routers[1]], true, false);
        for (layer, gradient) in gradients.iter().enumerate() {
            let error = relative_rms(gradient, &io[&format!("{name}_gradient.{layer}")]);
            println!("mixtral: gradient of {name} at the router of layer {layer}: {error:.1e}");
            assert!(error <= 1e-4, "gradient of {name}, layer {layer}: relative RMS {error:.1e}");
        }
    }
}
