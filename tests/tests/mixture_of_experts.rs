//! Mixtures of experts in a model: what they count, what they cost, how they are kept in balance, how they train.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

use std::path::Path;

use components as _;
use evaluation as _;
use hymba_plus::{
    config::{LoadOptions, Recipe},
    model::{Model, Observers, Statistics},
    state::SpanInput,
};
use hymba_tests::{max_difference, model, plan, read_safetensors};
use kernels::moe::{Router, Scores, balance_loss, counts, route};
use serde_json::Value;
use tch::{Device, Kind, Tensor};
use torch_bridge::guards::NoGrad;
use training::{
    run::RunOptions,
    telemetry::{Console, MetricRecord, MetricsFile},
};

const MODULE: &str = "layers.0.channel_mixer";

/// A model of one layer with experts and no mixer.
fn experts(moe: &str, meta_tokens: i64) -> Model {
    let yaml = format!(
        "
d_model: 16
vocab_size: 512
n_layers: 1
meta_tokens: {meta_tokens}
initializer_range: 0.5
norm: rms_norm
embedding: token
head: language
block_pattern: {{ kind: parallel, layer: {{ mixers: [], channel_mixer: {{ kind: moe, {moe} }} }} }}
"
    );
    model(&yaml, Kind::Double, 3)
}

/// Runs tokens through a model from the start of a document; the hidden vectors.
fn pass(model: &Model, ids: &Tensor, valid: Option<&Tensor>, statistics: Option<&Statistics>) -> Tensor {
    let observers = Observers { taps: None, statistics };
    let initial = model.initial_state_observed(true, observers).unwrap();
    let input = SpanInput { valid, training: true, ..SpanInput::default() };
    model.forward_observed(ids, &initial, &initial, input, observers).unwrap().0
}

fn ids(batch: i64, time: i64) -> Tensor {
    (Tensor::arange(batch * time, (Kind::Int64, Device::Cpu)) * 7).remainder(512).view([batch, time])
}

fn number(statistics: &Statistics, name: &str) -> f64 {
    statistics.get(MODULE, name).unwrap().sum(Kind::Double).double_value(&[])
}

#[test]
fn the_balance_loss_is_that_of_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/moe-reference.json");
    let cases: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let case = &cases["moe/mixtral_load_balancing(top2)"];
    let numbers = |value: &Value| -> Vec<f64> {
        value["data"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    };
    // There, the tokens of all layers are one sum.
    let sums = Statistics::default();
    for logits in case["in"]["gate_logits"].as_array().unwrap() {
        let logits = Tensor::from_slice(&numbers(logits)).view([10, 8]);
        let router = Router { scores: Scores::Softmax, top_k: 2, bias: None, normalise: true, scale: 1.0 };
        let routing = route(&logits, &router).unwrap();
        let probabilities = routing.probabilities.sum_dim_intlist([0i64].as_slice(), false, Kind::Double);
        sums.add("all", "counts", &counts(&routing.choice, 8, None, Kind::Double).unwrap()).unwrap();
        sums.add("all", "probabilities", &probabilities).unwrap();
        sums.add("all", "tokens", &Tensor::from(10.0)).unwrap();
    }
    let [counts, probabilities, tokens] =
        ["counts", "probabilities", "tokens"].map(|name| sums.get("all", name).unwrap());
    let loss = balance_loss(&counts, &probabilities, &tokens).unwrap().double_value(&[]);
    let expected = numbers(&case["out"])[0];
    println!("balance loss {loss:.7}, transformers {expected:.7}");
    assert!((loss - expected).abs() < 1e-6, "{loss} instead of {expected}");
}

#[test]
fn meta_tokens_count_once_padding_does_not_and_passes_add_up() {
    let model = experts("n_experts: 5, top_k: 2, d_hidden: 8, z_loss: 0.1", 3);
    let valid =
        Tensor::from_slice(&[true, true, true, true, true, false, true, false, true, true]).view([2, 5]);
    let one = Statistics::default();
    let _ = pass(&model, &ids(2, 5), Some(&valid), Some(&one));
    assert!((number(&one, "tokens") - 11.0).abs() < 1e-12);
    assert!((number(&one, "counts") - 22.0).abs() < 1e-12);
    assert!((number(&one, "probabilities") - 11.0).abs() < 1e-12);

    // What padding holds changes no sum, and two passes are the sum of both.
    let other = Statistics::default();
    let changed = ids(2, 5).where_self(&valid, &Tensor::from(9_i64));
    let _ = pass(&model, &changed, Some(&valid), Some(&other));
    let both = Statistics::default();
    one.detach_into(&both).unwrap();
    other.detach_into(&both).unwrap();
    for name in ["tokens", "counts", "probabilities", "squared_logsumexp"] {
        let [a, b, sum] = [&one, &other, &both].map(|statistics| statistics.get(MODULE, name).unwrap());
        assert!(max_difference(&a, &b) < 1e-12, "{name}");
        assert!(max_difference(&(a + b), &sum) < 1e-12 && !sum.requires_grad(), "{name}");
    }
    // Nobody watches: nothing is counted, and the outcome is the same.
    let watched = pass(&model, &ids(2, 5), None, Some(&Statistics::default()));
    assert!(watched.equal(&pass(&model, &ids(2, 5), None, None)));
    assert!(model.auxiliary_losses(&Statistics::default()).unwrap().is_empty());
}

