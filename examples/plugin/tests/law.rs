//! Decay attention is its recurrence, and keeps the law of states: any split into calls, any packing and any padding
//! give the output of one plain call.

#![allow(clippy::unwrap_used)] // what fails here should fail loudly

use decay_attention as _;
use hymba_cli as _; // links the stock components
use hymba_plus::{
    model::{BuildOptions, Model, ModelConfig},
    plan::ModelPlan,
    state::SpanInput,
    testing,
};
use tch::{Device, Kind, Tensor, no_grad};

const EXACT: f64 = 1e-10;
const D_MODEL: i64 = 6;
const HEADS: i64 = 3;
const HEAD_DIM: i64 = 4;
const META: i64 = 2;

/// One layer of decay attention between an embedding and nothing, in 64 bits.
const RECIPE: &str = "
schema: 1
model:
  d_model: 6
  n_layers: 1
  vocab_size: 11
  meta_tokens: 2
  embedding: token
  norm: none
  head: language
  block_pattern: { kind: parallel, layer: { mixers: [{ kind: decay_attention, n_heads: 3, head_dim: 4 }] } }
";

fn model() -> Model {
    let config: ModelConfig = testing::recipe(RECIPE).require("to build it").unwrap();
    let plan = ModelPlan::resolve(&config, None).unwrap();
    let model =
        Model::build(&plan, BuildOptions { device: Device::Cpu, kind: Kind::Double, seed: 7 }).unwrap();
    // Weights of a size at which a wrong state shows.
    no_grad(|| {
        for parameter in model.parameters().iter().filter(|parameter| parameter.plan.weight_decay) {
            let _ = parameter.tensor.shallow_clone().multiply_scalar_(20.0);
        }
    });
    model
}

fn parameter(model: &Model, name: &str) -> Tensor {
    model.parameters().get(name).unwrap_or_else(|| panic!("{name}")).tensor.shallow_clone()
}

/// Two rows of 23 tokens, in 4 documents each that do not begin at the same places.
fn packed() -> (Tensor, Tensor) {
    let ids = (Tensor::arange(2 * 23, (Kind::Int64, Device::Cpu)) * 7).remainder(11).view([2, 23]);
    let starts = [0, 2, 3, 11, 23, 23 + 7, 23 + 20, 23 + 22];
    let resets: Vec<bool> = (0..2 * 23).map(|i| starts.contains(&i)).collect();
    (ids, Tensor::from_slice(&resets).view([2, 23]))
}

/// The equation for one document `[time]`, meta tokens in front: `S_t = exp(-r) S_{t-1} + k_t v_t^T`, `y_t = q_t S_t`.
fn naive(model: &Model, document: &Tensor) -> Tensor {
    let embedded = parameter(model, "embedding.weight").index_select(0, document);
    let x = Tensor::cat(&[parameter(model, "meta_tokens"), embedded], 0);
    let rows = x.matmul(&parameter(model, "layers.0.in_proj.weight").tr());
    let rows = rows.split_with_sizes([HEADS * HEAD_DIM, HEADS * HEAD_DIM, D_MODEL], 1);
    let heads = |rows: &Tensor| rows.view([x.size()[0], HEADS, -1]);
    let (q, k, v) = (heads(&rows[0]), heads(&rows[1]), heads(&rows[2]));
    let decay = (parameter(model, "layers.0.mixers.decay_attention.log_rate") - 3.0).exp().neg().exp();
    let mut memory = Tensor::zeros([HEADS, HEAD_DIM, D_MODEL / HEADS], (Kind::Double, Device::Cpu));
    let mut outputs = Vec::new();
    for t in 0..x.size()[0] {
        memory = memory * decay.view([-1, 1, 1]) + k.get(t).unsqueeze(2) * v.get(t).unsqueeze(1);
        outputs.push((q.get(t) / (HEAD_DIM as f64).sqrt()).unsqueeze(1).matmul(&memory).view(D_MODEL));
    }
    let y = Tensor::stack(&outputs, 0).matmul(&parameter(model, "layers.0.out_proj.weight").tr());
    (x + y).narrow(0, META, document.size()[0])
}

/// The same for packed rows: each document by itself.
fn naive_rows(model: &Model, ids: &Tensor, resets: &Tensor) -> Tensor {
    let row = |r: i64| {
        let resets = Vec::<bool>::try_from(resets.get(r)).unwrap();
        let mut starts: Vec<i64> = (0..23).filter(|&t| t == 0 || resets[t as usize]).collect();
        starts.push(23);
        let documents = starts.windows(2).map(|ends| ids.get(r).narrow(0, ends[0], ends[1] - ends[0]));
        Tensor::cat(&documents.map(|document| naive(model, &document)).collect::<Vec<_>>(), 0)
    };
    Tensor::stack(&[row(0), row(1)], 0)
}

