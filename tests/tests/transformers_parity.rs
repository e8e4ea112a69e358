//! Our models against transformers 5.23: tiny random models that it saved, and the logits that it computed.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use hymba_plus::{
    model::{BuildOptions, Model},
    state::SpanInput,
    weights::{Foreign, ImportOptions},
};
use hymba_tests::{max_difference, read_safetensors};
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