#[test]
fn losses_are_means_over_the_tokens_and_reach_the_router_alone() {
    let model = experts("n_experts: 5, top_k: 2, d_hidden: 8, aux_loss: 0.25, z_loss: 0.5", 0);
    let (statistics, ids) = (Statistics::default(), ids(2, 9));
    let _ = pass(&model, &ids, None, Some(&statistics));
    let losses = model.auxiliary_losses(&statistics).unwrap();
    let named: Vec<_> = losses.iter().map(|loss| (loss.name, loss.weight)).collect();
    assert_eq!(named, [("aux_loss", 0.25), ("z_loss", 0.5), ("load_spread", 0.0)]);

    // The same from the router's logits, written out.
    let tensor = |name: &str| &model.parameters().get(name).unwrap().tensor;
    let x = Tensor::embedding(tensor("embedding.weight"), &ids, -1, false, false).view([18, 16]);
    let x = &x * (x.square().mean_dim([-1].as_slice(), true, Kind::Double) + 1e-6).rsqrt();
    let logits = x.matmul(&tensor(&format!("{MODULE}.router")).tr());
    let probabilities = logits.softmax(-1, Kind::Double);
    let (_, choice) = probabilities.topk(2, -1, true, true);
    let used = choice.one_hot(5).sum_dim_intlist([0i64, 1].as_slice(), false, Kind::Double);
    let mean = probabilities.mean_dim([0i64].as_slice(), false, Kind::Double);
    let expected = [
        (&used / 18.0 * mean).sum(Kind::Double) * 5.0,
        logits.logsumexp([-1i64].as_slice(), false).square().mean(Kind::Double),
        used.max() / used.mean(Kind::Double),
    ];
    for (loss, expected) in losses.iter().zip(&expected) {
        assert!(max_difference(&loss.value, expected) < 1e-12, "{}", loss.name);
    }
    let sum = &losses[0].value + &losses[1].value;
    torch_bridge::autograd::backward(&[&sum], None, false).unwrap();
    for (name, reached) in [("router", true), ("gate", false), ("up", false), ("down", false)] {
        assert_eq!(tensor(&format!("{MODULE}.{name}")).grad().defined(), reached, "{name}");
    }
}

#[test]
fn the_bias_evens_out_the_load_and_changes_no_weight() {
    let _guard = NoGrad::new();
    let spread = |model: &Model, statistics: &Statistics| -> f64 {
        let losses = model.auxiliary_losses(statistics).unwrap();
        losses.iter().find(|loss| loss.name == "load_spread").unwrap().value.double_value(&[])
    };
    for router in ["softmax", "sigmoid"] {
        let with = |rate: &str| {
            let model = experts(&format!("n_experts: 8, top_k: 2, d_hidden: 4, router: {router}{rate}"), 0);
            // All tokens lean to one side, so that the router prefers a few experts.
            let embedding = &model.parameters().get("embedding.weight").unwrap().tensor;
            let side = Tensor::linspace(-1.0, 1.0, 16, (Kind::Double, Device::Cpu));
            model.parameters().set("embedding.weight", &(embedding + side)).unwrap();
            model
        };
        let (balanced, frozen) = (with(", balance_rate: 0.003"), with(", balance_rate: 0.0"));
        let ids = ids(8, 64);
        let (mut first, mut last) = (0.0, 0.0);
        for step in 0..400 {
            let statistics = Statistics::default();
            let _ = pass(&balanced, &ids, None, Some(&statistics));
            last = spread(&balanced, &statistics);
            if step == 0 {
                first = last;
            }
            balanced.rebalance(&statistics).unwrap();
            frozen.rebalance(&statistics).unwrap();
        }
        println!("{router}: the busiest expert has {first:.2} of the mean load, {last:.2} after 400 steps");
        assert!(first > 2.0 && last < 1.15, "{router}: {first} {last}");
        let bias = |model: &Model| {
            let parameter = model.parameters().get(&format!("{MODULE}.balance_bias")).unwrap();
            assert!(!parameter.plan.trained && !parameter.tensor.requires_grad());
            parameter.tensor.abs().max().double_value(&[])
        };
        assert!(bias(&balanced) > 0.05 && bias(&frozen) <= 0.0);
    }
}