fn in_one_call(model: &Model, ids: &Tensor, resets: &Tensor) -> Tensor {
    let initial = model.initial_state(true).unwrap();
    let input = SpanInput { resets: Some(resets), ..SpanInput::default() };
    model.forward(ids, &initial, &initial, input).unwrap().0
}

fn largest(difference: &Tensor) -> f64 {
    difference.abs().max().double_value(&[])
}

#[test]
fn it_is_its_recurrence_with_every_gradient() {
    let model = model();
    let (ids, resets) = packed();
    let weights = Tensor::randn([2, 23, D_MODEL], (Kind::Double, Device::Cpu));
    let gradients = |hidden: &Tensor| -> Vec<Tensor> {
        let tensors: Vec<_> = model.parameters().iter().map(|p| p.tensor.shallow_clone()).collect();
        Tensor::run_backward(&[(hidden * &weights).sum(Kind::Double)], &tensors, false, false)
    };
    let (ours, theirs) = (in_one_call(&model, &ids, &resets), naive_rows(&model, &ids, &resets));
    assert!(largest(&(&ours - &theirs)) < EXACT, "outputs differ by {:e}", largest(&(&ours - &theirs)));
    for ((parameter, ours), theirs) in model.parameters().iter().zip(gradients(&ours)).zip(gradients(&theirs))
    {
        let (error, size) = (largest(&(ours - &theirs)), largest(&theirs));
        assert!(size > 0.0, "{} takes no part", parameter.plan.name);
        assert!(error < EXACT * size.max(1.0), "gradient of {}: {error:e}", parameter.plan.name);
    }
}

/// The slope of a loss along a direction, by the gradient and by a small step both ways.
#[test]
fn gradients_are_slopes() {
    let model = model();
    let (ids, resets) = packed();
    let loss = || in_one_call(&model, &ids, &resets).square().mean(Kind::Double);
    for parameter in model.parameters() {
        let tensor = parameter.tensor.shallow_clone();
        let direction = tensor.randn_like();
        let gradient = Tensor::run_backward(&[loss()], std::slice::from_ref(&tensor), false, false);
        let slope = (&gradient[0] * &direction).sum(Kind::Double).double_value(&[]);
        let step = 1e-5;
        let moved = |by: f64| {
            let _ = no_grad(|| tensor.shallow_clone().g_add_(&(&direction * by)));
            loss().double_value(&[])
        };
        let (ahead, behind) = (moved(step), moved(-2.0 * step));
        moved(step);
        let measured = (ahead - behind) / (2.0 * step);
        let name = &parameter.plan.name;
        assert!((slope - measured).abs() < 1e-6 * slope.abs().max(1.0), "{name}: {slope} is not {measured}");
    }
}

#[test]
fn any_split_packing_and_padding_is_one_plain_call() {
    let model = model();
    let (ids, resets) = packed();
    no_grad(|| {
        let expected = in_one_call(&model, &ids, &resets);
        for length in [1, 3, 7] {
            for padding in [0, 2] {
                let error = largest(&(in_calls(&model, &ids, &resets, length, padding) - &expected));
                assert!(error < EXACT, "calls of {length} with {padding} of padding differ by {error:e}");
            }
        }
    });
}

/// Calls of `length` tokens, an empty one between them, with `padding` in front in one row and behind in the other.
fn in_calls(model: &Model, ids: &Tensor, resets: &Tensor, length: i64, padding: i64) -> Tensor {
    let initial = model.initial_state(false).unwrap();
    let (mut state, mut outputs) = (initial.share(), Vec::new());
    for start in (0..23).step_by(length as usize) {
        for length in [0, length.min(23 - start)] {
            let pad = |tensor: &Tensor, value: i64| {
                let chunk = tensor.narrow(1, start, length);
                let fill = Tensor::full([1, padding], value, (chunk.kind(), chunk.device()));
                let front = Tensor::cat(&[&fill, &chunk.narrow(0, 0, 1)], 1);
                Tensor::cat(&[front, Tensor::cat(&[&chunk.narrow(0, 1, 1), &fill], 1)], 0)
            };
            let (valid, resets) = (pad(&resets.ones_like(), 0), pad(resets, 1));
            let valid = (padding > 0).then_some(&valid);
            let input = SpanInput { resets: Some(&resets), valid, training: false };
            let (hidden, next) = model.forward(&pad(ids, 0), &state, &initial, input).unwrap();
            let front = hidden.narrow(0, 0, 1).narrow(1, padding, length);
            outputs.push(Tensor::cat(&[front, hidden.narrow(0, 1, 1).narrow(1, 0, length)], 0));
            state = next;
        }
    }
    Tensor::cat(&outputs, 1)
}

#[test]
fn a_width_that_heads_do_not_divide_is_refused_at_its_key() {
    let recipe = RECIPE.replace("n_heads: 3", "n_heads: 4");
    let path = "model.block_pattern.layer.mixers[0].n_heads";
    testing::assert_rejects(&recipe, path, "the nearest that divide it: 3, 6");
}