#[test]
fn the_plan_knows_what_a_token_uses() {
    let plan = plan(
        "
d_model: 16
vocab_size: 64
n_layers: 3
norm: rms_norm
embedding: token
head: language
block_pattern: { kind: parallel, layer: { mixers: [], channel_mixer: { kind: moe, n_experts: 8, top_k: 2, d_hidden: 24, n_shared_experts: 1 } } }
",
    );
    let (expert, ends) = (3 * 16 * 24, 64 * 16 + 16);
    let layer = |experts: u64| experts * expert + 8 * 16 + 16;
    let totals = plan.totals(128);
    assert_eq!(totals.parameters, ends + 3 * layer(9));
    assert_eq!(totals.active_parameters, ends + 3 * layer(3));
    let flops = 3.0 * 2.0 * (3 * expert + 8 * 16) as f64 + 2.0 * 64.0 * 16.0;
    assert!((totals.flops_per_token - flops).abs() < 0.5, "{} instead of {flops}", totals.flops_per_token);
    assert!(plan.render(128).contains(" of them active for a token"), "{}", plan.render(128));
}

const RECIPE: &str = "\
schema: 1
name: experts
seed: 5
model:
  d_model: 16
  n_layers: 2
  meta_tokens: 2
  max_positions: 32
  embedding: token
  norm: rms_norm
  head: language
  block_pattern:
    kind: parallel
    layer:
      mixers: [{ kind: mamba2, d_inner: 16, n_heads: 2, d_state: 4 }]
      channel_mixer: { kind: moe, n_experts: 4, d_hidden: 16, n_shared_experts: 1, aux_loss: 0.02, z_loss: 0.001, balance_rate: 0.001 }
tokenizer: bytes
data: { kind: text, paths: [text.txt], document_separator: \"\\n\", validation_fraction: 0.2, split: documents }
trainer: { device: cpu, threads: 1, checkpoint: { every_steps: 20 }, log: { every_steps: 1, tensorboard: false } }
stages:
  - { kind: pretrain, steps: 80, batch_size: 8, accumulation: 2, sequence_length: 16, schedule: constant, optimizer: { kind: adamw, lr: 0.01 }, evaluate_every: 40, evaluate_at_start: true }
";

/// Trains for so many steps in `folder`; the metrics without what depends on the clock.
fn train(folder: &Path, steps: u64, resume: bool) -> Vec<MetricRecord> {
    let documents: Vec<String> = (0..60).map(|i| format!("{}{}", "abc".repeat(1 + i % 5), i % 3)).collect();
    std::fs::write(folder.join("text.txt"), documents.join("\n")).unwrap();
    let text = RECIPE.replace("steps: 80", &format!("steps: {steps}"));
    let options = LoadOptions { cwd: Some(folder.to_owned()), ..LoadOptions::default() };
    let recipe = Recipe::from_yaml(&text, &options).unwrap();
    let mut options = RunOptions::new(folder.join("run"), "hymba run recipe.yaml");
    options.console = Console::silent();
    (options.resume, options.force) = (resume, resume);
    recipes::run(&recipe, options).unwrap();
    let lines = MetricsFile::read(&folder.join("run/metrics.jsonl")).unwrap();
    lines.into_iter().map(MetricRecord::deterministic).collect()
}

#[test]
fn a_language_model_with_experts_learns_stays_in_balance_and_goes_on_bit_for_bit() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let lines = train(whole.path(), 80, false);
    let values = |kind: &str, name: &str| -> Vec<f64> {
        lines.iter().filter(|line| line.kind == kind).map(|line| line.values[name].unwrap()).collect()
    };
    let validation = values("evaluation", "validation_loss");
    assert!(validation[2] < 0.5 * validation[0], "{validation:?}");
    let names = ["loss", "cross_entropy", "aux_loss", "z_loss", "load_spread"];
    let [loss, cross_entropy, aux, z, spread] = names.map(|name| values("train", name));
    for step in 0..80 {
        // Both layers add what their weights say.
        let sum = cross_entropy[step] + 2.0 * (0.02 * aux[step] + 0.001 * z[step]);
        assert!((loss[step] - sum).abs() < 1e-5, "step {}: {} {sum}", step + 1, loss[step]);
        assert!(spread[step] >= 1.0 && spread[step] <= 2.0, "{spread:?}");
    }

    train(parts.path(), 40, false);
    let resumed = train(parts.path(), 80, true);
    let steps = |lines: &[MetricRecord]| -> Vec<MetricRecord> {
        lines.iter().filter(|line| line.kind == "train").cloned().collect()
    };
    assert_eq!(steps(&resumed), steps(&lines));
    let last = "run/checkpoints/pretrain/step-00000080/model.safetensors";
    let [a, b] = [&whole, &parts].map(|folder| std::fs::read(folder.path().join(last)).unwrap());
    assert!(a == b, "a resumed run ends with other bits");
    let tensors = read_safetensors(&whole.path().join(last));
    let bias = &tensors[&format!("{MODULE}.balance_bias")];
    assert!(bias.abs().max().double_value(&[]) > 0.0, "the bias never moved");
}
